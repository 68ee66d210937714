"""Weights in huge pages, asked for once they are loaded.

Decoding reads every weight of a step once. With pages of 4 KiB one stream of reads gets about half of what memory
gives, because address translation misses its cache. An allocator that takes huge pages from the start is no way out:
buffers that come and go would be cleared 2 MiB at a time. So what stays is moved when it is in place, by the kernel
(MADV_COLLAPSE, Linux 6.1 and newer); elsewhere nothing happens.
"""

from __future__ import annotations

import array
import ctypes
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

__all__ = ["HUGE_BYTES", "collapse", "place_side_by_side"]

HUGE_BYTES = 2 << 20
LEAST_SHARE = 0.9
"""Of a huge page's small pages that must be in memory already: filling the rest makes the process larger."""

SIDE_BY_SIDE_BYTES = 32 << 20
"""Buffers up to this size lie beside others; the most that the allocator takes."""

_M_MMAP_THRESHOLD = -3
_MADV_COLLAPSE = 25
_PRESENT = 1 << 63

log = logging.getLogger(__name__)


def collapse() -> int:
    """Move this process's memory into huge pages where nearly all of it is in use; returns the bytes that lie in them.

    Takes about 1.5 s per gigabyte. Safe at any time: contents and addresses stay.
    """
    madvise = _madvise()
    if madvise is None:
        return 0
    try:
        places = _full_places()
    except OSError as error:  # sandboxes, and processes that gave up rights
        log.debug("weights stay in small pages, the kernel does not say where memory lies: %s", error)
        return 0
    moved: int = HUGE_BYTES * sum(madvise(place, HUGE_BYTES, _MADV_COLLAPSE) == 0 for place in places)
    log.debug("%d MB lie in huge pages", moved // 1_000_000)
    return moved


def place_side_by_side() -> bool:
    """Have the allocator put buffers of weights beside each other from now on; whether it does (glibc).

    By itself it gives each of those between 128 KiB and 32 MiB an area of its own, and where that is smaller than a
    huge page there is nothing to move. For processes whose buffers stay: freed ones of this size are taken back by
    `malloc_trim` only.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(_M_MMAP_THRESHOLD, SIDE_BY_SIDE_BYTES))


def _full_places() -> list[int]:
    """Addresses of huge-page-sized pieces of private anonymous memory that is in use."""
    page_bytes = os.sysconf("SC_PAGE_SIZE")
    least = int(LEAST_SHARE * HUGE_BYTES / page_bytes)
    found = []
    with Path("/proc/self/pagemap").open("rb", buffering=0) as pages:
        for place in [p for first, last in _anonymous_areas() for p in range(first, last, HUGE_BYTES)]:
            pages.seek(place // page_bytes * 8)
            entries = array.array("Q", pages.read(HUGE_BYTES // page_bytes * 8))
            if sum(entry >= _PRESENT for entry in entries) >= least:
                found.append(place)
    return found


def _anonymous_areas() -> Iterator[tuple[int, int]]:
    """First and last address, in whole huge pages, of writable private memory that no file is behind."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        area, rights, _, _, inode, *name = line.split(maxsplit=5)
        if rights != "rw-p" or inode != "0" or (name and name[0].startswith("[stack")):
            continue
        first, last = (int(end, 16) for end in area.split("-"))
        first, last = -(-first // HUGE_BYTES) * HUGE_BYTES, last // HUGE_BYTES * HUGE_BYTES
        if first < last:
            yield first, last


def _madvise() -> ctypes._NamedFuncPointer | None:
    if sys.platform != "linux":
        return None
    found = getattr(ctypes.CDLL(None), "madvise", None)
    if found is not None:
        found.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return found
