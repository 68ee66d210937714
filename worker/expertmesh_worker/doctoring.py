"""What `expertmesh doctor` finds out about computing here: each provider is asked to compute something."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

from expertmesh.cli.doctor.findings import Asked, Finding, Level
from expertmesh_common.errors import MeshError
from expertmesh_worker.hardware import measure_speed
from expertmesh_worker.providers import provider, supported

AREA = "providers"


def check(asked: Asked) -> Iterator[Finding]:  # noqa: ARG001 - every check has this form
    """A line per provider; only the CPU must work, and a GPU that is there should."""
    for name in supported():
        yield _finding(name, gpu_here=shutil.which("nvidia-smi") is not None)


def _finding(name: str, *, gpu_here: bool) -> Finding:
    try:
        found = provider(name)
        speed = measure_speed(found)
    except MeshError as error:
        return _unusable(name, str(error), gpu_here=gpu_here)
    says = f"computes: {speed.rows_per_s:.0f} rows/s, reads {speed.gemv_gb_per_s:.1f} GB/s of weights"
    return Finding(AREA, name, "ok", says)


def _unusable(name: str, why: str, *, gpu_here: bool) -> Finding:
    if name == "cpu":
        return Finding(AREA, name, "fail", why, "install onnxruntime again: pip install 'expertmesh[worker]'")
    level: Level = "warn" if gpu_here else "ok"
    says = why if gpu_here else "not usable, and no NVIDIA GPU was found"
    return Finding(AREA, name, level, says, "workers here use --provider cpu until then" if gpu_here else "")
