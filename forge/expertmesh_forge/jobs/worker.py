"""The job worker: a Celery worker that runs one task at a time and may be killed at any moment."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import signal
import socket
from pathlib import Path
from types import FrameType

import psutil
from celery import signals
from celery.worker import state

from expertmesh_forge.jobs.app import make_app
from expertmesh_forge.jobs.beating import beating

__all__ = ["run_worker"]

log = logging.getLogger(__name__)

NICENESS = 10
OOM_SCORE = 500


def run_worker(url: str) -> int:
    """Take tasks from the store at `url` until a signal; returns the exit code.

    SIGTERM and SIGINT end it at once: tasks leave their finished steps on the disk whenever they end.

    Raises:
        InvalidInput: `url` is not one that jobs can use.

    """
    _yield_to_serving()
    # A name for every start: a task that names another one has lost its worker.
    name = f"job-worker-{os.getpid()}-{secrets.token_hex(3)}@{socket.gethostname()}"
    started: list[object] = []

    def ready(**_: object) -> None:
        """Celery says it again after every reconnection."""
        if not started:
            started.append(beating(url, name, _running))
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, _end)
            log.info("job worker %s is ready", name)

    signals.worker_ready.connect(ready, weak=False)
    signals.setup_logging.connect(_keep_logs, weak=False)
    worker = make_app(url).Worker(
        hostname=name, pool_cls="prefork", concurrency=1, quiet=True, loglevel="INFO",
        without_mingle=True, without_gossip=True, without_heartbeat=True,
    )  # fmt: skip
    worker.start()
    return int(worker.exitcode or 0)


def _running() -> str:
    return next((request.id for request in tuple(state.active_requests)), "")


def _keep_logs(**_: object) -> None:
    """Celery leaves logging alone when somebody listens to this signal."""


def _end(_number: int, _frame: FrameType | None) -> None:
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    os._exit(0)


def _yield_to_serving() -> None:
    """Serving goes first on the cores, and if memory runs out this process is the one to go."""
    os.nice(NICENESS)
    with contextlib.suppress(OSError):  # other systems have no such file
        Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE), encoding="ascii")
