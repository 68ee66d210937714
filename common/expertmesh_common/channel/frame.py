"""The binary frame of the expert channel, the same on every transport (byte by byte in docs/expert-channel.md).

A frame is a 64-byte header, one 32-byte descriptor per tensor, the tensors' bytes (each padded to 8 bytes), then the
pairs: `row` uint32[n], `weight` float32[n], `expert` uint16[n]. Everything is little-endian. Encoding copies no row and
decoding copies nothing: arrays are views of the received buffer.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from expertmesh_common.channel.heads import REPLY, REQUEST, read_head
from expertmesh_common.channel.layout import (
    HEADER,
    HEADER_BYTES,
    MAGIC,
    PAIR_BYTES,
    VERSION,
    Array,
    Buffer,
    Chunk,
    pack_tensors,
    remember,
)
from expertmesh_common.errors import CorruptData

MAX_FRAME_BYTES: Final = 48 * 2**20  # below the gRPC message limit, so one bound holds on every transport
MAX_EXPERTS: Final = 4096  # of one layer
_WEIGHT_ON_INPUT: Final = 1
_REDUCE_SUM: Final = 2
_LENGTH: Final = struct.Struct("<4sB47xI")  # magic, version and body bytes of a header
_FEW_PAIRS: Final = 16

WeightOn = Literal["output", "input"]
Reduce = Literal["sum", "none"]


class Status(IntEnum):
    """What became of a request."""

    OK = 0
    STALE = 1  # some experts are not here; tensor `missing` lists them
    INVALID = 2  # the request can never succeed
    DEADLINE = 3  # its deadline passed here
    FAILED = 4  # execution failed; another replica may do better


class Request(NamedTuple):
    """Rows for experts of one layer on one worker.

    `tensors["rows"]` float32 [T, hidden] holds every row once. Pair p asks for expert `expert[p]` on row `row[p]` with
    gate weight `weight[p]`: `row` uint32 [n], `expert` uint16 [n], `weight` float32 [n]. `deadline_ms` is what was left
    when the frame was sent; 0 means none was given. `epoch` is (term, n) of the sender's route table.
    """

    seq: int
    epoch: tuple[int, int]
    model: int
    layer: int
    deadline_ms: int
    tensors: Mapping[str, Array]
    row: NDArray[np.uint32]
    expert: NDArray[np.uint16]
    weight: NDArray[np.float32]
    weight_on: WeightOn = "output"
    reduce: Reduce = "sum"

    @property
    def rows(self) -> Array:
        """The first tensor: float32 [T, hidden] for a token expert."""
        return next(iter(self.tensors.values()))


class Reply(NamedTuple):
    """Answer to the request with the same `seq`.

    OK with reduce `sum`: `tensors["rows"]` float32 [T, hidden], one summed row per input row; with `none` one row per
    pair. STALE: `tensors["missing"]` uint16 [m]. Any other status: `tensors["message"]` uint8, UTF-8 text.
    """

    seq: int
    status: Status
    tensors: Mapping[str, Array]

    @classmethod
    def of_rows(cls, seq: int, rows: Array) -> Reply:
        """Success: `rows` [T, hidden] as described above."""
        return cls(seq, Status.OK, {"rows": rows})

    @classmethod
    def stale(cls, seq: int, missing: Sequence[int]) -> Reply:
        """The experts `missing` are not resident here."""
        return cls(seq, Status.STALE, {"missing": np.array(missing, np.uint16)})

    @classmethod
    def error(cls, seq: int, status: Status, message: str) -> Reply:
        """INVALID, DEADLINE or FAILED with a text for the operator."""
        return cls(seq, status, {"message": np.frombuffer(message.encode(), np.uint8)})

    @property
    def rows(self) -> Array:
        return self.tensors["rows"]

    @property
    def missing(self) -> tuple[int, ...]:
        found = self.tensors.get("missing")
        return () if found is None else tuple(found.tolist())

    @property
    def message(self) -> str:
        found = self.tensors.get("message")
        return "" if found is None else found.tobytes().decode("utf-8", "replace")


def model_key(name: str) -> int:
    """The model's number on the wire: the first 8 bytes of the sha256 of its name."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")


def encode_request(request: Request) -> list[Chunk]:
    """Buffers for `sendmsg` (or `b"".join`): a small head, then the callers' own arrays.

    Raises:
        InvalidInput: a tensor's name, dtype or number of dimensions has no place in a frame.

    """
    descriptors, data, data_bytes = pack_tensors(request.tensors)
    pairs = request.row.size
    flags = (_WEIGHT_ON_INPUT if request.weight_on == "input" else 0) | (_REDUCE_SUM if request.reduce == "sum" else 0)
    term, n = request.epoch
    body = len(descriptors) + data_bytes + pairs * PAIR_BYTES
    head = HEADER.pack(
        MAGIC, VERSION, REQUEST, flags, 0, len(request.tensors), request.layer, request.deadline_ms,
        request.seq, term, n, request.model, pairs, body, 0,
    )  # fmt: skip
    tail = request.row.tobytes() + request.weight.tobytes() + request.expert.tobytes()
    return [head + descriptors, *data, tail]


def encode_reply(reply: Reply) -> list[Chunk]:
    """Buffers for `sendmsg` (or `b"".join`).

    Raises:
        InvalidInput: a tensor's name, dtype or number of dimensions has no place in a frame.

    """
    descriptors, data, data_bytes = pack_tensors(reply.tensors)
    head = HEADER.pack(
        MAGIC, VERSION, REPLY, 0, reply.status, len(reply.tensors), 0, 0, reply.seq, 0, 0, 0, 0,
        len(descriptors) + data_bytes, 0,
    )  # fmt: skip
    return [head + descriptors, *data]


def frame_bytes(head: Buffer, limit: int = MAX_FRAME_BYTES) -> int:
    """Length of the whole frame from its first 64 bytes.

    Raises:
        CorruptData: this is no frame of our version, or it is longer than `limit` bytes.

    """
    magic, version, body = _LENGTH.unpack_from(head)
    if magic != MAGIC or version != VERSION:
        raise CorruptData(f"not an expert frame: magic {magic!r} version {version}, expected {MAGIC!r} {VERSION}")
    if HEADER_BYTES + body > limit:
        raise CorruptData(f"expert frame of {HEADER_BYTES + body} bytes exceeds the limit of {limit}")
    return int(HEADER_BYTES + body)


def decode_request(data: Buffer) -> Request:
    """A request over the memory of `data`, which must hold exactly one frame.

    Raises:
        CorruptData: the bytes are not a valid request; the message says what is wrong.

    """
    view = memoryview(data)
    head, deadline_ms, seq = read_head(view, REQUEST)
    flags = head.flags
    if flags > (_WEIGHT_ON_INPUT | _REDUCE_SUM) or head.status:
        raise CorruptData(f"expert request has unknown flags {flags:#x} or status {head.status}")
    tensors = head.arrays(view)
    pairs = _read_pairs(view[head.pairs_at :], head.pairs)
    rows = min([len(tensor) if tensor.ndim else 0 for tensor in tensors.values()])
    if pairs.top_row >= rows:
        raise CorruptData(f"expert request has a pair for row {pairs.top_row} of {rows}")
    if pairs.top_expert >= MAX_EXPERTS:
        raise CorruptData(f"expert request has a pair for expert {pairs.top_expert}; a layer has at most {MAX_EXPERTS}")
    return Request(
        seq, head.epoch, head.model, head.layer, deadline_ms, tensors, pairs.row, pairs.expert, pairs.weight,
        "input" if flags & _WEIGHT_ON_INPUT else "output", "sum" if flags & _REDUCE_SUM else "none",
    )  # fmt: skip


def decode_reply(data: Buffer) -> Reply:
    """A reply over the memory of `data`, which must hold exactly one frame.

    Raises:
        CorruptData: the bytes are not a valid reply; the message says what is wrong.

    """
    view = memoryview(data)
    head, deadline_ms, seq = read_head(view, REPLY)
    status = _STATUSES.get(head.status)
    if status is None or deadline_ms or head.flags or head.layer or head.epoch != (0, 0) or head.model or head.pairs:
        raise CorruptData(f"expert reply has status {head.status}, flags {head.flags:#x} or request fields set")
    tensors = head.arrays(view)
    if _PAYLOAD[status] not in tensors:
        raise CorruptData(f"expert reply with status {status.name} lacks the tensor {_PAYLOAD[status]!r}")
    return Reply(seq, status, tensors)


_STATUSES = {int(status): status for status in Status}
_PAYLOAD = {s: {Status.OK: "rows", Status.STALE: "missing"}.get(s, "message") for s in Status}


class _Pairs(NamedTuple):
    row: NDArray[np.uint32]
    weight: NDArray[np.float32]
    expert: NDArray[np.uint16]
    top_row: int
    top_expert: int


# The pairs of a few rows recur from token to token; their arrays lie over the remembered bytes.
_few_pairs: dict[bytes, _Pairs] = {}


def _read_pairs(section: memoryview, count: int) -> _Pairs:
    if count > _FEW_PAIRS:
        row, weight, expert = _split_pairs(section, count)
        return _Pairs(row, weight, expert, int(row.max()), int(expert.max()))
    raw = bytes(section)
    found = _few_pairs.get(raw)
    if found is None:
        row, weight, expert = _split_pairs(raw, count)
        found = _Pairs(row, weight, expert, max(row.tolist(), default=-1), max(expert.tolist(), default=-1))
        remember(_few_pairs, raw, found)
    return found


def _split_pairs(section: Buffer, count: int) -> tuple[NDArray[np.uint32], NDArray[np.float32], NDArray[np.uint16]]:
    row = np.ndarray(count, np.uint32, section)
    weight = np.ndarray(count, np.float32, section, 4 * count)
    return row, weight, np.ndarray(count, np.uint16, section, 8 * count)
