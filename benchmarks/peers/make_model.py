"""Write the random checkpoint that every engine converts: `make_model.py FOLDER`.

Weights keep the size of what they multiply, routers are twice as steep: experts are picked with a clear preference, as
trained routers do, and greedy decoding wanders through the vocabulary instead of repeating one token out of the cache.
"""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

import model_c
import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

SEED = 20


def config() -> Qwen3MoeConfig:
    return Qwen3MoeConfig(
        vocab_size=model_c.VOCABULARY,
        hidden_size=model_c.HIDDEN,
        intermediate_size=model_c.TOP_K * model_c.WIDTH,
        num_hidden_layers=model_c.LAYERS,
        num_attention_heads=model_c.HEADS,
        num_key_value_heads=model_c.KV_HEADS,
        head_dim=model_c.HEAD_DIM,
        max_position_embeddings=model_c.CONTEXT_TOKENS,
        moe_intermediate_size=model_c.WIDTH,
        num_experts=model_c.EXPERTS,
        num_experts_per_tok=model_c.TOP_K,
        norm_topk_prob=True,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=model_c.VOCABULARY - 1,
        dtype="float32",
    )


@torch.no_grad()
def fill(model: Qwen3MoeForCausalLM) -> None:
    generator = torch.Generator().manual_seed(SEED)
    for name, weight in model.named_parameters():
        if "norm" in name:
            weight.uniform_(0.8, 1.2, generator=generator)
        elif "embed_tokens" in name:
            weight.normal_(0, 1, generator=generator)
        else:
            steepness = 2 if name.endswith("mlp.gate.weight") else 1
            weight.normal_(0, steepness * weight.shape[-1] ** -0.5, generator=generator)
    model.lm_head.weight[model.config.eos_token_id] = 0  # a likely token scores 4: no answer ends before its time


def tokenizer() -> dict[str, object]:
    """Every byte, and pairs of bytes until the vocabulary is full."""
    letters = sorted(ByteLevel.alphabet())
    pairs = list(itertools.islice(itertools.product(letters, letters), model_c.VOCABULARY - len(letters)))
    names = [*letters, *(a + b for a, b in pairs)]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": level,
        "decoder": level,
        "model": {
            "type": "BPE",
            "vocab": {name: number for number, name in enumerate(names)},
            "merges": [[a, b] for a, b in pairs],
        },
    }


def main() -> None:
    folder = Path(sys.argv[1])
    model = Qwen3MoeForCausalLM(config())
    fill(model)
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer()))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))


if __name__ == "__main__":
    main()
