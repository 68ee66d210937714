"""Commands whose packages are not installed: they say what to install instead of failing with a traceback."""

from __future__ import annotations

from collections.abc import Callable

import typer

from expertmesh.cli import failures

# entry point -> (commands it would bring, extra that brings them)
BROUGHT: dict[str, tuple[tuple[str, ...], str]] = {
    "up": (("up", "controller"), "controller"),
    "worker": (("worker",), "worker"),
    "model": (("model",), "forge"),
    "jobs": (("job-worker",), "jobs"),
    "certs": (("certs",), "controller"),
    "demo": (("demo",), "controller,worker,forge"),
}


def add_hints(app: typer.Typer, entry: str, missing: str) -> None:
    """Add one hint per command that the entry point would have brought."""
    commands, extra = BROUGHT.get(entry, ((entry,), entry))
    for name in commands:
        app.command(
            name,
            help=f"Not installed: pip install 'expertmesh[{extra}]'.",
            context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []},
        )(_hint(name, extra, missing))


def _hint(name: str, extra: str, missing: str) -> Callable[[typer.Context], None]:
    def command(context: typer.Context) -> None:  # noqa: ARG001 - typer passes it, so that any argument is taken
        failures.report(
            RuntimeError(
                f"`expertmesh {name}` needs {missing}, which is not installed: pip install 'expertmesh[{extra}]'"
            )
        )
        raise typer.Exit(failures.USAGE)

    return command
