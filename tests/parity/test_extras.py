"""Every extra of a family counts: taken out of the checkpoint before import, the model no longer agrees."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from models.altered_checkpoints import Tensors, alter_config, alter_tensors
from parity.agreement import VISIBLE

CONFIGS = {
    "window of mixtral": ("mixtral", {"sliding_window": None}),
    "windows of qwen2": ("qwen2_moe", {"use_sliding_window": False}),
    "plain sum in qwen2": ("qwen2_moe", {"norm_topk_prob": True}),
    "renormalising in qwen3": ("qwen3_moe", {"norm_topk_prob": False}),
    "plain sum in olmoe": ("olmoe", {"norm_topk_prob": True}),
    "experts per token": ("olmoe", {"num_experts_per_tok": 3}),
    "embedding multiplier": ("granitemoe", {"embedding_multiplier": 1.0}),
    "residual multiplier": ("granitemoe", {"residual_multiplier": 1.0}),
    "attention multiplier": ("granitemoe", {"attention_multiplier": 0.25}),
    "logits scaling": ("granitemoe", {"logits_scaling": 1.0}),
    "residual multiplier of the shared": ("granitemoeshared", {"residual_multiplier": 1.0}),
    "reach of the sparse mixer": ("phimoe", {"router_jitter_noise": 0.01}),
    "groups of deepseek-v2": ("deepseek_v2", {"topk_method": "greedy"}),
    "scale of deepseek-v2": ("deepseek_v2", {"routed_scaling_factor": 1.0}),
    "groups of deepseek-v3": ("deepseek_v3", {"n_group": 1, "topk_group": 1}),
    "kept groups of deepseek-v3": ("deepseek_v3", {"topk_group": 3}),
    "scale of deepseek-v3": ("deepseek_v3", {"routed_scaling_factor": 1.0}),
    "renormalising in deepseek-v3": ("deepseek_v3", {"norm_topk_prob": False}),
    "interleaved rotary rows": ("deepseek_v3", {"rope_interleave": False}),
    "windows of gpt-oss": ("gpt_oss", {"layer_types": ["full_attention"] * 4}),
    "norms of llama 4": ("llama4_text", {"use_qk_norm": False}),
    "layers of llama 4 that do not turn": ("llama4_text", {"no_rope_layers": [1, 1, 1, 1]}),
    "full attention of phimoe": ("phimoe", {"sliding_window": 12}),
}

TENSORS = {
    "bias of qwen2's queries": ("qwen2_moe", "self_attn.q_proj.bias", 0.0),
    "bias of qwen2's keys": ("qwen2_moe", "self_attn.k_proj.bias", 0.0),
    "bias of qwen2's values": ("qwen2_moe", "self_attn.v_proj.bias", 0.0),
    "shared expert of qwen2": ("qwen2_moe", "shared_expert.down_proj.weight", 0.0),
    "gate of qwen2's shared experts": ("qwen2_moe", "shared_expert_gate.weight", 0.0),
    "shared expert of granite": ("granitemoeshared", "shared_mlp.output_linear.weight", 0.0),
    "norms of qwen3's queries": ("qwen3_moe", "self_attn.q_norm.weight", 1.0),
    "norms of qwen3's keys": ("qwen3_moe", "self_attn.k_norm.weight", 1.0),
    "norms of olmoe's queries": ("olmoe", "self_attn.q_norm.weight", 1.0),
    "norms of olmoe's keys": ("olmoe", "self_attn.k_norm.weight", 1.0),
    "bias of phimoe's norms before attention": ("phimoe", "input_layernorm.bias", 0.0),
    "bias of phimoe's norms after attention": ("phimoe", "post_attention_layernorm.bias", 0.0),
    "bias of phimoe's last norm": ("phimoe", "model.norm.bias", 0.0),
    "bias of phimoe's queries": ("phimoe", "self_attn.q_proj.bias", 0.0),
    "bias of phimoe's keys": ("phimoe", "self_attn.k_proj.bias", 0.0),
    "bias of phimoe's values": ("phimoe", "self_attn.v_proj.bias", 0.0),
    "bias of phimoe's output": ("phimoe", "self_attn.o_proj.bias", 0.0),
    "bias of phimoe's head": ("phimoe", "lm_head.bias", 0.0),
    "shared experts of deepseek-v2": ("deepseek_v2", "shared_experts.down_proj.weight", 0.0),
    "shared experts of deepseek-v3": ("deepseek_v3", "shared_experts.down_proj.weight", 0.0),
    "norm of deepseek-v2's latent": ("deepseek_v2", "kv_a_layernorm.weight", 1.0),
    "norm of deepseek-v2's queries": ("deepseek_v2", "q_a_layernorm.weight", 1.0),
    "norm of deepseek-v3's latent": ("deepseek_v3", "kv_a_layernorm.weight", 1.0),
    "norm of deepseek-v3's queries": ("deepseek_v3", "q_a_layernorm.weight", 1.0),
    "balancing bias of deepseek-v3": ("deepseek_v3", "e_score_correction_bias", 0.0),
    "sinks of gpt-oss": ("gpt_oss", "sinks", -1e4),
    "bias of gpt-oss's queries": ("gpt_oss", "self_attn.q_proj.bias", 0.0),
    "bias of gpt-oss's keys": ("gpt_oss", "self_attn.k_proj.bias", 0.0),
    "bias of gpt-oss's values": ("gpt_oss", "self_attn.v_proj.bias", 0.0),
    "bias of gpt-oss's output": ("gpt_oss", "self_attn.o_proj.bias", 0.0),
    "bias of gpt-oss's router": ("gpt_oss", "router.bias", 0.0),
    "bias of gpt-oss's gates": ("gpt_oss", "gate_up_proj_bias", 0.0),
    "bias of gpt-oss's experts": ("gpt_oss", "down_proj_bias", 0.0),
    "shared expert of llama 4": ("llama4_text", "shared_expert.down_proj.weight", 0.0),
}

# A pair of values that turns more often than `beta_fast` over the trained text is left alone, one that turns less often
# than `beta_slow` is stretched, and between them is the ramp.
NOTHING_STRETCHED = {"beta_fast": 1000.0, "beta_slow": 1000.0}
NO_RAMP = {"beta_fast": 1.0}

ROPES = {
    "stretching of gpt-oss": ("gpt_oss", {"factor": 1.0}),
    "fractional ramp of gpt-oss": ("gpt_oss", {"truncate": True}),
    "sharpening of gpt-oss": ("gpt_oss", {"attention_factor": 1.0}),
    "stretching of deepseek-v2": ("deepseek_v2", NOTHING_STRETCHED),
    "stretching of deepseek-v3": ("deepseek_v3", NOTHING_STRETCHED),
    "ramp of deepseek-v2": ("deepseek_v2", NO_RAMP),
    "ramp of deepseek-v3": ("deepseek_v3", NO_RAMP),
    "sharpening of deepseek-v2": ("deepseek_v2", {"mscale_all_dim": 0.0, "attention_factor": 1.0}),
    "sharpening of deepseek-v3": ("deepseek_v3", {"mscale_all_dim": 0.0, "attention_factor": 1.0}),
    "sharpening of deepseek-v2's rotary part": ("deepseek_v2", {"attention_factor": 1.0}),
    "sharpening of deepseek-v3's rotary part": ("deepseek_v3", {"attention_factor": 1.0}),
    "factors of longrope": ("phimoe", {"short_factor": [1.0] * 8}),
    "magnitude of longrope": ("phimoe", {"short_mscale": 1.0}),
}


def ups_one_less(bias: np.ndarray) -> np.ndarray:
    """As if nothing were added to the experts' ups, the odd values of `bias` [experts, 2 * width]."""
    return bias - np.tile(np.array([0, 1], bias.dtype), bias.shape[-1] // 2)


def gates_before_ups(both: np.ndarray) -> np.ndarray:
    """Gates and ups side by side along the last axis, which has them in turn."""
    return np.concatenate([both[..., 0::2], both[..., 1::2]], axis=-1)


REARRANGED = {
    "one that gpt-oss adds to ups": ("gpt_oss", "gate_up_proj_bias", ups_one_less),
    "turns of gpt-oss's gates and ups": ("gpt_oss", "gate_up_proj", gates_before_ups),
    "turns of their biases": ("gpt_oss", "gate_up_proj_bias", gates_before_ups),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_without_a_setting_the_model_disagrees(name: str, disagreement) -> None:
    family, changes = CONFIGS[name]

    def alter(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        assert any(config.get(key) != value for key, value in changes.items())
        alter_config(folder, **changes)

    assert disagreement(family, alter) > VISIBLE


@pytest.mark.parametrize("name", ROPES)
def test_without_a_rotary_setting_the_model_disagrees(name: str, disagreement) -> None:
    family, changes = ROPES[name]

    def alter(folder: Path) -> None:
        rope = json.loads((folder / "config.json").read_text())["rope_parameters"]
        alter_config(folder, rope_parameters=rope | changes)

    assert disagreement(family, alter) > VISIBLE


@pytest.mark.parametrize("name", TENSORS)
def test_without_a_tensor_the_model_disagrees(name: str, disagreement) -> None:
    family, ending, value = TENSORS[name]

    def fill(tensor: np.ndarray) -> np.ndarray:
        return np.full_like(tensor, value)

    assert disagreement(family, each_tensor(ending, fill)) > VISIBLE


@pytest.mark.parametrize("name", REARRANGED)
def test_with_a_tensor_of_another_layout_the_model_disagrees(name: str, disagreement) -> None:
    family, ending, rearrange = REARRANGED[name]

    assert disagreement(family, each_tensor(ending, rearrange)) > VISIBLE


def each_tensor(ending: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    """What changes every tensor of a checkpoint whose name has this ending."""

    def alter(tensors: Tensors) -> None:
        hit = [name for name in tensors if name.endswith(ending)]
        assert hit
        tensors.update({name: np.ascontiguousarray(change(tensors[name])) for name in hit})

    return lambda folder: alter_tensors(folder, alter)
