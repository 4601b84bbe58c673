"""OPT: learned positions, layer norms and biases, ReLU; the 350M one with norms behind the sublayers and a
narrower embedding."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..errors import ConvertError
from .decoder import Keys
from .fields import check_fields
from .tensors import Kind, Tensor

_FIELDS = (
    "vocab_size", "hidden_size", "ffn_dim", "num_hidden_layers", "num_attention_heads", "word_embed_proj_dim",
    "max_position_embeddings", "activation_function", "do_layer_norm_before", "enable_bias",
    "tie_word_embeddings", "init_std", "layerdrop", "activation_dropout", "prefix",
)  # fmt: skip
_FIRST_POSITION = 2  # row of the first token's position; those before have no use
_EPSILON = 1e-5  # PyTorch's, which no configuration changes


class Opt:
    gguf_name: ClassVar[str] = "opt"
    model_class: ClassVar[str] = "OPTForCausalLM"
    prefixes: ClassVar[tuple[str, ...]] = ("model.", "")

    def check(self, config: Any) -> None:
        check_fields(config, _FIELDS, ())
        if config.activation_function != "relu":
            raise ConvertError(
                f"config.json: activation_function is {config.activation_function!r}; only 'relu' is "
                "supported."
            )
        if config._remove_final_layer_norm:
            raise ConvertError("config.json: _remove_final_layer_norm is not supported.")

    def tensors(self, config: Any) -> list[Tensor]:
        n_vocab, n_token, n_embd = config.vocab_size, config.word_embed_proj_dim, config.hidden_size
        decoder = "model.decoder"
        n_positions = config.max_position_embeddings
        tensors = [
            Tensor("token_embd.weight", f"{decoder}.embed_tokens.weight", (n_vocab, n_token), Kind.TABLE),
            Tensor(
                "position_embd.weight",
                f"{decoder}.embed_positions.weight",
                (n_positions, n_embd),
                Kind.EXACT,
                first_row=_FIRST_POSITION,
                source_rows=_FIRST_POSITION + n_positions,
            ),
        ]
        if n_token != n_embd:
            shape = (n_embd, n_token)
            tensors += [
                Tensor("token_embd_in.weight", f"{decoder}.project_in.weight", shape, Kind.EXACT),
                Tensor("token_embd_out.weight", f"{decoder}.project_out.weight", shape[::-1], Kind.EXACT),
            ]
        for block in range(config.num_hidden_layers):
            tensors += _block(config, block)
        if config.do_layer_norm_before:
            tensors += _norm("output_norm", f"{decoder}.final_layer_norm", n_embd)
        if not config.tie_word_embeddings:
            tensors.append(Tensor("output.weight", "lm_head.weight", (n_vocab, n_token), Kind.TABLE))
        return tensors

    def ignored(self, name: str) -> bool:
        return name == "lm_head.weight"  # tied, and stored again

    def keys(self, config: Any) -> Keys:
        head_dim = config.hidden_size // config.num_attention_heads
        keys: Keys = {
            "block_count": config.num_hidden_layers,
            "context_length": config.max_position_embeddings,
            "embedding_length": config.hidden_size,
            "feed_forward_length": config.ffn_dim,
            "vocab_size": config.vocab_size,
            "attention.head_count": config.num_attention_heads,
            "attention.head_count_kv": config.num_attention_heads,
            "attention.key_length": head_dim,
            "attention.value_length": head_dim,
            "attention.layer_norm_epsilon": _EPSILON,
            "rope.dimension_count": 0,
        }
        if config.word_embed_proj_dim != config.hidden_size:
            keys["token_embedding_length"] = config.word_embed_proj_dim
        if not config.do_layer_norm_before:
            keys["post_norm"] = True
        return {f"{self.gguf_name}.{key}": value for key, value in keys.items()}

    def vectors(self, config: Any) -> dict[str, NDArray[np.float32]]:
        return {}


def _block(config: Any, block: int) -> Iterator[Tensor]:
    n_embd, n_ff = config.hidden_size, config.ffn_dim
    blk, layer = f"blk.{block}", f"model.decoder.layers.{block}"
    yield from _norm(f"{blk}.attn_norm", f"{layer}.self_attn_layer_norm", n_embd, block)
    for name, source, n_out, n_in in (
        ("attn_q", "self_attn.q_proj", n_embd, n_embd),
        ("attn_k", "self_attn.k_proj", n_embd, n_embd),
        ("attn_v", "self_attn.v_proj", n_embd, n_embd),
        ("attn_output", "self_attn.out_proj", n_embd, n_embd),
        ("ffn_up", "fc1", n_ff, n_embd),
        ("ffn_down", "fc2", n_embd, n_ff),
    ):
        shape = (n_out, n_in)
        yield Tensor(f"{blk}.{name}.weight", f"{layer}.{source}.weight", shape, Kind.MATRIX, block)
        if config.enable_bias:
            yield Tensor(f"{blk}.{name}.bias", f"{layer}.{source}.bias", (n_out,), Kind.VECTOR, block)
    yield from _norm(f"{blk}.ffn_norm", f"{layer}.final_layer_norm", n_embd, block)


def _norm(name: str, source: str, n: int, block: int | None = None) -> Iterator[Tensor]:
    for part in ("weight", "bias"):
        yield Tensor(f"{name}.{part}", f"{source}.{part}", (n,), Kind.VECTOR, block)
