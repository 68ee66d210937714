import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expertmesh_api.v1 import gating_pb2
from expertmesh_common.bundle.manifest import Blob
from expertmesh_common.bundle.manifest import Gate as GateConfig
from expertmesh_common.errors import CorruptData, InvalidInput, NotHere
from expertmesh_controller.gateway.gating.gate import Gate
from expertmesh_controller.gateway.gating.service import GatingService
from expertmesh_controller.gateway.gating.tensors import to_tensor

BLOB = Blob(digest="0" * 64, size_bytes=1)
EXPERTS = 6


def a_gate(picker="threshold", threshold=0.0, min_k=0, max_k=EXPERTS, *, router=None, bias=None):
    config = GateConfig(scorer="linear", picker=picker, threshold=threshold, min_k=min_k, max_k=max_k, weights=BLOB)
    router = np.eye(EXPERTS, dtype=np.float32) if router is None else router
    bias = np.zeros(router.shape[1], np.float32) if bias is None else bias
    return Gate(config, {"router": router, "bias": bias})


def picks(routing):
    out = [[] for _ in range(routing.tokens)]
    for row, expert in zip(routing.row, routing.expert, strict=True):
        out[row].append(int(expert))
    return out


def plain_pick(score, picker, threshold, ks, allowed):
    """The rule of the manifest, one row at a time."""
    min_k, max_k = ks
    order = sorted((e for e in range(len(score)) if allowed[e]), key=lambda e: (-score[e], e))
    if picker == "top_k":
        return sorted(order[:max_k])
    count = sum(score[e] >= threshold for e in order)
    return sorted(order[: min(max(count, min_k), max_k)])


@settings(max_examples=200, deadline=None)
@given(
    scores=st.lists(st.lists(st.sampled_from([-2.0, -1.0, 0.0, 0.5, 1.0, 2.0]), min_size=6, max_size=6), max_size=9),
    picker=st.sampled_from(["threshold", "top_k"]),
    threshold=st.sampled_from([-5.0, 0.0, 0.5, 5.0]),
    ks=st.tuples(st.integers(0, 6), st.integers(1, 6)).filter(lambda k: k[0] <= k[1]),
    allowed=st.lists(st.booleans(), min_size=6, max_size=6),
)
def test_routing_is_the_rule_of_the_manifest_row_by_row(scores, picker, threshold, ks, allowed):
    rows = np.array(scores, np.float32).reshape(-1, EXPERTS)
    gate = a_gate(picker, threshold, *ks)
    routing = gate.route(rows, np.array(allowed))
    assert picks(routing) == [plain_pick(row, picker, threshold, ks, allowed) for row in rows.tolist()]
    assert routing.weight.tolist() == [1.0] * routing.pairs
    assert (routing.row.dtype, routing.expert.dtype, routing.weight.dtype) == (np.int32, np.int32, np.float32)


def test_scores_are_rows_times_router_plus_bias():
    rng = np.random.default_rng(0)
    router, bias = rng.standard_normal((16, 5)).astype(np.float32), rng.standard_normal(5).astype(np.float32)
    rows = rng.standard_normal((7, 16)).astype(np.float32)
    gate = a_gate(router=router, bias=bias)
    expected = [np.flatnonzero(row @ router + bias >= 0).tolist() for row in rows]
    assert picks(gate.route(rows)) == expected
    assert [picks(gate.route(row[None])) for row in rows] == [[e] for e in expected]


def test_a_remembered_routing_is_that_of_the_same_picked_set_only():
    gate = a_gate()
    first = gate.route_row(np.array([[1, -1, 1, -1, -1, -1]], np.float32))
    again = gate.route_row(np.array([[9, -3, 2, -1, -5, -1]], np.float32))
    other = gate.route_row(np.array([[1, 1, 1, -1, -1, -1]], np.float32))
    assert again is first
    assert other.experts == (0, 1, 2)


def test_no_rows_route_nowhere():
    routing = a_gate(min_k=2).route(np.empty((0, EXPERTS), np.float32))
    assert (routing.tokens, routing.pairs) == (0, 0)


@pytest.mark.parametrize("rows", [np.zeros((1, 5), np.float32), np.zeros(6, np.float32), np.zeros((1, 6))])
def test_rows_that_do_not_fit_are_refused(rows):
    with pytest.raises(InvalidInput, match=r"takes float32 \[any, 6\]"):
        a_gate().route(rows)


def test_a_bundle_whose_gate_tensors_do_not_fit_is_refused():
    with pytest.raises(CorruptData, match="agree"):
        a_gate(bias=np.zeros(3, np.float32))
    with pytest.raises(CorruptData, match="router"):
        a_gate(router=np.zeros((6, 6)))
    with pytest.raises(ValueError, match="needs a threshold"):
        a_gate(threshold=None)


def test_explaining_tells_the_same_picks_and_how_near_they_were():
    gate = a_gate(threshold=0.5, max_k=2)
    rows = np.array([[1.0, 0.25, 0, 0, 0, -1], [3, 2, 1, 0, 0, 0]], np.float32)
    told = gate.explain(rows)
    assert picks(gate.route(rows)) == [np.flatnonzero(row).tolist() for row in told.picked]
    assert told.rule == "threshold 0.5, at least 0, at most 2 of 6"
    assert told.margin[0].tolist() == [0.5, -0.25, -0.5, -0.5, -0.5, -1.5]  # the threshold decided
    assert told.margin[1].tolist() == [2, 1, -1, -2, -2, -2]  # max_k decided: the third best is the boundary
    assert told.weight[1].tolist() == [1, 1, 0, 0, 0, 0]


async def test_the_service_answers_with_the_gates_own_routing():
    gate = a_gate()
    service = GatingService({"m": [gate]}, lambda _model, _layer: {0: ["w1", "w2"]})
    rows = np.array([[1, -1, 1, -1, -1, -1], [-1, -1, -1, -1, -1, 1]], np.float32)
    answer = await service.Route(gating_pb2.RouteRequest(model="m", rows=to_tensor("rows", rows)), None)
    assert np.frombuffer(answer.row_index.data, np.int32).tolist() == [0, 0, 1]
    assert np.frombuffer(answer.expert_index.data, np.int32).tolist() == [0, 2, 5]
    told = await service.Explain(gating_pb2.ExplainRequest(model="m", rows=to_tensor("rows", rows)), None)
    assert [e.picked for e in told.rows[0].experts] == [True, False, True, False, False, False]
    assert list(told.rows[0].experts[0].workers) == ["w1", "w2"]


@pytest.mark.parametrize(
    ("change", "error", "complaint"),
    [
        ({"model": "other"}, NotHere, "other"),
        ({"layer": 1}, InvalidInput, "layer 1"),
        ({"rows": to_tensor("rows", np.zeros((1, 6), np.int32))}, InvalidInput, "float32"),
        ({"rows": to_tensor("rows", np.full((1, 6), np.nan, np.float32))}, InvalidInput, "NaN"),
        ({"rows": to_tensor("rows", np.zeros((5000, 6), np.float32))}, InvalidInput, "4096"),
    ],
)
async def test_the_service_refuses_what_it_cannot_route(change, error, complaint):
    service = GatingService({"m": [a_gate()]}, lambda _model, _layer: {})
    fields = {"model": "m", "rows": to_tensor("rows", np.zeros((1, 6), np.float32))}
    with pytest.raises(error, match=complaint):
        await service.Route(gating_pb2.RouteRequest(**{**fields, **change}), None)


async def test_rows_whose_bytes_do_not_match_their_shape_are_refused():
    tensor = to_tensor("rows", np.zeros((2, 6), np.float32))
    tensor.data = tensor.data[:-1]
    with pytest.raises(InvalidInput, match="need 48 bytes, got 47"):
        await GatingService({"m": [a_gate()]}, lambda _m, _l: {}).Route(
            gating_pb2.RouteRequest(model="m", rows=tensor), None
        )
