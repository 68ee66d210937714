"""`expertmesh jobs`: long work in the background of a mesh; list, watch, show and cancel it."""

from __future__ import annotations

import sys
import time
from datetime import UTC, datetime
from typing import Annotated

import typer

from expertmesh.channel import DEFAULT_ADDRESS
from expertmesh.cli.connecting import Json, Server, TlsFolder, Token, connect
from expertmesh.cli.job_screens import following, outcome, print_job
from expertmesh.cli.output import print_json, print_table
from expertmesh.jobs import Job

COLUMNS = ("job", "kind", "model", "state", "progress", "started", "by")
NOTHING = "there are no jobs; `expertmesh model import FOLDER --on-mesh` starts one\n"

JobId = Annotated[str, typer.Argument(metavar="JOB", help="Its id, as `expertmesh jobs list` shows it.")]


def register(app: typer.Typer) -> None:
    """Add the command group."""
    group = typer.Typer(help="Background jobs of the mesh: list, watch, show, cancel.", no_args_is_help=True)
    group.command("list")(list_jobs)
    group.command("watch")(watch)
    group.command("show")(show)
    group.command("cancel")(cancel)
    app.add_typer(group, name="jobs")


def list_jobs(
    as_json: Json = False, server: Server = DEFAULT_ADDRESS, token: Token = None, tls: TlsFolder = None
) -> None:
    """The jobs and how far each one is, the newest last."""
    with connect(server, token, tls) as client:
        found = client.jobs.list()
    if as_json:
        return print_json(found)
    if not found:
        sys.stdout.write(NOTHING)
        return None
    print_table(COLUMNS, [_row(job) for job in found], numbers=("progress",))
    return None


def watch(
    job: JobId, *, as_json: Json = False, server: Server = DEFAULT_ADDRESS, token: Token = None, tls: TlsFolder = None
) -> None:
    """Follow a job until it has ended, also through restarts of the controller.

    Ends with code 1 if the job failed or was cancelled. Ctrl-C ends the watching, not the job.
    """
    with connect(server, token, tls) as client:
        ended = following(client.jobs.watch(job), as_json=as_json)
    if not as_json:
        sys.stdout.write(outcome(ended))
    if ended.state != "done":
        raise typer.Exit(1)


def show(
    job: JobId, *, as_json: Json = False, server: Server = DEFAULT_ADDRESS, token: Token = None, tls: TlsFolder = None
) -> None:
    """Everything about one job."""
    with connect(server, token, tls) as client:
        found = client.jobs.get(job)
    if as_json:
        return print_json(found)
    return print_job(found)


def cancel(
    job: JobId, *, as_json: Json = False, server: Server = DEFAULT_ADDRESS, token: Token = None, tls: TlsFolder = None
) -> None:
    """Ask a job to end.

    What it has finished stays: the same job, started again, goes on from there.
    """
    with connect(server, token, tls) as client:
        found = client.jobs.cancel(job)
    if as_json:
        return print_json(found)
    sys.stdout.write(f"job {found.id} is {found.state}\n")
    return None


def _row(job: Job) -> tuple[object, ...]:
    began = datetime.fromtimestamp(job.created_ms / 1000, UTC).astimezone()
    day = "%H:%M:%S" if began.date() == datetime.fromtimestamp(time.time(), UTC).astimezone().date() else "%Y-%m-%d"
    share = f"{job.done_steps}/{job.total_steps}" if job.total_steps else ""
    return (job.id, job.kind, job.name, job.state, share, began.strftime(day), job.started_by)
