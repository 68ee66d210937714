"""A frame carries its trace as one more tensor, whatever the number of its rows, and the reply is the same without."""

from __future__ import annotations

import numpy as np
import pytest

from expertmesh_common.channel.frame import Request, decode_request, encode_request
from expertmesh_common.channel.tracing import trace_tensor, traceparent_of

TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def request(rows: int, **more) -> Request:
    values = np.ones((rows, 4), np.float32)
    row = np.arange(rows, dtype=np.uint32)
    pairs = (row, np.zeros(rows, np.uint16), np.ones(rows, np.float32))
    return Request(1, (1, 1), 7, 0, 100, {"rows": values, **more}, *pairs)


@pytest.mark.parametrize("rows", [1, 55, 56, 300])
def test_what_was_sent_with_a_frame_comes_out_of_it(rows):
    sent = request(rows, **trace_tensor(TRACEPARENT, rows))
    got = decode_request(b"".join(encode_request(sent)))
    assert traceparent_of(got) == TRACEPARENT
    np.testing.assert_array_equal(got.rows, sent.rows)


def test_a_frame_without_a_trace_or_with_something_else_under_its_name_has_none():
    assert traceparent_of(request(2)) is None
    assert traceparent_of(request(2, trace=np.zeros((2, 2), np.uint8))) is None
    assert traceparent_of(request(2, trace=np.zeros(2, np.float32))) is None


def test_bytes_that_are_no_trace_are_cut_and_do_no_harm():
    found = traceparent_of(request(2, trace=np.full(100_000, 0xFF, np.uint8)))
    assert found is not None
    assert len(found) <= 128
