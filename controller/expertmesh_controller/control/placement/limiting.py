"""Keeping every model inside what its operator allows it: a share of all budgets, a number of copies."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from expertmesh_controller.control.catalogue import ExpertKey
from expertmesh_controller.control.placement.draft import Draft


def keep_limits(draft: Draft) -> None:
    """Give up replicas of models that have more than they may; an expert's last copy stays, whatever the share."""
    for key, holders in draft.holders.items():
        most = draft.limits[key.model].max_copies if key.model in draft.limits else 0
        for worker_id in sorted(holders)[most:] if most else ():
            draft.drop(worker_id, key)
    for model in draft.limits:
        _drop_replicas(draft, model, partial(draft.is_in_share, model))


def free_share(draft: Draft, key: ExpertKey) -> bool:
    """Make room for an expert's first copy in its model's share, from the model's replicas; False: there is none."""
    if not draft.in_share(key):
        _drop_replicas(draft, key.model, partial(draft.in_share, key))
    return draft.in_share(key)


def _drop_replicas(draft: Draft, model: str, enough: Callable[[], bool]) -> None:
    """The least frequent experts' first, until there is room enough or every expert has one copy."""
    for worker_id, key in draft.replicas(model):
        if enough():
            return
        if len(draft.holders[key]) > 1:
            draft.drop(worker_id, key)
