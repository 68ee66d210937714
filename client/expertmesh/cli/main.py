"""The program `expertmesh`: its frame is here, other packages add their commands through entry points."""

from __future__ import annotations

import sys

from expertmesh.cli import failures

MISSING_CLI = "the command line needs more packages: pip install 'expertmesh[cli]'"


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
        build_app()(arguments, prog_name="expertmesh")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else failures.INTERNAL
    except KeyboardInterrupt:
        return failures.INTERRUPTED
    except BrokenPipeError:
        return _reader_left()
    except Exception as error:
        status = failures.status_of(error)
        if status is None:
            raise
        failures.report(error)
        return failures.exit_code(status)
    return 0


def _reader_left() -> int:
    """Whoever read our output has seen enough: end quietly, also in the interpreter's last flush."""
    sys.stdout = None
    return 0


if __name__ == "__main__":
    main()
