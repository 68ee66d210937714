"""Child processes that are kept running, and that end with their supervisor."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from expertmesh_common.clock import Clock
from expertmesh_common.errors import Unavailable
from expertmesh_controller.local.restarts import Failures, RestartPolicy, count_failures, restart_delay_s

_KILL_AFTER_S = 15.0
_LAST_LINES = 2


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """One `expertmesh` command to keep running; its output goes to `log`."""

    name: str
    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    log: Path


class Child:
    """Runs the command, again after a crash, until it is stopped.

    `tell` gets one line for a person whenever something happens; `changed` is called after every start.
    """

    def __init__(
        self,
        spec: ChildSpec,
        clock: Clock,
        tell: Callable[[str], None],
        changed: Callable[[], None],
        policy: RestartPolicy | None = None,
    ) -> None:
        self.spec = spec
        self._clock = clock
        self._tell = tell
        self._changed = changed
        self._policy = policy or RestartPolicy()
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = False
        self._started = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """The running process, None between two lives."""
        alive = self._process is not None and self._process.returncode is None
        return self._process.pid if self._process is not None and alive else None

    @property
    def started(self) -> bool:
        return self._keeper is not None

    @property
    def keeper(self) -> asyncio.Task[None]:
        """Ends with Unavailable when the command cannot be kept running."""
        assert self._keeper is not None, "start() comes first"
        return self._keeper

    async def start(self) -> None:
        """Start the process; returns once it exists."""
        self._keeper = asyncio.create_task(self._keep(), name=f"keep {self.spec.name}")
        waiter = asyncio.create_task(self._started.wait())
        await asyncio.wait({self._keeper, waiter}, return_when=asyncio.FIRST_COMPLETED)
        waiter.cancel()

    async def stop(self, grace_s: float = _KILL_AFTER_S) -> None:
        """Ask it to end, insist after `grace_s` seconds, and wait until it has."""
        self._stopping = True
        process = self._process
        if process is not None and process.returncode is None:
            process.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(process.wait(), grace_s)
            except TimeoutError:
                self._tell(f"{self.spec.name} did not end within {grace_s:g} s and was killed")
                process.kill()
                await process.wait()
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)

    async def _keep(self) -> None:
        failures = Failures()
        while not self._stopping:
            began = self._clock.monotonic()
            code = await self._live()
            if self._stopping:
                return
            failures = count_failures(self._policy, failures, self._clock.monotonic() - began, code)
            delay_s = restart_delay_s(self._policy, failures)
            if delay_s is None:
                raise Unavailable(f"{self.spec.name} ended {failures.by_itself} times in a row: {self.last_words()}")
            # Who was killed from outside had no reason to say anything about it.
            words = f": {self.last_words()}" if code > 0 else ""
            self._tell(f"{self.spec.name} {_ending(code)}; it starts again in {delay_s:g} s{words}")
            await self._clock.sleep(delay_s)

    async def _live(self) -> int:
        with self.spec.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "expertmesh_controller.local.child", str(os.getpid()), *self.spec.arguments,
                stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log, env=dict(self.spec.environment),
                start_new_session=True,  # a terminal's Ctrl-C is for the supervisor, which ends its children in order
            )  # fmt: skip
        self._started.set()
        self._changed()
        return await self._process.wait()

    def last_words(self) -> str:
        """The end of its log."""
        # The markers under a traceback say nothing.
        text = self.spec.log.read_text(encoding="utf-8", errors="replace")
        lines = [line.strip() for line in text.splitlines() if line.strip(" ^~")]
        return " | ".join(lines[-_LAST_LINES:]) or "it said nothing"


def _ending(code: int) -> str:
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return f"ended with code {code}"
