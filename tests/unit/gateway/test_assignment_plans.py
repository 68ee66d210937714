"""Which way an assignment sends what: rounds for single rows, remembered where their routing comes again."""

from __future__ import annotations

import numpy as np
import pytest

from expertmesh_common.channel.host import host_id
from expertmesh_controller.cluster.routes import EndpointAddress, Epoch, InstanceRoute, RouteTable, WorkerRoute
from expertmesh_controller.gateway.dispatch import assignment
from expertmesh_controller.gateway.dispatch.assignment import assign
from expertmesh_controller.gateway.dispatch.exchange import Task
from expertmesh_controller.gateway.dispatch.links.base import FramedLink
from expertmesh_controller.gateway.dispatch.links.local import LocalLink
from expertmesh_controller.gateway.dispatch.plan import Plan
from expertmesh_controller.gateway.dispatch.recurring import Round
from expertmesh_controller.gateway.gating.routing import Routing, RowRouting
from rigs.expert_hosts import IdentityHost

EXPERTS = 4


class NoLink(FramedLink):
    """Leads nowhere: plans are made, not sent."""

    def send(self, frame, expires_at):
        raise AssertionError

    def receive(self, expires_at):
        raise AssertionError

    def close(self):
        pass


def assigned(link_to=lambda worker: NoLink(worker.worker_id, "unix"), held=range(EXPERTS)):
    """Two workers; even experts are on the first, odd ones on the second."""
    endpoint = EndpointAddress("grpc", "nowhere:1")
    workers = tuple(WorkerRoute(f"w{n}", "g", (endpoint,), host_id(), 1.0) for n in range(2))
    instances = tuple(InstanceRoute("m", 0, e, f"w{e % 2}", "fp32") for e in held)
    table = RouteTable(Epoch(1, 1), workers, instances)
    return assign(table, "m", experts=[EXPERTS], frequencies={}, link_to=link_to, avoided=frozenset())


def routing(experts, weights, tokens=1, *, recurs=False):
    if tokens == 1:
        return RowRouting(tuple(experts), tuple(map(float, weights)), recurs)
    row = np.arange(len(experts), dtype=np.int32) % tokens
    return Routing(tokens, np.sort(row), np.array(experts, np.int32), np.array(weights, np.float32))


def task(tokens=1, trace=""):
    return Task(1, 0, "output", np.zeros((tokens, 8), np.float32), trace)


def pairs_of(plan):
    return {m.worker: m.pairs for m in plan.messages}


def test_a_single_row_gets_a_round_and_several_get_a_plan():
    made = assigned()

    assert isinstance(made.plan(task(), routing([0, 1], [0.5, 0.5])), Round)
    assert isinstance(made.plan(task(2), routing([0, 1], [0.5, 0.5], 2)), Plan)


@pytest.mark.parametrize("recurs", [True, False])
def test_a_traced_row_gets_a_plan(recurs):
    made, asked = assigned(), routing([0, 1], [1, 1], recurs=recurs)
    made.plan(task(), asked)

    assert isinstance(made.plan(task(trace="00-1-2-01"), asked), Plan)


def test_a_routing_that_recurs_gets_the_same_round_again():
    made, asked = assigned(), routing([0, 1], [1, 1], recurs=True)

    assert made.plan(task(), asked) is made.plan(task(), asked)


def test_equal_experts_with_other_weights_get_letters_of_their_own():
    made = assigned()
    first, second = (made.plan(task(), routing([0, 1, 2], weights)) for weights in ([0.5, 0.3, 0.2], [0.5, 0.1, 0.4]))

    assert pairs_of(first)[0] != pairs_of(second)[0]
    assert pairs_of(first) == pairs_of(made.plan(task(), routing([0, 1, 2], [0.5, 0.3, 0.2])))


def test_routings_that_do_not_recur_leave_nothing_behind():
    made = assigned()
    for weight in np.linspace(0, 1, 50):
        made.plan(task(), routing([0, 3], [weight, 1 - weight]))

    assert not made._plans


def test_what_is_remembered_is_bounded(monkeypatch):
    monkeypatch.setattr(assignment, "MAX_REMEMBERED", 3)
    made = assigned()
    for _ in range(10):
        made.plan(task(), routing([1], [1], recurs=True))

        assert 0 < len(made._plans) <= 3


def test_experts_without_a_worker_are_left_over_whatever_the_number_of_rows():
    made = assigned(held=[0, 1, 2])
    for tokens in (1, 2):
        plan = made.plan(task(tokens), routing([0, 3], [0.5, 0.5], tokens))

        assert plan.unserved.expert.tolist() == [3]
        assert [m.expert.tolist() for m in plan.messages] == [[0]]


def test_a_row_for_experts_of_this_process_gets_a_plan_which_is_remembered_too():
    made = assigned(lambda worker: LocalLink(worker.worker_id, IdentityHost()))
    asked = routing([0, 1], [1, 1], recurs=True)
    found = made.plan(task(), asked)

    assert isinstance(found, Plan)
    assert made.plan(task(), asked) is found
    assert isinstance(made.plan(task(), routing([0, 1], [1, 1])), Plan)
