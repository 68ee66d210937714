"""The control loop: membership in, one round of decisions after the other, routes and orders out."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence

import grpc.aio

from expertmesh_api.v1 import (
    blobs_pb2_grpc,
    membership_pb2_grpc,
    operations_pb2_grpc,
    routes_pb2_grpc,
)
from expertmesh_common.bundle.blob_service import BlobService
from expertmesh_common.clock import Clock
from expertmesh_common.errors import Precondition, Unavailable
from expertmesh_controller.cluster.bundles import LeavingModel
from expertmesh_controller.cluster.reports import GatewayReport
from expertmesh_controller.cluster.routes import Epoch, RouteTable
from expertmesh_controller.control.bundles_hub import BundleBlobs, BundlesHub, offered
from expertmesh_controller.control.catalogue import ServedModel
from expertmesh_controller.control.deciding import Decider
from expertmesh_controller.control.leadership import Leadership
from expertmesh_controller.control.membership.registry import Registry
from expertmesh_controller.control.membership.service import MembershipService
from expertmesh_controller.control.membership.state import Cluster, Event, Heard, Limits
from expertmesh_controller.control.models.demand import Demand
from expertmesh_controller.control.models.operations import ModelOperations
from expertmesh_controller.control.noting import lost_somebody, notes_of
from expertmesh_controller.control.operations import OperationsService
from expertmesh_controller.control.routes_hub import RoutesHub
from expertmesh_controller.control.routes_service import RoutesService
from expertmesh_controller.control.settings import ControlSettings
from expertmesh_controller.control.store.base import Lease, Store
from expertmesh_controller.control.view import View

log = logging.getLogger(__name__)

MOST_EXPERTS = 2**20
"""Of which rows are counted: names come from gateways."""

MOST_TOTAL_ROWS = 2**63
SERVICES = tuple(f"expertmesh_api.v1.{name}" for name in ("Routes", "Membership", "Operations", "Blobs"))


class ControlLoop:
    """One per controller process; add it to a server, then `run` it.

    `routes` is what a gateway in this process watches. Whether this loop decides depends on the store's lease; it
    keeps membership either way.
    """

    def __init__(
        self,
        models: Sequence[ServedModel],
        store: Store,
        clock: Clock,
        settings: ControlSettings,
        *,
        version: str,
        wall_s: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._clock = clock
        self._settings = settings
        self._rows: Counter[tuple[str, int, int]] = Counter()
        self._wake, self._urgent, self._change = asyncio.Event(), asyncio.Event(), asyncio.Event()
        limits = Limits(
            settings.lease_s,
            settings.order_timeout_s,
            settings.retry_first_s,
            settings.retry_most_s,
            settings.suspicion_s,
            settings.confirm_s,
        )
        self.bundles = BundlesHub()
        self.routes = RoutesHub(self._reported, self._wake.set)
        self.registry = Registry(limits, clock, self._on_membership)
        self.leadership = Leadership(store, clock, uuid.uuid4().hex, settings.leader_lease_s, self._wake.set)
        self._decider = Decider(
            Demand.of(()), store, clock, settings, registry=self.registry, routes=self.routes, wall_s=wall_s
        )
        self._membership = MembershipService(self.registry, version, settings, self._epoch)
        self._blobs: list[BundleBlobs] = []
        self.serve(models)

    def serve(self, models: Sequence[ServedModel]) -> None:
        """Serve exactly these models from now on; experts of others are unloaded once no gateway uses them.

        Raises:
            InvalidInput: two models share a name, or a bundle lacks the precision; nothing has changed.

        """
        demand, blobs = Demand.of(models), [BundleBlobs(model.bundle) for model in models]
        self._decider.demand, self._blobs = demand, blobs
        self._names = frozenset(model.name for model in models)
        self._rows = Counter({at: rows for at, rows in self._rows.items() if at[0] in self._names})
        self.offer(models)
        self._wake.set()
        self._tell_change()

    def offer(self, models: Sequence[ServedModel], leaving: Sequence[LeavingModel] = ()) -> None:
        """Let gateways in other processes answer for exactly these models, and end those that are `leaving`."""
        self.bundles.publish((offered(model) for model in models), leaving)

    @property
    def other_gateways(self) -> int:
        """How many gateways in other processes listen to `offer`."""
        return self.bundles.watchers

    async def keep(self, key: str, value: bytes) -> None:
        """Write to the store.

        Raises:
            Unavailable: this controller does not lead, or the store is gone; nothing was written.

        """
        lease = self.leadership.lease
        if lease is None:
            raise Unavailable("this controller does not lead now, or its store is away: try again in a moment")
        try:
            await self._store.put(lease, key, value)
        except Precondition as error:
            raise Unavailable(f"this controller does not lead any more: {error}") from error

    def add_to(self, server: grpc.aio.Server, models: ModelOperations) -> None:
        """Serve Membership, Routes, Operations and the bundles' blobs (the origin of every fetch)."""
        membership_pb2_grpc.add_MembershipServicer_to_server(self._membership, server)
        routes_pb2_grpc.add_RoutesServicer_to_server(RoutesService(self.routes, self.bundles), server)
        operations_pb2_grpc.add_OperationsServicer_to_server(OperationsService(self, models), server)
        blobs_pb2_grpc.add_BlobsServicer_to_server(BlobService(lambda: self._blobs), server)

    async def run(self) -> None:
        """Decide until cancelled."""
        leading = asyncio.create_task(self.leadership.run())
        try:
            while True:
                await self._next_round()
                self.registry.tick()
                if (lease := self.leadership.lease) is not None:
                    await self._round_in_peace(lease)
                self._tell_change()
                if leading.done():
                    leading.result()
        finally:
            leading.cancel()

    async def stop(self) -> None:
        """Give the lease back and end all streams; workers and gateways keep serving and look for a controller."""
        await self.leadership.release()
        self.registry.close()
        self.routes.close()
        self.bundles.close()

    def view(self) -> View:
        table = self.routes.table or RouteTable()
        catalogue = self._decider.demand.catalogue
        return View(self._clock.monotonic(), self.registry.cluster, table, self._decider.plan, catalogue, self._rows)

    def _epoch(self) -> tuple[Epoch, str]:
        """What a welcome tells; before the first table of a new leader its term alone."""
        return max(self.view().epoch, Epoch(self.leadership.term, 0)), self._decider.incarnation

    async def changed(self) -> None:
        await self._change.wait()

    async def _round_in_peace(self, lease: Lease) -> None:
        """A round, unless the store went away or somebody else leads: then nothing was done and nothing is lost."""
        try:
            await self._decider.round(lease)
        except Unavailable as error:
            self.leadership.note_store(error)
            self.leadership.resign()
        except Precondition as error:
            log.warning("not leading any more: %s", error)
            self.leadership.resign()
        except Exception:  # serving must outlive a decision that failed; the next tick decides again
            log.exception("a round of decisions failed")

    async def _next_round(self) -> None:
        """Wait for news or the next tick; then gather a little more, unless somebody was lost."""
        await _first_of(self._wake, self._settings.tick_s)
        if self._wake.is_set():
            await _first_of(self._urgent, self._settings.gather_s)
        self._wake.clear()
        self._urgent.clear()

    def _on_membership(self, before: Cluster, after: Cluster, event: Event) -> None:
        if isinstance(event, Heard):
            return
        for reason, facts in notes_of(before, after, event):
            log.info("%s %s", reason.value, " ".join(f"{k}={v}" for k, v in facts.items()))
            self._decider.note(reason, facts)
        if lost_somebody(before, after):
            self._urgent.set()
        self._wake.set()

    def _reported(self, report: GatewayReport) -> None:
        """Gateways route around what they suspect by themselves; what they cannot reach must not be an only copy."""
        for row in report.rows:
            expert = (row.model, row.layer, row.index)
            if expert in self._rows or (row.model in self._names and len(self._rows) < MOST_EXPERTS):
                self._rows[expert] = min(self._rows[expert] + row.rows, MOST_TOTAL_ROWS)
        if report.suspect_worker_ids:
            self.registry.suspect(report.gateway_id, report.suspect_worker_ids)

    def _tell_change(self) -> None:
        change, self._change = self._change, asyncio.Event()
        change.set()


async def _first_of(event: asyncio.Event, timeout_s: float) -> None:
    # `wait_for` of Python 3.11 may swallow a cancellation.
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await event.wait()
