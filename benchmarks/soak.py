"""`make soak`: a mesh of real processes under mixed load while a seeded schedule kills and freezes them.

Exit code 1 if a call was lost (its caller saw an error) or wrong (other tokens than the undisturbed mesh gave).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import psutil
from soak_faults import happen, possible, schedule
from soak_load import Load
from soak_report import Memory, Soaked, plot, summary, write_json, write_page

from e2e.running import RunningUp, running_up
from expertmesh import AsyncClient, ExpertmeshError
from models.tiny_bundle import make_tiny_bundle

OUT = Path("build/soak")
DOCS = Path(__file__).resolve().parents[1] / "docs"
MODELS = {"one": 0, "two": 1}
"""Names and seeds of the random weights."""


def main() -> int:
    asked = _arguments()
    with tempfile.TemporaryDirectory(prefix="em-soak-") as name:
        folder = Path(name)
        models = [f"{model}={make_tiny_bundle(folder / model, seed)}" for model, seed in MODELS.items()]
        with _logs_kept(folder / "logs"), running_up(folder, _up_arguments(models)) as up:
            try:
                soaked = asyncio.run(_soak(up, asked.minutes * 60, asked.callers, asked.seed))
            finally:
                (OUT / "up.txt").write_text(up.said, encoding="utf-8")
    write_json(soaked, OUT / "report.json")
    plot(soaked, OUT / "soak.png")
    if asked.write_page:
        plot(soaked, DOCS / "images" / "soak.png")
        write_page(soaked, DOCS / "soak.md", "images/soak.png")
    found = summary(soaked)
    for key, value in found.items():
        print(f"{key:>16}  {value}")
    return 1 if found["lost"] or found["wrong"] else 0


@contextlib.contextmanager
def _logs_kept(logs: Path) -> Iterator[None]:
    """Also of a mesh that came to an end by itself: what it said says why."""
    OUT.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        shutil.rmtree(OUT / "logs", ignore_errors=True)
        shutil.copytree(logs, OUT / "logs")


async def _soak(up: RunningUp, seconds: float, callers: int, seed: int) -> Soaked:
    load = Load(up.addresses or (up.address,), tuple(MODELS), callers, seed)
    await load.learn()
    faults = schedule(seed, seconds, possible(_pids(up)))
    stop, memory = asyncio.Event(), list[Memory]()
    watching = asyncio.create_task(_watch(up, load, memory, seconds))
    disturbing = asyncio.create_task(happen(faults, lambda: load.now_s, lambda: _pids(up), partial(_doors_open, up)))
    asking = asyncio.create_task(load.run(stop))
    await asyncio.sleep(seconds)
    stop.set()
    await asking
    await watching
    return Soaked(seed, load.now_s, _machine(), load.ended, await disturbing, memory)


async def _watch(up: RunningUp, load: Load, memory: list[Memory], seconds: float) -> None:
    """Note the memory of every process once a second, and say how it goes every ten."""
    tick = 0
    while load.now_s < seconds:
        for name, pid in _pids(up).items():
            try:
                memory.append(Memory(load.now_s, name, psutil.Process(pid).memory_info().rss))
            except psutil.NoSuchProcess:
                continue
        if tick % 10 == 0:
            print(f"{load.now_s:6.0f} s  {len(load.ended)} requests  {dict(load.outcomes())}", flush=True)
        tick += 1
        await asyncio.sleep(1)


async def _doors_open(up: RunningUp) -> None:
    """Return when every gateway has answered."""
    for address in up.addresses or (up.address,):
        async with AsyncClient(address) as client:
            while not await _answers(client):
                pass  # the client has waited between its attempts


async def _answers(client: AsyncClient) -> bool:
    with contextlib.suppress(ExpertmeshError):
        await client.complete(prompt_ids=(1, 2, 3), max_tokens=1, model="one", ignore_eos=True, deadline_s=10.0)
        return True
    return False


def _pids(up: RunningUp) -> dict[str, int]:
    """Of now: killed processes are started again."""
    up.refresh()
    return up.pids


def _machine() -> str:
    return (
        f"{os.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB, Python {platform.python_version()}"
    )


def _up_arguments(models: list[str]) -> list[str]:
    served = [part for model in models for part in ("--model", model)]
    shape = ["--workers", "3", "--budget-share", "1.0", "--gateways", "2", "--slots", "8"]
    return [*served, *shape, "--listen", "127.0.0.1:0", "--http-port", "off"]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--callers", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--write-page", action="store_true", help="put the report into docs/soak.md")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
