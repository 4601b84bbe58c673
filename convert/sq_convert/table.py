"""Tables as a file has them: in f16, or as codes of 8 bits times a row's scale (docs/FORMAT.md section 2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .fitlib import library, pointer

LARGEST_CODE = 127  # as convert/refine.c has it
LARGEST_SCALE = 515.5  # beyond it the largest code is more than f16 holds, in which accelerators keep entries


def rounded(table: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """The entries nearest to those of ``table`` ``[n_rows, k]`` that 8 bits give."""
    largest = np.abs(table.astype(np.float32)).max(axis=1, keepdims=True)
    scale = np.minimum((largest / LARGEST_CODE).astype(np.float16), np.float16(LARGEST_SCALE))
    larger = np.minimum(np.nextafter(scale, np.float16(np.inf)), np.float16(LARGEST_SCALE))
    wide = np.where(LARGEST_CODE * scale.astype(np.float32) < largest, larger, scale).astype(np.float32)
    codes = np.rint(np.divide(table, wide, out=np.zeros(table.shape, np.float32), where=wide > 0))
    return np.asarray(np.clip(codes, -LARGEST_CODE, LARGEST_CODE) * wide, np.float32)


def table_parts(table: NDArray[np.floating[Any]], table_bits: int) -> dict[str, NDArray[Any]]:
    """The parts ``lut`` and, with 8 bits, ``lut_scale``; with these ``table`` is one that :func:`rounded` or
    refinement gave."""
    if table_bits == 16:
        return {"lut": table.astype(np.float16)}
    largest = np.abs(table).max(axis=1)
    codes, scales = np.zeros(table.shape, np.int8), np.zeros(len(table), np.float16)
    left = np.flatnonzero(largest)
    for top in range(LARGEST_CODE, 0, -1):  # the largest entry's code: seldom another than the first
        scale = np.maximum((largest[left] / np.float32(top)).astype(np.float16), np.float16(6e-8))
        wide = scale.astype(np.float32)[:, None]
        found = np.clip(np.rint(table[left] / wide), -LARGEST_CODE, LARGEST_CODE)
        exact = (found * wide == table[left]).all(axis=1)
        codes[left[exact]], scales[left[exact]] = found[exact].astype(np.int8), scale[exact]
        left = left[~exact]
        if not len(left):
            return {"lut": codes, "lut_scale": scales}
    raise ValueError("entries that 8 bits do not give")


def table_of(parts: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
    """The entries that the parts ``lut`` and perhaps ``lut_scale`` stand for, ``[n_rows, k]``."""
    table = parts["lut"].astype(np.float32)
    return table * parts["lut_scale"].astype(np.float32)[:, None] if "lut_scale" in parts else table


def values_of(table: NDArray[np.float32], indices: NDArray[np.uint8], threads: int) -> NDArray[np.float32]:
    """The weights ``[n_rows, n_cols]`` that ``indices`` choose from their rows' tables ``[n_rows, k]``."""
    values = np.empty(indices.shape, np.float32)
    library().sq_table_values(
        pointer(table, np.float32),
        pointer(indices, np.uint8),
        *indices.shape,
        table.shape[1],
        threads,
        pointer(values, np.float32),
    )
    return values


def sums_of(
    values: NDArray[np.float32], indices: NDArray[np.uint8], k: int, threads: int
) -> NDArray[np.float32]:
    """Of each entry of the rows' tables the sum of the ``values`` with its index, ``[n_rows, k]``."""
    sums = np.empty((len(values), k), np.float32)
    library().sq_table_sums(
        pointer(values, np.float32, indices.shape),
        pointer(indices, np.uint8),
        *indices.shape,
        k,
        threads,
        pointer(sums, np.float32),
    )
    return sums


def table_bits_of(method: str) -> int:
    """Of an entry in the file; the original's method has f16."""
    return 16 if method == "squeezellm" else 8


def table_bytes(k: int, table_bits: int) -> int:
    """Of a row's table in the file."""
    return 2 * k if table_bits == 16 else k + 2
