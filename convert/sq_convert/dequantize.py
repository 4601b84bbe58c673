"""MODEL.sq.gguf back to a Hugging Face checkpoint: the weights in float32, exactly as a runtime sees them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gguf import quants
from numpy.typing import NDArray

from .arch import Tensor, by_source, family_of_model_type
from .errors import ConvertError, first_line
from .gguf_file import gguf_number, gguf_string, read_gguf
from .progress import Progress
from .quantize import PARTS, decode_matrix
from .sources import SOURCE_KEY, TOKENIZER_KEY
from .writer import FORMAT_VERSION

SHARD_BYTES = 1_000_000_000


class QuantizedFile:
    """A .sq.gguf file, read through the gguf package."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.reader = read_gguf(path)
        version = gguf_number(self.reader, "squeezellm.version")
        if not version:
            raise ConvertError(
                f"{path}: no SqueezeLLM file (it has no squeezellm.version); there is nothing to dequantize."
            )
        if version > FORMAT_VERSION:
            raise ConvertError(
                f"{path}: format version {version}, this converter knows {FORMAT_VERSION}; get a newer one."
            )
        self._tensors = {tensor.name: tensor for tensor in self.reader.tensors}
        names, bits, inputs = (self._array(f"squeezellm.matrix.{key}") for key in ("names", "bits", "inputs"))
        self._matrices = {name: (b, n) for name, b, n in zip(names, bits, inputs, strict=True)}

    def string(self, key: str) -> str:
        """A string key; ConvertError where it is missing."""
        text = gguf_string(self.reader, key)
        if not text:
            raise ConvertError(f"{self.path}: the key {key} is missing, which --dequantize needs.")
        return text

    def read(self, name: str) -> NDArray[np.float32]:
        """A tensor as the model uses it, decoded."""
        try:
            if name in self._matrices:
                bits, n_in = self._matrices[name]
                parts = {
                    part: self._plain(f"{name}.{part}") for part in PARTS if f"{name}.{part}" in self._tensors
                }
                return decode_matrix(parts, n_in, bits)
            return self._plain(name).astype(np.float32)
        except (KeyError, ValueError, IndexError) as error:
            raise ConvertError(f"{self.path}: {name} is damaged or missing: {first_line(error)}") from error

    def _plain(self, name: str) -> NDArray[Any]:
        stored = self._tensors[name]
        shape = tuple(int(n) for n in reversed(stored.shape))
        data = stored.data
        if stored.tensor_type.name == "Q8_0":
            data = quants.dequantize(data, stored.tensor_type)
        return np.asarray(data).reshape(shape)

    def _array(self, key: str) -> list[Any]:
        field = self.reader.get_field(key)
        return list(field.contents()) if field else []


def dequantize(path: Path, out: Path, progress: Progress) -> None:
    """Writes the folder ``out``, whole or not at all: float32 safetensors, config.json, tokenizer files."""
    from transformers import AutoConfig

    file = QuantizedFile(path)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConvertError(f"{out} exists already; give -o a new folder.")
    source: dict[str, dict[str, Any]] = json.loads(file.string(SOURCE_KEY))
    config = dict(source["config.json"])
    family = family_of_model_type(str(config.get("model_type", "")))
    tensors = family.tensors(AutoConfig.for_model(**config))
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        _write_weights(file, tensors, partial, progress)
        texts = {
            name: json.dumps(value, indent=2, ensure_ascii=False)
            for name, value in {**source, "config.json": config | {"dtype": "float32"}}.items()
        }
        texts["tokenizer.json"] = file.string(TOKENIZER_KEY)
        template = gguf_string(file.reader, "tokenizer.chat_template")
        if template:
            texts["chat_template.jinja"] = template
        for name, text in texts.items():
            (partial / Path(name).name).write_text(text, encoding="utf-8")
        if out.is_dir():
            out.rmdir()
        os.rename(partial, out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    progress.say(f"{out}: the decoded weights in float32, as a Hugging Face checkpoint.")


def _write_weights(file: QuantizedFile, tensors: Sequence[Tensor], folder: Path, progress: Progress) -> None:
    from safetensors.numpy import save_file

    shards = _shards(tensors)
    names = ["model.safetensors"]
    if len(shards) > 1:
        names = [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
        weight_map = {source: name for name, shard in zip(names, shards, strict=True) for source in shard}
        total = {"total_size": 4 * sum(tensor.n_weights for tensor in tensors)}
        index = json.dumps({"metadata": total, "weight_map": weight_map}, indent=2)
        (folder / "model.safetensors.index.json").write_text(index)
    with progress.stage("dequantize", len(tensors), "tensors") as step:
        for name, shard in zip(names, shards, strict=True):
            weights = {}
            for source, parts in shard.items():
                weights[source] = np.zeros(parts[0].source_shape, np.float32)
                for tensor in parts:
                    weights[source][tensor.rows] = file.read(tensor.name) - tensor.plus
                    step.advance()
            save_file(weights, folder / name, metadata={"format": "pt"})
            (folder / name).chmod(0o666 & ~_umask())  # safetensors gives it to the owner alone


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _shards(tensors: Sequence[Tensor]) -> list[dict[str, list[Tensor]]]:
    """The checkpoint's tensors, each of the rows of one or more of ours, in groups of about SHARD_BYTES."""
    shards: list[dict[str, list[Tensor]]] = [{}]
    filled = 0
    for source, parts in by_source(tensors).items():
        n_bytes = 4 * sum(tensor.n_weights for tensor in parts)
        if shards[-1] and filled + n_bytes > SHARD_BYTES:
            shards.append({})
            filled = 0
        shards[-1][source] = parts
        filled += n_bytes
    return shards
