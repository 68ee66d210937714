"""The expert plane: what the engine calls between two trunk segments. Gating, dispatch, retries, combine."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from expertmesh_common.bundle import manifest
from expertmesh_common.channel.frame import Status, model_key
from expertmesh_common.errors import DeadlinePassed, InvalidInput, Unavailable
from expertmesh_controller.cluster.routes import RouteTable
from expertmesh_controller.gateway.dispatch.assignment import Assignment
from expertmesh_controller.gateway.dispatch.combine import Floats, combine
from expertmesh_controller.gateway.dispatch.counters import Counters, Traffic
from expertmesh_controller.gateway.dispatch.exchange import Call, Failure, HopTimeout, Task, exchange
from expertmesh_controller.gateway.dispatch.links.pool import LinkPool
from expertmesh_controller.gateway.dispatch.plan import Message, Plan, merge
from expertmesh_controller.gateway.dispatch.recurring import Letter, Round, exchange_row
from expertmesh_controller.gateway.dispatch.roster import Roster
from expertmesh_controller.gateway.dispatch.soundness import broken_rows, without
from expertmesh_controller.gateway.gating.gate import Gate
from expertmesh_controller.gateway.gating.routing import Routing, RowRouting
from expertmesh_controller.gateway.neuron_shares import expert_shares


class ExpertPlane:
    """Runs the routed experts of one model. `run` belongs to one thread; everything else may be called from any."""

    def __init__(
        self,
        model: str,
        layers: Sequence[manifest.Layer],
        gates: Sequence[Gate],
        pool: LinkPool,
        timeout: HopTimeout | None = None,
    ) -> None:
        self._key = model_key(model)
        self._gates = tuple(gates)
        self._pool = pool
        self._timeout = timeout or HopTimeout()
        frequencies = {(layer.index, e.index): e.frequency for layer in layers for e in layer.experts}
        self._roster = Roster(model, [gate.experts for gate in gates], frequencies, pool)
        self.counters = Counters(expert_shares(layers))
        self._seq = 0
        self.trace = ""
        """The W3C traceparent of the run that comes next, "" for none; the engine's thread sets it."""

    def update(self, table: RouteTable) -> None:
        """Take over a route table unless it is older than the one in use. Links open in the background."""
        self._roster.update(table)

    def run(self, layer: int, rows: Floats, deadline: float, patience_s: float = math.inf) -> Floats:
        """The sum of the routed experts of MoE layer `layer` for rows float32 [T, hidden], a new array of that shape.

        `deadline` is in monotonic seconds. Pairs whose worker fails (only they) go to another replica; while no replica
        is live the call waits for a newer table or a link, for at most `patience_s`. Live, but slow replicas have until
        the deadline. Rows that are not finite come back as NaN and do not touch the others. Call it where numpy does
        not warn of overflows and invalid values.

        Raises:
            Unavailable: an expert had no live replica until the deadline, or for `patience_s`.
            DeadlinePassed: the deadline is over and replicas were live, but slow.
            InvalidInput: the rows do not fit the layer.

        """
        if len(rows) == 1:
            routing = self._gates[layer].route_row(rows)
            if routing is not None:
                return self._dispatch(layer, rows, routing, deadline, patience_s)
        broken = broken_rows(rows)
        if broken is None:
            return self._dispatch(layer, rows, self._gates[layer].route(rows), deadline, patience_s)
        sound = without(rows, broken)
        out = self._dispatch(layer, sound, self._gates[layer].route(sound), deadline, patience_s)
        out[broken] = np.nan
        return out

    def begin(self, rows: int, share: float = 0.0) -> None:
        """A step of so many rows begins; each has `share` for a start."""
        self.counters.begin(rows, share)

    @property
    def active(self) -> NDArray[np.float64]:
        """Neurons that each row of the step went through, as a share of the model's, a new array [rows]."""
        return self.counters.active

    def take_suspects(self) -> tuple[str, ...]:
        """Workers whose links failed since the last call, for the report to the control loop."""
        return self._roster.take_suspects()

    def traffic(self) -> Traffic:
        """Bytes and frames to remote workers since the start."""
        sent, received = self._pool.bytes_moved()
        return Traffic(sent, received, self.counters.frames)

    def close(self) -> None:
        """Close every link. Call when no run is under way."""
        self._pool.close()

    def _dispatch(
        self, layer: int, rows: Floats, routing: Routing | RowRouting, deadline: float, patience_s: float
    ) -> Floats:
        self.counters.note(layer, routing)
        if not routing.pairs:
            return np.zeros_like(rows)
        task = Task(self._key, layer, self._gates[layer].weight_on, rows, self.trace)
        return self._serve(task, routing, deadline, patience_s)

    def _serve(self, task: Task, pending: Routing | RowRouting, deadline: float, patience_s: float) -> Floats:
        out: Floats | None = None
        last_failure: Failure | None = None
        wait_until = math.inf  # patience begins with the first wait: a slow answer does not use it up
        while True:
            assignment = self._roster.current()
            plan = assignment.plan(task, pending)
            if plan.messages:
                out, failures = self._round(task, plan, assignment, deadline, out)
                if not failures and plan.unserved is None:
                    assert out is not None
                    return out
                last_failure = failures[0] if failures else last_failure
                pending = _rest(failures, plan.unserved, pending.tokens)
                self.counters.retried_pairs += pending.pairs
            if not plan.messages:
                wait_until = min(wait_until, deadline, time.monotonic() + patience_s)
                if time.monotonic() >= wait_until or not self._roster.wait(wait_until):
                    raise _unavailable(task.layer, pending, assignment, last_failure)
            if time.monotonic() >= deadline:
                raise _too_late(task.layer, pending, last_failure)

    def _round(
        self, task: Task, plan: Plan | Round, assignment: Assignment, deadline: float, out: Floats | None
    ) -> tuple[Floats | None, list[Failure]]:
        """Run a plan; add what succeeded to `out` and learn from what failed."""
        self._seq += 1
        self.counters.frames += len(plan.messages)
        links = assignment.links
        call = Call(self._seq, assignment.epoch, task)
        try:
            if isinstance(plan, Round):
                outcomes = exchange_row(call, plan, self._timeout, deadline)
            else:
                outcomes = exchange(call, plan.messages, links, self._timeout, deadline)
        except BaseException:
            for message in plan.messages:  # replies may still be under way on these links
                self._pool.drop(links[message.worker])
            raise
        messages: Sequence[Message | Letter] = plan.messages
        parts = [(m.sent_rows, o) for m, o in zip(messages, outcomes, strict=True) if not isinstance(o, Failure)]
        failures = [outcome for outcome in outcomes if isinstance(outcome, Failure)]
        for failure in failures:
            # A caller's short deadline says nothing about the worker.
            late = failure.late or failure.status is Status.DEADLINE
            blame = not (late and time.monotonic() >= deadline)
            self._roster.learn(failure, links[failure.message.worker], task.layer, blame)
        tokens, hidden = task.rows.shape
        out = combine(parts, (tokens, hidden), out)
        invalid = next((f for f in failures if f.status is Status.INVALID), None)
        if invalid is not None:
            raise InvalidInput(f"layer {task.layer}: {invalid.reason}")
        return out, failures


def _rest(failures: Sequence[Failure], unserved: Routing | None, tokens: int) -> Routing:
    """The pairs that still have no result."""
    routings = [failure.message.routing(tokens) for failure in failures]
    return merge(routings if unserved is None else [*routings, unserved], tokens)


def _unavailable(
    layer: int, pending: Routing | RowRouting, assignment: Assignment, failure: Failure | None
) -> Unavailable:
    after = f" (last failure: {failure.reason})" if failure else ""
    return Unavailable(
        f"layer {layer}: no live worker holds expert {', '.join(map(str, pending.distinct_experts))} as of epoch "
        f"{assignment.epoch[0]}.{assignment.epoch[1]}, and none came before the deadline{after}{_lack(assignment)}"
    )


def _lack(assignment: Assignment) -> str:
    if not assignment.missing_bytes:
        return ""
    return (
        f"; the workers have no room for {assignment.missing_bytes / 1e6:.1f} MB of the model's experts: "
        "add a worker, or raise --budget"
    )


def _too_late(layer: int, pending: Routing | RowRouting, failure: Failure | None) -> DeadlinePassed:
    after = f" ({failure.reason})" if failure else ""
    return DeadlinePassed(f"layer {layer}: the deadline passed with {pending.pairs} expert rows under way{after}")
