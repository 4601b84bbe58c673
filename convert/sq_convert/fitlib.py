"""The C library ``sq_fit`` through cffi: convert/cluster.h, convert/refine.h and convert/table.h."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cffi
import numpy as np
from numpy.typing import NDArray

from .errors import ConvertError

_DECLARATIONS = """
int sq_cluster_rows(const float *values, const float *weights, const uint8_t *kept, uint32_t n_rows,
                    uint32_t n_cols, uint32_t k, uint32_t n_threads, uint16_t *table, uint8_t *indices,
                    double *errors);
int sq_refine_rows(const float *values, const float *hessian, const float *factor, const uint8_t *kept,
                   uint32_t n_rows, uint32_t n_cols, uint32_t k, uint32_t n_threads, float *table,
                   uint8_t *indices, double *objective);
void sq_table_values(const float *table, const uint8_t *indices, uint32_t n_rows, uint32_t n_cols,
                     uint32_t k, uint32_t n_threads, float *values);
void sq_table_sums(const float *values, const uint8_t *indices, uint32_t n_rows, uint32_t n_cols,
                   uint32_t k, uint32_t n_threads, float *sums);
"""
_NAMES = ("libsq_fit.so", "libsq_fit.dylib")
_CTYPES = {
    "float32": "float[]",
    "float64": "double[]",
    "float16": "uint16_t[]",
    "uint8": "uint8_t[]",
    "bool": "uint8_t[]",
}
_ffi = cffi.FFI()
_ffi.cdef(_DECLARATIONS)


@functools.cache
def library() -> Any:
    """The loaded library; ConvertError where it was not built."""
    for path in _candidates():
        if path.is_file():
            return _ffi.dlopen(str(path))
    raise ConvertError(
        "The library libsq_fit is missing: install the package with `pip install .`, or build the cmake "
        "target sq_fit into the source tree's build directory."
    )


def pointer(array: NDArray[Any] | None, dtype: type, shape: tuple[int, ...] | None = None) -> Any:
    """A contiguous array of this type (and shape) for C, kept alive by the result; NULL for None."""
    if array is None:
        return _ffi.NULL
    if array.dtype != dtype or not array.flags.c_contiguous or shape not in (None, array.shape):
        raise TypeError(f"expected a contiguous {np.dtype(dtype)} array, shape {shape or 'any'}")
    return _ffi.from_buffer(_CTYPES[array.dtype.name], array)


def _candidates() -> Iterator[Path]:
    """Beside the package (an editable install has two places), then in the source tree's build directory."""
    from . import __path__ as package_path

    for folder in package_path:
        yield from (Path(folder) / name for name in _NAMES)
    build = Path(__file__).parents[2] / "build"
    for name in _NAMES:
        yield from sorted(build.glob(f"**/{name}"))
