"""Phi-3, 3.5 and 4-mini: LLaMA with fused matrices, LongRoPE and heads that rotate in part."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from .decoder import Decoder, Linear


class Phi3(Decoder):
    gguf_name = "phi3"
    model_class = "Phi3ForCausalLM"
    fields = ("sliding_window", "original_max_position_embeddings", "partial_rotary_factor")
    neutral = (("interpolate_factor", 1), ("full_attn_mod", 1))
    partial_rotary = True

    def linears(self, config: Any) -> list[Linear]:
        linears = {linear.name: linear for linear in super().linears(config)}
        _fuse(linears, ("attn_q", "attn_k", "attn_v"), "self_attn.qkv_proj")
        _fuse(linears, ("ffn_gate", "ffn_up"), "mlp.gate_up_proj")
        return list(linears.values())


def _fuse(linears: dict[str, Linear], names: tuple[str, ...], source: str) -> None:
    """Makes the named layers one of the checkpoint, their rows one after the other."""
    n_rows = sum(linears[name].n_out for name in names)
    first = 0
    for name in names:
        linears[name] = replace(linears[name], source=source, first_row=first, source_rows=n_rows)
        first += linears[name].n_out
