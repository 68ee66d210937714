"""What a controller takes over from its predecessor's record: which starts of its workers must not come back."""

from __future__ import annotations

from dataclasses import replace

from expertmesh_controller.control.membership.state import Cluster, Life, Member, Restored

__all__ = ["LIVES_KEPT", "RETIRED_KEPT", "ghosts", "last_generations", "restored"]

RETIRED_KEPT = 32
"""Superseded generations remembered per worker: a ghost is one of the last few."""

LIVES_KEPT = 4096
"""Workers whose last start is written down: those that joined last, for names may be new at every start too."""


def last_generations(cluster: Cluster) -> dict[str, str]:
    """The last start of every worker, as far as it is worth keeping."""
    return {worker_id: life.generation for worker_id, life in list(cluster.lives.items())[-LIVES_KEPT:]}


def ghosts(cluster: Cluster, event: Restored) -> tuple[Member, ...]:
    """Who has joined since and is a start that was superseded before."""
    return tuple(m for w, m in cluster.members.items() if m.hello.generation in event.retired.get(w, ()))


def restored(cluster: Cluster, event: Restored) -> Cluster:
    """The cluster, which has no ghosts for members any more, with what was known before."""
    retired, lives = dict(cluster.retired), dict(cluster.lives)
    for worker_id in {**event.generations, **event.retired}:
        superseded, last = event.retired.get(worker_id, ()), event.generations.get(worker_id)
        life = lives.get(worker_id)
        seen = (*retired.get(worker_id, ()), *(() if life is None else (life.generation,)))
        # A ghost that joined while the record was not known yet has retired nobody.
        newest = next((g for g in reversed(seen) if g not in superseded), last)
        if older := [g for g in (*superseded, *(() if last is None else (last,)), *seen) if g != newest]:
            retired[worker_id] = _newest(*older)
        if newest is not None and (life is None or life.generation != newest):
            # How it ended while nobody watched is not known: its successor's start is no crash.
            lives[worker_id] = Life(newest, left=True)
    return replace(cluster, retired=retired, lives=lives)


def _newest(*generations: str) -> tuple[str, ...]:
    """The last few, each once."""
    return tuple(dict.fromkeys(generations))[-RETIRED_KEPT:]
