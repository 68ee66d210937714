"""Building the command line: client commands, then the groups that are installed."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points

import typer

from expertmesh.cli import chat, doctor, experts, generate, jobs, models, nodes, route, status, tokens, version
from expertmesh.cli.examples import add_examples
from expertmesh.cli.missing import add_hints

GROUP = "expertmesh.cli"

CLIENT_COMMANDS = (generate, chat, jobs, models, status, nodes, experts, route, tokens, doctor, version)


def build_app() -> typer.Typer:
    """The whole program. A group whose extra is not installed becomes a hint that says how to get it."""
    app = typer.Typer(
        name="expertmesh",
        help="Serve mixture-of-experts models across the mismatched machines you already have.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["--help", "-h"], "max_content_width": 110},
    )
    # Without a callback typer makes a program of one command out of an app that has only one.
    app.callback()(_program)
    for module in CLIENT_COMMANDS:
        module.register(app)
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        _add(app, entry)
    add_examples(app)
    return app


def _program() -> None:
    """Serve mixture-of-experts models across the mismatched machines you already have."""


def _add(app: typer.Typer, entry: EntryPoint) -> None:
    try:
        register = entry.load()
    except ModuleNotFoundError as error:
        add_hints(app, entry.name, error.name or "a package")
        return
    register(app)
