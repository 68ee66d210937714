"""Whose request enters next: that of the client who was served least, so that asking more often gains nothing.

Being served is counted in tokens, of prompts and answers alike. A client that comes, or comes back, starts level with
the least served of those present: having been away earns no credit. Whoever has gone is forgotten.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol, TypeVar

__all__ = ["level", "next_in_turn", "requests_ahead", "served_tokens", "within_share"]


class Queued(Protocol):
    """A request of a client; `key` grows with every request."""

    @property
    def key(self) -> int: ...
    @property
    def client(self) -> str: ...
    @property
    def charged_tokens(self) -> int: ...


_Queued = TypeVar("_Queued", bound=Queued)


def served_tokens(present: Iterable[Queued], settled: Mapping[str, int]) -> dict[str, int]:
    """Tokens by client: those `settled` before, and what its present requests were served so far."""
    totals = dict(settled)
    for request in present:
        totals[request.client] = totals.get(request.client, 0) + request.charged_tokens
    return totals


def level(served: Mapping[str, int]) -> int:
    """Where a client starts that was not here."""
    return min(served.values(), default=0)


def next_in_turn(waiting: Sequence[_Queued], served: Mapping[str, int]) -> _Queued:
    """The oldest request of the client who was served least."""
    return min(waiting, key=lambda request: (served[request.client], request.key))


def requests_ahead(client: str, waiting: Mapping[str, int]) -> int:
    """How many of the `waiting` (requests by client) go before one more of `client`, if everybody takes turns."""
    own = waiting.get(client, 0)
    return own + sum(min(theirs, own) for other, theirs in waiting.items() if other != client)


def within_share(own: int, free: int) -> bool:
    """Whether a client that has `own` places may take one of the `free` ones.

    Nobody may take more than what is left to others: one client gets half of all places, two a third each, and
    whoever comes anew finds room.
    """
    return own <= free and free > 0
