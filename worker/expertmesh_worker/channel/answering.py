"""One frame in, one frame out: the same on every transport."""

from __future__ import annotations

import logging
import secrets
from typing import NamedTuple, Protocol

from expertmesh_common.channel.frame import Reply, Request, Status, decode_request, encode_reply
from expertmesh_common.channel.host import ExpertHost
from expertmesh_common.channel.layout import Chunk
from expertmesh_common.errors import CorruptData

log = logging.getLogger(__name__)


class Answer(NamedTuple):
    """A reply frame; `last` means that the connection cannot be trusted after it, `good` that its status is OK."""

    chunks: list[Chunk]
    last: bool = False
    good: bool = False


class Shortcut(Protocol):
    """Answers frames that recur without decoding them."""

    @property
    def busy(self) -> bool:
        """Whether a frame would have to wait for others to end."""
        ...

    def answer(self, data: memoryview) -> bytes | None:
        """The reply to one whole request frame, or None: it has to go the long way."""
        ...

    def learn(self, data: memoryview) -> None:
        """The long way answered this frame: it may recur."""
        ...


def answer(host: ExpertHost, data: memoryview, waited_ms: float = 0.0) -> Answer:
    """Decode and execute one request frame that has waited here for `waited_ms`. Raises nothing."""
    try:
        request = decode_request(data)
    except CorruptData as error:
        return Answer(refuse(error), last=True)
    reply = _execute(host, request, waited_ms)
    return Answer(encode_reply(reply), good=reply.status is Status.OK)


def refuse(error: CorruptData) -> list[Chunk]:
    """The reply to bytes that are no request; its seq is 0, as theirs cannot be trusted."""
    return encode_reply(Reply.error(0, Status.INVALID, str(error)))


def _execute(host: ExpertHost, request: Request, waited_ms: float) -> Reply:
    if request.deadline_ms and waited_ms >= request.deadline_ms:
        waited = f"the request waited {waited_ms:.0f} ms here, its deadline was {request.deadline_ms} ms"
        return Reply.error(request.seq, Status.DEADLINE, waited)
    try:
        return host.execute(request)
    except Exception:
        mark = secrets.token_hex(4)
        log.exception("unforeseen error while executing experts of layer %d id=%s", request.layer, mark)
        return Reply.error(request.seq, Status.FAILED, f"internal error {mark}; the worker's log has the details")
