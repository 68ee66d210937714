"""Configs as the well-known checkpoints spell them: older key names, nulls, and what they leave out."""

from pathlib import Path

import pytest
from transformers import AutoConfig

from expertmesh_forge.errors import UnsupportedModel
from expertmesh_forge.importing.config import CheckpointConfig
from expertmesh_forge.importing.families import FAMILIES, family_of
from expertmesh_forge.importing.planning import ModelPlan

YARN = {"type": "yarn", "factor": 40, "beta_fast": 32, "beta_slow": 1, "original_max_position_embeddings": 4096}
PHI_ROPE = {
    "type": "longrope", "short_factor": [1.0] * 64, "long_factor": [2.0] * 64, "short_mscale": 1.243163121016122,
    "long_mscale": 1.243163121016122, "original_max_position_embeddings": 4096,
}  # fmt: skip

MIXTRAL_8X7B = {
    "model_type": "mixtral", "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 14336,
    "max_position_embeddings": 32768, "num_attention_heads": 32, "num_experts_per_tok": 2, "num_hidden_layers": 32,
    "num_key_value_heads": 8, "num_local_experts": 8, "rms_norm_eps": 1e-05, "rope_theta": 1e6,
    "sliding_window": None, "tie_word_embeddings": False, "vocab_size": 32000,
}  # fmt: skip
QWEN15_MOE = {
    "model_type": "qwen2_moe", "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 5632,
    "max_position_embeddings": 8192, "max_window_layers": 21, "num_attention_heads": 16, "num_hidden_layers": 24,
    "num_key_value_heads": 16, "rms_norm_eps": 1e-06, "rope_theta": 1e6, "sliding_window": 32768,
    "use_sliding_window": False, "vocab_size": 151936, "decoder_sparse_step": 1, "moe_intermediate_size": 1408,
    "shared_expert_intermediate_size": 5632, "num_experts_per_tok": 4, "num_experts": 60, "norm_topk_prob": False,
}  # fmt: skip
QWEN3_30B_A3B = {
    "model_type": "qwen3_moe", "attention_bias": False, "head_dim": 128, "hidden_act": "silu", "hidden_size": 2048,
    "decoder_sparse_step": 1, "intermediate_size": 6144, "max_position_embeddings": 40960, "mlp_only_layers": [],
    "moe_intermediate_size": 768, "norm_topk_prob": True, "num_attention_heads": 32, "num_experts": 128,
    "num_experts_per_tok": 8, "num_hidden_layers": 48, "num_key_value_heads": 4, "rms_norm_eps": 1e-06,
    "rope_scaling": None, "rope_theta": 1e6, "sliding_window": None, "vocab_size": 151936,
}  # fmt: skip
OLMOE_1B_7B = {
    "model_type": "olmoe", "attention_bias": False, "clip_qkv": None, "hidden_act": "silu", "hidden_size": 2048,
    "intermediate_size": 1024, "max_position_embeddings": 4096, "norm_topk_prob": False, "num_attention_heads": 16,
    "num_experts": 64, "num_experts_per_tok": 8, "num_hidden_layers": 16, "num_key_value_heads": 16,
    "rope_scaling": None, "rope_theta": 10000.0, "vocab_size": 50304,
}  # fmt: skip
GRANITE_3B_A800M = {
    "model_type": "granitemoe", "attention_bias": False, "attention_multiplier": 0.015625, "hidden_act": "silu",
    "embedding_multiplier": 12.0, "hidden_size": 1536, "intermediate_size": 512, "logits_scaling": 6.0,
    "max_position_embeddings": 131072, "num_attention_heads": 24, "num_experts_per_tok": 8, "num_hidden_layers": 32,
    "num_key_value_heads": 8, "num_local_experts": 40, "residual_multiplier": 0.22, "rms_norm_eps": 1e-06,
    "rope_scaling": None, "rope_theta": 1e7, "tie_word_embeddings": True, "vocab_size": 49155,
}  # fmt: skip
PHI_35_MOE = {
    "model_type": "phimoe", "attention_bias": True, "hidden_act": "silu", "hidden_size": 4096,
    "input_jitter_noise": 0.01, "intermediate_size": 6400, "lm_head_bias": True, "max_position_embeddings": 131072,
    "num_attention_heads": 32, "num_experts_per_tok": 2, "num_hidden_layers": 32, "num_key_value_heads": 8,
    "num_local_experts": 16, "original_max_position_embeddings": 4096, "rms_norm_eps": 1e-05, "rope_scaling": PHI_ROPE,
    "rope_theta": 10000.0, "router_jitter_noise": 0.01, "sliding_window": 131072, "vocab_size": 32064,
}  # fmt: skip
DEEPSEEK_V2_LITE = {
    "model_type": "deepseek_v2", "attention_bias": False, "first_k_dense_replace": 1, "hidden_act": "silu",
    "hidden_size": 2048, "intermediate_size": 10944, "kv_lora_rank": 512, "max_position_embeddings": 163840,
    "moe_intermediate_size": 1408, "moe_layer_freq": 1, "n_group": 1, "n_routed_experts": 64, "n_shared_experts": 2,
    "norm_topk_prob": False, "num_attention_heads": 16, "num_experts_per_tok": 6, "num_hidden_layers": 27,
    "num_key_value_heads": 16, "q_lora_rank": None, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
    "rms_norm_eps": 1e-06, "rope_scaling": {**YARN, "mscale": 0.707, "mscale_all_dim": 0.707}, "rope_theta": 10000,
    "routed_scaling_factor": 1.0, "scoring_func": "softmax", "topk_group": 1, "topk_method": "greedy",
    "v_head_dim": 128, "vocab_size": 102400,
}  # fmt: skip
DEEPSEEK_V3 = {
    "model_type": "deepseek_v3", "attention_bias": False, "first_k_dense_replace": 3, "hidden_act": "silu",
    "hidden_size": 7168, "intermediate_size": 18432, "kv_lora_rank": 512, "max_position_embeddings": 163840,
    "moe_intermediate_size": 2048, "moe_layer_freq": 1, "n_group": 8, "n_routed_experts": 256, "n_shared_experts": 1,
    "norm_topk_prob": True, "num_attention_heads": 128, "num_experts_per_tok": 8, "num_hidden_layers": 61,
    "num_key_value_heads": 128, "num_nextn_predict_layers": 1, "q_lora_rank": 1536, "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64, "rms_norm_eps": 1e-06, "rope_scaling": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0},
    "rope_theta": 10000, "routed_scaling_factor": 2.5, "scoring_func": "sigmoid", "topk_group": 4,
    "topk_method": "noaux_tc", "v_head_dim": 128, "vocab_size": 129280,
}  # fmt: skip
GPT_OSS_20B = {
    "model_type": "gpt_oss", "attention_bias": True, "experts_per_token": 4, "head_dim": 64, "hidden_act": "silu",
    "hidden_size": 2880, "initial_context_length": 4096, "intermediate_size": 2880,
    "layer_types": ["sliding_attention", "full_attention"] * 12, "max_position_embeddings": 131072,
    "num_attention_heads": 64, "num_hidden_layers": 24, "num_key_value_heads": 8, "num_local_experts": 32,
    "quantization_config": {"quant_method": "mxfp4"}, "rms_norm_eps": 1e-05, "rope_theta": 150000,
    "rope_scaling": {
        "rope_type": "yarn", "beta_fast": 32.0, "beta_slow": 1.0, "factor": 32.0, "truncate": False,
        "original_max_position_embeddings": 4096,
    },
    "sliding_window": 128, "swiglu_limit": 7.0, "tie_word_embeddings": False, "vocab_size": 201088,
}  # fmt: skip
LLAMA_4_SCOUT = {
    "model_type": "llama4", "vision_config": {"model_type": "llama4_vision_model"},
    "text_config": {
        "model_type": "llama4_text", "attention_chunk_size": 8192, "head_dim": 128, "hidden_act": "silu",
        "hidden_size": 5120, "interleave_moe_layer_step": 1, "intermediate_size": 8192, "intermediate_size_mlp": 16384,
        "max_position_embeddings": 10485760, "no_rope_layers": [], "num_attention_heads": 40, "num_hidden_layers": 48,
        "num_key_value_heads": 8, "num_local_experts": 16, "num_experts_per_tok": 1, "rms_norm_eps": 1e-05,
        "rope_theta": 500000.0, "use_qk_norm": True, "vocab_size": 202048,
        "rope_scaling": {
            "rope_type": "llama3", "factor": 16.0, "low_freq_factor": 1.0, "high_freq_factor": 1.0,
            "original_max_position_embeddings": 8192,
        },
    },
}  # fmt: skip

# (experts of a MoE layer, their width, MoE layers, longest text that is served)
PUBLISHED = {
    "Mixtral 8x7B": (MIXTRAL_8X7B, (8, 14336, 32, 32768)),
    "Qwen1.5-MoE-A2.7B": (QWEN15_MOE, (60, 1408, 24, 8192)),
    "Qwen3-30B-A3B": (QWEN3_30B_A3B, (128, 768, 48, 40960)),
    "OLMoE-1B-7B": (OLMOE_1B_7B, (64, 1024, 16, 4096)),
    "Granite-3B-A800M": (GRANITE_3B_A800M, (40, 512, 32, 131072)),
    "Phi-3.5-MoE": (PHI_35_MOE, (16, 6400, 32, 4096)),
    "DeepSeek-V2-Lite": (DEEPSEEK_V2_LITE, (64, 1408, 26, 163840)),
    "DeepSeek-V3": (DEEPSEEK_V3, (256, 2048, 58, 163840)),
    "gpt-oss-20b": (GPT_OSS_20B, (32, 2880, 24, 131072)),
    "Llama 4 Scout": (LLAMA_4_SCOUT, (16, 8192, 48, 8191)),
}


def plan_of(values: dict[str, object]) -> ModelPlan:
    return family_of(CheckpointConfig(Path("config.json"), values)).plan()


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_are_understood(name: str) -> None:
    values, expected = PUBLISHED[name]
    plan = plan_of(values)

    moe = [layer for layer in plan.layers if layer.gate]
    assert expected == (moe[0].experts, moe[0].expert_width, len(moe), plan.context_tokens)
    for layer in range(len(plan.layers)):
        plan.trunk.attention_of(layer)


@pytest.mark.parametrize("name", sorted(set(FAMILIES) - {"llama4"}))
def test_what_a_config_leaves_out_is_what_transformers_takes(name: str) -> None:
    theirs = AutoConfig.for_model(name)
    rope = theirs.rope_parameters
    wanted = {"rope_theta": 10000.0, **FAMILIES[name].defaults}

    found = {key: rope["rope_theta"] if key == "rope_theta" else getattr(theirs, key) for key in wanted}

    if "rope_parameters" in wanted:
        found["rope_parameters"] = {key: value for key, value in rope.items() if key != "rope_theta"}
    assert found == wanted


def without(values: dict[str, object], *keys: str) -> dict[str, object]:
    return {key: value for key, value in values.items() if key not in keys}


def test_what_no_tensor_would_betray_has_the_familys_own_default() -> None:
    groups = plan_of(without(DEEPSEEK_V3, "n_group", "topk_group")).layers[-1].gate
    assert groups == plan_of(DEEPSEEK_V3).layers[-1].gate
    assert plan_of(without(GPT_OSS_20B, "rope_scaling")).rope == plan_of(GPT_OSS_20B).rope
    text = without(LLAMA_4_SCOUT["text_config"], "attention_chunk_size") | {"attn_temperature_tuning": False}
    assert plan_of(LLAMA_4_SCOUT | {"text_config": text}).context_tokens == 8192


def test_mixtral_has_as_many_parameters_as_it_says() -> None:
    plan = plan_of(MIXTRAL_8X7B)

    attention = 4096 * (2 * 4096 + 2 * 1024)
    experts = sum(layer.experts * 3 * layer.expert_width * plan.hidden for layer in plan.layers)
    rest = len(plan.layers) * (attention + 8 * 4096 + 2 * 4096) + 2 * 32000 * 4096 + 4096
    assert experts + rest == 46_702_792_704


def test_deepseek_v3_in_8_bit_floats_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedModel, match="weights quantised by fp8 is not supported: take the bf16"):
        plan_of(DEEPSEEK_V3 | {"quantization_config": {"quant_method": "fp8", "fmt": "e4m3"}})
