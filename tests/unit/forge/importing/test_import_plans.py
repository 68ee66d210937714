"""What a config means: layers, gates, attention, contexts, and what is refused instead of being served wrongly."""

import json
from pathlib import Path

import pytest

from expertmesh_common.bundle.parts import Groups
from expertmesh_forge.errors import SourceError, UnsupportedModel
from expertmesh_forge.importing.config import CheckpointConfig, read_json
from expertmesh_forge.importing.families import FAMILIES, family_of
from expertmesh_forge.importing.planning import ModelPlan
from models import hf_checkpoints as hf


def plan_of(folder: Path, context_tokens: int | None = None, **changes: object) -> ModelPlan:
    config = read_json(folder / "config.json")
    return family_of(CheckpointConfig(config.path, {**config.values, **changes})).plan(context_tokens)


def test_every_tested_family_is_registered_and_the_other_way_round() -> None:
    assert set(FAMILIES) == {*hf.FAMILIES, "llama4"}


@pytest.mark.parametrize("kind", ["mamba", "granitemoehybrid"])
def test_an_unknown_model_type_says_what_is_supported(checkpoint, kind: str) -> None:
    words = rf"'{kind}' is not supported; supported: deepseek_v2, .*granitemoe, granitemoeshared, .*qwen3_moe"
    with pytest.raises(UnsupportedModel, match=words):
        plan_of(checkpoint("granitemoeshared"), model_type=kind)


@pytest.mark.parametrize(
    ("family", "changes", "dense"),
    [
        ("qwen2_moe", {"decoder_sparse_step": 2}, [0, 2]),
        ("qwen2_moe", {"decoder_sparse_step": 1, "mlp_only_layers": [3]}, [3]),
        ("qwen3_moe", {"mlp_only_layers": []}, []),
        ("deepseek_v3", {"first_k_dense_replace": 2}, [0, 1]),
        ("deepseek_v2", {"first_k_dense_replace": 0}, []),
        ("llama4_text", {"moe_layers": None, "interleave_moe_layer_step": 2}, [0, 2]),
        ("llama4_text", {"moe_layers": [0, 3]}, [1, 2]),
    ],
)
def test_which_layers_are_dense(checkpoint, family: str, changes: dict[str, object], dense: list[int]) -> None:
    plan = plan_of(checkpoint(family), **changes)

    assert [index for index, layer in enumerate(plan.layers) if layer.gate is None] == dense
    assert all(layer.experts == 0 and layer.shared_width == 96 for layer in plan.layers if layer.gate is None)


@pytest.mark.parametrize(
    ("family", "changes", "gate"),
    [
        ("mixtral", {}, ("softmax", 2, "normalised", 0.0, 1.0, "output", None)),
        ("qwen2_moe", {"norm_topk_prob": False}, ("softmax", 3, "score", 0.0, 1.0, "output", None)),
        ("qwen3_moe", {"norm_topk_prob": True}, ("softmax", 3, "normalised", 0.0, 1.0, "output", None)),
        ("olmoe", {}, ("softmax", 4, "score", 0.0, 1.0, "output", None)),
        ("granitemoe", {}, ("linear", 3, "softmax", 0.0, 1.0, "output", None)),
        ("granitemoeshared", {}, ("linear", 3, "softmax", 0.0, 1.0, "output", None)),
        ("phimoe", {}, ("linear", 2, "sparse-mixer", 0.2, 1.0, "output", None)),
        ("deepseek_v2", {}, ("softmax", 3, "score", 0.0, 1.7, "output", Groups(count=4, kept=2, score="max"))),
        (
            "deepseek_v3",
            {},
            ("sigmoid", 3, "normalised", 0.0, 2.5, "output", Groups(count=4, kept=2, score="top2_sum")),
        ),
        ("deepseek_v3", {"n_group": 1, "topk_group": 1}, ("sigmoid", 3, "normalised", 0.0, 2.5, "output", None)),
        ("gpt_oss", {}, ("linear", 3, "softmax", 0.0, 1.0, "output", None)),
        ("llama4_text", {}, ("linear", 2, "sigmoid", 0.0, 1.0, "input", None)),
    ],
)
def test_how_rows_choose_experts(checkpoint, family: str, changes: dict[str, object], gate: tuple[object, ...]) -> None:
    plan = plan_of(checkpoint(family), **changes)

    found = next(layer.gate for layer in plan.layers if layer.gate)
    assert gate == (
        found.scorer, found.max_k, found.weighting, found.epsilon, found.scale, found.weight_on, found.groups
    )  # fmt: skip


@pytest.mark.parametrize(
    ("family", "changes", "windows"),
    [
        ("mixtral", {}, [12, 12, 12]),
        ("mixtral", {"sliding_window": None}, [0, 0, 0]),
        ("qwen2_moe", {"layer_types": None, "max_window_layers": 2}, [12, 0, 0, 0]),
        ("qwen2_moe", {"use_sliding_window": False}, [0, 0, 0, 0]),
        ("phimoe", {"sliding_window": 127}, [127, 127, 127]),
        ("phimoe", {"sliding_window": 128}, [0, 0, 0]),
        ("gpt_oss", {"layer_types": None}, [10, 0, 10, 0]),
    ],
)
def test_which_layers_have_a_window(checkpoint, family: str, changes: dict[str, object], windows: list[int]) -> None:
    plan = plan_of(checkpoint(family), **changes)

    assert [layer.attention.window for layer in plan.layers] == windows


def test_llama_4_is_served_as_far_as_it_is_exact(checkpoint) -> None:
    folder = checkpoint("llama4_text")

    assert plan_of(folder).context_tokens == 99  # floor_scale 100: beyond, attention has another temperature
    chunked = plan_of(folder, attn_temperature_tuning=False)
    assert chunked.context_tokens == 128
    assert chunked.notes == ("texts of up to 128 of 256 tokens: one chunk of its chunked attention",)
    assert plan_of(folder, attn_temperature_tuning=4).context_tokens == 99
    assert plan_of(folder, attn_temperature_tuning=False, attention_chunk_size=None).notes == ()
    with pytest.raises(UnsupportedModel, match=r"100 tokens is too long: up to 99 are served"):
        plan_of(folder, 100)


def test_llama_4_is_found_inside_a_model_that_sees(checkpoint) -> None:
    folder = checkpoint("llama4_text")
    text = json.loads((folder / "config.json").read_text())

    plan = family_of(CheckpointConfig(folder, {"model_type": "llama4", "text_config": text})).plan()

    assert (plan.family, len(plan.layers)) == ("llama4_text", 4)
    assert "the part that sees images is left out" in plan.notes[-1]


@pytest.mark.parametrize("inside", [{}, {"quantization_config": None}, {"quantization_config": {"quant_method": "x"}}])
def test_how_a_model_that_sees_says_its_weights_are_quantised_is_heard(checkpoint, inside) -> None:
    folder = checkpoint("llama4_text")
    text = {**read_json(folder / "config.json").values, **inside}
    whole = {"model_type": "llama4", "text_config": text, "quantization_config": {"quant_method": "fbgemm_fp8"}}

    with pytest.raises(UnsupportedModel, match="llama4_text with weights quantised by fbgemm_fp8 is not supported"):
        family_of(CheckpointConfig(folder, whole))


def test_phimoe_serves_short_texts_unless_asked_for_long_ones(checkpoint) -> None:
    folder = checkpoint("phimoe")
    short, long = plan_of(folder), plan_of(folder, 256)

    assert (short.context_tokens, short.rope.factor) == (128, 1.1)
    assert (long.context_tokens, long.rope.factor) == (256, 1.3)
    assert "short texts" in short.notes[0]
    assert "long texts" in long.notes[0]


REFUSED = [
    ("mixtral", {"hidden_act": "gelu"}, "activation 'gelu'"),
    ("mixtral", {"quantization_config": {"quant_method": "fp8"}}, "weights quantised by fp8"),
    ("mixtral", {"quantization_config": {"quant_method": "mxfp4"}}, "weights quantised by mxfp4"),
    ("mixtral", {"quantization_config": {"bits": 4}}, "weights quantised by a method that it does not name"),
    ("gpt_oss", {"quantization_config": {}}, "weights quantised by a method that it does not name"),
    ("olmoe", {"clip_qkv": 8.0}, "clip_qkv 8.0"),
    ("phimoe", {"num_experts_per_tok": 3}, "num_experts_per_tok other than 2"),
    ("deepseek_v2", {"topk_method": "noaux_tc"}, "topk_method 'noaux_tc'"),
    ("deepseek_v2", {"norm_topk_prob": True}, "norm_topk_prob"),
    ("deepseek_v2", {"moe_layer_freq": 2}, "moe_layer_freq"),
    ("deepseek_v3", {"scoring_func": "softmax"}, "scoring_func 'softmax'"),
    ("deepseek_v3", {"attention_bias": True}, "attention_bias"),
    ("deepseek_v3", {"topk_method": "greedy"}, "topk_method 'greedy'"),
    ("granitemoe", {"position_embedding_type": "nope"}, "position_embedding_type 'nope'"),
    ("granitemoeshared", {"position_embedding_type": "nope"}, "position_embedding_type 'nope'"),
    ("gpt_oss", {"swiglu_limit": 6.0}, "swiglu_limit 6.0"),
]


@pytest.mark.parametrize(("family", "changes", "words"), REFUSED)
def test_settings_that_would_be_served_wrongly_are_refused(checkpoint, family: str, changes, words: str) -> None:
    with pytest.raises(UnsupportedModel, match=f"{family} with {words}.* is not supported"):
        plan_of(checkpoint(family), **changes)


@pytest.mark.parametrize("family", hf.FAMILIES)
def test_positions_that_no_family_has_are_refused_in_every_family(checkpoint, family: str) -> None:
    folder = checkpoint(family)

    with pytest.raises(UnsupportedModel, match="partial_rotary_factor other than 1 is not supported"):
        plan_of(folder, partial_rotary_factor=0.5)
    with pytest.raises(UnsupportedModel, match=r"rope parameters per layer type \(full_attention\) are not supported"):
        plan_of(folder, rope_parameters={"full_attention": {"rope_type": "default", "rope_theta": 1e4}})


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("deepseek_v3", {"topk_method": "noaux_tc"}),
        ("granitemoe", {"position_embedding_type": "rope"}),
        ("mixtral", {"quantization_config": None}),
    ],
)
def test_settings_that_say_the_usual_change_nothing(checkpoint, family: str, changes) -> None:
    assert plan_of(checkpoint(family), **changes) == plan_of(checkpoint(family))


def test_scaling_added_to_a_saved_checkpoint_keeps_its_theta(checkpoint) -> None:
    theta = {"rope_type": "default", "rope_theta": 1e6}
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}

    plan = plan_of(checkpoint("qwen3_moe", rope_parameters=theta), rope_scaling=yarn)

    assert plan.rope_base == 1e6
    assert plan.rope == plan_of(checkpoint("qwen3_moe"), rope_parameters={**theta, **yarn}).rope


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_size": None}, "has no 'hidden_size'"),
        ({"hidden_size": "64"}, "'hidden_size' must be an integer, it is '64'"),
        ({"num_local_experts": 0}, "'num_local_experts' must be at least 1"),
        ({"rms_norm_eps": True}, "'rms_norm_eps' must be a number"),
        ({"tie_word_embeddings": 1}, "'tie_word_embeddings' must be true or false"),
        ({"rope_parameters": [1]}, "'rope_parameters' must be an object"),
        ({"model_type": 3}, "'model_type' must be a text"),
    ],
)
def test_a_config_that_is_not_whole_names_the_key(checkpoint, changes, words: str) -> None:
    config = CheckpointConfig(
        Path("config.json"), {**read_json(checkpoint("mixtral") / "config.json").values, **changes}
    )

    def read_all() -> None:
        family = family_of(config)
        family.plan()
        family.ignored()

    with pytest.raises(SourceError, match=words):
        read_all()
