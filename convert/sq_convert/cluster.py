"""One-dimensional k-means of matrix rows (convert/cluster.h)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .fitlib import library, pointer


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
    torch_device: str | None = None,
) -> Clusters:
    """Weighted k-means of each row of ``values`` ``[n_rows, n_cols]`` into ``k`` entries, exact.

    ``weights`` (None: all 1; ``[n_cols]``: in each row the same) and ``kept`` (True: stays out of the
    clustering) have the same shape. What happens to rows without weight or with few values, convert/cluster.h
    says. ``torch_device``: where PyTorch computes it; None: the C library does.
    """
    if torch_device:
        from . import cluster_torch as on_torch

        arrays = on_torch.tensor(values, torch_device), on_torch.tensor(weights, torch_device)
        found = on_torch.cluster(*arrays, on_torch.tensor(kept, torch_device), k)
        return Clusters(*(part.cpu().numpy() for part in found))
    n_rows, n_cols = values.shape
    wide = None if weights is None else np.ascontiguousarray(np.broadcast_to(weights, values.shape))
    table = np.empty((n_rows, k), np.float16)
    indices = np.empty((n_rows, n_cols), np.uint8)
    errors = np.empty((n_rows, 2), np.float64)

    status = library().sq_cluster_rows(
        pointer(values, np.float32),
        pointer(wide, np.float32, values.shape),
        pointer(kept, np.bool_, values.shape),
        n_rows,
        n_cols,
        k,
        max(1, threads),
        pointer(table, np.float16),
        pointer(indices, np.uint8),
        pointer(errors, np.float64),
    )
    if status:
        raise MemoryError("sq_cluster_rows ran out of memory")
    return Clusters(table, indices, errors)
