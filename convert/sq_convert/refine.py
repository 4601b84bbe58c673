"""Tables and indices fitted to a matrix's errors together, H = Xᵀ diag(s) X (convert/refine.h)."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .fitlib import library, pointer
from .table import rounded

N_OBJECTIVES = 13  # SQ_REFINE_OBJECTIVES
TILE_ROWS, TILE_COLUMNS = 64, 16  # SQ_REFINE_TILE_ROWS, SQ_REFINE_TILE_COLUMNS
DAMPING = 1e-5  # of the mean of H's diagonal is added to it
ROUNDING_DAMPING = 1e-2  # the same of what the rounding goes by
SHRINKAGE = 0.2  # what H loses off its diagonal: the less, the more tokens it is the sum of


class Refined(NamedTuple):
    """Tables and indices of a matrix's rows, and how they were found."""

    table: NDArray[np.float32]  # [n_rows, k], ascending, of 8 bits each (table.py)
    indices: NDArray[np.uint8]  # [n_rows, n_cols]
    objective: NDArray[np.float64]  # [n_rows, steps]: of the start and after each step, never rising


class Curvature(NamedTuple):
    """H ``[n_cols, n_cols]`` in the form that refinement takes it in; None where no token has any inputs."""

    diagonal: NDArray[np.float32]  # [n_cols] of H as it was measured
    order: NDArray[np.intp]  # [n_cols] of the columns: what matters most is settled first
    hessian: Any  # shrunk and damped, in that order, in f32; an array in tiles, or PyTorch's tensor
    factor: Any  # M of H = M D Mᵀ, the same


def curvature_of(hessian: NDArray[np.float32], torch_device: str | None = None) -> Curvature:
    """What rows with these moments of their inputs are refined by; ``torch_device`` as for refine_rows.

    H is shrunk towards its diagonal first: what its tokens happen to have in common off the diagonal is less
    certain than the diagonal is (J. Schäfer and K. Strimmer, "A shrinkage approach to large-scale covariance
    matrix estimation", 2005); docs/QUALITY.md has what that gains.
    """
    diagonal = np.diag(hessian).copy()
    order = np.argsort(-diagonal, kind="stable")
    if not hessian.any():  # nothing is worse than anything else
        return Curvature(diagonal, order, None, None)
    if torch_device:
        return Curvature(diagonal, order, *_curvature_on_torch(hessian, order, torch_device))
    shrunk = _shrunk(hessian[np.ix_(order, order)])
    factor, damped = _rounding_factor(shrunk), _damped(shrunk, DAMPING)
    del shrunk
    return Curvature(diagonal, order, _tiles(damped), _tiles(factor))


def refine_rows(
    values: NDArray[np.float32],
    curvature: Curvature,
    kept: NDArray[np.bool_] | None,
    table: NDArray[np.float16],
    indices: NDArray[np.uint8],
    threads: int,
    torch_device: str | None = None,
) -> Refined:
    """Lowers ``(ŵ - w)ᵀ H (ŵ - w)`` of each row of ``values`` ``[n_rows, n_cols]`` from a first ``table`` and
    ``indices``, which stay as they are. ``kept`` weights have no error. ``torch_device``: where PyTorch
    computes it; None: the C library does.
    """
    if curvature.hessian is None:
        return Refined(rounded(table), indices, np.zeros((len(values), N_OBJECTIVES)))
    wide = table.astype(np.float32)
    if torch_device:
        return _refine_on_torch(values, curvature, kept, wide, indices, torch_device)
    order = curvature.order
    values, indices = np.ascontiguousarray(values[:, order]), np.ascontiguousarray(indices[:, order])
    kept = None if kept is None else np.ascontiguousarray(kept[:, order])
    found = _refine_in_c(values, curvature, kept, wide, indices, threads)
    refined = np.empty_like(indices)
    refined[:, order] = found.indices
    return found._replace(indices=refined)


def _refine_in_c(
    values: NDArray[np.float32],
    curvature: Curvature,
    kept: NDArray[np.bool_] | None,
    table: NDArray[np.float32],
    indices: NDArray[np.uint8],
    threads: int,
) -> Refined:
    """Changes ``table`` and ``indices``."""
    n_rows, n_cols = values.shape
    objective = np.empty((n_rows, N_OBJECTIVES), np.float64)
    status = library().sq_refine_rows(
        pointer(values, np.float32),
        pointer(curvature.hessian, np.float32),
        pointer(curvature.factor, np.float32),
        pointer(kept, np.bool_),
        n_rows,
        n_cols,
        table.shape[1],
        max(1, threads),
        pointer(table, np.float32),
        pointer(indices, np.uint8, values.shape),
        pointer(objective, np.float64),
    )
    if status:
        raise MemoryError("sq_refine_rows ran out of memory")
    return Refined(table, indices, objective)


def _tiles(matrix: NDArray[np.float32]) -> NDArray[np.float32]:
    """A matrix ``[n, n]`` as convert/refine.h wants it: ``[n blocks, n panels, TILE_ROWS, TILE_COLUMNS]``."""
    n = len(matrix)
    n_blocks, n_panels = -(-n // TILE_ROWS), -(-n // TILE_ROWS) * TILE_ROWS // TILE_COLUMNS
    tiles = np.zeros((n_blocks, n_panels, TILE_ROWS, TILE_COLUMNS), np.float32)
    for panel in range(-(-n // TILE_COLUMNS)):
        columns = matrix[:, panel * TILE_COLUMNS : (panel + 1) * TILE_COLUMNS]
        padded = np.zeros((n_blocks * TILE_ROWS, TILE_COLUMNS), np.float32)
        padded[:n, : columns.shape[1]] = columns
        tiles[:, panel] = padded.reshape(n_blocks, TILE_ROWS, TILE_COLUMNS)
    return tiles


def _curvature_on_torch(
    hessian: NDArray[np.float32], order: NDArray[np.intp], device: str
) -> tuple[Any, Any]:
    from .cluster_torch import tensor
    from .refine_torch import curvature

    return curvature(tensor(hessian, device), tensor(order, device))


def _refine_on_torch(
    values: NDArray[np.float32],
    curvature: Curvature,
    kept: NDArray[np.bool_] | None,
    table: NDArray[np.float32],
    indices: NDArray[np.uint8],
    device: str,
) -> Refined:
    from .cluster_torch import tensor
    from .refine_torch import refine

    there = (tensor(array, device) for array in (curvature.order, values, kept, table, indices))
    found = refine((N_OBJECTIVES - 1) // 4, curvature.hessian, curvature.factor, *there)
    return Refined(*(part.cpu().numpy() for part in found))


def _shrunk(hessian: NDArray[np.float32]) -> NDArray[np.float32]:
    """In place."""
    diagonal = np.diag(hessian).copy()
    hessian *= np.float32(1 - SHRINKAGE)
    np.fill_diagonal(hessian, diagonal)
    return hessian


def _damped(hessian: NDArray[np.float32], damping: float) -> NDArray[np.float32]:
    damped: NDArray[np.float32] = hessian.copy()
    np.fill_diagonal(damped, np.diag(hessian) + damping * np.mean(np.diag(hessian)))
    return damped


def _rounding_factor(hessian: NDArray[np.float32]) -> NDArray[np.float32]:
    """M of H = M D Mᵀ above its unit diagonal: Cholesky's factor of H read backwards, an upper triangle."""
    damped = _damped(hessian, ROUNDING_DAMPING)[::-1, ::-1].astype(np.float64)
    lower = np.linalg.cholesky(damped)
    factor: NDArray[np.float32]
    factor = np.triu((lower / np.diag(lower))[::-1, ::-1].astype(np.float32), 1)
    return factor
