"""Qwen3: LLaMA with norms of every query and key head, and windows as Qwen2."""

from __future__ import annotations

from typing import Any, ClassVar

from .decoder import Decoder, typed_windows
from .qwen2 import WINDOW_FIELDS
from .rope import head_dim


class Qwen3(Decoder):
    gguf_name = "qwen3"
    model_class = "Qwen3ForCausalLM"
    fields: ClassVar[tuple[str, ...]] = ("attention_bias", *WINDOW_FIELDS)

    def norms(self, config: Any) -> list[tuple[str, str, int]]:
        return [
            *super().norms(config),
            ("attn_q_norm", "self_attn.q_norm", head_dim(config)),
            ("attn_k_norm", "self_attn.k_norm", head_dim(config)),
        ]

    def windows(self, config: Any) -> list[int]:
        return typed_windows(config)
