"""LLaMA 1-3 and what computes like it: Vicuna, XGen, SmolLM2, TinyLlama and other fine-tunes."""

from __future__ import annotations

from typing import Any

from .decoder import Decoder


class Llama(Decoder):
    gguf_name = "llama"
    model_class = "LlamaForCausalLM"
    interleaved = True
    fields = ("attention_bias", "mlp_bias", "max_sequence_length")

    def n_context(self, config: Any) -> int:
        scaled = getattr(config, "max_sequence_length", None)  # Vicuna's 16k versions have it
        if scaled and config.rope_parameters["rope_type"] == "linear":
            return int(scaled)
        return super().n_context(config)

    def windows(self, config: Any) -> list[int]:
        return [0] * int(config.num_hidden_layers)
