"""`expertmesh job-worker`."""

from __future__ import annotations

from typing import Annotated

import typer

from expertmesh_common.errors import Precondition

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("job-worker")(job_worker)


def job_worker(
    *,
    redis: Annotated[
        str, typer.Option(envvar="EXPERTMESH_STORE", help="The controller's store: a redis:// or unix:// URL.")
    ],
    name: Annotated[str, typer.Option(help="What logs call it.")] = "job-worker",
) -> None:
    """Run background jobs of a mesh, one at a time.

    A controller starts one by itself; run more where its --store is a Redis that they reach.
    """
    from expertmesh_forge.jobs.yielding import yield_to_serving  # noqa: PLC0415

    yield_to_serving()  # before anything heavy is loaded
    from expertmesh_common.logs import setup_logs  # noqa: PLC0415

    try:
        from expertmesh_forge.jobs.worker import run_worker  # noqa: PLC0415 - Celery takes a second to load
    except ModuleNotFoundError as error:
        raise Precondition(f"a job worker needs {error.name}: pip install 'expertmesh[jobs]'") from error
    setup_logs()
    raise typer.Exit(run_worker(redis, name))
