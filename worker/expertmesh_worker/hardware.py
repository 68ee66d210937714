"""What this machine is: cores, memory, and the speed at which it really runs experts, measured when a worker joins."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import psutil

from expertmesh_common.bundle.tensors import encode_tensors
from expertmesh_common.graphs.expert import ExpertShape, tensor_layout
from expertmesh_worker.providers import Provider
from expertmesh_worker.runtime.instance import ExpertInstance
from expertmesh_worker.runtime.lanes import Lane

# The reference expert of every worker, so that speeds compare: small enough for any of them, and enough copies that a
# row finds its weights in memory rather than in the second-level cache, as in serving.
REFERENCE: Final = ExpertShape(hidden=576, width=96, precision="fp32")
COPIES: Final = 12
ROUNDS: Final = 9
MANY_ROWS: Final = 64

_CGROUP: Final = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes that this process may use: the machine's, or less where a container limits it."""

    total_bytes: int
    free_bytes: int


@dataclass(frozen=True, slots=True)
class Speed:
    """Medians over a few rounds of the reference expert."""

    gemv_gb_per_s: float  # weights read per second at one row
    gemm_gflops: float  # at 64 rows
    rows_per_s: float  # at one row


def memory(cgroup: Path = _CGROUP) -> Memory:
    """What the machine has, cut to the limit of the control group (version 2) in `cgroup`."""
    machine = psutil.virtual_memory()
    limit, used = (_number(cgroup / name) for name in ("memory.max", "memory.current"))
    if limit is None or limit >= machine.total:
        return Memory(machine.total, machine.available)
    return Memory(limit, min(machine.available, max(0, limit - (used or 0))))


def measure_speed(provider: Provider, clock: Callable[[], float] = time.perf_counter) -> Speed:
    """Run the reference expert for a few tens of milliseconds.

    Raises:
        Precondition: the provider does not come up.

    """
    lane = Lane(0)
    with tempfile.TemporaryDirectory(prefix="expertmesh-probe-") as folder:
        experts = [_reference(Path(folder), number, provider, lane) for number in range(COPIES)]
    one = _median_s(clock, experts, lambda expert: expert.seats[0].one())
    rows = np.ones((MANY_ROWS, REFERENCE.hidden), np.float32)
    many = _median_s(clock, experts, lambda expert: expert.seats[0].compute(rows))
    weights = sum(view.size_bytes for view in tensor_layout(REFERENCE))
    return Speed(
        gemv_gb_per_s=weights / one / 1e9,
        gemm_gflops=2 * MANY_ROWS * (weights / 4) / many / 1e9,
        rows_per_s=1 / one,
    )


def _reference(folder: Path, number: int, provider: Provider, lane: Lane) -> ExpertInstance:
    random = np.random.default_rng(number)
    tensors = {
        view.name: (random.standard_normal(view.shape) * 0.05).astype(np.float32) for view in tensor_layout(REFERENCE)
    }
    path = folder / f"reference-{number}"
    path.write_bytes(encode_tensors(tensors))
    return ExpertInstance(REFERENCE, path, provider, [lane])


def _median_s(
    clock: Callable[[], float], experts: list[ExpertInstance], run: Callable[[ExpertInstance], object]
) -> float:
    """Seconds of one run; the first round warms up and does not count."""
    rounds = []
    for _ in range(ROUNDS + 1):
        start = clock()
        for expert in experts:
            run(expert)
        rounds.append((clock() - start) / len(experts))
    return max(statistics.median(rounds[1:]), 1e-9)


def _number(path: Path) -> int | None:
    """The number in a control file; None if there is none, or no limit."""
    try:
        text = path.read_text(encoding="ascii").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None
