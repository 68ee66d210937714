"""What placement is asked and what it answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from expertmesh_controller.control.catalogue import ExpertKey


@dataclass(frozen=True, slots=True)
class ExpertNeed:
    """An expert that must be somewhere. `frequency` is the share of tokens that are routed to it."""

    key: ExpertKey
    resident_bytes: int
    frequency: float


@dataclass(frozen=True, slots=True)
class WorkerRoom:
    """A worker that experts can be put on, what it holds or is loading, and what it failed to load lately."""

    worker_id: str
    budget_bytes: int
    speed_rows_per_s: float
    resident: frozenset[ExpertKey] = frozenset()
    refused: frozenset[ExpertKey] = frozenset()


@dataclass(frozen=True, slots=True)
class Plan:
    """Which experts each worker should hold; `missing` found no room anywhere (or none in their model's share)."""

    assignments: Mapping[str, frozenset[ExpertKey]]
    missing: tuple[ExpertKey, ...] = ()
    missing_bytes: int = 0
    reason: str = "kept"

    def loads(self, rooms: Mapping[str, WorkerRoom]) -> dict[str, frozenset[ExpertKey]]:
        """What each worker has to load that it does not hold."""
        return {w: keys - rooms[w].resident for w, keys in self.assignments.items()}

    def unloads(self, rooms: Mapping[str, WorkerRoom]) -> dict[str, frozenset[ExpertKey]]:
        return {w: rooms[w].resident - keys for w, keys in self.assignments.items()}
