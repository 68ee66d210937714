import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from expertmesh_api.v1 import experts_pb2
from expertmesh_common.channel.frame import (
    MAX_EXPERTS,
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
from expertmesh_common.channel.layout import HEADER_BYTES, chunk_bytes
from expertmesh_common.channel.messages import unwrap, wrap
from expertmesh_common.errors import CorruptData, InvalidInput

DTYPES = [np.float32, np.float16, np.float64, np.int8, np.uint8, np.int16, np.uint16, np.int32, np.int64]
U32, U64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)


def a_request(rows=3, hidden=8, pairs=4, **changes):
    rng = np.random.default_rng(0)
    fields = {
        "seq": 7, "epoch": (3, 9), "model": model_key("m"), "layer": 5, "deadline_ms": 1500,
        "tensors": {"rows": rng.standard_normal((rows, hidden)).astype(np.float32)},
        "row": np.sort(rng.integers(0, max(rows, 1), pairs)).astype(np.uint32),
        "expert": rng.integers(0, 64, pairs).astype(np.uint16),
        "weight": rng.standard_normal(pairs).astype(np.float32),
    }  # fmt: skip
    return Request(**{**fields, **changes})


def joined(request):
    return b"".join(encode_request(request))


def same(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@settings(max_examples=150, deadline=None)
@given(
    scalars=st.tuples(U64, U64, U64, U64, st.integers(0, 65535), U32),
    arrays=st.dictionaries(
        st.from_regex(r"[a-z_][a-z0-9_]{0,11}", fullmatch=True),
        st.sampled_from(DTYPES).flatmap(lambda dtype: hnp.arrays(dtype, hnp.array_shapes(max_dims=4, max_side=4))),
        min_size=1, max_size=4,
    ),
    pairs=st.lists(st.tuples(st.just(0), st.floats(width=32), st.integers(0, MAX_EXPERTS - 1)), max_size=80),
    flags=st.tuples(st.sampled_from(["input", "output"]), st.sampled_from(["sum", "none"])),
)  # fmt: skip
def test_a_request_comes_back_as_it_was_sent(scalars, arrays, pairs, flags):
    seq, term, n, model, layer, deadline_ms = scalars
    row, weight, expert = ([p[i] for p in pairs] for i in range(3))
    sent = Request(
        seq, (term, n), model, layer, deadline_ms, arrays,
        np.array(row, np.uint32), np.array(expert, np.uint16), np.array(weight, np.float32), *flags,
    )  # fmt: skip
    got = decode_request(joined(sent))
    assert got[:5] == sent[:5]
    assert got[9:] == sent[9:]
    assert list(got.tensors) == list(arrays)
    assert all(same(got.tensors[name], value) for name, value in arrays.items())
    assert same(got.row, sent.row)
    assert same(got.expert, sent.expert)
    assert same(got.weight, sent.weight)


def test_a_reply_of_every_status_comes_back_as_it_was_sent():
    rows = np.arange(12, dtype=np.float32).reshape(3, 4)
    assert same(decode_reply(b"".join(encode_reply(Reply.of_rows(5, rows)))).rows, rows)
    stale = decode_reply(b"".join(encode_reply(Reply.stale(6, [1, 7]))))
    assert (stale.seq, stale.status, stale.missing) == (6, Status.STALE, (1, 7))
    for status in (Status.INVALID, Status.DEADLINE, Status.FAILED):
        got = decode_reply(b"".join(encode_reply(Reply.error(8, status, "größer"))))
        assert (got.seq, got.status, got.message) == (8, status, "größer")


def test_encoding_and_decoding_copy_no_row():
    request = a_request()
    chunks = encode_request(request)
    assert any(np.shares_memory(np.frombuffer(c, np.uint8), request.rows) for c in chunks if isinstance(c, memoryview))
    data = joined(request)
    assert np.shares_memory(decode_request(data).rows, np.frombuffer(data, np.uint8))


def test_rows_that_are_not_contiguous_travel_by_value():
    rows = np.arange(24, dtype=np.float32).reshape(4, 6)[::2, ::3]
    got = decode_request(joined(a_request(tensors={"rows": rows}, row=np.zeros(4, np.uint32))))
    np.testing.assert_array_equal(got.rows, rows)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_bytes_per_token_and_layer_stay_within_the_budget(workers):
    hidden, experts = 576, 8
    total = 0
    for w in range(workers):
        count = len(range(w, experts, workers))
        request = a_request(1, hidden, count, expert=np.arange(count, dtype=np.uint16))
        total += chunk_bytes(encode_request(request))
        total += chunk_bytes(encode_reply(Reply.of_rows(1, request.rows)))
    assert total <= workers * 2 * hidden * 4 * 1.10


@pytest.mark.parametrize(
    ("position", "value", "complaint"),
    [
        (0, b"X", "not an expert frame"),
        (4, b"\x02", "not an expert frame"),
        (5, b"\x02", "not an expert frame of kind 1"),
        (6, b"\x04", "flags"),
        (7, b"\x01", "status"),
        (8, b"\xff\xff", "tensor descriptors do not fit"),
        (48, b"\x09", "pairs"),
        (52, b"\x01\x00\x00\x00", "announces a body"),
        (56, b"\x01", "reserved"),
        (64, b"a b\0\0", "descriptor is not valid"),
        (64 + 12, b"\x63", "dtype 99"),
        (64 + 13, b"\x05", "dimensions 5"),
        (64 + 16, b"\xff\xff\xff\xff\xff\xff\xff\xff", "larger than"),
        (64 + 16, b"\x00\x00\x10\x00", "ends at byte"),
        (64 + 24, b"\x01", "descriptor is not valid"),
    ],
)
def test_a_damaged_header_is_refused_with_what_is_wrong(position, value, complaint):
    data = bytearray(joined(a_request()))
    data[position : position + len(value)] = value
    with pytest.raises(CorruptData, match=complaint):
        decode_request(data)


@pytest.mark.parametrize("pairs", [4, 100])
def test_pairs_outside_the_rows_or_the_layer_are_refused(pairs):
    with pytest.raises(CorruptData, match="row 3 of 3"):
        decode_request(joined(a_request(pairs=pairs, row=np.full(pairs, 3, np.uint32))))
    with pytest.raises(CorruptData, match="expert 4096"):
        decode_request(joined(a_request(pairs=pairs, expert=np.full(pairs, MAX_EXPERTS, np.uint16))))


def test_a_tensor_that_occurs_twice_is_refused():
    two = a_request(tensors={"aa": np.zeros(3, np.float32), "ab": np.zeros(3, np.float32)}, row=np.zeros(4, np.uint32))
    data = bytearray(joined(two))
    data[64 + 32 : 64 + 34] = b"aa"
    with pytest.raises(CorruptData, match="twice"):
        decode_request(data)


def test_what_has_no_place_in_a_frame_is_refused_when_sent():
    for tensors in ({"x" * 13: np.zeros(1)}, {"rows": np.zeros(1, complex)}, {"rows": np.zeros((1,) * 5)}):
        with pytest.raises(InvalidInput, match="fits no frame"):
            encode_request(a_request(tensors=tensors))


def test_a_frame_longer_than_the_limit_is_known_from_its_header():
    data = joined(a_request())
    assert frame_bytes(data[:HEADER_BYTES]) == len(data)
    with pytest.raises(CorruptData, match="exceeds the limit of 100"):
        frame_bytes(data, 100)


def test_ten_thousand_damaged_frames_raise_corrupt_data_or_decode():
    rng = random.Random(5)
    whole = [
        joined(a_request()), joined(a_request(0, 8, 0)), joined(a_request(40, 2, 90)),
        b"".join(encode_reply(Reply.of_rows(1, np.ones((2, 3), np.float32)))),
        b"".join(encode_reply(Reply.stale(1, [2]))),
    ]  # fmt: skip
    refused = 0
    for turn in range(10_000):
        data = bytearray(rng.choice(whole)) if turn % 5 else bytearray(rng.randbytes(rng.randrange(300)))
        for _ in range(rng.randrange(1, 6)):
            if data:
                data[rng.randrange(min(len(data), rng.choice((128, 4096))))] = rng.choice(
                    (0, 1, 255, rng.randrange(256))
                )
        if turn % 3 == 0:
            data = data[: rng.randrange(len(data) + 1)]
        for decode in (decode_request, decode_reply):
            try:
                decode(data)
            except CorruptData:
                refused += 1
    assert refused > 10_000  # at least the decoder for the other kind must refuse


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=40_000))
def test_the_grpc_wrapping_is_the_proto_message(frame):
    message = experts_pb2.ExpertFrame(frame=frame).SerializeToString()
    if frame:  # proto3 leaves an empty field out; a frame never is
        assert wrap([frame[:3], memoryview(frame)[3:]]) == message
        assert bytes(unwrap(message)) == frame


@pytest.mark.parametrize(
    "message", [b"", b"\x0a", b"\x0a\x05abc", b"\x12\x01a", b"\x0a\xff\xff\xff\xff\xff\xff\x01", b"\x0a\x01ab"]
)
def test_a_message_that_is_no_expert_frame_is_refused(message):
    with pytest.raises(CorruptData, match="ExpertFrame"):
        decode_request(unwrap(message))
