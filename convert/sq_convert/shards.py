"""Files of weights, read in part: safetensors, and what torch.save writes. No pickle is executed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .errors import ConvertError, count, first_line, some

_FLOATS = ("F64", "F32", "F16", "BF16")
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_SINGLES = ("model.safetensors", "pytorch_model.bin")


class Shard(Protocol):
    """A file of named tensors."""

    path: Path
    shapes: dict[str, tuple[int, ...]]

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """Elements ``start`` to ``stop`` of a tensor's first dimension, in f32."""


class WeightFiles:
    """The shards of one checkpoint, as one set of tensors."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._shard_of: dict[str, Shard] = {}
        for path in paths:
            shard = open_shard(path)
            self.shapes |= shard.shapes
            self._shard_of |= dict.fromkeys(shard.shapes, shard)

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """As :meth:`Shard.read_rows`."""
        return self._shard_of[name].read_rows(name, start, stop)


def open_shard(path: Path) -> Shard:
    """Opens a file by its ending; ConvertError where it is damaged."""
    return SafetensorsShard(path) if path.suffix == ".safetensors" else TorchShard(path)


def find_shards(folder: Path) -> list[Path]:
    """The weight files of a Hugging Face folder, if it has any; ConvertError where some are missing."""
    for name in _INDEXES:
        if (folder / name).is_file():
            weights = read_json(folder / name, "").get("weight_map")
            if not isinstance(weights, dict) or not weights:
                raise ConvertError(f"{folder / name}: no weight_map in it; download the file again.")
            shards = [folder / str(name) for name in sorted(set(weights.values()))]
            missing = [shard.name for shard in shards if not shard.is_file() or shard.parent != folder]
            if missing:
                raise ConvertError(
                    f"{folder}: {count(missing, 'shard is', 'shards are')} missing: {some(missing)}; the "
                    "download is incomplete."
                )
            return shards
    return [folder / name for name in _SINGLES if (folder / name).is_file()][:1]


class SafetensorsShard:
    """A .safetensors file, mapped anew for each piece, so that what was read does not stay in memory."""

    def __init__(self, path: Path) -> None:
        from safetensors import SafetensorError, safe_open

        self.path = path
        self.shapes = {}
        try:
            with safe_open(path, framework="numpy") as file:
                for name in file.keys():  # noqa: SIM118 (no mapping)
                    piece = file.get_slice(name)
                    if piece.get_dtype() not in _FLOATS:
                        raise ConvertError(
                            f"{path}: {name} is of type {piece.get_dtype()}; expected F32, F16 or BF16. The "
                            "model is quantized already: convert the original."
                        )
                    self.shapes[name] = tuple(piece.get_shape())
        except (SafetensorError, OSError, ValueError) as error:
            raise ConvertError(f"{path}: damaged or no safetensors file: {first_line(error)}") from error

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        import torch
        from safetensors import safe_open

        with safe_open(self.path, framework="pt") as file:
            values: NDArray[np.float32] = file.get_slice(name)[start:stop].to(torch.float32).numpy()
        return values


class TorchShard:
    """A file of torch.save whose tensors are all weights, such as pytorch_model.bin."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.shapes = {}
        with torch_tensors(path) as entries:
            for name, value in entries.items():
                if not is_float_tensor(value):
                    raise ConvertError(
                        f"{path}: {name} is no tensor of floating-point numbers; expected the weights of an "
                        "unquantized model."
                    )
                self.shapes[name] = tuple(value.shape)

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        import torch

        with torch_tensors(self.path) as entries:
            values: NDArray[np.float32] = entries[name][start:stop].to(torch.float32, copy=True).numpy()
        return values


@contextmanager
def torch_tensors(path: Path) -> Iterator[dict[str, Any]]:
    """The dictionary in a file of torch.save, its tensors mapped from disk while the context lasts.

    The pickle inside is interpreted by PyTorch's restricted reader, which builds tensors and plain values and
    calls nothing. ConvertError where that is not enough, or the file is damaged.
    """
    import torch

    try:
        entries = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # the reader raises whatever a strange file leads to
        raise ConvertError(
            f"{path}: damaged, or not a dictionary of tensors as torch.save has written it since 2020; "
            "nothing else is read, since it could run code."
        ) from error
    if not isinstance(entries, dict) or not all(isinstance(name, str) for name in entries):
        raise ConvertError(f"{path}: holds no dictionary of tensors by name; expected a checkpoint.")
    yield entries


def is_float_tensor(value: Any) -> bool:
    """Whether an entry is an ordinary tensor of floating-point numbers."""
    import torch

    return (
        isinstance(value, torch.Tensor)
        and value.layout == torch.strided
        and value.dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)
    )


def read_json(path: Path, absent: str) -> dict[str, Any]:
    """A JSON object from a file; ConvertError with ``absent`` where there is no file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConvertError(absent) from None
    except (OSError, ValueError) as error:
        raise ConvertError(f"{path}: not readable as JSON: {first_line(error)}") from error
    if not isinstance(value, dict):
        raise ConvertError(f"{path}: expected a JSON object, found {type(value).__name__}.")
    return value
