"""How a failed command ends: one or two lines on standard error and an exit code that scripts can tell apart.

0    done
1    failed: `doctor` or `model verify` found something, or a bug, here or in the server
2    usage: a wrong flag, argument or request
3    unavailable: nothing answers there, or it cannot serve now
4    refused: token, certificate, permission or state do not allow it
5    deadline exceeded
6    overloaded: try again later
7    corrupt data
130  interrupted
"""

from __future__ import annotations

import re
import sys
from typing import Any

import grpc

DONE = 0
INTERNAL = FAILED = 1
USAGE = 2
UNAVAILABLE = 3
REFUSED = 4
DEADLINE = 5
OVERLOADED = 6
CORRUPT = 7
INTERRUPTED = 130

_CODES: dict[grpc.StatusCode, int] = {
    grpc.StatusCode.INVALID_ARGUMENT: USAGE,
    grpc.StatusCode.OUT_OF_RANGE: USAGE,
    grpc.StatusCode.NOT_FOUND: USAGE,
    grpc.StatusCode.UNAVAILABLE: UNAVAILABLE,
    grpc.StatusCode.UNAUTHENTICATED: REFUSED,
    grpc.StatusCode.PERMISSION_DENIED: REFUSED,
    grpc.StatusCode.FAILED_PRECONDITION: REFUSED,
    grpc.StatusCode.DEADLINE_EXCEEDED: DEADLINE,
    grpc.StatusCode.RESOURCE_EXHAUSTED: OVERLOADED,
    grpc.StatusCode.DATA_LOSS: CORRUPT,
}


def status_of(error: BaseException) -> grpc.StatusCode | None:
    """The gRPC status an error stands for; the SDK's errors and the services' all carry one."""
    status = getattr(error, "status", None)
    return status if isinstance(status, grpc.StatusCode) else None


def exit_code(status: grpc.StatusCode) -> int:
    return _CODES.get(status, INTERNAL)


def code_of(error: BaseException) -> int | None:
    """The exit code for an error that somebody foresaw, else None."""
    status = status_of(error)
    if status is not None:
        return exit_code(status)
    # A file that the user named: the system's message says which and why.
    return USAGE if isinstance(error, OSError) and error.filename is not None else None


def is_usage(error: BaseException) -> bool:
    """Whether the command line itself was refused; typer keeps the classes of these errors to itself."""
    return callable(getattr(error, "format_message", None))


def report_usage(error: Any) -> int:  # noqa: ANN401 - see `is_usage`
    """What was wrong and whose --help to read; a group without a command is answered with its help."""
    message, context = error.format_message(), getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        sys.stderr.write(f"{message}\n")
        return USAGE
    path = "expertmesh" if context is None else context.command_path
    report(RuntimeError(f"{message} See `{path} --help`."))
    return USAGE


def report(error: BaseException) -> None:
    """One line on standard error, and a second one where there is something to do that the error does not say."""
    text = _CHATTER.sub("", " ".join(_text(error).split())) or type(error).__name__
    sys.stderr.write(f"expertmesh: {text}\n")
    advice = _advice(status_of(error), text)
    if advice:
        sys.stderr.write(f"  {advice}\n")


# What gRPC and pydantic say before they say what is the matter.
_CHATTER = re.compile(r"Value error, |failed to connect to all addresses; last error: (\w+: )?((ipv[46]|unix):\S+: )?")


def _text(error: BaseException) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def _advice(status: grpc.StatusCode | None, text: str) -> str:
    if status is not grpc.StatusCode.UNAVAILABLE:
        return ""
    if "connect" in text.lower():
        return "Does a mesh run there? `expertmesh up` starts one, --server names another, `expertmesh doctor` looks."
    return "`expertmesh status` says what is missing."
