"""Qwen2 and 2.5: LLaMA with biases on queries, keys and values, and windows in the later layers if asked."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from .decoder import Decoder, Linear, typed_windows

WINDOW_FIELDS = ("use_sliding_window", "sliding_window", "max_window_layers", "layer_types")


class Qwen2(Decoder):
    gguf_name = "qwen2"
    model_class = "Qwen2ForCausalLM"
    fields = WINDOW_FIELDS

    def linears(self, config: Any) -> list[Linear]:
        with_bias = ("attn_q", "attn_k", "attn_v")
        return [replace(linear, bias=linear.name in with_bias) for linear in super().linears(config)]

    def windows(self, config: Any) -> list[int]:
        return typed_windows(config)
