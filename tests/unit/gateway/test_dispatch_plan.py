import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expertmesh_controller.gateway.dispatch.combine import combine
from expertmesh_controller.gateway.dispatch.plan import merge, plan_dispatch
from expertmesh_controller.gateway.gating.routing import Routing

HIDDEN = 5


def routing_of(mask, rng):
    row, expert = np.nonzero(mask)
    weight = rng.standard_normal(row.size).astype(np.float32)
    return Routing(len(mask), row.astype(np.int32), expert.astype(np.int32), weight)


def pairs_of(routing):
    return list(zip(routing.row.tolist(), routing.expert.tolist(), routing.weight.tolist(), strict=True))


def expert_matrices(experts):
    return np.random.default_rng(1).standard_normal((experts, HIDDEN, HIDDEN)).astype(np.float32)


def run_message(message, rows, matrices):
    """A worker that fills everything it need not compute with NaN: nothing unused may reach the result."""
    sent = rows if message.sent_rows is None else rows[message.sent_rows]
    buffer = np.full((len(sent) + 3, HIDDEN), np.nan, np.float32)
    buffer[: len(sent)] = 0
    for row, expert, weight in sorted(
        zip(message.row, message.expert, message.weight, strict=True), key=lambda p: p[1]
    ):
        buffer[row] += weight * (sent[row] @ matrices[expert])
    return buffer[: len(sent)]


def run_plan(routing, owner, rows, matrices):
    plan = plan_dispatch(routing, owner)
    parts = [(m.sent_rows, run_message(m, rows, matrices)) for m in plan.messages]
    out = combine(parts, rows.shape, None)
    return np.zeros_like(rows) if out is None else out


def dense(mask, routing, rows, matrices):
    """Every expert on every row, weighted by a [T, E] matrix."""
    weights = np.zeros(mask.shape, np.float32)
    weights[routing.row, routing.expert] = routing.weight
    return np.einsum("te,th,ehk->tk", weights, rows, matrices)


def masks():
    """Random routing, and the adversarial ones: one expert, uniform, alternating, no token, a single one."""
    random = st.tuples(st.integers(0, 12), st.integers(1, 9), st.integers(0, 2**32 - 1)).map(
        lambda s: np.random.default_rng(s[2]).random(s[:2]) < 0.4
    )
    one = np.zeros((9, 7), bool)
    one[:, 3] = True
    uniform = np.eye(7, dtype=bool)[np.arange(14) % 7]
    alternating = np.arange(10)[:, None] % 2 == np.arange(5) % 2
    special = [one, uniform, alternating, np.zeros((0, 7), bool), np.ones((1, 7), bool), np.zeros((4, 3), bool)]
    return st.one_of(random, st.sampled_from(special))


@settings(max_examples=250, deadline=None)
@given(masks(), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_sparse_dispatch_equals_the_dense_oracle_and_keeps_every_pair(mask, workers, seed):
    rng = np.random.default_rng(seed)
    tokens, experts = mask.shape
    routing, owner = routing_of(mask, rng), rng.integers(0, workers, experts)  # E need not divide by W
    rows, matrices = rng.standard_normal((tokens, HIDDEN)).astype(np.float32), expert_matrices(experts)
    plan = plan_dispatch(routing, owner)
    kept = sorted(p for m in plan.messages for p in pairs_of(m.routing(tokens)))
    assert kept == sorted(pairs_of(routing))
    assert plan.unserved is None
    assert [m.worker for m in plan.messages] == sorted({int(w) for w in owner[routing.expert]})
    np.testing.assert_allclose(
        run_plan(routing, owner, rows, matrices), dense(mask, routing, rows, matrices), atol=2e-5
    )


@settings(max_examples=100, deadline=None)
@given(masks(), st.integers(0, 2**32 - 1))
def test_every_row_travels_to_a_worker_at_most_once_and_only_if_needed(mask, seed):
    rng = np.random.default_rng(seed)
    owner = rng.integers(0, 3, mask.shape[1])
    for message in plan_dispatch(routing_of(mask, rng), owner).messages:
        needed = np.flatnonzero(mask[:, owner == message.worker].any(axis=1))
        sent = np.arange(len(mask)) if message.sent_rows is None else message.sent_rows
        assert sent.tolist() == needed.tolist()


@settings(max_examples=100, deadline=None)
@given(masks(), st.integers(0, 2**32 - 1))
def test_permuting_the_tokens_permutes_the_outputs(mask, seed):
    rng = np.random.default_rng(seed)
    tokens, experts = mask.shape
    weights = rng.standard_normal(mask.shape).astype(np.float32)
    rows, owner, matrices = (
        rng.standard_normal((tokens, HIDDEN)).astype(np.float32),
        rng.integers(0, 2, experts),
        expert_matrices(experts),
    )
    order = rng.permutation(tokens)

    def outputs(mask, weights, rows):
        row, expert = np.nonzero(mask)
        routing = Routing(tokens, row.astype(np.int32), expert.astype(np.int32), weights[row, expert])
        return run_plan(routing, owner, rows, matrices)

    np.testing.assert_array_equal(
        outputs(mask[order], weights[order], rows[order]), outputs(mask, weights, rows)[order]
    )


def test_pairs_without_an_owner_are_left_over_and_merge_back_in_order():
    rng = np.random.default_rng(0)
    routing = routing_of(rng.random((6, 4)) < 0.7, rng)
    owner = np.array([1, -1, 0, -1])
    plan = plan_dispatch(routing, owner)
    assert set(plan.unserved.expert.tolist()) == {1, 3}
    whole = merge([plan.unserved, *(m.routing(6) for m in reversed(plan.messages))], 6)
    assert pairs_of(whole) == pairs_of(routing)


def test_a_partial_sum_in_a_receive_buffer_is_not_handed_out():
    buffer = np.ones((2, HIDDEN), np.float32)
    out = combine([(None, buffer)], (2, HIDDEN), None)
    buffer[:] = np.nan
    assert (out == 1).all()


@pytest.mark.parametrize("first", [None, np.array([0, 2])])
def test_partial_sums_are_added_in_the_order_of_workers(first):
    rows = np.full((3 if first is None else 2, 1), 1e8, np.float32)
    parts = [(first, rows), (None, np.full((3, 1), -1e8, np.float32)), (None, np.full((3, 1), 0.5, np.float32))]
    out = combine(parts, (3, 1), None)
    assert out[0] == 0.5  # (1e8 - 1e8) + 0.5; any other order rounds the 0.5 away
