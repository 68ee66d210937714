"""Every family's gate as data against that family's own router, and against itself with a part left out."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest

from expertmesh_common.bundle.manifest import Blob
from expertmesh_common.bundle.manifest import Gate as GateConfig
from expertmesh_controller.gateway.gating.gate import Gate

HIDDEN = 24
BLOB = Blob(digest="0" * 64, size_bytes=1)


@dataclass(frozen=True)
class Family:
    """A router class with its configuration, and the gate that should equal it."""

    model: str
    router: str
    settings: dict[str, Any]
    gate: dict[str, Any]


def top(scorer, k, weighting, **more):
    return {"scorer": scorer, "picker": "top_k", "max_k": k, "weighting": weighting, **more}


def groups(count, kept, score):
    return {"count": count, "kept": kept, "score": score}


EPSILON = 0.2  # near enough to 1/2 that most rows have more than one near expert
V2 = {"num_attention_heads": 4, "n_routed_experts": 12, "num_experts_per_tok": 4, "routed_scaling_factor": 2.5}
V3 = {"n_routed_experts": 15, "num_experts_per_tok": 4, "n_group": 5, "topk_group": 2, "routed_scaling_factor": 2.5}
TOP_2_SUM = groups(5, 2, "top2_sum")
FAMILIES = {
    "mixtral": Family(
        "mixtral.Mixtral", "TopKRouter",
        {"num_local_experts": 6, "num_experts_per_tok": 2},
        top("softmax", 2, "normalised"),
    ),
    "qwen2-moe normalised": Family(
        "qwen2_moe.Qwen2Moe", "TopKRouter",
        {"num_experts": 10, "num_experts_per_tok": 4, "norm_topk_prob": True},
        top("softmax", 4, "normalised"),
    ),
    "qwen2-moe": Family(
        "qwen2_moe.Qwen2Moe", "TopKRouter",
        {"num_experts": 10, "num_experts_per_tok": 4, "norm_topk_prob": False},
        top("softmax", 4, "score"),
    ),
    "qwen3-moe": Family(
        "qwen3_moe.Qwen3Moe", "TopKRouter",
        {"num_experts": 12, "num_experts_per_tok": 3, "norm_topk_prob": True},
        top("softmax", 3, "normalised"),
    ),
    "olmoe": Family(
        "olmoe.Olmoe", "TopKRouter",
        {"num_experts": 11, "num_experts_per_tok": 5, "norm_topk_prob": False},
        top("softmax", 5, "score"),
    ),
    "deepseek-v2 greedy": Family(
        "deepseek_v2.DeepseekV2", "TopkRouter",
        {**V2, "topk_method": "greedy"},
        top("softmax", 4, "score", scale=2.5),
    ),
    "deepseek-v2": Family(
        "deepseek_v2.DeepseekV2", "TopkRouter",
        {**V2, "topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2},
        top("softmax", 4, "score", groups=groups(4, 2, "max"), scale=2.5),
    ),
    "deepseek-v3": Family(
        "deepseek_v3.DeepseekV3", "TopkRouter",
        {**V3, "norm_topk_prob": True},
        top("sigmoid", 4, "normalised", groups=TOP_2_SUM, scale=2.5),
    ),
    "deepseek-v3 plain": Family(
        "deepseek_v3.DeepseekV3", "TopkRouter",
        {**V3, "norm_topk_prob": False},
        top("sigmoid", 4, "score", groups=TOP_2_SUM, scale=2.5),
    ),
    "phimoe": Family(
        "phimoe.Phimoe", "TopKRouter",
        {"num_local_experts": 7, "num_experts_per_tok": 2, "router_jitter_noise": EPSILON},
        top("linear", 2, "sparse-mixer", epsilon=EPSILON),
    ),
    "granite": Family(
        "granitemoe.GraniteMoe", "TopKRouter",
        {"num_local_experts": 9, "num_experts_per_tok": 3},
        top("linear", 3, "softmax"),
    ),
    "gpt-oss": Family(
        "gpt_oss.GptOss", "TopKRouter",
        {"num_local_experts": 10, "num_experts_per_tok": 4},
        top("linear", 4, "softmax"),
    ),
    "llama-4": Family(
        "llama4.Llama4Text", "Router",
        {"num_local_experts": 5, "num_experts_per_tok": 1},
        top("linear", 1, "sigmoid", weight_on="input"),
    ),
}  # fmt: skip


def router_of(family: Family):
    """The family's own router with random weights, in eval mode: fresh ones have zeros."""
    import torch

    module, _, name = family.model.partition(".")
    models = f"transformers.models.{module}"
    config_class = getattr(importlib.import_module(f"{models}.configuration_{module}"), f"{name}Config")
    code = importlib.import_module(f"{models}.modeling_{module}")
    config = config_class(hidden_size=HIDDEN, **family.settings)
    router = getattr(code, name.removesuffix("Text") + family.router)(config).eval()
    random = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for tensor in router.state_dict().values():
            tensor.copy_(torch.randn(tensor.shape, generator=random) * (0.4 if tensor.ndim == 2 else 0.3))
    return router


@cache
def answers_of(name: str, tokens: int):
    """(rows [T, hidden], weights [T, experts] with 0 where nothing is picked, the gate's tensors)."""
    import torch

    router = router_of(FAMILIES[name])
    rows = np.random.default_rng(tokens).standard_normal((tokens, HIDDEN)).astype(np.float32)
    with torch.no_grad():
        answer = router(torch.from_numpy(rows))
        if len(answer) == 2:  # Llama 4 gives a weight for every expert
            weights = answer[0].numpy()
        else:
            logits, picked, index = answer
            weights = torch.zeros_like(logits).scatter_(1, index, picked).numpy()
    named = {key: value.numpy() for key, value in router.state_dict().items()}
    experts = len(named["weight"])
    tensors = {"router": named["weight"].T.copy(), "bias": named.get("bias", np.zeros(experts, np.float32))}
    if "e_score_correction_bias" in named:
        tensors["pick_bias"] = named["e_score_correction_bias"]
    return rows, weights, tensors


def weights_of(config: dict[str, Any], tensors, rows) -> tuple[np.ndarray, np.ndarray]:
    """The gate's weights [T, experts], and whether each row is far enough from every other decision [T]."""
    gate = Gate(GateConfig(weights=BLOB, **config), tensors)
    routing, weights = gate.route(rows), np.zeros((len(rows), gate.experts), np.float32)
    weights[routing.row, routing.expert] = routing.weight
    return weights, np.abs(gate.explain(rows).margin).min(axis=1) >= 1e-5


@pytest.mark.parametrize("tokens", [1, 7, 64])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_gate_is_the_familys_own_router(name, tokens):
    rows, expected, tensors = answers_of(name, tokens)
    weights, clear = weights_of(FAMILIES[name].gate, tensors, rows)
    assert clear.mean() > 0.9
    np.testing.assert_array_equal((weights != 0)[clear], (expected != 0)[clear])
    np.testing.assert_allclose(weights[clear], expected[clear], rtol=0, atol=1e-6)


WRONG = [
    ("mixtral", {"weighting": "score"}),
    ("mixtral", {"scorer": "linear"}),
    ("mixtral", {"max_k": 3}),
    ("qwen2-moe normalised", {"weighting": "score"}),
    ("qwen2-moe", {"weighting": "normalised"}),
    ("qwen3-moe", {"weighting": "one"}),
    ("olmoe", {"weighting": "normalised"}),
    ("deepseek-v2 greedy", {"scale": 1.0}),
    ("deepseek-v2 greedy", {"groups": groups(4, 2, "max")}),
    ("deepseek-v2", {"groups": None}),
    ("deepseek-v2", {"groups": groups(4, 2, "top2_sum")}),
    ("deepseek-v2", {"weighting": "normalised"}),
    ("deepseek-v3", {"groups": None}),
    ("deepseek-v3", {"groups": groups(5, 2, "max")}),
    ("deepseek-v3", {"scale": 1.0}),
    ("deepseek-v3", {"weighting": "score"}),
    ("deepseek-v3", {"scorer": "softmax"}),
    ("deepseek-v3 plain", {"weighting": "normalised"}),
    ("phimoe", {"weighting": "softmax"}),
    ("phimoe", {"epsilon": 0.01}),
    ("granite", {"weighting": "one"}),
    ("gpt-oss", {"weighting": "sigmoid"}),
    ("llama-4", {"weighting": "softmax"}),
    ("llama-4", {"scorer": "sigmoid"}),
]


@pytest.mark.parametrize(("name", "change"), WRONG)
def test_a_gate_with_a_part_changed_is_not_the_familys_router(name, change):
    rows, expected, tensors = answers_of(name, 64)
    weights, _ = weights_of(FAMILIES[name].gate | change, tensors, rows)
    assert np.abs(weights - expected).max() > 1e-2


@pytest.mark.parametrize(("name", "left_out"), [("deepseek-v3", "pick_bias"), ("gpt-oss", "bias")])
def test_a_gate_without_its_bias_is_not_the_familys_router(name, left_out):
    rows, expected, tensors = answers_of(name, 64)
    without = {key: value for key, value in tensors.items() if key != left_out}
    without.setdefault("bias", np.zeros(len(tensors["bias"]), np.float32))
    weights, _ = weights_of(FAMILIES[name].gate, without, rows)
    assert np.abs(weights - expected).max() > 1e-2


@pytest.mark.parametrize("name", ["mixtral", "granite"])
def test_mixtrals_and_granites_rules_are_the_same_rule(name):
    rows, expected, tensors = answers_of(name, 64)
    other = {"mixtral": top("linear", 2, "softmax"), "granite": top("softmax", 3, "normalised")}[name]
    weights, clear = weights_of(other, tensors, rows)
    np.testing.assert_allclose(weights[clear], expected[clear], rtol=0, atol=1e-6)
