"""Single rows, as they come while a model decodes: their frames are put together from pieces that recur.

Everything in a request for one row follows from its layer and the number of its pairs, but deadline, seq, the row and
the pairs themselves; everything in a good reply from its layer, but seq and the row. So a row of any routing is
addressed without arrays, and no memory grows with the routings. See `expertmesh_worker.runtime.recurring` for the other
side.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from expertmesh_common.channel.frame import Reply, encode_reply, encode_request
from expertmesh_common.channel.layout import DESCRIPTOR, HEADER_BYTES, PAIR_BYTES
from expertmesh_controller.gateway.dispatch.exchange import (
    Call,
    Failure,
    Floats,
    HopTimeout,
    Outcome,
    Task,
    broken,
    judged,
)
from expertmesh_controller.gateway.dispatch.links.base import FramedLink, Link, LinkDown
from expertmesh_controller.gateway.dispatch.plan import Message
from expertmesh_controller.gateway.gating.routing import RowRouting

_VARYING: Final = struct.Struct("<IQ")  # deadline_ms and seq lie side by side in a header
_VARYING_AT: Final = 12
_SEQ_AT: Final = 16
_AFTER: Final = 24
_ROW_AT: Final = HEADER_BYTES + DESCRIPTOR.size


class Pieces(NamedTuple):
    """Of every request of a layer with as many pairs: up to the deadline, from there to the row, and the pairs' form.

    `pairs` packs the weights, then the experts; the rows before them are 0.
    """

    before: bytes
    after: bytes
    pairs: struct.Struct


class Letter(NamedTuple):
    """What worker number `worker` gets: its request frame in pieces, up to the deadline, from there to the row, pairs.

    Where a failure has to be named it is a `message`.
    """

    worker: int
    link: FramedLink
    before: bytes
    after: bytes
    pairs: bytes

    @property
    def sent_rows(self) -> None:
        """All of them travel, as in a message."""
        return

    @property
    def message(self) -> Message:
        """The same as arrays."""
        count = len(self.pairs) // PAIR_BYTES
        row = np.frombuffer(self.pairs, np.uint32, count)
        weight = np.frombuffer(self.pairs, np.float32, count, 4 * count)
        return Message(self.worker, None, row, np.frombuffer(self.pairs, np.uint16, count, 8 * count), weight)


class Round(NamedTuple):
    """A plan for one row, all of whose pairs are served: letters in ascending worker number.

    `reply` are the pieces of a good reply's head, around seq.
    """

    messages: tuple[Letter, ...]
    reply: tuple[bytes, bytes]
    most_pairs: int
    unserved: None = None


class LayerPost:
    """Addresses the single rows of one layer, of one model and size, while an assignment holds.

    `owner` intp [experts] holds the place among `links` of the one that leads to an expert, or -1.
    """

    def __init__(self, epoch: tuple[int, int], owner: NDArray[np.intp], links: Sequence[Link]) -> None:
        self._epoch = epoch
        self._owner: list[int] = owner.tolist()
        framed = (link if isinstance(link, FramedLink) else None for link in links)
        self._links = (*framed, None)  # -1 leads nowhere
        self._pieces: dict[int, Pieces] = {}
        self._reply = (b"", b"")

    def address(self, task: Task, routing: RowRouting) -> Round | None:
        """The round of an untraced task's one row.

        None when a pair is not served, or in this process, or when a frame pads the row.
        """
        if task.rows.nbytes % 8:
            return None
        letters, most_pairs = [], 0
        for worker, (experts, weights) in self._shares(routing):
            link = self._links[worker]
            if link is None:
                return None
            count = len(experts)
            before, after, pairs = self._pieces.get(count) or self._cut(task, count)
            letters.append(Letter(worker, link, before, after, pairs.pack(*weights, *experts)))
            most_pairs = max(count, most_pairs)
        return Round(tuple(letters), self._reply, most_pairs) if letters else None

    def _shares(self, routing: RowRouting) -> Sequence[tuple[int, tuple[Sequence[int], Sequence[float]]]]:
        """(worker number, its experts and their weights), ascending."""
        owners = [self._owner[expert] for expert in routing.experts]
        if len(set(owners)) == 1:
            return ((owners[0], (routing.experts, routing.weights)),)
        shares: dict[int, tuple[list[int], list[float]]] = {}
        for owner, expert, weight in zip(owners, routing.experts, routing.weights, strict=True):
            experts, weights = shares.setdefault(owner, ([], []))
            experts.append(expert)
            weights.append(weight)
        return sorted(shares.items())

    def _cut(self, task: Task, count: int) -> Pieces:
        """The pieces of this layer's requests with `count` pairs, from a whole one."""
        nothing = np.zeros(count, np.uint32)
        message = Message(0, None, nothing, nothing.astype(np.uint16), nothing.astype(np.float32))
        head = encode_request(Call(0, self._epoch, task).request(message, 0))[0]
        reply = bytes(encode_reply(Reply.of_rows(0, np.zeros(task.rows.shape, np.float32)))[0])
        self._reply = reply[:_SEQ_AT], reply[_AFTER:]
        form = struct.Struct(f"<{4 * count}x{count}f{count}H")
        found = self._pieces[count] = Pieces(bytes(head[:_VARYING_AT]), bytes(head[_AFTER:]), form)
        return found


def exchange_row(call: Call, prepared: Round, timeout: HopTimeout, deadline: float) -> list[Outcome]:
    """As `exchange`, for the one row of `call`."""
    expiry = timeout.expiry(prepared.most_pairs, deadline)
    varying = _VARYING.pack(max(1, int((expiry - time.monotonic()) * 1000)), call.seq)
    row = call.task.rows.tobytes()
    failures: dict[int, Failure] = {}
    for letter in prepared.messages:
        worker, link, before, after, pairs = letter
        try:
            link.send((b"".join((before, varying, after, row, pairs)),), expiry)
        except LinkDown as error:
            failures[worker] = broken(letter.message, error)
    expected = b"".join((prepared.reply[0], varying[_SEQ_AT - _VARYING_AT :], prepared.reply[1]))
    total = _ROW_AT + len(row)
    outcomes: list[Outcome] = []
    for letter in prepared.messages:
        failed = failures.get(letter.worker) if failures else None
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
