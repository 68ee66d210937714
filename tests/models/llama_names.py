"""Names of the tensors of dense Llama models: in GGUF files, and in folders."""

from __future__ import annotations

_NAMES = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
    "token_embd": "model.embed_tokens", "output_norm": "model.norm",
}  # fmt: skip


def in_folder(name: str) -> str:
    """The name in a folder, with `.weight`, of what a GGUF file calls `name`, without it."""
    if not name.startswith("blk."):
        return f"{_NAMES[name]}.weight"
    _, layer, part = name.split(".")
    return f"model.layers.{layer}.{_NAMES[part]}.weight"
