"""The in-process side of `Routes`: holds the newest table and wakes whoever watches."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from expertmesh_controller.cluster.reports import GatewayReport
from expertmesh_controller.cluster.routes import Epoch, RouteTable


class RoutesHub:
    """`Routes` over memory. Used on one event loop.

    `on_report` is told of every report; `on_seen` that a watcher came, now uses
    a newer table, or is gone.
    """

    def __init__(self, on_report: Callable[[GatewayReport], None], on_seen: Callable[[], None]) -> None:
        self.table: RouteTable | None = None
        self._on_report = on_report
        self._on_seen = on_seen
        self._changed = asyncio.Event()
        self._seen: dict[int, Epoch] = {}
        self._watchers = 0
        self._closed = False

    def publish(self, table: RouteTable) -> None:
        """Make `table` the newest; an epoch that is not later than the last one is a mistake of the caller."""
        if self.table is not None and table.epoch <= self.table.epoch:
            raise ValueError(f"epoch {table.epoch} does not follow {self.table.epoch}")
        self.table = table
        self._tell_change()

    def close(self) -> None:
        """Let watchers go: no table will come."""
        self._closed = True
        self._tell_change()

    def seen(self) -> Epoch | None:
        """The oldest epoch that a watcher may still use; None when nobody watches."""
        return min(self._seen.values(), default=None)

    async def watch(self) -> AsyncIterator[RouteTable]:
        self._watchers += 1
        watcher, used = self._watchers, Epoch()
        self._seen[watcher] = used
        self._on_seen()
        try:
            while not self._closed:
                changed, table = self._changed, self.table
                if table is not None and table.epoch > used:
                    yield table
                    used = self._seen[watcher] = table.epoch
                    self._on_seen()
                else:
                    await changed.wait()
        finally:
            del self._seen[watcher]
            self._on_seen()

    async def report(self, report: GatewayReport) -> None:
        self._on_report(report)

    def _tell_change(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
