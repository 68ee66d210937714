"""Frames that ask again what was asked before: one row for experts of a layer, token after token.

While a model decodes, frames differ in deadline, seq, the row, and who is asked with which weights. Everything else -
checks, the layer, the reply's head - follows from the bytes of the head, so it is found once and then looked up by
them; experts and weights are read from their places. Nothing is remembered of the experts that a row went to: routers
that weigh the best few of many never repeat themselves.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from operator import lt
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from expertmesh_common.channel.frame import Reply, Request, decode_request, encode_reply
from expertmesh_common.channel.layout import DESCRIPTOR, HEADER_BYTES, PAIR_BYTES, remember
from expertmesh_worker.runtime.lanes import Lane, Lanes, Rows
from expertmesh_worker.runtime.residents import Layer, Residents

# Up to the deadline, deadline_ms, seq, and the rest of the head of a frame with one tensor.
_HEAD: Final = struct.Struct("<12sIQ72s")
_ROW_AT: Final = HEADER_BYTES + DESCRIPTOR.size
_SEQ: Final = slice(16, 24)
_MOST_PAIRS: Final = 256

Call = Callable[[], None]
"""Computes one expert on its lane's buffers."""


class Buffers(NamedTuple):
    """A lane's buffers for rows of one size.

    `given` float32 [hidden] takes the row of the frame, `given_bytes` is the same memory; the others are float32
    [1, hidden]: the experts' input and output, and the sum. Where weights go on the output, `given` is the input.
    """

    given: NDArray[np.float32]
    given_bytes: memoryview
    row_in: Rows
    out: Rows
    total: Rows


class Known(NamedTuple):
    """What follows from a head. `form` unpacks the pairs: their rows as bytes, `pairs` weights, as many experts.

    `calls` has, per lane, those of the layer's experts.
    """

    calls: tuple[dict[int, Call], ...]
    weighs_input: bool
    frame_bytes: int
    pairs: int
    pairs_at: int
    form: struct.Struct
    first_row: bytes
    plain: tuple[float, ...]
    reply: tuple[bytes, bytes]
    buffers: tuple[Buffers, ...]


Heads = dict[Any, Any]
"""What is known by the two parts of a head, and the calls of a layer by model and layer, which its heads share."""


class Recurring:
    """Answers single-row frames with heads that `learn` has seen. For any number of threads."""

    def __init__(self, residents: Residents, lanes: Lanes, count: Callable[[int, int], None]) -> None:
        self._residents, self._lanes, self._count = residents, lanes, count
        self._buffers: dict[tuple[int, bool], tuple[Buffers, ...]] = {}

    @property
    def busy(self) -> bool:
        """Whether every lane is taken."""
        return self._lanes.all_taken

    def answer(self, data: memoryview) -> bytes | None:
        """The whole reply frame; None when this frame must be decoded and executed the long way.

        `data` must hold exactly one frame, of which nothing was checked yet. Call it where numpy warns neither of
        overflows nor of invalid values.
        """
        if len(data) <= _ROW_AT:
            return None
        lane = self._lanes.take_free()
        if lane is None:
            return None
        try:
            # Known layers lie in the residents' table: nothing they name is freed until the lane is given back.
            before, _, _, after = _HEAD.unpack_from(data)
            known: Known | None = self._residents.recurring.get((before, after))
            if known is None or known.frame_bytes != len(data):
                return None
            return self._answer(known, data, lane.number)
        finally:
            self._lanes.give(lane)

    def _answer(self, known: Known, data: memoryview, lane: int) -> bytes | None:
        pairs = known.form.unpack_from(data, known.pairs_at)
        weights, experts = pairs[1 : known.pairs + 1], pairs[known.pairs + 1 :]
        if pairs[0] != known.first_row or not all(map(lt, experts, experts[1:])):
            return None
        try:
            calls = list(map(known.calls[lane].__getitem__, experts))
        except KeyError:
            return None
        buffers = known.buffers[lane]
        buffers.given_bytes[:] = data[_ROW_AT : known.pairs_at]
        given = buffers.given
        if not math.isfinite(given.dot(given)):  # also of finite rows so large that they overflow: the long way tells
            return None
        if known.weighs_input:
            result = _weighed_before(calls, weights, buffers)
        else:
            result = _summed(calls, None if weights == known.plain else weights, buffers.out, buffers.total)
        self._count(lane, known.pairs)
        return b"".join((known.reply[0], data[_SEQ], known.reply[1], result.data))

    def learn(self, data: memoryview) -> None:
        """Remember the head of a frame that was just answered well, if it is of the kind that recurs."""
        if len(data) <= _ROW_AT:
            return
        before, _, _, after = _HEAD.unpack_from(data)
        if (before, after) in self._residents.recurring:
            return
        request = decode_request(data)
        if not _recurs(request):
            return
        lane = self._lanes.take_free()
        if lane is None:
            return
        try:
            heads: Heads = self._residents.recurring  # before the layer: what is remembered must not outlive its table
            layer, hidden = self._residents.layer(request.model, request.layer), request.rows.shape[1]
            if any(instance.hidden != hidden for instance in layer.values()):
                return  # it was replaced since the frame was answered
            buffers = self._buffers_for(hidden, request.weight_on == "input")
            key = request.model, request.layer
            calls = heads.get(key) or remember(heads, key, _calls(layer, self._lanes))
            remember(heads, (before, after), _known(data, request, calls, buffers))
        finally:
            self._lanes.give(lane)

    def _buffers_for(self, hidden: int, weighs_input: bool) -> tuple[Buffers, ...]:
        found = self._buffers.get((hidden, weighs_input))
        if found is None:
            # Connections learn at once: setdefault, so that all of them agree on the buffers.
            fresh = tuple(_buffers(lane, hidden, weighs_input) for lane in self._lanes.all)
            found = self._buffers.setdefault((hidden, weighs_input), fresh)
        return found


def _recurs(request: Request) -> bool:
    """One float32 row under its usual name that needs no padding, to be summed over a few pairs."""
    rows = request.tensors.get("rows")
    if rows is None or len(request.tensors) != 1 or rows.dtype != np.float32 or rows.ndim != 2 or len(rows) != 1:
        return False
    if rows.nbytes % 8:
        return False
    return request.reduce == "sum" and 0 < request.expert.size <= _MOST_PAIRS


def _calls(layer: Layer, lanes: Lanes) -> tuple[dict[int, Call], ...]:
    return tuple({e: instance.seats[lane.number].one for e, instance in layer.items()} for lane in lanes.all)


def _known(
    data: memoryview, request: Request, calls: tuple[dict[int, Call], ...], buffers: tuple[Buffers, ...]
) -> Known:
    pairs = request.expert.size
    head = bytes(encode_reply(Reply.of_rows(0, buffers[0].total))[0])
    return Known(
        calls=calls,
        weighs_input=request.weight_on == "input",
        frame_bytes=len(data),
        pairs=pairs,
        pairs_at=len(data) - PAIR_BYTES * pairs,
        form=struct.Struct(f"<{4 * pairs}s{pairs}f{pairs}H"),
        first_row=bytes(4 * pairs),
        plain=(1.0,) * pairs,
        reply=(head[: _SEQ.start], head[_SEQ.stop :]),
        buffers=buffers,
    )


def _buffers(lane: Lane, hidden: int, weighs_input: bool) -> Buffers:
    row_in, row_out = lane.buffers(hidden)
    given = np.zeros(hidden, np.float32) if weighs_input else row_in[0]
    return Buffers(given, given.data.cast("B"), row_in, row_out, np.zeros((1, hidden), np.float32))


def _summed(calls: Sequence[Call], weights: tuple[float, ...] | None, out: Rows, total: Rows) -> Rows:
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


def _weighed_before(calls: Sequence[Call], weights: tuple[float, ...], buffers: Buffers) -> Rows:
    """The experts' outputs for the weighted row, as above."""
    given, _, row_in, out, total = buffers
    total[:] = 0
    for call, weight in zip(calls, weights, strict=True):
        np.multiply(given, np.float32(weight), row_in[0])
        call()
        np.add(total, out, total)
    return total
