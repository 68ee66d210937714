"""Arms as processes: started once, asked in turn, blocked on their stdin in between."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from pathlib import Path

from peers.preparing import HERE, PEERS_PYTHON, ArmPlan

__all__ = ["ArmFailed", "ArmProcess", "limits_process", "start"]


class ArmFailed(Exception):
    """The process ended; the message is the last line that it said."""


class ArmProcess:
    """One JSON line out for one in."""

    def __init__(self, name: str, command: list[str], threads: int, log: Path) -> None:
        self.name, self._log = name, log
        log.parent.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(HERE.parent)}
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                [*command, "--threads", str(threads)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
                text=True,
            )

    def ask(self, question: dict[str, object]) -> dict:
        """The answer.

        Raises:
            ArmFailed: there is none.

        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            print(json.dumps(question), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self._process.wait()  # it may still be writing why
            said = self._log.read_text(errors="replace").strip().splitlines()
            raise ArmFailed(said[-1] if said else "it ended without a word")
        return json.loads(line)

    def stop(self) -> None:
        """End of its stdin ends it."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()


def start(plan: ArmPlan, threads: int, logs: Path) -> ArmProcess:
    """Its process, loaded and waiting.

    Raises:
        ArmFailed: its engine is not installed or did not take the model.

    """
    if not plan.model.exists():
        raise ArmFailed(f"it has no model: {plan.model.name} was not made")
    command = [str(plan.python), str(HERE / plan.script), str(plan.model), *plan.arguments]
    process = ArmProcess(plan.name, command, threads, logs / f"{plan.name.replace(' ', '-')}.log")
    try:
        process.ask({"do": "tell"})
    except ArmFailed:
        process.stop()
        raise
    return process


def limits_process(threads: int, logs: Path) -> ArmProcess:
    return ArmProcess("limits", [str(PEERS_PYTHON), str(HERE / "arm_limits.py")], threads, logs / "limits.log")
