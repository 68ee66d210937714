"""The status pages of running processes, found by their logs, and metrics as data."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

Labels = tuple[tuple[str, str], ...]


def status_address(log: Path) -> str:
    """Where the process that wrote this log said that its pages are; of its last life."""
    return re.findall(r"metrics and probes at (http://\S+)", log.read_text())[-1]


def page(address: str, path: str) -> tuple[int, str]:
    """HTTP status and text."""
    try:
        with urllib.request.urlopen(f"{address}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def probe(address: str, path: str) -> tuple[int, dict[str, Any]]:
    """HTTP status, and what became of every check."""
    status, text = page(address, path)
    return status, json.loads(text)["checks"]


def metrics(address: str) -> dict[tuple[str, Labels], float]:
    """Every sample of /metrics by name and sorted labels."""
    status, text = page(address, "/metrics")
    assert status == 200
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def total(found: dict[tuple[str, Labels], float], name: str, **labels: str) -> float:
    """The sum over all series of a name that carry these labels."""
    return sum(v for (n, have), v in found.items() if n == name and labels.items() <= dict(have).items())


def families(address: str) -> set[str]:
    """`name type label,label` of every family of ours; labels of buckets left out."""
    _, text = page(address, "/metrics")
    ours = [f for f in text_string_to_metric_families(text) if f.name.startswith("expertmesh_")]
    labels = {f.name: sorted({k for s in f.samples for k in s.labels} - {"le"}) for f in ours}
    return {f"{f.name} {f.type} {','.join(labels[f.name])}".strip() for f in ours}
