"""What `kill -9` of a worker in mid-answer costs the reader: the longest pause between two tokens, in seconds.

Promises: at most 1 s when replicas hold every lost expert (workers with room for all), at most 10 s when lost experts
must be loaded elsewhere (three workers with room for 60 % each). Every answer must equal the undisturbed one.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

from bench_decode import machine, summary
from bench_mesh import mesh
from interleaving import publish

from expertmesh import Client

QUESTION = [{"role": "user", "content": "Tell me about the history of Rome in detail."}]
ARMS = {"replicas": ("1.0", 1.0), "re-load": ("0.6", 10.0)}


def ask(client: Client, count: int, victim: int | None = None) -> tuple[list[int], float]:
    """The tokens, and the longest pause after the tenth; `victim` is killed when that one arrives."""
    ids: list[int] = []
    longest, last = 0.0, time.perf_counter()
    for token in client.chat(QUESTION, max_tokens=count, ignore_eos=True, deadline_s=120):
        now = time.perf_counter()
        longest = max(longest, now - last) if len(ids) > 10 else 0.0
        last = now
        ids.append(token.id)
        if victim is not None and len(ids) == 10:
            os.kill(victim, signal.SIGKILL)
    return ids, longest


def measure(bundle: Path, budget_share: str, rounds: int) -> tuple[list[float], list[float]]:
    """Longest pauses undisturbed and with a kill, one fresh mesh per round."""
    quiet, killed = [], []
    for _ in range(rounds):
        with (
            tempfile.TemporaryDirectory() as folder,
            mesh(bundle, "auto", "fp32", Path(folder), "--budget-share", budget_share) as state,
            Client(state.address, token=state.token) as client,
        ):
            expected, pause_s = ask(client, 48)
            quiet.append(pause_s)
            ids, pause_s = ask(client, 48, state.pids["worker-2"])
            if ids != expected:
                sys.exit("a killed worker changed the answer")
            killed.append(pause_s)
    return quiet, killed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, default=Path("build/demo-bundle"))
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    result: dict[str, object] = {"machine": machine(), "ratios": []}
    for name, (budget_share, most_s) in ARMS.items():
        quiet, killed = measure(options.bundle, budget_share, options.rounds)
        result[name] = {"undisturbed_s": summary(quiet), "killed_s": summary(killed)}
        what = f"longest pause after kill -9 of a worker, {name}, seconds"
        result["ratios"].append({"what": what, "value": summary(killed), "at_most": most_s})
    publish("recovery", result)


if __name__ == "__main__":
    main()
