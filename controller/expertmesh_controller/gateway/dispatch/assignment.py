"""Who serves what right now: the route table seen through the links that are up."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from expertmesh_controller.cluster.routes import ExpertAt, RouteTable, WorkerRoute, prefer
from expertmesh_controller.gateway.dispatch.exchange import Task
from expertmesh_controller.gateway.dispatch.links.base import Link
from expertmesh_controller.gateway.dispatch.plan import Plan, plan_dispatch
from expertmesh_controller.gateway.dispatch.recurring import LayerPost, Round
from expertmesh_controller.gateway.gating.routing import Routing, RowRouting

MAX_REMEMBERED = 16384  # plans of single rows, over all layers

Avoided = AbstractSet[tuple[ExpertAt, str]]
"""Instances, as (expert, worker id), that lately could not serve."""


@dataclass(frozen=True, eq=False)
class Assignment:
    """`links[w]` leads to worker number w; `owner[layer]` intp [experts] is the number of an expert's worker, or -1.

    `missing_bytes` are those of experts for which no worker has room.
    """

    epoch: tuple[int, int]
    links: tuple[Link, ...]
    owner: tuple[NDArray[np.intp], ...]
    _posts: tuple[LayerPost, ...]
    _plans: dict[RowRouting, Plan | Round]
    missing_bytes: int = 0

    def plan(self, task: Task, routing: Routing | RowRouting) -> Plan | Round:
        """Who gets which pairs of a task's routing, remembered if the routing recurs. Traced tasks get no round."""
        if not isinstance(routing, RowRouting):
            return plan_dispatch(routing, self.owner[task.layer])
        if task.trace:
            return plan_dispatch(routing.whole, self.owner[task.layer])
        if not routing.recurs:
            return self._plan_row(task, routing)
        found = self._plans.get(routing)
        if found is None:
            if len(self._plans) >= MAX_REMEMBERED:
                self._plans.clear()
            found = self._plans[routing] = self._plan_row(task, routing)
        return found

    def _plan_row(self, task: Task, routing: RowRouting) -> Plan | Round:
        addressed = self._posts[task.layer].address(task, routing)
        return plan_dispatch(routing.whole, self.owner[task.layer]) if addressed is None else addressed


def assign(
    table: RouteTable,
    model: str,
    *,
    experts: Sequence[int],
    frequencies: Mapping[ExpertAt, float],
    link_to: Callable[[WorkerRoute], Link | None],
    avoided: Avoided,
) -> Assignment:
    """Choose an owner per expert among the live instances; `experts[layer]` is how many a layer has."""
    up = {w.worker_id: link for w in table.workers if (link := link_to(w)) is not None}
    numbers = {worker_id: number for number, worker_id in enumerate(sorted(up))}
    live = replace(
        table,
        workers=tuple(w for w in table.workers if w.worker_id in up),
        instances=tuple(i for i in table.instances if i.worker_id in up and (i.at, i.worker_id) not in avoided),
    )
    owner = tuple(np.full(count, -1, np.intp) for count in experts)
    for (layer, index), worker_id in prefer(live, model, frequencies).items():
        if layer < len(owner) and index < len(owner[layer]):
            owner[layer][index] = numbers[worker_id]
    links = tuple(up[worker_id] for worker_id in numbers)
    epoch = table.epoch.term, table.epoch.n
    posts = tuple(LayerPost(epoch, owners, links) for owners in owner)
    return Assignment(epoch, links, owner, posts, {}, table.missing_bytes(model))
