"""What a controller takes over from its predecessor's record: which starts of its workers must not come back."""

from __future__ import annotations

from dataclasses import replace

from expertmesh_controller.control.membership.state import Cluster, Life, Restored

__all__ = ["LIVES_KEPT", "RETIRED_KEPT", "last_generations", "restored"]

RETIRED_KEPT = 32
"""Superseded generations remembered per worker: a ghost is one of the last few."""

LIVES_KEPT = 4096
"""Workers whose last start is written down: those that joined last, for names may be new at every start too."""


def last_generations(cluster: Cluster) -> dict[str, str]:
    """The last start of every worker, as far as it is worth keeping."""
    return {worker_id: life.generation for worker_id, life in list(cluster.lives.items())[-LIVES_KEPT:]}


def restored(cluster: Cluster, event: Restored) -> Cluster:
    """The cluster with what was known before; who has joined since and turns out to be a ghost is no member."""
    retired, lives = dict(cluster.retired), dict(cluster.lives)
    for worker_id, generations in event.retired.items():
        retired[worker_id] = _newest(*generations, *retired.get(worker_id, ()))
    for worker_id, generation in event.generations.items():
        life = lives.get(worker_id)
        if life is None:
            # How it ended while nobody watched is not known: its successor's start is no crash.
            lives[worker_id] = Life(generation, left=True)
        elif life.generation != generation:
            retired[worker_id] = _newest(generation, *retired.get(worker_id, ()))
    members = {w: m for w, m in cluster.members.items() if m.hello.generation not in event.retired.get(w, ())}
    return replace(cluster, retired=retired, lives=lives, members=members)


def _newest(*generations: str) -> tuple[str, ...]:
    """The last few, each once."""
    return tuple(dict.fromkeys(generations))[-RETIRED_KEPT:]
