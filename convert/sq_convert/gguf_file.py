"""GGUF files as checkpoints to convert, their own quantization, if any, decoded."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arch import Tensor, family_of_gguf
from .arch.rope import read_rope
from .errors import ConvertError, first_line


class GgufCheckpoint:
    """A GGUF file of a supported architecture; its own quantization, if any, is decoded."""

    def __init__(self, path: Path) -> None:
        self.path = path
        reader = read_gguf(path)
        if reader.get_field("squeezellm.version"):
            raise ConvertError(f"{path} is quantized by SqueezeLLM already; --dequantize turns it back.")
        self.name = gguf_string(reader, "general.name") or path.stem
        self.family = family_of_gguf(gguf_string(reader, "general.architecture"))
        # The reader itself is not kept: it holds an object for every token and merge, and maps the file.
        self._tensors = {tensor.name: _Stored(tensor) for tensor in reader.tensors}
        self.config = self._load_config(reader)
        self.family.check(self.config)

    def files(self) -> list[Path]:
        return [self.path]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: stored.shape for name, stored in self._tensors.items()}

    def own_name(self, tensor: Tensor) -> str:
        return tensor.name

    def read_raw(self, tensor: Tensor, start: int, stop: int) -> NDArray[np.float32]:
        if not tensor.rotary_heads:
            return self._decode(tensor.name, start, stop)
        size = tensor.shape[0] // tensor.rotary_heads
        first, last = start // size, -(-stop // size)  # whole heads
        rows = _deinterleave(self._decode(tensor.name, first * size, last * size), last - first)
        return rows[start - first * size : stop - first * size]

    def _decode(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """Rows of a stored tensor, as they stand in the file."""
        try:
            return self._tensors[name].read_rows(self.path, start, stop)
        except NotImplementedError as error:
            raise ConvertError(
                f"{self.path}: {name} is of type {self._tensors[name].type.name}, which the gguf package "
                "cannot decode."
            ) from error

    def tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        from .tokenizer import repair_gguf_tokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(
                self.path.parent, gguf_file=self.path.name, local_files_only=True
            )
        except Exception as error:
            raise ConvertError(
                f"{self.path}: transformers reads no tokenizer from it: {first_line(error)}"
            ) from error
        repair_gguf_tokenizer(tokenizer, self.path)
        return tokenizer

    def source(self) -> dict[str, Any]:
        return {}

    def _load_config(self, reader: Any) -> Any:
        from transformers import AutoConfig

        try:
            config = AutoConfig.from_pretrained(
                self.path.parent, gguf_file=self.path.name, local_files_only=True
            )
        except Exception as error:
            raise ConvertError(
                f"{self.path}: transformers reads no configuration from it: {first_line(error)}"
            ) from error
        config.architectures = [self.family.model_class]
        for field, part in ("attention_bias", ".attn_"), ("mlp_bias", ".ffn_"):
            if hasattr(config, field):
                biases = [name for name in self._tensors if part in name and name.endswith(".bias")]
                setattr(config, field, bool(biases))
        config.tie_word_embeddings = "output.weight" not in self._tensors
        config.rope_parameters = self._rope_parameters(reader)
        if "rope_freqs.weight" in self._tensors:
            self._check_llama3(config)
        return config

    def _rope_parameters(self, reader: Any) -> dict[str, Any]:
        """Rope scaling, which transformers does not read from GGUF."""
        arch = self.family.gguf_name
        base = {"rope_theta": float(gguf_number(reader, f"{arch}.rope.freq_base") or 10000.0)}
        scaling = gguf_string(reader, f"{arch}.rope.scaling.type") or "none"
        if "rope_freqs.weight" in self._tensors:
            return base | self._llama3_parameters()
        if scaling == "none":
            return base | {"rope_type": "default"}
        if scaling == "linear":
            return base | {
                "rope_type": scaling,
                "factor": float(gguf_number(reader, f"{arch}.rope.scaling.factor")),
            }
        return base | {"rope_type": scaling}  # which the family refuses by name

    def _llama3_parameters(self) -> dict[str, Any]:
        """What llama.cpp folded into rope_freqs: published models differ in the factor alone."""
        return {
            "rope_type": "llama3",
            "factor": round(float(self._rope_freqs().max()), 4),
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }

    def _check_llama3(self, config: Any) -> None:
        stored, divisors = self._rope_freqs(), read_rope(config).divisors
        if divisors is None or stored.shape != divisors.shape or not np.allclose(divisors, stored, rtol=1e-4):
            raise ConvertError(
                f"{self.path}: rope_freqs.weight is not Llama 3's rope scaling, the only one supported here."
            )

    def _rope_freqs(self) -> NDArray[np.float32]:
        return self._decode("rope_freqs.weight", 0, self._tensors["rope_freqs.weight"].shape[0])


class _Stored:
    """Where a tensor lies in the file, and how."""

    def __init__(self, tensor: Any) -> None:
        self.type = tensor.tensor_type
        self.shape = tuple(int(n) for n in reversed(tensor.shape))
        self.offset = int(tensor.data_offset)

    def read_rows(self, path: Path, start: int, stop: int) -> NDArray[np.float32]:
        """Decodes a range of the first dimension, reading no more than that."""
        if len(self.shape) == 1:  # one row, which blocks of a quantized type may not cut
            return self._decode_rows(path, 0, 1, self.shape)[0, start:stop]
        rows = self._decode_rows(path, start, stop, self.shape[1:])
        return rows.reshape(stop - start, *self.shape[1:])

    def _decode_rows(self, path: Path, start: int, stop: int, row: tuple[int, ...]) -> NDArray[np.float32]:
        from gguf import quants

        n_bytes = math.prod(quants.quant_shape_to_byte_shape(row, self.type))
        count = (stop - start) * n_bytes
        data = np.fromfile(path, np.uint8, count, offset=self.offset + start * n_bytes)
        rows: NDArray[np.float32] = quants.dequantize(data.reshape(stop - start, n_bytes), self.type)
        return rows


def _deinterleave(values: NDArray[np.float32], n_heads: int) -> NDArray[np.float32]:
    """Rows of each head from llama.cpp's order (0, d/2, 1, d/2 + 1, …) to Hugging Face's (0, 1, 2, …)."""
    shape = values.shape
    pairs = values.reshape(n_heads, shape[0] // n_heads // 2, 2, *shape[1:])
    rows: NDArray[np.float32] = pairs.swapaxes(1, 2).reshape(shape)
    return rows


# ---- small readers -----------------------------------------------------------------------------


def read_gguf(path: Path) -> Any:
    """A gguf.GGUFReader; ConvertError where the file is damaged or none."""
    from gguf import GGUFReader

    try:
        with path.open("rb") as file:
            magic = file.read(4)
        if magic != b"GGUF":
            raise ConvertError(f"{path}: no GGUF file: it starts with {magic!r}, expected b'GGUF'.")
        return GGUFReader(path)
    except ConvertError:
        raise
    except Exception as error:  # the reader indexes and decodes whatever the file says
        raise ConvertError(f"{path}: the GGUF file is damaged or cut short: {first_line(error)}") from error


def gguf_string(reader: Any, key: str) -> str:
    """A string of the file's metadata, "" where there is none."""
    field = reader.get_field(key)
    value = field.contents() if field else ""
    return value if isinstance(value, str) else ""


def gguf_number(reader: Any, key: str) -> float:
    """A number of the file's metadata, 0 where there is none."""
    field = reader.get_field(key)
    value = field.contents() if field else 0
    return value if isinstance(value, int | float) else 0
