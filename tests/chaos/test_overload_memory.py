"""Ten times the load that can be served, on real processes: what cannot be served is shed, and memory stays flat."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from pathlib import Path

import numpy as np
import psutil
import pytest

from chaos.parts import NO_REPAIR, PROMPT
from e2e.running import running_up
from expertmesh import AsyncClient, Overloaded
from models.tiny_bundle import make_tiny_bundle

SECONDS, SETTLED_S = 60.0, 20.0
CALLERS, SLOTS, QUEUE = 700, 4, 64
COUNT = 100


class Crowd:
    """Callers that ask again at once, whatever they are told, and give up on no answer."""

    def __init__(self, address: str) -> None:
        self.address, self.ends = address, time.monotonic() + SECONDS
        self.seen: Counter[str] = Counter()

    async def run(self) -> None:
        async with AsyncClient(self.address, resume=NO_REPAIR) as client:
            await asyncio.gather(*(self._caller(client) for _ in range(CALLERS)))

    async def _caller(self, client: AsyncClient) -> None:
        while time.monotonic() < self.ends:
            try:
                await client.complete(prompt_ids=PROMPT, max_tokens=COUNT, ignore_eos=True, deadline_s=60)
                self.seen["answered"] += 1
            except Overloaded:
                self.seen["shed"] += 1
                await asyncio.sleep(0.5)


async def _growth(pid: int) -> tuple[float, float]:
    """(bytes per minute along the straight line through what was seen, bytes at its beginning)."""
    process, began, seen = psutil.Process(pid), time.monotonic(), []
    while (now_s := time.monotonic() - began) < SECONDS:
        if now_s >= SETTLED_S:
            seen.append((now_s, process.memory_info().rss))
        await asyncio.sleep(0.5)
    slope, start = np.polyfit(*zip(*seen, strict=True), 1)
    return 60 * float(slope), float(start + slope * SETTLED_S)


@pytest.mark.slow
async def test_memory_stays_flat_at_ten_times_the_load_that_can_be_served(folder: Path) -> None:
    bundle = make_tiny_bundle(folder / "tiny")
    arguments = ["--model", str(bundle), "--listen", "127.0.0.1:0", "--workers", "1", "--budget-share", "1.0"]
    with running_up(folder, [*arguments, "--store", "memory", "--slots", str(SLOTS)]) as up:
        crowd = Crowd(up.address)
        asking = asyncio.create_task(crowd.run())
        per_minute, start = await _growth(up.pids["controller"])
        await asking
        assert up.process.poll() is None

    assert crowd.seen["shed"] > 10 * SLOTS
    assert crowd.seen["answered"] > 0
    assert CALLERS >= 10 * (SLOTS + QUEUE)  # a client alone gets half of the queue
    assert per_minute <= 0.05 * start, f"{per_minute / 2**20:.1f} MiB per minute from {start / 2**20:.0f} MiB"
