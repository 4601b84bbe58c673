"""One-dimensional k-means of matrix rows: the C library ``sq_cluster`` through cffi (convert/cluster.h)."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import cffi
import numpy as np
from numpy.typing import NDArray

from .errors import ConvertError

_DECLARATION = """
int sq_cluster_rows(const float *values, const float *weights, const uint8_t *kept, uint32_t n_rows,
                    uint32_t n_cols, uint32_t k, uint32_t n_threads, uint16_t *table, uint8_t *indices,
                    double *errors);
"""
_NAMES = ("libsq_cluster.so", "libsq_cluster.dylib")


class Clusters(NamedTuple):
    """Tables and indices of a matrix's rows."""

    table: NDArray[np.float16]  # [n_rows, k], ascending
    indices: NDArray[np.uint8]  # [n_rows, n_cols], the nearest entry
    errors: NDArray[np.float64]  # [n_rows, 2]: of the exact optimum, of the rounded table


def cluster_rows(
    values: NDArray[np.float32],
    weights: NDArray[np.float32] | None,
    kept: NDArray[np.bool_] | None,
    k: int,
    threads: int,
) -> Clusters:
    """Weighted k-means of each row of ``values`` ``[n_rows, n_cols]`` into ``k`` entries, exact.

    ``weights`` (None: all 1) and ``kept`` (True: stays out of the clustering) have the same shape. What
    happens to rows without weight or with few values, convert/cluster.h says.
    """
    ffi, library = _load()
    n_rows, n_cols = values.shape
    table = np.empty((n_rows, k), np.float16)
    indices = np.empty((n_rows, n_cols), np.uint8)
    errors = np.empty((n_rows, 2), np.float64)

    def pointer(array: NDArray[Any] | None, ctype: str, dtype: type) -> Any:
        if array is None:
            return ffi.NULL
        if array.shape[0] != n_rows or array.dtype != dtype or not array.flags.c_contiguous:
            raise TypeError(f"cluster_rows wants contiguous {dtype.__name__} arrays of {n_rows} rows")
        return ffi.cast(ctype, ffi.from_buffer(array))

    status = library.sq_cluster_rows(
        pointer(values, "const float *", np.float32),
        pointer(weights, "const float *", np.float32),
        pointer(kept, "const uint8_t *", np.bool_),
        n_rows,
        n_cols,
        k,
        max(1, threads),
        pointer(table, "uint16_t *", np.float16),
        pointer(indices, "uint8_t *", np.uint8),
        pointer(errors, "double *", np.float64),
    )
    if status:
        raise MemoryError("sq_cluster_rows ran out of memory")
    return Clusters(table, indices, errors)


@functools.cache
def _load() -> tuple[cffi.FFI, Any]:
    ffi = cffi.FFI()
    ffi.cdef(_DECLARATION)
    for path in _candidates():
        if path.is_file():
            return ffi, ffi.dlopen(str(path))
    raise ConvertError(
        "The library libsq_cluster is missing: install the package with `pip install .`, or build the cmake "
        "target sq_cluster into the source tree's build directory."
    )


def _candidates() -> Iterator[Path]:
    """Beside the package (an editable install has two places), then in the source tree's build directory."""
    from . import __path__ as package_path

    for folder in package_path:
        yield from (Path(folder) / name for name in _NAMES)
    build = Path(__file__).parents[2] / "build"
    for name in _NAMES:
        yield from sorted(build.glob(f"**/{name}"))
