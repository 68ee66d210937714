"""Frames through the runtime: the right sums in the right order, and statuses instead of exceptions."""

from __future__ import annotations

import re
import time

import numpy as np
import pytest

from expertmesh_common.channel.frame import Request, Status, model_key
from expertmesh_worker.providers import Provider
from expertmesh_worker.runtime.executing import Runtime
from expertmesh_worker.runtime.residents import ExpertName, Residents
from models.made_experts import HIDDEN, SMALL, reference
from rigs.loaded_runtime import EXPERTS, LAYER, MODEL


def frame(rows, pairs, *, weight_on="output", reduce="sum", model=MODEL, layer=LAYER, deadline_ms=0):
    row, expert, weight = zip(*pairs, strict=True) if pairs else ((), (), ())
    return Request(
        seq=9, epoch=(1, 1), model=model_key(model), layer=layer, deadline_ms=deadline_ms, tensors={"rows": rows},
        row=np.array(row, np.uint32), expert=np.array(expert, np.uint16), weight=np.array(weight, np.float32),
        weight_on=weight_on, reduce=reduce,
    )  # fmt: skip


def expected_pairs(rows, pairs, weight_on):
    """float64 outputs, pair by pair."""
    out = np.zeros((len(pairs), HIDDEN))
    for p, (row, expert, weight) in enumerate(pairs):
        given = rows[row : row + 1].astype(np.float64)
        if weight_on == "input":
            out[p] = reference(SMALL, expert, given * weight)[0]
        else:
            out[p] = reference(SMALL, expert, given)[0] * weight
    return out


def random_rows(n, seed=0):
    return np.random.default_rng(seed).standard_normal((n, HIDDEN)).astype(np.float32)


def random_pairs(rows, seed, ones):
    random = np.random.default_rng(seed)
    every = [(r, e, 1.0 if ones else round(random.uniform(0.1, 2.0), 2)) for r in range(rows) for e in range(EXPERTS)]
    random.shuffle(every)
    return every[: max(1, len(every) * 2 // 3)]


@pytest.mark.parametrize("ones", [True, False])
@pytest.mark.parametrize("weight_on", ["input", "output"])
@pytest.mark.parametrize("n", [1, 2, 9])
def test_every_row_gets_the_weighted_sum_of_its_experts(runtime, n, weight_on, ones):
    rows, pairs = random_rows(n), random_pairs(n, n, ones)

    expected = np.zeros((n, HIDDEN))
    for (row, _, _), value in zip(pairs, expected_pairs(rows, pairs, weight_on), strict=True):
        expected[row] += value
    reply = runtime.execute(frame(rows, pairs, weight_on=weight_on))

    assert (reply.status, reply.seq, reply.rows.dtype) == (Status.OK, 9, np.float32)
    np.testing.assert_allclose(reply.rows, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("weight_on", ["input", "output"])
@pytest.mark.parametrize("n", [1, 7])
def test_rows_so_large_that_sums_overflow_are_answered_with_values_that_say_so(runtime, n, weight_on):
    rows, pairs = np.full((n, HIDDEN), 1e38, np.float32), [(r, e, 3e38) for r in range(n) for e in range(EXPERTS)]

    reply = runtime.execute(frame(rows, pairs, weight_on=weight_on))

    assert (reply.status, reply.message) == (Status.OK, "")
    assert not np.isfinite(reply.rows).all()


@pytest.mark.parametrize("weight_on", ["input", "output"])
@pytest.mark.parametrize("n", [1, 7])
def test_without_reduction_every_pair_gets_its_row_in_the_order_of_the_frame(runtime, n, weight_on):
    rows, pairs = random_rows(n), random_pairs(n, 5, ones=False)

    expected = expected_pairs(rows, pairs, weight_on)
    reply = runtime.execute(frame(rows, pairs, weight_on=weight_on, reduce="none"))

    np.testing.assert_allclose(reply.rows, expected, atol=1e-5 * np.abs(expected).max())


def test_the_order_of_pairs_does_not_change_a_bit(runtime):
    rows, pairs = random_rows(6), random_pairs(6, 1, ones=False)
    one_row = [pair for pair in pairs if pair[0] == 0]

    for data, some in ((rows, pairs), (rows[:1], one_row)):
        forward, backward = (runtime.execute(frame(data, p)).rows for p in (some, some[::-1]))
        assert np.array_equal(forward, backward)


def test_a_row_is_summed_the_same_alone_and_among_others(runtime):
    rows, pairs = random_rows(6), random_pairs(6, 2, ones=False)

    alone = runtime.execute(frame(rows[:1], [pair for pair in pairs if pair[0] == 0])).rows
    among = runtime.execute(frame(rows, pairs)).rows

    np.testing.assert_allclose(alone[0], among[0], atol=1e-6 * np.abs(among).max())


def test_rows_without_pairs_come_back_as_zeros(runtime):
    reply = runtime.execute(frame(random_rows(3), [(1, 2, 1.0)]))

    assert not reply.rows[[0, 2]].any()
    assert reply.rows[1].any()


@pytest.mark.parametrize("n", [0, 1, 4])
def test_a_frame_without_pairs_is_answered_with_zeros(runtime, n):
    reply = runtime.execute(frame(random_rows(n), []))

    assert reply.status is Status.OK
    assert np.array_equal(reply.rows, np.zeros((n, HIDDEN), np.float32))


def test_the_rows_of_a_frame_are_not_changed(runtime):
    rows = random_rows(3)
    rows.flags.writeable = False

    for weight_on in ("input", "output"):
        assert runtime.execute(frame(rows, random_pairs(3, 0, False), weight_on=weight_on)).status is Status.OK
        assert runtime.execute(frame(rows[:1], [(0, 1, 0.5)], weight_on=weight_on)).status is Status.OK
    assert np.array_equal(rows, random_rows(3))


def test_a_reply_is_not_overwritten_by_the_next_frame(runtime):
    first = runtime.execute(frame(random_rows(1), [(0, 0, 1.0)])).rows
    before = first.copy()

    runtime.execute(frame(random_rows(1, seed=8), [(0, 1, 1.0)]))

    assert np.array_equal(before, first)


@pytest.mark.parametrize(
    ("model", "layer", "experts", "missing"),
    [(MODEL, LAYER, (0, 9, 7, 9), (7, 9)), ("other", LAYER, (1,), (1,)), (MODEL, 4, (2, 0), (0, 2))],
)
def test_experts_that_are_not_here_are_listed(runtime, model, layer, experts, missing):
    pairs = [(row, expert, 1.0) for row, expert in enumerate(experts)]

    reply = runtime.execute(frame(random_rows(len(pairs)), pairs, model=model, layer=layer))

    assert (reply.status, reply.missing) == (Status.STALE, missing)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (random_rows(2).astype(np.float64), r"rows are float64 \[2, 64\], expected float32"),
        (random_rows(2).reshape(2, 8, 8), r"rows are float32 \[2, 8, 8\]"),
        (np.ones((2, HIDDEN + 1), np.float32), "rows have 65 columns, layer 3 has hidden 64"),
        (np.where(np.arange(2)[:, None] == 1, np.float32(np.nan), random_rows(2)), r"rows \[1\] of 2 hold NaN"),
        (np.full((1, HIDDEN), np.inf, np.float32), r"rows \[0\] of 1 hold NaN or infinite"),
    ],
)
def test_rows_that_cannot_be_computed_are_refused_and_the_runtime_lives(runtime, rows, message):
    reply = runtime.execute(frame(rows, [(0, 0, 1.0)]))

    assert reply.status is Status.INVALID
    assert re.search(message, reply.message)
    assert runtime.execute(frame(random_rows(1), [(0, 0, 1.0)])).status is Status.OK


@pytest.mark.parametrize("n", [1, 3])
def test_a_pair_that_occurs_twice_is_refused(runtime, n):
    reply = runtime.execute(frame(random_rows(n), [(0, 1, 1.0), (0, 1, 0.5)]))

    assert reply.status is Status.INVALID


def test_a_frame_that_finds_no_lane_before_its_deadline_says_so(runtime, lanes):
    held = lanes.take(1.0)
    start = time.monotonic()

    reply = runtime.execute(frame(random_rows(1), [(0, 0, 1.0)], deadline_ms=20))

    assert reply.status is Status.DEADLINE
    assert "20 ms" in reply.message
    assert time.monotonic() - start >= 0.02
    lanes.give(held)
    assert runtime.execute(frame(random_rows(1), [(0, 0, 1.0)], deadline_ms=1000)).status is Status.OK


class Broken(Provider):
    """Its sessions compute while they are warmed up, then fail."""

    def open(self, graph, weights_folder, **options):
        return FailingSession(super().open(graph, weights_folder, **options))


class FailingSession:
    def __init__(self, session):
        self._session = session
        self._left = 1

    def io_binding(self):
        return self._session.io_binding()

    def run_with_iobinding(self, binding):
        if self._left == 0:
            raise RuntimeError("out of order")
        self._left -= 1
        self._session.run_with_iobinding(binding)

    def run(self, names, feeds):
        raise RuntimeError("out of order")


@pytest.mark.parametrize("n", [1, 2])
def test_a_session_that_fails_is_a_status_and_frees_its_lane(blobs, lanes, n, caplog):
    residents = Residents(10**9, Broken("cpu", "CPUExecutionProvider", True), lanes)
    residents.load(ExpertName(MODEL, LAYER, 0), SMALL, blobs[0], "d")
    runtime = Runtime(residents, lanes)

    for _ in range(2):
        reply = runtime.execute(frame(random_rows(n), [(0, 0, 1.0)], deadline_ms=1000))

        assert reply.status is Status.FAILED
        assert "out of order" in reply.message
    assert "frame failed seq=9 layer=3" in caplog.text


def test_rows_and_time_are_counted_per_expert_and_in_total(runtime):
    runtime.execute(frame(random_rows(1), [(0, 0, 1.0), (0, 2, 1.0)]))
    runtime.execute(frame(random_rows(4), [(r, 2, 1.0) for r in range(4)]))
    runtime.execute(frame(random_rows(1), [(0, 77, 1.0)]))

    assert (runtime.work.frames, runtime.work.rows, runtime.work.queued_frames) == (2, 6, 0)
    held = {resident.name.index: resident.instance for resident in runtime.residents}
    assert [held[index].rows for index in range(EXPERTS)] == [1, 0, 5, 0, 0]
    assert held[2].busy_ms > 0
    assert held[1].busy_ms == 0
