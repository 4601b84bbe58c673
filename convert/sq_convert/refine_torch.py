"""What convert/refine.c computes, on any device of PyTorch: all rows at once, the same up to rounding."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .table_torch import nearest, rounded, scale_of

COLUMNS = 64  # of which the errors are settled before the other columns hear of them
SWEEPS = 4
ROUNDED = 2  # times that a table's entries are rounded one after the other
RIDGE = 1e-7  # of the mean of PᵀHP's diagonal: with it an entry that nothing uses stays


class _Problem(NamedTuple):
    """Columns come first: what is done column by column lies together."""

    values: Tensor  # [n_cols, n_rows]
    hessian: Tensor  # [n_cols, n_cols]
    factor: Tensor  # [n_cols, n_cols]
    kept: Tensor  # bool [n_cols, n_rows]


class _Fit(NamedTuple):
    table: Tensor  # [k, n_rows], ascending entries that 8 bits give
    indices: Tensor  # long [n_cols, n_rows]
    gradient: Tensor  # [n_cols, n_rows] H error
    objective: Tensor  # f64 [n_rows]


def refine(
    values: Tensor,
    hessian: Tensor,
    factor: Tensor,
    kept: Tensor | None,
    table: Tensor,
    indices: Tensor,
    n_steps: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Table, indices, objectives after ``n_steps`` roundings and as many descents: see convert/refine.h."""
    none = torch.zeros_like(values, dtype=torch.bool)
    kept = (none if kept is None else kept).T.contiguous()
    problem = _Problem(values.T.contiguous(), hessian, factor, kept)
    fit = _measured(problem, rounded(table, dim=1).T.contiguous(), indices.long().T.contiguous())
    objectives = [fit.objective]
    steps: list[Callable[[_Problem, _Fit], _Fit]] = [_round] * n_steps + [_descend] * n_steps
    changed = torch.ones_like(fit.objective, dtype=torch.bool)  # since a row's table was fitted
    for step in steps:
        found = step(problem, fit)
        objectives.append(found.objective)
        changed |= (found.indices != fit.indices).any(dim=0)
        fit = _fit_table(problem, found, changed) if changed.any() else found
        changed = torch.zeros_like(changed)
        objectives.append(fit.objective)
    indices = torch.where(problem.kept, _nearest(_middles(fit.table), problem.values), fit.indices)
    return fit.table.T, indices.T.to(torch.uint8), torch.stack(objectives, dim=1)


def _middles(table: Tensor) -> Tensor:
    """Between neighbouring entries, ``[n_rows, k - 1]``."""
    return ((table[:-1] + table[1:]) / 2).T.contiguous()


def _nearest(middles: Tensor, x: Tensor) -> Tensor:
    """Entries ascend: the number of midpoints below x, ``[n_cols, n_rows]``."""
    return torch.searchsorted(middles, x.T.contiguous()).T


def _errors(problem: _Problem, table: Tensor, indices: Tensor) -> Tensor:
    return (table.gather(0, indices) - problem.values).masked_fill_(problem.kept, 0)


def _measured(problem: _Problem, table: Tensor, indices: Tensor) -> _Fit:
    errors = _errors(problem, table, indices)
    gradient = problem.hessian @ errors
    return _Fit(table, indices, gradient, (errors.double() * gradient.double()).sum(dim=0))


def _better(fit: _Fit, other: _Fit) -> _Fit:
    """Of each row the better one; `fit` itself where no row of `other` is better."""
    better = other.objective < fit.objective
    if not better.any():
        return fit
    return _Fit(*(torch.where(better, new, old) for new, old in zip(other, fit, strict=True)))


def _round(problem: _Problem, fit: _Fit) -> _Fit:
    """Finds indices anew, column by column, and takes those that are better."""
    n = len(problem.values)
    feedback = torch.zeros_like(problem.values)
    indices, middles = torch.empty_like(fit.indices), _middles(fit.table)
    for first in range(0, n, COLUMNS):
        last = min(first + COLUMNS, n)
        moves = torch.zeros_like(problem.values[first:last])
        for i in range(first, last):
            indices[i] = _nearest(middles, (problem.values[i] - feedback[i])[None])[0]
            move = fit.table.gather(0, indices[i : i + 1])[0] - problem.values[i]
            moves[i - first] = move.masked_fill(problem.kept[i], 0)
            feedback[i + 1 : last] += problem.factor[i, i + 1 : last, None] * moves[i - first]
        feedback[last:] += problem.factor[first:last, last:].T @ moves
    return _better(fit, _measured(problem, fit.table, indices))


def _descend(problem: _Problem, fit: _Fit) -> _Fit:
    """Moves indices one column at a time, each to what is best while all others stay."""
    n = len(problem.values)
    indices, gradient, middles = fit.indices.clone(), fit.gradient.clone(), _middles(fit.table)
    diagonal = problem.hessian.diagonal()
    movable = ~problem.kept & (diagonal > 0)[:, None]
    changed = False
    for _ in range(SWEEPS):
        before = indices.clone()
        for first in range(0, n, COLUMNS):
            last = min(first + COLUMNS, n)
            local, moves = gradient[first:last].clone(), torch.zeros_like(gradient[first:last])
            for i in range(first, last):
                here = fit.table.gather(0, indices[i : i + 1])[0]
                best = here - local[i - first] / diagonal[i]
                index = _nearest(middles, best[None])[0]
                entry = fit.table.gather(0, index[None])[0]
                moves_there = movable[i] & ((entry - best).abs() < (here - best).abs())
                indices[i] = torch.where(moves_there, index, indices[i])
                moves[i - first] = torch.where(moves_there, entry - here, 0)
                local[i - first + 1 :] += problem.hessian[i, i + 1 : last, None] * moves[i - first]
            gradient += problem.hessian[:, first:last] @ moves
        if torch.equal(before, indices):
            break
        changed = True
    return _measured(problem, fit.table, indices) if changed else fit


def _fit_table(problem: _Problem, fit: _Fit, rows: Tensor) -> _Fit:
    """Takes the tables that are best for the indices, rounded to 8 bits, where that helps the rows of a mask:
    they are x further, (PᵀHP + εI) x = -Pᵀ gradient."""
    k, n_rows = fit.table.shape
    used = (~problem.kept).double()
    products = torch.zeros(k, k, n_rows, dtype=torch.float64, device=fit.table.device)
    for e in range(k):
        chosen = ((fit.indices == e) & ~problem.kept).float()
        products[e].scatter_add_(0, fit.indices, (problem.hessian @ chosen).double() * used)
    products = products.permute(2, 0, 1)
    trace = products.diagonal(dim1=1, dim2=2).sum(dim=1)
    matrix = products + torch.diag_embed((RIDGE * trace / k)[:, None].expand(-1, k))
    right = torch.zeros(k, n_rows, dtype=torch.float64, device=fit.table.device)
    right.scatter_add_(0, fit.indices, -fit.gradient.double() * used)
    lower, failed = torch.linalg.cholesky_ex(matrix)
    solved = (failed == 0) & (trace > 0)
    lower = torch.where(solved[:, None, None], lower, torch.eye(k, dtype=lower.dtype, device=lower.device))
    step = torch.cholesky_solve(right.T[:, :, None], lower)[:, :, 0].T
    best = torch.where(solved, fit.table.double() + step, fit.table.double())
    table, order = _rounded_together(products, right, fit.table, best).sort(dim=0, stable=True)
    indices = order.argsort(dim=0).gather(0, fit.indices)
    found = _measured(problem, table, indices)
    return _better(fit, found._replace(objective=found.objective.where(rows, torch.inf)))


def _rounded_together(products: Tensor, right: Tensor, before: Tensor, best: Tensor) -> Tensor:
    """Tables ``[k, n_rows]`` near ``best``, each entry in turn the one that costs least beside the others.
    ``products``: PᵀHP ``[n_rows, k, k]``; ``right``: -Pᵀ gradient of the tables ``before``."""
    scale = scale_of(best, dim=0).double()
    table = nearest(best, scale).double()
    for _ in range(ROUNDED):
        for e in range(len(table)):
            pull = right[e] - (products[:, e] * (table - before).T).sum(dim=1)
            target = table[e] + (pull / products[:, e, e]).nan_to_num(0, 0, 0)
            table[e] = nearest(target, scale[0]).double()
    return table.float()
