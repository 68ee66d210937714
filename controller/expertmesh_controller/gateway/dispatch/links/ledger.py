"""What links have moved, by worker and transport, also after they were closed: for metrics and traces."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass, replace

from expertmesh_controller.gateway.dispatch.links.base import Link

__all__ = ["Ledger", "LinkTotals"]


@dataclass(frozen=True, slots=True)
class LinkTotals:
    """Totals since the start over all links to one worker over one transport; `up` counts those that stand now."""

    worker_id: str
    transport: str
    up: int = 0
    frames: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    failures: int = 0


class Ledger:
    """Keeps the totals of links that are gone. For any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._past: dict[tuple[str, str], LinkTotals] = {}

    def closed(self, link: Link, failed: bool) -> None:
        """The link moves nothing any more. Call once for each."""
        with self._lock:
            totals = _with(self._of(self._past, link), link)
            self._past[link.worker_id, link.transport] = replace(totals, failures=totals.failures + failed)

    def totals(self, up: Iterable[Link]) -> tuple[LinkTotals, ...]:
        """Of all links so far; `up` are those that were not closed yet."""
        with self._lock:
            found = dict(self._past)
        for link in up:
            totals = _with(self._of(found, link), link)
            found[link.worker_id, link.transport] = replace(totals, up=totals.up + 1)
        return tuple(found[key] for key in sorted(found))

    @staticmethod
    def _of(found: dict[tuple[str, str], LinkTotals], link: Link) -> LinkTotals:
        return found.get((link.worker_id, link.transport)) or LinkTotals(link.worker_id, link.transport)


def _with(totals: LinkTotals, link: Link) -> LinkTotals:
    return replace(
        totals,
        frames=totals.frames + link.frames,
        bytes_sent=totals.bytes_sent + link.bytes_sent,
        bytes_received=totals.bytes_received + link.bytes_received,
    )
