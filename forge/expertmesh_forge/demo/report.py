"""What a run of the demo found, as a file for programs and a table for people."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from expertmesh.types import Node
from expertmesh_forge.checking import ReferenceCheck
from expertmesh_forge.demo.asking import Answer

__all__ = ["RunReport", "WorkerReport", "make_report", "show_report", "write_report"]

MB = 1e6


@dataclass(frozen=True, slots=True)
class WorkerReport:
    """One worker: `rows` counts rows it served."""

    id: str
    experts: int
    expert_bytes: int
    budget_bytes: int
    rows: int


@dataclass(frozen=True, slots=True)
class RunReport:
    """`tokens` and `reference_tokens` are token ids; `ties` lists the positions where either token is right."""

    text: str
    tokens: tuple[int, ...]
    ttft_ms: float
    tokens_per_s: float
    exact: bool
    ties: tuple[int, ...]
    precision: str
    active_share: float
    model_expert_bytes: int
    reference_tokens: tuple[int, ...]
    workers: tuple[WorkerReport, ...]


def make_report(answer: Answer, check: ReferenceCheck, nodes: Sequence[Node], expert_bytes: int) -> RunReport:
    """Put one run together. `exact` allows ties, as the reference itself cannot tell them apart."""
    completion = answer.completion
    return RunReport(
        text=completion.text,
        tokens=completion.token_ids,
        ttft_ms=round(answer.ttft_ms, 2),
        tokens_per_s=round(answer.tokens_per_s, 2),
        exact=check.equal and len(completion.tokens) > 0,
        ties=tuple(difference.position for difference in check.ties),
        precision=completion.precision,
        active_share=round(completion.active_share, 4),
        model_expert_bytes=expert_bytes,
        reference_tokens=check.reference_tokens,
        workers=tuple(
            WorkerReport(n.worker_id, n.experts, n.resident_bytes, n.budget_bytes, n.rows)
            for n in sorted(nodes, key=lambda node: node.worker_id)
        ),
    )


def write_report(report: RunReport, path: Path) -> None:
    """Write the JSON in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(asdict(report), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(path)


def show_report(report: RunReport, console: Console) -> None:
    """The table and the verdict."""
    table = Table(box=None, pad_edge=False)
    for column in ("worker", "experts", "expert MB", "budget MB", "rows served"):
        table.add_column(column, justify="left" if column == "worker" else "right")
    for w in report.workers:
        table.add_row(w.id, str(w.experts), f"{w.expert_bytes / MB:.1f}", f"{w.budget_bytes / MB:.1f}", str(w.rows))
    console.print(table)
    console.print(
        f"{len(report.tokens)} tokens, first after {report.ttft_ms:.0f} ms, then {report.tokens_per_s:.1f} tokens/s; "
        f"{report.active_share:.0%} of the feed-forward neurons evaluated; "
        f"one copy of every expert is {report.model_expert_bytes / MB:.1f} MB"
    )
    console.print(verdict(report))


def verdict(report: RunReport) -> str:
    """One line: equal to the plain reference or not."""
    if not report.tokens:
        return "FAILED: the mesh answered nothing"
    if not report.exact:
        wrong = next(
            i for i, (got, want) in enumerate(zip(report.tokens, report.reference_tokens, strict=True))
            if got != want and i not in report.ties
        )  # fmt: skip
        got, want = report.tokens[wrong], report.reference_tokens[wrong]
        return f"NOT EXACT: token {wrong} is {got}, the plain dense reference gives {want}"
    ties = f", {len(report.ties)} of them a tie" if report.ties else ""
    return f"EXACT: all {len(report.tokens)} tokens equal the plain dense reference ({report.precision}){ties}"
