"""How many cores a process may keep busy: those it may run on, and no more than its control group pays for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

__all__ = ["usable_cores"]

_CGROUP: Final = Path("/sys/fs/cgroup")


def usable_cores(cgroup: Path = _CGROUP) -> int:
    """At least 1. `cgroup` is the folder of the control group (version 2); without one only affinity counts."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(allowed, int(_quota(cgroup, allowed))))


def _quota(cgroup: Path, unlimited: float) -> float:
    """Cores' worth of time per time; the file holds `max` or microseconds, then the period in microseconds."""
    try:
        granted, period = (cgroup / "cpu.max").read_text(encoding="ascii").split()
        return unlimited if granted == "max" else int(granted) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return unlimited
