"""GGUF metadata -> what `config.json` of the same checkpoint says, so that its family reads both alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from expertmesh_forge.errors import SourceError, UnsupportedModel
from expertmesh_forge.gguf_file import GgufFile
from expertmesh_forge.gguf_reader import shortest_decimal
from expertmesh_forge.gguf_tensor import GgufTensor
from expertmesh_forge.importing.config import CheckpointConfig
from expertmesh_forge.importing.gguf_names import Naming

__all__ = ["ARCHITECTURES", "Architecture", "architecture_of", "read_gguf_config"]

Tensors = Mapping[str, GgufTensor]

_SIZES = {
    "num_hidden_layers": "block_count",
    "hidden_size": "embedding_length",
    "num_attention_heads": "attention.head_count",
    "max_position_embeddings": "context_length",
    "num_experts_per_tok": "expert_used_count",
    "num_experts": "expert_count",
}
_SOFTMAX = 1


@dataclass(frozen=True, slots=True)
class Architecture:
    """One kind of GGUF file. `sizes` are config keys by metadata key; `says` is what the format takes for granted."""

    model_type: str
    naming: Naming
    sizes: Mapping[str, str] = field(default_factory=dict)
    says: Mapping[str, object] = field(default_factory=dict)


_QWEN = Naming(block="mlp", experts=("gate_proj", "up_proj", "down_proj"))
ARCHITECTURES = {
    "llama": Architecture(
        "mixtral", Naming(block="block_sparse_moe", experts=("w1", "w3", "w2"), interleaved=True),
        {"feed_forward_length": "intermediate_size"},
    ),
    "qwen2moe": Architecture(
        "qwen2_moe", _QWEN.needing("ffn_gate_shexp", "ffn_up_shexp", "ffn_down_shexp", "ffn_gate_inp_shexp"),
        {}, {"norm_topk_prob": False},
    ),
    "qwen3moe": Architecture(
        "qwen3_moe", _QWEN.needing("attn_q_norm", "attn_k_norm"), {}, {"norm_topk_prob": True}
    ),
    "olmoe": Architecture(
        "olmoe", _QWEN.needing("attn_q_norm", "attn_k_norm"),
        {"feed_forward_length": "intermediate_size"}, {"norm_topk_prob": False},
    ),
}  # fmt: skip


def architecture_of(file: GgufFile) -> Architecture:
    """What kind of file it is.

    Raises:
        UnsupportedModel: none that is imported.

    """
    name = file.text("general.architecture")
    if name not in ARCHITECTURES:
        raise UnsupportedModel(
            f"{file.path}: architecture {name!r} is not imported from GGUF; imported are "
            f"{', '.join(sorted(ARCHITECTURES))}. Take the model's Hugging Face folder instead"
        )
    if file.integer(f"{name}.expert_count", 0) == 0:
        raise UnsupportedModel(
            f"{file.path} is a dense model: it has no experts to import; `expertmesh model convert` makes some"
        )
    return ARCHITECTURES[name]


def read_gguf_config(file: GgufFile, tensors: Tensors) -> CheckpointConfig:
    """The config of a mixture of experts; `tensors` are those of all its files, of which `file` is the first.

    Raises:
        SourceError: a value is missing or impossible.
        UnsupportedModel: the file says something that no config of its family can say.

    """
    name, kind = file.text("general.architecture"), architecture_of(file)
    _refuse_variants(file, name)
    sizes = {key: file.integer(f"{name}.{said}") for key, said in _SIZES.items()}
    _require_possible(file, sizes, tensors)
    heads = sizes["num_attention_heads"]
    head_dim = file.integer(f"{name}.attention.key_length", sizes["hidden_size"] // heads)
    _require_whole_heads(file, name, head_dim)
    values: dict[str, object] = {
        "model_type": kind.model_type,
        **sizes,
        **{key: file.integer(f"{name}.{said}") for said, key in kind.sizes.items()},
        "num_key_value_heads": file.integer(f"{name}.attention.head_count_kv", heads),
        "head_dim": head_dim,
        "vocab_size": len(file.strings("tokenizer.ggml.tokens")),
        "rms_norm_eps": shortest_decimal(file.real(f"{name}.attention.layer_norm_rms_epsilon")),
        "rope_theta": shortest_decimal(file.real(f"{name}.rope.freq_base", 10_000.0)),
        "tie_word_embeddings": "output.weight" not in tensors,
        **_rope_scaling(file, name),
        **kind.says,
        **_extras(file, name),
    }
    if kind.model_type.startswith("qwen"):
        values |= _qwen_values(file, name, tensors)
    return CheckpointConfig(file.path, values)


def _extras(file: GgufFile, name: str) -> dict[str, object]:
    """What only some files say."""
    found: dict[str, object] = {}
    if file.has(f"{name}.expert_weights_norm"):
        found["norm_topk_prob"] = file.text(f"{name}.expert_weights_norm") == "True"
    if file.integer(f"{name}.attention.sliding_window", 0):
        found["sliding_window"] = file.integer(f"{name}.attention.sliding_window")
    if file.real(f"{name}.attention.clamp_kqv", 0.0):
        found["clip_qkv"] = file.real(f"{name}.attention.clamp_kqv")
    return found


def _require_possible(file: GgufFile, sizes: Mapping[str, int], tensors: Tensors) -> None:
    """Before anything is counted up to a number that a damaged file says."""
    for key, value in sizes.items():
        if value < 1 or (key == "num_hidden_layers" and value > len(tensors)):
            raise SourceError(f"{file.path} is damaged, its {_SIZES[key]} is {value}; download it again")


def _qwen_values(file: GgufFile, name: str, tensors: Tensors) -> dict[str, object]:
    layers = range(file.integer(f"{name}.block_count"))
    dense = [layer for layer in layers if f"blk.{layer}.ffn_gate.weight" in tensors]
    values: dict[str, object] = {
        "mlp_only_layers": dense,
        "qkv_bias": "blk.0.attn_q.bias" in tensors,
        "moe_intermediate_size": _width(file, f"{name}.expert_feed_forward_length", tensors, "ffn_gate_exps"),
    }
    if dense:
        values["intermediate_size"] = file.integer(f"{name}.feed_forward_length")
    if name == "qwen2moe":
        key = f"{name}.expert_shared_feed_forward_length"
        values["shared_expert_intermediate_size"] = _width(file, key, tensors, "ffn_gate_shexp")
    return values


def _width(file: GgufFile, key: str, tensors: Tensors, part: str) -> int:
    """Early files lack the key, and what stands in for it there is the width of the tensor itself."""
    if file.integer(key, 0):
        return file.integer(key)
    found = next((held for name, held in tensors.items() if name.endswith(f".{part}.weight")), None)
    return found.shape[-2] if found is not None and len(found.shape) > 1 else file.integer(key)


def _rope_scaling(file: GgufFile, name: str) -> dict[str, object]:
    kind = file.text(f"{name}.rope.scaling.type", "none")
    if kind == "none":
        return {}
    if kind not in ("linear", "yarn"):
        raise UnsupportedModel(f"{file.path}: RoPE scaling {kind!r} is not read from GGUF; linear and yarn are")
    found: dict[str, object] = {"rope_type": kind, "factor": file.real(f"{name}.rope.scaling.factor")}
    original = f"{name}.rope.scaling.original_context_length"
    if file.has(original):
        found["original_max_position_embeddings"] = file.integer(original)
    for which in ("beta_fast", "beta_slow"):
        if file.has(f"{name}.rope.scaling.yarn_{which}"):
            found[which] = file.real(f"{name}.rope.scaling.yarn_{which}")
    return {"rope_scaling": found}


def _refuse_variants(file: GgufFile, name: str) -> None:
    """Settings of other models of the same architecture, which would be served wrongly."""
    plain = {
        "expert_gating_func": _SOFTMAX, "expert_weights_scale": 1.0, "logit_scale": 1.0, "expert_group_count": 1,
        "residual_scale": 1.0, "embedding_scale": 1.0, "attention.scale": 0.0, "rope.scale_linear": 1.0,
        "rope.scaling.attn_factor": 1.0, "rope.scaling.yarn_attn_factor": 1.0, "rope.scaling.yarn_log_multiplier": 0.0,
    }  # fmt: skip
    for key, usual in plain.items():
        found = file.real(f"{name}.{key}", usual)
        if found not in (usual, 0.0):
            raise UnsupportedModel(f"{file.path}: {name}.{key} is {found:g}; this toolchain imports only {usual:g}")
    if name.startswith("qwen") and file.integer(f"{name}.attention.sliding_window", 0):
        raise UnsupportedModel(f"{file.path}: which layers have a sliding window is not read; take the folder instead")


def _require_whole_heads(file: GgufFile, name: str, head_dim: int) -> None:
    for key in ("rope.dimension_count", "attention.value_length"):
        found = file.integer(f"{name}.{key}", head_dim)
        if found != head_dim:
            raise UnsupportedModel(
                f"{file.path}: {name}.{key} is {found}, heads are {head_dim} wide; they must be alike to be imported"
            )
