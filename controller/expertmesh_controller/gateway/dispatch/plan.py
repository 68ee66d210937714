"""The dispatch plan: which rows and pairs go to which worker. One message per worker, every row at most once in it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from expertmesh_controller.gateway.gating.routing import Routing


class Message(NamedTuple):
    """What worker number `worker` gets.

    `sent_rows` intp [m] names the rows that travel, ascending; None means all of them. The pairs refer to the rows as
    they travel: `row` uint32 [n], `expert` uint16 [n], `weight` float32 [n], sorted by row, then expert.
    """

    worker: int
    sent_rows: NDArray[np.intp] | None
    row: NDArray[np.uint32]
    expert: NDArray[np.uint16]
    weight: NDArray[np.float32]

    def routing(self, tokens: int) -> Routing:
        """The pairs in terms of all `tokens` rows again."""
        row = self.row if self.sent_rows is None else self.sent_rows[self.row]
        return Routing(tokens, row.astype(np.int32), self.expert.astype(np.int32), self.weight)


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """Messages in ascending worker number, and the pairs that no live worker serves."""

    messages: tuple[Message, ...]
    unserved: Routing | None


def plan_dispatch(routing: Routing, owner: NDArray[np.intp]) -> Plan:
    """Group pairs by `owner` intp [experts]: the number of the worker that serves an expert, or -1."""
    if not routing.pairs:
        return Plan((), None)
    owners = owner[routing.expert]
    order = np.argsort(owners, kind="stable")  # keeps row, then expert order within a worker
    ends = np.cumsum(np.bincount(owners + 1)).tolist()  # of worker -1, 0, 1, ...
    unserved = _subset(routing, order[: ends[0]]) if ends[0] else None
    messages = [
        _message(worker, routing, order[start:end])
        for worker, (start, end) in enumerate(itertools.pairwise(ends))
        if end > start
    ]
    return Plan(tuple(messages), unserved)


def _message(worker: int, routing: Routing, pairs: NDArray[np.intp]) -> Message:
    row = routing.row[pairs]
    first = np.empty(row.size, np.bool_)
    first[0] = True
    np.not_equal(row[1:], row[:-1], out=first[1:])
    if np.count_nonzero(first) == routing.tokens:
        sent_rows, local = None, row
    else:
        sent_rows, local = row[first].astype(np.intp), np.cumsum(first) - 1
    expert = routing.expert[pairs].astype(np.uint16)
    return Message(worker, sent_rows, local.astype(np.uint32), expert, routing.weight[pairs])


def _subset(routing: Routing, pairs: NDArray[np.intp]) -> Routing:
    return Routing(routing.tokens, routing.row[pairs], routing.expert[pairs], routing.weight[pairs])


def merge(routings: Sequence[Routing], tokens: int) -> Routing:
    """Several sets of pairs over the same rows as one, sorted by row, then expert."""
    row, expert, weight = (np.concatenate([getattr(r, name) for r in routings]) for name in ("row", "expert", "weight"))
    order = np.lexsort((expert, row))
    return Routing(tokens, row[order], expert[order], weight[order])
