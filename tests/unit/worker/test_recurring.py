"""Frames that recur: the same bytes back as on the long way, until anything that they rest on has changed."""

from __future__ import annotations

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from expertmesh_common.channel.frame import Request, Status, decode_reply, encode_request, model_key
from expertmesh_worker.channel.answering import answer
from expertmesh_worker.runtime.lanes import Lanes
from expertmesh_worker.runtime.residents import ExpertName
from models.made_experts import HIDDEN
from rigs.loaded_runtime import EXPERTS, LAYER, MODEL, loaded_runtime


def frame(seed=0, experts=(0, 2, 3), weights=None, *, seq=1, row=None, rows=1, epoch=(1, 1), deadline_ms=500, **more):
    given = np.random.default_rng(seed).standard_normal((rows, HIDDEN)).astype(np.float32) if row is None else row
    request = Request(
        seq=seq, epoch=epoch, model=model_key(MODEL), layer=LAYER, deadline_ms=deadline_ms, tensors={"rows": given},
        row=np.zeros(len(experts), np.uint32), expert=np.array(experts, np.uint16),
        weight=np.array(weights or [1.0] * len(experts), np.float32), **more,
    )  # fmt: skip
    return memoryview(b"".join(encode_request(request)))


def long_way(runtime, data):
    return b"".join(answer(runtime, data).chunks)


@pytest.fixture(autouse=True)
def _as_in_a_connection():
    with np.errstate(over="ignore", invalid="ignore"):
        yield


def learnt(runtime, data):
    long_way(runtime, data)
    runtime.recurring.learn(data)
    return runtime


@pytest.mark.parametrize("experts", [(1,), (0, 4), (0, 1, 2, 3, 4)])
@pytest.mark.parametrize("weights", [None, [0.3, 1.0, 0.7, 2.0, 0.1]])
@pytest.mark.parametrize("weight_on", ["input", "output"])
def test_a_frame_that_recurs_gets_the_same_bytes_as_on_the_long_way(runtime, experts, weights, weight_on):
    weights = weights and weights[: len(experts)]
    learnt(runtime, frame(experts=experts, weights=weights, weight_on=weight_on))

    for seed in range(1, 6):
        data = frame(seed, experts, weights, weight_on=weight_on, seq=2**40 + seed, deadline_ms=seed)
        assert runtime.recurring.answer(data) == long_way(runtime, data)


@pytest.mark.parametrize("weight_on", ["input", "output"])
def test_one_lesson_per_number_of_pairs_serves_all_experts_with_all_weights(runtime, weight_on):
    for pairs in range(1, EXPERTS + 1):
        learnt(runtime, frame(experts=range(pairs), weight_on=weight_on))
    heads, random = len(runtime.residents.recurring), np.random.default_rng(2)

    for seed in range(150):
        experts = sorted(random.choice(EXPERTS, random.integers(1, EXPERTS + 1), replace=False).tolist())
        weights = random.choice([1.0, 0.0, -1.5, 1e-30, random.standard_normal()], len(experts)).tolist()
        data = frame(seed, experts, weights, weight_on=weight_on)
        assert runtime.recurring.answer(data) == long_way(runtime, data)
        runtime.recurring.learn(data)
    assert len(runtime.residents.recurring) == heads


def test_weights_on_the_input_and_on_the_output_are_told_apart(runtime):
    for weight_on in ("input", "output"):
        learnt(runtime, frame(weight_on=weight_on))
    answers = [runtime.recurring.answer(frame(3, weights=[2.0, 3.0, 4.0], weight_on=on)) for on in ("input", "output")]

    assert answers[0] != answers[1]


@pytest.mark.parametrize("experts", [(0, 77), (5, 6)])
def test_experts_that_are_not_here_go_the_long_way_and_are_listed(runtime, experts):
    learnt(runtime, frame(experts=(0, 1)))
    data = frame(1, experts)

    assert runtime.recurring.answer(data) is None
    assert decode_reply(long_way(runtime, data)).missing == tuple(e for e in experts if e >= EXPERTS)


def test_an_expert_that_is_asked_twice_goes_the_long_way_and_is_refused(runtime):
    learnt(runtime, frame(experts=(0, 1)))
    data = frame(1, (1, 1))

    assert runtime.recurring.answer(data) is None
    assert decode_reply(long_way(runtime, data)).status is Status.INVALID


def test_frames_are_counted_on_either_way(runtime):
    learnt(runtime, frame())
    before = runtime.work

    assert runtime.recurring.answer(frame(1)) is not None

    assert (runtime.work.frames, runtime.work.rows) == (before.frames + 1, before.rows + 3)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_row_with_values_that_are_no_numbers_goes_the_long_way_and_is_refused(runtime, bad):
    learnt(runtime, frame())
    row = np.ones((1, HIDDEN), np.float32)
    row[0, 17] = bad
    data = frame(row=row)

    assert runtime.recurring.answer(data) is None
    assert decode_reply(long_way(runtime, data)).status is Status.INVALID


def test_a_huge_but_finite_row_still_has_an_answer(runtime):
    learnt(runtime, frame())
    data = frame(row=np.full((1, HIDDEN), 1e30, np.float32))

    assert runtime.recurring.answer(data) is None
    assert decode_reply(long_way(runtime, data)).status is Status.OK


def test_pairs_for_a_row_that_is_not_there_go_the_long_way(runtime):
    learnt(runtime, frame())
    data = bytearray(frame(1))
    data[-3 * 10] = 1  # the first pair's row

    assert runtime.recurring.answer(memoryview(data)) is None
    assert decode_reply(long_way(runtime, memoryview(data))).status is Status.INVALID


@pytest.mark.parametrize("broken", [slice(0, 40), slice(0, 97), slice(0, -1)])
def test_a_cut_frame_goes_the_long_way(runtime, broken):
    learnt(runtime, frame())

    assert runtime.recurring.answer(frame(1)[broken]) is None


@pytest.mark.parametrize(
    "other",
    [{"rows": 2}, {"reduce": "none"}, {"experts": (3, 1)}],
    ids=["two rows", "no sum", "descending experts"],
)
def test_frames_of_another_kind_are_not_answered(runtime, other):
    learnt(runtime, frame(**other))

    assert runtime.recurring.answer(frame(1, **other)) is None


def test_after_an_unload_the_frame_is_stale_and_the_expert_is_freed(runtime):
    learnt(runtime, frame())
    instance = weakref.ref(runtime.residents.layer(model_key(MODEL), LAYER)[2])

    runtime.residents.unload(ExpertName(MODEL, LAYER, 2), "fp32")

    assert runtime.recurring.answer(frame(1)) is None
    reply = decode_reply(long_way(runtime, frame(1)))
    assert (reply.status, reply.missing) == (Status.STALE, (2,))
    gc.collect()
    assert instance() is None


def test_while_every_lane_is_busy_frames_go_the_long_way(runtime):
    learnt(runtime, frame())
    lane = runtime._lanes.take(0)

    assert runtime.recurring.answer(frame(1)) is None

    runtime._lanes.give(lane)
    assert runtime.recurring.answer(frame(1)) is not None


def test_frames_on_several_lanes_at_once_do_not_disturb_each_other(blobs):
    runtime = loaded_runtime(blobs, Lanes(2))
    for weight_on in ("input", "output"):
        learnt(runtime, frame(weight_on=weight_on))
    wanted = [frame(s, weights=[0.5, s, 2.0], weight_on=on) for s in range(1, 9) for on in ("input", "output")]
    expected = [long_way(runtime, data) for data in wanted]

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(runtime.recurring.answer, wanted * 25))

    assert found == expected * 25
