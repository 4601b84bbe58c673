"""Tiny models of every family: what a configuration of the family may say, on awkward sizes."""

from __future__ import annotations

from typing import Any

SIZES = {
    "vocab_size": 512,
    "hidden_size": 60,
    "intermediate_size": 100,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32}
N_SHORT = 64  # where LongRoPE changes its table


def long_rope(n: int) -> dict[str, Any]:
    """LongRoPE of 2n rotated dimensions, with the field that Phi-3 keeps apart."""
    factors = {"short_factor": [1 + i / 8 for i in range(n)], "long_factor": [2 + i / 2 for i in range(n)]}
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, **factors}
    return {"rope_parameters": rope, "original_max_position_embeddings": N_SHORT}


def rope(kind: str, **parameters: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **parameters}}


_WINDOWS = {"num_hidden_layers": 3, "use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}

_GEMMA = {"num_hidden_layers": 3, "head_dim": 14, "query_pre_attn_scalar": 20, "sliding_window": 16}
_GEMMA3_ROPE = {
    "layer_types": ["full_attention", "sliding_attention", "full_attention"],
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
    },
}
_OPT = {"intermediate_size": None, "num_key_value_heads": None, "ffn_dim": 100, "init_std": 0.2}
_EXPERTS = {"head_dim": 10, "num_experts": 9, "num_experts_per_tok": 3, "moe_intermediate_size": 36}

# By model type and name. Every field that a family looks at differs from its default somewhere.
VARIANTS: dict[tuple[str, str], dict[str, Any]] = {
    ("llama", "plain"): {},
    ("llama", "bias"): {"attention_bias": True, "mlp_bias": True},
    ("llama", "tied"): {"tie_word_embeddings": True, "hidden_size": 96},
    ("llama", "wide-head"): {"head_dim": 34},
    ("llama", "one-kv-head"): {"num_key_value_heads": 1},
    ("llama", "rope-base"): {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    ("llama", "rope-linear"): rope("linear", factor=4.0),
    ("llama", "rope-dynamic"): rope("dynamic", factor=4.0),
    ("llama", "rope-llama3"): {"rope_parameters": LLAMA3_ROPE},
    ("llama", "rope-yarn"): {"rope_parameters": YARN},
    ("llama", "rope-yarn-mscale"): {"rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 0.5}},
    ("gemma2", "plain"): _GEMMA | {"attn_logit_softcapping": 4.0, "final_logit_softcapping": 6.0},
    ("gemma2", "tied"): _GEMMA | {"tie_word_embeddings": True, "hidden_size": 96, "attention_bias": True},
    ("gemma2", "no-caps"): _GEMMA | {"attn_logit_softcapping": None, "final_logit_softcapping": None},
    ("gemma3_text", "plain"): _GEMMA,
    ("gemma3_text", "tied"): _GEMMA
    | {"tie_word_embeddings": True, "hidden_size": 96, "attention_bias": True},
    ("gemma3_text", "rope"): _GEMMA | _GEMMA3_ROPE | {"final_logit_softcapping": 6.0},
    ("mistral", "plain"): {"sliding_window": None},
    ("mistral", "window"): {"sliding_window": 16},
    ("mistral", "nemo"): {"sliding_window": None, "head_dim": 16, "rope_parameters": LLAMA3_ROPE},
    ("qwen2", "plain"): {},
    ("qwen2", "tied"): {"tie_word_embeddings": True, "hidden_size": 96},
    ("qwen2", "windows"): _WINDOWS,
    ("qwen2", "rope-yarn"): {"rope_parameters": {**YARN, "attention_factor": 1.5, "truncate": False}},
    ("qwen3", "plain"): {"head_dim": 22},
    ("qwen3", "bias"): {"head_dim": 10, "attention_bias": True},
    ("qwen3", "windows"): {"head_dim": 10, **_WINDOWS},
    ("smollm3", "plain"): {"num_hidden_layers": 4},
    ("smollm3", "nope"): {"no_rope_layers": [0, 1, 1], "num_hidden_layers": 3, "attention_bias": True},
    ("smollm3", "windows"): _WINDOWS | {"no_rope_layers": [1, 0, 1], "mlp_bias": True},
    ("opt", "plain"): _OPT | {"tie_word_embeddings": True},
    ("opt", "350m"): _OPT | {"do_layer_norm_before": False, "word_embed_proj_dim": 32},
    ("opt", "no-bias"): _OPT | {"enable_bias": False, "word_embed_proj_dim": 96},
    ("qwen3_moe", "plain"): _EXPERTS,
    ("qwen3_moe", "mixed"): _EXPERTS
    | {"mlp_only_layers": [0], "norm_topk_prob": True, "attention_bias": True},
    ("qwen3_moe", "every-other"): _EXPERTS | {"decoder_sparse_step": 2, "num_experts_per_tok": 1},
    ("qwen3_moe", "window"): _EXPERTS
    | {"use_sliding_window": True, "sliding_window": 16, "num_experts_per_tok": 9},
    ("phi3", "plain"): {},
    ("phi3", "partial"): {"partial_rotary_factor": 0.6, "num_key_value_heads": 3},
    ("phi3", "window"): {"sliding_window": 16},
    ("phi3", "long"): long_rope(5),
    ("phi3", "long-partial"): {"partial_rotary_factor": 0.6, **long_rope(3), "tie_word_embeddings": True},
}
