"""Memory in huge pages: where it is asked for, what stays as it was, what is left alone."""

from __future__ import annotations

import mmap
import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from expertmesh_common.huge_pages import HUGE_BYTES, collapse, place_side_by_side

WITHOUT_RIGHTS = """
import os
from expertmesh_common.huge_pages import collapse
os.setgid(65534), os.setuid(65534)
try:
    open("/proc/self/pagemap").close()
    print("open")
except PermissionError:
    print("hidden", collapse())
"""
HELD = 4 * HUGE_BYTES
THP = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def needs_huge_pages() -> None:
    if not THP.exists() or "[never]" in THP.read_text():
        pytest.skip("this kernel gives no huge pages")


def held(filled: float) -> np.ndarray:
    """Bytes of an area of its own of which the first part of every huge page is written."""
    area = mmap.mmap(-1, HELD + HUGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    rows = np.frombuffer(area, np.uint8)
    start = -rows.ctypes.data % HUGE_BYTES
    rows = rows[start : start + HELD].reshape(-1, HUGE_BYTES)
    rows[:, : int(filled * HUGE_BYTES)] = 7
    return rows


def huge_bytes_at(place: int) -> int:
    """Of the area with this address, from the kernel."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, _, rest = line.partition("-")
        if rest and all(c in "0123456789abcdef" for c in first):
            inside = int(first, 16) <= place < int(rest.split()[0], 16)
        elif inside and line.startswith("AnonHugePages:"):
            return int(line.split()[1]) * 1024
    return 0


def told(function: str) -> str:
    """What a function of this module prints in a process of its own: all its memory is looked at."""
    code = f"from tests.unit.common.test_huge_pages import {function}; {function}()"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    return ran.stdout.strip()


def move_filled() -> None:
    rows = held(filled=1.0)
    moved = collapse()
    print(moved >= HELD, huge_bytes_at(rows.ctypes.data), bool((rows == 7).all()))


def move_half_filled() -> None:
    rows = held(filled=0.5)
    collapse()
    print(huge_bytes_at(rows.ctypes.data))


def test_memory_that_is_in_use_moves_and_keeps_its_contents() -> None:
    needs_huge_pages()
    assert told("move_filled") == f"True {HELD} True"


def test_memory_that_is_half_in_use_stays_because_the_rest_would_be_taken_too() -> None:
    needs_huge_pages()
    assert told("move_half_filled") == "0"


def test_without_the_kernels_help_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert collapse() == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give up its rights")
def test_a_process_that_may_not_see_its_own_memory_keeps_small_pages() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_RIGHTS], capture_output=True, text=True, check=False)

    if done.stdout == "open\n":
        pytest.skip("this kernel hides nothing from such a process")
    assert (done.stdout, done.stderr) == ("hidden 0\n", "")


def some_buffers() -> list[np.ndarray]:
    return [np.full(1_500_000, 7, np.uint8) for _ in range(4)]


def areas_of(buffers: list[np.ndarray]) -> list[str]:
    """In what kinds of areas of memory they lie."""
    lines = [line.split(maxsplit=5) for line in Path("/proc/self/maps").read_text().splitlines()]
    areas = [(*(int(end, 16) for end in area.split("-")), *name) for area, _, _, _, _, *name in lines]
    return [
        next(name[0].strip() if name else "own" for first, last, *name in areas if first <= b.ctypes.data < last)
        for b in buffers
    ]


def print_areas() -> None:
    before = some_buffers()  # held: the allocator learns from what is freed
    assert place_side_by_side()
    print(*areas_of(before), *areas_of(some_buffers()))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only this allocator can be told")
def test_buffers_smaller_than_a_huge_page_lie_side_by_side_when_asked_for() -> None:
    assert told("print_areas").split() == ["own"] * 4 + ["[heap]"] * 4
