"""Spare room: second copies of everything first, so that losing a worker uncovers little; then third copies."""

from __future__ import annotations

from collections.abc import Sequence

from expertmesh_controller.control.catalogue import ExpertKey
from expertmesh_controller.control.placement.draft import Draft


def fill_spare_room(draft: Draft) -> None:
    """Add copies until nothing fits; a copy beyond the second gives way to a second one of another expert."""
    if any(draft.in_share(key) for key in draft.missing()):
        # Whatever is free is too small for what is missing, but what becomes free next is not a replica's.
        return
    order = sorted(draft.needs, key=lambda k: (-draft.needs[k].frequency, k))
    _copy_everywhere(draft, order)
    # Every eviction gives one more expert a second copy, so this ends; what it freed may hold another third one.
    while any(_copy_by_eviction(draft, key) for key in order):
        _copy_everywhere(draft, order)


def _copy_everywhere(draft: Draft, order: Sequence[ExpertKey]) -> None:
    for copies in range(1, len(draft.rooms)):
        for key in order:
            _copy_to_room(draft, key, copies)


def _copy_to_room(draft: Draft, key: ExpertKey, copies: int) -> None:
    """Give an expert that `copies` workers hold one more copy, where most is free."""
    if len(draft.holders[key]) != copies or not draft.may_copy(key):
        return
    candidates = [w for w in draft.rooms if draft.fits(w, key)]
    if candidates:
        draft.add(min(candidates, key=lambda w: (-draft.free[w], draft.finish(w, key))), key)


def _copy_by_eviction(draft: Draft, key: ExpertKey) -> bool:
    """Give an expert with one copy a second in place of somebody's third."""
    if len(draft.holders[key]) != 1 or not draft.may_copy(key):
        return False
    for worker_id in draft.rooms:
        if not draft.allows(worker_id, key):
            continue
        for other in draft.spare(worker_id, copies=2):
            room = draft.free[worker_id] + draft.needs[other].resident_bytes
            if room >= draft.needs[key].resident_bytes and draft.in_share(key, instead_of=other):
                draft.drop(worker_id, other)
                draft.add(worker_id, key)
                return True
    return False
