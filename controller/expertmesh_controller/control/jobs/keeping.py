"""The keeper of jobs: one list in the store, one job at a time with a job worker, all through restarts of either."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING

from expertmesh_common.clock import Clock
from expertmesh_common.errors import Exhausted, MeshError, Unavailable
from expertmesh_common.jobs.wire import CANCELLED_KEY, decode_ids, encode_ids
from expertmesh_controller.control.jobs.advancing import (
    advanced,
    asked_to_end,
    interrupted,
    not_sent,
    sent,
)
from expertmesh_controller.control.jobs.beats import Beats
from expertmesh_controller.control.jobs.limits import JobLimits
from expertmesh_controller.control.jobs.record import JOBS_KEY, Job, JobsRecord, JobState
from expertmesh_controller.control.store.base import Lease, Store

if TYPE_CHECKING:
    from expertmesh_controller.control.jobs.tasks import Tasks

log = logging.getLogger(__name__)

MOST_WAITING = 100
CANCELLED_KEPT = 50


class JobKeeper:
    """`add`, `cancel` and `known` are for the service; `run` until cancelled, then `settle`.

    `keep` is how the control loop writes, `lease` its leave to do so: whoever leads keeps the jobs, others only show
    them. `names` are the tasks' names by kind of job.
    """

    def __init__(
        self,
        store: Store,
        tasks: Tasks,
        keep: Callable[[str, bytes], Awaitable[None]],
        lease: Callable[[], Lease | None],
        *,
        clock: Clock,
        names: Mapping[str, str],
        limits: JobLimits,
        wall_s: Callable[[], float] = time.time,
    ) -> None:
        self._store, self._tasks, self._write, self._lease = store, tasks, keep, lease
        self._clock, self._names, self._limits, self._wall_s = clock, names, limits, wall_s
        self._beats = Beats(store, clock)
        self._record: JobsRecord | None = None
        self._told_to_end: tuple[str, ...] = ()
        self._term: int | None = None
        self._insisted_s = float("-inf")
        self._turn, self._wake, self._change = asyncio.Lock(), asyncio.Event(), asyncio.Event()
        self._gone = False
        self.closed = False
        """Nothing will change any more."""

    async def known(self) -> JobsRecord:
        """The jobs as this controller knows them; it asks the store only if it never has.

        Raises:
            Unavailable: the store is gone.
            CorruptData: what it has is no list of jobs.

        """
        if self._record is None:
            async with self._turn:
                await self._load()
        return self._current

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
            await self._follow()
            if sum(not old.ended for old in self._current.jobs) >= MOST_WAITING:
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
            await self._follow()
            job = self._current.of(job_id)
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
        return await self._beats.anybody()

    async def run(self) -> None:
        """Keep jobs going until cancelled, through outages of the store."""
        while True:
            try:
                async with self._turn:
                    await self._round()
                self._gone = False
            except MeshError as error:
                if not self._gone:
                    log.warning("jobs wait: %s", error)
                self._gone = True
                self._beats.forget()
            except Exception:  # serving must outlive a job that nobody understands
                log.exception("a look at the jobs failed")
            self._wake.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._limits.look_s):
                    await self._wake.wait()

    def close(self) -> None:
        """Let those who wait for `changed` go."""
        self.closed = True
        self._tell_change()

    async def settle(self, own_workers: str) -> None:
        """After the job worker whose names begin with `own_workers` was ended in order: its job goes on with the next.

        Nothing is counted as a failed attempt.
        """
        if self._record is None:  # the store never said which jobs there are
            return
        try:
            async with self._turn:
                for job in self._current.with_workers():
                    sight = await self._tasks.look(job.task_id)
                    if sight.progress is not None and sight.progress.worker.startswith(own_workers):
                        await self._keep(interrupted(job, self.now_ms()))
        except Unavailable as error:
            log.warning("jobs were not put back into the queue: %s", error)

    async def _round(self) -> None:
        if not await self._follow():
            return
        for job in self._current.with_workers():
            await self._look_after(job)
        if (waiting := self._current.next_to_send()) is not None:
            await self._send(waiting)

    async def _follow(self) -> bool:
        """Know what the store knows: who does not lead, or just began to, reads it. Returns whether we lead."""
        lease = self._lease()
        if lease is None or lease.term != self._term:
            await self._load()
            self._term = lease.term if lease else None
        return lease is not None

    async def _look_after(self, job: Job) -> None:
        sight = await self._tasks.look(job.task_id)
        after = advanced(job, sight, await self._beats.company(job.task_id, sight), self.now_ms())
        if after.state is JobState.QUEUED:  # whoever might still be at it must not go on beside the next attempt
            await self._tell_to_end(job.task_id)
            await self._tasks.terminate(job.task_id)
        if after.model_copy(update={"progress": job.progress}) != job:
            log.info("job %s (%s) is %s %s", job.id, job.kind, after.state.value, after.error or after.note)
            await self._keep(after)
        elif after != job:
            self._show(self._current.with_job(after))
        await self._insist(after)

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
        going = sent(job, uuid.uuid4().hex, self.now_ms())
        await self._keep(going)
        try:
            await self._tasks.send(going.task_id, self._names[going.kind], going.arguments)
        except Unavailable:
            await self._keep(not_sent(going, job.note))
            raise
        self._beats.begin(going.task_id)

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
        record = self._current.with_job(job)
        await self._write(JOBS_KEY, record.encode())
        self._show(record)

    def _show(self, record: JobsRecord) -> None:
        self._record = record
        self._tell_change()

    @property
    def _current(self) -> JobsRecord:
        assert self._record is not None, "_follow comes first"
        return self._record

    def _tell_change(self) -> None:
        change, self._change = self._change, asyncio.Event()
        change.set()
