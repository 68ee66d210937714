"""A tiny random Llama as a GGUF file, written with the format's own library.

2 layers, hidden 64, 4 heads over 2 key-value heads, 512 feed-forward neurons (16 experts of 32), a byte-level tokenizer
with a few merges and three control tokens. Q and K rows are permuted as exporters do.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
from tokenizers.pre_tokenizers import ByteLevel

LAYERS, HIDDEN, HEADS, KV_HEADS, HEAD_DIM, FFN, CONTEXT = 2, 64, 4, 2, 16, 512, 256
BYTES = sorted(ByteLevel.alphabet())
MERGES = ["h e", "Ġ t", "Ġt he", "i n"]
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TOKENS = CONTROL + BYTES + [merge.replace(" ", "") for merge in MERGES]
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

Weights = dict[str, np.ndarray]


def make_weights(seed: int = 0) -> Weights:
    """Weights in `rotate_half` order, matrices [out, in]."""
    random = np.random.default_rng(seed)

    def matrix(out: int, inner: int) -> np.ndarray:
        return (random.standard_normal((out, inner)) / np.sqrt(inner)).astype(np.float32)

    weights = {"token_embd": matrix(len(TOKENS), HIDDEN), "output_norm": np.ones(HIDDEN, np.float32)}
    for layer in range(LAYERS):
        own = {
            "attn_norm": 1 + matrix(1, HIDDEN)[0],
            "attn_q": matrix(HEADS * HEAD_DIM, HIDDEN),
            "attn_k": matrix(KV_HEADS * HEAD_DIM, HIDDEN),
            "attn_v": matrix(KV_HEADS * HEAD_DIM, HIDDEN),
            "attn_output": matrix(HIDDEN, HEADS * HEAD_DIM),
            "ffn_norm": 1 + matrix(1, HIDDEN)[0],
            "ffn_gate": 2 * matrix(FFN, HIDDEN),
            "ffn_up": matrix(FFN, HIDDEN),
            "ffn_down": matrix(HIDDEN, FFN),
        }
        weights |= {f"blk.{layer}.{name}": value for name, value in own.items()}
    return weights


def permute(rows: np.ndarray, heads: int) -> np.ndarray:
    """What exporters do to Q and K: interleave the two halves of each head."""
    out, inner = rows.shape
    return rows.reshape(heads, 2, out // heads // 2, inner).swapaxes(1, 2).reshape(out, inner)


def write_gguf(
    path: Path,
    weights: Weights | None = None,
    *,
    architecture: str = "llama",
    pre_tokenizer: str = "smollm",
    adjust: Callable[[gguf.GGUFWriter], None] = lambda writer: None,
) -> Path:
    """Write the model; `adjust` may add metadata."""
    writer = gguf.GGUFWriter(path, architecture)
    _add_metadata(writer, pre_tokenizer)
    adjust(writer)
    for name, value in (make_weights() if weights is None else weights).items():
        heads = {"attn_q": HEADS, "attn_k": KV_HEADS}.get(name.rpartition(".")[2])
        writer.add_tensor(f"{name}.weight", np.ascontiguousarray(permute(value, heads) if heads else value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_metadata(writer: gguf.GGUFWriter, pre_tokenizer: str) -> None:
    writer.add_name("tiny")
    writer.add_license("apache-2.0")
    writer.add_block_count(LAYERS)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre_tokenizer)
    writer.add_token_list(TOKENS)
    writer.add_token_types([3] * len(CONTROL) + [1] * (len(TOKENS) - len(CONTROL)))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)
