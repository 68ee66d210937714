"""Every extra of a family counts: taken out of the checkpoint before import, the model no longer agrees."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from models import hf_checkpoints as hf
from parity.conftest import IDS

VISIBLE = 1e-3  # of the largest logit; agreement is 1e-5

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
}

TENSORS = {
    "bias of qwen2's queries": ("qwen2_moe", "self_attn.q_proj.bias", 0.0),
    "bias of qwen2's values": ("qwen2_moe", "self_attn.v_proj.bias", 0.0),
    "gate of qwen2's shared experts": ("qwen2_moe", "shared_expert_gate.weight", 0.0),
    "shared expert of granite": ("granitemoeshared", "shared_mlp.output_linear.weight", 0.0),
    "norms of qwen3's queries": ("qwen3_moe", "self_attn.q_norm.weight", 1.0),
    "norms of olmoe's keys": ("olmoe", "self_attn.k_norm.weight", 1.0),
    "bias of phimoe's norms": ("phimoe", "input_layernorm.bias", 0.0),
    "bias of phimoe's last norm": ("phimoe", "model.norm.bias", 0.0),
    "bias of phimoe's output": ("phimoe", "self_attn.o_proj.bias", 0.0),
    "bias of phimoe's head": ("phimoe", "lm_head.bias", 0.0),
    "norm of deepseek's latent": ("deepseek_v2", "kv_a_layernorm.weight", 1.0),
    "norm of deepseek's queries": ("deepseek_v2", "q_a_layernorm.weight", 1.0),
    "balancing bias of deepseek-v3": ("deepseek_v3", "e_score_correction_bias", 0.0),
    "sinks of gpt-oss": ("gpt_oss", "sinks", -1e4),
    "bias of gpt-oss's router": ("gpt_oss", "router.bias", 0.0),
    "bias of gpt-oss's gates": ("gpt_oss", "gate_up_proj_bias", 0.0),
    "bias of gpt-oss's experts": ("gpt_oss", "down_proj_bias", 0.0),
}

ROPES = {
    "stretching of yarn": ("gpt_oss", {"factor": 1.0}),
    "ramp of yarn": ("gpt_oss", {"truncate": True}),
    "sharpening of yarn": ("deepseek_v2", {"mscale_all_dim": 0.0, "attention_factor": 1.0}),
    "factors of longrope": ("phimoe", {"short_factor": [1.0] * 8}),
    "magnitude of longrope": ("phimoe", {"short_mscale": 1.0}),
}


@pytest.fixture
def disagreement(checkpoint, copied, serve) -> Callable[[str, Callable[[Path], None]], float]:
    """How far an altered checkpoint is from the one it was, as a share of the largest logit."""

    def measure(family: str, alter: Callable[[Path], None]) -> float:
        whole = checkpoint(family)
        altered = copied(whole)
        alter(altered)
        want = hf.reference_logits(whole, IDS)
        return float(np.abs(serve(altered).prompt_logits(IDS) - want).max() / np.abs(want).max())

    return measure


@pytest.mark.parametrize("name", CONFIGS)
def test_without_a_setting_the_model_disagrees(name: str, disagreement) -> None:
    family, changes = CONFIGS[name]

    def alter(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        assert any(config[key] != value for key, value in changes.items())
        (folder / "config.json").write_text(json.dumps(config | changes))

    assert disagreement(family, alter) > VISIBLE


@pytest.mark.parametrize("name", ROPES)
def test_without_a_rotary_setting_the_model_disagrees(name: str, disagreement) -> None:
    family, changes = ROPES[name]

    def alter(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        config["rope_parameters"] |= changes
        (folder / "config.json").write_text(json.dumps(config))

    assert disagreement(family, alter) > VISIBLE


@pytest.mark.parametrize("name", TENSORS)
def test_without_a_tensor_the_model_disagrees(name: str, disagreement) -> None:
    family, ending, value = TENSORS[name]

    def alter(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        hit = [key for key in tensors if key.endswith(ending)]
        assert hit
        save_file(
            {key: np.full_like(tensor, value) if key in hit else tensor for key, tensor in tensors.items()},
            folder / "model.safetensors",
        )

    assert disagreement(family, alter) > VISIBLE
