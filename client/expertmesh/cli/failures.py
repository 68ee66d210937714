"""How a failed command ends: one line on standard error and an exit code that scripts can tell apart.

0    done
1    internal: a bug, here or in the server
2    usage: a wrong flag, argument or request
3    unavailable: nothing answers there, or it cannot serve now
4    refused: token, certificate, permission or state do not allow it
5    deadline exceeded
6    overloaded: try again later
7    corrupt data
130  interrupted
"""

from __future__ import annotations

import sys

import grpc

INTERNAL = 1
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


def report(error: BaseException) -> None:
    """One line on standard error."""
    text = " ".join(str(error).split()) or type(error).__name__
    sys.stderr.write(f"expertmesh: {text}\n")
