"""The route table: which instances serve an expert now. All that the gateway and the control loop share.

Tables are immutable; every change is a new table with a later epoch. A gateway watches them through `Routes`, either
in the same process or over gRPC.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

from expertmesh_api.v1 import common_pb2, routes_pb2
from expertmesh_controller.cluster.reports import GatewayReport

ExpertAt = tuple[int, int]
"""(layer, index) of an expert of a known model."""

LEAST_FREQUENCY = 1e-3
"""Experts that calibration never saw still count, so that they are spread too."""


@dataclass(frozen=True, slots=True, order=True)
class Epoch:
    """A version of the route table: `term` fences leaders, `n` counts the changes within a term."""

    term: int = 0
    n: int = 0

    def next(self) -> Epoch:
        return Epoch(self.term, self.n + 1)

    def to_proto(self) -> common_pb2.Epoch:
        return common_pb2.Epoch(term=self.term, n=self.n)

    @staticmethod
    def from_proto(message: common_pb2.Epoch) -> Epoch:
        return Epoch(message.term, message.n)


@dataclass(frozen=True, slots=True, order=True)
class EndpointAddress:
    """Where a server is reached: transport "grpc" or "tcp" with host:port, "unix" with a path."""

    transport: str
    address: str

    def to_proto(self) -> common_pb2.Endpoint:
        return common_pb2.Endpoint(transport=self.transport, address=self.address)

    @staticmethod
    def from_proto(message: common_pb2.Endpoint) -> EndpointAddress:
        return EndpointAddress(message.transport, message.address)


@dataclass(frozen=True, slots=True)
class WorkerRoute:
    """A live worker. `speed_rows_per_s` was measured at join on the reference expert."""

    worker_id: str
    generation: str
    endpoints: tuple[EndpointAddress, ...]
    host_id: str
    speed_rows_per_s: float

    def endpoint(self, transport: str) -> EndpointAddress | None:
        """The worker's first endpoint of a transport."""
        return next((e for e in self.endpoints if e.transport == transport), None)


@dataclass(frozen=True, slots=True, order=True)
class InstanceRoute:
    """One loaded copy of an expert on one worker at one precision, with the numerics that it was loaded for."""

    model: str
    layer: int
    index: int
    worker_id: str
    precision: str
    numerics: str = "exact"

    @property
    def at(self) -> ExpertAt:
        return (self.layer, self.index)


@dataclass(frozen=True, slots=True, order=True)
class Lack:
    """A model, and the resident bytes of its experts for which no worker has room."""

    model: str
    missing_bytes: int


@dataclass(frozen=True)
class RouteTable:
    """Live workers and their instances as of `epoch`; every instance's worker is in `workers`.

    `incarnation` names the store that counts the epochs; `lacks` has no model whose experts all have room.
    """

    epoch: Epoch = Epoch()
    workers: tuple[WorkerRoute, ...] = ()
    instances: tuple[InstanceRoute, ...] = ()
    incarnation: str = ""
    lacks: tuple[Lack, ...] = ()

    @cached_property
    def by_worker_id(self) -> Mapping[str, WorkerRoute]:
        return {w.worker_id: w for w in self.workers}

    def missing_bytes(self, model: str) -> int:
        """Resident bytes of the model's experts for which no worker has room."""
        return sum(lack.missing_bytes for lack in self.lacks if lack.model == model)

    def without_inexact(self, model: str) -> RouteTable:
        """The table without instances of `model` that are not exact: leftovers, for a gateway that serves it exactly.

        It may hear of the change before the control loop has made a table for it, or while that is away.
        """
        kept = tuple(i for i in self.instances if i.model != model or i.numerics == "exact")
        return self if len(kept) == len(self.instances) else replace(self, instances=kept)

    def replicas(self, model: str) -> dict[ExpertAt, tuple[str, ...]]:
        """The worker ids that hold each expert of `model`, sorted."""
        found: dict[ExpertAt, set[str]] = {}
        for instance in self.instances:
            if instance.model == model:
                found.setdefault(instance.at, set()).add(instance.worker_id)
        return {at: tuple(sorted(ids)) for at, ids in sorted(found.items())}

    def to_proto(self) -> routes_pb2.RouteTable:
        place = {w.worker_id: n for n, w in enumerate(self.workers)}
        return routes_pb2.RouteTable(
            epoch=self.epoch.to_proto(),
            workers=[
                routes_pb2.RouteWorker(
                    worker_id=w.worker_id,
                    generation=w.generation,
                    endpoints=[e.to_proto() for e in w.endpoints],
                    host_id=w.host_id,
                    speed_rows_per_s=w.speed_rows_per_s,
                )
                for w in self.workers
            ],
            instances=[
                routes_pb2.Instance(
                    model=i.model,
                    layer=i.layer,
                    index=i.index,
                    worker=place[i.worker_id],
                    precision=i.precision,
                    numerics="" if i.numerics == "exact" else i.numerics,
                )
                for i in self.instances
            ],
            incarnation=self.incarnation,
            lacks=[routes_pb2.Lack(model=lack.model, missing_bytes=lack.missing_bytes) for lack in self.lacks],
        )

    @staticmethod
    def from_proto(message: routes_pb2.RouteTable) -> RouteTable:
        """The table of a message; instances of workers that it does not list are dropped."""
        workers = tuple(
            WorkerRoute(
                w.worker_id,
                w.generation,
                tuple(EndpointAddress.from_proto(e) for e in w.endpoints),
                w.host_id,
                w.speed_rows_per_s,
            )
            for w in message.workers
        )
        instances = tuple(
            InstanceRoute(i.model, i.layer, i.index, workers[i.worker].worker_id, i.precision, i.numerics or "exact")
            for i in message.instances
            if i.worker < len(workers)
        )
        lacks = tuple(Lack(lack.model, lack.missing_bytes) for lack in message.lacks)
        return RouteTable(Epoch.from_proto(message.epoch), workers, instances, message.incarnation, lacks)


class Routes(Protocol):
    """Where gateways learn the table and tell what they see; in process, or over gRPC."""

    def watch(self) -> AsyncIterator[RouteTable]:
        """The newest table as soon as one was decided, then again after every change; several changes may come as one.

        Asking for the next table tells that the last one is in use: experts are unloaded only after that.
        """
        ...

    async def report(self, report: GatewayReport) -> None:
        """Tell the control loop. Never waits for a decision; raises `Unavailable` when it cannot be told."""
        ...


def prefer(table: RouteTable, model: str, frequencies: Mapping[ExpertAt, float]) -> dict[ExpertAt, str]:
    """Which live replica serves each expert of `model`: expert -> worker id. See `spread`."""
    speeds = {w.worker_id: w.speed_rows_per_s for w in table.workers}
    return spread(table.replicas(model), frequencies, speeds)


def spread(
    replicas: Mapping[ExpertAt, tuple[str, ...]],
    frequencies: Mapping[ExpertAt, float],
    speeds: Mapping[str, float],
) -> dict[ExpertAt, str]:
    """One of its `replicas` (worker ids) for each expert, so that every layer is done as early as possible.

    A layer's expected rows (`frequencies`, 1 for an expert it does not name) are spread in proportion to the
    workers' `speeds`: experts without a choice first, then the most frequent to whoever finishes it earliest (LPT).
    Ties go to the worker with less work over all layers, then to the smaller id: only the content decides.
    """
    speed = {worker_id: s if s > 0 else 1.0 for worker_id, s in speeds.items()}
    total = dict.fromkeys(speed, 0.0)
    chosen: dict[ExpertAt, str] = {}
    for layer in sorted({at[0] for at in replicas}):
        rows = {at: max(frequencies.get(at, 1.0), LEAST_FREQUENCY) for at in replicas if at[0] == layer}
        chosen |= _spread_layer(rows, replicas, speed, total)
    return chosen


def _spread_layer(
    rows: Mapping[ExpertAt, float],
    replicas: Mapping[ExpertAt, tuple[str, ...]],
    speed: Mapping[str, float],
    total: dict[str, float],
) -> dict[ExpertAt, str]:
    busy = dict.fromkeys(speed, 0.0)
    chosen: dict[ExpertAt, str] = {}
    for at in sorted(rows, key=lambda e: (len(replicas[e]) > 1, -rows[e], e)):
        cost = {w: rows[at] / speed[w] for w in replicas[at]}
        best = min(cost, key=lambda w: (busy[w] + cost[w], total[w] + cost[w], w))
        busy[best] += cost[best]
        total[best] += cost[best]
        chosen[at] = best
    return chosen
