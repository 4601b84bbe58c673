"""What convert/refine.c computes, on any device of PyTorch: all rows at once, the same up to rounding."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .gpu import runs_triton
from .refine import DAMPING, ROUNDING_DAMPING, SHRINKAGE
from .table_torch import nearest, rounded, scale_of

COLUMNS = 64  # of which the errors are settled before the other columns hear of them
SWEEPS = 4
ROUNDED = 2  # times that a table's entries are rounded one after the other
RIDGE = 1e-7  # of the mean of PᵀHP's diagonal: with it an entry that nothing uses stays


class Steps(NamedTuple):
    """What is done column by column, of the columns of a block."""

    round_block: Callable[..., tuple[Tensor, Tensor]]
    descend_block: Callable[..., tuple[Tensor, Tensor]]


class _Problem(NamedTuple):
    """Columns come first: what is done column by column lies together."""

    steps: Steps
    values: Tensor  # [n_cols, n_rows]
    hessian: Tensor  # [n_cols, n_cols]
    factor: Tensor  # [n_cols, n_cols]
    kept: Tensor  # bool [n_cols, n_rows]


class _Fit(NamedTuple):
    table: Tensor  # [k, n_rows], ascending entries that 8 bits give
    indices: Tensor  # long [n_cols, n_rows]
    gradient: Tensor  # [n_cols, n_rows] H error
    objective: Tensor  # f64 [n_rows]


def curvature(hessian: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
    """What refine.curvature_of makes of H as it was measured: H and its factor, columns in ``order``."""
    diagonal = hessian.diagonal()[order]
    shrunk = hessian[order][:, order] * (1 - SHRINKAGE)

    def damped(damping: float) -> Tensor:
        result = shrunk.clone()
        result.diagonal().copy_(diagonal + damping * diagonal.mean())
        return result

    backwards = damped(ROUNDING_DAMPING).flip(0, 1).double()
    lower = torch.linalg.cholesky(backwards)
    factor = (lower / lower.diagonal()).flip(0, 1).float().triu(1)
    return damped(DAMPING), factor


def refine(
    n_steps: int,
    hessian: Tensor,
    factor: Tensor,
    order: Tensor,
    values: Tensor,
    kept: Tensor | None,
    table: Tensor,
    indices: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Table, indices, objectives after ``n_steps`` roundings and as many descents: see convert/refine.h. Of H
    and its factor the columns are in ``order``, of nothing else."""
    kept = torch.zeros_like(values, dtype=torch.bool) if kept is None else kept
    values, kept, indices = (part.T.index_select(0, order) for part in (values, kept, indices))
    problem = _Problem(_steps(values.device.type), values, hessian, factor, kept)
    fit = _measured(problem, rounded(table, dim=1).T.contiguous(), indices.long())
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
    indices = torch.where(kept, _nearest(_middles(fit.table), values), fit.indices).to(torch.uint8)
    indices = indices.index_select(0, order.argsort())
    return fit.table.T.contiguous(), indices.T.contiguous(), torch.stack(objectives, dim=1)


def _steps(device_type: str) -> Steps:
    """On a GPU one kernel each: it takes longer to start the small operations here than to run them."""
    if runs_triton(device_type):
        from . import refine_triton as kernels

        return Steps(kernels.round_block, kernels.descend_block)
    return Steps(round_block, descend_block)


def _blocks(problem: _Problem) -> Iterator[slice]:
    n = len(problem.values)
    return (slice(first, min(first + COLUMNS, n)) for first in range(0, n, COLUMNS))


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


def round_block(
    values: Tensor, feedback: Tensor, factor: Tensor, table: Tensor, kept: Tensor
) -> tuple[Tensor, Tensor]:
    """Indices of the columns of a block, found one after the other, and their errors, which the later ones
    hear of. All are the block's: ``factor`` ``[n, n]``, but for the ``table`` the others ``[n, n_rows]``."""
    indices, moves = torch.empty_like(values, dtype=torch.long), torch.zeros_like(values)
    middles = _middles(table)
    for i in range(len(values)):
        told = feedback[i] + factor[:i, i] @ moves[:i]
        indices[i] = _nearest(middles, (values[i] - told)[None])[0]
        error = table.gather(0, indices[i : i + 1])[0] - values[i]
        moves[i] = error.masked_fill(kept[i], 0)
    return indices, moves


def descend_block(
    indices: Tensor, gradient: Tensor, hessian: Tensor, table: Tensor, movable: Tensor
) -> tuple[Tensor, Tensor]:
    """The same where there are indices: a column moves to what is best while all others stay. Its move is by
    how much its entry changes."""
    indices, moves = indices.clone(), torch.zeros_like(gradient)
    middles = _middles(table)
    for i in range(len(indices)):
        here = table.gather(0, indices[i : i + 1])[0]
        best = here - (gradient[i] + hessian[:i, i] @ moves[:i]) / hessian[i, i]
        index = _nearest(middles, best[None])[0]
        entry = table.gather(0, index[None])[0]
        moves_there = movable[i] & ((entry - best).abs() < (here - best).abs())
        indices[i] = torch.where(moves_there, index, indices[i])
        moves[i] = torch.where(moves_there, entry - here, 0)
    return indices, moves


def _round(problem: _Problem, fit: _Fit) -> _Fit:
    """Finds indices anew, column by column, and takes those that are better."""
    feedback, indices = torch.zeros_like(problem.values), torch.empty_like(fit.indices)
    round_block = problem.steps.round_block
    for block in _blocks(problem):
        factor = problem.factor[block]
        indices[block], moves = round_block(
            problem.values[block], feedback[block], factor[:, block], fit.table, problem.kept[block]
        )
        feedback[block.stop :].addmm_(factor[:, block.stop :].T, moves)
    return _better(fit, _measured(problem, fit.table, indices))


def _descend(problem: _Problem, fit: _Fit) -> _Fit:
    """Moves indices one column at a time, each to what is best while all others stay."""
    indices, gradient = fit.indices.clone(), fit.gradient.clone()
    movable = ~problem.kept & (problem.hessian.diagonal() > 0)[:, None]
    descend_block = problem.steps.descend_block
    changed = False
    for _ in range(SWEEPS):
        before = indices.clone()
        for block in _blocks(problem):
            hessian = problem.hessian[block]
            indices[block], moves = descend_block(
                indices[block], gradient[block], hessian[:, block], fit.table, movable[block]
            )
            gradient.addmm_(hessian.T, moves)
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
