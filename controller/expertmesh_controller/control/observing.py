"""Metrics and checks of the control loop, from the same view that operations look at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from prometheus_client.core import Metric

from expertmesh_common.observability.checks import Check
from expertmesh_common.observability.exposition import counter, gauge
from expertmesh_controller.control.loop import ControlLoop
from expertmesh_controller.control.operations import node_state
from expertmesh_controller.control.view import View

__all__ = ["control_check", "control_metrics"]

EXPERT = ("model", "layer", "expert", "precision")


def control_check(loop: ControlLoop) -> Check:
    """Without its store a control loop decides nothing; with a table that it knows, serving goes on all the same."""

    def probe() -> str | None:
        if not loop.leadership.store_gone or loop.routes.table is not None:
            return None
        return "the store cannot be reached and no route table is known yet"

    return Check("store", probe)


def control_metrics(loop: ControlLoop) -> Iterator[Metric]:
    """What the control loop knows and does."""
    view, leadership = loop.view(), loop.leadership
    text = "0 while the store cannot be reached: nothing is decided."
    yield gauge("store_up", text, (), _one(not leadership.store_gone))
    yield gauge("leading", "1 while this control loop decides.", (), _one(leadership.lease is not None))
    yield gauge("epoch_term", "Term of the newest route table.", (), _one(view.epoch.term))
    yield gauge("epoch_number", "Changes of the route table within its term.", (), _one(view.epoch.n))
    yield from _members(view)
    yield from _orders(view, loop)
    yield from _experts(view)


def _members(view: View) -> Iterator[Metric]:
    members = list(view.cluster.members.items())
    states = Counter(node_state(member, view) for _, member in members)
    yield gauge("members", "Workers by state.", ("state",), [((state,), float(n)) for state, n in states.items()])
    ages = [((worker,), max(view.now - member.heard_at, 0.0)) for worker, member in members]
    yield gauge("member_heartbeat_age_seconds", "Since the worker was last heard.", ("worker",), ages)


def _orders(view: View, loop: ControlLoop) -> Iterator[Metric]:
    orders = list(view.cluster.orders.values())
    waiting = Counter(order.kind for order in orders if not order.overdue)
    samples = [((kind,), float(waiting[kind])) for kind in ("load", "unload")]
    yield gauge("orders_in_flight", "Orders without an answer yet.", ("kind",), samples)
    yield gauge("orders_overdue", "Orders given up, an answer may still come.", (), _one(len(orders) - waiting.total()))
    yield counter("orders", "Orders sent to workers.", (), _one(loop.registry.orders_sent))
    failing = Counter(worker for worker, _ in view.cluster.failures)
    text = "Experts that failed to load on a worker and wait for their next attempt."
    samples = [((worker,), float(failing[worker])) for worker in view.cluster.members]
    yield gauge("failing_loads", text, ("worker",), samples)


def _experts(view: View) -> Iterator[Metric]:
    holders = view.holders()
    replicas = [
        ((k.model, str(k.layer), str(k.index), k.precision), float(len(ids)))
        for k, ids in holders.items()
        if k in view.catalogue
    ]
    yield gauge("expert_replicas", "Instances that the expert is routed to.", EXPERT, replicas)
    models = sorted({key.model for key in view.catalogue})
    total = Counter(key.model for key in view.catalogue)
    yield gauge("experts", "Experts of the model.", ("model",), [((m,), float(total[m])) for m in models])
    uncovered = [((m,), float(view.uncovered(m))) for m in models]
    yield gauge("uncovered_experts", "Experts that no live worker serves.", ("model",), uncovered)
    missing = [((m,), float(view.missing_bytes(m))) for m in models]
    yield gauge("missing_bytes", "Resident bytes for which no worker has room.", ("model",), missing)


def _one(value: float) -> list[tuple[tuple[str, ...], float]]:
    return [((), float(value))]
