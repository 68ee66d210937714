"""What every way of running a trunk must do, experts outside or inside. A new one joins by a line in `EXECUTORS`."""

from functools import partial

import ml_dtypes
import numpy as np
import pytest

from expertmesh_common.bundle.blobs import Bundle
from expertmesh_common.errors import InvalidInput
from expertmesh_controller.gateway.trunk.executor import Chunk, TrunkExecutor, Work
from expertmesh_controller.gateway.trunk.local import LocalTrunk
from models import tiny_bundle as tiny
from models.numpy_plane import NumpyPlane

EXECUTORS = {
    "segments": LocalTrunk,
    "whole": partial(LocalTrunk, stops=()),
    "middle elsewhere": partial(LocalTrunk, stops=(1,)),
    "ends elsewhere": partial(LocalTrunk, stops=(0, 2)),
    "first here": partial(LocalTrunk, stops=(1, 2)),
}
NOBODY = np.empty(0, np.int64), np.empty(0, np.int32)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Bundle:
    return Bundle(tiny.make_tiny_bundle(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(params=EXECUTORS)
def trunk(request, bundle: Bundle) -> TrunkExecutor:
    return EXECUTORS[request.param](bundle, "fp32", slots=4, context_tokens=128, chunk_tokens=32)


@pytest.fixture
def plane(bundle: Bundle) -> NumpyPlane:
    return NumpyPlane(bundle)


def step(trunk: TrunkExecutor, plane: NumpyPlane, work: Work) -> np.ndarray:
    rows, combined = trunk.begin(work), None
    for layer in trunk.stops:
        rows = rows if combined is None else trunk.advance(layer, combined)
        combined = plane.run(layer, rows, np.inf)
    return trunk.finish(combined).copy()


def prefill(trunk: TrunkExecutor, plane: NumpyPlane, slot: int, ids: list[int]) -> np.ndarray:
    size = trunk.limits.chunk_tokens
    for start in range(0, len(ids), size):
        part = np.asarray(ids[start : start + size])
        logits = step(trunk, plane, Work(*NOBODY, Chunk(slot, start, part, start + size >= len(ids))))
    return logits[0]


def decode(ids: list[int], cached: list[int], chunk: Chunk | None = None) -> Work:
    return Work(np.asarray(ids, np.int64), np.asarray(cached, np.int32), chunk)


def assert_same(got: np.ndarray, want: np.ndarray) -> None:
    assert got.shape == want.shape
    assert np.abs(got - want).max() <= 1e-5 * max(1.0, np.abs(want).max())


def test_a_prompt_longer_than_a_chunk_ends_with_its_last_logits(trunk, plane, bundle) -> None:
    ids = list(range(30, 105))
    assert_same(prefill(trunk, plane, 2, ids), tiny.dense_logits(bundle, ids)[-1])


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("embedding", [np.float16, ml_dtypes.bfloat16])
def test_an_embedding_of_16_bits_gives_the_logits_of_its_own_values(tmp_path, executor, embedding) -> None:
    bundle, ids = Bundle(tiny.make_tiny_bundle(tmp_path, embedding=embedding)), list(range(30, 75))
    trunk = EXECUTORS[executor](bundle, "fp32", slots=4, context_tokens=128, chunk_tokens=32)
    assert_same(prefill(trunk, NumpyPlane(bundle), 0, ids), tiny.dense_logits(bundle, ids)[-1])


def test_a_chunk_that_does_not_end_its_prompt_gives_no_logits(trunk, plane) -> None:
    work = Work(*NOBODY, Chunk(0, 0, np.arange(8), ends_prompt=False))
    assert step(trunk, plane, work).shape == (0, tiny.VOCABULARY)


def test_decode_rows_and_a_chunk_share_a_step(trunk, plane, bundle) -> None:
    first, second, third = [9, 8, 7], list(range(50, 90)), [77, 3, 4, 5]
    prefill(trunk, plane, 0, first)
    prefill(trunk, plane, 1, second)
    logits = step(trunk, plane, decode([11, 12], [3, 40], Chunk(3, 0, np.asarray(third), ends_prompt=True)))
    for row, ids in zip(logits, ([*first, 11], [*second, 12], third), strict=True):
        assert_same(row, tiny.dense_logits(bundle, ids)[-1])


def test_a_moved_slot_goes_on_as_if_it_had_always_been_there(trunk, plane, bundle) -> None:
    kept, moved = [5, 6, 7], list(range(60, 97))
    prefill(trunk, plane, 0, kept)
    prefill(trunk, plane, 3, moved)
    trunk.move(3, trunk.limits.slots, len(moved))
    trunk.move(trunk.limits.slots, 1, len(moved))
    logits = step(trunk, plane, decode([20, 21], [len(kept), len(moved)]))
    assert_same(logits[1], tiny.dense_logits(bundle, [*moved, 21])[-1])
    assert_same(logits[0], tiny.dense_logits(bundle, [*kept, 20])[-1])


def test_the_same_work_twice_gives_the_same_logits(trunk, plane) -> None:
    ids = list(range(40, 60))
    prefill(trunk, plane, 0, ids)
    work = decode([33], [len(ids)], Chunk(1, 0, np.arange(5), ends_prompt=True))
    rows = trunk.begin(work)  # abandoned after a stop or two, as when a worker is lost
    for first, second in zip(trunk.stops[:1], trunk.stops[1:2], strict=False):
        trunk.advance(second, plane.run(first, rows, np.inf))
    np.testing.assert_array_equal(step(trunk, plane, work), step(trunk, plane, work))


def test_every_slot_may_be_busy_while_a_prompt_ends(trunk, plane, bundle) -> None:
    for slot in range(3):
        prefill(trunk, plane, slot, [slot + 1, 2, 3])
    logits = step(trunk, plane, decode([4, 5, 6], [3, 3, 3], Chunk(3, 0, np.asarray([70, 71]), ends_prompt=True)))
    assert_same(logits[3], tiny.dense_logits(bundle, [70, 71])[-1])
    assert_same(logits[2], tiny.dense_logits(bundle, [3, 2, 3, 6])[-1])


def test_any_rows_of_a_chunk_can_be_asked_for_their_logits_beside_decode_rows(trunk, plane, bundle) -> None:
    other, ids = [9, 8, 7], list(range(100, 130))
    prefill(trunk, plane, 0, other)
    logits = step(trunk, plane, decode([11], [3], Chunk(2, 0, np.asarray(ids[:20]), ends_prompt=False)))
    assert_same(logits[0], tiny.dense_logits(bundle, [*other, 11])[-1])
    expected = tiny.dense_logits(bundle, ids)
    rows = trunk.limits.head_rows
    for first in range(0, 20, rows):
        count = min(rows, 20 - first)
        assert_same(trunk.chunk_logits(first, count).copy(), expected[first : first + count])
    step(trunk, plane, Work(*NOBODY, Chunk(2, 20, np.asarray(ids[20:]), ends_prompt=False)))
    assert_same(trunk.chunk_logits(7, 3).copy(), expected[27:30])


def test_a_context_beyond_the_model_is_refused(bundle) -> None:
    with pytest.raises(InvalidInput, match="allows up to 512"):
        LocalTrunk(bundle, "fp32", context_tokens=513)
