"""Who is let in, for what; and the calls under way, so that a token that is taken back ends them."""

from __future__ import annotations

import contextlib
import hmac
import itertools
from collections.abc import Callable, Iterable, Iterator

from expertmesh_common.access.identity import Identity
from expertmesh_common.access.scopes import Scope
from expertmesh_common.access.tokens import Accepted, split_token
from expertmesh_common.clock import Clock, SystemClock
from expertmesh_common.errors import Refused, Unauthenticated, Unavailable

BOOTSTRAP = "bootstrap"
UNKNOWN = (
    "the token is missing or wrong: pass one that this mesh gave out (--token or EXPERTMESH_TOKEN); "
    "it may have expired or been revoked"
)


class Doorkeeper:
    """One per process. `own` is the token the process was started with; without one, everybody is let in.

    `publish` says who else is accepted. Until then `own` may do everything here; afterwards an `own` with an id counts
    as what the list says of it. A token in the form of a given-out one that comes before an awaited list is answered
    with "not now".
    """

    def __init__(self, own: str | None, clock: Clock | None = None) -> None:
        self._own = own
        self._clock = clock or SystemClock()
        self._accepted: dict[str, Accepted] = {}
        self._listed, self._awaited = False, False
        self._running: dict[int, tuple[str, Callable[[], None]]] = {}
        self._numbers = itertools.count()
        self._tell_revoked: list[Callable[[frozenset[str]], None]] = []

    @property
    def demands(self) -> bool:
        """Whether a caller needs a token."""
        return self._own is not None

    def await_list(self) -> None:
        """A list of accepted tokens will be published: refuse no token for good before."""
        self._awaited = True

    def publish(self, accepted: Iterable[Accepted]) -> None:
        """Accept exactly these, and an `own` without an id; running calls of ids that are gone end."""
        before, self._accepted = self._accepted, {entry.id: entry for entry in accepted}
        self._listed, self._awaited = True, False
        if gone := frozenset(before.keys() - self._accepted.keys()):
            self._end(gone)

    def check(self, presented: str | None, needed: Scope | None, peer: str = "") -> Identity:
        """The caller, who may do what needs the scope `needed` (None: what any token may).

        Raises:
            Unauthenticated: no token, or one that is not accepted.
            Refused: the token lacks the scope.
            Unavailable: who is accepted is not known yet.

        """
        if self._own is None:
            return Identity(peer=peer)
        holder = None if presented is None else self._holder(presented)
        if holder is None:
            raise Unauthenticated(UNKNOWN)
        if needed is not None and needed not in holder.grants:
            has = ", ".join(holder.scopes)
            raise Refused(f"token {holder.name!r} has the scope {has}; this call needs {needed.value}")
        return Identity(holder.name, holder.id, peer)

    @contextlib.contextmanager
    def running(self, identity: Identity, end: Callable[[], None]) -> Iterator[None]:
        """While inside, `end` is called if the caller's token is taken back."""
        number = next(self._numbers)
        self._running[number] = (identity.token_id, end)
        try:
            yield
        finally:
            del self._running[number]

    def on_revoked(self, tell: Callable[[frozenset[str]], None]) -> None:
        """`tell` gets the ids of tokens that were taken back or ended: for connections that no call stands for."""
        self._tell_revoked.append(tell)

    def _holder(self, presented: str) -> Accepted | None:
        parts = split_token(presented)
        if parts is not None and self._listed:
            entry = self._accepted.get(parts.id)
            good = entry is not None and entry.matches(parts.secret) and not self._over(entry)
            return entry if good else None
        if self._own is not None and hmac.compare_digest(presented.encode(), self._own.encode()):
            return Accepted(BOOTSTRAP if parts is None else parts.id, BOOTSTRAP, (Scope.ADMIN,), b"", b"")
        if parts is not None and self._awaited:
            raise Unavailable("this server does not know yet which tokens are good; try again")
        return None

    def _over(self, entry: Accepted) -> bool:
        return entry.until is not None and entry.until <= self._clock.monotonic()

    def _end(self, gone: frozenset[str]) -> None:
        for token_id, end in list(self._running.values()):
            if token_id in gone:
                end()
        for tell in self._tell_revoked:
            tell(gone)
