"""Configs of well-known checkpoints: what is read from them, and what they leave out."""

from dataclasses import dataclass
from pathlib import Path

import pytest
from transformers import AutoConfig

from expertmesh_common.bundle.parts import Groups
from expertmesh_forge.errors import UnsupportedModel
from expertmesh_forge.importing.config import CheckpointConfig
from expertmesh_forge.importing.families import FAMILIES, Family, family_of
from expertmesh_forge.importing.planning import GatePlan, ModelPlan
from expertmesh_forge.importing.rope import rope_settings
from models import published_configs as published


@dataclass(frozen=True)
class Expected:
    """`widths` are those of one expert, of the shared ones and of a dense block; `rope` is kind, theta and values that
    turn; `window` is that of every other layer, the first among them."""

    config: published.Values
    layers: int
    experts: int
    widths: tuple[int, ...]
    gate: GatePlan
    rope: tuple[str, float, int]
    context_tokens: int
    dense: tuple[int, ...] = ()
    window: int = 0
    epsilons: tuple[float, float | None] = (1e-6, None)


LATENT_EPSILONS = (1e-6, 1e-6)
EXPECTED = {
    "Mixtral 8x7B": Expected(
        published.MIXTRAL_8X7B, 32, 8, (14336, 0), GatePlan("softmax", 2, "normalised"), ("default", 1e6, 128), 32768,
        epsilons=(1e-5, None),
    ),
    "Mixtral 8x22B": Expected(
        published.MIXTRAL_8X22B, 56, 8, (16384, 0), GatePlan("softmax", 2, "normalised"), ("default", 1e6, 128), 65536,
        epsilons=(1e-5, None),
    ),
    "Qwen1.5-MoE-A2.7B": Expected(
        published.QWEN15_MOE, 24, 60, (1408, 5632), GatePlan("softmax", 4, "score"), ("default", 1e6, 128), 8192,
    ),
    "Qwen2-57B-A14B": Expected(
        published.QWEN2_57B_A14B, 28, 64, (2560, 20480), GatePlan("softmax", 8, "score"), ("default", 1e6, 128), 131072,
    ),
    "Qwen3-30B-A3B": Expected(
        published.QWEN3_30B_A3B, 48, 128, (768, 0), GatePlan("softmax", 8, "normalised"), ("default", 1e6, 128), 40960,
    ),
    "OLMoE-1B-7B": Expected(
        published.OLMOE_1B_7B, 16, 64, (1024, 0), GatePlan("softmax", 8, "score"), ("default", 1e4, 128), 4096,
        epsilons=(1e-5, None),
    ),
    "Granite-3B-A800M": Expected(
        published.GRANITE_3B_A800M, 32, 40, (512, 0), GatePlan("linear", 8, "softmax"), ("default", 1e7, 64), 131072,
    ),
    "Phi-3.5-MoE": Expected(
        published.PHI_35_MOE, 32, 16, (6400, 0), GatePlan("linear", 2, "sparse-mixer", epsilon=0.01),
        ("longrope", 1e4, 128), 4096, epsilons=(1e-5, None),
    ),
    "DeepSeek-V2-Lite": Expected(
        published.DEEPSEEK_V2_LITE, 27, 64, (1408, 2816, 10944), GatePlan("softmax", 6, "score"), ("yarn", 1e4, 64),
        163840, dense=(0,), epsilons=LATENT_EPSILONS,
    ),
    "DeepSeek-V2": Expected(
        published.DEEPSEEK_V2, 60, 160, (1536, 3072, 12288),
        GatePlan("softmax", 6, "score", scale=16.0, groups=Groups(count=8, kept=3, score="max")), ("yarn", 1e4, 64),
        163840, dense=(0,), epsilons=LATENT_EPSILONS,
    ),
    "DeepSeek-V3": Expected(
        published.DEEPSEEK_V3, 61, 256, (2048, 2048, 18432),
        GatePlan("sigmoid", 8, "normalised", scale=2.5, groups=Groups(count=8, kept=4, score="top2_sum")),
        ("yarn", 1e4, 64), 163840, dense=(0, 1, 2), epsilons=LATENT_EPSILONS,
    ),
    "Moonlight-16B-A3B": Expected(
        published.MOONLIGHT_16B_A3B, 27, 64, (1408, 2816, 11264), GatePlan("sigmoid", 6, "normalised", scale=2.446),
        ("default", 5e4, 64), 8192, dense=(0,), epsilons=(1e-5, 1e-6),
    ),
    "gpt-oss-20b": Expected(
        published.GPT_OSS_20B, 24, 32, (2880, 0), GatePlan("linear", 4, "softmax"), ("yarn", 150000.0, 64), 131072,
        window=128, epsilons=(1e-5, None),
    ),
    "gpt-oss-120b": Expected(
        published.GPT_OSS_120B, 36, 128, (2880, 0), GatePlan("linear", 4, "softmax"), ("yarn", 150000.0, 64), 131072,
        window=128, epsilons=(1e-5, None),
    ),
    "Llama 4 Scout": Expected(
        published.LLAMA_4_SCOUT, 48, 16, (8192, 8192), GatePlan("linear", 1, "sigmoid", weight_on="input"),
        ("llama3", 5e5, 128), 8191, epsilons=(1e-5, None),
    ),
    "Llama 4 Maverick": Expected(
        published.LLAMA_4_MAVERICK, 48, 128, (8192, 8192, 16384), GatePlan("linear", 1, "sigmoid", weight_on="input"),
        ("default", 5e5, 128), 8191, dense=tuple(range(0, 48, 2)), epsilons=(1e-5, None),
    ),
}  # fmt: skip


def family_with(values: published.Values) -> Family:
    return family_of(CheckpointConfig(Path("config.json"), values))


def plan_of(values: published.Values) -> ModelPlan:
    return family_with(values).plan()


@pytest.fixture(params=EXPECTED)
def expected(request) -> Expected:
    return EXPECTED[request.param]


def test_every_family_has_a_published_config() -> None:
    found = {each.config["model_type"] for each in EXPECTED.values()}

    assert found == set(FAMILIES) - {"granitemoeshared", "llama4_text"}


def test_experts_and_layers_are_as_published(expected: Expected) -> None:
    plan = plan_of(expected.config)
    moe = [layer for layer in plan.layers if layer.gate]
    dense = [layer for layer in plan.layers if not layer.gate]

    assert len(plan.layers) == expected.layers
    assert tuple(index for index, layer in enumerate(plan.layers) if not layer.gate) == expected.dense
    assert {layer.experts for layer in moe} == {expected.experts}
    assert {(layer.expert_width, layer.shared_width) for layer in moe} == {expected.widths[:2]}
    assert {layer.shared_width for layer in dense} == set(expected.widths[2:])
    for layer in range(len(plan.layers)):
        plan.trunk.attention_of(layer)


def test_gates_are_as_published(expected: Expected) -> None:
    assert {layer.gate for layer in plan_of(expected.config).layers if layer.gate} == {expected.gate}


def test_positions_windows_and_contexts_are_as_published(expected: Expected) -> None:
    family = family_with(expected.config)
    plan, settings = family.plan(), rope_settings(family.config, family.rotary_dim())
    windows = [layer.attention.window for layer in plan.layers]

    assert (settings.kind, settings.base, 2 * len(plan.rope.inverse_frequencies)) == expected.rope
    assert plan.rope_base == settings.base
    assert plan.context_tokens == expected.context_tokens
    assert (set(windows[0::2]), set(windows[1::2])) == ({expected.window}, {0})


def test_norms_have_the_published_epsilon(expected: Expected) -> None:
    plan = plan_of(expected.config)

    assert (plan.norm_epsilon, plan.latent_norm_epsilon) == expected.epsilons
    assert plan.trunk.latent_norm_epsilon == plan.latent_norm_epsilon


@pytest.mark.parametrize("name", sorted(set(FAMILIES) - {"llama4"}))
def test_what_a_config_leaves_out_is_what_transformers_takes(name: str) -> None:
    theirs = AutoConfig.for_model(name)
    rope = theirs.rope_parameters
    wanted = {"rope_theta": 10000.0, **FAMILIES[name].defaults}

    found = {key: rope["rope_theta"] if key == "rope_theta" else getattr(theirs, key) for key in wanted}

    if "rope_parameters" in wanted:
        found["rope_parameters"] = {key: value for key, value in rope.items() if key != "rope_theta"}
    assert found == wanted


def without(values: published.Values, *keys: str) -> published.Values:
    return {key: value for key, value in values.items() if key not in keys}


def test_what_no_tensor_would_betray_has_the_familys_own_default() -> None:
    groups = plan_of(without(published.DEEPSEEK_V3, "n_group", "topk_group")).layers[-1].gate
    assert groups == plan_of(published.DEEPSEEK_V3).layers[-1].gate
    assert plan_of(without(published.GPT_OSS_20B, "rope_scaling")).rope == plan_of(published.GPT_OSS_20B).rope
    text = without(published.LLAMA_4_SCOUT["text_config"], "attention_chunk_size") | {"attn_temperature_tuning": False}
    assert plan_of(published.LLAMA_4_SCOUT | {"text_config": text}).context_tokens == 8192


@pytest.mark.parametrize(
    ("values", "parameters"),
    [(published.MIXTRAL_8X7B, 46_702_792_704), (published.MIXTRAL_8X22B, 140_620_634_112)],
)
def test_mixtral_has_as_many_parameters_as_it_says(values: published.Values, parameters: int) -> None:
    plan = plan_of(values)
    hidden = plan.hidden

    attention = hidden * (2 * hidden + 2 * 1024)
    experts = sum(layer.experts * 3 * layer.expert_width * hidden for layer in plan.layers)
    rest = len(plan.layers) * (attention + 8 * hidden + 2 * hidden) + 2 * 32000 * hidden + hidden
    assert experts + rest == parameters


@pytest.mark.parametrize("values", [published.DEEPSEEK_V3, published.QWEN3_30B_A3B])
def test_8_bit_floats_are_the_same_model(values: published.Values) -> None:
    quantised = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}

    assert plan_of(values | {"quantization_config": quantised}) == plan_of(values)


@pytest.mark.parametrize("method", ["fbgemm_fp8", "compressed-tensors"])
def test_llama_4_in_8_bit_floats_is_refused_by_name(method: str) -> None:
    about = {"quantization_config": {"quant_method": method}}

    with pytest.raises(UnsupportedModel, match=f"weights quantised by {method} is not supported: take the bf16"):
        plan_of(published.LLAMA_4_MAVERICK | about)
