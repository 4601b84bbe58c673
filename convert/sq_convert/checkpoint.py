"""Checkpoints to convert: a Hugging Face folder of safetensors, or a GGUF file; read tensor by tensor."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .arch import Family, Kind, Tensor
from .errors import ConvertError, count, some
from .folder import FolderCheckpoint
from .gguf_file import GgufCheckpoint
from .official import OfficialCheckpoint
from .options import PACKED_SUFFIXES
from .quantize import F16_MAX

ROWS_AT_ONCE_WEIGHTS = 1 << 20  # read or converted at a time, so that large vocabularies take no memory


class Checkpoint(Protocol):
    """A model as it lies on disk."""

    path: Path
    name: str  # for people: general.name
    family: Family
    config: Any  # a transformers configuration

    def files(self) -> list[Path]:
        """Every file that the result depends on."""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor that the checkpoint holds, by the checkpoint's own names."""

    def own_name(self, tensor: Tensor) -> str:
        """What the checkpoint calls a tensor."""

    def read_raw(self, tensor: Tensor, start: int, stop: int) -> NDArray[np.float32]:
        """Rows ``start`` to ``stop`` of a tensor in f32, in Hugging Face's order; of a vector, elements."""

    def tokenizer(self) -> Any:
        """A transformers tokenizer."""

    def source(self) -> dict[str, Any]:
        """Further JSON files of the checkpoint by name, kept for --dequantize."""


def open_checkpoint(path: Path, config: Path | None = None) -> Checkpoint:
    """Opens a folder or a file, reading no weights; ``config`` is the folder that a packed file lacks.

    Raises ConvertError where it is neither, or damaged, or of an architecture that is not supported.
    """
    if path.is_dir():
        return FolderCheckpoint(path)
    if not path.is_file():
        raise ConvertError(
            f"{path}: no such file or folder. MODEL is a Hugging Face folder, a .gguf file or a packed .pt."
        )
    return OfficialCheckpoint(path, config) if path.suffix in PACKED_SUFFIXES else GgufCheckpoint(path)


def check_tensors(checkpoint: Checkpoint) -> list[Tensor]:
    """The model's tensors; ConvertError unless the checkpoint holds each in its right shape, and no other."""
    tensors = checkpoint.family.tensors(checkpoint.config)
    shapes = checkpoint.shapes()
    if not shapes:
        raise ConvertError(
            f"{checkpoint.path}: there are no weights in it; expected model.safetensors, pytorch_model.bin "
            "or the index of their shards."
        )
    missing = [name for name in map(checkpoint.own_name, tensors) if name not in shapes]
    if missing:
        raise ConvertError(
            f"{checkpoint.path}: {count(missing, 'tensor is', 'tensors are')} missing: {some(missing)}. "
            "The checkpoint is incomplete, or its configuration belongs to another one."
        )
    for tensor in tensors:
        name = checkpoint.own_name(tensor)
        shape = tensor.shape if name == tensor.name else tensor.source_shape
        if shapes[name] != shape:
            raise ConvertError(
                f"{checkpoint.path}: {name} has shape {list(shapes[name])}; the configuration implies "
                f"{list(shape)}."
            )
    known = set(map(checkpoint.own_name, tensors))
    unknown = [name for name in shapes if name not in known and not checkpoint.family.ignored(name)]
    if unknown:
        raise ConvertError(
            f"{checkpoint.path}: {count(unknown, 'tensor has', 'tensors have')} no place in this "
            f"architecture: {some(unknown)}. Left out, the model would compute something else."
        )
    return tensors


def row_blocks(shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """Cuts the first dimension into ranges of at most ROWS_AT_ONCE_WEIGHTS weights."""
    step = max(1, ROWS_AT_ONCE_WEIGHTS // math.prod(shape[1:]))
    for start in range(0, shape[0], step):
        yield start, min(start + step, shape[0])


def read_rows(checkpoint: Checkpoint, tensor: Tensor, start: int, stop: int) -> NDArray[np.float32]:
    """Rows of the tensor in f32, contiguous; finite, and where f16 will store them within its range."""
    values = np.require(checkpoint.read_raw(tensor, start, stop), np.float32, ("C",))
    largest = max(float(values.max()), -float(values.min())) if values.size else 0.0
    name = checkpoint.own_name(tensor)
    if not math.isfinite(largest):
        raise ConvertError(
            f"{checkpoint.path}: {name} holds a value that is no finite number; it is damaged."
        )
    if tensor.kind is not Kind.VECTOR and largest > F16_MAX:
        raise ConvertError(
            f"{checkpoint.path}: {name} holds {largest:g}; the file's f16 values end at {F16_MAX:.0f}."
        )
    return values


def read_tensor(checkpoint: Checkpoint, tensor: Tensor) -> NDArray[np.float32]:
    """The whole tensor, as :func:`read_rows` does it."""
    values = np.empty(tensor.shape, np.float32)
    for start, stop in row_blocks(tensor.shape):
        values[start:stop] = read_rows(checkpoint, tensor, start, stop)
    return values
