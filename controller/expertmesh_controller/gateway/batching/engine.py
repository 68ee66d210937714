"""Continuous batching: one thread that steps, and an asynchronous front that submits and cancels."""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
from queue import Empty, SimpleQueue

from expertmesh_common.clock import Clock
from expertmesh_common.errors import Unavailable
from expertmesh_controller.gateway.batching.admission import AdmissionLimits, admit
from expertmesh_controller.gateway.batching.forward import Forward
from expertmesh_controller.gateway.batching.jobs import Ended, Facts, Failed, Job, Request, Ticket
from expertmesh_controller.gateway.batching.outbox import Outbox, Parcel
from expertmesh_controller.gateway.batching.stepping import Stepper
from expertmesh_controller.gateway.batching.tally import Tally
from expertmesh_controller.gateway.trunk.executor import TrunkExecutor

__all__ = ["Engine"]

RETRY_PAUSE_S = 0.02
"""Between attempts while experts are missing; a submission or cancellation ends it early."""

_NEWEST_WEIGHT = 0.2
_CLOSED = "this gateway is shutting down: try another, or again in a moment"

log = logging.getLogger(__name__)


class Engine:
    """Made, started, used and stopped in one event loop; `submit` and `cancel` belong to that loop's thread."""

    def __init__(self, trunk: TrunkExecutor, forward: Forward, clock: Clock, queue_limit: int) -> None:
        self._trunk, self._forward, self._clock = trunk, forward, clock
        self._limits = AdmissionLimits(trunk.limits.slots, queue_limit)
        self._inbox: SimpleQueue[Job | int | None] = SimpleQueue()
        self._keys = itertools.count()
        self._outstanding = 0
        self._mean_request_s = 1.0
        self._thread: threading.Thread | None = None
        self.tally = Tally()

    @property
    def outstanding(self) -> int:
        """Requests that were submitted and have not left."""
        return self._outstanding

    def start(self) -> None:
        outbox = Outbox(asyncio.get_running_loop(), self._deliver)
        stepper = Stepper(self._trunk, self._forward, self._clock, self.tally, outbox.put)
        self._thread = threading.Thread(target=self._loop, args=(stepper, outbox), name="engine", daemon=True)
        self._thread.start()

    async def stop(self) -> None:
        """End the thread after its current step; whoever is not answered yet fails with Unavailable."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._inbox.put(None)
            await asyncio.to_thread(thread.join)

    def submit(self, request: Request) -> Ticket:
        """Queue a request; its events come to the ticket's queue, the last one is `Ended` or `Failed`.

        Raises:
            Exhausted: slots and queue are full.
            Unavailable: the engine is not running.

        """
        if self._thread is None or not self._thread.is_alive():
            raise Unavailable(_CLOSED)
        self.tally.arrived()
        admit(self._outstanding, self._limits, self._mean_request_s)
        self._outstanding += 1
        ticket = Ticket(next(self._keys), Facts(self._clock.monotonic()))
        self._inbox.put(Job(request, ticket))
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Free the request's slot at the next step; no more events come. Harmless if it has ended."""
        self._inbox.put(ticket.key)

    def _loop(self, stepper: Stepper, outbox: Outbox) -> None:
        worked = True
        try:
            while self._take_in(stepper, worked):
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
                message = self._inbox.get(timeout=RETRY_PAUSE_S if busy else None)
            else:
                message = self._inbox.get_nowait()
            while message is not None:
                if isinstance(message, Job):
                    stepper.join(message)
                else:
                    stepper.cancel(message)
                message = self._inbox.get_nowait()
        except Empty:
            return True
        return False

    def _deliver(self, parcels: list[Parcel]) -> None:
        for ticket, event in parcels:
            if event is None or isinstance(event, (Ended, Failed)):
                self._outstanding -= 1
                took_s = self._clock.monotonic() - ticket.facts.admitted
                self._mean_request_s += _NEWEST_WEIGHT * (took_s - self._mean_request_s)
            if event is not None:
                ticket.events.put_nowait(event)
