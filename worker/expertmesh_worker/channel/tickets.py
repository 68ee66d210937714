"""One-time tickets: gRPC authenticates a caller once, the ticket carries that to its stream connection."""

from __future__ import annotations

import secrets
import threading

from expertmesh_common.channel.handshake import TICKET_BYTES, TICKET_LIFE_S
from expertmesh_common.clock import Clock
from expertmesh_common.errors import Exhausted

MAX_OPEN = 1024


class Tickets:
    """Issues tickets and takes each back once, within `TICKET_LIFE_S`. Safe for several threads."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._expiries: dict[bytes, float] = {}  # oldest first

    def issue(self) -> bytes:
        """A new ticket of 32 random bytes.

        Raises:
            Exhausted: too many tickets are out.

        """
        now = self._clock.monotonic()
        with self._lock:
            self._forget(now)
            if len(self._expiries) >= MAX_OPEN:
                raise Exhausted(f"{MAX_OPEN} stream tickets are out already", retry_after_ms=int(TICKET_LIFE_S * 1000))
            ticket = secrets.token_bytes(TICKET_BYTES)
            self._expiries[ticket] = now + TICKET_LIFE_S
        return ticket

    def redeem(self, ticket: bytes) -> bool:
        """Whether the ticket was issued here, is fresh, and is shown for the first time."""
        with self._lock:
            self._forget(self._clock.monotonic())
            return self._expiries.pop(ticket, None) is not None

    def _forget(self, now: float) -> None:
        old = [ticket for ticket, expiry in self._expiries.items() if expiry <= now]
        for ticket in old:
            del self._expiries[ticket]
