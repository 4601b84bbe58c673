"""Refusing configurations that say more than is understood: a field that nobody looks at may change what the
model computes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..errors import ConvertError

# Fields that say where a model comes from and how it is trained, stored and generated from. Tokens' ids are
# the tokenizer's business.
_ELSEWHERE = {
    "architectures", "auto_map", "model_type", "transformers_version", "dtype", "torch_dtype",
    "name_or_path", "use_cache", "cache_implementation", "initializer_range", "attention_dropout",
    "attn_pdrop", "resid_pdrop", "embd_pdrop", "hidden_dropout", "dropout", "pretraining_tp",
    "output_attentions", "output_hidden_states", "return_dict", "chunk_size_feed_forward", "id2label",
    "label2id", "problem_type", "max_length", "bos_token_id", "eos_token_id", "pad_token_id",
    "unk_token_id", "sep_token_id", "decoder_start_token_id", "is_llama_config", "transformers.js_config",
    "tokenizer_class", "temperature", "top_p", "top_k", "do_sample", "repetition_penalty",
}  # fmt: skip
_ELSEWHERE_PREFIXES = ("_", "unsloth_")


def check_fields(config: Any, understood: Iterable[str], neutral: Iterable[tuple[str, Any]]) -> None:
    """Raises ConvertError naming a field that may change the arithmetic and is not ``understood``.

    Fields pass that have transformers' default or their ``neutral`` value, and those that transformers' class
    has not, where they are off.
    """
    defaults = type(config)().to_dict()
    known = _ELSEWHERE.union(understood)
    for name, value in config.to_dict().items():
        if name in known or name.startswith(_ELSEWHERE_PREFIXES):
            continue
        if (name, value) in neutral:
            continue
        changed = value != defaults[name] if name in defaults else bool(value)
        if changed:
            raise ConvertError(
                f"config.json: {name} is {value!r}, which is not understood here; converted regardless, the "
                "model might compute something else."
            )
