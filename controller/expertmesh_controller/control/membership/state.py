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
    suspicion_s: float = 3.0
    confirm_s: float = 0.8
    crash_window_s: float = 60.0
    crash_first_s: float = 2.0
    crash_most_s: float = 30.0


@dataclass(frozen=True, slots=True)
class Member:
    """A live worker: it said hello on `connection` and its lease runs.

    `aside_until`: it crashed again and again, and placement leaves it out until then.
    """

    hello: Hello
    connection: int
    joined_at: float
    heard_at: float
    resident: Mapping[ExpertKey, Resident]
    leaving_since: float | None = None
    rows: int = 0
    aside_until: float = 0.0

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
class Life:
    """The last start of a worker that was seen.

    `crashes` are the times when its predecessors were replaced that did not leave in order; `left`: it did.
    """

    generation: str
    crashes: tuple[float, ...] = ()
    left: bool = False


@dataclass(frozen=True, slots=True)
class Suspicion:
    """A gateway named a worker that it has no link to, first and last at these times without a long pause between.

    One failed call names a worker once; only a link that stays down names it again and again. That is `confirmed`.
    """

    first_at: float
    last_at: float
    confirmed: bool = False


@dataclass(frozen=True, slots=True)
class Cluster:
    """Everything membership knows. `retired` lists generations that were superseded and must not come back."""

    limits: Limits
    members: Mapping[str, Member] = field(default_factory=dict)
    retired: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    orders: Mapping[int, SentOrder] = field(default_factory=dict)
    failures: Mapping[WorkerExpert, Failure] = field(default_factory=dict)
    suspicions: Mapping[tuple[str, str], Suspicion] = field(default_factory=dict)
    """(worker id, gateway id) -> what the gateway says about its link to the worker, while it goes on saying so."""
    lives: Mapping[str, Life] = field(default_factory=dict)
    """The last start of every worker that ever joined."""

    def member_of(self, connection: int) -> Member | None:
        """The member that speaks on a connection; None when it was replaced, lost or never joined."""
        return next((m for m in self.members.values() if m.connection == connection), None)

    @property
    def suspects(self) -> frozenset[str]:
        """Workers that some gateway lately had no link to."""
        return frozenset(worker_id for worker_id, _ in self.suspicions)

    @property
    def unreachable(self) -> frozenset[str]:
        """Workers that some gateway cannot reach: they beat, and what they hold serves nobody there."""
        return frozenset(worker_id for (worker_id, _), s in self.suspicions.items() if s.confirmed)

    def unstable(self, now: float) -> frozenset[str]:
        """Workers that crashed again and again and are waited with."""
        return frozenset(worker_id for worker_id, m in self.members.items() if now < m.aside_until)

    def aside(self, now: float) -> frozenset[str]:
        """Workers that placement leaves out for now: they keep what they hold and get no orders.

        An unstable worker is better than none.
        """
        unreachable, unstable = self.unreachable, self.unstable(now)
        steady = self.members.keys() - unreachable - unstable
        return unreachable | unstable if steady else unreachable


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


@dataclass(frozen=True, slots=True)
class Suspected:
    """A gateway's report: the workers that it has no link to now."""

    gateway_id: str
    worker_ids: frozenset[str]
    at: float


@dataclass(frozen=True, slots=True)
class Restored:
    """What the last leader wrote down: superseded starts by worker, and the last start of each."""

    retired: Mapping[str, tuple[str, ...]]
    generations: Mapping[str, str]


Event = Joined | Heard | LeaveAsked | Broke | Ordered | Answered | Ticked | Suspected | Restored
