"""The numpy oracle of attention kinds against the attention of the families that have them."""

import importlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from expertmesh_common.bundle.parts import Rope
from models.attention_kinds import GROUPED, HIDDEN, LATENT
from models.attention_oracle import EPSILON, AttentionShape, attended

TOKENS = 20
SIZES = {"hidden_size": HIDDEN, "num_attention_heads": 4, "rms_norm_eps": EPSILON, "num_hidden_layers": 1}
PAIRS = {"num_key_value_heads": 2, "head_dim": 16}
LATENTS = {
    "kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 16, "v_head_dim": 24, "num_key_value_heads": 4
}  # fmt: skip


@dataclass(frozen=True)
class Family:
    """An attention class with its settings, and the shape that should equal it."""

    model: str
    attention: str
    settings: dict[str, Any]
    shape: AttentionShape


GPT_OSS = PAIRS | {"sliding_window": 5}
FAMILIES = {
    "qwen3": Family("qwen3_moe", "Qwen3MoeAttention", PAIRS, GROUPED),
    "olmoe": Family("olmoe", "OlmoeAttention", {"num_key_value_heads": 2}, GROUPED),
    "phimoe": Family("phimoe", "PhimoeAttention", PAIRS | {"attention_bias": True}, GROUPED),
    "gpt-oss, window": Family(
        "gpt_oss", "GptOssAttention", GPT_OSS | {"layer_types": ["sliding_attention"]}, replace(GROUPED, window=5)
    ),
    "gpt-oss, all": Family("gpt_oss", "GptOssAttention", GPT_OSS | {"layer_types": ["full_attention"]}, GROUPED),
    "deepseek": Family("deepseek_v3", "DeepseekV3Attention", LATENTS | {"q_lora_rank": 32}, LATENT),
    "deepseek, plain queries": Family("deepseek_v3", "DeepseekV3Attention", LATENTS | {"q_lora_rank": None}, LATENT),
}


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_the_oracle_attends_as_the_family_does(family: Family) -> None:
    import torch

    torch.manual_seed(4)
    module = attention_of(family)
    shape = replace(family.shape, scale=module.scaling)
    rope = Rope(inverse_frequencies=tuple(float(f) for f in 50.0 ** (-np.arange(8) / 8)))
    rows = np.random.default_rng(6).standard_normal((TOKENS, HIDDEN)).astype(np.float32)
    with torch.no_grad():
        want = module(
            torch.from_numpy(rows)[None],
            position_embeddings=tables(rope, twice=family.model != "gpt_oss"),
            attention_mask=mask(shape.window or TOKENS),
            past_key_values=None,
        )[0][0].numpy()
    got = attended(bundle_tensors(module, shape), shape, rope, rows)
    assert np.abs(want).max() > 0.3
    assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max()


def attention_of(family: Family):
    """The family's attention with every weight, norm and sink away from what it starts with."""
    import torch

    folder = f"transformers.models.{family.model}"
    modeling = importlib.import_module(f"{folder}.modeling_{family.model}")
    (name,) = [n for n in dir(modeling) if n.endswith("Config") and n.lower().startswith(family.attention[:5].lower())]
    config = getattr(modeling, name)(**SIZES | family.settings, attn_implementation="eager")
    module = getattr(modeling, family.attention)(config, layer_idx=0)
    for parameter in module.parameters():
        noise = torch.randn_like(parameter, requires_grad=False)
        parameter.data = noise * 1.5 / parameter.shape[1] ** 0.5 if parameter.ndim == 2 else 1 + 0.5 * noise
    for child in module.modules():
        if hasattr(child, "variance_epsilon"):
            child.variance_epsilon = EPSILON
    return module


def tables(rope: Rope, *, twice: bool):
    """Most families take every pair's angle twice, once for each of its values."""
    import torch

    angles = torch.outer(torch.arange(TOKENS), torch.tensor(rope.inverse_frequencies))[None]
    angles = torch.cat([angles, angles], dim=-1) if twice else angles
    return angles.cos(), angles.sin()


def mask(window: int):
    import torch
    from transformers.masking_utils import sliding_window_causal_mask_function

    sees = sliding_window_causal_mask_function(window)
    positions = torch.arange(TOKENS)
    seen = sees(0, 0, positions[:, None], positions)
    return torch.where(seen, 0.0, -torch.inf)[None, None]


def bundle_tensors(module, shape: AttentionShape) -> dict[str, np.ndarray]:
    """The module's weights as a trunk's blob names them."""
    state = {name: value.detach().double().numpy() for name, value in module.named_parameters()}
    renamed = latent_tensors(state, shape) if shape.latent else packed_tensors(state, module)
    renamed["o"] = state["o_proj.weight"].T
    return renamed | {new: state[old] for old, new in (("o_proj.bias", "o_bias"), ("sinks", "sinks")) if old in state}


def packed_tensors(state, module) -> dict[str, np.ndarray]:
    three = [f"{letter}_proj" for letter in "qkv"]
    tensors = {"qkv": np.concatenate([state[f"{name}.weight"] for name in three]).T}
    if "q_proj.bias" in state:
        tensors["qkv_bias"] = np.concatenate([state[f"{name}.bias"] for name in three])
    suffix = "" if "Qwen3" in type(module).__name__ else "_whole"
    norms = [name for name in ("q_norm", "k_norm") if f"{name}.weight" in state]
    return tensors | {f"{name}{suffix}": state[f"{name}.weight"] for name in norms}


def latent_tensors(state, shape: AttentionShape) -> dict[str, np.ndarray]:
    latent = shape.latent
    tensors = {"kv_a_norm": state["kv_a_layernorm.weight"]}
    compressed, turned = np.split(state["kv_a_proj_with_mqa.weight"], [latent.rank])
    tensors["kv_a"] = np.concatenate([compressed, halves(turned)]).T
    by_head = state["kv_b_proj.weight"].reshape(shape.heads, -1, latent.rank)
    keys, values = by_head[:, : latent.nope_dim], by_head[:, latent.nope_dim :]
    tensors["kv_b"] = np.concatenate([keys.reshape(-1, latent.rank), values.reshape(-1, latent.rank)]).T
    last = "q_proj.weight" if "q_proj.weight" in state else "q_b_proj.weight"
    queries = state[last].reshape(shape.heads, shape.head_dim, -1)
    own, turned = np.split(queries, [latent.nope_dim], axis=1)
    ordered = np.concatenate([np.stack([halves(head) for head in turned]), own], axis=1)
    tensors["q" if last == "q_proj.weight" else "q_b"] = ordered.reshape(-1, queries.shape[-1]).T
    if last == "q_b_proj.weight":
        tensors |= {"q_a": state["q_a_proj.weight"].T, "q_a_norm": state["q_a_layernorm.weight"]}
    return tensors


def halves(rows: np.ndarray) -> np.ndarray:
    """Neighbouring pairs of rows in half-rotated order."""
    return np.concatenate([rows[0::2], rows[1::2]])
