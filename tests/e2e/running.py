"""`expertmesh up` as a person runs it: real processes, found and ended like a person would."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from expertmesh.types import Token

START_S = 60.0
STOP_S = 40.0


@dataclass
class RunningUp:
    """A started mesh; `said` is what it printed so far."""

    process: subprocess.Popen[bytes]
    ready_file: Path
    output: Path
    address: str = ""
    addresses: tuple[str, ...] = ()
    openai_base_urls: tuple[str, ...] = ()
    token: str | None = None
    tls_folder: Path | None = None
    pids: dict[str, int] = field(default_factory=dict)

    @property
    def said(self) -> str:
        return self.output.read_text(encoding="utf-8", errors="replace")

    def refresh(self) -> None:
        state = json.loads(self.ready_file.read_text(encoding="utf-8"))
        self.address, self.token = state["address"], state["token"]
        self.addresses = tuple(state["addresses"])
        self.openai_base_urls = tuple(state["openai_base_urls"])
        self.tls_folder = Path(state["tls_folder"]) if state["tls_folder"] else None
        self.pids = {entry["name"]: entry["pid"] for entry in state["processes"]}

    def stop(self, number: int = signal.SIGINT) -> int:
        """End it as a terminal does; returns its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(STOP_S)


@contextlib.contextmanager
def running_up(folder: Path, arguments: Sequence[str], prefix: Sequence[str] = ()) -> Iterator[RunningUp]:
    """`expertmesh up ARGUMENTS`, ready; ended afterwards. `prefix` goes before the command."""
    ready, output = folder / "ready.json", folder / "up.out"
    command = [
        *prefix, sys.executable, "-m", "expertmesh.cli.main", "up", *arguments,
        "--cache", str(folder / "cache"), "--logs", str(folder / "logs"), "--ready-file", str(ready),
    ]  # fmt: skip
    environment = {**os.environ, "EXPERTMESH_HOME": str(folder / "home"), "TMPDIR": str(folder / "tmp")}
    (folder / "tmp").mkdir()
    with output.open("wb") as file:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment)
    up = RunningUp(process, ready, output)
    try:
        until(lambda: ready.exists() or process.poll() is not None, START_S, lambda: up.said)
        assert process.poll() is None, up.said
        up.refresh()
        yield up
    finally:
        with contextlib.suppress(subprocess.TimeoutExpired):
            up.stop()
        if process.poll() is None:
            process.kill()
            process.wait()


def until(holds: Callable[[], bool], within_s: float, why: Callable[[], str] = lambda: "") -> float:
    """Wait for something to become true; returns the seconds it took."""
    began = time.monotonic()
    while not holds():
        assert time.monotonic() - began < within_s, f"it did not happen within {within_s:g} s; {why()}"
        time.sleep(0.02)
    return time.monotonic() - began


def gone(pid: int) -> bool:
    """Whether no such process runs any more."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def disturbed(stream: Iterable[Token], at: int, act: Callable[[], None]) -> tuple[list[int], float]:
    """Read an answer, call `act` when token `at` has arrived; the ids and the longest pause after that, in seconds."""
    ids: list[int] = []
    pauses: list[float] = []
    last = time.monotonic()
    for token in stream:
        now = time.monotonic()
        if token.position > at:
            pauses.append(now - last)
        ids.append(token.id)
        if token.position == at:
            act()
        last = time.monotonic()
    return ids, max(pauses)
