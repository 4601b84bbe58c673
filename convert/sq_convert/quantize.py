"""One matrix: kept weights out, tables fitted, indices packed. And back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .cluster import cluster_rows
from .outliers import kept_by_inputs, kept_weights
from .pack import pack, row_bytes, unpack
from .refine import Curvature, curvature_of, refine_rows
from .table import rounded, table_bits_of, table_bytes, table_of, table_parts

F16_MAX = 65504.0
PARTS = ("codes", "lut", "lut_scale", "rows", "cols", "vals")
SAMPLE = 32  # rows that an estimate looks at


@dataclass(frozen=True)
class Recipe:
    """How matrices are quantized."""

    bits: int  # of pack.WIDTHS
    method: str  # of options.METHODS
    outliers: float  # percent
    sensitive: float  # percent


def quantize_matrix(
    values: NDArray[np.float32],
    measured: NDArray[np.float32] | None,
    recipe: Recipe,
    threads: int,
    torch_device: str | None = None,
) -> dict[str, NDArray[Any]]:
    """The tensors of docs/FORMAT.md section 2 for a matrix ``[n_out, n_in]``, by part.

    ``measured`` is what the method's measure (measure.py) has summed, or None where it has none. The parts
    ``rows``, ``cols`` and ``vals`` are absent where no weight is kept. ``torch_device``: where PyTorch fits
    the tables; None: the C library does.
    """
    known = _known(measured, recipe, torch_device)
    kept = _kept(values, known, recipe)
    table, indices = _fit(values, kept, known, recipe, threads, torch_device)
    return assemble(values, kept, table, indices, recipe.bits, table_bits_of(recipe.method))


def estimate_losses(
    values: NDArray[np.float32], measured: NDArray[np.float32], recipes: Sequence[Recipe], threads: int
) -> list[float]:
    """How much the errors of each recipe cost, ½ Σ (ŵ - w)ᵀ H (ŵ - w) over the rows, from SAMPLE of them. The
    recipes are of one method.

    H is what the method has measured, or the diagonal matrix of it. Only ratios between matrices of one
    calibration mean something.
    """
    rows = np.unique(np.linspace(0, len(values) - 1, SAMPLE).astype(np.intp))
    sample, known = values[rows], _known(measured, recipes[0], None)
    costs = []
    for recipe in recipes:
        kept = _kept(values, known, recipe)[rows]
        guided = isinstance(known, Curvature)
        table, indices = _fit(sample, kept, known if guided else measured[rows], recipe, threads, None)
        decoded = np.take_along_axis(table.astype(np.float32), indices.astype(np.intp), axis=1)
        error = np.where(kept, 0, decoded - sample)
        weighed = error @ measured if guided else error * measured[rows]
        cost = float(np.sum(error * weighed, dtype=np.float64))
        costs.append(max(0.0, cost) / 2 * len(values) / len(rows))
    return costs


Known = NDArray[np.float32] | Curvature | None  # of a matrix, besides its weights


def _known(measured: NDArray[np.float32] | None, recipe: Recipe, torch_device: str | None) -> Known:
    if recipe.method != "guided":
        return measured
    assert measured is not None
    return curvature_of(measured, torch_device)


def _kept(values: NDArray[np.float32], known: Known, recipe: Recipe) -> NDArray[np.bool_]:
    """Mask of the weights that the file keeps exactly."""
    if isinstance(known, Curvature):
        return kept_by_inputs(values, known.diagonal, recipe.outliers)
    return kept_weights(values, known if recipe.sensitive else None, recipe.outliers, recipe.sensitive)


def _fit(
    values: NDArray[np.float32],
    kept: NDArray[np.bool_],
    known: Known,
    recipe: Recipe,
    threads: int,
    torch_device: str | None,
) -> tuple[NDArray[Any], NDArray[np.uint8]]:
    """Tables and indices of rows; of `guided` those that lower the errors of all the inputs together."""
    k = 2**recipe.bits
    if not isinstance(known, Curvature):
        if recipe.method == "rtn":
            table, indices = _uniform_rows(values, kept, k)
        else:
            table, indices, _ = cluster_rows(values, known, kept, k, threads, torch_device)
        return table if table_bits_of(recipe.method) == 16 else rounded(table), indices
    table, indices, _ = cluster_rows(values, known.diagonal, kept, k, threads, torch_device)
    return refine_rows(values, known, kept, table, indices, threads, torch_device)[:2]


def assemble(
    values: NDArray[np.float32],
    kept: NDArray[np.bool_],
    table: NDArray[np.floating[Any]],
    indices: NDArray[np.uint8],
    bits: int,
    table_bits: int,
) -> dict[str, NDArray[Any]]:
    """The parts of a matrix of these tables ``[n_out, 2^bits]``, indices and exactly kept ``values``."""
    parts: dict[str, NDArray[Any]] = {"codes": pack(indices, bits), **table_parts(table, table_bits)}
    if kept.any():
        parts |= _sparse_parts(values, kept, table, indices)
    return parts


def decode_matrix(parts: Mapping[str, NDArray[Any]], n_in: int, bits: int) -> NDArray[np.float32]:
    """The matrix that a runtime sees: table entries plus kept values, in f32."""
    indices = unpack(parts["codes"], n_in, bits)
    values = np.take_along_axis(table_of(parts), indices.astype(np.intp), axis=1)
    row, column, differences = sparse_values(parts)
    values[row, column] += differences
    return values


def sparse_values(
    parts: Mapping[str, NDArray[Any]],
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
    """Rows and columns of the kept weights, and what each has more than its table entry."""
    if "rows" not in parts:
        return np.zeros(0, np.intp), np.zeros(0, np.intp), np.zeros(0, np.float32)
    row = np.repeat(np.arange(len(parts["rows"]) - 1), np.diff(parts["rows"]))
    column = parts["cols"].view(np.uint16) if parts["cols"].dtype == np.int16 else parts["cols"]
    return row, column.astype(np.intp), parts["vals"].astype(np.float32)


def part_bytes(shape: tuple[int, ...], bits: int, table_bits: int, n_sparse: int) -> int:
    """Bytes of a quantized matrix in the file, padding not counted."""
    n_out, n_in = shape
    column_bytes = 2 if _column_type(n_in) is np.int16 else 4
    sparse = 4 * (n_out + 1) + n_sparse * (column_bytes + 2) if n_sparse else 0
    return n_out * (row_bytes(n_in, bits) + table_bytes(1 << bits, table_bits)) + sparse


def _sparse_parts(
    values: NDArray[np.float32],
    kept: NDArray[np.bool_],
    table: NDArray[np.floating[Any]],
    indices: NDArray[np.uint8],
) -> dict[str, NDArray[Any]]:
    row, column = np.nonzero(kept)
    dense = table[row, indices[row, column]].astype(np.float32)
    rows = np.zeros(len(values) + 1, np.int32)
    np.cumsum(kept.sum(axis=1), out=rows[1:])
    column_type = _column_type(values.shape[1])
    columns = column.astype(np.uint16).view(np.int16) if column_type is np.int16 else column.astype(np.int32)
    return {"rows": rows, "cols": columns, "vals": (values[row, column] - dense).astype(np.float16)}


def _column_type(n_in: int) -> type[np.int16] | type[np.int32]:
    return np.int16 if n_in <= 65536 else np.int32


def _uniform_rows(
    values: NDArray[np.float32], kept: NDArray[np.bool_], k: int
) -> tuple[NDArray[np.float16], NDArray[np.uint8]]:
    """Round to nearest: ``k`` entries, evenly from a row's least to its largest value that is not kept."""
    low = np.where(kept, np.inf, values).min(axis=1, keepdims=True)
    high = np.where(kept, -np.inf, values).max(axis=1, keepdims=True)
    low, high = np.where(low > high, 0, low), np.where(low > high, 0, high)  # a row that is wholly kept
    table = (low + (high - low) * np.linspace(0, 1, k, dtype=np.float32)).astype(np.float16)
    entries = table.astype(np.float32)
    indices = np.zeros(values.shape, np.uint8)
    for j in range(1, k):  # entries ascend: past each midpoint the next one is nearer
        middle = (entries[:, j - 1 : j].astype(np.float64) + entries[:, j : j + 1]) / 2
        below = middle.astype(np.float32)  # the f32 at or below it: exact, and several times as quick
        below = np.where(below > middle, np.nextafter(below, -np.inf, dtype=np.float32), below)
        indices += values > below
    return table, indices
