"""What the soak found: JSON, a plot, and the page in the documentation."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from soak_faults import Fault
from soak_load import Ended

__all__ = ["Memory", "Soaked", "plot", "summary", "write_page"]

WINDOWS = 60


@dataclass(frozen=True, slots=True)
class Memory:
    """Resident bytes of a process at a moment."""

    at_s: float
    process: str
    rss_bytes: int


@dataclass(frozen=True, slots=True)
class Soaked:
    """Everything that was seen."""

    seed: int
    seconds: float
    machine: str
    ended: Sequence[Ended]
    faults: Sequence[Fault]
    memory: Sequence[Memory]


def summary(soaked: Soaked) -> dict[str, Any]:
    """Counts, percentiles in milliseconds, and memory at a quarter and at the end, in MB."""
    outcomes = Counter(call.outcome for call in soaked.ended)
    answers = [call for call in soaked.ended if call.kind == "answer" and call.outcome == "ok"]
    return {
        "seed": soaked.seed,
        "minutes": round(soaked.seconds / 60, 2),
        "machine": soaked.machine,
        "requests": len(soaked.ended),
        "by_kind": dict(Counter(call.kind for call in soaked.ended)),
        "ok": outcomes["ok"],
        "shed": outcomes["shed"],
        "lost": outcomes["lost"],
        "wrong": outcomes["wrong"],
        "errors": dict(Counter(call.detail[:200] for call in soaked.ended if call.detail).most_common(10)),
        "failed_calls": [asdict(call) for call in soaked.ended if call.outcome in {"lost", "wrong"}][:20],
        "faults": dict(Counter(fault.what for fault in soaked.faults)),
        "first_token_ms": _percentiles([call.first_token_s for call in answers if call.first_token_s is not None]),
        "answer_ms": _percentiles([call.took_s for call in answers]),
        "memory_mb": {name: _growth(series, soaked.seconds) for name, series in _by_process(soaked.memory).items()},
    }


def write_json(soaked: Soaked, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    series = {"faults": [asdict(fault) for fault in soaked.faults], "memory": [asdict(m) for m in soaked.memory]}
    path.write_text(json.dumps(summary(soaked) | series, indent=1))


def plot(soaked: Soaked, path: Path) -> None:
    """Requests, errors, memory and latency over time, with the faults as vertical lines."""
    figure = Figure(figsize=(10, 11), layout="constrained")  # without pyplot: nothing needs a display
    load, errors, memory, latency = figure.subplots(4, 1, sharex=True)
    width_s = max(1.0, soaked.seconds / WINDOWS)
    _plot_load(load, soaked, width_s)
    _plot_errors(errors, soaked)
    for name, series in _by_process(soaked.memory).items():
        memory.plot([m.at_s for m in series], [m.rss_bytes / 2**20 for m in series], label=name)
    memory.set_ylabel("resident MiB")
    memory.legend(fontsize=7, ncols=4)
    _plot_latency(latency, soaked, width_s)
    errors.set_ylim(top=max(1.0, errors.get_ylim()[1]))
    for axis in (load, errors, memory, latency):
        axis.grid(alpha=0.3)
        axis.set_ylim(bottom=0)
        for fault in soaked.faults:
            axis.axvline(fault.at_s, color="black", alpha=0.15, linewidth=1)
    latency.set_xlabel("seconds (vertical lines are faults)")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)


def write_page(soaked: Soaked, page: Path, image: str) -> None:
    found = summary(soaked)
    faults = ", ".join(f"{what} {count}" for what, count in found["faults"].items()) or "none"
    memory = "\n".join(f"| {name} | {was:.0f} | {ended:.0f} |" for name, (was, ended) in found["memory_mb"].items())
    page.write_text(f"""# Soak

`make soak` (`SOAK_MINUTES=30`, `SOAK_ARGS="--seed 1 --write-page"`) runs a whole mesh of two tiny models - two
gateways, three workers - under mixed load from several clients, while a schedule that one seed decides kills and
freezes its processes. A gateway is killed only when all of them answer: what is promised needs one door. Every greedy
answer is compared with what the mesh said before the first fault; `make soak` fails if one call is lost or wrong. This
page is written by it.

- **lost**: the caller saw an error after the SDK's own resume. **wrong**: other tokens, or bad input let in.
- **shed**: told to come back (`RESOURCE_EXHAUSTED`), which is the promise under overload.

| | |
|---|---|
| machine | {found["machine"]} |
| minutes, seed | {found["minutes"]}, {found["seed"]} |
| requests | {found["requests"]} ({", ".join(f"{kind} {count}" for kind, count in sorted(found["by_kind"].items()))}) |
| **lost**, **wrong**, shed | **{found["lost"]}**, **{found["wrong"]}**, {found["shed"]} |
| faults | {faults} |
| first token p50 / p99 | {found["first_token_ms"]["p50"]:.0f} / {found["first_token_ms"]["p99"]:.0f} ms |
| whole answer p50 / p99 | {found["answer_ms"]["p50"]:.0f} / {found["answer_ms"]["p99"]:.0f} ms |

| process | MB after a quarter | MB at the end |
|---|---|---|
{memory}

A process that was killed starts again small, so a series may fall.

![requests, errors, memory and latency over time]({image})
""")


def _percentiles(seconds: Sequence[float]) -> dict[str, float]:
    if not seconds:
        return {"p50": 0.0, "p99": 0.0}
    p50, p99 = np.percentile(seconds, [50, 99])
    return {"p50": round(1000 * float(p50), 1), "p99": round(1000 * float(p99), 1)}


def _by_process(memory: Sequence[Memory]) -> Mapping[str, list[Memory]]:
    found: dict[str, list[Memory]] = {}
    for sample in memory:
        found.setdefault(sample.process, []).append(sample)
    return dict(sorted(found.items()))


def _growth(series: Sequence[Memory], seconds: float) -> tuple[float, float]:
    early = next((m for m in series if m.at_s >= seconds / 4), series[-1])
    return round(early.rss_bytes / 1e6, 1), round(series[-1].rss_bytes / 1e6, 1)


def _plot_load(axis: Any, soaked: Soaked, width_s: float) -> None:
    edges = np.arange(0, soaked.seconds + width_s, width_s)
    kinds = sorted({call.kind for call in soaked.ended})
    ends = [[call.began_s + call.took_s for call in soaked.ended if call.kind == kind] for kind in kinds]
    heights = [np.histogram(end, edges)[0] / width_s for end in ends]
    axis.stackplot(edges[:-1], heights, labels=kinds, alpha=0.8)
    axis.set_ylabel("requests per second")
    axis.legend(fontsize=7, ncols=6)


def _plot_errors(axis: Any, soaked: Soaked) -> None:
    for outcome, colour in (("lost", "red"), ("wrong", "purple"), ("shed", "orange")):
        at = sorted(call.began_s + call.took_s for call in soaked.ended if call.outcome == outcome)
        axis.step([0, *at, soaked.seconds], [*range(len(at) + 1), len(at)], where="post", color=colour, label=outcome)
    axis.set_ylabel("errors so far")
    axis.legend(fontsize=7)


def _plot_latency(axis: Any, soaked: Soaked, width_s: float) -> None:
    answers = [call for call in soaked.ended if call.kind == "answer" and call.first_token_s is not None]
    for share, style in ((50, "-"), (99, "--")):
        points = []
        for start in np.arange(0, soaked.seconds, width_s):
            inside = [call.first_token_s for call in answers if start <= call.began_s < start + width_s]
            if inside:
                points.append((start, 1000 * float(np.percentile(inside, share))))
        if points:
            axis.plot(*zip(*points, strict=True), style, label=f"first token p{share}")
    axis.set_ylabel("milliseconds")
    axis.legend(fontsize=7)
