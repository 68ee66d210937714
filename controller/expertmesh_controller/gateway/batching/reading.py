"""Who reads its answer: readers that stand still for long are given up, so that nobody's answers pile up unread."""

from __future__ import annotations

from collections import Counter

from expertmesh_controller.gateway.batching.admission import Crowd
from expertmesh_controller.gateway.batching.jobs import Ticket

__all__ = ["Readers"]


class Readers:
    """The tickets that somebody still reads, or should. `patience_s` is how long a reader may take nothing."""

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._tickets: dict[int, Ticket] = {}
        self._seen: dict[int, tuple[int, float]] = {}  # events taken so far, and since when it is that many

    def __contains__(self, ticket: Ticket) -> bool:
        return ticket.key in self._tickets

    def opened(self, ticket: Ticket) -> None:
        self._tickets[ticket.key] = ticket

    def closed(self, ticket: Ticket) -> None:
        """Its reader has left; what it did not read is of no use to anyone."""
        self._tickets.pop(ticket.key, None)
        self._seen.pop(ticket.key, None)

    def crowd(self, outstanding: int) -> Crowd:
        """What admission looks at; `outstanding` requests have not left the engine."""
        started = 0
        unstarted, unread = Counter[str](), Counter[str]()
        for ticket in self._tickets.values():
            if ticket.facts.ended:
                unread[ticket.client] += 1
            elif ticket.facts.started is None:
                unstarted[ticket.client] += 1
            else:
                started += 1
        return Crowd(outstanding, started, unstarted, unread)

    def stalled(self, now: float) -> list[Ticket]:
        """Those whose reader took nothing for `patience_s` although there was something; call this several times.

        A reader that took the last event and does not leave is stuck with it, and counts as well.
        """
        return [ticket for ticket in self._tickets.values() if self._stands_still(ticket, now)]

    def _stands_still(self, ticket: Ticket, now: float) -> bool:
        events = ticket.events
        taken, since = self._seen.get(ticket.key, (-1, now))
        expects = events.empty() and not ticket.facts.ended
        if expects or taken != events.taken:
            self._seen[ticket.key] = (events.taken, now)
            return False
        return now - since >= self._patience_s
