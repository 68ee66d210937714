"""A mesh of child processes for the demo, started by the same command that a person would use."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from expertmesh_common.errors import Unavailable

__all__ = ["DemoMesh", "running_mesh"]

_START_S = 120.0
_LOOK_EVERY_S = 0.05
_STOP_S = 40.0


@dataclass(frozen=True, slots=True)
class DemoMesh:
    """Where the mesh answers, and its processes by name."""

    address: str
    processes: dict[str, int]


@contextmanager
def running_mesh(bundle: Path, workers: int, precision: str, folder: Path) -> Iterator[DemoMesh]:
    """`expertmesh up` over unix sockets in `folder`; it and all its processes are gone afterwards.

    Raises:
        Unavailable: it did not start; the message ends with what it said.

    """
    ready = folder / "ready.json"
    # By module name, as a process: the forge imports nothing of the controller.
    command = [
        sys.executable, "-m", "expertmesh_controller.local.child", str(os.getpid()),
        "up", "--model", str(bundle), "--workers", str(workers), "--precision", precision,
        "--listen", f"unix:{folder}/mesh.sock", "--transport", "unix", "--store", "memory",
        "--cache", str(bundle.with_name(f"{bundle.name}-cache")), "--ready-file", str(ready),
    ]  # fmt: skip
    log = folder / "up.log"
    with log.open("wb") as output:
        # A session of its own: Ctrl-C reaches this process alone, which then ends the mesh in order.
        up = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )  # fmt: skip
        try:
            yield _wait_ready(up, ready, log)
        finally:
            _stop(up)


def _wait_ready(up: subprocess.Popen[bytes], ready: Path, log: Path) -> DemoMesh:
    pause = Event()
    for _ in range(int(_START_S / _LOOK_EVERY_S)):
        if ready.exists():
            state = json.loads(ready.read_text(encoding="utf-8"))
            return DemoMesh(state["address"], {process["name"]: process["pid"] for process in state["processes"]})
        if up.poll() is not None:
            break
        pause.wait(_LOOK_EVERY_S)
    said = log.read_text(encoding="utf-8", errors="replace").strip() or "nothing"
    raise Unavailable(f"the mesh did not start; it said: {said}")


def _stop(up: subprocess.Popen[bytes]) -> None:
    if up.poll() is None:
        up.send_signal(signal.SIGTERM)
    try:
        up.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        up.kill()  # its children notice, and end by themselves
        up.wait()
