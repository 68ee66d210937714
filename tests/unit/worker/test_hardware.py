"""The probe measures with the real expert template, and believes a container's limits."""

from __future__ import annotations

import itertools

import psutil
import pytest

from expertmesh_worker.hardware import COPIES, REFERENCE, ROUNDS, measure_speed, memory
from expertmesh_worker.providers import provider


def test_speeds_follow_from_the_clock():
    ticks = itertools.count(step=COPIES / 1000)  # every round seems to take 1 ms an expert

    speed = measure_speed(provider("cpu"), clock=lambda: next(ticks))

    weights_bytes = 3 * REFERENCE.hidden * REFERENCE.width * 4
    assert speed.rows_per_s == pytest.approx(1000)
    assert speed.gemv_gb_per_s == pytest.approx(weights_bytes / 1e-3 / 1e9)
    assert speed.gemm_gflops == pytest.approx(2 * 64 * 3 * REFERENCE.hidden * REFERENCE.width / 1e-3 / 1e9)
    assert next(ticks) == pytest.approx(2 * 2 * (ROUNDS + 1) * COPIES / 1000)


def test_real_speeds_are_those_of_a_computer():
    speed = measure_speed(provider("cpu"))

    assert 0.05 < speed.gemv_gb_per_s < 5000
    assert speed.rows_per_s == pytest.approx(speed.gemv_gb_per_s * 1e9 / (3 * REFERENCE.hidden * REFERENCE.width * 4))


def test_memory_is_the_machines_without_a_limit(tmp_path):
    (tmp_path / "memory.max").write_text("max\n")

    assert memory(tmp_path).total_bytes == psutil.virtual_memory().total
    assert memory(tmp_path / "nothing").total_bytes == psutil.virtual_memory().total


def test_memory_is_the_containers_with_one(tmp_path):
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("400000\n")

    assert (memory(tmp_path).total_bytes, memory(tmp_path).free_bytes) == (1_000_000, 600_000)
