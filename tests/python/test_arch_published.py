"""The configurations of published models are understood, and imply the models' numbers of weights; what would
be computed wrongly is refused by its name."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from sq_convert.arch import by_source, family_of_model_type
from sq_convert.errors import ConvertError
from sq_convert.folder import FolderCheckpoint

LLAMA: dict[str, Any] = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_act": "silu", "use_cache": True,
    "initializer_range": 0.02, "pretraining_tp": 1, "rope_scaling": None, "tie_word_embeddings": False,
    "torch_dtype": "float16", "transformers_version": "4.33.1", "vocab_size": 32000, "hidden_size": 4096,
    "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32,
    "max_position_embeddings": 4096, "rms_norm_eps": 1e-05,
}  # fmt: skip
LLAMA3: dict[str, Any] = LLAMA | {
    "vocab_size": 128256, "intermediate_size": 14336, "num_key_value_heads": 8, "rope_theta": 500000.0,
    "max_position_embeddings": 131072, "attention_bias": False, "attention_dropout": 0.0, "mlp_bias": False,
    "bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009],
    "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                     "original_max_position_embeddings": 8192, "rope_type": "llama3"},
}  # fmt: skip
MISTRAL: dict[str, Any] = LLAMA | {
    "model_type": "mistral", "architectures": ["MistralForCausalLM"], "intermediate_size": 14336,
    "num_key_value_heads": 8, "max_position_embeddings": 32768, "rope_theta": 1e6, "sliding_window": None,
}  # fmt: skip
QWEN2: dict[str, Any] = {
    "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0,
    "hidden_act": "silu", "hidden_size": 3584, "initializer_range": 0.02, "intermediate_size": 18944,
    "max_position_embeddings": 32768, "max_window_layers": 28, "num_attention_heads": 28,
    "num_hidden_layers": 28, "num_key_value_heads": 4, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
    "sliding_window": 131072, "tie_word_embeddings": False, "torch_dtype": "bfloat16", "use_cache": True,
    "use_mrope": False, "use_sliding_window": False, "vocab_size": 152064,
}  # fmt: skip
QWEN3: dict[str, Any] = {
    "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "attention_bias": False,
    "attention_dropout": 0.0, "head_dim": 128, "hidden_act": "silu", "hidden_size": 4096,
    "initializer_range": 0.02, "intermediate_size": 12288, "max_position_embeddings": 40960,
    "max_window_layers": 36, "num_attention_heads": 32, "num_hidden_layers": 36, "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 1000000, "sliding_window": None,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "use_sliding_window": False,
    "vocab_size": 151936,
}  # fmt: skip
PHI3: dict[str, Any] = {
    "model_type": "phi3", "architectures": ["Phi3ForCausalLM"], "attention_dropout": 0.0,
    "auto_map": {"AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"}, "bos_token_id": 1,
    "embd_pdrop": 0.0, "eos_token_id": 32000, "hidden_act": "silu", "hidden_size": 3072,
    "initializer_range": 0.02, "intermediate_size": 8192, "max_position_embeddings": 131072,
    "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32,
    "original_max_position_embeddings": 4096, "pad_token_id": 32000, "resid_pdrop": 0.0,
    "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "sliding_window": 262144, "tie_word_embeddings": False,
    "attention_bias": False, "torch_dtype": "bfloat16", "use_cache": True, "vocab_size": 32064,
    "rope_scaling": {"type": "longrope", "short_factor": [1.05] * 48, "long_factor": [1.08] * 48},
}  # fmt: skip

OPT: dict[str, Any] = {
    "model_type": "opt", "architectures": ["OPTForCausalLM"], "activation_dropout": 0.0,
    "activation_function": "relu", "attention_dropout": 0.0, "bos_token_id": 2,
    "do_layer_norm_before": True, "dropout": 0.1, "eos_token_id": 2, "ffn_dim": 3072, "hidden_size": 768,
    "init_std": 0.02, "layerdrop": 0.0, "max_position_embeddings": 2048, "num_attention_heads": 12,
    "num_hidden_layers": 12, "pad_token_id": 1, "prefix": "</s>", "torch_dtype": "float16",
    "use_cache": True, "vocab_size": 50272, "word_embed_proj_dim": 768,
}  # fmt: skip
GEMMA2: dict[str, Any] = {
    "model_type": "gemma2", "architectures": ["Gemma2ForCausalLM"], "attention_bias": False,
    "attention_dropout": 0.0, "attn_logit_softcapping": 50.0, "bos_token_id": 2,
    "cache_implementation": "hybrid", "eos_token_id": 1, "final_logit_softcapping": 30.0, "head_dim": 256,
    "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 2304,
    "initializer_range": 0.02, "intermediate_size": 9216, "max_position_embeddings": 8192,
    "num_attention_heads": 8, "num_hidden_layers": 26, "num_key_value_heads": 4, "pad_token_id": 0,
    "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06, "rope_theta": 10000.0, "sliding_window": 4096,
    "torch_dtype": "float32", "use_cache": True, "vocab_size": 256000,
}  # fmt: skip
GEMMA3: dict[str, Any] = {
    "model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"], "attention_bias": False,
    "attention_dropout": 0.0, "attn_logit_softcapping": None, "bos_token_id": 2,
    "cache_implementation": "hybrid", "eos_token_id": [1, 106], "final_logit_softcapping": None,
    "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 1152,
    "initializer_range": 0.02, "intermediate_size": 6912, "max_position_embeddings": 32768,
    "num_attention_heads": 4, "num_hidden_layers": 26, "num_key_value_heads": 1, "pad_token_id": 0,
    "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06, "rope_local_base_freq": 10000,
    "rope_scaling": None, "rope_theta": 1000000, "sliding_window": 512, "sliding_window_pattern": 6,
    "torch_dtype": "bfloat16", "use_cache": True, "vocab_size": 262144,
}  # fmt: skip
GEMMA3_4B: dict[str, Any] = {
    "model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"], "boi_token_index": 255999,
    "eoi_token_index": 256000, "eos_token_id": [1, 106], "image_token_index": 262144,
    "initializer_range": 0.02, "mm_tokens_per_image": 256, "torch_dtype": "bfloat16",
    "text_config": {
        "hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text",
        "num_hidden_layers": 34, "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    },
    "vision_config": {
        "hidden_size": 1152, "image_size": 896, "intermediate_size": 4304,
        "model_type": "siglip_vision_model", "num_attention_heads": 16, "num_hidden_layers": 27,
        "patch_size": 14, "vision_use_head": False,
    },
}  # fmt: skip
QWEN3_MOE: dict[str, Any] = QWEN3 | {
    "model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "decoder_sparse_step": 1,
    "hidden_size": 2048, "intermediate_size": 6144, "max_window_layers": 48, "mlp_only_layers": [],
    "moe_intermediate_size": 768, "norm_topk_prob": True, "num_experts": 128, "num_experts_per_tok": 8,
    "num_hidden_layers": 48, "num_key_value_heads": 4, "output_router_logits": False,
    "router_aux_loss_coef": 0.001,
}  # fmt: skip

# The configuration, the number of weights, and some of the hyperparameters that it comes to.
MODELS: dict[str, tuple[dict[str, Any], int, dict[str, Any]]] = {
    "Llama-2-7b": (LLAMA, 6_738_415_616, {"context_length": 4096}),
    "Llama-3.1-8B": (LLAMA3, 8_030_261_248, {"context_length": 131072, "rope.freq_base": 5e5}),
    "Llama-3.2-1B": (
        LLAMA3 | {
            "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "head_dim": 64,
            "tie_word_embeddings": True, "rope_scaling": LLAMA3["rope_scaling"] | {"factor": 32.0},
        },
        1_235_814_400,
        {"attention.key_length": 64},
    ),
    "vicuna-7b-v1.5-16k": (
        LLAMA | {
            "max_sequence_length": 16384, "pad_token_id": 0, "_flash_attn_2_enabled": True,
            "rope_scaling": {"factor": 4.0, "type": "linear"},
        },
        6_738_415_616,
        {"context_length": 16384},
    ),
    "xgen-7b-8k-base": (
        LLAMA | {"vocab_size": 51200, "max_position_embeddings": 8192, "rms_norm_eps": 1e-06,
                 "bos_token_id": 50256, "eos_token_id": 50256},
        6_895_702_016,
        {"context_length": 8192},
    ),
    "SmolLM2-135M": (
        LLAMA | {
            "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
            "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True,
            "is_llama_config": True, "rope_interleaved": False, "rope_theta": 100000,
            "transformers.js_config": {"dtype": "q4f16"},
        },
        134_515_008,
        {"attention.head_count_kv": 3},
    ),
    "Mistral-7B-v0.1": (
        MISTRAL | {"sliding_window": 4096, "rope_theta": 10000.0},
        7_241_732_096,
        {"attention.sliding_window": 4096},
    ),
    "Mistral-7B-v0.3": (MISTRAL | {"vocab_size": 32768}, 7_248_023_552, {"rope.freq_base": 1e6}),
    "Mistral-Nemo-2407": (
        MISTRAL | {"vocab_size": 131072, "hidden_size": 5120, "num_hidden_layers": 40, "head_dim": 128,
                   "max_position_embeddings": 1024000},
        12_247_782_400,
        {"attention.key_length": 128, "context_length": 1024000},
    ),
    "Qwen2.5-7B": (QWEN2 | {"max_position_embeddings": 131072}, 7_615_616_512, {"context_length": 131072}),
    "Qwen2.5-7B-Instruct, YaRN": (
        QWEN2 | {"rope_scaling": {"factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn"}},
        7_615_616_512,
        {"context_length": 131072, "rope.scaling.attn_factor": pytest.approx(1.138629, rel=1e-6)},
    ),
    "Qwen3-8B": (QWEN3, 8_190_735_360, {"context_length": 40960}),
    "SmolLM3-3B": (
        LLAMA3 | {
            "model_type": "smollm3", "architectures": ["SmolLM3ForCausalLM"], "hidden_size": 2048,
            "intermediate_size": 11008, "num_hidden_layers": 36, "num_attention_heads": 16,
            "num_key_value_heads": 4, "max_position_embeddings": 65536, "rope_theta": 5000000.0,
            "rope_scaling": None, "tie_word_embeddings": True, "pretraining_tp": 2,
            "max_window_layers": 28, "use_sliding_window": False, "sliding_window": None,
            "no_rope_layer_interval": 4, "no_rope_layers": [1, 1, 1, 0] * 9,
            "layer_types": ["full_attention"] * 36,
        },
        3_075_098_624,
        {"squeezellm.layers.rope": [0, 0, 0, -1] * 9},
    ),
    "Phi-3-mini-4k": (
        PHI3 | {"max_position_embeddings": 4096, "rope_scaling": None, "sliding_window": 2047},
        3_821_079_552,
        {"attention.sliding_window": 2047},
    ),
    "Phi-3-mini-128k": (
        PHI3,
        3_821_079_552,
        {"rope.scaling.original_context_length": 4096,
         "rope.scaling.attn_factor": pytest.approx(1.190238, rel=1e-6)},
    ),
    "Phi-4-mini": (
        PHI3 | {
            "vocab_size": 200064, "num_attention_heads": 24, "num_key_value_heads": 8,
            "partial_rotary_factor": 0.75, "tie_word_embeddings": True, "interpolate_factor": 1,
            "full_attn_mod": 1, "lm_head_bias": False, "mlp_bias": False,
        },
        3_836_021_760,
        {"rope.dimension_count": 96, "attention.key_length": 128, "context_length": 131072},
    ),
    "opt-125m": (OPT, 125_239_296, {"context_length": 2048}),
    "opt-350m": (
        OPT | {
            "hidden_size": 1024, "ffn_dim": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
            "word_embed_proj_dim": 512, "do_layer_norm_before": False, "_remove_final_layer_norm": False,
        },
        331_196_416,
        {"post_norm": True, "token_embedding_length": 512},
    ),
    "opt-1.3b": (
        OPT | {"hidden_size": 2048, "ffn_dim": 8192, "num_hidden_layers": 24, "num_attention_heads": 32,
               "word_embed_proj_dim": 2048},
        1_315_758_080,
        {"attention.key_length": 64},
    ),
    "opt-6.7b": (
        OPT | {"hidden_size": 4096, "ffn_dim": 16384, "num_hidden_layers": 32, "num_attention_heads": 32,
               "word_embed_proj_dim": 4096},
        6_658_473_984,
        {"attention.key_length": 128},
    ),
    "gemma-2-2b": (
        GEMMA2,
        2_614_341_888,
        {"embedding_scale": 48.0, "attention.scale": 0.0625, "attn_logit_softcapping": 50.0,
         "final_logit_softcapping": 30.0, "squeezellm.layers.window": [4096, 0] * 13},
    ),
    "gemma-2-9b": (
        GEMMA2 | {
            "hidden_size": 3584, "intermediate_size": 14336, "num_attention_heads": 16,
            "num_hidden_layers": 42, "num_key_value_heads": 8, "sliding_window_size": 4096,
        },
        9_241_705_984,
        {"attention.key_length": 256},
    ),
    "gemma-3-1b": (
        GEMMA3,
        999_885_952,
        {"rope.freq_base": 1e6, "rope.freq_base_swa": 1e4,
         "squeezellm.layers.rope": ([1] * 5 + [0]) * 4 + [1, 1],
         "squeezellm.layers.window": ([512] * 5 + [0]) * 4 + [512, 512]},
    ),
    "gemma-3-4b": (GEMMA3_4B, 3_880_263_168, {"context_length": 131072}),  # the language model alone
    "Qwen3-30B-A3B": (
        QWEN3_MOE,
        30_532_122_624,
        {"expert_count": 128, "expert_used_count": 8, "expert_weights_norm": True},
    ),
    "Qwen3-235B-A22B": (
        QWEN3_MOE | {
            "hidden_size": 4096, "intermediate_size": 12288, "max_window_layers": 94,
            "moe_intermediate_size": 1536, "num_attention_heads": 64, "num_hidden_layers": 94,
        },
        235_093_634_560,
        {"expert_feed_forward_length": 1536},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_published(name: str, tmp_path: Path) -> None:
    fields, n_weights, expected = MODELS[name]
    (tmp_path / "config.json").write_text(json.dumps(fields))
    checkpoint = FolderCheckpoint(tmp_path)  # asks the family whether it understands
    family, config = checkpoint.family, checkpoint.config
    parts = by_source(family.tensors(config)).values()
    assert sum(math.prod(tensor.source_shape) for tensor, *_ in parts) == n_weights
    keys = {key.removeprefix(f"{family.gguf_name}."): value for key, value in family.keys(config).items()}
    assert {key: keys.get(key) for key in expected} == expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (LLAMA | {"rope_interleaved": True}, "rope_interleaved is True, which is not understood"),
        (LLAMA | {"num_key_value_heads": 5}, "32 attention heads cannot share 5 key-value heads"),
        (MISTRAL | {"attention_bias": True}, "attention_bias is True"),
        (QWEN2 | {"layer_types": ["sliding_attention"] * 28}, "layer_types has 'sliding_attention'"),
        (QWEN3 | {"num_experts": 128}, "num_experts is 128"),
        (PHI3 | {"full_attn_mod": 2}, "full_attn_mod is 2"),
        (OPT | {"activation_function": "gelu"}, "activation_function is 'gelu'; only 'relu'"),
        (OPT | {"layer_norm_elementwise_affine": False}, "layer_norm_elementwise_affine is False"),
        (OPT | {"_remove_final_layer_norm": True}, "_remove_final_layer_norm"),
        (GEMMA2 | {"hidden_activation": "gelu"}, "hidden_activation is 'gelu'; only 'gelu_pytorch_tanh'"),
        (GEMMA2 | {"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
        (GEMMA3 | {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping is 50.0"),
        (GEMMA3 | {"rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2.0}}},
         "rope_type of sliding_attention is 'linear'"),
        (QWEN3_MOE | {"num_shared_experts": 1}, "num_shared_experts is 1"),
    ],
)  # fmt: skip
def test_refused(fields: dict[str, Any], expected: str) -> None:
    from transformers import AutoConfig

    with pytest.raises(ConvertError, match=expected):
        family_of_model_type(fields["model_type"]).check(AutoConfig.for_model(**fields))
