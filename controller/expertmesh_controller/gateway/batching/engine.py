"""Continuous batching: one thread that steps, and an asynchronous front that submits and cancels."""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
from collections import Counter
from queue import Empty, SimpleQueue

from expertmesh_common.clock import Clock
from expertmesh_common.errors import Exhausted, Unavailable
from expertmesh_common.observability.request_context import current_span
from expertmesh_controller.gateway.batching.admission import AdmissionLimits, Newcomer, RefusalReason, refusal
from expertmesh_controller.gateway.batching.forward import Forward
from expertmesh_controller.gateway.batching.handing import Parcel, opened
from expertmesh_controller.gateway.batching.jobs import Ended, Event, Facts, Failed, Job, Request, Scoring, Ticket
from expertmesh_controller.gateway.batching.outbox import Outbox
from expertmesh_controller.gateway.batching.pace import Pacing
from expertmesh_controller.gateway.batching.reading import Readers
from expertmesh_controller.gateway.batching.roster import Crowding, Roster
from expertmesh_controller.gateway.batching.scoring import ScoringJob
from expertmesh_controller.gateway.batching.stepping import Stepper, StepSpans
from expertmesh_controller.gateway.batching.tally import Tally
from expertmesh_controller.gateway.trunk.executor import Sequences

__all__ = ["Engine"]

RETRY_PAUSE_S = 0.02
"""Between attempts while experts are missing; a submission or cancellation ends it early."""

IDLE_BEAT_S = 1.0
"""An engine without work turns this often, so that one that stands still can be told from one that waits."""

UNREAD_FACTOR = 4
"""Answers that may be complete and still to be read, as a multiple of those that may run and wait."""

READER_PATIENCE_S = 30.0
_CLOSED = "this gateway is shutting down: try another, or again in a moment"

log = logging.getLogger(__name__)


class Engine:
    """Made, started, used and stopped in one event loop; `submit` and `cancel` belong to that loop's thread."""

    def __init__(
        self,
        trunk: Sequences,
        forward: Forward,
        clock: Clock,
        queue_limit: int,
        reader_patience_s: float = READER_PATIENCE_S,
        *,
        spans: StepSpans | None = None,
    ) -> None:
        self._trunk, self._forward, self._clock = trunk, forward, clock
        slots = trunk.limits.slots
        self._limits = AdmissionLimits(slots, queue_limit, UNREAD_FACTOR * (slots + queue_limit))
        self._readers, self._reader_patience_s = Readers(reader_patience_s), reader_patience_s
        self._watch: asyncio.Task[None] | None = None
        self._inbox: SimpleQueue[Job | ScoringJob | int | None] = SimpleQueue()
        self._keys = itertools.count()
        self._outstanding = 0
        self._ending: set[int] = set()
        self._thread: threading.Thread | None = None
        self._spans = spans
        self._stepper: Stepper | None = None
        self.pulse = forward.pulse
        self.tally = Tally()
        self.pacing = Pacing()
        self.refused: Counter[RefusalReason] = Counter()

    @property
    def outstanding(self) -> int:
        """Requests that were submitted and have not left."""
        return self._outstanding

    @property
    def alive(self) -> bool:
        """The engine's thread runs. Any thread may ask."""
        thread = self._thread
        return thread is not None and thread.is_alive()

    @property
    def crowding(self) -> Crowding:
        """Who waits and who runs now. Any thread may ask."""
        stepper = self._stepper
        return Crowding.of(Roster(self._trunk.limits.slots) if stepper is None else stepper.roster)

    def start(self) -> None:
        outbox = Outbox(asyncio.get_running_loop(), self._deliver)
        stepper = self._stepper = Stepper(
            self._trunk, self._forward, self._clock, outbox.put, pacing=self.pacing, spans=self._spans
        )
        self._thread = threading.Thread(target=self._loop, args=(stepper, outbox), name="engine", daemon=True)
        self._thread.start()
        self._watch = asyncio.create_task(self._watch_readers(), name="watch readers")

    async def stop(self) -> None:
        """End the thread after its current step; whoever is not answered yet fails with Unavailable."""
        thread, self._thread = self._thread, None
        if self._watch is not None:
            self._watch.cancel()
        if thread is not None:
            self._inbox.put(None)
            await asyncio.to_thread(thread.join)

    def submit(self, request: Request | Scoring, client: str = "") -> Ticket:
        """Queue a request; its events come to the ticket's queue, the last one is `Ended` or `Failed`.

        Whoever reads them calls `cancel` when it stops reading, also at the end. `client` is whom it is for.

        Raises:
            Exhausted: it may not join now; see `refusal`.
            Unavailable: the engine is not running.

        """
        if self._thread is None or not self._thread.is_alive():
            raise Unavailable(_CLOSED)
        self.tally.arrived()
        now = self._clock.monotonic()
        self._admit(Newcomer(client, request.known_tokens, request.deadline - now))
        self._outstanding += 1
        ticket = Ticket(next(self._keys), Facts(now), client=client, trace=current_span())
        self._readers.opened(ticket)
        self._inbox.put(ScoringJob(request, ticket) if isinstance(request, Scoring) else Job(request, ticket))
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Free the request's slot at the next step; no more events come. Harmless if it has ended."""
        self._readers.closed(ticket)
        self._inbox.put(ticket.key)

    def end(self, ticket: Ticket, error: Exception) -> None:
        """End a request with an error in place of what its reader has not read; its place is free for a newcomer."""
        if not ticket.facts.ended:
            self._ending.add(ticket.key)
        self.cancel(ticket)
        ticket.events.throw_away()
        ticket.events.put_nowait(Failed(error))

    def _admit(self, newcomer: Newcomer) -> None:
        crowd = self._readers.crowd(self._outstanding - len(self._ending))
        found = refusal(newcomer, crowd, self._limits, self.pacing.now)
        if found is not None:
            self.refused[found.reason] += 1
            raise found.error()

    def _loop(self, stepper: Stepper, outbox: Outbox) -> None:
        worked = True
        try:
            while self._take_in(stepper, worked):
                self.pulse.beat()
                worked = stepper.step()
                outbox.flush()
        except Exception:  # a step's own errors are handled in it; this is a mistake in the engine
            log.exception("the engine ended")
        finally:
            stepper.fail_all(Unavailable(_CLOSED))
            outbox.flush()

    def _take_in(self, stepper: Stepper, worked: bool) -> bool:
        """Hear what the front wants; waits for it when idle. False: stop."""
        busy = stepper.roster.busy
        try:
            if not worked or not busy:
                message = self._inbox.get(timeout=RETRY_PAUSE_S if busy else IDLE_BEAT_S)
            else:
                message = self._inbox.get_nowait()
            while message is not None:
                if isinstance(message, (Job, ScoringJob)):
                    stepper.join(message)
                else:
                    stepper.cancel(message)
                message = self._inbox.get_nowait()
        except Empty:
            return True
        return False

    def _deliver(self, parcels: list[Parcel]) -> None:
        for parcel in parcels:
            for ticket, event in opened(parcel, self.tally):
                self._pass_on(ticket, event)
        if self._forward.picks is not None:
            self._forward.picks.fold()

    def _pass_on(self, ticket: Ticket, event: Event | None) -> None:
        if event is None or isinstance(event, (Ended, Failed)):
            self._left(ticket)
        if event is not None and ticket in self._readers:
            ticket.events.put_nowait(event)

    def _left(self, ticket: Ticket) -> None:
        facts = ticket.facts
        self._outstanding -= 1
        self._ending.discard(ticket.key)
        facts.ended = True
        if facts.started is not None:
            self.pacing.request_took(self._clock.monotonic() - facts.started)

    async def _watch_readers(self) -> None:
        while True:
            await self._clock.sleep(self._reader_patience_s / 4)
            for ticket in self._readers.stalled(self._clock.monotonic()):
                self._give_up(ticket)

    def _give_up(self, ticket: Ticket) -> None:
        log.warning("an answer is given up: nothing of it was read for %g s", self._reader_patience_s)
        told = f"nothing of this answer was read for {self._reader_patience_s:g} s, so it was given up: read faster"
        self.end(ticket, Exhausted(told))
