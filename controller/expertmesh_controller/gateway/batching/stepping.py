"""The engine's side of its thread: take in, plan, run, choose, hand out. Knows no event loop and starts no thread."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

import numpy as np

from expertmesh_common.clock import Clock
from expertmesh_common.errors import CorruptData, DeadlinePassed, MeshError, Unavailable
from expertmesh_controller.gateway.batching.forward import Forward
from expertmesh_controller.gateway.batching.jobs import Ended, Event, Failed, Job, Ticket
from expertmesh_controller.gateway.batching.planning import StepPlan, advanced, planned
from expertmesh_controller.gateway.batching.roster import Move, Roster, admitted, promoted, removed
from expertmesh_controller.gateway.batching.tally import Tally
from expertmesh_controller.gateway.sampling.choosing import choose, unusable
from expertmesh_controller.gateway.trunk.executor import Chunk, Floats, TrunkExecutor, Work

__all__ = ["Stepper"]

log = logging.getLogger(__name__)


class Stepper:
    """Holds the running jobs. `post(ticket, event)` tells a job's owner; event None says that it left on request."""

    def __init__(
        self,
        trunk: TrunkExecutor,
        forward: Forward,
        clock: Clock,
        tally: Tally,
        post: Callable[[Ticket, Event | None], None],
    ) -> None:
        self._trunk, self._forward, self._clock, self._tally, self._post = trunk, forward, clock, tally, post
        self._jobs: dict[int, Job] = {}
        self.roster = Roster(trunk.limits.slots)

    def join(self, job: Job) -> None:
        """Queue a job."""
        self._jobs[job.ticket.key] = job
        waiting = (*self.roster.waiting, job.sequence())
        self.roster = Roster(self.roster.slots, waiting, self.roster.prefilling, self.roster.decoding)

    def cancel(self, key: int) -> None:
        """Drop a job, if it is still here."""
        if key in self._jobs:
            self._leave(key, None)

    def fail_all(self, error: Exception) -> None:
        """End every job, whatever state they are in."""
        for job in self._jobs.values():
            self._post(job.ticket, Failed(error))
        self._jobs.clear()
        self.roster = Roster(self.roster.slots)

    def step(self) -> bool:
        """Run one step of whatever is due. False: nothing to do, or the experts are not there right now."""
        self._expire(None)
        self.roster = admitted(self.roster)
        plan = planned(self.roster, self._clock.monotonic(), self._trunk.limits.chunk_tokens)
        if plan is None:
            return False
        self._mark_started(plan)
        try:
            self._absorb(plan, self._forward.run(self._work(plan), plan.deadline))
        except (Unavailable, DeadlinePassed) as error:
            self._expire(error)  # the others try the same step again
            return False
        except Exception as error:  # the thread must outlive any step
            if not isinstance(error, MeshError):
                log.exception("step failed")
            self._leave_all(plan.keys, error)
        return True

    def _work(self, plan: StepPlan) -> Work:
        decoding = self.roster.decoding
        ids = np.fromiter((self._jobs[s.key].last_id for s in decoding), np.int64, len(decoding))
        cached = np.fromiter((s.cached for s in decoding), np.int32, len(decoding))
        chunk = plan.chunk
        if chunk is None:
            return Work(ids, cached)
        token_ids = self._jobs[chunk.key].ids(chunk.start, chunk.count)
        return Work(ids, cached, Chunk(chunk.slot, chunk.start, token_ids, chunk.ends_prompt))

    def _absorb(self, plan: StepPlan, logits: Floats) -> None:
        self._count_active(plan)
        jobs = [self._jobs[key] for key in plan.sampled_keys]
        broken = unusable(logits) if jobs else np.empty(0, np.bool_)
        sound = np.flatnonzero(~broken)
        choices = iter(
            choose(logits if len(sound) == len(jobs) else logits[sound], [jobs[row].draw() for row in sound])
        )
        self.roster = advanced(self.roster, plan)
        if plan.chunk is not None and plan.chunk.ends_prompt:
            self._apply(*promoted(self.roster, plan.chunk.key))
        now = self._clock.monotonic()
        for job, bad in zip(jobs, broken, strict=True):
            if bad:
                self._leave(job.ticket.key, Failed(_not_a_number(job)))
            else:
                self._hand_out(job, job.take(next(choices)), now)

    def _hand_out(self, job: Job, events: Iterable[Event], now: float) -> None:
        facts = job.ticket.facts
        if facts.last_token is not None:
            self._tally.token_took(1000 * (now - facts.last_token))
        if facts.first_token is None:
            facts.first_token = now
        facts.last_token = now
        for event in events:
            if isinstance(event, Ended):
                self._leave(job.ticket.key, event)
            else:
                self._post(job.ticket, event)

    def _count_active(self, plan: StepPlan) -> None:
        active, decoding = self._forward.active, len(plan.decode_keys)
        for key, share in zip(plan.decode_keys, active[:decoding].tolist(), strict=True):
            facts = self._jobs[key].ticket.facts
            facts.active_rows += share
            facts.rows += 1
        if plan.chunk is not None:
            facts = self._jobs[plan.chunk.key].ticket.facts
            facts.active_rows += float(active[decoding:].sum())
            facts.rows += plan.chunk.count

    def _mark_started(self, plan: StepPlan) -> None:
        if plan.chunk is not None:
            facts = self._jobs[plan.chunk.key].ticket.facts
            if facts.started is None:
                facts.started = self._clock.monotonic()

    def _expire(self, cause: Unavailable | DeadlinePassed | None) -> None:
        """Fail everyone whose deadline is over; `cause` is what kept the experts from answering."""
        now = self._clock.monotonic()
        for sequence in self.roster.everyone:
            if sequence.deadline <= now:
                self._leave(sequence.key, Failed(_too_late(self._jobs[sequence.key], cause)))

    def _leave_all(self, keys: Iterable[int], error: Exception) -> None:
        for key in keys:
            if key in self._jobs:
                self._leave(key, Failed(error))

    def _leave(self, key: int, event: Event | None) -> None:
        job = self._jobs.pop(key)
        self._apply(*removed(self.roster, key))
        self._post(job.ticket, event)

    def _apply(self, roster: Roster, moves: Iterable[Move]) -> None:
        for move in moves:
            self._trunk.move(move.source, move.target, move.tokens)
        self.roster = roster


def _too_late(job: Job, cause: Unavailable | DeadlinePassed | None) -> MeshError:
    if isinstance(cause, Unavailable):
        return Unavailable(f"the experts this answer needs were not available before its deadline: {cause}")
    return DeadlinePassed(f"the deadline passed after {job.position} of at most {job.request.max_tokens} tokens")


def _not_a_number(job: Job) -> CorruptData:
    where = f"at position {job.position} of the answer"
    return CorruptData(f"the model gave values that are not numbers {where}: check the bundle with its digests")
