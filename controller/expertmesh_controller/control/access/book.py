"""The book of tokens: the store's record, kept fresh, and what doorkeepers are told of it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable

from expertmesh_common.access.doorkeeper import BOOTSTRAP, Doorkeeper
from expertmesh_common.access.scopes import Scope, granted
from expertmesh_common.access.tokens import Accepted, accepted, new_token, split_token
from expertmesh_common.clock import Clock
from expertmesh_common.errors import CorruptData, Exhausted, InvalidInput, Precondition, Unavailable
from expertmesh_controller.control.access.record import (
    ACCESS_KEY,
    AccessRecord,
    TokenRecord,
    accepted_of,
    accepted_pass,
    live,
    pass_of,
)
from expertmesh_controller.control.store.base import Lease, Store

log = logging.getLogger(__name__)

POLL_S = 0.3
"""Another controller may have written: a revocation is known everywhere within a second."""
MOST_TOKENS = 1000
CONTROLLER = "controller"


class TokenBook:
    """One per controller. Writing needs the store's lease; reading goes on without."""

    def __init__(
        self,
        store: Store,
        doorkeeper: Doorkeeper,
        clock: Clock,
        lease: Callable[[], Lease | None],
        wall_s: Callable[[], float] = time.time,
    ) -> None:
        self._store, self._doorkeeper, self._clock, self._lease = store, doorkeeper, clock, lease
        self._wall_s = wall_s
        self._configured: tuple[TokenRecord, ...] = ()
        self._record = AccessRecord()
        self._stored: bytes | None = None
        self._published: tuple[bytes, tuple[str, ...]] | None = None
        self._turn = asyncio.Lock()
        self.changed = asyncio.Event()
        self.closed = False
        """Nothing will change any more."""
        doorkeeper.await_list()

    def configure(self, tokens: Iterable[TokenRecord]) -> None:
        """Accept these too: they come from the settings, not from the store."""
        self._configured = tuple(tokens)

    def now_ms(self) -> int:
        return int(self._wall_s() * 1000)

    def tokens(self) -> tuple[TokenRecord, ...]:
        """All that are known, ended ones too."""
        ended = {t.id for t in self._record.tokens}
        return (*(t for t in self._configured if t.id not in ended), *self._record.tokens)

    def accepted(self) -> tuple[Accepted, ...]:
        """Whom every server of the mesh lets in now: tokens, and the passes of those who may join."""
        key, now_ms, now_s = self._record.pass_key, self.now_ms(), self._clock.monotonic()
        good = live(self._record, self._configured, now_ms)
        holders = [(t.id, t.name) for t in good if Scope.JOIN in granted(t.scopes)]
        passes = [
            accepted_pass(key, *holder) for holder in ((CONTROLLER, CONTROLLER), (BOOTSTRAP, BOOTSTRAP), *holders)
        ]
        return (*(accepted_of(t, now_ms, now_s) for t in good), *passes)

    def pass_of(self, holder_id: str) -> str:
        return pass_of(self._record.pass_key, holder_id)

    async def create(self, name: str, scopes: tuple[Scope, ...], ttl_ms: int) -> tuple[str, TokenRecord]:
        """A new token, and what is kept of it.

        Raises:
            Precondition: this mesh demands no tokens.
            Exhausted: there are too many.
            Unavailable: the store is gone, or another controller leads.

        """
        if not self._doorkeeper.demands:
            raise Precondition("this mesh demands no tokens, so one would keep nobody out: start it with --token")
        async with self._turn:
            await self._read()
            now_ms = self.now_ms()
            if len(live(self._record, (), now_ms)) >= MOST_TOKENS:
                raise Exhausted(f"{MOST_TOKENS} tokens are live: revoke some", retry_after_ms=60_000)
            token = new_token()
            record = token_record(token, name, scopes, now_ms, now_ms + ttl_ms if ttl_ms else 0)
            await self._write(self._record.added(record, now_ms))
        return token, record

    async def revoke(self, token_id: str) -> TokenRecord:
        """Take a token back.

        Raises:
            NotHere: there is none of this id.
            Precondition: it is the token that the controller was started with.
            Unavailable: the store is gone, or another controller leads.

        """
        if token_id == BOOTSTRAP or any(t.id == token_id and t.name == BOOTSTRAP for t in self._configured):
            raise Precondition("that is the token the controller was started with: start it with another --token")
        async with self._turn:
            await self._read()
            await self._write(self._record.revoked(token_id, self._configured, self.now_ms()))
        return next(t for t in self._record.tokens if t.id == token_id)

    async def load(self) -> None:
        """Know who is accepted before the first caller comes; without the store, try on in `run`."""
        try:
            await self._refresh()
        except Unavailable as error:
            log.warning("given-out tokens are not known yet: %s", error)

    def close(self) -> None:
        """Let those who wait for `changed` go."""
        self.closed = True
        self._tell_change()

    async def run(self) -> None:
        """Follow the store, and the ends of tokens, until cancelled."""
        while True:
            await self._clock.sleep(POLL_S)
            try:
                await self._refresh()
            except (Unavailable, Precondition) as error:
                log.debug("the book of tokens waits: %s", error)

    async def _refresh(self) -> None:
        async with self._turn:
            await self._read()
            if self._stored is None and self._lease() is not None:
                await self._write(self._record)  # so that passes outlive this process
            self._publish()

    async def _read(self) -> None:
        data = await self._store.get(ACCESS_KEY)
        if data is None or data == self._stored:
            return
        try:
            self._record, self._stored = AccessRecord.decode(data), data
        except CorruptData as error:
            log.error("no given-out token is accepted: %s", error)  # noqa: TRY400 - a trace would show the bytes
            self._stored = data
        self._publish()

    async def _write(self, record: AccessRecord) -> None:
        lease = self._lease()
        if lease is None:
            raise Unavailable("this controller does not lead now, or its store is gone: try again")
        data = record.encode()
        await self._store.put(lease, ACCESS_KEY, data)
        self._record, self._stored = record, data
        self._publish()

    def _publish(self) -> None:
        good = tuple(t.id for t in live(self._record, self._configured, self.now_ms()))
        if self._published == (self._record.pass_key, good):
            return
        self._published = (self._record.pass_key, good)
        self._doorkeeper.publish(self.accepted())
        self._tell_change()

    def _tell_change(self) -> None:
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()


def token_record(token: str, name: str, scopes: tuple[Scope, ...], created_ms: int, expires_ms: int = 0) -> TokenRecord:
    """What is kept of a token.

    Raises:
        InvalidInput: it has not the form of one.

    """
    kept = accepted(token, name, scopes)
    if kept is None:
        raise InvalidInput("a join token has the form em_<id>_<secret>; `expertmesh tokens new` makes one")
    return TokenRecord(kept.id, name, scopes, kept.salt, kept.digest, created_ms, expires_ms)


def configured_tokens(own: str | None, join: str | None, now_ms: int) -> tuple[TokenRecord, ...]:
    """The tokens of the settings as records: the process's own if it has an id, and those that workers join with.

    `join` holds one, or several with commas between them.

    Raises:
        InvalidInput: a join token has not the form of a token.

    """
    found = []
    if own is not None and split_token(own) is not None:
        found.append(token_record(own, BOOTSTRAP, (Scope.ADMIN,), now_ms))
    for number, token in enumerate(() if join is None else join.split(",")):
        found.append(token_record(token.strip(), f"join-{number}" if number else "join", (Scope.JOIN,), now_ms))
    return tuple(found)
