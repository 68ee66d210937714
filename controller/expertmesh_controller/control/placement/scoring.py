"""How good a placement is, and whether it can be reached from what is loaded."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet

from expertmesh_controller.cluster.routes import LEAST_FREQUENCY, ExpertAt, spread
from expertmesh_controller.control.catalogue import ExpertKey
from expertmesh_controller.control.placement.draft import Draft
from expertmesh_controller.control.placement.types import ExpertNeed, WorkerRoom


def layers_time(draft: Draft) -> float:
    """The sum over layers of the time until the last worker is done, per token, when routed as gateways route."""
    speeds = {w: r.speed_rows_per_s if r.speed_rows_per_s > 0 else 1.0 for w, r in draft.rooms.items()}
    models: dict[str, dict[ExpertAt, ExpertKey]] = defaultdict(dict)
    for key, holders in draft.holders.items():
        if holders:
            models[key.model][key.layer, key.index] = key
    total = 0.0
    for keys in models.values():
        replicas = {at: tuple(sorted(draft.holders[key])) for at, key in keys.items()}
        rows = {at: max(draft.needs[key].frequency, LEAST_FREQUENCY) for at, key in keys.items()}
        busy: dict[int, dict[str, float]] = defaultdict(lambda: defaultdict(float))
        for at, worker_id in spread(replicas, rows, speeds).items():
            busy[at[0]][worker_id] += rows[at] / speeds[worker_id]
        total += sum(max(times.values()) for times in busy.values())
    return total


def reachable(
    rooms: Sequence[WorkerRoom],
    target: Mapping[str, AbstractSet[ExpertKey]],
    needs: Mapping[ExpertKey, ExpertNeed],
) -> bool:
    """Whether loading what fits and unloading what has another copy, again and again, ends at `target`."""
    held = {r.worker_id: set(r.resident & needs.keys()) for r in rooms}
    budget = {r.worker_id: r.budget_bytes for r in rooms}
    moved = True
    while moved:
        moved = _unload_spare(held, target) + _load_fitting(held, target, needs, budget) > 0
    return all(held[w] == set(keys) for w, keys in target.items())


def _unload_spare(held: Mapping[str, set[ExpertKey]], target: Mapping[str, AbstractSet[ExpertKey]]) -> int:
    count = 0
    for worker_id, keys in held.items():
        for key in keys - target[worker_id]:
            if sum(key in others for others in held.values()) > 1:
                keys.discard(key)
                count += 1
    return count


def _load_fitting(
    held: Mapping[str, set[ExpertKey]],
    target: Mapping[str, AbstractSet[ExpertKey]],
    needs: Mapping[ExpertKey, ExpertNeed],
    budget: Mapping[str, int],
) -> int:
    count = 0
    for worker_id, keys in held.items():
        free = budget[worker_id] - sum(needs[k].resident_bytes for k in keys)
        for key in sorted(target[worker_id] - keys):
            if needs[key].resident_bytes <= free:
                keys.add(key)
                free -= needs[key].resident_bytes
                count += 1
    return count
