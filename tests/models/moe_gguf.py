"""A mixture of experts as a GGUF file, written from a checkpoint folder the way exporters do.

Experts are stacked, norms stay float32, Q and K rows of the llama architecture are interleaved, and a gate of one row
loses its axis.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
from safetensors.numpy import load_file

from models import tiny_bundle
from models.tiny_gguf import permute

Tensors = dict[str, np.ndarray]

ARCHITECTURES = {"mixtral": "llama", "qwen2_moe": "qwen2moe", "qwen3_moe": "qwen3moe", "olmoe": "olmoe"}
_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    **{f"self_attn.{short}_proj": f"attn_{short}" for short in "qkv"},
    **{f"self_attn.{short}_norm": f"attn_{short}_norm" for short in "qk"},
    "self_attn.o_proj": "attn_output",
    "block_sparse_moe.gate": "ffn_gate_inp",
    "mlp.gate": "ffn_gate_inp",
    "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
    **{f"mlp.{part}_proj": f"ffn_{part}" for part in ("gate", "up", "down")},
    **{f"mlp.shared_expert.{part}_proj": f"ffn_{part}_shexp" for part in ("gate", "up", "down")},
}
_EXPERT_PARTS = {"w1": "gate", "w3": "up", "w2": "down", "gate_proj": "gate", "up_proj": "up", "down_proj": "down"}


def write_moe_gguf(
    path: Path,
    folder: Path,
    *,
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    alter: Callable[[Tensors], object] = lambda tensors: None,
    adjust: Callable[[gguf.GGUFWriter], object] = lambda writer: None,
    split_tensors: int = 0,
    **changes: object,
) -> Path:
    """Write the model of `folder`; `alter` changes its tensors by their names in the file, `changes` its config."""
    config = json.loads((folder / "config.json").read_text()) | changes
    tensors = gguf_tensors(load_file(folder / "model.safetensors"), config)
    alter(tensors)
    architecture = str(config.get("gguf_architecture", ARCHITECTURES[config["model_type"]]))
    writer = gguf.GGUFWriter(path, architecture, split_max_tensors=split_tensors)
    _add_sizes(writer, config)
    _add_tokenizer(writer)
    adjust(writer)
    for name, value in tensors.items():
        stored = kind if value.ndim > 1 and "ffn_gate_inp" not in name else gguf.GGMLQuantizationType.F32
        packed = gguf.quants.quantize(np.ascontiguousarray(value), stored)
        writer.add_tensor(name, packed, raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def gguf_tensors(tensors: Tensors, config: dict[str, object]) -> Tensors:
    """Every tensor of a folder under its name in a GGUF file."""
    found: Tensors = {}
    stacks: dict[str, dict[int, np.ndarray]] = {}
    for name, value in tensors.items():
        layer = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", name)
        prefix, rest = (f"blk.{layer[1]}.", layer[2]) if layer else ("", name)
        expert = re.fullmatch(r"\w+\.experts\.(\d+)\.(\w+)\.weight", rest)
        if expert:
            stack = stacks.setdefault(f"{prefix}ffn_{_EXPERT_PARTS[expert[2]]}_exps.weight", {})
            stack[int(expert[1])] = value
            continue
        part, _, kind = rest.rpartition(".")
        found[f"{prefix}{_NAMES[part]}.{kind}"] = _as_exported(part, value, config)
    stacked = {name: np.stack([one for _, one in sorted(stack.items())]) for name, stack in stacks.items()}
    return found | stacked


def _as_exported(part: str, value: np.ndarray, config: dict[str, object]) -> np.ndarray:
    heads = {"self_attn.q_proj": "num_attention_heads", "self_attn.k_proj": "num_key_value_heads"}
    if config["model_type"] == "mixtral" and part in heads:
        return permute(value, int(str(config[heads[part]])))
    return value[0] if part == "mlp.shared_expert_gate" else value


def _add_sizes(writer: gguf.GGUFWriter, config: dict) -> None:
    writer.add_name("tiny")
    writer.add_license("apache-2.0")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_expert_count(config.get("num_local_experts") or config["num_experts"])
    writer.add_expert_used_count(config["num_experts_per_tok"])
    if config.get("head_dim"):
        writer.add_key_length(config["head_dim"])
        writer.add_value_length(config["head_dim"])
    if config.get("moe_intermediate_size"):
        writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    if config.get("shared_expert_intermediate_size"):
        writer.add_expert_shared_feed_forward_length(config["shared_expert_intermediate_size"])


def _add_tokenizer(writer: gguf.GGUFWriter) -> None:
    vocabulary = json.loads(tiny_bundle.tokenizer_json())
    control = {token["content"] for token in vocabulary["added_tokens"]}
    ids = vocabulary["model"]["vocab"] | {token["content"]: token["id"] for token in vocabulary["added_tokens"]}
    tokens = sorted(ids, key=ids.__getitem__)
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in vocabulary["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in control else 1 for token in tokens])
    writer.add_token_merges(merges)
    writer.add_eos_token_id(tiny_bundle.IM_END)
    writer.add_add_bos_token(False)
    writer.add_chat_template(tiny_bundle.CHAT_TEMPLATE)
