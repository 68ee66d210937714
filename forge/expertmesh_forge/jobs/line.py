"""What a running task says and hears: its progress goes out, a wish that it end comes in."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator

import redis

from expertmesh_common.jobs.importing import Progress
from expertmesh_common.jobs.wire import CANCELLED_KEY, LOOK_EVERY_S, decode_ids
from expertmesh_common.store_keys import STORE_PREFIX

__all__ = ["ASK_S", "TaskLine", "task_line"]

log = logging.getLogger(__name__)

ASK_S = 2.0
"""Longest wait for the store; a task goes on without it."""


class TaskLine:
    """Of the task `task_id` on `worker`; `tell` carries its progress. It tells and asks a few times a second."""

    def __init__(
        self,
        task_id: str,
        worker: str,
        tell: Callable[[Progress], None],
        store: redis.Redis,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._id, self._worker, self._tell, self._store, self._now = task_id, worker, tell, store, now
        self._told_at = self._asked_at = float("-inf")
        self._cancelled = False

    def begin(self) -> None:
        """Say that the task runs, and where."""
        self._say(Progress(worker=self._worker))

    def report(self, stage: str, done: int, total: int) -> None:
        """A `Progress` of the toolchain."""
        if done < total and self._now() - self._told_at < LOOK_EVERY_S:
            return
        self._say(Progress(worker=self._worker, stage=stage, done=done, total=total))
        self._told_at = self._now()

    def cancelled(self) -> bool:
        """Whether the task shall end."""
        if not self._cancelled and self._now() - self._asked_at >= LOOK_EVERY_S:
            self._cancelled = self._asked()
            self._asked_at = self._now()
        return self._cancelled

    def _say(self, progress: Progress) -> None:
        try:
            self._tell(progress)
        except Exception as error:  # noqa: BLE001 - of whatever library carries it: work outlives a store that is away
            log.warning("progress was not told: %s", error)

    def _asked(self) -> bool:
        try:
            listed = self._store.get(f"{STORE_PREFIX}{CANCELLED_KEY}")
        except redis.RedisError as error:
            log.warning("the store was not asked whether to go on: %s", error)
            return False
        return self._id in decode_ids(listed if isinstance(listed, bytes) else None)


@contextlib.contextmanager
def task_line(url: str, task_id: str, worker: str, tell: Callable[[Progress], None]) -> Iterator[TaskLine]:
    """A line over the store at `url`."""
    with contextlib.closing(redis.from_url(url, socket_timeout=ASK_S, socket_connect_timeout=ASK_S)) as store:
        yield TaskLine(task_id, worker, tell, store)
