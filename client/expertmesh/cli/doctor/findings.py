"""What a check says. Packages contribute checks through the entry point group `expertmesh.doctor`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Level = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: `says` is what is, `advice` what to do about it (empty when there is nothing to do)."""

    area: str
    name: str
    level: Level
    says: str
    advice: str = ""


@dataclass(frozen=True, slots=True)
class Asked:
    """What the person asked about. `chosen`: the address was named, so that silence there is a failure."""

    server: str
    token: str | None
    tls: Path | None
    chosen: bool
    store: str | None = None


Check = Callable[[Asked], Iterator[Finding]]


def exit_is_bad(findings: list[Finding]) -> bool:
    """Whether the program ends with a failure; warnings do not."""
    return any(finding.level == "fail" for finding in findings)
