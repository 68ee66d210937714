"""`expertmesh model import --on-mesh`: the same import as a background job of a mesh."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import typer

from expertmesh import Client
from expertmesh.cli.failures import FAILED
from expertmesh.cli.job_screens import following, outcome
from expertmesh.errors import InvalidRequest

__all__ = ["MeshImport", "import_on_mesh"]


@dataclass(frozen=True, slots=True)
class MeshImport:
    """What to import; `name` "" is the folder's, `context_tokens` 0 the longest that is served exactly."""

    checkpoint: Path
    name: str
    precisions: Sequence[str]
    context_tokens: int
    fresh: bool = False


def import_on_mesh(what: MeshImport, out: Path | None, client: Client, *, watch: bool) -> None:
    """Start the job; with `watch` follow it until it has ended, with exit code 1 unless it is done.

    Raises:
        InvalidRequest: `out` was given, or the mesh refuses an argument.
        FailedPrecondition: the mesh runs no jobs, or has a bundle of that name.

    """
    if out is not None:
        raise InvalidRequest("--out with --on-mesh: the mesh keeps the bundle by its data; --name says how to call it")
    with client:
        job = client.jobs.start_import(
            what.checkpoint.absolute(), name=what.name, precisions=what.precisions,
            context_tokens=what.context_tokens, fresh=what.fresh,
        )  # fmt: skip
        typer.echo(f"job {job.id} is {job.state}: expertmesh jobs watch {job.id}", err=watch)
        if not watch:
            return
        ended = following(client.jobs.watch(job.id))
    typer.echo(outcome(ended), nl=False)
    if ended.state != "done":
        raise typer.Exit(FAILED)
