"""Frames that ask again what was asked before: one row for the same experts of a layer, token after token.

While a model decodes, frames differ in deadline, seq and the row itself. Everything else - checks, experts, the reply's
head - follows from the other bytes, so it is found once and then looked up by them. What takes a hundred interpreter
steps otherwise takes about twenty, on caches that the experts' weights have just swept.
"""

from __future__ import annotations

import itertools
import math
import struct
from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from expertmesh_common.channel.frame import Reply, Request, decode_request, encode_reply
from expertmesh_common.channel.layout import DESCRIPTOR, HEADER_BYTES, remember
from expertmesh_worker.runtime.instance import Seat
from expertmesh_worker.runtime.lanes import Lane, Lanes, Rows
from expertmesh_worker.runtime.residents import Layer, Residents

# Up to the deadline, deadline_ms, seq, and the rest of the head of a frame with one tensor.
_HEAD: Final = struct.Struct("<12sIQ72s")
_ROW_AT: Final = HEADER_BYTES + DESCRIPTOR.size
_SEQ: Final = slice(16, 24)
_MOST_PAIRS: Final = 256


class Buffers(NamedTuple):
    """A lane's buffers for rows of one size: the row as floats and as bytes, an expert's output, and the sum."""

    row: NDArray[np.float32]
    row_bytes: memoryview
    out: Rows
    total: Rows


class Known(NamedTuple):
    """What follows from a head: where the pairs are, how they begin when every weight is 1, and who was asked for.

    `calls` has, per lane and by the bytes that name the experts, what computes them in order.
    """

    frame_bytes: int
    pairs: int
    pairs_at: int
    plain: bytes
    reply: tuple[bytes, bytes]
    buffers: tuple[Buffers, ...]
    calls: tuple[dict[bytes, tuple[Callable[[], None], ...]], ...]


Heads = dict[tuple[bytes, bytes], Known]


class Recurring:
    """Answers single-row frames like ones that `learn` has seen. For any number of threads."""

    def __init__(self, residents: Residents, lanes: Lanes, count: Callable[[int, int], None]) -> None:
        self._residents, self._lanes, self._count = residents, lanes, count

    @property
    def busy(self) -> bool:
        """Whether every lane is taken."""
        return self._lanes.all_taken

    def answer(self, data: memoryview) -> bytes | None:
        """The whole reply frame; None when this frame must be decoded and executed the long way.

        `data` must hold exactly one frame, of which nothing was checked yet. Call it where numpy does not warn of
        overflows.
        """
        if len(data) <= _ROW_AT:
            return None
        lane = self._lanes.take_free()
        if lane is None:
            return None
        try:
            # Known calls live in the residents' table: nothing they name is freed until the lane is given back.
            before, _, _, after = _HEAD.unpack_from(data)
            known: Known | None = self._residents.recurring.get((before, after))
            if known is None or known.frame_bytes != len(data):
                return None
            return self._answer(known, data, lane.number)
        finally:
            self._lanes.give(lane)

    def _answer(self, known: Known, data: memoryview, lane: int) -> bytes | None:
        pairs = bytes(data[known.pairs_at :])
        split = 8 * known.pairs
        calls = known.calls[lane].get(pairs[split:])
        if calls is None:
            return None
        weights = None
        if not pairs.startswith(known.plain):
            weights = _weights(pairs, known.pairs)
            if weights is None:
                return None
        row, row_bytes, out, total = known.buffers[lane]
        row_bytes[:] = data[_ROW_AT : known.pairs_at]
        if not math.isfinite(row.dot(row)):  # also of finite rows so large that they overflow: the long way tells
            return None
        result = _summed(calls, weights, out, total)
        self._count(lane, known.pairs)
        return b"".join((known.reply[0], data[_SEQ], known.reply[1], result.data))

    def learn(self, data: memoryview) -> None:
        """Remember a frame that was just answered well, if it is of the kind that recurs."""
        request = decode_request(data)
        if not _recurs(request):
            return
        lane = self._lanes.take_free()
        if lane is None:
            return
        try:
            self._learn(data, request, lane)
        finally:
            self._lanes.give(lane)

    def _learn(self, data: memoryview, request: Request, lane: Lane) -> None:
        heads: Heads = self._residents.recurring  # before the layer: what is remembered must not outlive its table
        layer = self._residents.layer(request.model, request.layer)
        experts: list[int] = request.expert.tolist()
        if not all(e in layer for e in experts):
            return
        before, _, _, after = _HEAD.unpack_from(data)
        known = heads.get((before, after))
        if known is None:
            known = remember(heads, (before, after), _known(data, request, self._lanes))
        remember(known.calls[lane.number], request.expert.tobytes(), _calls(layer, experts, lane.number))


def _recurs(request: Request) -> bool:
    """One float32 row under its usual name, summed, weighted on the output, its experts ascending."""
    rows = request.tensors.get("rows")
    if rows is None or len(request.tensors) != 1 or rows.dtype != np.float32 or rows.ndim != 2 or len(rows) != 1:
        return False
    experts: list[int] = request.expert.tolist()
    ascending = all(a < b for a, b in itertools.pairwise(experts))
    plain = (request.weight_on, request.reduce) == ("output", "sum")
    return plain and ascending and 0 < len(experts) <= _MOST_PAIRS


def _known(data: memoryview, request: Request, lanes: Lanes) -> Known:
    hidden, pairs = request.rows.shape[1], request.expert.size
    head = bytes(encode_reply(Reply.of_rows(0, np.zeros((1, hidden), np.float32)))[0])
    return Known(
        frame_bytes=len(data),
        pairs=pairs,
        pairs_at=len(data) - 10 * pairs,
        plain=bytes(4 * pairs) + np.ones(pairs, np.float32).tobytes(),
        reply=(head[: _SEQ.start], head[_SEQ.stop :]),
        buffers=tuple(_buffers(lane, hidden) for lane in lanes.all),
        calls=tuple({} for _ in lanes.all),
    )


def _buffers(lane: Lane, hidden: int) -> Buffers:
    row_in, row_out = lane.buffers(hidden)
    return Buffers(row_in[0], row_in.data.cast("B"), row_out, np.zeros((1, hidden), np.float32))


def _calls(layer: Layer, experts: list[int], lane: int) -> tuple[Callable[[], None], ...]:
    seats: list[Seat] = [layer[e].seats[lane] for e in experts]
    return tuple(seat.one for seat in seats)


def _weights(pairs: bytes, count: int) -> list[float] | None:
    """The weights in the pairs of a single row; None when the pairs are not of row 0."""
    if any(pairs[: 4 * count]):
        return None
    weights: list[float] = np.frombuffer(pairs, np.float32, count, 4 * count).tolist()
    return weights


def _summed(calls: tuple[Callable[[], None], ...], weights: list[float] | None, out: Rows, total: Rows) -> Rows:
    """The experts' outputs, weighted, added in order: the same operations as `executing` does, to the bit."""
    if weights is None:
        calls[0]()
        if len(calls) == 1:
            return out
        total[:] = out
        for call in calls[1:]:
            call()
            np.add(total, out, total)
        return total
    total[:] = 0
    for call, weight in zip(calls, weights, strict=True):
        call()
        if weight != 1.0:
            np.multiply(out, np.float32(weight), out)
        np.add(total, out, total)
    return total
