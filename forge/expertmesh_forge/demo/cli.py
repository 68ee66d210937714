"""`expertmesh demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, cast

import typer

QUESTION = "What is the capital of France? Describe the city in two or three sentences."
NOT_EXACT = 1


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("demo")(demo)


def demo(
    *,
    question: Annotated[str, typer.Option(help="What to ask.")] = QUESTION,
    max_tokens: Annotated[int, typer.Option(min=1, help="The longest answer.")] = 64,
    workers: Annotated[int, typer.Option(min=2, help="Worker processes, each with 60 % of the experts.")] = 3,
    precision: Annotated[str, typer.Option(help="fp32 or int4.")] = "fp32",
    bundle: Annotated[Path, typer.Option(help="Where the demo model is kept.")] = Path("build/demo-bundle"),
    report: Annotated[Path, typer.Option(help="Where the run's facts go.")] = Path("build/run-report.json"),
) -> None:
    """Make the demo model once, serve it with three workers, ask it, and prove the answer right."""
    from rich.console import Console  # noqa: PLC0415 - the forge's libraries are not needed for --help

    from expertmesh_common.errors import InvalidInput  # noqa: PLC0415
    from expertmesh_forge.demo.job import DemoRequest, run_demo  # noqa: PLC0415

    if precision not in {"fp32", "int4"}:
        raise InvalidInput(f"--precision {precision!r}: allowed are fp32, int4")
    chosen = cast("Literal['fp32', 'int4']", precision)
    request = DemoRequest(question, max_tokens, workers, chosen, bundle, report)
    if not run_demo(request, Console(highlight=False, soft_wrap=True)).exact:
        raise typer.Exit(NOT_EXACT)
