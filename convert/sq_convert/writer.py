"""The output file: GGUF through the gguf package, tensor by tensor, whole or not at all."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter
from numpy.typing import NDArray

from .errors import ConvertError
from .workfolder import write_atomically

ALIGNMENT = 64
FORMAT_VERSION = 1
Q8_BLOCK, Q8_BLOCK_BYTES = 32, 34


@dataclass(frozen=True)
class Entry:
    """One tensor of the output: its header, and how to get its data."""

    name: str
    shape: tuple[int, ...]  # of `dtype` elements; of bytes for Q8_0
    dtype: Any
    load: Callable[[], Iterable[NDArray[Any]]]  # in pieces along the first dimension
    type: GGMLQuantizationType | None = None  # where the dtype does not say it

    @property
    def n_bytes(self) -> int:
        return math.prod(self.shape) * int(np.dtype(self.dtype).itemsize)


def file_bytes(entries: Sequence[Entry]) -> int:
    """Bytes of the tensors in the file, padding included."""
    return sum(GGUFWriter.ggml_pad(entry.n_bytes, ALIGNMENT) for entry in entries)


def write_file(
    out: Path,
    architecture: str,
    add_keys: Callable[[GGUFWriter], None],
    entries: Sequence[Entry],
    advance: Callable[[int], object],
) -> None:
    """Writes OUT.partial, then gives it the final name. ``advance`` hears of bytes as they are written."""

    def write(path: Path) -> None:
        writer = GGUFWriter(path, architecture)
        try:
            writer.add_custom_alignment(ALIGNMENT)
            add_keys(writer)
            for entry in entries:
                writer.add_tensor_info(
                    entry.name, entry.shape, np.dtype(entry.dtype), entry.n_bytes, entry.type
                )
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for entry in entries:
                pieces: Any = _Pieces(entry, advance)
                writer.write_tensor_data(pieces)
        finally:
            writer.close()

    write_atomically(out, write)


class _Pieces:
    """What GGUFWriter asks of an array, without the array in memory."""

    def __init__(self, entry: Entry, advance: Callable[[int], object]) -> None:
        self._entry, self._advance = entry, advance
        self.nbytes = entry.n_bytes

    def tofile(self, file: BinaryIO) -> None:
        written = 0
        for piece in self._entry.load():
            if piece.dtype != self._entry.dtype or piece.shape[1:] != self._entry.shape[1:]:
                raise ConvertError(
                    f"{self._entry.name}: {piece.shape} {piece.dtype}, announced as {self._entry.shape}."
                )
            piece.tofile(file)
            written += piece.nbytes
            self._advance(piece.nbytes)
        if written != self.nbytes:
            raise ConvertError(f"{self._entry.name}: {written} bytes, announced as {self.nbytes}.")


def add_numbers(writer: GGUFWriter, keys: Mapping[str, bool | int | float | list[int]]) -> None:
    """Stores int as u32, float as f32, bool as itself and a list as i32."""
    for key, value in keys.items():
        if isinstance(value, list):
            writer.add_key_value(key, value, GGUFValueType.ARRAY, GGUFValueType.INT32)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        else:
            writer.add_float32(key, value)


def add_text(writer: GGUFWriter, key: str, text: str) -> None:
    """Stores a string, the empty one too."""
    writer.add_key_value(key, text, GGUFValueType.STRING)


def add_u32_array(writer: GGUFWriter, key: str, values: Sequence[int]) -> None:
    writer.add_key_value(key, list(values), GGUFValueType.ARRAY, GGUFValueType.UINT32)


def add_json(writer: GGUFWriter, key: str, value: Any) -> None:
    """Stores compact JSON with sorted keys."""
    add_text(writer, key, json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False))


def table_entry(
    name: str, shape: tuple[int, ...], bits: int, read: Callable[[], Iterable[NDArray[np.float32]]]
) -> Entry:
    """An embedding or head: Q8_0 for 8 bits where rows are a multiple of its blocks, else F16."""
    if bits == 8 and shape[1] % Q8_BLOCK == 0:
        stored = (shape[0], shape[1] // Q8_BLOCK * Q8_BLOCK_BYTES)
        q8 = GGMLQuantizationType.Q8_0
        return Entry(name, stored, np.uint8, lambda: (gguf.quants.quantize(rows, q8) for rows in read()), q8)
    return f16_entry(name, shape, read)


def f16_entry(name: str, shape: tuple[int, ...], read: Callable[[], Iterable[NDArray[np.float32]]]) -> Entry:
    return Entry(name, shape, np.float16, lambda: (rows.astype(np.float16) for rows in read()))


def f32_entry(name: str, shape: tuple[int, ...], read: Callable[[], Iterable[NDArray[np.float32]]]) -> Entry:
    return Entry(name, shape, np.float32, read)
