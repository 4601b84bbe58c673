# mypy: allow-untyped-decorators
"""The blocks of refine_torch.py, a kernel each: a GPU takes longer to start one of the small operations that
they are made of than to run it.

A program is one warp and has ROWS rows of the matrix, a row a thread. What it holds has the shape
``[…, ROWS]``: so a thread has all of its row's numbers, and sums over them stay in its registers. In memory
rows lie side by side, ``[n, n_rows]``: what a warp reads at a time lies together.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS = 32
OPTIONS = {"num_warps": 1, "maxnreg": 255}  # programs are too few for a GPU to run out of registers


def round_block(
    values: Tensor, feedback: Tensor, factor: Tensor, table: Tensor, kept: Tensor
) -> tuple[Tensor, Tensor]:
    """As refine_torch.round_block; all tensors but ``factor`` are contiguous."""
    indices, moves = torch.empty_like(values, dtype=torch.long), torch.empty_like(values)
    _launch(_round, factor, table, values, feedback, kept, indices, moves)
    return indices, moves


def descend_block(
    indices: Tensor, gradient: Tensor, hessian: Tensor, table: Tensor, movable: Tensor
) -> tuple[Tensor, Tensor]:
    """As refine_torch.descend_block; all tensors but ``hessian`` are contiguous."""
    found, moves = torch.empty_like(indices), torch.empty_like(gradient)
    _launch(_descend, hessian, table, indices, gradient, movable, found, moves)
    return found, moves


def _launch(kernel: triton.JITFunction, matrix: Tensor, table: Tensor, *columns: Tensor) -> None:
    assert all(tensor.is_contiguous() for tensor in columns)
    (k, n_rows), n = table.shape, len(matrix)
    sizes = {"n_columns": triton.next_power_of_2(n), "n_entries": triton.next_power_of_2(k), "n_lanes": ROWS}
    grid = (triton.cdiv(n_rows, ROWS),)
    kernel[grid](matrix, matrix.stride(0), table.contiguous(), k, *columns, n, n_rows, **sizes, **OPTIONS)


@triton.jit
def _round(
    factor: tl.tensor,  # [n, n], its rows `stride` apart
    stride: int,
    table: tl.tensor,  # [k, n_rows]
    k: int,
    values: tl.tensor,  # [n, n_rows], as all that follows
    feedback: tl.tensor,
    kept: tl.tensor,
    indices: tl.tensor,  # out, like `moves`
    moves: tl.tensor,
    n: int,
    n_rows: int,
    n_columns: tl.constexpr,  # at least n; a power of two, like n_entries, which is at least k
    n_entries: tl.constexpr,
    n_lanes: tl.constexpr,
) -> None:
    row = _row(n_rows, n_lanes)
    entries, borders = _table(table, k, row, n_rows, n_entries)
    moved = tl.zeros([n_columns, n_lanes], tl.float32)
    for i in range(n):
        at = i * n_rows + row
        value = tl.load(values + at)
        told = tl.load(feedback + at) + _heard(factor, stride, i, moved)
        index, entry = _nearest(value - told, entries, borders)
        move = tl.where(tl.load(kept + at), 0, entry - value)
        moved = tl.where(tl.arange(0, n_columns)[:, None] == i, move[None, :], moved)
        tl.store(indices + at, index)
        tl.store(moves + at, move)


@triton.jit
def _descend(
    hessian: tl.tensor,  # [n, n], its rows `stride` apart
    stride: int,
    table: tl.tensor,  # [k, n_rows]
    k: int,
    indices: tl.tensor,  # [n, n_rows], as all that follows
    gradient: tl.tensor,
    movable: tl.tensor,
    found: tl.tensor,  # out, like `moves`
    moves: tl.tensor,
    n: int,
    n_rows: int,
    n_columns: tl.constexpr,
    n_entries: tl.constexpr,
    n_lanes: tl.constexpr,
) -> None:
    row = _row(n_rows, n_lanes)
    entries, borders = _table(table, k, row, n_rows, n_entries)
    moved = tl.zeros([n_columns, n_lanes], tl.float32)
    for i in range(n):
        at = i * n_rows + row
        before = tl.load(indices + at)
        here = tl.sum(tl.where(tl.arange(0, n_entries)[:, None] == before[None, :], entries, 0), axis=0)
        told = tl.load(gradient + at) + _heard(hessian, stride, i, moved)
        best = here - told / tl.load(hessian + i * stride + i)
        index, entry = _nearest(best, entries, borders)
        moves_there = tl.load(movable + at) & (tl.abs(entry - best) < tl.abs(here - best))
        move = tl.where(moves_there, entry - here, 0)
        moved = tl.where(tl.arange(0, n_columns)[:, None] == i, move[None, :], moved)
        tl.store(found + at, tl.where(moves_there, index, before))
        tl.store(moves + at, move)


@triton.jit
def _row(n_rows: int, n_lanes: tl.constexpr) -> tl.tensor:
    """The program's rows; in place of those past the end the last one, so that it is computed several times.
    (Since Triton does not see that they follow each other, it gives a thread one of them, never four.)"""
    return tl.minimum(tl.program_id(0) * n_lanes + tl.arange(0, n_lanes), n_rows - 1)


@triton.jit
def _table(
    table: tl.tensor, k: int, row: tl.tensor, n_rows: int, n_entries: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """Entries, and the midpoints between each and the one before; past the k-th both are infinite."""
    e = tl.arange(0, n_entries)[:, None]
    at = table + e * n_rows + row[None, :]
    entries = tl.load(at, e < k, float("inf"))
    before = tl.load(at - n_rows, (e > 0) & (e < k), 0)
    return entries, (before + entries) / 2


@triton.jit
def _heard(matrix: tl.tensor, stride: int, i: int, moved: tl.tensor) -> tl.tensor:
    """What column i hears of those before it: Σ matrix[j, i] moved[j]."""
    j = tl.arange(0, moved.shape[0])
    weights = tl.load(matrix + j * stride + i, j < i, 0)
    return tl.sum(weights[:, None] * moved, axis=0)


@triton.jit
def _nearest(x: tl.tensor, entries: tl.tensor, borders: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """Index and value of the entry nearest to x: since entries ascend, the last whose border is below x."""
    reached = (tl.arange(0, entries.shape[0])[:, None] == 0) | (x[None, :] > borders)
    index = tl.sum(reached.to(tl.int32), axis=0) - 1
    return index, tl.max(tl.where(reached, entries, float("-inf")), axis=0)
