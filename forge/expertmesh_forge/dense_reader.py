"""Folder of a dense Hugging Face checkpoint -> `DenseModel`, as `gguf_reader` makes one of a GGUF file."""

from __future__ import annotations

from expertmesh_common.bundle.parts import Rope
from expertmesh_forge.dense_model import DenseConfig, DenseLayer, DenseModel, Floats, SourceInfo
from expertmesh_forge.errors import UnsupportedModel
from expertmesh_forge.importing.checkpoint import Checkpoint
from expertmesh_forge.importing.config import CheckpointConfig
from expertmesh_forge.importing.families import FAMILIES
from expertmesh_forge.importing.outline import Outline, refuse_strangers
from expertmesh_forge.importing.rope import RopeSettings, read_rope, rope_settings

__all__ = ["SUPPORTED_TYPES", "outline_model", "read_config", "read_model"]

SUPPORTED_TYPES = ("llama", "mistral")
_DEFAULTS = {
    "rope_theta": 10_000.0, "rms_norm_eps": 1e-6, "hidden_act": "silu", "attention_bias": False, "mlp_bias": False,
    "tie_word_embeddings": False,
}  # fmt: skip


def read_config(source: Checkpoint) -> DenseConfig:
    """Read the sizes and constants.

    Raises:
        UnsupportedModel: another family, or a setting that is not converted, each by its name.
        SourceError: the config is not whole.

    """
    config = source.config.over(_DEFAULTS)
    _refuse_variants(config)
    heads, hidden = config.size("num_attention_heads"), config.size("hidden_size")
    head_dim = config.size("head_dim") if config.has("head_dim") else hidden // heads
    settings, context_tokens = rope_settings(config, head_dim), _context_tokens(config)
    return DenseConfig(
        layers=config.size("num_hidden_layers"),
        hidden=hidden,
        ffn=config.size("intermediate_size"),
        heads=heads,
        kv_heads=config.size("num_key_value_heads") if config.has("num_key_value_heads") else heads,
        head_dim=head_dim,
        vocab=config.size("vocab_size"),
        context_tokens=context_tokens,
        rope_base=settings.base,
        norm_eps=config.number("rms_norm_eps"),
        rope=_rope(config, settings, context_tokens),
    )


def outline_model(source: Checkpoint) -> None:
    """Go through the checkpoint without reading it.

    Raises:
        BadWeights: a tensor is missing or misshapen.
        UnsupportedModel: a tensor has a dtype that is not read, or belongs to no plain dense Llama-family model.

    """
    outline = Outline(source.folder, source.config, source.tensors, source.digest)
    read_model(outline)
    refuse_strangers(outline, ("lm_head.weight",) if _is_tied(source) else ())


def read_model(source: Checkpoint) -> DenseModel:
    """Read every weight of a dense Llama-family model, as float32.

    Raises:
        BadWeights: a tensor is missing, misshapen or not finite.
        UnsupportedModel: as `read_config`, or a tensor has a dtype that is not read.

    """
    config = read_config(source)
    embedding = source.read("model.embed_tokens.weight", (config.vocab, config.hidden))
    return DenseModel(
        config=config,
        embedding=embedding,
        layers=tuple(_read_layer(source, config, index) for index in range(config.layers)),
        final_norm=source.read("model.norm.weight", (config.hidden,)),
        head=embedding if _is_tied(source) else source.read("lm_head.weight", (config.vocab, config.hidden)),
        source=_read_source(source),
    )


def _read_layer(source: Checkpoint, config: DenseConfig, index: int) -> DenseLayer:
    def weight(name: str, *shape: int) -> Floats:
        return source.read(f"model.layers.{index}.{name}.weight", shape)

    hidden, ffn, query_width, kv_width = config.hidden, config.ffn, config.query_width, config.kv_width
    return DenseLayer(
        attn_norm=weight("input_layernorm", hidden),
        q=weight("self_attn.q_proj", query_width, hidden),
        k=weight("self_attn.k_proj", kv_width, hidden),
        v=weight("self_attn.v_proj", kv_width, hidden),
        o=weight("self_attn.o_proj", hidden, query_width),
        ffn_norm=weight("post_attention_layernorm", hidden),
        gate=weight("mlp.gate_proj", ffn, hidden),
        up=weight("mlp.up_proj", ffn, hidden),
        down=weight("mlp.down_proj", hidden, ffn),
    )


def _read_source(source: Checkpoint) -> SourceInfo:
    name = source.folder.resolve().name
    return SourceInfo(
        name=name,
        licence=source.licence(),
        file_name=name,
        file_sha256=source.digest,
        weight_formats=tuple(sorted({tensor.dtype for tensor in source.tensors.values()})),
    )


def _is_tied(source: Checkpoint) -> bool:
    return source.config.over(_DEFAULTS).flag("tie_word_embeddings")


def _rope(config: CheckpointConfig, settings: RopeSettings, context_tokens: int) -> Rope | None:
    """None for plain positions, which `rope_base` says in full."""
    if settings.kind not in ("default", "llama3"):
        raise _unsupported(config, f"scales RoPE ({settings.kind!r})", "models without scaling and with llama3's")
    rope = read_rope(settings, context_tokens)
    return None if settings.kind == "default" else rope


def _context_tokens(config: CheckpointConfig) -> int:
    """A bundle attends to the whole text: one that is longer than the model's window would be read otherwise."""
    trained = config.size("max_position_embeddings")
    return min(trained, config.size("sliding_window")) if config.has("sliding_window") else trained


def _refuse_variants(config: CheckpointConfig) -> None:
    kind = config.text("model_type")
    if kind in FAMILIES:
        raise UnsupportedModel(
            f"{config.path}: {kind!r} is already a mixture of experts; `expertmesh model import` turns it into a bundle"
        )
    if kind not in SUPPORTED_TYPES:
        raise _unsupported(config, f"is a {kind!r} model", f"dense {' and '.join(SUPPORTED_TYPES)} models")
    if config.text("hidden_act") != "silu":
        raise _unsupported(config, f"has the activation {config.text('hidden_act')!r}", "models with silu")
    for key in ("attention_bias", "mlp_bias"):
        if config.flag(key):
            raise _unsupported(config, f"has {key}", "models without biases")
    if config.has("quantization_config"):
        raise _unsupported(config, "has quantised weights", "F32, F16 and BF16 checkpoints")


def _unsupported(config: CheckpointConfig, found: str, instead: str) -> UnsupportedModel:
    return UnsupportedModel(f"{config.path} {found}; supported are {instead}")
