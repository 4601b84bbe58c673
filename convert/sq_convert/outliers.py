"""Which weights are kept exactly: the largest, and the most sensitive, of a matrix."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def kept_by_inputs(
    values: NDArray[np.float32], moments: NDArray[np.float32], outliers: float
) -> NDArray[np.bool_]:
    """Mask ``[n_out, n_in]`` of the ``outliers`` percent that are largest, weighed a little by their inputs'
    ``moments`` ``[n_in]``, where there are any; docs/QUALITY.md has what that gains.
    """
    sizes = np.abs(values)
    return largest(sizes * moments**0.125 if moments.any() else sizes, _count(values, outliers))


def kept_weights(
    values: NDArray[np.float32], fisher: NDArray[np.float32] | None, outliers: float, sensitive: float
) -> NDArray[np.bool_]:
    """Mask ``[n_out, n_in]`` of the weights that leave the clustering.

    ``outliers`` percent of the matrix by magnitude, ``sensitive`` percent by Fisher information; a weight may
    be both. SqueezeLLM (arXiv 2306.07629, section 4.2, and the authors' code) takes the weights whose
    magnitude is above T = max(abs(Q1 - r IQR), abs(Q3 + r IQR)) and leaves r to be tuned until the share is
    right. T grows with r without a gap, so that some r yields every share: it keeps the largest weights.
    """
    kept = largest(np.abs(values), _count(values, outliers))
    if fisher is not None and sensitive > 0:
        kept |= largest(fisher, _count(values, sensitive)) & (fisher > 0)
    return kept


def largest(scores: NDArray[np.float32], n: int) -> NDArray[np.bool_]:
    """Mask of the ``n`` largest scores; among equal ones the first win."""
    flat = scores.reshape(-1)
    if n == 0:
        return np.zeros(scores.shape, np.bool_)
    threshold = np.partition(flat, flat.size - n)[flat.size - n]
    mask = flat > threshold
    ties = np.flatnonzero(flat == threshold)
    mask[ties[: n - int(mask.sum())]] = True
    result: NDArray[np.bool_] = mask.reshape(scores.shape)
    return result


def _count(values: NDArray[Any], percent: float) -> int:
    return round(values.size * percent / 100)
