"""A consistent look at the control loop, for operations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from expertmesh_controller.cluster.routes import Epoch, RouteTable
from expertmesh_controller.control.catalogue import Catalogue, ExpertKey
from expertmesh_controller.control.membership.state import Cluster
from expertmesh_controller.control.placement.types import Plan
from expertmesh_controller.control.world import in_flight, wanted_here


@dataclass(frozen=True)
class View:
    """As of `now`; `plan` is None before the first placement; `rows` went to (model, layer, index) since the start."""

    now: float
    cluster: Cluster
    table: RouteTable
    plan: Plan | None
    catalogue: Catalogue
    rows: Mapping[tuple[str, int, int], int] = field(default_factory=dict)

    @property
    def epoch(self) -> Epoch:
        return self.table.epoch

    def holders(self) -> dict[ExpertKey, tuple[str, ...]]:
        """The workers that each served expert is routed to."""
        found: dict[ExpertKey, list[str]] = {key: [] for key in self.catalogue}
        for i in self.table.instances:
            found.setdefault(ExpertKey(i.model, i.layer, i.index, i.precision), []).append(i.worker_id)
        return {key: tuple(ids) for key, ids in found.items()}

    def uncovered(self, model: str) -> int:
        """Experts of `model` ("" for all) that no live worker serves, as far as gateways reach it."""
        unreachable = self.cluster.unreachable
        return sum(unreachable.issuperset(ids) for key, ids in self.holders().items() if model in ("", key.model))

    def missing_bytes(self, model: str) -> int:
        """Resident bytes for which no worker has room, or their model no share of it."""
        missing = self.plan.missing if self.plan is not None else tuple(self.catalogue)
        return sum(self.catalogue[k].resident_bytes for k in missing if k in self.catalogue and model in ("", k.model))

    @property
    def at_rest(self) -> bool:
        """Whether every worker that placement counts on holds and serves exactly what the plan says."""
        aside = self.cluster.aside(self.now)
        members = {w: m for w, m in self.cluster.members.items() if w not in aside}
        if self.plan is None or self.plan.assignments.keys() != members.keys():
            return False
        routed = Counter(i.worker_id for i in self.table.instances)
        return not in_flight(self.cluster) and all(
            wanted_here(m, self.catalogue) == self.plan.assignments[w]
            and len(m.resident) == len(self.plan.assignments[w]) == routed[w]
            for w, m in members.items()
        )
