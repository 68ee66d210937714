"""Strategies for frames of the expert channel, sound and broken, and the checks that no bytes may fail."""

from __future__ import annotations

import contextlib
import socket
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from hypothesis import strategies as st

from expertmesh_common.bundle.blobs import Bundle
from expertmesh_common.channel.frame import (
    Reply,
    Request,
    Status,
    decode_reply,
    decode_request,
    encode_reply,
    encode_request,
    frame_bytes,
    model_key,
)
from expertmesh_common.channel.handshake import answer as answer_handshake
from expertmesh_common.channel.handshake import present, read_ticket
from expertmesh_common.channel.layout import HEADER_BYTES
from expertmesh_common.errors import CorruptData, MeshError
from expertmesh_common.graphs.expert import ExpertShape
from expertmesh_worker.channel.answering import answer
from expertmesh_worker.providers import provider
from expertmesh_worker.runtime.executing import Runtime
from expertmesh_worker.runtime.lanes import Lanes
from expertmesh_worker.runtime.residents import ExpertName, Residents
from models import tiny_bundle as tiny

DTYPES = tuple(np.dtype(code) for code in ("f4", "f2", "f8", "i1", "u1", "i2", "u2", "i4", "i8"))


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """A request that can be encoded; experts, rows and values may be wrong."""
    rows = draw(st.sampled_from((1, 2, 3, 8)))
    hidden = draw(st.sampled_from((tiny.HIDDEN,) * 6 + (0, 1, 63, 65)))
    dtype = draw(st.sampled_from((np.dtype("f4"),) * 9 + DTYPES))
    value = draw(st.sampled_from((0.0, 1.0, -3.5, 1e38, float("nan"), float("inf"))))
    with np.errstate(all="ignore"):
        data = np.full((rows, hidden), value).astype(dtype)
    pairs = draw(st.lists(st.tuples(st.integers(0, rows - 1), st.sampled_from((0, 1, 2, 3, 3, 4, 4095))), max_size=6))
    row, expert = (np.array([pair[i] for pair in pairs], kind) for i, kind in ((0, np.uint32), (1, np.uint16)))
    weight = np.array(draw(st.lists(st.floats(width=32), min_size=len(pairs), max_size=len(pairs))), np.float32)
    model = draw(st.sampled_from((model_key("tiny"),) * 5 + (0,)))
    layer = draw(st.sampled_from((0, 1, 2, 3, 65535)))
    seq, deadline_ms = draw(st.integers(0, 2**64 - 1)), draw(st.sampled_from((0, 0, 1, 2**32 - 1)))
    request = Request(
        seq, (1, 1), model, layer, deadline_ms, {"rows": data}, row, expert, weight,
        draw(st.sampled_from(("output", "input"))), draw(st.sampled_from(("sum", "sum", "none"))),
    )  # fmt: skip
    return b"".join(encode_request(request))


@st.composite
def replies(draw: st.DrawFn) -> bytes:
    seq = draw(st.integers(0, 2**64 - 1))
    reply = draw(
        st.sampled_from(
            (
                Reply.of_rows(seq, np.ones((2, 3), np.float32)),
                Reply.stale(seq, [1, 2]),
                Reply.error(seq, Status.FAILED, "no"),
            )
        )
    )
    return b"".join(encode_reply(reply))


def broken(sound: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    """Frames as they are, cut, lengthened, with changed bytes mostly in the head, or no frames at all."""
    places = st.one_of(st.integers(0, HEADER_BYTES + 64), st.integers(0, 2**16))
    changes = st.lists(st.tuples(places, st.integers(0, 255)), min_size=1, max_size=4)
    changed = st.tuples(sound, changes).map(_changed)
    cut = st.tuples(sound, st.integers(0, 2**12)).map(lambda drawn: drawn[0][: drawn[1]])
    longer = st.tuples(sound, st.binary(min_size=1, max_size=16)).map(b"".join)
    return st.one_of(sound, changed, changed, changed, cut, longer, st.binary(max_size=200))


def _changed(drawn: tuple[bytes, list[tuple[int, int]]]) -> bytes:
    data = bytearray(drawn[0])
    for place, value in drawn[1]:
        data[place % len(data)] = value
    return bytes(data)


def check_decoding(data: bytes) -> None:
    """Decoders return or raise CorruptData; what they return can be encoded, and lies within the bytes that came."""
    for decode, encode in ((decode_request, encode_request), (decode_reply, encode_reply)):
        with contextlib.suppress(CorruptData):
            found = decode(data)
            assert sum(tensor.nbytes for tensor in found.tensors.values()) <= len(data)
            encode(found)  # type: ignore[operator]
    if len(data) >= HEADER_BYTES:
        with contextlib.suppress(CorruptData):
            frame_bytes(data[:HEADER_BYTES])


def check_answering(data: bytes) -> None:
    """A worker with real experts answers any bytes with a frame that says what was wrong, and is never surprised."""
    reply = decode_reply(b"".join(answer(worker(), memoryview(data)).chunks))
    assert reply.status is not Status.FAILED, reply.message
    assert reply.message or reply.status in {Status.OK, Status.STALE}


def check_greeting(data: bytes) -> None:
    """Neither half of the handshake is surprised by what the other sends, nor waits for what never comes."""
    for half in (lambda end: answer_handshake(end, bool(read_ticket(end))), lambda end: present(end, bytes(32))):
        near, far = socket.socketpair()
        with near, far:
            near.settimeout(5)
            far.sendall(data)
            far.shutdown(socket.SHUT_WR)
            with contextlib.suppress(MeshError):
                half(near)


def greetings() -> st.SearchStrategy[bytes]:
    hello = st.binary(min_size=32, max_size=32).map(lambda ticket: b"EXMT\1\0\0\0" + ticket)
    verdict = st.integers(0, 3).map(lambda value: b"EXMT\1" + bytes((value, 0, 0)))
    return st.one_of(hello, verdict, broken(hello), broken(verdict), st.binary(max_size=80))


@cache
def worker() -> Runtime:
    """A runtime that holds experts 0 to 2 of each layer of the tiny model; expert 3 is elsewhere."""
    with TemporaryDirectory() as folder:
        bundle = Bundle(tiny.make_tiny_bundle(Path(folder)))
        lanes = Lanes(1)
        residents = Residents(1 << 30, provider("cpu"), lanes)
        for layer in bundle.manifest.layers:
            for index in range(3):
                blob = layer.experts[index].blobs["fp32"]
                shape = ExpertShape(tiny.HIDDEN, tiny.EXPERT_WIDTH, "fp32")
                residents.load(ExpertName("tiny", layer.index, index), shape, bundle.path(blob), blob.digest)
    return Runtime(residents, lanes)
