"""Which worker holds which expert: a pure function of experts, workers, and what is loaded already.

Three goals in this order: every expert has a copy inside the budgets; every layer's expected work is spread over the
workers in proportion to their speed; spare room holds second copies, then third, the most frequent experts first.
What is loaded stays where it is unless a fresh start would be much better.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from expertmesh_controller.control.catalogue import ExpertKey, ModelLimits
from expertmesh_controller.control.placement.draft import Draft
from expertmesh_controller.control.placement.limiting import free_share, keep_limits
from expertmesh_controller.control.placement.replicas import fill_spare_room
from expertmesh_controller.control.placement.scoring import layers_time, reachable
from expertmesh_controller.control.placement.types import ExpertNeed, Plan, WorkerRoom

Order = Callable[[ExpertNeed], tuple[object, ...]]


def plan(
    experts: Iterable[ExpertNeed],
    workers: Iterable[WorkerRoom],
    rebalance_ratio: float = 1.25,
    limits: Mapping[str, ModelLimits] | None = None,
) -> Plan:
    """Where every expert should be. The order of the input does not matter; `limits` are by model.

    What does not fit, or not into its model's share of all budgets, is in `Plan.missing`; the rest is placed all the
    same. A plan made from scratch replaces one that keeps what is loaded only if it places more, or if layers would
    take `rebalance_ratio` times less, and if it can be reached without unrouting an expert on the way.
    """
    needs = {n.key: n for n in sorted(experts, key=lambda n: n.key)}
    rooms = sorted(workers, key=lambda r: r.worker_id)
    limits = limits or {}
    kept = _complete(needs, rooms, limits, keep=True)
    if not any(r.resident for r in rooms):
        return _answer(kept, "fresh")
    fresh = _complete(needs, rooms, limits, keep=False)
    if _is_better(fresh, kept, rebalance_ratio) and reachable(rooms, fresh.held, needs):
        return _answer(fresh, "rebalanced")
    return _answer(kept, "kept")


def _answer(draft: Draft, reason: str) -> Plan:
    missing = draft.missing()
    return Plan(
        {w: frozenset(keys) for w, keys in draft.held.items()},
        missing,
        sum(draft.needs[k].resident_bytes for k in missing),
        reason,
    )


def _is_better(fresh: Draft, kept: Draft, ratio: float) -> bool:
    if len(fresh.missing()) != len(kept.missing()):
        return len(fresh.missing()) < len(kept.missing())
    return layers_time(kept) > ratio * layers_time(fresh)


def _complete(
    needs: Mapping[ExpertKey, ExpertNeed],
    rooms: Sequence[WorkerRoom],
    limits: Mapping[str, ModelLimits],
    *,
    keep: bool,
) -> Draft:
    """Cover, then replicate. Balanced order first; largest first where that leaves something over."""
    orders: tuple[Order, ...] = (
        lambda n: (n.key.model, n.key.layer, -n.frequency, n.key),
        lambda n: (-n.resident_bytes, n.key),
    )
    drafts = []
    for order in orders:
        draft = Draft(needs, rooms, limits)
        if keep:
            _keep_resident(draft)
            keep_limits(draft)
        _cover(draft, sorted(needs.values(), key=order))
        drafts.append(draft)
        if not draft.missing():
            break
    best = min(drafts, key=lambda d: len(d.missing()))
    fill_spare_room(best)
    return best


def _keep_resident(draft: Draft) -> None:
    """Start from what is loaded. Where a budget shrank, only copies go first, then the most frequent stay."""
    copies: dict[ExpertKey, int] = {}
    for room in draft.rooms.values():
        for key in room.resident & draft.needs.keys():
            copies[key] = copies.get(key, 0) + 1
    for worker_id, room in draft.rooms.items():
        known = room.resident & draft.needs.keys()
        for key in sorted(known, key=lambda k: (copies[k] > 1, -draft.needs[k].frequency, k)):
            if draft.needs[key].resident_bytes <= draft.free[worker_id]:
                draft.add(worker_id, key)


def _cover(draft: Draft, needs: Sequence[ExpertNeed]) -> None:
    """Give every expert without a copy one: where its layer is done first, making room if nobody has any."""
    for need in needs:
        if draft.holders[need.key] or not free_share(draft, need.key):
            continue
        candidates = [w for w in draft.rooms if draft.fits(w, need.key)]
        if candidates:
            draft.add(min(candidates, key=lambda w: draft.finish(w, need.key)), need.key)
        else:
            _make_room(draft, need)


def _make_room(draft: Draft, need: ExpertNeed) -> None:
    """Evict replicas of other covered experts on the worker where the least is lost, and place the expert there."""
    options = {w: _evictions(draft, w, need) for w in draft.rooms if draft.allows(w, need.key)}
    possible = {w: keys for w, keys in options.items() if keys is not None}
    if not possible:
        return
    best = min(
        possible,
        key=lambda w: (sum(draft.needs[k].resident_bytes for k in possible[w]), draft.finish(w, need.key)),
    )
    for key in possible[best]:
        draft.drop(best, key)
    draft.add(best, need.key)


def _evictions(draft: Draft, worker_id: str, need: ExpertNeed) -> list[ExpertKey] | None:
    """The least frequent replicas whose bytes, with what is free, hold the expert; None if all are too few."""
    room, evicted = draft.free[worker_id], []
    for key in draft.spare(worker_id, copies=1):
        if room >= need.resident_bytes:
            break
        room += draft.needs[key].resident_bytes
        evicted.append(key)
    return evicted if room >= need.resident_bytes else None
