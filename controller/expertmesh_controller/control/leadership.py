"""Leading: holding the store lease, and knowing without asking whether we still do."""

from __future__ import annotations

import logging
from collections.abc import Callable

from expertmesh_common.clock import Clock
from expertmesh_common.errors import Unavailable
from expertmesh_controller.control.store.base import Lease, Store

log = logging.getLogger(__name__)

LEASE_NAME = "control-loop"
RENEWALS_PER_LEASE = 3


class Leadership:
    """Renews the lease in `run`; `on_change` is called when leading starts or ends."""

    def __init__(self, store: Store, clock: Clock, owner: str, ttl_s: float, on_change: Callable[[], None]) -> None:
        self._store = store
        self._clock = clock
        self._owner = owner
        self._ttl_s = ttl_s
        self._on_change = on_change
        self._lease: Lease | None = None
        self._until = clock.monotonic()
        self.store_gone = False

    @property
    def lease(self) -> Lease | None:
        """Our lease while it surely runs: its time is counted from before the store was asked."""
        return self._lease if self._clock.monotonic() < self._until else None

    @property
    def term(self) -> int:
        """The newest term that was ours, 0 before the first."""
        return self._lease.term if self._lease is not None else 0

    async def run(self) -> None:
        """Take and keep the lease until cancelled, through outages of the store."""
        while True:
            await self.renew()
            await self._clock.sleep(self._ttl_s / RENEWALS_PER_LEASE)

    async def renew(self) -> None:
        """Ask the store once."""
        asked_at, led = self._clock.monotonic(), self.lease
        try:
            lease = await self._store.acquire(LEASE_NAME, self._owner, self._ttl_s, above=self.term)
        except Unavailable as error:
            self.note_store(error)
            return
        self.note_store(None)
        if lease is None:
            self._until = asked_at
        else:
            self._lease, self._until = lease, asked_at + self._ttl_s
        if self.lease != led:
            log.info("leading=%s term=%d", lease is not None, self.term)
            self._on_change()

    def resign(self) -> None:
        """Stop deciding until the next renewal: a write was refused, or the store is gone."""
        self._until = self._clock.monotonic()

    async def release(self) -> None:
        """Let the next leader start at once."""
        if self.lease is not None:
            self.resign()
            try:
                await self._store.release(self._lease_of_record())
            except Unavailable as error:
                log.warning("the lease was not given back, it ends by itself: %s", error)

    def note_store(self, error: Unavailable | None) -> None:
        """Say once when the store goes and when it is back."""
        if error is not None and not self.store_gone:
            log.warning("deciding stops, serving goes on: %s", error)
        if error is None and self.store_gone:
            log.info("the store is back, deciding goes on")
        self.store_gone = error is not None

    def _lease_of_record(self) -> Lease:
        if self._lease is None:
            raise ValueError("there was never a lease")
        return self._lease
