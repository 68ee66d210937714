"""`next_steps`: from what should be and what is to what can be done now.

An expert moves by loading at its new place in the background, entering the table, leaving it at its old place, and
being unloaded there once no gateway can still use it. Every rule looks at the whole world anew, so whatever was lost
on the way is simply done again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Set as AbstractSet

from expertmesh_controller.control.catalogue import ExpertKey
from expertmesh_controller.control.membership.state import WorkerExpert
from expertmesh_controller.control.reconcile.types import (
    Desired,
    InFlight,
    LoadExpert,
    Observed,
    Route,
    Step,
    UnloadExpert,
)


def next_steps(desired: Desired, observed: Observed, in_flight: InFlight) -> list[Step]:
    """Every step that is possible now: at most one change of the table, then unloads, then loads.

    Loads of experts that nobody serves come first. Nothing is ordered twice while an order for the same expert on
    the same worker is in flight.
    """
    add, remove = _entering(desired, observed, in_flight), _lost(observed)
    remove |= _retiring(desired, observed, (observed.routed | add) - remove)
    steps: list[Step] = []
    if add or remove:
        steps.append(Route(frozenset(add), frozenset(remove)))
    routed = (observed.routed | add) - remove
    steps += _unloads(desired, observed, in_flight, routed | remove)
    steps += _loads(desired, observed, in_flight, routed)
    return steps


def _entering(desired: Desired, observed: Observed, in_flight: InFlight) -> set[WorkerExpert]:
    """What is loaded where it should be and not in the table."""
    return {
        (worker_id, key)
        for worker_id, holding in observed.holdings.items()
        for key in holding.resident & desired.get(worker_id, frozenset())
        if (worker_id, key) not in observed.routed and ("unload", worker_id, key) not in in_flight
    }


def _lost(observed: Observed) -> set[WorkerExpert]:
    """What is in the table and no longer loaded."""
    return {
        (worker_id, key)
        for worker_id, key in observed.routed
        if worker_id not in observed.holdings or key not in observed.holdings[worker_id].resident
    }


def _retiring(desired: Desired, observed: Observed, routed: AbstractSet[WorkerExpert]) -> set[WorkerExpert]:
    """What should not be where it is, as long as another place surely serves it or nobody should."""
    doubted = {worker_id for worker_id, holding in observed.holdings.items() if holding.doubted}
    copies = Counter(key for worker_id, key in routed if worker_id not in doubted)
    wanted = frozenset[ExpertKey]().union(*desired.values())
    retiring = set()
    for worker_id, key in sorted(routed):
        if key in desired.get(worker_id, frozenset()):
            continue
        own = worker_id not in doubted
        if copies[key] > own or (key not in wanted and key not in observed.needed_bytes):
            copies[key] -= own
            retiring.add((worker_id, key))
    return retiring


def _unloads(desired: Desired, observed: Observed, in_flight: InFlight, used: AbstractSet[WorkerExpert]) -> list[Step]:
    """What is loaded in vain and drained."""
    return [
        UnloadExpert(worker_id, key)
        for worker_id, holding in sorted(observed.holdings.items())
        for key in sorted(holding.foreign | (holding.resident - desired.get(worker_id, frozenset())))
        if (worker_id, key) not in used
        and not (holding.leaving or holding.aside)
        and _drained(observed, (worker_id, key))
        and _due(observed, (worker_id, key))
        and ("unload", worker_id, key) not in in_flight
    ]


def _drained(observed: Observed, place: WorkerExpert) -> bool:
    if place not in observed.draining:
        return True
    until = observed.draining[place]
    return until is not None and observed.now >= until


def _loads(desired: Desired, observed: Observed, in_flight: InFlight, routed: AbstractSet[WorkerExpert]) -> list[Step]:
    """What should be loaded and fits now, the least covered experts first."""
    aside = {worker_id for worker_id, holding in observed.holdings.items() if holding.aside}
    places = [*routed, *((worker_id, key) for kind, worker_id, key in in_flight if kind == "load")]
    copies = Counter(key for worker_id, key in places if worker_id not in aside)
    free = {w: h.free_bytes - _promised(observed, in_flight, w) for w, h in observed.holdings.items()}
    busy = Counter(worker_id for kind, worker_id, _ in in_flight if kind == "load")
    wanted = [place for place in _unloaded(desired, observed) if _may_load(observed, in_flight, place)]
    steps: list[Step] = []
    for worker_id, key in sorted(wanted, key=lambda place: (copies[place[1]], place[1], place[0])):
        # A load that does not fit yet keeps its turn: smaller ones of lower rank must not take the room it waits for.
        free[worker_id] -= observed.needed_bytes[key]
        if free[worker_id] >= 0 and busy[worker_id] < observed.loads_per_worker:
            busy[worker_id] += 1
            steps.append(LoadExpert(worker_id, key))
    return steps


def _unloaded(desired: Desired, observed: Observed) -> list[WorkerExpert]:
    return [
        (worker_id, key)
        for worker_id, keys in desired.items()
        if worker_id in observed.holdings and not observed.holdings[worker_id].leaving
        for key in keys - observed.holdings[worker_id].resident - observed.holdings[worker_id].foreign
        if key in observed.needed_bytes
    ]


def _may_load(observed: Observed, in_flight: InFlight, place: WorkerExpert) -> bool:
    return ("load", *place) not in in_flight and _due(observed, place)


def _due(observed: Observed, place: WorkerExpert) -> bool:
    """Whether a failed order may be given again."""
    return observed.not_before.get(place, observed.now) <= observed.now


def _promised(observed: Observed, in_flight: InFlight, worker_id: str) -> int:
    """Bytes that orders in flight will take."""
    return sum(observed.needed_bytes.get(key, 0) for kind, w, key in in_flight if kind == "load" and w == worker_id)
