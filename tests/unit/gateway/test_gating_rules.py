"""Every rule of a manifest's gate, against the same rule written out for one row in plain Python."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from expertmesh_common.bundle.manifest import Blob
from expertmesh_common.bundle.manifest import Gate as GateConfig
from expertmesh_controller.gateway.gating.gate import Gate

BLOB = Blob(digest="0" * 64, size_bytes=1)
WEIGHTINGS = ["one", "score", "normalised", "softmax", "sigmoid", "sparse-mixer"]
SCORERS = ["linear", "softmax", "sigmoid"]
EPSILON = 0.2


@st.composite
def gates(draw, weightings=WEIGHTINGS):
    """(configuration, experts); with groups or without, by threshold or top k."""
    count, members = draw(st.integers(1, 5)), draw(st.integers(1, 6))
    config = {
        "scorer": draw(st.sampled_from(SCORERS)),
        "picker": draw(st.sampled_from(["top_k", "threshold"])),
        "threshold": draw(st.sampled_from([-1.0, 0.1, 0.5])),
        "max_k": draw(st.integers(1, 8)),
        "weighting": draw(st.sampled_from(weightings)),
        "scale": draw(st.sampled_from([1.0, 2.5])),
        "epsilon": EPSILON,
    }
    if config["weighting"] == "sparse-mixer":
        config |= {"scorer": "linear", "picker": "top_k", "max_k": 2}
    elif draw(st.booleans()):
        score = draw(st.sampled_from(["max", "top2_sum"]))
        config["groups"] = {"count": count, "kept": draw(st.integers(1, count)), "score": score}
    config["min_k"] = draw(st.integers(0, min(2, config["max_k"])))
    return GateConfig(weights=BLOB, **config), count * members


def made(config, experts, seed, *, hidden=None, biased=True):
    """A gate with random tensors."""
    random = np.random.default_rng(seed)
    shape = (hidden or experts, experts)
    tensors = {
        "router": (random.standard_normal(shape) * 2 / math.sqrt(shape[0])).astype(np.float32),
        "bias": random.standard_normal(experts).astype(np.float32),
    }
    if biased and config.weighting != "sparse-mixer":
        tensors["pick_bias"] = (random.standard_normal(experts) * 0.3).astype(np.float32)
    return Gate(config, tensors), tensors


def rows_for(gate, count, seed):
    return np.random.default_rng(seed).standard_normal((count, gate.hidden)).astype(np.float32)


def pairs_of(routing, row):
    mine = routing.row == row
    return dict(zip(routing.expert[mine].tolist(), routing.weight[mine].tolist(), strict=True))


def best(order, count):
    """The `count` best of (score, index) pairs, ties to the lower index."""
    return [index for _, index in sorted(order, key=lambda pair: (-pair[0], pair[1]))[:count]]


def plain_pick(config, choice, allowed):
    """The picked experts of one row, ascending."""
    candidates = [e for e in range(len(choice)) if allowed[e]]
    if config.groups:
        size = len(choice) // config.groups.count
        members = {g: sorted(choice[e] for e in candidates if e // size == g) for g in range(config.groups.count)}
        summed = 1 if config.groups.score == "max" else 2
        kept = best([(float(np.sum(m[-summed:])), g) for g, m in members.items() if m], config.groups.kept)
        candidates = [e for e in candidates if e // size in kept]
    wanted = config.max_k
    if config.picker == "threshold":
        wanted = min(max(sum(choice[e] >= np.float32(config.threshold) for e in candidates), config.min_k), wanted)
    return sorted(best([(choice[e], e) for e in candidates], wanted))


def softmax(values):
    shares = [math.exp(v - max(values)) for v in values]
    return [share / math.fsum(shares) for share in shares]


def mixed(scores, allowed, picked):
    """PhiMoE's weights, in the words of its paper."""
    weights, left = {}, [e for e in range(len(scores)) if allowed[e]]
    for _ in picked:
        peak = max(scores[e] for e in left)
        near = [e for e in left if (peak - scores[e]) / max(abs(scores[e]), peak) <= 2 * EPSILON]
        first = min(e for e in left if scores[e] == peak)
        weights[first] = softmax([scores[e] for e in near])[near.index(first)]
        left.remove(first)
    return weights


def plain_weights(config, scores, allowed, picked):
    """float64 weights of the picked experts of one row."""
    values = [float(scores[e]) for e in picked]
    shares = {
        "one": lambda: [1.0] * len(values),
        "score": lambda: values,
        "normalised": lambda: [v / math.fsum(values) for v in values],
        "softmax": lambda: softmax(values),
        "sigmoid": lambda: [1 / (1 + math.exp(-v)) for v in values],
    }
    if config.weighting == "sparse-mixer":
        found = mixed([float(s) for s in scores], allowed, picked)
    else:
        found = dict(zip(picked, shares[config.weighting](), strict=True))
    return {e: config.scale * weight for e, weight in found.items()}


@settings(max_examples=300, deadline=None)
@given(gate=gates(), seed=st.integers(0, 2**32 - 1), tokens=st.integers(0, 9), data=st.data())
def test_a_routing_is_the_manifests_rule_for_the_allowed_experts(gate, seed, tokens, data):
    config, experts = gate
    gate, tensors = made(config, experts, seed)
    rows = rows_for(gate, tokens, seed)
    allowed = np.array(data.draw(st.lists(st.booleans(), min_size=experts, max_size=experts)))
    scores = gate.score(rows)
    choice = scores + tensors.get("pick_bias", np.float32(0))
    routing = gate.route(rows, allowed)
    for t in range(tokens):
        picked = plain_pick(config, choice[t], allowed)
        if config.weighting == "normalised" and abs(sum(scores[t, picked])) < 0.05:
            assume(config.scorer != "linear")  # scores that cancel out are no shares
        expected, found = plain_weights(config, scores[t], allowed, picked), pairs_of(routing, t)
        assert list(found) == sorted(expected)
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)


@settings(max_examples=150, deadline=None)
@given(gate=gates(["normalised", "softmax"]), seed=st.integers(0, 2**32 - 1))
def test_weights_that_are_shares_sum_to_the_scale(gate, seed):
    config, experts = gate
    assume(config.weighting == "softmax" or config.scorer != "linear")
    gate, _ = made(config, experts, seed)
    routing = gate.route(rows_for(gate, 6, seed))
    for t in set(routing.row.tolist()):
        assert sum(pairs_of(routing, t).values()) == pytest.approx(config.scale, rel=1e-6)


@settings(max_examples=200, deadline=None)
@given(gate=gates(), seed=st.integers(0, 2**32 - 1))
def test_never_more_than_max_k_experts_and_never_of_more_groups_than_are_kept(gate, seed):
    config, experts = gate
    gate, _ = made(config, experts, seed)
    routing = gate.route(rows_for(gate, 8, seed))
    for t in range(8):
        picked = list(pairs_of(routing, t))
        assert len(picked) <= config.max_k
        if config.groups:
            size = experts // config.groups.count
            assert len({e // size for e in picked}) <= config.groups.kept
        elif config.picker == "top_k":
            assert len(picked) == min(config.max_k, experts)


@settings(max_examples=150, deadline=None)
@given(
    gate=gates(),
    seed=st.integers(0, 2**32 - 1),
    hidden=st.sampled_from([1, 3, 33, 64, 300]),
    tokens=st.sampled_from([2, 5, 16, 67]),
)
def test_a_row_routes_the_same_alone_and_in_a_batch_bit_for_bit(gate, seed, hidden, tokens):
    gate, _ = made(*gate, seed, hidden=hidden)
    rows = rows_for(gate, tokens, seed)
    together, scores = gate.route(rows), gate.score(rows)
    for t in range(tokens):
        alone = gate.route(rows[t : t + 1].copy())
        np.testing.assert_array_equal(gate.score(rows[t : t + 1].copy())[0], scores[t])
        np.testing.assert_array_equal(alone.expert, together.expert[together.row == t])
        np.testing.assert_array_equal(alone.weight, together.weight[together.row == t])
        lone = gate.route_row(rows[t : t + 1].copy()).whole
        np.testing.assert_array_equal(lone.expert, alone.expert)
        np.testing.assert_array_equal(lone.weight, alone.weight)
        assert lone.row.tolist() == [0] * lone.pairs


@settings(max_examples=150, deadline=None)
@given(gate=gates(), seed=st.integers(0, 2**32 - 1))
def test_experts_in_another_order_are_picked_and_weighed_alike(gate, seed):
    config, experts = gate
    assume(config.weighting != "normalised" or config.scorer != "linear")  # scores that cancel out are no shares
    count, random = config.groups.count if config.groups else 1, np.random.default_rng(seed)
    inside = random.permuted(np.arange(experts).reshape(count, -1), axis=1)  # neighbours stay in their group
    order = inside[random.permutation(count)].reshape(-1)
    gate, tensors = made(config, experts, seed)
    moved = Gate(config, {name: np.ascontiguousarray(value[..., order]) for name, value in tensors.items()})
    rows = rows_for(gate, 6, seed)
    told, other = gate.explain(rows), moved.explain(rows)
    clear = (np.abs(told.margin) > 1e-4).all(axis=1)
    np.testing.assert_array_equal(other.picked[clear], told.picked[clear][:, order])
    np.testing.assert_allclose(other.weight[clear], told.weight[clear][:, order], rtol=1e-3, atol=1e-5)
