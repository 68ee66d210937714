"""Ten times the load that can be served, on real processes: what cannot be served is shed, and memory stays flat."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from chaos.parts import NO_REPAIR, PROMPT
from e2e.running import running_up
from expertmesh import AsyncClient, Overloaded
from expertmesh_controller.gateway.settings import GatewaySettings
from models.tiny_bundle import make_tiny_bundle
from rigs.heap_of import CAN_TELL, heap_bytes, telling

SLOTS = 4
CALLERS = 10 * (SLOTS + GatewaySettings().queue_limit)
TOKENS = 100
WAVES, WAVE_S = 4, 2.5
"""The first wave pays what a process pays once."""


@dataclass
class Seen:
    """Bytes at rest after a wave, given out and resident, and the most that were resident during it."""

    heap: int
    resident: int
    peak: int


class Crowd:
    """Callers that ask again, whatever they are told; they all go away at the end of a wave."""

    def __init__(self, address: str) -> None:
        self._address = address
        self.ends: Counter[str] = Counter()

    async def press(self, process: psutil.Process) -> int:
        """One wave; the most bytes that were resident meanwhile."""
        peak, end = 0, time.monotonic() + WAVE_S
        async with AsyncClient(self._address, resume=NO_REPAIR) as client:
            callers = [asyncio.create_task(self._caller(client)) for _ in range(CALLERS)]
            while time.monotonic() < end:
                peak = max(peak, process.memory_info().rss)
                await asyncio.sleep(0.05)
            for caller in callers:
                caller.cancel()
            await asyncio.gather(*callers, return_exceptions=True)
        return peak

    async def _caller(self, client: AsyncClient) -> None:
        while True:
            try:
                await client.complete(prompt_ids=PROMPT, max_tokens=TOKENS, ignore_eos=True, deadline_s=60)
                self.ends["answered"] += 1
            except Overloaded:
                self.ends["shed"] += 1
                await asyncio.sleep(0.5)


async def heap_at_rest(pid: int, folder: Path) -> int:
    """The least of several looks: the calls of a crowd that went away end one after the other."""
    looks = []
    for _ in range(8):
        looks.append(await heap_bytes(pid, folder))
        await asyncio.sleep(0.1)
    return min(looks)


@pytest.mark.slow
@pytest.mark.skipif(not CAN_TELL, reason="this C library does not tell what its heap has given out")
async def test_memory_stays_flat_at_ten_times_the_load_that_can_be_served(folder: Path, monkeypatch) -> None:
    bundle, waves = make_tiny_bundle(folder / "tiny"), []
    for name, value in telling(folder).items():
        monkeypatch.setenv(name, value)
    arguments = ["--model", str(bundle), "--listen", "127.0.0.1:0", "--workers", "1", "--budget-share", "1.0"]
    with running_up(folder, [*arguments, "--store", "memory", "--slots", str(SLOTS)]) as up:
        crowd, process = Crowd(up.address), psutil.Process(up.pids["controller"])
        for _ in range(WAVES):
            peak = await crowd.press(process)
            waves.append(Seen(await heap_at_rest(process.pid, folder), process.memory_info().rss, peak))
        assert up.process.poll() is None

    assert crowd.ends["shed"] > 10 * SLOTS
    assert crowd.ends["answered"] > 0
    first, last = waves[0], waves[-1]
    per_minute = (last.heap - first.heap) * 60 / ((WAVES - 1) * WAVE_S)
    assert per_minute <= 0.05 * first.resident, [f"{wave.heap / 2**20:.2f} MiB" for wave in waves]
    assert last.peak <= 1.1 * first.peak, [f"{wave.peak / 2**20:.0f} MiB" for wave in waves]
