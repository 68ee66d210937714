"""Who is in the cluster, what they hold, and what they were ordered to do: frozen data and its events."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from expertmesh_controller.control.catalogue import ExpertKey
from expertmesh_controller.control.membership.hello import Hello, Resident

OrderKind = Literal["load", "unload"]
WorkerExpert = tuple[str, ExpertKey]
"""(worker id, expert)."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Times in seconds; see `ControlSettings`."""

    lease_s: float
    order_timeout_s: float
    retry_first_s: float
    retry_most_s: float


@dataclass(frozen=True, slots=True)
class Member:
    """A live worker: it said hello on `connection` and its lease runs."""

    hello: Hello
    connection: int
    joined_at: float
    heard_at: float
    resident: Mapping[ExpertKey, Resident]
    leaving_since: float | None = None
    rows: int = 0

    @property
    def resident_bytes(self) -> int:
        return sum(r.resident_bytes for r in self.resident.values())


@dataclass(frozen=True, slots=True)
class SentOrder:
    """An order without an answer. After its timeout it is `overdue`: given up, but a late answer is still believed."""

    worker_id: str
    kind: OrderKind
    key: ExpertKey
    resident: Resident
    sent_at: float
    overdue: bool = False


@dataclass(frozen=True, slots=True)
class Failure:
    """Loads of one expert that failed on one worker; it is not asked again before `not_before`."""

    attempts: int
    not_before: float
    error: str


@dataclass(frozen=True, slots=True)
class Cluster:
    """Everything membership knows. `retired` lists generations that were superseded and must not come back."""

    limits: Limits
    members: Mapping[str, Member] = field(default_factory=dict)
    retired: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    orders: Mapping[int, SentOrder] = field(default_factory=dict)
    failures: Mapping[WorkerExpert, Failure] = field(default_factory=dict)

    def member_of(self, connection: int) -> Member | None:
        """The member that speaks on a connection; None when it was replaced, lost or never joined."""
        return next((m for m in self.members.values() if m.connection == connection), None)


@dataclass(frozen=True, slots=True)
class Joined:
    hello: Hello
    connection: int
    at: float


@dataclass(frozen=True, slots=True)
class Heard:
    """A heartbeat."""

    connection: int
    at: float
    rows: int


@dataclass(frozen=True, slots=True)
class LeaveAsked:
    connection: int
    at: float


@dataclass(frozen=True, slots=True)
class Broke:
    """The stream ended, for whatever reason."""

    connection: int


@dataclass(frozen=True, slots=True)
class Ordered:
    order_id: int
    order: SentOrder


@dataclass(frozen=True, slots=True)
class Answered:
    connection: int
    order_id: int
    ok: bool
    error: str
    at: float


@dataclass(frozen=True, slots=True)
class Ticked:
    """Time passed: leases and orders may be over."""

    at: float


Event = Joined | Heard | LeaveAsked | Broke | Ordered | Answered | Ticked
