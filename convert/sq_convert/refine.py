"""Tables and indices fitted to a matrix's errors together, H = Xᵀ diag(s) X (convert/refine.h)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .fitlib import library, pointer

N_OBJECTIVES = 17  # SQ_REFINE_OBJECTIVES
DAMPING = 1e-5  # of the mean of H's diagonal is added to it
ROUNDING_DAMPING = 1e-2  # the same of what the rounding goes by


class Refined(NamedTuple):
    """Tables and indices of a matrix's rows, and how they were found."""

    table: NDArray[np.float16]  # [n_rows, k], ascending
    indices: NDArray[np.uint8]  # [n_rows, n_cols]
    objective: NDArray[np.float64]  # [n_rows, steps]: of the start and after each step, never rising


def refine_rows(
    values: NDArray[np.float32],
    hessian: NDArray[np.float32],
    kept: NDArray[np.bool_] | None,
    table: NDArray[np.float16],
    indices: NDArray[np.uint8],
    threads: int,
) -> Refined:
    """Lowers ``(ŵ - w)ᵀ H (ŵ - w)`` of each row of ``values`` ``[n_rows, n_cols]``, H ``[n_cols, n_cols]``,
    from a first ``table`` and ``indices``, which stay as they are. ``kept`` weights have no error.
    """
    n_rows, n_cols = values.shape
    if not hessian.any():  # inputs that no token has: nothing is worse than anything else
        return Refined(table, indices, np.zeros((n_rows, N_OBJECTIVES)))
    order = np.argsort(-np.diag(hessian), kind="stable")  # what matters most is settled first
    hessian = hessian[np.ix_(order, order)]
    table, shuffled = table.copy(), np.ascontiguousarray(indices[:, order])
    objective = np.empty((n_rows, N_OBJECTIVES), np.float64)
    status = library().sq_refine_rows(
        pointer(np.ascontiguousarray(values[:, order]), np.float32),
        pointer(_damped(hessian, DAMPING), np.float32, (n_cols, n_cols)),
        pointer(_rounding_factor(hessian), np.float32, (n_cols, n_cols)),
        pointer(None if kept is None else np.ascontiguousarray(kept[:, order]), np.bool_),
        n_rows,
        n_cols,
        table.shape[1],
        max(1, threads),
        pointer(table, np.float16),
        pointer(shuffled, np.uint8, values.shape),
        pointer(objective, np.float64),
    )
    if status:
        raise MemoryError("sq_refine_rows ran out of memory")
    refined = np.empty_like(indices)
    refined[:, order] = shuffled
    return Refined(table, refined, objective)


def _damped(hessian: NDArray[np.float32], damping: float) -> NDArray[np.float32]:
    damped: NDArray[np.float32] = hessian.copy()
    np.fill_diagonal(damped, np.diag(hessian) + damping * np.mean(np.diag(hessian)))
    return damped


def _rounding_factor(hessian: NDArray[np.float32]) -> NDArray[np.float32]:
    """M of H = M D Mᵀ, upper triangular with a unit diagonal: Cholesky's factor of H read backwards."""
    damped = _damped(hessian, ROUNDING_DAMPING)[::-1, ::-1].astype(np.float64)
    lower = np.linalg.cholesky(damped)
    factor: NDArray[np.float32]
    factor = np.ascontiguousarray((lower / np.diag(lower))[::-1, ::-1], np.float32)
    return factor
