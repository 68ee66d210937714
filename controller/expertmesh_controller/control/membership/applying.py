"""`apply(cluster, event) -> cluster`: everything that can happen to the membership, without clocks or sockets."""

from __future__ import annotations

from dataclasses import replace
from functools import reduce

from expertmesh_common.errors import Refused
from expertmesh_controller.control.membership.hello import Hello
from expertmesh_controller.control.membership.restoring import RETIRED_KEPT, ghosts, restored
from expertmesh_controller.control.membership.state import (
    Answered,
    Broke,
    Cluster,
    Event,
    Failure,
    Heard,
    Joined,
    LeaveAsked,
    Life,
    Limits,
    Member,
    Ordered,
    Restored,
    SentOrder,
    Suspected,
    Suspicion,
    Ticked,
)

CRASHES_ALLOWED = 2
"""A worker may be killed, and killed again by whoever looks for the reason; after that it is left out for a while."""


def admit(cluster: Cluster, hello: Hello) -> None:
    """Whether this hello may join.

    Raises:
        Refused: a later start of the same worker has joined before.

    """
    if hello.generation in cluster.retired.get(hello.worker_id, ()):
        raise Refused(
            f"worker {hello.worker_id} of generation {hello.generation} was replaced by a later start of it; "
            "if these are two machines, give each its own --id"
        )


def apply(cluster: Cluster, event: Event) -> Cluster:  # noqa: C901, PLR0911 - one case an event
    """The cluster after `event`. Events of connections that are not a member's (any more) change nothing."""
    match event:
        case Joined():
            return _joined(cluster, event)
        case Ticked(at):
            return _ticked(cluster, at)
        case Ordered(order_id, order):
            return replace(cluster, orders={**cluster.orders, order_id: order})
        case Suspected():
            return _suspected(cluster, event)
        case Restored():
            return restored(reduce(_without, ghosts(cluster, event), cluster), event)
    member = cluster.member_of(event.connection)
    if member is None:
        return cluster
    match event:
        case Heard(_, at, rows):
            return _with(cluster, replace(member, heard_at=at, rows=rows))
        case LeaveAsked(_, at):
            life = replace(cluster.lives[member.hello.worker_id], left=True)
            cluster = replace(cluster, lives={**cluster.lives, member.hello.worker_id: life})
            return _with(cluster, replace(member, leaving_since=at, heard_at=at))
        case Broke():
            return _without(cluster, member)
        case Answered():
            return _answered(cluster, replace(member, heard_at=event.at), event)


def _joined(cluster: Cluster, event: Joined) -> Cluster:
    hello = event.hello
    old = cluster.members.get(hello.worker_id)
    if old is not None:
        cluster = _without(cluster, old)
    life = cluster.lives.get(hello.worker_id, Life(hello.generation))
    if life.generation != hello.generation:
        # Also when it was lost before: a machine that slept through its lease may wake up after its successor came.
        retired = (*cluster.retired.get(hello.worker_id, ()), life.generation)[-RETIRED_KEPT:]
        cluster = replace(cluster, retired={**cluster.retired, hello.worker_id: retired})
        recent = tuple(at for at in life.crashes if event.at - at <= cluster.limits.crash_window_s)
        life = Life(hello.generation, recent if life.left else (*recent, event.at))
    others = {worker_id: other for worker_id, other in cluster.lives.items() if worker_id != hello.worker_id}
    cluster = replace(cluster, lives={**others, hello.worker_id: replace(life, left=False)})
    aside_until = _aside_until(life, cluster.limits)
    return _with(
        cluster,
        Member(hello, event.connection, event.at, event.at, dict(hello.resident), aside_until=aside_until),
    )


def _aside_until(life: Life, limits: Limits) -> float:
    """Until when a worker that crashes in a row gets no experts: twice as long each time."""
    excess = len(life.crashes) - CRASHES_ALLOWED
    if excess <= 0:
        return 0.0
    return life.crashes[-1] + min(limits.crash_first_s * 2.0 ** (excess - 1), limits.crash_most_s)


def _with(cluster: Cluster, member: Member) -> Cluster:
    return replace(cluster, members={**cluster.members, member.hello.worker_id: member})


def _without(cluster: Cluster, member: Member) -> Cluster:
    """A lost worker takes its orders and failures with it: the next start is another one."""
    gone = member.hello.worker_id
    return replace(
        cluster,
        members={i: m for i, m in cluster.members.items() if i != gone},
        orders={n: o for n, o in cluster.orders.items() if o.worker_id != gone},
        failures={at: f for at, f in cluster.failures.items() if at[0] != gone},
        suspicions={at: s for at, s in cluster.suspicions.items() if at[0] != gone},
    )


def _ticked(cluster: Cluster, at: float) -> Cluster:
    for member in cluster.members.values():
        if at - member.heard_at > cluster.limits.lease_s:
            cluster = _without(cluster, member)
    for order_id, order in cluster.orders.items():
        if not order.overdue and at - order.sent_at > cluster.limits.order_timeout_s:
            error = f"no answer within {cluster.limits.order_timeout_s:g} s"
            cluster = _failed(cluster, order, error, at)
            cluster = replace(cluster, orders={**cluster.orders, order_id: replace(order, overdue=True)})
    kept = {who: s for who, s in cluster.suspicions.items() if at - s.last_at <= cluster.limits.suspicion_s}
    return cluster if len(kept) == len(cluster.suspicions) else replace(cluster, suspicions=kept)


def _suspected(cluster: Cluster, event: Suspected) -> Cluster:
    """Who is not named (any more) stays suspected for a while: a link that comes and goes is not up."""
    named = {}
    for worker_id in event.worker_ids & cluster.members.keys():
        first_at = cluster.suspicions.get((worker_id, event.gateway_id), Suspicion(event.at, event.at)).first_at
        confirmed = event.at - first_at >= cluster.limits.confirm_s
        named[worker_id, event.gateway_id] = Suspicion(first_at, event.at, confirmed)
    return replace(cluster, suspicions={**cluster.suspicions, **named}) if named else cluster


def _answered(cluster: Cluster, member: Member, event: Answered) -> Cluster:
    cluster = _with(cluster, member)
    order = cluster.orders.get(event.order_id)
    if order is None or order.worker_id != member.hello.worker_id:
        return cluster
    cluster = replace(cluster, orders={n: o for n, o in cluster.orders.items() if n != event.order_id})
    if not event.ok:
        return cluster if order.overdue else _failed(cluster, order, event.error, event.at)
    resident = dict(member.resident)
    if order.kind == "load":
        resident[order.key] = order.resident
    else:
        resident.pop(order.key, None)
    place = (order.worker_id, order.key)
    # Orders for the same place that were given up before this one say nothing any more.
    orders = {n: o for n, o in cluster.orders.items() if not (o.overdue and (o.worker_id, o.key) == place)}
    failures = {at: f for at, f in cluster.failures.items() if at != place}
    return _with(replace(cluster, orders=orders, failures=failures), replace(member, resident=resident))


def _failed(cluster: Cluster, order: SentOrder, error: str, at: float) -> Cluster:
    place = (order.worker_id, order.key)
    attempts = cluster.failures[place].attempts + 1 if place in cluster.failures else 1
    # The exponent is bounded so that a worker that fails for weeks overflows nothing.
    wait_s = min(cluster.limits.retry_first_s * 2 ** min(attempts - 1, 30), cluster.limits.retry_most_s)
    return replace(cluster, failures={**cluster.failures, place: Failure(attempts, at + wait_s, error)})
