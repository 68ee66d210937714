"""The checkpoint for llama.cpp: `convert_gguf.py CHECKPOINT FILE F32|Q8_0|Q4_0`.

Every matrix has that type, norms and routers are float32. The usual mixture keeps the output matrix of Q4_0 larger;
here it is Q4_0 like the rest, which reads less. Nothing is tokenised, so there is no vocabulary but its size.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
from safetensors import safe_open

PLAIN = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate": "ffn_gate_inp",
}
STACKED = {"gate_proj": "ffn_gate_exps", "up_proj": "ffn_up_exps", "down_proj": "ffn_down_exps"}


def describe(writer: gguf.GGUFWriter, config: dict, kind: str) -> None:
    writer.add_file_type(gguf.LlamaFileType[{"F32": "ALL_F32"}.get(kind, f"MOSTLY_{kind}")])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_expert_count(config["num_local_experts"])
    writer.add_expert_used_count(config["num_experts_per_tok"])
    writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("none")


def tensors(weights, layers: int, experts: int) -> Iterator[tuple[str, np.ndarray]]:
    """By their names in the file, float32."""
    yield "token_embd.weight", weights.get_tensor("model.embed_tokens.weight")
    yield "output_norm.weight", weights.get_tensor("model.norm.weight")
    yield "output.weight", weights.get_tensor("lm_head.weight")
    for layer in range(layers):
        source, target = f"model.layers.{layer}.", f"blk.{layer}."
        for theirs, ours in PLAIN.items():
            yield f"{target}{ours}.weight", weights.get_tensor(f"{source}{theirs}.weight")
        for theirs, ours in STACKED.items():
            names = [f"{source}mlp.experts.{e}.{theirs}.weight" for e in range(experts)]
            yield f"{target}{ours}.weight", np.stack([weights.get_tensor(name) for name in names])


def convert(checkpoint: Path, file: Path, kind: str) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    partial = file.with_suffix(".partial")
    writer = gguf.GGUFWriter(partial, "qwen3moe")
    describe(writer, config, kind)
    with safe_open(checkpoint / "model.safetensors", framework="np") as weights:
        for name, values in tensors(weights, config["num_hidden_layers"], config["num_local_experts"]):
            whole = values.ndim == 1 or "ffn_gate_inp" in name
            dtype = gguf.GGMLQuantizationType["F32" if whole else kind]
            writer.add_tensor(name, gguf.quantize(values, dtype), raw_dtype=dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.replace(file)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
