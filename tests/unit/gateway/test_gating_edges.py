"""Gates where rules end: nothing allowed, nothing picked, huge logits, dense layers, bundles that do not fit."""

from __future__ import annotations

import numpy as np
import pytest

from expertmesh_common.bundle.blobs import Bundle
from expertmesh_common.bundle.manifest import Blob, Manifest, write_manifest
from expertmesh_common.bundle.manifest import Gate as GateConfig
from expertmesh_common.bundle.tensors import encode_tensors
from expertmesh_common.errors import CorruptData
from expertmesh_controller.gateway.gating.gate import Gate, load_gates
from models.tiny_bundle import EXPERTS, HIDDEN, LAYERS, make_tiny_bundle

BLOB = Blob(digest="0" * 64, size_bytes=1)
WEIGHTINGS = ["one", "score", "normalised", "softmax", "sigmoid", "sparse-mixer"]
GROUPS = {"count": 3, "kept": 2, "score": "top2_sum"}


def a_gate(experts=6, pick_bias=None, **fields):
    """A gate whose logits are the row."""
    fields = {"scorer": "linear", "picker": "top_k", "max_k": 2, **fields}
    tensors = {"router": np.eye(experts, dtype=np.float32), "bias": np.zeros(experts, np.float32)}
    if pick_bias is not None:
        tensors["pick_bias"] = np.array(pick_bias, np.float32)
    return Gate(GateConfig(weights=BLOB, **fields), tensors)


@pytest.mark.parametrize("groups", [None, GROUPS])
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_with_no_expert_allowed_nothing_is_picked(weighting, groups):
    gate = a_gate(weighting=weighting, groups=groups)
    for count in (0, 1, 4):
        routing = gate.route(np.ones((count, 6), np.float32), np.zeros(6, bool))
        assert (routing.tokens, routing.pairs) == (count, 0)


@pytest.mark.parametrize("max_k", [2, 6])
def test_a_threshold_that_everything_passes_still_picks_allowed_experts_only(max_k):
    gate = a_gate(picker="threshold", threshold=-np.inf, max_k=max_k, groups=GROUPS)
    assert gate.route(np.zeros((2, 6), np.float32), np.arange(6) == 4).expert.tolist() == [4, 4]


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_with_one_expert_allowed_it_alone_is_picked(weighting):
    rows = np.array([[3, 1, 2, -1, 0, 5]], np.float32)
    routing = a_gate(weighting=weighting).route(rows, np.arange(6) == 1)
    assert routing.expert.tolist() == [1]
    assert np.isfinite(routing.weight).all()


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("scorer", ["linear", "softmax", "sigmoid"])
@pytest.mark.parametrize("value", [-3e4, 0.0, 3e4])
def test_huge_and_equal_logits_have_finite_weights(weighting, scorer, value):
    rows = np.stack([np.full(6, value), np.eye(6)[4] * value, np.full(6, -3e4)]).astype(np.float32)
    routing = a_gate(scorer=scorer, weighting=weighting).route(rows)
    assert routing.row.tolist() == [0, 0, 1, 1, 2, 2]
    assert routing.expert[:2].tolist() == [0, 1]  # ties go to the lower index
    assert np.isfinite(routing.weight).all()


def test_a_row_that_is_no_number_spoils_no_other():
    rows = np.array([[0, 3, 1, 0, 0, 0], [np.nan] * 6], np.float32)
    routing = a_gate(scorer="softmax", weighting="normalised").route(rows)
    sound = routing.row == 0
    assert routing.expert[sound].tolist() == [1, 2]
    assert np.isfinite(routing.weight[sound]).all()
    assert routing.expert[~sound].size == 2
    assert np.isnan(routing.weight[~sound]).all()  # it goes on as what it is


def test_groups_are_judged_by_their_allowed_experts_only():
    gate = a_gate(groups={"count": 3, "kept": 1, "score": "top2_sum"})
    rows = np.array([[9, 8, 3, 3, 4, 1]], np.float32)
    assert gate.route(rows).expert.tolist() == [0, 1]
    assert gate.route(rows, np.array([0, 0, 1, 1, 1, 1], bool)).expert.tolist() == [2, 3]
    assert gate.route(rows, np.array([0, 0, 1, 0, 1, 1], bool)).expert.tolist() == [4, 5]


def test_of_equal_groups_the_lower_ones_are_kept():
    gate = a_gate(groups={"count": 3, "kept": 2, "score": "max"}, max_k=6)
    assert gate.route(np.ones((2, 6), np.float32)).expert.tolist() == [0, 1, 2, 3] * 2


def test_a_groups_two_best_are_summed_and_one_alone_is_all_it_has():
    gate = a_gate(groups={"count": 6, "kept": 2, "score": "top2_sum"})
    assert gate.route(np.array([[1, 6, 2, 3, 5, 4]], np.float32)).expert.tolist() == [1, 4]


def test_the_correction_decides_who_is_picked_but_not_with_which_weight():
    told = a_gate(pick_bias=[5, 0, 0, 0, 0, 0], weighting="score", scale=2.0).explain(
        np.array([[1, 2, 3, 0, 0, 0]], np.float32)
    )
    assert told.picked[0].tolist() == [True, False, True, False, False, False]
    assert told.weight[0].tolist() == [2, 0, 6, 0, 0, 0]
    assert told.score[0].tolist() == [1, 2, 3, 0, 0, 0]
    assert told.margin[0].tolist() == [4, -1, 1, -3, -3, -3]  # of score and correction


def test_margins_of_experts_outside_the_kept_groups_are_infinitely_far():
    told = a_gate(groups={"count": 3, "kept": 2, "score": "max"}, max_k=3).explain(
        np.array([[9, 1, 2, 3, 4, 0]], np.float32)
    )
    assert told.picked[0].tolist() == [True, True, False, False, True, False]
    assert told.margin[0].tolist() == [9, 1, -np.inf, -np.inf, 4, -1]
    assert told.rule == "the best 3 of 6, in the best 2 of 3 groups"


def test_only_weights_that_follow_from_the_picks_are_remembered():
    rows = np.array([[3, 2, 1, 0, 0, 0]], np.float32)
    ones, scores = a_gate(scale=0.5), a_gate(weighting="score")
    assert ones.route_row(rows) is ones.route_row(2 * rows)
    assert ones.route_row(rows).weights == (0.5, 0.5)
    assert not scores.route_row(rows).recurs
    assert scores.route_row(2 * rows).weights == (6, 4)


def test_tensors_that_do_not_fit_the_manifest_are_refused():
    with pytest.raises(CorruptData, match=r"4 groups, which do not divide its 6 experts"):
        a_gate(groups={"count": 4, "kept": 2, "score": "max"})
    with pytest.raises(CorruptData, match="pick_bias"):
        a_gate(pick_bias=[0.0] * 5)


@pytest.fixture
def bundle(tmp_path):
    return Bundle(make_tiny_bundle(tmp_path / "tiny"))


def changed(bundle, layer, **fields):
    document = bundle.manifest.model_dump(mode="json")
    document["layers"][layer] |= fields
    write_manifest(Manifest.model_validate(document), bundle.folder)
    return Bundle(bundle.folder)


def test_a_dense_layer_routes_every_row_nowhere(bundle):
    width = bundle.manifest.layers[0].total_width
    dense, *others = load_gates(changed(bundle, 0, kind="dense", gate=None, experts=[], shared_width=width))
    assert (dense.experts, len(others)) == (0, LAYERS - 1)
    for count in (0, 1, 5):
        rows = np.ones((count, HIDDEN), np.float32)
        assert (dense.route(rows).tokens, dense.route(rows).pairs) == (count, 0)
        assert dense.route_row(rows) is None  # one that is no number must be looked at
        told = dense.explain(rows)
        assert told.score.shape == told.picked.shape == told.weight.shape == told.margin.shape == (count, 0)


@pytest.mark.parametrize("shape", [(HIDDEN, EXPERTS + 1), (HIDDEN + 1, EXPERTS)])
def test_a_gate_for_other_experts_than_the_manifest_has_is_refused(bundle, shape):
    tensors = {"router": np.zeros(shape, np.float32), "bias": np.zeros(shape[1], np.float32)}
    gate = bundle.manifest.layers[1].gate.model_dump(mode="json")
    blob = bundle.blobs.put(encode_tensors(tensors))
    with pytest.raises(CorruptData, match="gate of layer 1 is for"):
        load_gates(changed(bundle, 1, gate=gate | {"weights": blob.model_dump()}))
