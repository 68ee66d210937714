"""From rounds of milliseconds to a table: tokens per second, the machine's limit beside each, ratios per round."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from peers import model_c
from peers.preparing import ARMS

__all__ = ["BEGIN", "END", "Rounds", "rows", "table_lines", "write_page"]

OURS = ARMS[0].name
WEIGHTS = {plan.name: plan.weights for plan in ARMS}
BEGIN, END = "<!-- make bench-peers: begin -->", "<!-- make bench-peers: end -->"
HEADER = ("work", "engine", "tokens/s", "limit", "share of it", f"{OURS} over it")

Rounds = dict[str, dict[str, list[float]]]
"""Milliseconds per token, by work and engine, one per round."""


def limit(work: dict, weights: str, limits: dict[str, list[float]]) -> float:
    """Tokens/s that the machine allows at most: by reading the weights once per step, or by the multiplications.

    The greatest rates of the run count. Keys and values, activations and everything else are left out.
    """
    prefill = work["do"] == "prefill"
    tokens = work["tokens"] if prefill else work["batch"]
    read_s = model_c.bytes_read(weights, tokens) / max(limits["read"])
    product = max(limits["fp32" if weights == "fp32" else "int8"])
    multiply_s = model_c.multiplications(tokens, 1 if prefill else tokens) / product
    return tokens / max(read_s, multiply_s)


def spread(values: Iterable[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {"median": statistics.median(ordered), "least": ordered[0], "greatest": ordered[-1]}


def rows(works: dict[str, dict], rounds: Rounds, limits: dict[str, list[float]]) -> list[dict[str, object]]:
    """One per work and engine; `over` is how many times as fast we are, None without our arm."""
    found: list[dict[str, object]] = []
    for name, work in works.items():
        ours = rounds[name].get(OURS)
        for engine, taken in rounds[name].items():
            rate, most = spread(1e3 / ms for ms in taken), limit(work, WEIGHTS[engine], limits)
            over = spread(b / a for a, b in zip(ours, taken, strict=True)) if ours and engine != OURS else None
            found.append(
                {
                    "work": name,
                    "engine": engine,
                    "tokens_per_s": rate,
                    "limit_tokens_per_s": most,
                    "share_of_limit": rate["median"] / most,
                    "over": over,
                }
            )
    return found


def cells(row: dict) -> tuple[str, ...]:
    rate, over = row["tokens_per_s"], row["over"]
    return (
        row["work"],
        f"{row['engine']}, {WEIGHTS[row['engine']]}" if WEIGHTS[row["engine"]] not in row["engine"] else row["engine"],
        f"{rate['median']:.0f} ({rate['least']:.0f} - {rate['greatest']:.0f})",
        f"{row['limit_tokens_per_s']:.0f}",
        f"{row['share_of_limit']:.2f}",
        "" if over is None else f"{over['median']:.2f} ({over['least']:.2f} - {over['greatest']:.2f})",
    )


def table_lines(found: Sequence[dict]) -> list[str]:
    """As Markdown."""
    lines = [" | ".join(HEADER), " | ".join("---" for _ in HEADER), *(" | ".join(cells(row)) for row in found)]
    return [f"| {line} |" for line in lines]


def write_page(page: Path, lines: Sequence[str], begin: str = BEGIN, end: str = END) -> None:
    """Put the lines between the page's marks."""
    before, rest = page.read_text().split(begin)
    _, after = rest.split(end)
    page.write_text("\n".join((before + begin, *lines, end)) + after)
