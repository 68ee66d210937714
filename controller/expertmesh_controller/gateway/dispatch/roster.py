"""Which instances can be asked now: the newest table, the links that are up, and what lately failed."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence

from expertmesh_common.channel.frame import Status
from expertmesh_controller.cluster.routes import Epoch, ExpertAt, RouteTable
from expertmesh_controller.gateway.dispatch.assignment import Assignment, assign
from expertmesh_controller.gateway.dispatch.exchange import Failure
from expertmesh_controller.gateway.dispatch.links.base import Link
from expertmesh_controller.gateway.dispatch.links.pool import LinkPool

AVOID_S = 1.0  # how long an instance that answered STALE or FAILED is not asked again, unless a newer table comes


class Roster:
    """Keeps one assignment until something changes. `update` and `take_suspects` are for any thread.

    A worker whose link failed is a suspect and is not asked again before its link is up anew, which takes an answer
    of the table's generation of it.
    """

    def __init__(
        self, model: str, experts: Sequence[int], frequencies: Mapping[ExpertAt, float], pool: LinkPool
    ) -> None:
        self._model, self._experts, self._frequencies, self._pool = model, experts, frequencies, pool
        self._lock = threading.Lock()
        self._table = RouteTable()
        self._suspects: set[str] = set()
        self._avoided: dict[tuple[ExpertAt, str], float] = {}
        self._assignment: Assignment | None = None
        self._made_at = -1  # the bell's count
        self._made_for = Epoch()
        self._holds_until = float("inf")  # when the first avoided instance may be asked again

    def update(self, table: RouteTable) -> None:
        """Take over a table unless it is older than the one in use."""
        with self._lock:
            if table.epoch < self._table.epoch:
                return
            self._table = table
            self._pool.follow(table.workers)
        self._pool.bell.ring()

    def take_suspects(self) -> tuple[str, ...]:
        """Workers whose links failed since the last call, or are down for too long."""
        with self._lock:
            suspects, self._suspects = self._suspects, set()
        return tuple(sorted(suspects | self._pool.overdue()))

    def current(self) -> Assignment:
        """The assignment, made anew when a table, a link or an avoided instance has changed."""
        found = self._assignment
        if found is not None and self._made_at == self._pool.bell.count and not self._avoidance_ended():
            return found
        return self._make()

    def _avoidance_ended(self) -> bool:
        return bool(self._avoided) and time.monotonic() >= self._holds_until

    def _make(self) -> Assignment:
        self._made_at = self._pool.bell.count  # before looking: a later change must be seen again
        with self._lock:
            table = self._table
        now = time.monotonic()
        renewed = table.epoch != self._made_for
        self._avoided = {} if renewed else {at: until for at, until in self._avoided.items() if until > now}
        self._made_for = table.epoch
        self._holds_until = min(self._avoided.values(), default=float("inf"))
        self._pool.sweep()
        self._assignment = assign(
            table,
            self._model,
            experts=self._experts,
            frequencies=self._frequencies,
            link_to=self._pool.link,
            avoided=self._avoided.keys(),
        )
        return self._assignment

    def wait(self, deadline: float) -> bool:
        """Wait until there may be a better assignment than the current one; False when the deadline came first."""
        until = min(deadline, self._holds_until)
        return self._pool.bell.wait_beyond(self._made_at, until - time.monotonic()) or until < deadline

    def learn(self, failure: Failure, link: Link, layer: int, blame: bool) -> None:
        """Do not ask again who just failed; `blame` makes the worker of a broken link a suspect."""
        if failure.broken:
            self._pool.drop(link)
            if blame:
                with self._lock:
                    self._suspects.add(link.worker_id)
            return
        if not blame:
            return
        stale = failure.status is Status.STALE and failure.missing
        experts = failure.missing if stale else failure.message.expert.tolist()
        until = time.monotonic() + AVOID_S
        self._avoided |= {((layer, index), link.worker_id): until for index in experts}
        self._assignment = None
