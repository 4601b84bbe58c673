"""GGUF files as checkpoints to convert, their own quantization, if any, decoded."""

from __future__ import annotations

import contextlib
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arch import Tensor, family_of_model_type
from .errors import ConvertError, first_line
from .gguf_config import CONFIG_TENSORS, read_config

# Matrices that Phi-3's files hold in one, and which of them is not there then.
_FUSED = {"attn_q": ("attn_qkv", "attn_q"), "attn_k": ("attn_qkv", "attn_q"),
          "attn_v": ("attn_qkv", "attn_q"), "ffn_gate": ("ffn_up", "ffn_gate"),
          "ffn_up": ("ffn_up", "ffn_gate")}  # fmt: skip


class GgufCheckpoint:
    """A GGUF file of a supported architecture; its own quantization, if any, is decoded."""

    def __init__(self, path: Path) -> None:
        self.path = path
        reader = read_gguf(path)
        if reader.get_field("squeezellm.version"):
            raise ConvertError(f"{path} is quantized by SqueezeLLM already; --dequantize turns it back.")
        self.name = gguf_string(reader, "general.name") or path.stem
        # The reader itself is not kept: it holds an object for every token and merge, and maps the file.
        self._stored = {tensor.name: _Stored(tensor) for tensor in reader.tensors}
        self.config = read_config(
            gguf_string(reader, "general.architecture"),
            gguf_scalars(reader),
            {name: stored.shape for name, stored in self._stored.items()},
            lambda name: self._decode(name, 0, self._stored[name].n_rows).reshape(-1),
            str(path),
        )
        self.family = family_of_model_type(self.config.model_type)
        self.config.architectures = [self.family.model_class]
        self.family.check(self.config)
        self._places = {t.name: self._place(t) for t in self.family.tensors(self.config)}

    def files(self) -> list[Path]:
        return [self.path]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the model's tensors; of stored ones as they are where they do not make up the model's."""
        fused: dict[str, int] = {}
        for tensor in self.family.tensors(self.config):
            stored, _ = self._places[tensor.name]
            fused[stored] = fused.get(stored, 0) + tensor.n_weights
        shapes = {n: s.shape for n, s in self._stored.items() if n not in fused and n not in CONFIG_TENSORS}
        for tensor in self.family.tensors(self.config):
            stored, _ = self._places[tensor.name]
            if stored in self._stored:
                found = self._stored[stored]
                whole = math.prod(found.shape) == fused[stored] and found.shape[-1] == tensor.shape[-1]
                shapes[tensor.name] = tensor.shape if whole else found.shape
        return shapes

    def own_name(self, tensor: Tensor) -> str:
        return tensor.name

    def read_raw(self, tensor: Tensor, start: int, stop: int) -> NDArray[np.float32]:
        stored, row = self._places[tensor.name]
        if not tensor.rotary_heads:
            return self._decode(stored, row + start, row + stop)
        size = tensor.shape[0] // tensor.rotary_heads
        first, last = start // size, -(-stop // size)  # whole heads
        rows = _deinterleave(self._decode(stored, row + first * size, row + last * size), last - first)
        return rows[start - first * size : stop - first * size]

    def _place(self, tensor: Tensor) -> tuple[str, int]:
        """Which stored tensor holds one of the model's, and from which row on."""
        expert = re.fullmatch(r"(blk\.\d+\.ffn_\w+)\.(\d+)\.weight", tensor.name)
        if expert:
            return f"{expert[1]}_exps.weight", int(expert[2]) * tensor.shape[0]
        block, _, part = tensor.name.removesuffix(".weight").rpartition(".")
        fused, first = _FUSED.get(part, ("", "")) if tensor.source_rows else ("", "")
        if fused and f"{block}.{first}.weight" not in self._stored:
            return f"{block}.{fused}.weight", tensor.first_row
        return tensor.name, 0

    def _decode(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """Rows of a stored tensor, as they stand in the file."""
        try:
            return self._stored[name].read_rows(self.path, start, stop)
        except NotImplementedError as error:
            raise ConvertError(
                f"{self.path}: {name} is of type {self._stored[name].type.name}, which the gguf package "
                "cannot decode."
            ) from error

    def tokenizer(self) -> Any:
        from transformers import TOKENIZER_MAPPING, PreTrainedTokenizerFast

        from .tokenizer import repair_gguf_tokenizer

        try:
            # Not AutoTokenizer, which wants to read the configuration too, and knows fewer architectures.
            kind = TOKENIZER_MAPPING.get(type(self.config), PreTrainedTokenizerFast)
            tokenizer = kind.from_pretrained(
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


class _Stored:
    """Where a tensor lies in the file, and how."""

    def __init__(self, tensor: Any) -> None:
        self.type = tensor.tensor_type
        self.shape = tuple(int(n) for n in reversed(tensor.shape))
        self.offset = int(tensor.data_offset)

    @property
    def n_rows(self) -> int:
        """A vector is one element a row; of more than two dimensions, all but the last count rows."""
        return self.shape[0] if len(self.shape) == 1 else math.prod(self.shape[:-1])

    def read_rows(self, path: Path, start: int, stop: int) -> NDArray[np.float32]:
        """Decodes a range of rows, reading no more than that."""
        if len(self.shape) == 1:  # which blocks of a quantized type may not cut
            return self._decode(path, 0, 1)[0, start:stop]
        return self._decode(path, start, stop)

    def _decode(self, path: Path, start: int, stop: int) -> NDArray[np.float32]:
        from gguf import quants

        n_bytes = math.prod(quants.quant_shape_to_byte_shape(self.shape[-1:], self.type))
        n_rows = stop - start
        data = np.fromfile(path, np.uint8, n_rows * n_bytes, offset=self.offset + start * n_bytes)
        rows: NDArray[np.float32] = quants.dequantize(data.reshape(n_rows, n_bytes), self.type)
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
    except OSError as error:
        raise ConvertError(f"{path}: cannot be read: {error.strerror}; check the path.") from error
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


def gguf_scalars(reader: Any) -> dict[str, Any]:
    """The file's metadata that are no arrays; those that cannot be decoded are left out."""
    from gguf import GGUFValueType

    scalars = {}
    for key, field in reader.fields.items():
        if field.types and field.types[0] != GGUFValueType.ARRAY:
            with contextlib.suppress(UnicodeDecodeError):
                scalars[key] = field.contents()
    return scalars
