"""A placement while it is being made."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from expertmesh_controller.cluster.routes import LEAST_FREQUENCY
from expertmesh_controller.control.catalogue import ExpertKey, ModelLimits
from expertmesh_controller.control.placement.types import ExpertNeed, WorkerRoom

LayerOf = tuple[str, int]


class Draft:
    """Assignments with their free bytes and the expected work per layer. Local to one call of `plan`."""

    def __init__(
        self,
        needs: Mapping[ExpertKey, ExpertNeed],
        rooms: Sequence[WorkerRoom],
        limits: Mapping[str, ModelLimits] | None = None,
    ) -> None:
        self.needs = needs
        self.limits = limits or {}
        budgets = sum(r.budget_bytes for r in rooms)
        self._share_bytes = {m: int(budgets * x.budget_share) for m, x in self.limits.items() if x.budget_share < 1}
        self._model_bytes: dict[str, int] = defaultdict(int)
        self.rooms = {r.worker_id: r for r in rooms}
        self.held: dict[str, set[ExpertKey]] = {r.worker_id: set() for r in rooms}
        self.free = {r.worker_id: r.budget_bytes for r in rooms}
        self.holders: dict[ExpertKey, set[str]] = {key: set() for key in needs}
        self.shares = work_shares(rooms, sum(n.resident_bytes for n in needs.values()))
        # An expert's work counts in equal parts for its holders: who serves it is decided when routing.
        self._layer_work: dict[tuple[str, LayerOf], float] = defaultdict(float)
        self._work: dict[str, float] = defaultdict(float)

    def fits(self, worker_id: str, key: ExpertKey) -> bool:
        """Whether worker and model have room for an expert that the worker does not hold and did not refuse."""
        fitting = self.needs[key].resident_bytes <= self.free[worker_id]
        return fitting and self.allows(worker_id, key) and self.in_share(key)

    def allows(self, worker_id: str, key: ExpertKey) -> bool:
        return key not in self.held[worker_id] and key not in self.rooms[worker_id].refused

    def in_share(self, key: ExpertKey, instead_of: ExpertKey | None = None) -> bool:
        """Whether one more copy is within its model's share of all budgets, perhaps in place of another one."""
        if key.model not in self._share_bytes:
            return True
        freed = self.needs[instead_of].resident_bytes if instead_of and instead_of.model == key.model else 0
        return self._model_bytes[key.model] + self.needs[key].resident_bytes - freed <= self._share_bytes[key.model]

    def is_in_share(self, model: str) -> bool:
        """Whether the model has no more than its share of all budgets."""
        return model not in self._share_bytes or self._model_bytes[model] <= self._share_bytes[model]

    def may_copy(self, key: ExpertKey) -> bool:
        """Whether the model allows one more copy of an expert."""
        most = self.limits[key.model].max_copies if key.model in self.limits else 0
        return not most or len(self.holders[key]) < most

    def replicas(self, model: str) -> list[tuple[str, ExpertKey]]:
        """Copies of the model's experts that have another one, least frequent first."""
        return [
            (worker_id, key)
            for key in sorted(self.holders, key=lambda k: (self.needs[k].frequency, k))
            if key.model == model and len(self.holders[key]) > 1
            for worker_id in sorted(self.holders[key])
        ]

    def add(self, worker_id: str, key: ExpertKey) -> None:
        self._count(key, -1.0)
        self.held[worker_id].add(key)
        self.holders[key].add(worker_id)
        self.free[worker_id] -= self.needs[key].resident_bytes
        self._model_bytes[key.model] += self.needs[key].resident_bytes
        self._count(key, 1.0)

    def drop(self, worker_id: str, key: ExpertKey) -> None:
        self._count(key, -1.0)
        self.held[worker_id].discard(key)
        self.holders[key].discard(worker_id)
        self.free[worker_id] += self.needs[key].resident_bytes
        self._model_bytes[key.model] -= self.needs[key].resident_bytes
        self._count(key, 1.0)

    def finish(self, worker_id: str, key: ExpertKey) -> tuple[float, float, str]:
        """When the worker would be done with the expert's layer, then with everything, if it took the expert."""
        share = max(self.shares[worker_id], 1e-9)
        rows = max(self.needs[key].frequency, LEAST_FREQUENCY)
        layer = self._layer_work[worker_id, (key.model, key.layer)]
        return ((layer + rows) / share, (self._work[worker_id] + rows) / share, worker_id)

    def spare(self, worker_id: str, copies: int) -> list[ExpertKey]:
        """Experts here that more than `copies` workers hold, least frequent first."""
        found = [k for k in self.held[worker_id] if len(self.holders[k]) > copies]
        return sorted(found, key=lambda k: (self.needs[k].frequency, k))

    def missing(self) -> tuple[ExpertKey, ...]:
        return tuple(k for k, holders in self.holders.items() if not holders)

    def _count(self, key: ExpertKey, sign: float) -> None:
        holders = self.holders[key]
        for worker_id in holders:
            rows = sign * max(self.needs[key].frequency, LEAST_FREQUENCY) / len(holders)
            self._layer_work[worker_id, (key.model, key.layer)] += rows
            self._work[worker_id] += rows


def work_shares(rooms: Iterable[WorkerRoom], total_bytes: int) -> dict[str, float]:
    """The share of all work per worker: in proportion to speed, but no more than its budget can hold of the bytes.

    Without the second part a small fast worker would be filled up by the first layers and be idle in the others.
    """
    open_rooms = {r.worker_id: max(r.speed_rows_per_s, 0.0) or 1.0 for r in rooms}
    caps = {r.worker_id: r.budget_bytes / max(total_bytes, 1) for r in rooms}
    shares: dict[str, float] = {}
    left = 1.0
    while open_rooms:
        speed = sum(open_rooms.values())
        full = [w for w, s in open_rooms.items() if left * s / speed > caps[w]]
        for worker_id in full or list(open_rooms):
            shares[worker_id] = caps[worker_id] if full else left * open_rooms[worker_id] / speed
        if not full:
            break
        for worker_id in full:
            left = max(left - shares[worker_id], 0.0)
            del open_rooms[worker_id]
    return shares
