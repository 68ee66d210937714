"""A mesh in parts: a controller and workers as processes of their own, so that a test does to each what it wants.

Nobody restarts anything here; `expertmesh up` does, see tests/e2e/running.py.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from e2e.running import until
from expertmesh import Client, ExpertmeshError, ResumePolicy
from expertmesh.types import Node
from expertmesh_controller.local.reaching import free_port

PROMPT = [72, 101, 108, 108, 111, 32, 119, 111, 114, 108, 100]
LONG = 400  # tokens; the engine runs ahead of who reads, so an answer must be long to be met in its middle
SHORT = 24
START_S = 60.0
NO_REPAIR = ResumePolicy(attempts=1, first_attempts=1)
"""Whatever the SDK would repair counts as lost."""


@dataclass
class Part:
    """A process and what it logged."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def said(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)

    def freeze(self) -> None:
        self.process.send_signal(signal.SIGSTOP)
        os.waitpid(self.process.pid, os.WUNTRACED)  # until every thread has stopped

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def end(self) -> int:
        """Ask it to end, as a supervisor does; returns its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)

    def orders_done(self, action: str) -> int:
        """How many orders it carried out, such as `load`."""
        return len(re.findall(rf"\b{action} \S+ at \S+ done", self.said))


@dataclass
class Parts:
    """Starts processes; `address` is the controller's, also after a restart. `prefix` goes before a command."""

    bundle: Path
    folder: Path
    host: str = "127.0.0.1"
    port: int = 0
    token: str | None = None
    started: list[Part] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.port == 0:
            self.port = free_port("127.0.0.1")

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    def controller(self, *arguments: str, store: str = "memory", prefix: Sequence[str] = ()) -> Part:
        """Start it; the data of an embedded store stays from one start to the next."""
        return self._start(
            "controller", prefix,
            "controller", "--model", str(self.bundle), "--listen", self.address,
            "--store", store, "--data", str(self.folder / "store"), *arguments,
        )  # fmt: skip

    def worker(self, name: str, *arguments: str, budget: str | int = "8MB", prefix: Sequence[str] = ()) -> Part:
        listen = () if "--listen" in arguments or prefix else ("--listen", "127.0.0.1:0")
        return self._start(
            name, prefix,
            "worker", "--join", self.address, "--id", name, "--budget", str(budget),
            "--cache", str(self.folder / f"cache-{name}"), *listen, *arguments,
        )  # fmt: skip

    def client(self, resume: ResumePolicy | None = None) -> Client:
        return Client(self.address, token=self.token, **({} if resume is None else {"resume": resume}))

    def _start(self, name: str, prefix: Sequence[str], *arguments: str) -> Part:
        home, temporary = self.folder / "home", self.folder / "t"
        temporary.mkdir(exist_ok=True)
        environment = {**os.environ, "EXPERTMESH_HOME": str(home), "TMPDIR": str(temporary)}
        environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        if self.token is not None:
            environment["EXPERTMESH_TOKEN"] = self.token
        log = self.folder / f"{name}-{len(self.started)}.log"
        # As a child of `up`, so that no process outlives this one, however it ends.
        command = [*prefix, sys.executable, "-m", "expertmesh_controller.local.child", str(os.getpid()), *arguments]
        with log.open("wb") as file:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment)
        self.started.append(Part(process, log))
        return self.started[-1]

    def close(self) -> None:
        """End what is left, workers first."""
        left = [part for part in reversed(self.started) if part.process.poll() is None]
        for part in left:
            part.thaw()
            part.process.terminate()
        for part in left:
            with contextlib.suppress(subprocess.TimeoutExpired):
                part.process.wait(15)
            if part.process.poll() is None:
                part.kill()

    def story(self) -> str:
        """The ends of all logs, for a failed test."""
        return "\n".join(f"== {p.log.name}\n{p.said[-2000:]}" for p in self.started)


@contextlib.contextmanager
def parts(bundle: Path, folder: Path, **settings: object) -> Iterator[Parts]:
    started = Parts(bundle, folder, **settings)  # type: ignore[arg-type]
    try:
        yield started
    finally:
        started.close()


def nodes(client: Client) -> dict[str, Node]:
    """The nodes that the control loop lists, by worker id; none while it cannot be asked."""
    try:
        return {node.worker_id: node for node in client.nodes()}
    except ExpertmeshError:
        return {}


def until_live(mesh: Parts, client: Client, *names: str, within_s: float = START_S) -> float:
    """Wait until exactly these workers are listed, all live, and everything is placed; returns the seconds it took."""

    def holds() -> bool:
        found = nodes(client)
        return found.keys() == set(names) and all(node.state == "live" for node in found.values())

    took_s = until(holds, within_s, mesh.story)
    client.wait_ready(deadline_s=30)
    return took_s


def until_state(mesh: Parts, client: Client, name: str, state: str | None, within_s: float = START_S) -> float:
    """Wait until a worker is listed in a state, or (None) is not listed."""

    def holds() -> bool:
        node = nodes(client).get(name)
        return (None if node is None else node.state) == state

    return until(holds, within_s, lambda: f"{name} is not {state}: {nodes(client)}\n{mesh.story()}")


def answer(client: Client, count: int = SHORT, deadline_s: float = 60) -> list[int]:
    return list(client.complete(prompt_ids=PROMPT, max_tokens=count, ignore_eos=True, deadline_s=deadline_s).token_ids)


def stream(client: Client, count: int = LONG, deadline_s: float = 120):
    return client.generate(prompt_ids=PROMPT, max_tokens=count, ignore_eos=True, deadline_s=deadline_s)


def disturbed_in_a_row(client: Client, act: Callable[[], None], answers: int = 3) -> tuple[list[int], float]:
    """Read long answers one after the other, call `act` early in the first; all ids and the longest pause after that.

    The engine may have finished the first one before `act` is done: it cannot have begun with the last.
    """
    ids: list[int] = []
    pauses: list[float] = []
    last = time.monotonic()
    for _ in range(answers):
        for token in stream(client):
            now = time.monotonic()
            ids.append(token.id)
            if len(ids) > 20:
                pauses.append(now - last)
            if len(ids) == 20:
                act()
            last = time.monotonic()
    return ids, max(pauses)


class Asking:
    """Asks again and again in a thread, without repairing anything; what went wrong is in `wrong`.

    `longest_s` is the longest that an answer took, `count` how many came.
    """

    def __init__(self, mesh: Parts, expected: Sequence[int]) -> None:
        self.wrong: list[object] = []
        self.count = 0
        self.longest_s = 0.0
        self._mesh, self._expected = mesh, list(expected)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._ask, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join(60)

    def _ask(self) -> None:
        with self._mesh.client(NO_REPAIR) as client:
            while not self._stop.is_set():
                began = time.monotonic()
                try:
                    got = answer(client, len(self._expected))
                except ExpertmeshError as error:
                    self.wrong.append(error)
                    return
                self.longest_s = max(self.longest_s, time.monotonic() - began)
                self.count += 1
                if got != self._expected:
                    self.wrong.append(got)


def in_background(work: Callable[[], object]) -> tuple[threading.Thread, list[object]]:
    """Run `work` in a thread; its result or its error comes into the list."""
    results: list[object] = []

    def run() -> None:
        try:
            results.append(work())
        except ExpertmeshError as error:
            results.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, results
