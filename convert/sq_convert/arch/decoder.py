"""What the families have in common: the pre-norm decoder that models/decoder.c runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..errors import ConvertError
from .fields import check_fields
from .rope import head_dim, read_rope
from .tensors import Kind, Tensor

_FIELDS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "hidden_act", "max_position_embeddings", "rms_norm_eps",
    "tie_word_embeddings", "rope_parameters", "rope_theta", "rope_scaling",
)  # fmt: skip
Keys = dict[str, bool | int | float | list[int]]


@dataclass(frozen=True)
class Linear:
    """A linear layer of a block."""

    name: str  # "attn_q"
    source: str  # "self_attn.q_proj"
    n_out: int
    n_in: int
    bias: bool = False
    rotary_heads: int = 0  # as Tensor has it, like the next two
    first_row: int = 0
    source_rows: int = 0


class Decoder:
    """RMS norms, rotary grouped-query attention, gated SiLU feed-forward: LLaMA.

    A family that differs overrides what differs, and names in ``fields`` what it looks at besides.
    """

    gguf_name: ClassVar[str]
    model_class: ClassVar[str]
    fields: ClassVar[tuple[str, ...]] = ()  # of config.json that this family looks at
    neutral: ClassVar[tuple[tuple[str, Any], ...]] = ()  # fields and the value by which they mean nothing
    activation: ClassVar[tuple[str, str]] = ("hidden_act", "silu")  # its field and the only one
    norm_offset: ClassVar[float] = 0.0  # what a norm's weights in the file have more than the checkpoint's
    prefixes: ClassVar[tuple[str, ...]] = ("model.",)  # what may stand there in a checkpoint's names
    partial_rotary: ClassVar[bool] = False  # transformers heeds partial_rotary_factor
    interleaved: ClassVar[bool] = False  # llama.cpp's files interleave the rows of q and k

    def check(self, config: Any) -> None:
        check_fields(config, (*_FIELDS, *self.fields), self.neutral)
        field, expected = self.activation
        if getattr(config, field) != expected:
            raise ConvertError(
                f"config.json: {field} is {getattr(config, field)!r}; only {expected!r} is supported."
            )
        if config.num_attention_heads % config.num_key_value_heads:
            raise ConvertError(
                f"config.json: {config.num_attention_heads} attention heads cannot share "
                f"{config.num_key_value_heads} key-value heads evenly."
            )
        part = config.rope_parameters.get("partial_rotary_factor", 1.0)
        if part != 1.0 and not self.partial_rotary:
            raise ConvertError(
                f"config.json: partial_rotary_factor is {part}, which is not supported for this model type."
            )
        read_rope(config)
        self.windows(config)

    # ---- tensors ----

    def norms(self, config: Any) -> list[tuple[str, str, int]]:
        """Name, source and width of a block's norms."""
        return [
            ("attn_norm", "input_layernorm", config.hidden_size),
            ("ffn_norm", "post_attention_layernorm", config.hidden_size),
        ]

    def linears(self, config: Any) -> list[Linear]:
        """A block's linear layers."""
        n_embd, n_ff = config.hidden_size, config.intermediate_size
        n_heads, n_kv_heads = config.num_attention_heads, config.num_key_value_heads
        n_q, n_kv = n_heads * head_dim(config), n_kv_heads * head_dim(config)
        attention_bias = bool(getattr(config, "attention_bias", False))
        mlp_bias = bool(getattr(config, "mlp_bias", False))
        return [
            Linear("attn_q", "self_attn.q_proj", n_q, n_embd, attention_bias, n_heads),
            Linear("attn_k", "self_attn.k_proj", n_kv, n_embd, attention_bias, n_kv_heads),
            Linear("attn_v", "self_attn.v_proj", n_kv, n_embd, attention_bias),
            Linear("attn_output", "self_attn.o_proj", n_embd, n_q, attention_bias),
            Linear("ffn_gate", "mlp.gate_proj", n_ff, n_embd, mlp_bias),
            Linear("ffn_up", "mlp.up_proj", n_ff, n_embd, mlp_bias),
            Linear("ffn_down", "mlp.down_proj", n_embd, n_ff, mlp_bias),
        ]

    def tensors(self, config: Any) -> list[Tensor]:
        table = (config.vocab_size, config.hidden_size)
        tensors = [Tensor("token_embd.weight", "model.embed_tokens.weight", table, Kind.TABLE)]
        for block in range(config.num_hidden_layers):
            tensors += self._block(config, block)
        tensors.append(self._norm("output_norm", "model.norm", config.hidden_size))
        if not config.tie_word_embeddings:
            tensors.append(Tensor("output.weight", "lm_head.weight", table, Kind.TABLE))
        return tensors

    def _block(self, config: Any, block: int) -> Iterator[Tensor]:
        blk, layer = f"blk.{block}", f"model.layers.{block}"
        for name, source, n in self.norms(config):
            yield self._norm(f"{blk}.{name}", f"{layer}.{source}", n, block)
        for linear in self.linears(config):
            name, source = f"{blk}.{linear.name}", f"{layer}.{linear.source}"
            heads = linear.rotary_heads if self.interleaved else 0
            rows = (heads, linear.first_row, linear.source_rows)
            yield Tensor(
                f"{name}.weight", f"{source}.weight", (linear.n_out, linear.n_in), Kind.MATRIX, block, *rows
            )
            if linear.bias:
                yield Tensor(f"{name}.bias", f"{source}.bias", (linear.n_out,), Kind.VECTOR, block, *rows)

    def _norm(self, name: str, source: str, n: int, block: int | None = None) -> Tensor:
        return Tensor(f"{name}.weight", f"{source}.weight", (n,), Kind.VECTOR, block, plus=self.norm_offset)

    def ignored(self, name: str) -> bool:
        # Old checkpoints store the rotation frequencies; tied ones sometimes store the head again; a GGUF
        # file's divisors have become part of the configuration.
        return name.endswith("rotary_emb.inv_freq") or name in ("lm_head.weight", "rope_freqs.weight")

    # ---- numbers ----

    def n_context(self, config: Any) -> int:
        """Tokens that the model can take; YaRN lengthens what the configuration may call the maximum."""
        rope = config.rope_parameters
        n = int(config.max_position_embeddings)
        if rope["rope_type"] == "yarn" and rope["factor"]:
            return max(n, int(rope["factor"] * rope["original_max_position_embeddings"]))
        return n

    def windows(self, config: Any) -> list[int]:
        """How many tokens each layer sees, the newest included; 0: all."""
        return [getattr(config, "sliding_window", None) or 0] * int(config.num_hidden_layers)

    def ropes(self, config: Any) -> list[int]:
        """Which rotation each layer has: 0, or -1 for none."""
        return [0] * int(config.num_hidden_layers)

    def keys(self, config: Any) -> Keys:
        rope = read_rope(config)
        keys: Keys = {
            "block_count": config.num_hidden_layers,
            "context_length": self.n_context(config),
            "embedding_length": config.hidden_size,
            "feed_forward_length": config.intermediate_size,
            "vocab_size": config.vocab_size,
            "attention.head_count": config.num_attention_heads,
            "attention.head_count_kv": config.num_key_value_heads,
            "attention.key_length": head_dim(config),
            "attention.value_length": head_dim(config),
            "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
            "rope.dimension_count": rope.n_rot,
            "rope.freq_base": rope.theta,
        }
        if rope.scale != 1:
            keys["rope.scaling.attn_factor"] = rope.scale
        if rope.n_short:
            keys["rope.scaling.original_context_length"] = rope.n_short
        windows, ropes = self.windows(config), self.ropes(config)
        if any(windows):
            keys["attention.sliding_window"] = max(windows)
        keys = {f"{self.gguf_name}.{key}": value for key, value in keys.items()}
        if len(set(windows)) > 1:
            keys["squeezellm.layers.window"] = windows
        if any(ropes):
            keys["squeezellm.layers.rope"] = ropes
        return keys

    def vectors(self, config: Any) -> dict[str, NDArray[np.float32]]:
        rope = read_rope(config)
        if rope.divisors is None:
            return {}
        if rope.long_divisors is None:
            return {"rope_freqs.weight": rope.divisors}
        return {"rope_factors_short.weight": rope.divisors, "rope_factors_long.weight": rope.long_divisors}


def typed_windows(config: Any) -> list[int]:
    """``windows`` where ``layer_types`` says which layers have ``sliding_window``."""
    windows = {"full_attention": 0, "sliding_attention": config.sliding_window}
    for kind in config.layer_types:
        if windows.get(kind) is None:
            raise ConvertError(
                f"config.json: layer_types has {kind!r}, with sliding_window {config.sliding_window!r}; only "
                "full_attention, and sliding_attention with a window, are supported."
            )
    return [windows[kind] for kind in config.layer_types]
