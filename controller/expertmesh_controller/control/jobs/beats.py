"""The beats of job workers, as the controller reads them: who lives, and who vouches for which task."""

from __future__ import annotations

from pydantic import ValidationError

from expertmesh_common.clock import Clock
from expertmesh_common.jobs.wire import NEWEST_BEAT_KEY, Beat, beat_key
from expertmesh_controller.control.jobs.advancing import Company, Sight
from expertmesh_controller.control.store.base import Store


class Beats:
    """Every question raises `Unavailable` when the store is gone."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store, self._clock = store, clock
        self._vouched: dict[str, float] = {}

    async def anybody(self) -> bool:
        """Whether any job worker lives."""
        return await self._store.get(NEWEST_BEAT_KEY) is not None

    def begin(self, task_id: str) -> None:
        """Silence about this task counts from now; others are forgotten."""
        self._vouched = {task_id: self._clock.monotonic()}

    def forget(self) -> None:
        """The store was away, and beats with it: silence counts from now."""
        self._vouched = {}

    async def company(self, task_id: str, sight: Sight) -> Company:
        """Who is with a task that was seen like this."""
        now_s = self._clock.monotonic()
        if sight.progress is not None and await self._vouches(sight.progress.worker, task_id):
            self._vouched[task_id] = now_s
        return Company(now_s - self._vouched.setdefault(task_id, now_s), await self.anybody())

    async def _vouches(self, worker: str, task_id: str) -> bool:
        data = await self._store.get(beat_key(worker))
        try:
            return data is not None and Beat.model_validate_json(data).running == task_id
        except ValidationError:
            return False
