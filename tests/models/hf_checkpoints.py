"""Tiny random checkpoints of every family, written by transformers, and what transformers computes from them.

Weights are scaled so that logits are far apart and every extra of a family (biases, sinks, windows, norms, groups)
changes them visibly.
"""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path

import numpy as np
import torch
import transformers

from models import tiny_bundle as tiny

FAMILIES = (
    "mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "granitemoe", "granitemoeshared", "phimoe", "deepseek_v2",
    "deepseek_v3", "gpt_oss", "llama4_text",
)  # fmt: skip

_COMMON = {
    "vocab_size": tiny.VOCABULARY, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "tie_word_embeddings": False,
    "bos_token_id": 1, "eos_token_id": tiny.EOS, "pad_token_id": 0,
}  # fmt: skip
_LATENT = {
    "num_key_value_heads": 4, "kv_lora_rank": 32, "q_lora_rank": 64, "qk_nope_head_dim": 16, "qk_rope_head_dim": 16,
    "v_head_dim": 16, "intermediate_size": 96, "moe_intermediate_size": 32, "n_routed_experts": 8,
    "n_shared_experts": 2, "num_experts_per_tok": 3, "n_group": 4, "topk_group": 2, "first_k_dense_replace": 1,
    "rope_parameters": {
        "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0,
        "mscale_all_dim": 0.7, "original_max_position_embeddings": 64,
    },
}  # fmt: skip
_GRANITE = {
    "intermediate_size": 32, "num_local_experts": 6, "num_experts_per_tok": 3, "tie_word_embeddings": True,
    "embedding_multiplier": 3.0, "residual_multiplier": 0.4, "attention_multiplier": 0.11, "logits_scaling": 2.5,
}  # fmt: skip
_RECIPES: dict[str, dict[str, object]] = {
    "mixtral": {"intermediate_size": 32, "num_local_experts": 7, "num_experts_per_tok": 2, "sliding_window": 12},
    "qwen2_moe": {
        "intermediate_size": 96, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 64, "num_experts": 6,
        "num_experts_per_tok": 3, "num_hidden_layers": 4, "decoder_sparse_step": 2, "norm_topk_prob": False,
        "use_sliding_window": True, "sliding_window": 12, "max_window_layers": 4,
    },
    "qwen3_moe": {
        "intermediate_size": 96, "moe_intermediate_size": 32, "num_experts": 6, "num_experts_per_tok": 3,
        "mlp_only_layers": [1], "norm_topk_prob": True, "head_dim": 32, "tie_word_embeddings": True,
    },
    "olmoe": {"intermediate_size": 32, "num_experts": 9, "num_experts_per_tok": 4, "norm_topk_prob": False},
    "granitemoe": _GRANITE,
    "granitemoeshared": {**_GRANITE, "shared_intermediate_size": 96},
    "phimoe": {
        "intermediate_size": 32, "num_local_experts": 6, "num_experts_per_tok": 2, "router_jitter_noise": 0.2,
        "attention_bias": True, "lm_head_bias": True,
        "rope_parameters": {
            "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0 + 0.1 * i for i in range(8)],
            "long_factor": [2.0 + i for i in range(8)], "short_mscale": 1.1, "long_mscale": 1.3,
            "original_max_position_embeddings": 128,
        },
    },
    "deepseek_v2": {**_LATENT, "topk_method": "group_limited_greedy", "routed_scaling_factor": 1.7},
    "deepseek_v3": {**_LATENT, "norm_topk_prob": True, "routed_scaling_factor": 2.5},
    "gpt_oss": {
        "intermediate_size": 32, "num_local_experts": 6, "num_experts_per_tok": 3, "head_dim": 16,
        "sliding_window": 10, "num_hidden_layers": 4,
        "rope_parameters": {
            "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "beta_fast": 32.0, "beta_slow": 1.0,
            "truncate": False, "original_max_position_embeddings": 64,
        },
    },
    "llama4_text": {
        "intermediate_size": 32, "intermediate_size_mlp": 96, "num_local_experts": 6, "num_experts_per_tok": 2,
        "head_dim": 16, "num_hidden_layers": 4, "interleave_moe_layer_step": 2, "no_rope_layers": [1, 1, 0, 1],
        "attention_chunk_size": 128, "floor_scale": 100,
    },
}  # fmt: skip


def cached_checkpoint(root: Path, family: str, **options: object) -> Path:
    """`make_checkpoint` into a folder below `root`, once per set of options; nobody may change it."""
    key = hashlib.sha256(json.dumps(options, sort_keys=True).encode()).hexdigest()[:8]
    folder = root / f"{family}-{key}"
    return folder if (folder / "README.md").is_file() else make_checkpoint(folder, family, **options)


def make_checkpoint(
    folder: Path, family: str, *, seed: int = 0, fused: bool = False, dtype: str = "float32", shard: str = "5GB",
    **changes: object,
) -> Path:  # fmt: skip
    """Write a checkpoint of `family` into `folder`; `changes` go into its config. Returns the folder.

    `fused` writes the expert tensors of transformers' own layout, not the published ones.
    """
    config = transformers.AutoConfig.for_model(family, **{**_COMMON, **_RECIPES[family], **changes})
    config.dtype = dtype
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config)
    _randomise(model)
    model = model.to(getattr(torch, dtype))
    model.generation_config.eos_token_id = tiny.EOS
    transformers.utils.logging.disable_progress_bar()
    model.save_pretrained(folder, max_shard_size=shard, save_original_format=not fused)
    write_text_files(folder)  # the model card last: with it the folder is whole
    return folder


def write_text_files(folder: Path) -> None:
    """A byte-level tokenizer, its chat template and a model card."""
    (folder / "tokenizer.json").write_bytes(tiny.tokenizer_json())
    about = {"eos_token": "<|im_end|>", "bos_token": None, "chat_template": tiny.CHAT_TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(about), encoding="utf-8")
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# tiny\n", encoding="utf-8")


def rope_parameters(family: str) -> dict[str, object]:
    """The rotary settings of a family's checkpoints."""
    return dict(_RECIPES[family]["rope_parameters"])


def load_reference(folder: Path) -> transformers.PreTrainedModel:
    """The model as transformers reads it: eager attention, float32, packed weights unpacked."""
    packed = "quantization_config" in json.loads((folder / "config.json").read_text(encoding="utf-8"))
    unpacking = {"quantization_config": transformers.Mxfp4Config(dequantize=True)} if packed else {}
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager", **unpacking
    )
    return model.eval()


_loaded = cache(load_reference)


def logits_of(model: transformers.PreTrainedModel, ids: list[int]) -> np.ndarray:
    """float32 [tokens, vocabulary] of one sequence."""
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].float().numpy()


def reference_logits(folder: Path, ids: list[int]) -> np.ndarray:
    """float32 [tokens, vocabulary] of one sequence, by the checkpoint in `folder`."""
    return logits_of(_loaded(folder), ids)


def reference_greedy(folder: Path, ids: list[int], count: int) -> list[int]:
    """What transformers' own generation loop answers, whatever ends a text."""
    with torch.no_grad():
        out = _loaded(folder).generate(
            torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long), do_sample=False,
            min_new_tokens=count, max_new_tokens=count, eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
    return out[0, len(ids) :].tolist()


def _randomise(model: torch.nn.Module) -> None:
    with torch.no_grad():
        for name, value in [*model.named_parameters(), *model.named_buffers()]:
            if "inv_freq" in name:
                continue
            value.copy_(_random(name, value))


def _random(name: str, value: torch.Tensor) -> torch.Tensor:
    noise = torch.randn(value.shape)
    if name.endswith(("bias", "sinks")):
        return 0.5 * noise
    if "norm" in name:
        return 0.5 + torch.rand(value.shape)
    if "embed_tokens" in name:
        return 0.2 * noise  # small, or a tied head would only ever say the last token again
    if value.ndim == 3 and not name.endswith("_bias"):  # fused experts: [out, in], or [in, out] where that is the rule
        return 2.5 * noise / value.shape[-1 if value.shape[-1] in (64, 32) else -2] ** 0.5
    if "gate" in name or "router" in name:
        return 2.0 * noise / value.shape[-1] ** 0.5
    return 1.5 * noise / value.shape[-1] ** 0.5
