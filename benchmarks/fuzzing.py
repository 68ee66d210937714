"""`make fuzz`: a million inputs (or `--inputs`) in two processes, each with a mesh of its own, and a summary.

An input that finds something is printed with what it found, and the run goes on; the exit code is 1 then.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import queue
import secrets
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

from fuzz.doors import opened
from fuzz.targets import Target, bytes_targets, door_targets
from models.tiny_bundle import make_tiny_bundle

BATCH = 2000  # inputs of one target between two lines of progress


def main() -> int:
    asked = _arguments()
    print(f"seed {asked.seed}: {asked.inputs} inputs in {asked.processes} processes", flush=True)
    context = multiprocessing.get_context("spawn")
    news: Queue[tuple[str, int, str]] = context.Queue()
    each = asked.inputs // asked.processes
    workers = [
        context.Process(target=fuzz, args=(each, asked.seed + number, news), daemon=True)
        for number in range(asked.processes)
    ]
    signal.signal(signal.SIGTERM, _end)
    for worker in workers:
        worker.start()
    tried, findings = _follow(workers, news, asked.inputs)
    for worker in workers:
        worker.join()
    lost = [worker.exitcode for worker in workers if worker.exitcode]
    for name, count in sorted(tried.items()):
        print(f"{count:>9}  {name}")
    print(f"{tried.total()} inputs, {len(findings)} findings, {len(lost)} crashed processes")
    return 1 if findings or lost else 0


def fuzz(inputs: int, seed: int, news: Queue[Any]) -> None:
    """One process: all targets in turns, batch by batch, until `inputs` were tried, or the parent is no more."""
    signal.signal(signal.SIGTERM, _end)
    threading.Thread(target=_outlive, daemon=True).start()
    with tempfile.TemporaryDirectory(prefix="em-fuzz-") as name:
        folder = Path(name)
        with opened(folder, make_tiny_bundle(folder / "tiny")) as doors:
            targets = [*bytes_targets(), *door_targets(doors)]
            left = {target.name: round(inputs * target.share) for target in targets}
            while any(left.values()):
                for target in targets:
                    count = min(BATCH, left[target.name])
                    if count:
                        seed += 1000
                        news.put((target.name, *_batch(target, count, seed)))
                        left[target.name] -= count
            if not doors.alive():
                news.put(("the mesh", 0, "a process of the mesh is not the one that was started"))


def _end(*_: object) -> None:
    raise KeyboardInterrupt  # unwinds, so that the meshes are stopped; hypothesis lets nothing else pass


def _outlive() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


def _batch(target: Target, count: int, seed: int) -> tuple[int, str]:
    try:
        return target.run(count, seed=seed), ""
    except Exception:  # noqa: BLE001 - whatever is found is told, and the run goes on
        return count, f"seed {seed}\n{traceback.format_exc()}"


def _follow(workers: list[Any], news: Queue[tuple[str, int, str]], inputs: int) -> tuple[Counter[str], list[str]]:
    tried, findings, began = Counter[str](), list[str](), time.monotonic()
    while any(worker.is_alive() for worker in workers) or not news.empty():
        try:
            name, count, finding = news.get(timeout=1)
        except queue.Empty:
            continue
        tried[name] += count
        rate = tried.total() / (time.monotonic() - began)
        print(f"{tried.total():>9} of {inputs}  {rate:6.0f}/s  {len(findings)} findings  {name}", flush=True)
        if finding:
            findings.append(finding)
            print(finding, flush=True)
    return tried, findings


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6), help="prints it when not given")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("fuzzing was ended before all inputs were tried")
