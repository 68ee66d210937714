"""Arms measured in turn within one run, so that the machine's mood hits all of them; ratios are taken per round."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

RESULTS = Path(__file__).resolve().parents[1] / "build" / "bench"


@dataclass
class Arm:
    """`step` does one operation. Asynchronous ones run on `loop`, timed from within."""

    name: str
    step: Callable[[], object]
    loop: asyncio.AbstractEventLoop | None = None

    def measure(self, count: int) -> list[float]:
        """Microseconds of `count` operations."""
        if self.loop is not None:
            return self.loop.run_until_complete(self._measure(count))
        step, clock, out = self.step, time.perf_counter, []
        for _ in range(count):
            start = clock()
            step()
            out.append((clock() - start) * 1e6)
        return out

    async def _measure(self, count: int) -> list[float]:
        step, clock, out = self.step, time.perf_counter, []
        for _ in range(count):
            start = clock()
            await step()
            out.append((clock() - start) * 1e6)
        return out


def interleave(arms: Sequence[Arm], rounds: int, count: int) -> dict[str, list[list[float]]]:
    """Samples per arm and round; the order turns by one arm every round. Each turn starts with a short warm-up."""
    samples: dict[str, list[list[float]]] = {arm.name: [] for arm in arms}
    for turn in range(rounds):
        for arm in (*arms[turn % len(arms) :], *arms[: turn % len(arms)]):
            arm.measure(max(5, count // 10))
            samples[arm.name].append(arm.measure(count))
    return samples


def medians(samples: dict[str, list[list[float]]]) -> dict[str, dict[str, float]]:
    """Per arm: the median over rounds of the rounds' p50, its least and greatest, and the p99 of all."""
    out = {}
    for name, turns in samples.items():
        p50 = sorted(statistics.median(turn) for turn in turns)
        everything = sorted(x for turn in turns for x in turn)
        out[name] = {
            "p50_us": round(statistics.median(p50), 1), "least_us": round(p50[0], 1), "greatest_us": round(p50[-1], 1),
            "p99_us": round(everything[int(len(everything) * 0.99)], 1),
        }  # fmt: skip
    return out


def ratio(samples: dict[str, list[list[float]]], arm: str, base: str) -> dict[str, float]:
    """Median, least and greatest over rounds of p50(arm) / p50(base) of the same round."""
    pairs = zip(samples[arm], samples[base], strict=True)
    found = sorted(statistics.median(a) / statistics.median(b) for a, b in pairs)
    return {"median": round(statistics.median(found), 3), "least": round(found[0], 3), "greatest": round(found[-1], 3)}


def publish(name: str, result: dict[str, object]) -> None:
    """Print the result and keep it under build/bench/."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result, indent=1)
    (RESULTS / f"{name}.json").write_text(text + "\n")
    print(text)
