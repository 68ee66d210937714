"""What reconcile compares, and the steps it asks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from expertmesh_controller.control.catalogue import ExpertKey
from expertmesh_controller.control.membership.state import OrderKind, WorkerExpert

Desired = Mapping[str, frozenset[ExpertKey]]
"""Worker id -> the experts it should hold."""

InFlight = frozenset[tuple[OrderKind, str, ExpertKey]]
"""Orders that were given and not answered: (kind, worker id, expert)."""


@dataclass(frozen=True, slots=True)
class Holding:
    """What a live worker holds. `foreign` are loaded experts that no served model has (any more).

    `doubted`: it is not sure that gateways reach it, so its copies stand in for nobody else's. `aside`: placement
    leaves it out for now; it keeps what it holds and gets no orders.
    """

    resident: frozenset[ExpertKey]
    free_bytes: int
    foreign: frozenset[ExpertKey] = frozenset()
    leaving: bool = False
    doubted: bool = False
    aside: bool = False


@dataclass(frozen=True, slots=True)
class Observed:
    """The world as of `now`. `draining` are places that gateways may still use: until when, or None for not known."""

    now: float
    holdings: Mapping[str, Holding]
    routed: frozenset[WorkerExpert]
    needed_bytes: Mapping[ExpertKey, int]
    draining: Mapping[WorkerExpert, float | None] = field(default_factory=dict)
    not_before: Mapping[WorkerExpert, float] = field(default_factory=dict)
    loads_per_worker: int = 4


@dataclass(frozen=True, slots=True)
class Route:
    """Change the table in one epoch step."""

    add: frozenset[WorkerExpert]
    remove: frozenset[WorkerExpert]


@dataclass(frozen=True, slots=True)
class LoadExpert:
    worker_id: str
    key: ExpertKey


@dataclass(frozen=True, slots=True)
class UnloadExpert:
    worker_id: str
    key: ExpertKey


Step = Route | LoadExpert | UnloadExpert
