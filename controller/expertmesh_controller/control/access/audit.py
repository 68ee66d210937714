"""The audit: who changed what, written to the store before the caller gets the answer."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from expertmesh_common.access.guard import AuditedCall
from expertmesh_common.errors import Precondition, Unavailable
from expertmesh_controller.cluster.routes import Epoch
from expertmesh_controller.control.journal import Entry, Reason
from expertmesh_controller.control.store.base import Lease, Store

log = logging.getLogger(__name__)

AUDIT_KEY = "audit"
KEPT = 10_000
"""A list of its own: the journal of decisions moves on with every worker that comes and goes."""
MOST_WAITING = 1000


class Audit:
    """Entries wait in memory while the store is gone; the log has each of them at once."""

    def __init__(
        self, store: Store, lease: Callable[[], Lease | None], wall_s: Callable[[], float] = time.time
    ) -> None:
        self._store, self._lease, self._wall_s = store, lease, wall_s
        self._waiting: list[Entry] = []
        self._turn = asyncio.Lock()

    async def note(self, call: AuditedCall) -> None:
        """Write down a call."""
        caller = call.caller
        log.info("audit %s by %s (%s) from %s: %s", call.method, caller.name, caller.token_id, caller.peer, call.result)
        inputs = {
            "token_id": caller.token_id, "token_name": caller.token_name, "peer": caller.peer,
            "method": call.method, "arguments_digest": call.arguments_digest,
        }  # fmt: skip
        at_ms = int(self._wall_s() * 1000)
        self._waiting.append(Entry(Reason.ADMIN_CALL, Epoch(), at_ms, inputs, {"result": call.result}))
        del self._waiting[:-MOST_WAITING]
        await self.flush()

    async def flush(self) -> None:
        """Write what waits, if the store takes it."""
        async with self._turn:
            try:
                while self._waiting and (lease := self._lease()) is not None:
                    await self._store.append(lease, AUDIT_KEY, self._waiting[0].encode(), KEPT)
                    del self._waiting[0]
            except (Unavailable, Precondition) as error:
                log.warning("%d audit entries wait for the store: %s", len(self._waiting), error)

    async def tail(self, count: int) -> list[Entry]:
        """The last `count` entries, oldest first.

        Raises:
            Unavailable: the store is gone.

        """
        await self.flush()
        written = [Entry.decode(data) for data in await self._store.tail(AUDIT_KEY, count)]
        return [*written, *self._waiting][-count:]
