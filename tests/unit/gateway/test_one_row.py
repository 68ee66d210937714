"""The quick way of a lone row through a gate: the same experts and weights as in company, to the bit."""

from __future__ import annotations

import math

import numpy as np
import pytest

from expertmesh_common.bundle.manifest import Blob
from expertmesh_common.bundle.manifest import Gate as GateConfig
from expertmesh_controller.gateway.gating import gate as gates
from expertmesh_controller.gateway.gating.gate import Gate

BLOB = Blob(digest="0" * 64, size_bytes=1)
TWO_OF = {"scorer": "softmax", "picker": "top_k", "max_k": 2, "weighting": "normalised"}


def made(config, experts, *, hidden=None, pick_bias=None, seed=0):
    random, shape = np.random.default_rng(seed), (hidden or experts, experts)
    tensors = {
        "router": (random.standard_normal(shape) * 2 / math.sqrt(shape[0])).astype(np.float32),
        "bias": random.standard_normal(experts).astype(np.float32),
    }
    if pick_bias is not None:
        tensors["pick_bias"] = np.array(pick_bias, np.float32)
    return Gate(GateConfig(weights=BLOB, **config), tensors)


def rows_for(gate, count, seed=1):
    return np.random.default_rng(seed).standard_normal((count, gate.hidden)).astype(np.float32)


def check_alone_as_in_company(gate, rows):
    together = gate.route(rows)
    for t, row in enumerate(rows):
        lone = gate.route_row(row[np.newaxis]).whole
        np.testing.assert_array_equal(lone.expert, together.expert[together.row == t])
        np.testing.assert_array_equal(lone.weight, together.weight[together.row == t])


@pytest.mark.parametrize("experts", [16, 48, 49, 128])
@pytest.mark.parametrize("max_k", [1, 2, 3, 8])
@pytest.mark.parametrize(
    ("scorer", "weighting"),
    [
        ("softmax", "score"),
        ("softmax", "normalised"),
        ("sigmoid", "score"),
        ("sigmoid", "normalised"),
        ("linear", "softmax"),
        ("linear", "sigmoid"),
        ("linear", "normalised"),
    ],
)
def test_a_lone_row_gets_what_many_rows_get_bit_for_bit(experts, max_k, scorer, weighting):
    config = {"scorer": scorer, "picker": "top_k", "max_k": max_k, "weighting": weighting}
    bias = np.random.default_rng(2).standard_normal(experts) * 0.3
    for scale, pick_bias in ((1.0, None), (2.5, bias)):
        gate = made({**config, "scale": scale}, experts, hidden=96, pick_bias=pick_bias)
        check_alone_as_in_company(gate, np.concatenate([size * rows_for(gate, 16) for size in (1, 10, 0.01)]))


@pytest.mark.parametrize("scorer", ["softmax", "sigmoid"])
def test_experts_that_are_switched_off_by_their_bias_are_not_picked_alone_either(scorer):
    bias = [0, 0, *[-np.inf] * 6]
    gate = made({**TWO_OF, "scorer": scorer, "max_k": 3}, 8, pick_bias=bias)
    rows = rows_for(gate, 9)
    check_alone_as_in_company(gate, rows)
    assert all(gate.route_row(row[np.newaxis]).experts == (0, 1) for row in rows)


@pytest.mark.parametrize("count", [16, 128])
def test_ties_go_to_the_lower_index(count):
    config = GateConfig(weights=BLOB, scorer="linear", picker="top_k", max_k=3, weighting="softmax")
    gate = Gate(config, {"router": np.zeros((4, count), np.float32), "bias": np.zeros(count, np.float32)})
    assert gate.route_row(np.ones((1, 4), np.float32)).experts == (0, 1, 2)


@pytest.mark.parametrize(
    "row", [np.full((1, 8), np.nan), np.full((1, 8), np.inf), np.full((1, 8), 3e38), np.zeros((2, 8)), np.zeros((1, 7))]
)
def test_what_is_no_sound_row_of_the_gate_gets_no_quick_routing(row):
    with np.errstate(over="ignore", invalid="ignore"):
        assert made(TWO_OF, 8).route_row(row.astype(np.float32)) is None


def test_a_row_of_another_type_gets_no_quick_routing():
    assert made(TWO_OF, 8).route_row(np.ones((1, 8))) is None


def test_only_routings_that_come_again_say_so(monkeypatch):
    """What follows from a routing is kept by whoever asked for as long as it recurs."""
    monkeypatch.setattr(gates, "MAX_REMEMBERED", 3)
    gate = made({"scorer": "linear", "picker": "top_k", "max_k": 2, "weighting": "one"}, 8)
    routings = {id(found): found for row in rows_for(gate, 200) if (found := gate.route_row(row[np.newaxis]))}
    assert sum(found.recurs for found in routings.values()) == 3
