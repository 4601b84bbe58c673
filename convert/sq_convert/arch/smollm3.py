"""SmolLM3: LLaMA with layers, every fourth, that do not rotate (NoPE)."""

from __future__ import annotations

from typing import Any

from .decoder import Decoder, typed_windows
from .qwen2 import WINDOW_FIELDS


class SmolLM3(Decoder):
    gguf_name = "smollm3"
    model_class = "SmolLM3ForCausalLM"
    interleaved = True
    fields = ("attention_bias", "mlp_bias", "no_rope_layers", "no_rope_layer_interval", *WINDOW_FIELDS)

    def windows(self, config: Any) -> list[int]:
        return typed_windows(config)

    def ropes(self, config: Any) -> list[int]:
        # 1 is a layer that rotates, whatever the field's name says.
        return [0 if rotates else -1 for rotates in config.no_rope_layers[: config.num_hidden_layers]]
