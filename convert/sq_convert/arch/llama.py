"""The LLaMA family: LLaMA 1-3, Mistral, SmolLM2 and their fine-tunes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ConvertError
from .tensors import Kind, Tensor

_ROPE_TYPES = ("default", "linear", "llama3")


@dataclass(frozen=True)
class LlamaFamily:
    """RMS norm, rotary grouped-query attention, gated SiLU feed-forward."""

    gguf_name: str = "llama"
    model_class: str = "LlamaForCausalLM"

    def check(self, config: Any) -> None:
        if config.hidden_act != "silu":
            raise ConvertError(f"config.json: hidden_act is {config.hidden_act!r}; only 'silu' is supported.")
        if config.num_attention_heads % config.num_key_value_heads:
            raise ConvertError(
                f"config.json: {config.num_attention_heads} attention heads cannot share "
                f"{config.num_key_value_heads} key-value heads evenly."
            )
        if _head_dim(config) % 2:
            raise ConvertError(
                f"config.json: head_dim is {_head_dim(config)}; rotary embedding needs an even one."
            )
        rope = _rope(config)
        if rope["rope_type"] not in _ROPE_TYPES:
            raise ConvertError(
                f"config.json: rope scaling {rope['rope_type']!r} is not supported; "
                f"supported are: {', '.join(_ROPE_TYPES)}."
            )
        if rope.get("partial_rotary_factor", 1.0) != 1.0:
            raise ConvertError(
                "config.json: partial_rotary_factor other than 1 is not supported for this model type."
            )

    def tensors(self, config: Any) -> list[Tensor]:
        n_embd, n_ff = config.hidden_size, config.intermediate_size
        n_heads, n_kv_heads = config.num_attention_heads, config.num_key_value_heads
        n_q, n_kv = n_heads * _head_dim(config), n_kv_heads * _head_dim(config)
        attention_bias = bool(getattr(config, "attention_bias", False))
        mlp_bias = bool(getattr(config, "mlp_bias", False))
        linear = [  # name, source, n_out, n_in, bias, rotary heads
            ("attn_q", "self_attn.q_proj", n_q, n_embd, attention_bias, n_heads),
            ("attn_k", "self_attn.k_proj", n_kv, n_embd, attention_bias, n_kv_heads),
            ("attn_v", "self_attn.v_proj", n_kv, n_embd, attention_bias, 0),
            ("attn_output", "self_attn.o_proj", n_embd, n_q, attention_bias, 0),
            ("ffn_gate", "mlp.gate_proj", n_ff, n_embd, mlp_bias, 0),
            ("ffn_up", "mlp.up_proj", n_ff, n_embd, mlp_bias, 0),
            ("ffn_down", "mlp.down_proj", n_embd, n_ff, mlp_bias, 0),
        ]
        norms = [("attn_norm", "input_layernorm"), ("ffn_norm", "post_attention_layernorm")]

        tensors = [
            Tensor("token_embd.weight", "model.embed_tokens.weight", (config.vocab_size, n_embd), Kind.TABLE)
        ]
        for n in range(config.num_hidden_layers):
            blk, layer = f"blk.{n}", f"model.layers.{n}"
            for name, source in norms:
                tensors.append(
                    Tensor(f"{blk}.{name}.weight", f"{layer}.{source}.weight", (n_embd,), Kind.VECTOR, n)
                )
            for name, source, n_out, n_in, bias, heads in linear:
                tensors.append(
                    Tensor(
                        f"{blk}.{name}.weight",
                        f"{layer}.{source}.weight",
                        (n_out, n_in),
                        Kind.MATRIX,
                        n,
                        heads,
                    )
                )
                if bias:
                    tensors.append(
                        Tensor(
                            f"{blk}.{name}.bias", f"{layer}.{source}.bias", (n_out,), Kind.VECTOR, n, heads
                        )
                    )
        tensors.append(Tensor("output_norm.weight", "model.norm.weight", (n_embd,), Kind.VECTOR))
        if not config.tie_word_embeddings:
            tensors.append(Tensor("output.weight", "lm_head.weight", (config.vocab_size, n_embd), Kind.TABLE))
        return tensors

    def ignored(self, name: str) -> bool:
        # Old checkpoints store the rotation frequencies; tied ones sometimes store the head again; a GGUF
        # file's divisors have become part of the configuration.
        return name.endswith("rotary_emb.inv_freq") or name in ("lm_head.weight", "rope_freqs.weight")

    def keys(self, config: Any) -> dict[str, int | float]:
        keys: dict[str, int | float] = {
            "block_count": config.num_hidden_layers,
            "context_length": config.max_position_embeddings,
            "embedding_length": config.hidden_size,
            "feed_forward_length": config.intermediate_size,
            "vocab_size": config.vocab_size,
            "attention.head_count": config.num_attention_heads,
            "attention.head_count_kv": config.num_key_value_heads,
            "attention.key_length": _head_dim(config),
            "attention.value_length": _head_dim(config),
            "rope.dimension_count": _head_dim(config),
            "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
            "rope.freq_base": float(_rope(config)["rope_theta"]),
        }
        if getattr(config, "sliding_window", None):
            keys["attention.sliding_window"] = config.sliding_window
        return {f"{self.gguf_name}.{key}": value for key, value in keys.items()}

    def rope_freqs(self, config: Any) -> NDArray[np.float32] | None:
        rope = _rope(config)
        half = _head_dim(config) // 2
        if rope["rope_type"] == "linear":
            return np.full(half, rope["factor"], np.float32)
        if rope["rope_type"] == "llama3":
            return llama3_divisors(rope, half)
        return None


def llama3_divisors(rope: dict[str, Any], half: int) -> NDArray[np.float32]:
    """Llama-3.1's rope scaling as divisors of the plain frequencies ``[half]``.

    Frequencies with a wavelength below ``original / high_freq_factor`` stay, those above ``original /
    low_freq_factor`` are divided by ``factor``, those between are interpolated (transformers,
    ``modeling_rope_utils._compute_llama3_parameters``).
    """
    frequency = rope["rope_theta"] ** -(np.arange(half, dtype=np.float64) / half)
    wavelength = 2 * np.pi / frequency
    original, factor = rope["original_max_position_embeddings"], rope["factor"]
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    smooth = np.clip((original / wavelength - low) / (high - low), 0, 1)
    return np.asarray(1 / ((1 - smooth) / factor + smooth), np.float32)


def _head_dim(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _rope(config: Any) -> dict[str, Any]:
    """Type and parameters of the rotary embedding, in transformers' present spelling."""
    rope: dict[str, Any] = dict(config.rope_parameters or {})
    rope.setdefault("rope_type", "default")
    rope.setdefault("rope_theta", 10000.0)
    return rope
