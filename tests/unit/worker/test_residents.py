"""The budget is hard, and loading and unloading never disturb running frames."""

from __future__ import annotations

import dataclasses
import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from expertmesh_common.channel.frame import Request, Status, model_key
from expertmesh_common.errors import CorruptData, InvalidInput, Precondition
from expertmesh_common.graphs.expert import ExpertShape, resident_bytes
from expertmesh_worker.providers import provider
from expertmesh_worker.runtime.executing import Runtime
from expertmesh_worker.runtime.lanes import Lanes
from expertmesh_worker.runtime.residents import ExpertName, Residents
from models.made_experts import HIDDEN, SMALL, SMALL_INT4, reference, store_expert

ONE = resident_bytes(SMALL)


def name(index, layer=0):
    return ExpertName("m", layer, index)


def make(budget_bytes, lanes=1):
    places = Lanes(lanes)
    residents = Residents(budget_bytes, provider("cpu"), places)
    return residents, Runtime(residents, places)


def ask(runtime, index, rows, layer=0):
    n = len(rows)
    row, expert, weight = np.arange(n, dtype=np.uint32), np.full(n, index, np.uint16), np.ones(n, np.float32)
    return runtime.execute(Request(1, (1, 1), model_key("m"), layer, 5000, {"rows": rows}, row, expert, weight))


def test_a_load_beyond_the_budget_names_the_missing_bytes_and_changes_nothing(tmp_path):
    path, blob = store_expert(tmp_path, SMALL, 0)
    residents, runtime = make(2 * ONE + 10)
    residents.load(name(0), SMALL, path, blob.digest)
    residents.load(name(1), SMALL, path, blob.digest)

    with pytest.raises(Precondition, match=f"m/0/2 at fp32 needs {ONE} bytes, {ONE - 10} more than are free"):
        residents.load(name(2), SMALL, path, blob.digest)

    assert residents.used_bytes == 2 * ONE
    assert ask(runtime, 2, np.ones((1, HIDDEN), np.float32)).missing == (2,)
    residents.unload(name(0), "fp32")
    assert residents.load(name(2), SMALL, path, blob.digest) == ONE


def test_the_larger_of_the_declared_and_the_known_size_counts(tmp_path):
    path, blob = store_expert(tmp_path, SMALL, 0)
    residents, _ = make(10 * ONE)

    assert residents.load(name(0), SMALL, path, blob.digest, declared_bytes=5) == ONE
    assert residents.load(name(1), SMALL, path, blob.digest, declared_bytes=2 * ONE) == 2 * ONE
    assert residents.used_bytes == 3 * ONE


def test_a_load_that_fails_gives_its_bytes_back(tmp_path):
    path, blob = store_expert(tmp_path, SMALL_INT4, 0)
    residents, _ = make(10 * ONE)

    with pytest.raises(CorruptData):
        residents.load(name(0), SMALL, path, blob.digest)

    assert residents.used_bytes == 0
    assert list(residents) == []


def test_loading_again_what_is_here_changes_nothing(tmp_path):
    path, blob = store_expert(tmp_path, SMALL, 0)
    residents, _ = make(ONE)
    residents.load(name(0), SMALL, path, blob.digest)
    (before,) = residents

    residents.load(name(0), SMALL, path, blob.digest)

    assert list(residents) == [before]
    assert residents.used_bytes == ONE


def test_another_precision_replaces_the_one_that_is_here(tmp_path):
    full, full_blob = store_expert(tmp_path, SMALL, 0)
    small, small_blob = store_expert(tmp_path, SMALL_INT4, 1)
    residents, runtime = make(10 * ONE)
    residents.load(name(0), SMALL, full, full_blob.digest)

    residents.load(name(0), SMALL_INT4, small, small_blob.digest)
    residents.unload(name(0), "fp32")

    rows = np.random.default_rng(0).standard_normal((1, HIDDEN)).astype(np.float32)
    expected = reference(SMALL_INT4, 1, rows)
    assert residents.precision(name(0)) == "int4"
    assert residents.used_bytes == resident_bytes(SMALL_INT4)
    assert np.abs(ask(runtime, 0, rows).rows - expected).max() <= 0.03 * np.abs(expected).max()


@pytest.mark.parametrize(("first", "then"), [("exact", "fast"), ("fast", "exact")])
def test_what_is_here_with_other_numerics_is_loaded_anew(tmp_path, first, then):
    shapes = {numerics: dataclasses.replace(SMALL_INT4, numerics=numerics) for numerics in (first, then)}
    path, blob = store_expert(tmp_path, SMALL_INT4, 1)
    residents, _ = make(10 * ONE)
    residents.load(name(0), shapes[first], path, blob.digest)

    residents.load(name(0), shapes[then], path, blob.digest)

    (held,) = residents
    assert (held.numerics, held.instance.shape.numerics, residents.loads) == (then, then, 2)
    assert residents.used_bytes == resident_bytes(SMALL_INT4)


def test_experts_of_one_layer_have_one_size(tmp_path):
    wide = ExpertShape(2 * HIDDEN, 32, "fp32")
    path, blob = store_expert(tmp_path, SMALL, 0)
    other, other_blob = store_expert(tmp_path, wide, 0)
    residents, _ = make(10**9)
    residents.load(name(0), SMALL, path, blob.digest)

    with pytest.raises(InvalidInput, match="m/0/1 has hidden 128, its layer here has 64"):
        residents.load(name(1), wide, other, other_blob.digest)

    residents.load(name(1, layer=1), wide, other, other_blob.digest)


def test_an_unloaded_expert_is_really_gone(tmp_path):
    path, blob = store_expert(tmp_path, SMALL, 0)
    residents, runtime = make(ONE)
    residents.load(name(0), SMALL, path, blob.digest)
    assert ask(runtime, 0, np.ones((1, HIDDEN), np.float32)).status is Status.OK
    alive = weakref.ref(next(iter(residents)).instance)
    gc.disable()  # references alone must free it, at once
    try:
        residents.unload(name(0), "fp32")
        assert alive() is None
    finally:
        gc.enable()

    assert residents.used_bytes == 0
    assert ask(runtime, 0, np.ones((1, HIDDEN), np.float32)).missing == (0,)


def test_an_unload_waits_for_the_frame_that_uses_the_expert(tmp_path):
    path, blob = store_expert(tmp_path, SMALL, 0)
    lanes = Lanes(1)
    residents = Residents(ONE, provider("cpu"), lanes)
    residents.load(name(0), SMALL, path, blob.digest)
    lane = lanes.take(1.0)  # a frame that runs

    with ThreadPoolExecutor(1) as pool:
        unloading = pool.submit(residents.unload, name(0), "fp32")
        with pytest.raises(TimeoutError):
            unloading.result(timeout=0.05)
        assert residents.used_bytes == ONE
        lanes.give(lane)
        unloading.result(timeout=5)

    assert residents.used_bytes == 0


def test_concurrent_loads_never_exceed_the_budget(tmp_path):
    path, blob = store_expert(tmp_path, SMALL, 0)
    residents, _ = make(3 * ONE)

    def attempt(index):
        try:
            residents.load(name(index), SMALL, path, blob.digest)
        except Precondition:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        loaded = sum(pool.map(attempt, range(24)))

    assert loaded == 3
    assert residents.used_bytes == 3 * ONE


@pytest.mark.parametrize("lanes", [1, 3])
def test_frames_are_right_or_stale_while_experts_come_and_go(tmp_path, lanes):
    made = [store_expert(tmp_path, SMALL, seed) for seed in range(3)]
    residents, runtime = make(2 * ONE, lanes)
    rows = np.random.default_rng(0).standard_normal((4, HIDDEN)).astype(np.float32)
    expected = [reference(SMALL, seed, rows) for seed in range(3)]
    done = threading.Event()

    def ask_until_done(n):
        statuses = set()
        while not done.is_set():
            for index in range(3):
                reply = ask(runtime, index, rows[:n])
                statuses.add(reply.status)
                if reply.status is Status.OK:
                    np.testing.assert_allclose(reply.rows, expected[index][:n], atol=1e-5 * np.abs(expected).max())
        return statuses

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask_until_done, n) for n in (1, 1, 4, 4)]
        try:
            for step in range(150):
                path, blob = made[step % 3]
                residents.load(name(step % 3), SMALL, path, blob.digest)
                residents.unload(name((step - 1) % 3), "fp32")
        finally:
            done.set()
        statuses = set.union(*(task.result() for task in asking))

    assert statuses == {Status.OK, Status.STALE}
    assert residents.used_bytes == ONE
