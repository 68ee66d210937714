"""Single rows that go where a row went before: their frames are put together from prepared pieces.

While a model decodes, the routings of a layer recur, and with them everything in a request but deadline, seq and the
row, and everything in a good reply but seq and the row. See `expertmesh_worker.runtime.recurring` for the other side.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

from expertmesh_common.channel.frame import Reply, encode_reply, encode_request
from expertmesh_common.channel.layout import DESCRIPTOR, HEADER_BYTES
from expertmesh_controller.gateway.dispatch.exchange import Call, Failure, Floats, HopTimeout, Outcome, broken, judged
from expertmesh_controller.gateway.dispatch.links.base import FramedLink, Link, LinkDown
from expertmesh_controller.gateway.dispatch.plan import Message

_VARYING: Final = struct.Struct("<IQ")  # deadline_ms and seq lie side by side in a header
_VARYING_AT: Final = 12
_SEQ_AT: Final = 16
_AFTER: Final = 24
_ROW_AT: Final = HEADER_BYTES + DESCRIPTOR.size


class Letter(NamedTuple):
    """A message, its link, and its request frame in pieces: up to the deadline, from there to the row, the pairs."""

    message: Message
    link: FramedLink
    before: bytes
    after: bytes
    pairs: bytes


class Round(NamedTuple):
    """All that a layer's exchange needs but the row. `reply` are the pieces of a good reply's head, around seq."""

    letters: tuple[Letter, ...]
    reply: tuple[bytes, bytes]
    hidden: int
    most_pairs: int


def prepare(call: Call, messages: Sequence[Message], links: Sequence[Link]) -> Round | None:
    """The round of a single row's messages; None when one of them stays in this process."""
    letters = []
    for message in messages:
        link = links[message.worker]
        if not isinstance(link, FramedLink):
            return None
        head, _, pairs = encode_request(call.request(message, 0))
        letters.append(Letter(message, link, bytes(head[:_VARYING_AT]), bytes(head[_AFTER:]), bytes(pairs)))
    hidden = call.task.rows.shape[1]
    reply = bytes(encode_reply(Reply.of_rows(0, np.zeros((1, hidden), np.float32)))[0])
    most_pairs = max(message.row.size for message in messages)
    return Round(tuple(letters), (reply[:_SEQ_AT], reply[_AFTER:]), hidden, most_pairs)


def exchange_row(call: Call, prepared: Round, timeout: HopTimeout, deadline: float) -> list[Outcome]:
    """As `exchange`, for the one row of `call`."""
    expiry = timeout.expiry(prepared.most_pairs, deadline)
    varying = _VARYING.pack(max(1, int((expiry - time.monotonic()) * 1000)), call.seq)
    row = call.task.rows.tobytes()
    failures: dict[int, Failure] = {}
    for message, link, before, after, pairs in prepared.letters:
        try:
            link.send((b"".join((before, varying, after, row, pairs)),), expiry)
        except LinkDown as error:
            failures[message.worker] = broken(message, error)
    expected = b"".join((prepared.reply[0], varying[_SEQ_AT - _VARYING_AT :], prepared.reply[1]))
    total = _ROW_AT + len(row)
    outcomes: list[Outcome] = []
    for letter in prepared.letters:
        failed = failures.get(letter.message.worker) if failures else None
        outcomes.append(failed or _receive(call, letter, expected, total, expiry))
    return outcomes


def _receive(call: Call, letter: Letter, expected: bytes, total: int, expiry: float) -> Floats | Failure:
    link = letter.link
    try:
        data = link.receive(expiry)
        if len(data) == total and data[:_ROW_AT] == expected:
            return np.ndarray(call.task.rows.shape, np.float32, data, _ROW_AT)
        return judged(call, letter.message, link, link.decode(data))
    except LinkDown as error:
        return broken(letter.message, error)
