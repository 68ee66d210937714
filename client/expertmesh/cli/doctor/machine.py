"""Cores, memory and disk: read in one function, judged in pure ones."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from expertmesh.cli.doctor.findings import Asked, Finding, Level
from expertmesh.local_access import home_folder

AREA = "machine"
GB = 1e9
LITTLE_MEMORY_BYTES, TOO_LITTLE_MEMORY_BYTES = 2e9, 0.5e9
LITTLE_DISK_BYTES, TOO_LITTLE_DISK_BYTES = 5e9, 0.5e9


@dataclass(frozen=True, slots=True)
class Machine:
    """`folder` is the nearest existing folder of where blobs are cached; memory is None where it cannot be told."""

    cores: int
    memory_bytes: int | None
    free_memory_bytes: int | None
    folder: Path
    free_disk_bytes: int
    writable: bool


def check(asked: Asked) -> Iterator[Finding]:  # noqa: ARG001 - every check has this form
    """What a worker or a controller here would have to live on."""
    return judged(this_machine(home_folder()))


def this_machine(home: Path) -> Machine:
    """What there is now."""
    folder = next(path for path in (home.absolute(), *home.absolute().parents) if path.exists())
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    total, free = _memory()
    return Machine(cores, total, free, folder, shutil.disk_usage(folder).free, os.access(folder, os.W_OK))


def judged(machine: Machine) -> Iterator[Finding]:
    """Lines about a machine."""
    few = machine.cores < 2
    yield Finding(
        AREA, "cores", "warn" if few else "ok", f"{machine.cores} for this process",
        "one core is enough for a worker; run the controller on a machine with two or more" if few else "",
    )  # fmt: skip
    yield _memory_finding(machine)
    level = _level(machine.free_disk_bytes, LITTLE_DISK_BYTES, TOO_LITTLE_DISK_BYTES)
    yield Finding(
        AREA, "disk", level, f"{machine.free_disk_bytes / GB:.1f} GB free in {machine.folder}",
        "" if level == "ok" else "bundles and cached blobs need room: free some, or set EXPERTMESH_HOME elsewhere",
    )  # fmt: skip
    if not machine.writable:
        advice = "make it writable, or set EXPERTMESH_HOME to a folder that is"
        yield Finding(AREA, "home", "fail", f"{machine.folder} cannot be written", advice)


def _memory_finding(machine: Machine) -> Finding:
    if machine.memory_bytes is None or machine.free_memory_bytes is None:
        return Finding(AREA, "memory", "warn", "cannot be told on this system", "give workers a --budget")
    level = _level(machine.free_memory_bytes, LITTLE_MEMORY_BYTES, TOO_LITTLE_MEMORY_BYTES)
    says = f"{machine.free_memory_bytes / GB:.1f} of {machine.memory_bytes / GB:.1f} GB free"
    advice = "" if level == "ok" else "a worker takes 60 % of what is free: end other programs, or set --budget"
    return Finding(AREA, "memory", level, says, advice)


def _level(value: float, little: float, too_little: float) -> Level:
    return "fail" if value < too_little else "warn" if value < little else "ok"


def _memory() -> tuple[int | None, int | None]:
    """(total, available) bytes; the kernel's own words where it has them."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        found = {line.partition(":")[0]: int(line.split()[1]) * 1024 for line in lines}
        return found["MemTotal"], found["MemAvailable"]
    except (OSError, KeyError, ValueError, IndexError):
        return None, None
