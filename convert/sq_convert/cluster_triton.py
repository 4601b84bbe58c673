# mypy: allow-untyped-decorators
"""What takes longest in cluster_torch.py, in one kernel: the costs that it compares need not be stored."""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl
from torch import Tensor

if TYPE_CHECKING:
    from .cluster_torch import _Points

LANES = 128  # costs that a program, which is one warp, computes at a time


def level(
    points: _Points, head: Tensor, c: int, last: Tensor, step: int, best: Tensor, starts: Tensor
) -> None:
    """As cluster_torch.level."""
    arrays = (points.w, points.s, points.q, head, last, best, starts)
    assert all(array.is_contiguous() for array in arrays)
    n_rows, width = head.shape
    n_lanes = min(LANES, 2 * step)  # of the costs that are compared for a number there are as many on average
    n_numbers = LANES // n_lanes
    grid = (n_rows, triton.cdiv(width, 2 * step * n_numbers))
    _level[grid](*arrays, width, c, step, n_numbers=n_numbers, n_lanes=n_lanes, num_warps=1)


@triton.jit(do_not_specialize=("c", "step"))
def _level(
    w: tl.tensor,  # [n_rows, width], like `s`, `q` and `head`
    s: tl.tensor,
    q: tl.tensor,
    head: tl.tensor,
    last: tl.tensor,  # [n_rows]
    best: tl.tensor,  # in and out: [n_rows, width], like `starts`
    starts: tl.tensor,
    width: int,
    c: int,
    step: int,
    n_numbers: tl.constexpr,
    n_lanes: tl.constexpr,
) -> None:
    row = tl.program_id(0)
    number = tl.program_id(1) * n_numbers + tl.arange(0, n_numbers)
    i = step * (2 * number + 1)
    is_number = i < width
    first = row.to(tl.int64) * width  # where the row lies
    at = first + i
    end = tl.load(last + row).to(tl.int32)
    low = tl.load(starts + at - step, is_number & (i - step >= c), c - 1).to(tl.int32)
    high = tl.minimum(tl.load(starts + at + step, i + step <= end, i - 1).to(tl.int32), i - 1)
    high = tl.where((i >= c) & (i <= end), high, -1)
    w_i, s_i = tl.load(w + at, is_number, 0)[:, None], tl.load(s + at, is_number, 0)[:, None]
    least = tl.full([n_numbers, n_lanes], float("inf"), tl.float64)
    start = tl.zeros([n_numbers, n_lanes], tl.int32) + width
    for ahead in range(0, tl.max(high - low) + 1, n_lanes):
        j = low[:, None] + ahead + tl.arange(0, n_lanes)[None, :]
        is_one = j <= high[:, None]
        weight = w_i - tl.load(w + first + j, is_one, 0)
        moment = s_i - tl.load(s + first + j, is_one, 0)
        gain = tl.where(weight > 0, moment * moment / weight, 0)
        cost = tl.load(head + first + j, is_one, float("inf")) - gain
        start = tl.where(cost < least, j, start)
        least = tl.minimum(cost, least)
    least_of_all = tl.min(least, axis=1)
    start = tl.min(tl.where(least == least_of_all[:, None], start, width), axis=1)
    tl.store(best + at, least_of_all + tl.load(q + at, is_number, 0), is_number)
    tl.store(starts + at, tl.minimum(start, width - 1), is_number)
