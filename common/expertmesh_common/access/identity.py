"""Who makes the call that is being served: the name that fairness, logs and the audit go by."""

from __future__ import annotations

import urllib.parse
from contextvars import ContextVar
from dataclasses import dataclass

ANONYMOUS = "anonymous"


@dataclass(frozen=True, slots=True)
class Identity:
    """One caller: its token's name and id ("" without a token) and the host that it calls from."""

    token_name: str = ""
    token_id: str = ""
    peer: str = ""

    @property
    def name(self) -> str:
        """The token's name; without a token, the peer's host; "anonymous" if there is neither."""
        return self.token_name or self.peer or ANONYMOUS


_current: ContextVar[Identity | None] = ContextVar("expertmesh_caller", default=None)


def current_caller() -> Identity:
    """The caller of the call that this task serves; an empty identity outside of a call."""
    return _current.get() or Identity()


def caller_name() -> str:
    """The current caller's token name, or the host that it calls from, or "anonymous"."""
    return current_caller().name


def enter_call(identity: Identity) -> None:
    """Make `identity` the caller for the rest of this task (a door calls it before it serves a request)."""
    _current.set(identity)


def peer_host(peer: str) -> str:
    """The host of a gRPC peer such as `ipv4:10.0.0.7:5123`, `ipv6:%5B::1%5D:80` or `unix:/run/a`.

    A unix socket has no host: it is "local".
    """
    kind, _, rest = peer.partition(":")
    if kind == "unix":
        return "local"
    host = urllib.parse.unquote(rest).rpartition(":")[0]
    return host.strip("[]")
