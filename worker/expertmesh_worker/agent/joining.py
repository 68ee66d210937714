"""Staying a member: join, and join again when the stream is lost, while the data plane goes on serving."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable

from expertmesh_api.v1 import membership_pb2
from expertmesh_common.clock import Clock
from expertmesh_common.errors import Unavailable
from expertmesh_common.security import Security
from expertmesh_worker.agent.orders import Orders, Terms
from expertmesh_worker.agent.session import Reports, Session

log = logging.getLogger(__name__)

FIRST_DELAY_S = 0.1
LONGEST_DELAY_S = 0.6  # spread from half to one and a half: whatever is back finds its workers within a second


def delay_s(failures: int, chance: Callable[[], float] = random.random) -> float:
    """How long to wait after `failures` failed joins in a row: doubling, and spread, or all workers return at once."""
    return min(LONGEST_DELAY_S, FIRST_DELAY_S * 2.0 ** min(failures - 1, 30)) * (0.5 + chance())


class Membership:
    """The membership of one worker at the controller at `address`."""

    def __init__(
        self, address: str, security: Security, reports: Reports, *, orders: Orders, terms: Terms, clock: Clock
    ) -> None:
        self._address = address
        self._security = security
        self._reports = reports
        self._orders = orders
        self._terms = terms
        self._clock = clock
        self._session: Session | None = None
        self._running: set[asyncio.Task[None]] = set()
        self._failures = 0
        self.joined = False
        """A controller has welcomed this worker, and their stream stands."""

    async def keep(self, stop: asyncio.Event) -> None:
        """Return after `stop` was set and the worker has left.

        Raises:
            MeshError: the controller refused this worker for good: its token, version, name or generation.

        """
        try:
            while not stop.is_set():
                self._session = Session(self._reports, self._accept, self._terms, self._clock)
                try:
                    await self._session.run(self._address, self._security, stop, self._joined)
                except Unavailable as error:
                    self._session, self.joined = None, False
                    await self._end_orders()
                    await self._pause(error, stop)
        finally:
            self.joined = False
            await self._end_orders()

    def _accept(self, order: membership_pb2.Order) -> None:
        task = asyncio.create_task(self._carry_out(order))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _carry_out(self, order: membership_pb2.Order) -> None:
        result = await self._orders.carry_out(order)
        if self._session is not None:
            self._session.send(membership_pb2.WorkerMessage(result=result))

    async def _end_orders(self) -> None:
        """Orders end with their stream, and whoever is joined next plans from a hello that says all they did.

        One that went on would change what is loaded behind the back of that control loop: it has forgotten the order,
        or never knew it, so it would count on room that is taken and unload nothing that it did not hear of. A result
        would not help: it names its order by a number, and an older controller numbers its own from 1 again.
        """
        if self._running:
            log.info("orders=%d end with the stream; what they fetched stays in the cache", len(self._running))
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    def _joined(self) -> None:
        self._failures, self.joined = 0, True

    async def _pause(self, error: Unavailable, stop: asyncio.Event) -> None:
        self._failures += 1
        wait_s = delay_s(self._failures)
        if self._failures in {1, 2} or self._failures % 10 == 0:  # a long outage is told, not chanted
            log.warning("%s; serving what is loaded, joining again in %.1f s", error, wait_s)
        sleeping = asyncio.ensure_future(self._clock.sleep(wait_s))
        stopping = asyncio.ensure_future(stop.wait())
        try:
            await asyncio.wait((sleeping, stopping), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (sleeping, stopping):
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
