"""The configurations of published models are understood, and imply the models' numbers of weights; what would
be computed wrongly is refused by its name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sq_convert.arch import family_of_model_type
from sq_convert.errors import ConvertError

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
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_published(name: str, tmp_path: Path) -> None:
    from transformers import AutoConfig

    fields, n_weights, expected = MODELS[name]
    (tmp_path / "config.json").write_text(json.dumps(fields))
    config = AutoConfig.from_pretrained(tmp_path)
    family = family_of_model_type(fields["model_type"])
    family.check(config)
    assert sum(tensor.n_weights for tensor in family.tensors(config)) == n_weights
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
    ],
)
def test_refused(fields: dict[str, Any], expected: str) -> None:
    from transformers import AutoConfig

    with pytest.raises(ConvertError, match=expected):
        family_of_model_type(fields["model_type"]).check(AutoConfig.for_model(**fields))
