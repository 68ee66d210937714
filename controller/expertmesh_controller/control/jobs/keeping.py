"""The keeper of jobs: one list in the store, one job at a time with a job worker, all through restarts of either."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from pydantic import ValidationError

from expertmesh_common.clock import Clock
from expertmesh_common.errors import Exhausted, Unavailable
from expertmesh_common.jobs.wire import CANCELLED_KEY, NEWEST_BEAT_KEY, Beat, beat_key, decode_ids, encode_ids
from expertmesh_controller.control.jobs.advancing import (
    Company,
    Sight,
    advanced,
    asked_to_end,
    interrupted,
    not_sent,
    sent,
)
from expertmesh_controller.control.jobs.record import JOBS_KEY, Job, JobsRecord, JobState
from expertmesh_controller.control.jobs.tasks import Tasks
from expertmesh_controller.control.store.base import Lease, Store

log = logging.getLogger(__name__)

MOST_WAITING = 100
CANCELLED_KEPT = 50


class Writing(Protocol):
    """How the control loop lets its parts write to the store; see `ControlLoop.keep`."""

    def __call__(self, key: str, value: bytes) -> Awaitable[None]: ...


@dataclass(frozen=True, slots=True)
class JobLimits:
    """Times in seconds."""

    look_s: float = 0.3
    """Between two looks at the job under way."""
    cancel_s: float = 10.0
    """A cancelled task that has not ended by itself after this is killed."""
    insist_s: float = 2.0
    """Between two attempts to kill it."""


class JobKeeper:
    """`start`, `cancel` and `record` from the service; `run` until cancelled, then `settle`.

    `names` are the tasks' names by kind of job. Whoever leads the control loop keeps the jobs; others only show them.
    """

    def __init__(
        self,
        store: Store,
        tasks: Tasks,
        keep: Writing,
        lease: Callable[[], Lease | None],
        clock: Clock,
        names: Mapping[str, str],
        limits: JobLimits | None = None,
        wall_s: Callable[[], float] = time.time,
    ) -> None:
        self._store, self._tasks, self._write, self._lease = store, tasks, keep, lease
        self._clock, self._names, self._limits, self._wall_s = clock, names, limits or JobLimits(), wall_s
        self._record = JobsRecord()
        self._told_to_end: tuple[str, ...] = ()
        self._term: int | None = None
        self._vouched: dict[str, float] = {}
        self._insisted_s = float("-inf")
        self._turn, self._wake, self._change = asyncio.Lock(), asyncio.Event(), asyncio.Event()
        self._gone = False

    @property
    def record(self) -> JobsRecord:
        return self._record

    @property
    def changed(self) -> asyncio.Event:
        """Set at the next change of a job."""
        return self._change

    def now_ms(self) -> int:
        return int(self._wall_s() * 1000)

    async def add(self, job: Job) -> Job:
        """Queue a job.

        Raises:
            Exhausted: too many wait already.
            Unavailable: this controller does not lead, or the store is gone.

        """
        async with self._turn:
            if sum(not old.ended for old in self._record.jobs) >= MOST_WAITING:
                raise Exhausted(f"{MOST_WAITING} jobs wait already; cancel some, or try again later")
            await self._keep(job)
            self._wake.set()
        return job

    async def cancel(self, job_id: str) -> Job:
        """Ask a job to end; returns it as it is after that.

        Raises:
            NotHere: there is no such job.
            Unavailable: this controller does not lead, or the store is gone.

        """
        async with self._turn:
            job = self._record.of(job_id)
            ending = asked_to_end(job, self.now_ms())
            if ending != job:
                if job.task_id:
                    await self._tell_to_end(job.task_id)
                await self._keep(ending)
                self._wake.set()
        return ending

    async def anybody(self) -> bool:
        """Whether any job worker lives.

        Raises:
            Unavailable: the store is gone.

        """
        return await self._store.get(NEWEST_BEAT_KEY) is not None

    async def run(self) -> None:
        """Keep jobs going until cancelled, through outages of the store."""
        while True:
            try:
                async with self._turn:
                    await self._round()
                self._gone = False
            except Unavailable as error:
                if not self._gone:
                    log.warning("jobs wait: %s", error)
                self._gone = True
            except Exception:  # serving must outlive a job that nobody understands
                log.exception("a look at the jobs failed")
            self._wake.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._limits.look_s):
                    await self._wake.wait()

    async def settle(self) -> None:
        """After this controller's job worker was ended in order: what it was at goes on when one starts again."""
        try:
            async with self._turn:
                for job in self._record.with_workers():
                    seen = advanced(job, await self._tasks.look(job.task_id), Company(0.0, anybody=False), self.now_ms())
                    await self._keep(seen if seen.ended else interrupted(job))
        except Unavailable as error:
            log.warning("jobs were not put back into the queue: %s", error)

    async def _round(self) -> None:
        lease = self._lease()
        if lease is None or lease.term != self._term:
            await self._load()
            self._term = lease.term if lease else None
        if lease is None:
            return
        for job in self._record.with_workers():
            await self._look_after(job)
        if (job := self._record.next_to_send()) is not None:
            await self._send(job)

    async def _look_after(self, job: Job) -> None:
        sight = await self._tasks.look(job.task_id)
        after = advanced(job, sight, await self._company(job, sight), self.now_ms())
        if after.state is JobState.QUEUED:  # whoever might still be at it must not go on beside the next attempt
            await self._tell_to_end(job.task_id)
            await self._tasks.terminate(job.task_id)
        if after.model_copy(update={"progress": job.progress}) != job:
            log.info("job %s (%s) is %s %s", job.id, job.kind, after.state.value, after.error or after.note)
            await self._keep(after)
        elif after != job:
            self._show(self._record.with_job(after))
        await self._insist(after)

    async def _company(self, job: Job, sight: Sight) -> Company:
        now_s, anybody = self._clock.monotonic(), await self.anybody()
        worker = sight.progress.worker if sight.progress is not None else ""
        if worker and await self._vouches(worker, job.task_id):
            self._vouched[job.task_id] = now_s
        return Company(now_s - self._vouched.setdefault(job.task_id, now_s), anybody)

    async def _vouches(self, worker: str, task_id: str) -> bool:
        data = await self._store.get(beat_key(worker))
        try:
            return data is not None and Beat.model_validate_json(data).running == task_id
        except ValidationError:
            return False

    async def _insist(self, job: Job) -> None:
        """Kill what does not end by itself."""
        overdue = job.state is JobState.CANCELLING and self.now_ms() - job.cancelled_ms >= 1000 * self._limits.cancel_s
        now_s = self._clock.monotonic()
        if overdue and now_s - self._insisted_s >= self._limits.insist_s:
            self._insisted_s = now_s
            log.warning("job %s does not end by itself and is killed", job.id)
            await self._tasks.terminate(job.task_id)

    async def _send(self, job: Job) -> None:
        """The store first: a task that nobody remembers could run beside the next one."""
        going = sent(job, uuid.uuid4().hex)
        await self._keep(going)
        try:
            await self._tasks.send(going.task_id, self._names[going.kind], going.arguments)
        except Unavailable:
            await self._keep(not_sent(going, job.note))
            raise
        self._vouched = {going.task_id: self._clock.monotonic()}

    async def _tell_to_end(self, task_id: str) -> None:
        ids = (*self._told_to_end, task_id)[-CANCELLED_KEPT:]
        await self._write(CANCELLED_KEY, encode_ids(ids))
        self._told_to_end = ids

    async def _load(self) -> None:
        record = JobsRecord.decode(await self._store.get(JOBS_KEY))
        self._told_to_end = decode_ids(await self._store.get(CANCELLED_KEY))
        if record != self._record:
            self._show(record)

    async def _keep(self, job: Job) -> None:
        record = self._record.with_job(job)
        await self._write(JOBS_KEY, record.encode())
        self._show(record)

    def _show(self, record: JobsRecord) -> None:
        self._record = record
        change, self._change = self._change, asyncio.Event()
        change.set()


def new_job(kind: str, arguments: object, caller: str, now_ms: int) -> Job:
    """A job that waits."""
    return Job.model_validate(
        {"id": uuid.uuid4().hex[:10], "kind": kind, "arguments": arguments, "started_by": caller, "created_ms": now_ms}
    )
