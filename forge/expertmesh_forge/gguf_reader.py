"""GGUF file -> `DenseModel`: sizes from the metadata, weights dequantised to float32."""

from __future__ import annotations

import numpy as np

from expertmesh_forge.dense_model import (
    DenseConfig,
    DenseLayer,
    DenseModel,
    Floats,
    SourceInfo,
)
from expertmesh_forge.errors import UnsupportedModel
from expertmesh_forge.gguf_file import GgufFile
from expertmesh_forge.gguf_rope import read_rope, refuse_other_scalings

__all__ = ["SUPPORTED_ARCHITECTURES", "read_config", "read_model", "shortest_decimal", "unpermute_rows"]

SUPPORTED_ARCHITECTURES = ("llama",)


def read_model(file: GgufFile) -> DenseModel:
    """Read every weight of a dense Llama-family model.

    Raises `UnsupportedModel` for another family and `BadWeights` for a tensor that is missing,
    misshapen or not finite.
    """
    config = read_config(file)
    embedding = file.tensor("token_embd.weight", (config.vocab, config.hidden))
    tied = "output.weight" not in file.tensor_names
    return DenseModel(
        config=config,
        embedding=embedding,
        layers=tuple(_read_layer(file, config, index) for index in range(config.layers)),
        final_norm=file.tensor("output_norm.weight", (config.hidden,)),
        head=embedding if tied else file.tensor("output.weight", (config.vocab, config.hidden)),
        source=_read_source(file),
    )


def read_config(file: GgufFile) -> DenseConfig:
    """Read the sizes and constants; `UnsupportedModel` names what is not supported."""
    family = file.text("general.architecture")
    if family not in SUPPORTED_ARCHITECTURES:
        raise UnsupportedModel(
            f"{file.path.name} is a {family!r} model; supported: dense "
            f"{', '.join(SUPPORTED_ARCHITECTURES)} models (RMSNorm, RoPE, SwiGLU, no biases)"
        )
    _refuse_variants(file, family)
    hidden = file.integer(f"{family}.embedding_length")
    heads = file.integer(f"{family}.attention.head_count")
    head_dim = file.integer(f"{family}.attention.key_length", hidden // heads)
    refuse_other_scalings(file, family)
    _require_full_rope(file, file.integer(f"{family}.rope.dimension_count", head_dim), head_dim)
    rope_base = file.real(f"{family}.rope.freq_base", 10_000.0)
    return DenseConfig(
        layers=file.integer(f"{family}.block_count"),
        hidden=hidden,
        ffn=file.integer(f"{family}.feed_forward_length"),
        heads=heads,
        kv_heads=file.integer(f"{family}.attention.head_count_kv", heads),
        head_dim=head_dim,
        vocab=len(file.strings("tokenizer.ggml.tokens")),
        context_tokens=file.integer(f"{family}.context_length"),
        rope_base=rope_base,
        norm_eps=shortest_decimal(file.real(f"{family}.attention.layer_norm_rms_epsilon")),
        rope=read_rope(file, rope_base, head_dim),
    )


def unpermute_rows(rows: Floats, heads: int) -> Floats:
    """Undo GGUF's row order of Q and K, [heads * head_dim, in] -> the same shape.

    GGUF interleaves the two halves of each head so that RoPE rotates neighbouring rows;
    `rotate_half` rotates row i with row i + head_dim / 2.
    """
    out_size, in_size = rows.shape
    half = out_size // heads // 2
    pairs = rows.reshape(heads, half, 2, in_size)
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(out_size, in_size)


def shortest_decimal(value: float) -> float:
    """The number that was meant: GGUF stores it as float32, so that 1e-5 arrives as 9.999999747378752e-06."""
    return float(np.format_float_positional(np.float32(value), unique=True))


def _read_layer(file: GgufFile, config: DenseConfig, index: int) -> DenseLayer:
    def weight(name: str, *shape: int) -> Floats:
        return file.tensor(f"blk.{index}.{name}.weight", shape)

    hidden, ffn, kv_width = config.hidden, config.ffn, config.kv_width
    return DenseLayer(
        attn_norm=weight("attn_norm", hidden),
        q=unpermute_rows(weight("attn_q", config.query_width, hidden), config.heads),
        k=unpermute_rows(weight("attn_k", kv_width, hidden), config.kv_heads),
        v=weight("attn_v", kv_width, hidden),
        o=weight("attn_output", hidden, config.query_width),
        ffn_norm=weight("ffn_norm", hidden),
        gate=weight("ffn_gate", ffn, hidden),
        up=weight("ffn_up", ffn, hidden),
        down=weight("ffn_down", hidden, ffn),
    )


def _read_source(file: GgufFile) -> SourceInfo:
    return SourceInfo(
        name=file.text("general.name", file.path.stem),
        licence=file.text("general.license", "unknown"),
        file_name=file.path.name,
        file_sha256=file.sha256,
        weight_formats=file.weight_formats,
    )


def _refuse_variants(file: GgufFile, family: str) -> None:
    if file.integer(f"{family}.expert_count", 0) > 0:
        raise UnsupportedModel(f"{file.path.name} is already a mixture of experts; carving needs a dense model")
    odd = next((name for name in file.tensor_names if name.endswith(".bias")), None)
    if odd is not None:
        raise UnsupportedModel(f"{file.path.name} holds {odd!r}; supported are Llama-family models without biases")


def _require_full_rope(file: GgufFile, rotated: int, head_dim: int) -> None:
    if rotated != head_dim:
        raise UnsupportedModel(
            f"{file.path.name} rotates {rotated} of {head_dim} elements per head; "
            "supported are models that rotate whole heads"
        )
