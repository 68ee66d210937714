"""The engine's side of its thread: take in, plan, run, choose, hand out. Knows no event loop and starts no thread."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol

import numpy as np

from expertmesh_common.clock import Clock
from expertmesh_common.errors import CorruptData, DeadlinePassed, MeshError, Unavailable
from expertmesh_controller.gateway.batching.forward import Forward
from expertmesh_controller.gateway.batching.handing import Handout, Parcel, Taken
from expertmesh_controller.gateway.batching.jobs import Ended, Event, Failed, Job, Reason
from expertmesh_controller.gateway.batching.pace import Pacing
from expertmesh_controller.gateway.batching.planning import ChunkPlan, StepPlan, advanced, planned
from expertmesh_controller.gateway.batching.roster import Move, Roster, admitted, joined, promoted, removed
from expertmesh_controller.gateway.batching.scoring import ScoringJob, scored
from expertmesh_controller.gateway.batching.tapping import ChunkTap
from expertmesh_controller.gateway.sampling.choosing import choose, likeliest, unusable
from expertmesh_controller.gateway.trunk.executor import Chunk, Floats, Sequences, Work

if TYPE_CHECKING:
    from opentelemetry.trace import Span

__all__ = ["StepSpans", "Stepper"]

log = logging.getLogger(__name__)


class StepSpans(Protocol):
    """Records what steps do, where requests are traced."""

    def step(self, traces: Sequence[Span | None], rows: int) -> AbstractContextManager[None]:
        """Around one step of `rows` rows for requests with these spans (None: not traced)."""
        ...


class Stepper:
    """Holds the running jobs. What `post` is given goes to their owners, in this order, when it is opened."""

    def __init__(
        self,
        trunk: Sequences,
        forward: Forward,
        clock: Clock,
        post: Callable[[Parcel], None],
        *,
        pacing: Pacing | None = None,
        spans: StepSpans | None = None,
    ) -> None:
        self._trunk, self._forward, self._clock, self._post = trunk, forward, clock, post
        self._pacing, self._spans = pacing or Pacing(), spans
        self._jobs: dict[int, Job | ScoringJob] = {}
        self.roster = Roster(trunk.limits.slots)

    def join(self, job: Job | ScoringJob) -> None:
        """Queue a job."""
        self._jobs[job.ticket.key] = job
        self.roster = joined(self.roster, job.sequence())

    def cancel(self, key: int) -> None:
        """Drop a job, if it is still here."""
        if key in self._jobs:
            self._leave(key, None)

    def fail_all(self, error: Exception) -> None:
        """End every job, whatever state they are in."""
        for job in self._jobs.values():
            self._post((job.ticket, Failed(error)))
        self._jobs.clear()
        self.roster = Roster(self.roster.slots)

    def step(self) -> bool:
        """Run one step of whatever is due. False: nothing to do, or the experts are not there right now."""
        self._expire(None)
        self.roster = admitted(self.roster)
        began = self._clock.monotonic()
        plan = planned(self.roster, began, self._trunk.limits.chunk_tokens)
        if plan is None:
            return False
        self._mark_started(plan)
        self._forward.tap = self._tap(plan)
        try:
            self._absorb(plan, self._run(plan, self._work(plan)))
            self._score(plan.chunk)
            if plan.chunk is not None:
                self._pacing.chunk_took(self._clock.monotonic() - began, plan.chunk.count)
        except (Unavailable, DeadlinePassed) as error:
            self._expire(error)  # the others try the same step again
            return False
        except Exception as error:  # the thread must outlive any step
            if not isinstance(error, MeshError):
                log.exception("step failed")
            self._leave_all(plan.keys, error)
        return True

    def _run(self, plan: StepPlan, work: Work) -> Floats:
        if self._spans is None:
            return self._forward.run(work, plan.deadline)
        with self._spans.step([self._jobs[key].ticket.trace for key in plan.keys], work.rows):
            return self._forward.run(work, plan.deadline)

    def _tap(self, plan: StepPlan) -> ChunkTap | None:
        job = None if plan.chunk is None else self._jobs[plan.chunk.key]
        if plan.chunk is None or not isinstance(job, ScoringJob) or job.request.tap is None:
            return None
        return ChunkTap(job.request.tap, plan.chunk.start, len(plan.decode_keys))

    def _work(self, plan: StepPlan) -> Work:
        decoding = self.roster.decoding
        ids = np.fromiter((self._answer(s.key).last_id for s in decoding), np.int64, len(decoding))
        cached = np.fromiter((s.cached for s in decoding), np.int32, len(decoding))
        chunk = plan.chunk
        if chunk is None:
            return Work(ids, cached)
        token_ids = self._jobs[chunk.key].ids(chunk.start, chunk.count)
        return Work(ids, cached, Chunk(chunk.slot, chunk.start, token_ids, chunk.ends_prompt))

    def _absorb(self, plan: StepPlan, logits: Floats) -> None:
        jobs = [self._answer(key) for key in plan.sampled_keys]
        best = likeliest(logits)
        broken = unusable(logits, best)
        sound = jobs
        if any(broken):
            rows = [row for row, bad in enumerate(broken) if not bad]
            sound, logits, best = [jobs[row] for row in rows], logits[rows], [best[row] for row in rows]
        draws = [job.draw() for job in sound]
        choices = choose(logits, draws, best)
        self.roster = advanced(self.roster, plan)
        if plan.chunk is not None and plan.chunk.ends_prompt:
            self._apply(*promoted(self.roster, plan.chunk.key))
        taken = [
            Taken(job.ticket, draw.position, choice, job.take(choice))
            for job, draw, choice in zip(sound, draws, choices, strict=True)
        ]
        self._hand_out(plan, taken)
        for job, bad in zip(jobs, broken, strict=True):
            if bad:
                self._leave(job.ticket.key, Failed(_not_a_number(job)))

    def _score(self, chunk: ChunkPlan | None) -> None:
        """Comes after `_absorb`, because it takes the head's buffers."""
        job = None if chunk is None else self._jobs.get(chunk.key)
        if chunk is None or not isinstance(job, ScoringJob):
            return
        try:
            self._post((job.ticket, scored(self._trunk, job, chunk)))
        except CorruptData as error:  # the answers that shared the step are sound
            self._leave(chunk.key, Failed(error))
            return
        if not any(s.remaining_tokens for s in self.roster.prefilling if s.key == chunk.key):
            self._leave(chunk.key, Ended(Reason.LENGTH))

    def _answer(self, key: int) -> Job:
        job = self._jobs[key]
        assert isinstance(job, Job), "a scored text is never sampled from"
        return job

    def _hand_out(self, plan: StepPlan, taken: Sequence[Taken]) -> None:
        tickets = [self._jobs[key].ticket for key in plan.keys]
        # Nobody writes into the shares of a step, so they may be read while the next one runs.
        self._post(Handout(self._clock.monotonic(), plan, tickets, self._forward.active, taken))
        ended = [ticket.key for ticket, _, _, reason in taken if reason is not None]
        for key in ended:  # first of all: whoever was told that it ended must not fail with those who have to move
            del self._jobs[key]
        for key in ended:
            self._apply(*removed(self.roster, key))

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
        self._post((job.ticket, event))

    def _apply(self, roster: Roster, moves: Iterable[Move]) -> None:
        try:
            for move in moves:
                self._trunk.move(move.source, move.target, move.tokens)
        except Exception as error:  # what lies in which slot is unknown now
            log.exception("a cache could not be moved")
            self.fail_all(error)
        else:
            self.roster = roster


def _too_late(job: Job | ScoringJob, cause: Unavailable | DeadlinePassed | None) -> MeshError:
    if isinstance(cause, Unavailable):
        return Unavailable(f"the experts this answer needs were not available before its deadline: {cause}")
    return DeadlinePassed(f"the deadline passed after {job.progress}")


def _not_a_number(job: Job) -> CorruptData:
    where = f"at position {job.position} of the answer"
    return CorruptData(f"the model gave values that are not numbers {where}: check the bundle with its digests")
