"""The whole mesh as a user meets it: `expertmesh up` with three workers, asked through the SDK, per transport.

One mesh per transport is up at the same time, and they are asked in turn. Tokens/s of one answer, of eight at once, and
time to first token. There is no bar here: the bars of the transports are in `bench_hop` and `bench_fanout`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from bench_batching import PROMPTS
from bench_decode import machine, summary
from interleaving import publish

from expertmesh import Client

TRANSPORTS = ("unix", "tcp", "grpc")
START_S = 120.0


@dataclass(frozen=True)
class State:
    """Where a mesh is, and what it demands (nothing on loopback: a benchmark dials its workers itself)."""

    address: str
    token: str | None
    pids: dict[str, int]


@contextlib.contextmanager
def mesh(bundle: Path, transport: str, precision: str, folder: Path, *more: str) -> Iterator[State]:
    """A mesh of one controller and three workers, ended with SIGINT as a person would."""
    ready = folder / f"{transport}.json"
    command = [sys.executable, "-m", "expertmesh.cli.main", "up", "--model", str(bundle)]
    command += [
        "--listen",
        "127.0.0.1:0",
        "--transport",
        transport,
        "--precision",
        precision,
        "--ready-file",
        str(ready),
        "--store",
        "memory",
        *more,
    ]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + START_S
        while not ready.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"the {transport} mesh did not start; try: {' '.join(command)}")
            time.sleep(0.1)
        state = json.loads(ready.read_text())
        yield State(state["address"], state["token"], {p["name"]: p["pid"] for p in state["processes"]})
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


def answer(client: Client, prompt: str, count: int) -> list[float]:
    """Arrival times of the tokens, in seconds from asking."""
    start = time.perf_counter()
    return [time.perf_counter() - start for _ in client.generate(prompt, max_tokens=count, ignore_eos=True)]


def turn(client: Client, tokens: int) -> dict[str, float]:
    """One answer alone, then eight at once."""
    alone = answer(client, PROMPTS[0][0], tokens)
    start = time.perf_counter()
    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        together = list(pool.map(lambda p: answer(client, p[0], p[1]), PROMPTS))
    eight = sum(len(times) for times in together) / (time.perf_counter() - start)
    return {
        "ttft_ms": 1000 * alone[0],
        "tokens_per_s": (tokens - 1) / (alone[-1] - alone[0]),
        "eight_tokens_per_s": eight,
    }


def measure(bundle: Path, precision: str, options: argparse.Namespace) -> dict[str, object]:
    found: dict[str, list[dict[str, float]]] = {transport: [] for transport in TRANSPORTS}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        states = {t: stack.enter_context(mesh(bundle, t, precision, folder)) for t in TRANSPORTS}
        clients = {t: stack.enter_context(Client(s.address, token=s.token)) for t, s in states.items()}
        for client in clients.values():
            turn(client, 8)
        for _ in range(options.rounds):
            for transport, client in clients.items():
                found[transport].append(turn(client, options.tokens))
    return {t: {key: summary([one[key] for one in turns]) for key in turns[0]} for t, turns in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, default=Path("build/demo-bundle"))
    parser.add_argument("--precisions", default="fp32,int4")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=48)
    options = parser.parse_args()
    result: dict[str, object] = {"machine": machine(), "ratios": []}
    for precision in options.precisions.split(","):
        result[precision] = measure(options.bundle, precision, options)
    publish("mesh", result)


if __name__ == "__main__":
    main()
