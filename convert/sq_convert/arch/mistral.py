"""Mistral 7B and Nemo: LLaMA with a window over all layers, in the first version."""

from __future__ import annotations

from .decoder import Decoder


class Mistral(Decoder):
    gguf_name = "llama"
    model_class = "MistralForCausalLM"
    interleaved = True
    fields = ("sliding_window",)
