"""Whether a process lives and is ready: named checks, judged together, each saying what is wrong."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

__all__ = ["Check", "Verdict", "judge"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Check:
    """`probe` returns what is wrong, or None. It is called from any thread and must not wait for anything."""

    name: str
    probe: Callable[[], str | None]


@dataclass(frozen=True, slots=True)
class Verdict:
    """Every check by name with what is wrong (None: nothing)."""

    found: Mapping[str, str | None]

    @property
    def ok(self) -> bool:
        return all(reason is None for reason in self.found.values())

    def to_json(self) -> bytes:
        """`{"status": "ok" | "failing", "checks": {name: {"ok": bool, "reason": text}}}`."""
        checks = {
            name: {"ok": True} if reason is None else {"ok": False, "reason": reason}
            for name, reason in self.found.items()
        }
        return json.dumps({"status": "ok" if self.ok else "failing", "checks": checks}).encode() + b"\n"


def judge(checks: Iterable[Check]) -> Verdict:
    """Ask every check. One that raises counts as failing: what cannot be looked at is not known to be well."""
    return Verdict({check.name: _asked(check) for check in checks})


def _asked(check: Check) -> str | None:
    try:
        return check.probe()
    except Exception as error:  # a probe of a part that is just ending must not end the page
        log.warning("check %s failed", check.name, exc_info=error)
        return f"the check itself failed: {type(error).__name__}"
