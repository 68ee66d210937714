"""Imported and served, a model says what transformers says: every logit of a prompt and of 16 greedy steps."""

import numpy as np
import pytest

from models import hf_checkpoints as hf
from parity.conftest import IDS

TOLERANCE = 1e-5
STEPS = 16


def assert_equal_logits(got: np.ndarray, want: np.ndarray) -> None:
    np.testing.assert_allclose(got, want, rtol=0, atol=TOLERANCE * np.abs(want).max())


def greedy_steps(served, ids: list[int], count: int) -> tuple[list[int], np.ndarray]:
    """(the tokens, the logits float32 [count, vocabulary] that each came from)."""
    logits, tokens = [served.prompt_logits(ids)[-1]], []
    while len(tokens) < count:
        tokens.append(int(logits[-1].argmax()))
        logits.append(served.next_logits(tokens[-1], len(ids) + len(tokens) - 1))
    return tokens, np.stack(logits[:count])


@pytest.mark.parametrize("family", hf.FAMILIES)
def test_a_prompts_logits_are_those_of_transformers(family: str, checkpoint, serve) -> None:
    folder = checkpoint(family)

    got = serve(folder).prompt_logits(IDS)

    assert_equal_logits(got, hf.reference_logits(folder, IDS))


@pytest.mark.parametrize("family", hf.FAMILIES)
def test_greedy_steps_are_those_of_transformers(family: str, checkpoint, serve) -> None:
    folder = checkpoint(family)

    tokens, logits = greedy_steps(serve(folder), IDS, STEPS)

    assert tokens == hf.reference_greedy(folder, IDS, STEPS)
    assert_equal_logits(logits, hf.reference_logits(folder, IDS + tokens)[len(IDS) - 1 : -1])


VARIANTS = {
    "mixtral without a window": ("mixtral", {"sliding_window": None}),
    "qwen2 renormalised, every layer sparse": ("qwen2_moe", {"norm_topk_prob": True, "decoder_sparse_step": 1}),
    "qwen2 without windows and biases": ("qwen2_moe", {"use_sliding_window": False, "qkv_bias": False}),
    "qwen3 not renormalised, head of its own": ("qwen3_moe", {"norm_topk_prob": False, "tie_word_embeddings": False}),
    "qwen3 with biases and a window": (
        "qwen3_moe", {"attention_bias": True, "use_sliding_window": True, "sliding_window": 9, "mlp_only_layers": []},
    ),
    "olmoe renormalised": ("olmoe", {"norm_topk_prob": True}),
    "granite with a head of its own and biases": ("granitemoe", {"tie_word_embeddings": False, "attention_bias": True}),
    "shared granite without shared experts": ("granitemoeshared", {"shared_intermediate_size": 0}),
    "shared granite with a head of its own": ("granitemoeshared", {"tie_word_embeddings": False}),
    "phimoe with plain positions": ("phimoe", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}),
    "deepseek-v2 greedy, queries uncompressed": (
        "deepseek_v2", {"q_lora_rank": None, "topk_method": "greedy", "first_k_dense_replace": 0},
    ),
    "deepseek-v2 with narrow values": ("deepseek_v2", {"v_head_dim": 24}),
    "deepseek-v3 not renormalised, one group": (
        "deepseek_v3", {"norm_topk_prob": False, "n_group": 1, "topk_group": 1},
    ),
    "deepseek-v3 in half-rotated order": ("deepseek_v3", {"rope_interleave": False}),
    "gpt-oss with layer types of its own": (
        "gpt_oss", {"layer_types": ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]},
    ),
    "llama 4 without norms, all sparse": (
        "llama4_text", {"use_qk_norm": False, "interleave_moe_layer_step": 1, "no_rope_layers": None},
    ),
    "llama 4 with biases": ("llama4_text", {"attention_bias": True}),
    "llama-3 positions": (
        "mixtral",
        {"rope_parameters": {
            "rope_type": "llama3", "rope_theta": 1e4, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        }},
    ),
    "linear positions": ("mixtral", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 3.0}}),
}  # fmt: skip


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_of_a_family_are_equal_too(name: str, checkpoint, serve) -> None:
    family, changes = VARIANTS[name]
    folder = checkpoint(family, **changes)

    got = serve(folder).prompt_logits(IDS)

    assert_equal_logits(got, hf.reference_logits(folder, IDS))
