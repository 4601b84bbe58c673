"""Gemma 2 and 3, the text part: norms before and behind each sublayer, GELU, scaled embeddings, soft caps."""

from __future__ import annotations

import copy
from typing import Any

from ..errors import ConvertError
from .decoder import Decoder, Keys, typed_windows
from .rope import head_dim

# What multimodal checkpoints have besides the language model, and its tied head.
_OF_IMAGES = ("vision_tower.", "multi_modal_projector.", "model.vision_tower.",
              "model.multi_modal_projector.", "language_model.lm_head.")  # fmt: skip


class Gemma2(Decoder):
    gguf_name = "gemma2"
    model_class = "Gemma2ForCausalLM"
    fields = (
        "hidden_activation", "attention_bias", "query_pre_attn_scalar", "sliding_window", "layer_types",
        "sliding_window_size", "attn_logit_softcapping", "final_logit_softcapping",
    )  # fmt: skip
    activation = ("hidden_activation", "gelu_pytorch_tanh")
    norm_offset = 1.0

    def norms(self, config: Any) -> list[tuple[str, str, int]]:
        return [
            ("attn_norm", "input_layernorm", config.hidden_size),
            ("post_attention_norm", "post_attention_layernorm", config.hidden_size),
            ("ffn_norm", "pre_feedforward_layernorm", config.hidden_size),
            ("post_ffw_norm", "post_feedforward_layernorm", config.hidden_size),
        ]

    def windows(self, config: Any) -> list[int]:
        return typed_windows(config)

    def keys(self, config: Any) -> Keys:
        keys = super().keys(config)
        keys[f"{self.gguf_name}.embedding_scale"] = float(config.hidden_size**0.5)
        keys[f"{self.gguf_name}.attention.scale"] = float(config.query_pre_attn_scalar**-0.5)
        for name in ("attn_logit_softcapping", "final_logit_softcapping"):
            if getattr(config, name) is not None:
                keys[f"{self.gguf_name}.{name}"] = float(getattr(config, name))
        return keys


class Gemma3(Gemma2):
    """Gemma 2 with norms of query and key heads, and a rotation of its own in layers with a window."""

    gguf_name = "gemma3"
    model_class = "Gemma3ForCausalLM"
    fields = (
        "hidden_activation", "attention_bias", "query_pre_attn_scalar", "sliding_window", "layer_types",
        "sliding_window_pattern", "final_logit_softcapping", "rope_local_base_freq",
    )  # fmt: skip
    prefixes = ("model.", "language_model.model.", "model.language_model.")  # of multimodal checkpoints

    def check(self, config: Any) -> None:
        super().check(_of_full_layers(config))
        local = config.rope_parameters["sliding_attention"]
        for name, value in local.items():
            if (name, value) != ("rope_type", "default") and name != "rope_theta":
                raise ConvertError(
                    f"config.json: rope parameter {name} of sliding_attention is {value!r}; only a plain "
                    "rotation is supported there."
                )

    def norms(self, config: Any) -> list[tuple[str, str, int]]:
        return [
            *super().norms(config),
            ("attn_q_norm", "self_attn.q_norm", head_dim(config)),
            ("attn_k_norm", "self_attn.k_norm", head_dim(config)),
        ]

    def ignored(self, name: str) -> bool:
        return super().ignored(name) or name.startswith(_OF_IMAGES)

    def ropes(self, config: Any) -> list[int]:
        return [1 if kind == "sliding_attention" else 0 for kind in config.layer_types]

    def keys(self, config: Any) -> Keys:
        local = float(config.rope_parameters["sliding_attention"]["rope_theta"])
        return super().keys(_of_full_layers(config)) | {f"{self.gguf_name}.rope.freq_base_swa": local}

    def vectors(self, config: Any) -> Any:
        return super().vectors(_of_full_layers(config))


def _of_full_layers(config: Any) -> Any:
    """The configuration with the rotation of its layers without a window as its only one."""
    config = copy.copy(config)
    config.rope_parameters = config.rope_parameters["full_attention"]
    return config
