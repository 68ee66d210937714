"""What a person sees of a job: a bar while it runs, then what became of it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import UTC, datetime

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from expertmesh.cli.output import counted, print_json
from expertmesh.errors import NotFound
from expertmesh.jobs import Job


def following(jobs: Iterator[Job], *, as_json: bool = False) -> Job:
    """Show a job as it changes; returns it as it ended. As JSON, one line a change.

    Raises:
        NotFound: it was never seen.

    """
    last: Job | None = None
    columns = (
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    )  # fmt: skip
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=as_json or not console.is_terminal) as bar:
        task = bar.add_task("waiting", total=None)
        for job in jobs:
            if as_json:
                print_json(job)
            elif not console.is_terminal and (last is None or (last.state, last.note) != (job.state, job.note)):
                sys.stderr.write(f"{_line(job)}\n")
            bar.update(task, description=_line(job), completed=job.done_steps, total=job.total_steps or None)
            last = job
    if last is None:
        raise NotFound("the mesh told nothing about this job")
    return last


def outcome(job: Job) -> str:
    """What became of it, and what to do next."""
    if job.state == "failed":
        return f"job {job.id} failed: {job.error}\n"
    if job.imported is None:
        return f"job {job.id} was {job.state}; what it finished is kept, the same import goes on from there\n"
    made = job.imported
    went_on = f" ({counted(made.resumed_steps, 'segment')} from an earlier attempt)" if made.resumed_steps else ""
    lines = [
        f"{made.name} ({made.family}): {counted(made.experts, 'expert')} in {counted(made.layers, 'layer')}{went_on}",
        *(f"note: {note}" for note in made.notes),
        f"serve it: expertmesh models serve {made.path} --name {made.name}",
    ]
    return "\n".join(lines) + "\n"


def print_job(job: Job) -> None:
    """Every field that says something."""
    steps = f"{job.stage} {job.done_steps} of {job.total_steps}" if job.total_steps else ""
    facts = {
        "job": job.id, "kind": job.kind, "model": job.name, "from": job.folder, "state": job.state, "progress": steps,
        "attempt": str(job.attempt) if job.attempt > 1 else "", "started by": job.started_by,
        "created": _time(job.created_ms), "started": _time(job.started_ms), "ended": _time(job.ended_ms),
        "note": job.note,
    }  # fmt: skip
    for name, value in facts.items():
        if value:
            sys.stdout.write(f"{name + ':':12}{value}\n")
    if job.ended:
        sys.stdout.write(outcome(job))


def _line(job: Job) -> str:
    return f"{job.name}: {job.state}" + (f" ({job.note})" if job.note else "")


def _time(unix_ms: int) -> str:
    return datetime.fromtimestamp(unix_ms / 1000, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S") if unix_ms else ""
