"""The output file: GGUF through the gguf package, tensor by tensor, whole or not at all."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter
from numpy.typing import NDArray

from .errors import ConvertError
from .workfolder import write_atomically

ALIGNMENT = 64
FORMAT_VERSION = 1
Q8_BLOCK, Q8_BLOCK_BYTES = 32, 34
ROWS_AT_ONCE_WEIGHTS = 1 << 24  # weights converted at a time


@dataclass(frozen=True)
class Entry:
    """One tensor of the output: its header, and how to get its data."""

    name: str
    shape: tuple[int, ...]  # of `dtype` elements; of bytes for Q8_0
    dtype: Any
    load: Callable[[], NDArray[Any]]
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
                data = entry.load()
                if data.shape != entry.shape or data.dtype != entry.dtype:
                    raise ConvertError(
                        f"{entry.name}: {data.shape} {data.dtype}, announced as {entry.shape}."
                    )
                writer.write_tensor_data(data)
                advance(data.nbytes)
        finally:
            writer.close()

    write_atomically(out, write)


def add_numbers(writer: GGUFWriter, keys: dict[str, int | float]) -> None:
    """Stores int as u32 and float as f32."""
    for key, value in keys.items():
        if isinstance(value, int):
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
    name: str, shape: tuple[int, ...], bits: int, read: Callable[[], NDArray[np.float32]]
) -> Entry:
    """An embedding or head: Q8_0 for 8 bits where rows are a multiple of its blocks, else F16."""
    if bits == 8 and shape[1] % Q8_BLOCK == 0:
        stored = (shape[0], shape[1] // Q8_BLOCK * Q8_BLOCK_BYTES)
        return Entry(name, stored, np.uint8, lambda: _quantize_q8(read(), stored), GGMLQuantizationType.Q8_0)
    return f16_entry(name, shape, read)


def f16_entry(name: str, shape: tuple[int, ...], read: Callable[[], NDArray[np.float32]]) -> Entry:
    return Entry(name, shape, np.float16, lambda: read().astype(np.float16))


def f32_entry(name: str, shape: tuple[int, ...], read: Callable[[], NDArray[np.float32]]) -> Entry:
    return Entry(name, shape, np.float32, read)


def _quantize_q8(values: NDArray[np.float32], stored: tuple[int, ...]) -> NDArray[np.uint8]:
    result = np.empty(stored, np.uint8)
    step = max(1, ROWS_AT_ONCE_WEIGHTS // values.shape[1])
    for row in range(0, len(values), step):
        result[row : row + step] = gguf.quants.quantize(values[row : row + step], GGMLQuantizationType.Q8_0)
    return result
