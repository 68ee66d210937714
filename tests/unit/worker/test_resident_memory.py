"""The account of resident bytes is honest, and unloading gives the memory back to the system."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "models" / "resident_growth.py"
NOISE_BYTES = 6 * 2**20  # allocator pages and interpreter caches of a whole process


PRECISIONS = ["fp32", "fp16", "bf16", "int8", "int4"]


def measure(folder, precision, count, cycles, *, sizes=(576, 96), activation="swiglu", kind="plain"):
    command = [sys.executable, str(SCRIPT), str(folder), precision, *map(str, sizes), activation, kind]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run([*command, str(count), str(cycles)], check=True, stdout=subprocess.PIPE, env=environment)
    return json.loads(done.stdout)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_hundred_real_experts_take_no_more_memory_than_is_counted(tmp_path, precision):
    found = measure(tmp_path, precision, count=100, cycles=0)

    grown = found["full"] - found["empty"]
    assert 0.9 * found["counted"] <= grown <= 1.05 * found["counted"]
    assert found["end"] - found["empty"] <= NOISE_BYTES


@pytest.mark.parametrize("precision", ["fp16", "int8", "int4"])
def test_biases_clamps_and_blocks_of_128_are_counted(tmp_path, precision):
    found = measure(tmp_path, precision, 100, 0, sizes=(256, 128), activation="clamped-swiglu", kind="biased")

    grown = found["full"] - found["empty"]
    assert 0.9 * found["counted"] <= grown <= 1.05 * found["counted"]


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_thousand_loads_and_unloads_leave_the_memory_as_it_was(tmp_path, precision):
    found = measure(tmp_path, precision, count=50, cycles=1000)

    assert abs(found["cycled"] - found["full"]) <= 0.05 * found["full"] + NOISE_BYTES
    assert found["end"] - found["empty"] <= 0.05 * found["empty"] + NOISE_BYTES
