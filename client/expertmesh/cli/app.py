"""Building the command line: client commands, then the groups that are installed."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points

import typer

from expertmesh.cli import generate, inspect
from expertmesh.cli.missing import add_hints

GROUP = "expertmesh.cli"


def build_app() -> typer.Typer:
    """The whole program. A group whose extra is not installed becomes a hint that says how to get it."""
    app = typer.Typer(
        name="expertmesh",
        help="Serve mixture-of-experts models across the mismatched machines you already have.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    generate.register(app)
    inspect.register(app)
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        _add(app, entry)
    return app


def _add(app: typer.Typer, entry: EntryPoint) -> None:
    try:
        register = entry.load()
    except ModuleNotFoundError as error:
        add_hints(app, entry.name, error.name or "a package")
        return
    register(app)
