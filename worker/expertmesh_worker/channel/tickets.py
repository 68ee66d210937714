"""One-time tickets: gRPC authenticates a caller once, the ticket carries that to its stream connection."""

from __future__ import annotations

import secrets
import threading

from expertmesh_common.channel.handshake import TICKET_BYTES, TICKET_LIFE_S
from expertmesh_common.clock import Clock
from expertmesh_common.errors import Exhausted

MAX_OPEN = 1024


class Tickets:
    """Issues tickets and takes each back once, within `TICKET_LIFE_S`. Safe for several threads.

    A ticket knows the id of the token that its holder had, "" for none.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._out: dict[bytes, tuple[float, str]] = {}  # oldest first: when it ends, and the holder's token

    def issue(self, token_id: str = "") -> bytes:
        """A new ticket of 32 random bytes.

        Raises:
            Exhausted: too many tickets are out.

        """
        now = self._clock.monotonic()
        with self._lock:
            self._forget(now)
            if len(self._out) >= MAX_OPEN:
                raise Exhausted(f"{MAX_OPEN} stream tickets are out already", retry_after_ms=int(TICKET_LIFE_S * 1000))
            ticket = secrets.token_bytes(TICKET_BYTES)
            self._out[ticket] = (now + TICKET_LIFE_S, token_id)
        return ticket

    def redeem(self, ticket: bytes) -> str | None:
        """The holder's token id, if the ticket was issued here, is fresh, and is shown for the first time."""
        with self._lock:
            self._forget(self._clock.monotonic())
            found = self._out.pop(ticket, None)
        return None if found is None else found[1]

    def end(self, token_ids: frozenset[str]) -> None:
        """Forget the tickets of tokens that were taken back."""
        with self._lock:
            self._out = {ticket: entry for ticket, entry in self._out.items() if entry[1] not in token_ids}

    def _forget(self, now: float) -> None:
        old = [ticket for ticket, (expiry, _) in self._out.items() if expiry <= now]
        for ticket in old:
            del self._out[ticket]
