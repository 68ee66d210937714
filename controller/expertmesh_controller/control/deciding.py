"""One round of decisions: plan if something changed, compare, write down, act."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from expertmesh_common.clock import Clock
from expertmesh_common.errors import CorruptData
from expertmesh_controller.cluster.routes import Epoch, RouteTable
from expertmesh_controller.control.journal import JOURNAL_KEY, Entry, Reason, key_facts, plan_reason, room_facts
from expertmesh_controller.control.membership.registry import Registry
from expertmesh_controller.control.membership.restoring import last_generations
from expertmesh_controller.control.membership.state import WorkerExpert
from expertmesh_controller.control.models.demand import Demand
from expertmesh_controller.control.placement.planning import plan
from expertmesh_controller.control.placement.types import Plan, WorkerRoom
from expertmesh_controller.control.reconcile.steps import next_steps
from expertmesh_controller.control.reconcile.types import Route, Step, UnloadExpert
from expertmesh_controller.control.record import RECORD_KEY, ControlRecord
from expertmesh_controller.control.routes_hub import RoutesHub
from expertmesh_controller.control.settings import ControlSettings
from expertmesh_controller.control.settling import settled
from expertmesh_controller.control.store.base import Lease, Store
from expertmesh_controller.control.world import (
    in_flight,
    lacks_of,
    needs_of,
    observe,
    order_of,
    planning_inputs,
    rooms_of,
    table_of,
)

log = logging.getLogger(__name__)


class Decider:
    """Writes every decision to the store before acting on it; a round that the store refuses changes nothing.

    `demand` may be replaced at any time; the next round works with it.
    """

    def __init__(
        self,
        demand: Demand,
        store: Store,
        clock: Clock,
        settings: ControlSettings,
        *,
        registry: Registry,
        routes: RoutesHub,
        wall_s: Callable[[], float],
    ) -> None:
        self.plan: Plan | None = None
        self.incarnation = ""
        """Of the store, once it was read."""
        self.demand = demand
        self._catalogue = demand.catalogue
        self._store = store
        self._clock = clock
        self._settings = settings
        self._registry = registry
        self._routes = routes
        self._wall_s = wall_s
        self._epoch = Epoch()
        self._leading_since = 0.0
        self._known: frozenset[str] = frozenset()
        self._planned_for: tuple[object, ...] | None = None
        self._routed: frozenset[WorkerExpert] = frozenset()
        self._draining: dict[WorkerExpert, _Drain] = {}
        self._entries: list[Entry] = []

    def note(self, reason: Reason, inputs: dict[str, Any], decision: dict[str, Any] | None = None) -> None:
        """Put an entry into the journal with the next round."""
        self._entries.append(Entry(reason, self._epoch, int(self._wall_s() * 1000), inputs, decision or {}))
        # Without a store nothing is written; what is oldest then matters least.
        del self._entries[: -self._settings.journal_entries]

    async def round(self, lease: Lease) -> None:
        """Do what can be done now.

        Raises:
            Unavailable: the store is gone.
            Precondition: another leader writes.

        """
        if lease.term != self._epoch.term:
            await self._take_over(lease)
        now, demand = self._clock.monotonic(), self.demand
        self._catalogue = demand.catalogue
        if self.plan is None and not settled(
            self._registry.cluster, self._known, self._leading_since, now, self._settings
        ):
            await self._write_journal(lease)
            return
        rooms = rooms_of(self._registry.cluster, self._catalogue, now)
        planned_for = (demand, *planning_inputs(rooms, self._registry.cluster))
        target = self._new_plan(rooms, demand) if planned_for != self._planned_for or self.plan is None else self.plan
        steps = self._steps(target, now)
        table = self._table_after(steps, target)
        if target is not self.plan or table is not None:
            epoch = table.epoch if table is not None else self._epoch
            cluster = self._registry.cluster
            record = ControlRecord(
                epoch, target.assignments, cluster.retired, last_generations(cluster), self.incarnation
            )
            await self._store.put(lease, RECORD_KEY, record.encode())
        await self._write_journal(lease)
        self.plan, self._planned_for = target, planned_for
        if table is not None:
            self._publish(table, steps)
        self._give_orders(steps)
        self._let_leavers_go(now)

    async def _take_over(self, lease: Lease) -> None:
        """Start a term: know what the last leader wanted, and number epochs anew."""
        record = await self._last_record()
        if self.plan is None:
            self._known = frozenset(w for w, keys in record.desired.items() if keys)
            self._leading_since = self._clock.monotonic()
        # A store that lost its data under a running controller counts on: its terms still grow.
        self.incarnation = record.incarnation or self.incarnation or uuid.uuid4().hex
        self._registry.restore(record.retired, record.generations)
        self._epoch = Epoch(lease.term, 0)
        self.note(Reason.LEADER_STARTED, {"last_epoch": [record.epoch.term, record.epoch.n]})

    async def _last_record(self) -> ControlRecord:
        try:
            return ControlRecord.decode(await self._store.get(RECORD_KEY))
        except CorruptData as error:
            log.error("starting without the last placement, workers say what they hold: %s", error)  # noqa: TRY400
            return ControlRecord()

    def _new_plan(self, rooms: list[WorkerRoom], demand: Demand) -> Plan:
        target = plan(needs_of(demand.catalogue), rooms, self._settings.rebalance_ratio, demand.limits)
        by_id = {r.worker_id: r for r in rooms}
        loads = {w: key_facts(keys) for w, keys in target.loads(by_id).items() if keys}
        unloads = {w: key_facts(keys) for w, keys in target.unloads(by_id).items() if keys}
        reason = plan_reason(target)
        self.note(
            reason,
            {
                "workers": room_facts(rooms),
                "rebalance_ratio": self._settings.rebalance_ratio,
                "limits": {name: asdict(limits) for name, limits in demand.limits.items()},
            },
            {"loads": loads, "unloads": unloads, "missing_bytes": target.missing_bytes},
        )
        if target.missing:
            log.warning(
                "%s missing_bytes=%d experts=%d: add workers or budget",
                reason,
                target.missing_bytes,
                len(target.missing),
            )
        return target

    def _steps(self, target: Plan, now: float) -> list[Step]:
        cluster = self._registry.cluster
        observed = observe(
            cluster,
            self._catalogue,
            self._routed,
            self._drained_until(now),
            now,
            loads_per_worker=self._settings.loads_per_worker,
            probation_s=self._settings.probation_s,
        )
        return next_steps(target.assignments, observed, in_flight(cluster))

    def _drained_until(self, now: float) -> dict[WorkerExpert, float | None]:
        """Until when gateways may use what left the table: for a grace period after the last of them knows."""
        seen = self._routes.seen()
        for drain in self._draining.values():
            if drain.until is None and (seen is None or seen >= drain.epoch):
                drain.until = now + self._settings.drain_grace_s
        self._draining = {p: d for p, d in self._draining.items() if d.until is None or d.until > now}
        return {place: drain.until for place, drain in self._draining.items()}

    def _table_after(self, steps: list[Step], target: Plan) -> RouteTable | None:
        """The next table, if anything in it differs from the one that is published."""
        lacks = lacks_of(target.missing, self._catalogue)
        table = table_of(self._epoch.next(), self._registry.cluster, self._routed_after(steps), self.incarnation, lacks)
        old = self._routes.table
        if old is None or old.epoch.term != self._epoch.term:
            return table
        same = (old.workers, old.instances, old.lacks) == (table.workers, table.instances, table.lacks)
        return None if same else table

    def _routed_after(self, steps: list[Step]) -> frozenset[WorkerExpert]:
        routed = self._routed
        for step in steps:
            if isinstance(step, Route):
                routed = (routed | step.add) - step.remove
        return routed

    def _publish(self, table: RouteTable, steps: list[Step]) -> None:
        routed = self._routed_after(steps)
        self._epoch = table.epoch
        self._draining |= {place: _Drain(table.epoch) for place in self._routed - routed}
        self._draining = {place: d for place, d in self._draining.items() if place not in routed}
        self._routed = routed
        self._routes.publish(table)
        self._registry.announce(table.epoch, table.incarnation)

    def _give_orders(self, steps: list[Step]) -> None:
        for step in steps:
            # A worker may have gone, or changed, while the store was written.
            member = self._registry.cluster.members.get(getattr(step, "worker_id", ""))
            if isinstance(step, Route) or member is None:
                continue
            if isinstance(step, UnloadExpert) and step.key not in member.resident:
                continue
            order, message = order_of(step, self._catalogue, self._registry.cluster, self._clock.monotonic())
            self._registry.order(order, self._epoch, message)

    def _let_leavers_go(self, now: float) -> None:
        """A leaving worker may end when no gateway uses it any more, or when it waited long enough."""
        used = {worker_id for worker_id, _ in (*self._routed, *self._drained_until(now))}
        for worker_id, member in tuple(self._registry.cluster.members.items()):
            since = member.leaving_since
            if since is not None and (worker_id not in used or now - since >= self._settings.leave_most_s):
                self._registry.let_go(worker_id)

    async def _write_journal(self, lease: Lease) -> None:
        while self._entries:
            entry = self._entries[0]
            await self._store.append(lease, JOURNAL_KEY, entry.encode(), self._settings.journal_entries)
            if self._entries and self._entries[0] is entry:
                del self._entries[0]


class _Drain:
    """A place that left the table at `epoch`; gateways may use it `until` then (None: some do not know yet)."""

    __slots__ = ("epoch", "until")

    def __init__(self, epoch: Epoch) -> None:
        self.epoch = epoch
        self.until: float | None = None
