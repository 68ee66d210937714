"""What families look like with other settings than those of the tiny checkpoints."""

from __future__ import annotations

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
    "phimoe with a window": ("phimoe", {"sliding_window": 12}),
    "deepseek-v2 greedy, queries uncompressed": (
        "deepseek_v2", {"q_lora_rank": None, "topk_method": "greedy", "first_k_dense_replace": 0},
    ),
    "deepseek-v2 with narrow values": ("deepseek_v2", {"v_head_dim": 24}),
    "deepseek-v3 not renormalised, one group": (
        "deepseek_v3", {"norm_topk_prob": False, "n_group": 1, "topk_group": 1},
    ),
    "deepseek-v3 with two dense layers": ("deepseek_v3", {"first_k_dense_replace": 2}),
    "deepseek-v3 in half-rotated order": ("deepseek_v3", {"rope_interleave": False}),
    "gpt-oss with layer types of its own": (
        "gpt_oss", {"layer_types": ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]},
    ),
    "llama 4 without norms, all sparse": (
        "llama4_text", {"use_qk_norm": False, "interleave_moe_layer_step": 1, "no_rope_layers": None},
    ),
    "llama 4 with biases": ("llama4_text", {"attention_bias": True}),
    "llama 4 with one expert per token": (
        "llama4_text", {"num_experts_per_tok": 1, "interleave_moe_layer_step": 1},
    ),
    "llama-3 positions": (
        "mixtral",
        {"rope_parameters": {
            "rope_type": "llama3", "rope_theta": 1e4, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        }},
    ),
    "linear positions": ("mixtral", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 3.0}}),
    "yarn positions": (
        "qwen3_moe",
        {"rope_parameters": {
            "rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64,
        }},
    ),
}  # fmt: skip
