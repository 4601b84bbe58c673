"""Model families: how a Hugging Face architecture becomes GGUF keys and tensors.

One file a family, one registry line a model type. A family says which tensors a configuration implies, what
the hyperparameters are called in GGUF, and refuses, with a sentence, what the runtime would compute wrongly.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import ConvertError
from .decoder import Keys
from .gemma import Gemma2, Gemma3
from .llama import Llama
from .mistral import Mistral
from .opt import Opt
from .phi3 import Phi3
from .qwen2 import Qwen2
from .qwen3 import Qwen3
from .qwen3moe import Qwen3Moe
from .smollm3 import SmolLM3
from .tensors import Kind, Tensor, by_source

__all__ = ["Family", "Kind", "Tensor", "by_source", "family_of_model_type"]


class Family(Protocol):
    """What the converter asks of a family; ``config`` is a ``transformers`` configuration."""

    @property
    def gguf_name(self) -> str:
        """general.architecture."""

    @property
    def model_class(self) -> str:
        """The class of transformers that a GGUF file's configuration lacks."""

    @property
    def prefixes(self) -> tuple[str, ...]:
        """What checkpoints may have at the beginning of their tensors' names in place of "model."."""

    def check(self, config: Any) -> None:
        """Raises ConvertError where the configuration asks for something that is not supported."""

    def tensors(self, config: Any) -> list[Tensor]:
        """Every tensor of the model, in file order: blocks ascending, rows of one source in turn."""

    def ignored(self, name: str) -> bool:
        """Whether a checkpoint may hold a tensor of this name without any meaning."""

    def keys(self, config: Any) -> Keys:
        """Hyperparameters by GGUF key, as :func:`sq_convert.writer.add_numbers` stores them."""

    def vectors(self, config: Any) -> dict[str, NDArray[np.float32]]:
        """Tensors of the file that the configuration alone implies, by GGUF name."""


_FAMILIES: dict[str, Family] = {
    "gemma2": Gemma2(),
    "gemma3": Gemma3(),
    "gemma3_text": Gemma3(),
    "llama": Llama(),
    "mistral": Mistral(),
    "opt": Opt(),
    "phi3": Phi3(),
    "qwen2": Qwen2(),
    "qwen3": Qwen3(),
    "qwen3_moe": Qwen3Moe(),
    "smollm3": SmolLM3(),
}


def family_of_model_type(model_type: str) -> Family:
    """The family of config.json's ``model_type``."""
    if model_type not in _FAMILIES:
        raise ConvertError(
            f"The model_type {model_type!r} is not supported; supported are: {', '.join(sorted(_FAMILIES))}."
        )
    return _FAMILIES[model_type]
