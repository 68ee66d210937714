"""What the store keeps about access: given-out tokens (digests only) and the key that passes are made with. Pure."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from expertmesh_common.access.scopes import Scope, granted
from expertmesh_common.access.tokens import Accepted, digest_of, join_token
from expertmesh_common.errors import CorruptData, NotHere

ACCESS_KEY = "access"
FORGET_AFTER_MS = 30 * 24 * 3600 * 1000
"""Tokens that ended stay listed this long, so that the audit can be read."""


@dataclass(frozen=True, slots=True)
class TokenRecord:
    """One token. Times are unix milliseconds; `expires_ms` and `revoked_ms` are 0 where it does or was not."""

    id: str
    name: str
    scopes: tuple[Scope, ...]
    salt: bytes
    digest: bytes
    created_ms: int
    expires_ms: int = 0
    revoked_ms: int = 0

    def state(self, now_ms: int) -> str:
        if self.revoked_ms:
            return "revoked"
        return "expired" if 0 < self.expires_ms <= now_ms else "live"

    def ended_ms(self) -> int:
        return self.revoked_ms or self.expires_ms


@dataclass(frozen=True, slots=True)
class AccessRecord:
    """Kept under `ACCESS_KEY`. `pass_key` makes passes; who reads it could call workers, so it stays in the store."""

    pass_key: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)
    tokens: tuple[TokenRecord, ...] = ()

    def encode(self) -> bytes:
        tokens = [
            {
                "id": t.id, "name": t.name, "scopes": list(t.scopes), "salt": t.salt.hex(), "digest": t.digest.hex(),
                "created_ms": t.created_ms, "expires_ms": t.expires_ms, "revoked_ms": t.revoked_ms,
            }
            for t in self.tokens
        ]  # fmt: skip
        return json.dumps({"pass_key": self.pass_key.hex(), "tokens": tokens}, separators=(",", ":")).encode()

    @staticmethod
    def decode(data: bytes) -> AccessRecord:
        """Raises CorruptData: the bytes are not a record."""
        try:
            document = json.loads(data)
            tokens = tuple(
                TokenRecord(
                    t["id"], t["name"], tuple(Scope(s) for s in t["scopes"]), bytes.fromhex(t["salt"]),
                    bytes.fromhex(t["digest"]), t["created_ms"], t["expires_ms"], t["revoked_ms"],
                )
                for t in document["tokens"]
            )  # fmt: skip
            return AccessRecord(bytes.fromhex(document["pass_key"]), tokens)
        except (ValueError, KeyError, TypeError) as error:
            # The bytes hold digests and a key: the message must not show them.
            raise CorruptData(f"the store's {ACCESS_KEY!r} is not an access record: {type(error).__name__}") from None

    def added(self, token: TokenRecord, now_ms: int) -> AccessRecord:
        """With one more token, without those that ended long ago."""
        kept = tuple(t for t in self.tokens if not 0 < t.ended_ms() <= now_ms - FORGET_AFTER_MS)
        return replace(self, tokens=(*kept, token))

    def revoked(self, token_id: str, configured: Iterable[TokenRecord], now_ms: int) -> AccessRecord:
        """With a token taken back; one of the settings is remembered as revoked.

        Whoever had the scope join knows passes of others, so then all passes change.

        Raises:
            NotHere: there is no such token.

        """
        known = {t.id: t for t in (*configured, *self.tokens)}
        if token_id not in known:
            raise NotHere(f"no token has the id {token_id[:64]!r}; `expertmesh tokens list` shows them")
        ended = known[token_id]
        if not ended.revoked_ms:
            ended = replace(ended, revoked_ms=now_ms)
        key = secrets.token_bytes(32) if Scope.JOIN in granted(ended.scopes) else self.pass_key
        return AccessRecord(key, (*(t for t in self.tokens if t.id != token_id), ended))


def live(record: AccessRecord, configured: Iterable[TokenRecord], now_ms: int) -> tuple[TokenRecord, ...]:
    """The tokens that are good now: those given out, and those of the settings that were not revoked."""
    ended = {t.id for t in record.tokens}
    both = (*(t for t in configured if t.id not in ended), *record.tokens)
    return tuple(t for t in both if t.state(now_ms) == "live")


def accepted_of(token: TokenRecord, now_ms: int, now_s: float) -> Accepted:
    """The token as a doorkeeper wants it; `now_s` is the monotonic clock's now."""
    until = now_s + (token.expires_ms - now_ms) / 1000 if token.expires_ms else None
    return Accepted(token.id, token.name, token.scopes, token.salt, token.digest, until)


def pass_of(key: bytes, holder_id: str) -> str:
    """What the holder of a token presents to other parts of the mesh in place of the token itself."""
    mac = hmac.digest(key, holder_id.encode(), hashlib.sha256)
    return join_token(_pass_id(holder_id), base64.urlsafe_b64encode(mac).decode().rstrip("="))


def accepted_pass(key: bytes, holder_id: str, name: str) -> Accepted:
    """How the holder's pass is recognised."""
    secret = pass_of(key, holder_id).split("_", 2)[2]
    return Accepted(_pass_id(holder_id), name, (Scope.PEER,), b"", digest_of(b"", secret))


def _pass_id(holder_id: str) -> str:
    return f"p{holder_id}"
