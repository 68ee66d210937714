"""Work on slices of rows or documents on all cores.

One thread per core, each with a single-threaded BLAS: the many small products of attention would otherwise spend their
time at the barriers of BLAS's own threads, above all when another process wants a core too. numpy releases the
interpreter lock in products and in elementwise arithmetic alike, so both spread.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from threadpoolctl import threadpool_limits

__all__ = ["over_slices"]


def over_slices(work: Callable[[slice], None], count: int, size: int) -> None:
    """Call `work` with consecutive slices of `size` that cover range(count); errors are raised here."""
    slices = [slice(start, min(start + size, count)) for start in range(0, count, size)]
    with threadpool_limits(1), ThreadPoolExecutor(_cores()) as pool:
        for _ in pool.map(work, slices):
            pass


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
