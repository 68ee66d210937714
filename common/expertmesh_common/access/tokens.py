"""Tokens: `em_<id>_<secret>`. Servers keep the id and a salted digest of the secret, never the secret."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass

from expertmesh_common.access.scopes import Scope, granted

PREFIX = "em_"
ID_BYTES = 5
SECRET_BYTES = 24
SALT_BYTES = 16

_FORM = re.compile(r"em_([a-z0-9]{1,16})_([A-Za-z0-9_-]{32,128})")


@dataclass(frozen=True, slots=True)
class SplitToken:
    """The two parts of a token; `repr` shows the id only."""

    id: str
    secret: str

    def __repr__(self) -> str:
        return f"SplitToken(id={self.id!r})"


@dataclass(frozen=True, slots=True)
class Accepted:
    """Somebody who is let in: whoever shows the secret behind `digest`. `until` is monotonic seconds, None for ever."""

    id: str
    name: str
    scopes: tuple[Scope, ...]
    salt: bytes
    digest: bytes
    until: float | None = None

    @property
    def grants(self) -> frozenset[Scope]:
        return granted(self.scopes)

    def matches(self, secret: str) -> bool:
        """Whether `secret` is the right one; compared in constant time."""
        return hmac.compare_digest(digest_of(self.salt, secret), self.digest)


def new_token(token_id: str = "") -> str:
    """A random token, with a random id unless one is given."""
    return join_token(token_id or secrets.token_hex(ID_BYTES), secrets.token_urlsafe(SECRET_BYTES))


def join_token(token_id: str, secret: str) -> str:
    return f"{PREFIX}{token_id}_{secret}"


def split_token(text: str) -> SplitToken | None:
    """Its parts, or None if the text has not the form of a token."""
    found = _FORM.fullmatch(text)
    return None if found is None else SplitToken(found[1], found[2])


def accepted(text: str, name: str, scopes: Iterable[Scope]) -> Accepted | None:
    """What a server keeps of a token that has an id; None for one without.

    A token without an id was chosen by a person: its digest is kept to the process that was given it, because a short
    one could be found from the digest.
    """
    parts = split_token(text)
    if parts is None:
        return None
    salt = secrets.token_bytes(SALT_BYTES)
    return Accepted(parts.id, name, tuple(scopes), salt, digest_of(salt, parts.secret))


def digest_of(salt: bytes, secret: str) -> bytes:
    """sha256 is enough for random secrets: there is nothing to guess."""
    return hashlib.sha256(salt + secret.encode()).digest()
