"""Staying in touch with the control loop: the newest route table in, load reports out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Protocol

from expertmesh_common.clock import Clock
from expertmesh_common.errors import MeshError
from expertmesh_controller.cluster.reports import ExpertRows, GatewayReport
from expertmesh_controller.cluster.routes import Routes, RouteTable
from expertmesh_controller.gateway.batching.forward import Experts
from expertmesh_controller.gateway.batching.tally import Tally

__all__ = ["Plane", "RouteFollower"]

log = logging.getLogger(__name__)

RECONNECT_PAUSE_S = 0.5


class RowCounters(Protocol):
    """Rows per expert."""

    def rows(self) -> Mapping[tuple[int, int], int]:
        """(layer, index) -> rows sent to that expert since the start."""
        ...


class Plane(Experts, Protocol):
    """The expert plane as the gateway keeps it informed."""

    @property
    def counters(self) -> RowCounters: ...

    def update(self, table: RouteTable) -> None:
        """Use this table from now on, unless it is older than the one in use."""
        ...

    def take_suspects(self) -> tuple[str, ...]:
        """Workers whose links failed since the last call."""
        ...


class RouteFollower:
    """Serving goes on with the last table while the control loop cannot be reached.

    `plane` is None where no expert is elsewhere: then no worker is dialled, and none can be suspect. `rows` says how
    many rows went through each (layer, index). With `exact`, copies of the model that are not are left out.
    """

    def __init__(
        self,
        routes: Routes,
        plane: Plane | None,
        clock: Clock,
        gateway_id: str,
        model: str,
        *,
        rows: Callable[[], Mapping[tuple[int, int], int]],
        exact: bool = True,
    ) -> None:
        self._routes, self._plane, self._clock = routes, plane, clock
        self._rows, self._exact = rows, exact
        self._gateway_id, self._model = gateway_id, model
        self._reported: Mapping[tuple[int, int], int] = {}
        self.table = RouteTable()

    async def follow(self) -> None:
        """Give the plane every table, for ever."""
        while True:
            try:
                async for found in self._routes.watch():
                    table = found.without_inexact(self._model) if self._exact else found
                    if self._plane is not None:
                        self._plane.update(table)
                    self.table = table
            except MeshError as error:
                log.warning("routes cannot be watched, the last table stays in use: %s", error)
            await self._clock.sleep(RECONNECT_PAUSE_S)

    async def report(self, tally: Tally, interval_s: float) -> None:
        """Tell the load every `interval_s`, for ever."""
        while True:
            await self._clock.sleep(interval_s)
            try:
                await self._routes.report(self._next_report(tally))
            except MeshError as error:
                log.warning("the load cannot be reported: %s", error)

    def _next_report(self, tally: Tally) -> GatewayReport:
        arrivals, histogram = tally.take()
        rows = dict(self._rows())
        grown = {at: count - self._reported.get(at, 0) for at, count in rows.items()}
        self._reported = rows
        return GatewayReport(
            self._gateway_id,
            arrivals,
            histogram,
            tuple(ExpertRows(self._model, *at, count) for at, count in sorted(grown.items()) if count),
            () if self._plane is None else self._plane.take_suspects(),
        )
