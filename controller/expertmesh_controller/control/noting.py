"""From a change of the membership to what the journal says about it."""

from __future__ import annotations

from typing import Any

from expertmesh_controller.control.journal import Reason, key_facts
from expertmesh_controller.control.membership.state import (
    Broke,
    Cluster,
    Event,
    Joined,
    LeaveAsked,
    Member,
    Restored,
    Suspected,
)

Note = tuple[Reason, dict[str, Any]]

_LOST: dict[type[Event], Reason] = {Broke: Reason.WORKER_STREAM_BROKE, Restored: Reason.WORKER_REPLACED}


def notes_of(before: Cluster, after: Cluster, event: Event) -> list[Note]:
    """Reason codes with their facts; heartbeats and orders that went well say nothing."""
    if isinstance(event, Joined):
        joined = after.members[event.hello.worker_id]
        reason = Reason.WORKER_REPLACED if event.hello.worker_id in before.members else Reason.WORKER_JOINED
        return [(reason, _facts(joined)), *_unstable(joined, after, event.at)]
    if isinstance(event, LeaveAsked):
        member = after.member_of(event.connection)
        return [(Reason.WORKER_LEAVING, _facts(member))] if member is not None else []
    if isinstance(event, Suspected):
        return _doubts(before, after, event)
    lost = _LOST.get(type(event), Reason.WORKER_LEASE_EXPIRED)
    notes: list[Note] = [(lost, _facts(m)) for w, m in sorted(before.members.items()) if w not in after.members]
    for (worker_id, key), failure in sorted(after.failures.items()):
        if before.failures.get((worker_id, key)) != failure:
            facts = {"expert": key_facts([key])[0], "attempts": failure.attempts, "error": failure.error[:500]}
            notes.append((Reason.ORDER_FAILED, {"worker_id": worker_id, **facts}))
    back = before.unreachable - after.unreachable
    return notes + [(Reason.WORKER_REACHABLE, {"worker_id": w}) for w in sorted(back) if w in after.members]


def _doubts(before: Cluster, after: Cluster, event: Suspected) -> list[Note]:
    """Who is suspected anew, and whom a gateway now turns out not to reach; repeated reports say nothing new."""
    changes = (
        (Reason.WORKER_SUSPECTED, after.suspects - before.suspects),
        (Reason.WORKER_UNREACHABLE, after.unreachable - before.unreachable),
    )
    facts = {"gateway_id": event.gateway_id}
    return [(reason, {"worker_id": worker_id, **facts}) for reason, ids in changes for worker_id in sorted(ids)]


def _unstable(joined: Member, after: Cluster, at: float) -> list[Note]:
    worker_id = joined.hello.worker_id
    if joined.aside_until <= at:
        return []
    facts = {"worker_id": worker_id, "crashes": len(after.lives[worker_id].crashes), "wait_s": joined.aside_until - at}
    return [(Reason.WORKER_UNSTABLE, facts)]


def lost_somebody(before: Cluster, after: Cluster) -> bool:
    """Whether a stream that experts were served over is over."""
    return any(w not in after.members or after.members[w].connection != m.connection for w, m in before.members.items())


def _facts(member: Member) -> dict[str, Any]:
    return {
        "worker_id": member.hello.worker_id,
        "generation": member.hello.generation,
        "budget_bytes": member.hello.capabilities.budget_bytes,
        "speed_rows_per_s": member.hello.capabilities.speed_rows_per_s,
        "resident_bytes": member.resident_bytes,
    }
