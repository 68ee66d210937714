"""The journal: every decision with its reason code and its inputs, so that it can be made again."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from expertmesh_controller.cluster.routes import Epoch
from expertmesh_controller.control.catalogue import ExpertKey
from expertmesh_controller.control.placement.types import Plan, WorkerRoom

JOURNAL_KEY = "journal"


class Reason(StrEnum):
    """Why something was decided or noted."""

    LEADER_STARTED = "leader_started"
    WORKER_JOINED = "worker_joined"
    WORKER_REPLACED = "worker_replaced"
    WORKER_STREAM_BROKE = "worker_stream_broke"
    WORKER_LEASE_EXPIRED = "worker_lease_expired"
    WORKER_LEAVING = "worker_leaving"
    WORKER_SUSPECTED = "worker_suspected"
    WORKER_UNSTABLE = "worker_unstable"
    WORKER_UNREACHABLE = "worker_unreachable"
    WORKER_REACHABLE = "worker_reachable"
    ORDER_FAILED = "order_failed"
    ADMIN_CALL = "admin_call"
    PLACEMENT_FRESH = "placement_fresh"
    PLACEMENT_KEPT = "placement_kept"
    PLACEMENT_REBALANCED = "placement_rebalanced"
    PLACEMENT_INCOMPLETE = "placement_incomplete"


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the journal. `inputs` and `decision` are JSON values; `at_ms` is the wall clock."""

    reason: Reason
    epoch: Epoch
    at_ms: int
    inputs: Mapping[str, Any] = field(default_factory=dict)
    decision: Mapping[str, Any] = field(default_factory=dict)

    def encode(self) -> bytes:
        document = {
            "reason": self.reason.value,
            "epoch": [self.epoch.term, self.epoch.n],
            "at_ms": self.at_ms,
            "inputs": self.inputs,
            "decision": self.decision,
        }
        return json.dumps(document, separators=(",", ":"), sort_keys=True).encode()

    @staticmethod
    def decode(data: bytes) -> Entry:
        document = json.loads(data)
        return Entry(
            Reason(document["reason"]),
            Epoch(*document["epoch"]),
            document["at_ms"],
            document["inputs"],
            document["decision"],
        )


def plan_reason(plan: Plan) -> Reason:
    return Reason.PLACEMENT_INCOMPLETE if plan.missing else Reason(f"placement_{plan.reason}")


def room_facts(rooms: Iterable[WorkerRoom]) -> list[dict[str, Any]]:
    """The workers as placement saw them."""
    return [
        {
            "worker_id": r.worker_id,
            "budget_bytes": r.budget_bytes,
            "speed_rows_per_s": r.speed_rows_per_s,
            "resident": key_facts(r.resident),
            "refused": key_facts(r.refused),
        }
        for r in rooms
    ]


def rooms_of(facts: Iterable[Mapping[str, Any]]) -> list[WorkerRoom]:
    """The inverse of `room_facts`."""
    return [
        WorkerRoom(
            f["worker_id"], f["budget_bytes"], f["speed_rows_per_s"], keys_of(f["resident"]), keys_of(f["refused"])
        )
        for f in facts
    ]


def key_facts(keys: Iterable[ExpertKey]) -> list[list[Any]]:
    return [[k.model, k.layer, k.index, k.precision] for k in sorted(keys)]


def keys_of(facts: Iterable[Iterable[Any]]) -> frozenset[ExpertKey]:
    return frozenset(ExpertKey(*fact) for fact in facts)
