"""The job worker: a Celery worker that runs one task at a time and may be killed at any moment."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import signal
import socket
import warnings
from types import FrameType

import psutil
from celery import signals
from celery.exceptions import SecurityWarning
from celery.worker import state

from expertmesh_forge.jobs.app import make_app
from expertmesh_forge.jobs.beating import beating

__all__ = ["run_worker"]

log = logging.getLogger(__name__)


def run_worker(url: str, name: str) -> int:
    """Take tasks from the store at `url` until a signal; returns the exit code.

    SIGTERM and SIGINT end it at once: tasks leave their finished steps on the disk whenever they end. `name` is how it
    is called in logs; every start adds its own mark.

    Raises:
        InvalidInput: `url` is not one that jobs can use.

    """
    # A name for every start: a task that names another one has lost its worker.
    name = f"{name}-{os.getpid()}-{secrets.token_hex(3)}@{socket.gethostname()}"
    started: list[object] = []

    def ready(**_: object) -> None:
        """Celery says it again after every reconnection."""
        if not started:
            started.append(beating(url, name, _running))
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, _end)
            log.info("job worker %s is ready", name)

    # It warns root of what pickle can do; these tasks come as JSON.
    warnings.simplefilter("ignore", SecurityWarning)
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
