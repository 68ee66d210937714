"""One round of a layer: post to every worker, run local experts meanwhile, take every reply."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from expertmesh_common.channel.frame import Reply, Request, Status, WeightOn
from expertmesh_common.channel.tracing import trace_tensor
from expertmesh_controller.gateway.dispatch.links.base import Link, LinkDown, LinkTimeout
from expertmesh_controller.gateway.dispatch.plan import Message

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class HopTimeout:
    """How long one worker may take for one message before another replica is asked."""

    base_s: float = 1.5  # a stopped process or a cut link is noticed, and a replica has answered, within 2 s
    per_pair_s: float = 0.01  # a slow board's expert call on one row, generously

    def expiry(self, pairs: int, deadline: float) -> float:
        """When to give up a message of `pairs` pairs posted now, in monotonic seconds."""
        return min(deadline, time.monotonic() + self.base_s + pairs * self.per_pair_s)


class Task(NamedTuple):
    """What is asked for: rows float32 [T, hidden] of one layer of the model with this key.

    `trace` is the W3C traceparent to hand on, "" for none.
    """

    model: int
    layer: int
    weight_on: WeightOn
    rows: Floats
    trace: str = ""


class Call(NamedTuple):
    """One round of a task. `seq` is its number, `epoch` that of the assignment."""

    seq: int
    epoch: tuple[int, int]
    task: Task

    def request(self, message: Message, deadline_ms: int) -> Request:
        task = self.task
        rows = task.rows if message.sent_rows is None else task.rows[message.sent_rows]
        tensors = {"rows": rows, **trace_tensor(task.trace, len(rows))} if task.trace else {"rows": rows}
        return Request(
            self.seq, self.epoch, task.model, task.layer, deadline_ms, tensors,
            message.row, message.expert, message.weight, task.weight_on,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Failure:
    """A message without a result. `broken`: its link must be dropped; `missing`: experts that are not there."""

    message: Message
    status: Status
    reason: str
    broken: bool = False
    late: bool = False
    missing: tuple[int, ...] = ()


Outcome = Floats | Failure


def exchange(
    call: Call, messages: Sequence[Message], links: Sequence[Link], timeout: HopTimeout, deadline: float
) -> list[Outcome]:
    """A partial sum float32 [m, hidden] or a failure per message, in their order; sums are valid until the next round.

    When anything unforeseen is raised, replies may still be under way: the caller must drop the links.
    """
    now = time.monotonic()
    expiries = [timeout.expiry(m.row.size, deadline) for m in messages]
    outcomes: list[Outcome | None] = [
        _post(call, m, links[m.worker], expiry, now) for m, expiry in zip(messages, expiries, strict=True)
    ]
    for local in (True, False):
        for place, message in enumerate(messages):
            link = links[message.worker]
            if link.local is local and outcomes[place] is None:
                outcomes[place] = _take(call, message, link, expiries[place])
    return [outcome for outcome in outcomes if outcome is not None]


def _post(call: Call, message: Message, link: Link, expiry: float, now: float) -> Failure | None:
    try:
        link.post(call.request(message, max(1, int((expiry - now) * 1000))), expiry)
    except LinkDown as error:
        return broken(message, error)
    return None


def _take(call: Call, message: Message, link: Link, expiry: float) -> Outcome:
    try:
        return judged(call, message, link, link.take(expiry))
    except LinkDown as error:
        return broken(message, error)


def judged(call: Call, message: Message, link: Link, reply: Reply) -> Outcome:
    """What a reply brings: the rows asked for, or why not."""
    if reply.status is not Status.OK:
        return _refusal(call, message, link, reply)
    rows, shape = reply.rows, call.task.rows.shape
    expected = shape if message.sent_rows is None else (message.sent_rows.size, shape[1])
    if reply.seq != call.seq or rows.shape != expected or rows.dtype != np.float32:
        found = f"seq {reply.seq} rows {rows.dtype} {rows.shape}, expected seq {call.seq} float32 {expected}"
        return Failure(message, Status.FAILED, f"worker {link.worker_id} answered with {found}", broken=True)
    return rows  # type: ignore[return-value]  # the dtype was checked


def broken(message: Message, error: LinkDown) -> Failure:
    """The failure of a link."""
    return Failure(message, Status.FAILED, str(error), broken=True, late=isinstance(error, LinkTimeout))


def _refusal(call: Call, message: Message, link: Link, reply: Reply) -> Failure:
    text = reply.message or f"experts {list(reply.missing)} are not there"
    reason = f"worker {link.worker_id} answered {reply.status.name}: {text}"
    broken = reply.seq != call.seq  # seq 0: the worker could not read the request and ends the connection
    return Failure(message, reply.status, reason, broken, missing=reply.missing)
