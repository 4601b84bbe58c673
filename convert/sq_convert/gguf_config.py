"""The configuration of a GGUF file's model, as transformers has it, from the file's keys and tensors.

Key names are those of gguf.constants. What the keys leave out is what llama.cpp takes for granted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arch.rope import read_rope
from .errors import ConvertError, first_line

# Tensors that say something about the configuration, and are no weights.
CONFIG_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
_MODEL_TYPES = {
    "gemma2": "gemma2", "gemma3": "gemma3_text", "llama": "llama", "phi3": "phi3", "qwen2": "qwen2",
    "qwen3": "qwen3", "qwen3moe": "qwen3_moe", "smollm3": "smollm3",
}  # fmt: skip
_UNDERSTOOD = {
    "context_length", "embedding_length", "block_count", "feed_forward_length", "vocab_size",
    "attention.head_count", "attention.head_count_kv", "attention.layer_norm_rms_epsilon",
    "attention.key_length", "attention.value_length", "attention.sliding_window", "rope.dimension_count",
    "rope.freq_base", "rope.scaling.type", "rope.scaling.factor", "rope.scaling.original_context_length",
    "rope.scaling.finetuned", "tensor_data_layout",
}  # fmt: skip
_FURTHER = {
    "gemma2": {"attn_logit_softcapping", "final_logit_softcapping"},
    "gemma3": {"final_logit_softcapping", "rope.freq_base_swa", "mm.tokens_per_image"},
    "phi3": {"rope.scaling.attn_factor"},
    "qwen3moe": {"expert_count", "expert_used_count", "expert_feed_forward_length"},
}
_GEMMA3_PATTERN = 6  # every sixth layer sees all tokens
_MAX_EXPERTS = 4096
_WIDE_LAYERS = (46, 62)  # the 27B models of Gemma 2 and 3, whose scale is of n_embd / n_heads

Keys = Mapping[str, Any]
Read = Callable[[str], NDArray[np.float32]]


def read_config(
    architecture: str, keys: Keys, shapes: Mapping[str, tuple[int, ...]], read: Read, where: str
) -> Any:
    """The configuration; ``keys`` are the file's, ``read`` gives a vector of it, ``where`` names it.

    Raises ConvertError where a key is missing, or says something that is not understood.
    """
    from transformers import AutoConfig

    if architecture not in _MODEL_TYPES:
        raise ConvertError(
            f"{where}: the architecture {architecture!r} is not supported for GGUF files; supported are: "
            f"{', '.join(sorted(_MODEL_TYPES))}."
        )
    own = {
        key.removeprefix(f"{architecture}."): value
        for key, value in keys.items()
        if key.startswith(f"{architecture}.")
    }
    for key, value in own.items():
        if value and key not in _UNDERSTOOD | _FURTHER.get(architecture, set()):
            raise ConvertError(
                f"{where}: the key {architecture}.{key} ({value!r}) is not understood here; converted "
                "regardless, the model might compute something else."
            )
    if own.get("attention.key_length") != own.get("attention.value_length"):
        raise ConvertError(f"{where}: attention.key_length and .value_length differ, which is not supported.")
    try:
        n_blocks, n_experts = int(own["block_count"]), int(own.get("expert_count") or 0)
        if n_blocks > len(shapes) or n_experts > _MAX_EXPERTS:
            raise ConvertError(
                f"{where}: {n_blocks} blocks and {n_experts} experts in {len(shapes)} tensors; it is damaged."
            )
        fields = _common(own, keys, shapes) | _rope(own, read, shapes)
        model_type = _MODEL_TYPES[architecture]
        if model_type in _PARTICULAR:
            fields |= _PARTICULAR[model_type](own, fields)
        if model_type == "llama" and own.get("attention.sliding_window"):
            model_type, fields["sliding_window"] = "mistral", int(own["attention.sliding_window"])
        config = AutoConfig.for_model(model_type, **fields)
    except ConvertError:
        raise
    except KeyError as error:
        raise ConvertError(f"{where}: there is no {error}; the file is incomplete.") from error
    except Exception as error:  # transformers raises whatever a strange value leads to
        raise ConvertError(f"{where}: its configuration makes no sense: {first_line(error)}") from error
    for field, part in (("attention_bias", ".attn_"), ("mlp_bias", ".ffn_")):
        if hasattr(config, field):
            setattr(config, field, any(part in name and name.endswith(".bias") for name in shapes))
    if "rope_freqs.weight" in shapes:
        _check_llama3(config, read("rope_freqs.weight"), where)
    return config


def _common(own: Keys, keys: Keys, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    n_heads, n_embd = int(own["attention.head_count"]), int(own["embedding_length"])
    head_dim = int(own.get("attention.key_length") or n_embd // n_heads)
    return {
        "vocab_size": shapes["token_embd.weight"][0],
        "hidden_size": n_embd,
        "intermediate_size": int(own["feed_forward_length"]),
        "num_hidden_layers": int(own["block_count"]),
        "num_attention_heads": n_heads,
        "num_key_value_heads": int(own.get("attention.head_count_kv") or n_heads),
        "head_dim": head_dim,
        "max_position_embeddings": int(own["context_length"]),
        "rms_norm_eps": float(own["attention.layer_norm_rms_epsilon"]),
        "tie_word_embeddings": "output.weight" not in shapes,
        **{f"{name}_token_id": keys.get(f"tokenizer.ggml.{key}_token_id") for name, key in
           (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))},
    }  # fmt: skip


def _rope(own: Keys, read: Read, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """rope_parameters, and what belongs to it."""
    rope: dict[str, Any] = {"rope_theta": float(own.get("rope.freq_base") or 10000.0)}
    kind = own.get("rope.scaling.type") or "none"
    original = own.get("rope.scaling.original_context_length")
    if "rope_factors_long.weight" in shapes:
        factors = {
            f"{name}_factor": read(f"rope_factors_{name}.weight").tolist() for name in ("short", "long")
        }
        rope |= {"rope_type": "longrope", **factors}
        return {"rope_parameters": rope, "original_max_position_embeddings": int(original or 0)}
    if "rope_freqs.weight" in shapes:
        # What llama.cpp folded into rope_freqs: published models differ in the factor alone.
        rope |= {"rope_type": "llama3", "factor": round(float(read("rope_freqs.weight").max()), 4)}
        rope |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    elif kind == "none":
        rope["rope_type"] = "default"
    else:
        rope |= {"rope_type": kind, "factor": float(own["rope.scaling.factor"])}
        if original:
            rope["original_max_position_embeddings"] = int(original)
    return {"rope_parameters": rope}


def _check_llama3(config: Any, stored: NDArray[np.float32], where: str) -> None:
    divisors = read_rope(config).divisors
    if divisors is None or stored.shape != divisors.shape or not np.allclose(divisors, stored, rtol=1e-4):
        raise ConvertError(
            f"{where}: rope_freqs.weight is not Llama 3's rope scaling, the only one supported here."
        )


# ---- families -----------------------------------------------------------------------------


def _gemma2(own: Keys, fields: dict[str, Any]) -> dict[str, Any]:
    wide = fields["num_hidden_layers"] in _WIDE_LAYERS
    scalar = fields["hidden_size"] / fields["num_attention_heads"] if wide else fields["head_dim"]
    return {
        "sliding_window": int(own["attention.sliding_window"]),
        "query_pre_attn_scalar": scalar,
        "attn_logit_softcapping": own.get("attn_logit_softcapping"),
        "final_logit_softcapping": own.get("final_logit_softcapping"),
    }


def _gemma3(own: Keys, fields: dict[str, Any]) -> dict[str, Any]:
    particular = _gemma2(own, fields)
    del particular["attn_logit_softcapping"]
    if not own.get("rope.freq_base"):
        fields["rope_parameters"]["rope_theta"] = 1e6
    local = {"rope_type": "default", "rope_theta": float(own.get("rope.freq_base_swa") or 10000.0)}
    layers = range(1, fields["num_hidden_layers"] + 1)
    kinds = ["sliding_attention" if layer % _GEMMA3_PATTERN else "full_attention" for layer in layers]
    ropes = {"full_attention": fields["rope_parameters"], "sliding_attention": local}
    return particular | {"layer_types": kinds, "rope_parameters": ropes}


def _phi3(own: Keys, fields: dict[str, Any]) -> dict[str, Any]:
    part = int(own.get("rope.dimension_count") or fields["head_dim"]) / fields["head_dim"]
    rope = fields["rope_parameters"] | {"partial_rotary_factor": part}
    window = int(own.get("attention.sliding_window") or 0) or None
    return {"sliding_window": window, "partial_rotary_factor": part, "rope_parameters": rope}


def _qwen3_moe(own: Keys, fields: dict[str, Any]) -> dict[str, Any]:
    return {
        "num_experts": int(own["expert_count"]),
        "num_experts_per_tok": int(own["expert_used_count"]),
        "moe_intermediate_size": int(own["expert_feed_forward_length"]),
        "norm_topk_prob": True,
    }


_PARTICULAR: dict[str, Callable[[Keys, dict[str, Any]], dict[str, Any]]] = {
    "gemma2": _gemma2,
    "gemma3_text": _gemma3,
    "phi3": _phi3,
    "qwen3_moe": _qwen3_moe,
}
