"""Pulses: proof that a thread or an event loop still turns, cheap enough to give on every turn."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

__all__ = ["LOOP_STALL_S", "Pulse", "beating", "stalled"]

LOOP_BEAT_S = 0.5
LOOP_STALL_S = 10.0
"""An event loop that has not turned for this long serves nobody: no heartbeat, no stream, no health call."""


class Pulse:
    """`beat` is one store, for the watched thread; `age_s` is for whoever watches, on any thread."""

    __slots__ = ("_at", "_now")

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._at = now()

    def beat(self) -> None:
        self._at = self._now()

    @property
    def age_s(self) -> float:
        """Seconds since the last beat."""
        return max(0.0, self._now() - self._at)


async def beating(pulse: Pulse, interval_s: float = LOOP_BEAT_S) -> None:
    """Beat from the running event loop until cancelled."""
    while True:
        pulse.beat()
        await asyncio.sleep(interval_s)


def stalled(pulse: Pulse, limit_s: float, what: str) -> Callable[[], str | None]:
    """A probe of the pulse: what to tell once its last beat is older than `limit_s`."""

    def probe() -> str | None:
        age_s = pulse.age_s
        return None if age_s <= limit_s else f"{what} has not turned for {age_s:.1f} s (limit {limit_s:g} s)"

    return probe
