"""What convert/cluster.c computes, on any device of PyTorch: many rows at once, the same up to rounding.

Points that several rows have in different numbers stand side by side in ``[n_rows, n_points]``; those past a
row's end are not looked at.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .gpu import runs_triton

N_AT_ONCE = 1 << 22  # values; of the largest steps' arrays there are some ten times as many numbers
MAX_FITS = 32


class _Points(NamedTuple):
    """Of each row the values that differ, ascending, and prefix sums over them; x is centred."""

    n: Tensor  # [n_rows]
    values: Tensor  # [n_rows, n_points]
    weights: Tensor  # the same
    w: Tensor  # [n_rows, n_points + 1] of weight,
    s: Tensor  # of weight · x,
    q: Tensor  # of weight · x²


def cluster(
    values: Tensor, weights: Tensor | None, kept: Tensor | None, k: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Table (f16 ``[n_rows, k]``), indices (u8), errors (f64 ``[n_rows, 2]``): as cluster.py says."""
    n_rows, n_cols = values.shape
    weights = None if weights is None else weights.expand_as(values)
    n_step = max(1, N_AT_ONCE // n_cols)
    parts = []
    for row in range(0, n_rows, n_step):
        rows = slice(row, row + n_step)
        parts.append(
            _cluster_some(
                values[rows].double(),
                None if weights is None else weights[rows].double(),
                None if kept is None else kept[rows],
                k,
            )
        )
    table, indices, errors = (torch.cat(part) for part in zip(*parts, strict=True))
    return table, indices, errors


def _cluster_some(
    x: Tensor, weights: Tensor | None, kept: Tensor | None, k: int
) -> tuple[Tensor, Tensor, Tensor]:
    used = torch.ones_like(x, dtype=torch.bool) if kept is None else ~kept
    weight = used.double() if weights is None else torch.where(used, weights.clamp(min=0), 0)
    light = ~(weight > 0).any(dim=1, keepdim=True)  # a row without any weight has 1 everywhere,
    used = used | ~used.any(dim=1, keepdim=True)  # and one that is wholly kept counts as if nothing were
    weight = torch.where(light, used.double(), weight)
    points = _points(x, weight)
    table = _few(points, k) if points.values.shape[1] <= k else _solve(points, k)
    _, first_error = _assign(x, weight, table)[:2]
    table = _rounded(x, weight, table)
    indices, error = _assign(x, weight, table)[:2]
    return table.to(torch.float16), indices.to(torch.uint8), torch.stack((first_error, error), dim=1)


def _points(x: Tensor, weight: Tensor) -> _Points:
    n_rows = len(x)
    x, order = torch.where(weight > 0, x, torch.inf).sort(dim=1)
    weight = weight.gather(1, order)
    used = weight > 0
    new = used.clone()
    new[:, 1:] &= x[:, 1:] != x[:, :-1]
    place = new.cumsum(dim=1) - 1  # equal values share a point
    n = place[:, -1] + 1
    sums = torch.zeros(n_rows, int(n.max()), dtype=x.dtype, device=x.device)
    place = place.clamp(min=0)
    unit = used.sum(dim=1, keepdim=True) / weight.sum(dim=1, keepdim=True)  # mean weight 1
    weights = sums.scatter_add(1, place, weight * unit)
    values = sums.scatter_reduce(1, place, torch.where(used, x, -torch.inf), "amax", include_self=False)
    values = torch.where(weights > 0, values, 0)
    centre = (weights * values).sum(dim=1, keepdim=True) / weights.sum(dim=1, keepdim=True)
    centred = values - centre
    terms = (weights, weights * centred, weights * centred**2)
    w, s, q = (torch.nn.functional.pad(term.cumsum(dim=1), (1, 0)) for term in terms)
    return _Points(n, values, weights, w, s, q)


def _few(points: _Points, k: int) -> Tensor:
    """A table of all the points, of rows that have no more than k; the last one is repeated."""
    place = torch.arange(k, device=points.n.device).minimum(points.n[:, None] - 1)
    return points.values.gather(1, place)


def _least(points: _Points, head: Tensor, at: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """min over j in [low, high] of head[j] - (s[i] - s[j])² / (w[i] - w[j]), i in `at` ``[n]``, and the
    smallest such j. ``low`` and ``high`` are ``[n_rows, n]``; where low > high there is none."""
    n_rows, n = low.shape
    count = (high - low + 1).clamp(min=0).flatten()
    owner = torch.repeat_interleave(torch.arange(n_rows * n, device=at.device), count)
    start = count.cumsum(0) - count
    j = low.flatten()[owner] + torch.arange(len(owner), device=at.device) - start[owner]
    row = owner // n
    i = at[owner % n]
    w = points.w[row, i] - points.w[row, j]
    s = points.s[row, i] - points.s[row, j]
    cost = head[row, j] - torch.where(w > 0, s**2 / w, 0)
    least = torch.full((n_rows * n,), torch.inf, dtype=cost.dtype, device=at.device)
    least = least.scatter_reduce(0, owner, cost, "amin")
    candidate = torch.where(cost == least[owner], j, head.shape[1])
    smallest = torch.full_like(low.flatten(), head.shape[1]).scatter_reduce(0, owner, candidate, "amin")
    return least.view(n_rows, n), smallest.view(n_rows, n)


def level(
    points: _Points, head: Tensor, c: int, last: Tensor, step: int, best: Tensor, starts: Tensor
) -> None:
    """Fills in what :func:`_layer` says for i = step, 3 step, 5 step, …; for those between it is known."""
    n = points.values.shape[1]
    i = torch.arange(step, n + 1, 2 * step, device=head.device)
    low = torch.where(i - step >= c, starts[:, i - step], c - 1)
    above = starts[:, (i + step).clamp(max=n)]
    high = torch.where(i + step <= last[:, None], above.minimum(i - 1), i - 1)
    high = torch.where((i >= c) & (i <= last[:, None]), high, -1)
    least, start = _least(points, head, i, low, high)
    best[:, i] = least + points.q[:, i]
    starts[:, i] = start.clamp(max=n)


def _level_on(device_type: str) -> Callable[..., None]:
    """On a GPU one kernel, which does not store all the costs that it compares."""
    if runs_triton(device_type):
        from . import cluster_triton

        return cluster_triton.level
    return level


def _layer(points: _Points, head: Tensor, c: int, last: Tensor) -> tuple[Tensor, Tensor]:
    """The least costs of the first i points in c clusters, c <= i <= last; and where the last one starts.

    That never falls as i grows, so between two numbers whose starts are known it lies between these.
    """
    n_rows, n = points.values.shape
    best = torch.full((n_rows, n + 1), torch.inf, dtype=head.dtype, device=head.device)
    starts = torch.zeros((n_rows, n + 1), dtype=torch.long, device=head.device)
    fill = _level_on(head.device.type)
    for exponent in reversed(range(n.bit_length())):  # halvings of 0 … n
        fill(points, head, c, last, 1 << exponent, best, starts)
    return best, starts


def _solve(points: _Points, k: int) -> Tensor:
    """The means of the best k clusters of each row, ascending."""
    n = points.n
    best = torch.where(points.w > 0, points.q - points.s**2 / points.w, 0)
    starts = []
    for c in range(2, k + 1):
        best, start = _layer(points, best - points.q, c, n - (k - c))
        starts.append(start)
    end, ends = n[:, None], []
    for start in reversed(starts):
        end = start.gather(1, end.clamp(min=0))
        ends.append(end)
    borders = torch.cat(ends[::-1], dim=1) if ends else n[:, None][:, :0]
    places = torch.arange(points.values.shape[1], device=n.device).expand_as(points.values).contiguous()
    cluster = torch.searchsorted(borders.contiguous(), places, right=True)
    zeros = torch.zeros(len(n), k, dtype=best.dtype, device=n.device)
    weight = zeros.scatter_add(1, cluster, points.weights)
    means = zeros.scatter_add(1, cluster, points.weights * points.values) / weight
    return torch.where(n[:, None] > k, means, _few(points, k))


def _assign(x: Tensor, weight: Tensor, table: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The entry nearest to each value, the lower one at a tie; the error, and each entry's sums."""
    middles = (table[:, 1:] + table[:, :-1]) / 2
    nearest = torch.searchsorted(middles.contiguous(), x)
    chosen = table.gather(1, nearest)
    nearest = torch.searchsorted(table, chosen)  # of equal entries the first
    error = (weight * (x - chosen) ** 2).sum(dim=1)
    zeros = torch.zeros_like(table)
    return (
        nearest,
        error,
        zeros.scatter_add(1, nearest, weight),
        zeros.scatter_add(1, nearest, weight * x),
    )


def _rounded(x: Tensor, weight: Tensor, table: Tensor) -> Tensor:
    """In f16: entries move to the mean of their values as long as that helps."""
    tried = table.half().double()
    least = torch.full_like(table[:, 0], torch.inf)
    for _ in range(MAX_FITS):
        tried = tried.sort(dim=1).values
        _, error, weights, sums = _assign(x, weight, tried)
        better = error < least
        if not better.any():
            break
        least = torch.where(better, error, least)
        table = torch.where(better[:, None], tried, table)
        means = (sums / weights).half().double()
        tried = torch.where(better[:, None] & (weights > 0), means, tried)
    return table


def tensor(array: Any, device: str) -> Tensor | None:
    """An array on the device; None stays None."""
    return None if array is None else torch.from_numpy(array).to(device)
