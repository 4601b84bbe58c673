"""Hugging Face folders as checkpoints to convert."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arch import Tensor, family_of_model_type
from .errors import ConvertError, first_line
from .hf_tokenizer import load_tokenizer
from .shards import WeightFiles, find_shards, read_json

_SMALL_FILES = {
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt",
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
}  # fmt: skip


class FolderCheckpoint:
    """A Hugging Face folder: config.json, weights in one file or in shards, tokenizer files."""

    def __init__(self, path: Path) -> None:
        from transformers import AutoConfig

        self.path = path
        self.name = path.resolve().name
        raw = read_json(
            path / "config.json", f"{path} is no Hugging Face model folder: it has no config.json."
        )
        if "quantization_config" in raw:
            raise ConvertError(
                f"{path}: the model is quantized already; convert the original, unquantized checkpoint."
            )
        self.family = family_of_model_type(str(raw.get("model_type", "")))
        try:
            config = AutoConfig.from_pretrained(path, local_files_only=True)
            self.config = config.get_text_config(decoder=True)
            self.family.check(self.config)
        except ConvertError:
            raise
        except Exception as error:  # transformers raises whatever a strange value leads to
            raise ConvertError(
                f"{path / 'config.json'}: transformers refuses it: {first_line(error)}"
            ) from error

    @functools.cached_property
    def _weights(self) -> WeightFiles:
        return WeightFiles(find_shards(self.path))

    def small_files(self) -> list[Path]:
        """All that is read from the folder but weights."""
        files = [path for path in self.path.iterdir() if path.is_file()]
        return sorted(path for path in files if path.name in _SMALL_FILES or path.suffix == ".tiktoken")

    def files(self) -> list[Path]:
        return self.small_files() + self._weights.paths

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return self._weights.shapes

    @functools.cached_property
    def _prefix(self) -> str:
        """What the tensors' names have in place of "model."."""
        embedding = self.family.tensors(self.config)[0].source.removeprefix("model.")
        return next((p for p in self.family.prefixes if p + embedding in self._weights.shapes), "model.")

    def own_name(self, tensor: Tensor) -> str:
        name = tensor.source.removeprefix("model.")
        return tensor.source if name == tensor.source else self._prefix + name

    def read_raw(self, tensor: Tensor, start: int, stop: int) -> NDArray[np.float32]:
        first = tensor.first_row
        rows = self._weights.read_rows(self.own_name(tensor), first + start, first + stop)
        return np.add(rows, tensor.plus, dtype=np.float32)

    def tokenizer(self) -> Any:
        return load_tokenizer(self.path)

    def source(self) -> dict[str, Any]:
        path = self.path / "generation_config.json"
        return {path.name: read_json(path, "")} if path.is_file() else {}
