"""The program `expertmesh`: its frame is here, other packages add their commands through entry points."""

from __future__ import annotations

import os
import sys

from expertmesh.cli import failures

MISSING_CLI = "the command line needs more packages: pip install 'expertmesh[cli]'"
DEBUG = "EXPERTMESH_DEBUG"
"""Set, it shows where an unforeseen error came from."""


def main() -> None:
    """Run the command line of this process and exit with its code (see `failures`)."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command; returns its exit code."""
    try:
        from expertmesh.cli.app import build_app  # noqa: PLC0415 - typer comes with an extra
    except ModuleNotFoundError as error:
        if error.name not in {"typer", "rich"}:
            raise
        failures.report(RuntimeError(MISSING_CLI))
        return failures.USAGE
    try:
        code = build_app()(arguments, prog_name="expertmesh", standalone_mode=False)
        # A last flush here, so that a reader who left is noticed where it can be handled.
        sys.stdout.flush()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else failures.INTERNAL
    except KeyboardInterrupt:
        return failures.INTERRUPTED
    except BrokenPipeError:
        return _reader_left()
    except Exception as error:  # noqa: BLE001 - the edge of the program: every error leaves as a line and a code
        return _failed(error)
    return code if isinstance(code, int) else failures.DONE


def _failed(error: Exception) -> int:
    if failures.is_usage(error):
        return failures.report_usage(error)
    code = failures.code_of(error)
    if code is None:
        if os.environ.get(DEBUG):
            raise error
        failures.report(RuntimeError(f"{type(error).__name__}: {error} - this is a mistake in the program; {_HOW}"))
        return failures.INTERNAL
    failures.report(error)
    return code


_HOW = f"{DEBUG}=1 shows where"


def _reader_left() -> int:
    """Whoever read our output has seen enough: end quietly, also in the interpreter's last flush."""
    sys.stdout = None
    return failures.DONE


if __name__ == "__main__":
    main()
