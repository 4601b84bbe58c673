"""Refinement against H: no step raises the objective, which is what numpy computes; small rows end well."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray
from sq_convert.cluster import cluster_rows
from sq_convert.quantize import PARTS, Recipe
from sq_convert.refine import DAMPING, SHRINKAGE, Refined, curvature_of, refine_rows
from sq_convert.table import LARGEST_CODE, rounded, table_of, table_parts
from sq_convert.workers import Task

Floats = NDArray[np.float32]


class Problem(NamedTuple):
    values: Floats  # [n_rows, n_cols]
    hessian: Floats  # [n_cols, n_cols]
    kept: NDArray[np.bool_]

    def start(self, k: int) -> tuple[NDArray[np.float16], NDArray[np.uint8]]:
        weights = np.ascontiguousarray(np.broadcast_to(np.diag(self.hessian), self.values.shape))
        table, indices, _ = cluster_rows(self.values, weights, self.kept, k, 1)
        return table, indices

    def refine(self, k: int, threads: int = 1, torch_device: str | None = None) -> Refined:
        curvature = curvature_of(self.hessian, torch_device)
        return refine_rows(self.values, curvature, self.kept, *self.start(k), threads, torch_device)

    def counted(self) -> NDArray[np.float64]:
        """H as it counts: shrunk towards its diagonal, damped."""
        diagonal = np.diag(self.hessian).astype(np.float64)
        hessian = self.hessian.astype(np.float64) * (1 - SHRINKAGE)
        np.fill_diagonal(hessian, diagonal + DAMPING * diagonal.mean())
        return hessian

    def objective(self, table: NDArray[np.floating[Any]], indices: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Of each row."""
        hessian = self.counted()
        decoded = np.take_along_axis(table.astype(np.float64), indices.astype(np.intp), axis=1)
        error = np.where(self.kept, 0, decoded - self.values)
        return np.asarray(np.einsum("ri,ij,rj->r", error, hessian, error))


def problem(n_rows: int, n_cols: int, kept: float = 0.02, seed: int = 0) -> Problem:
    """Inputs with strong correlations and very different scales, as activations have."""
    random = np.random.default_rng(seed)
    mix = random.standard_normal((n_cols, n_cols)) * np.exp(random.standard_normal(n_cols))
    x = random.standard_normal((4 * n_cols, n_cols)) @ mix
    hessian = 1e-9 * (x.T @ x) / len(x)
    values = random.standard_t(4, (n_rows, n_cols)) * 0.02
    return Problem(values.astype(np.float32), hessian.astype(np.float32), random.random(values.shape) < kept)


@pytest.mark.parametrize("k", [2, 8, 16])
@pytest.mark.parametrize(("n_rows", "n_cols"), [(1, 1), (3, 5), (9, 64), (17, 172), (8, 300)])
def test_no_step_raises_the_objective(n_rows: int, n_cols: int, k: int) -> None:
    p = problem(n_rows, n_cols)
    table, indices, objective = p.refine(k)
    assert (np.diff(objective, axis=1) <= 1e-6 * objective[:, :1]).all()
    first_table, first_indices = p.start(k)
    start = p.objective(rounded(first_table), first_indices)
    scale = start.max() + 1e-30
    assert objective[:, 0] == pytest.approx(start, rel=1e-4, abs=1e-5 * scale)
    assert objective[:, -1] == pytest.approx(p.objective(table, indices), rel=1e-3, abs=1e-5 * scale)
    assert (np.diff(table.astype(np.float32), axis=1) >= 0).all()
    assert indices.max() < k


@pytest.mark.parametrize("k", [8, 16])
@pytest.mark.parametrize(("n_rows", "n_cols"), [(1, 1), (3, 5), (3, 64), (9, 64), (17, 130)])
def test_torch_says_what_c_says(n_rows: int, n_cols: int, k: int) -> None:
    p = problem(n_rows, n_cols)
    assert_alike(p.refine(k, torch_device="cpu"), p.refine(k))


def assert_alike(in_torch: Refined, in_c: Refined) -> None:
    """But for a row here and there where rounding decides between two entries: it ends elsewhere, as good."""
    same = (in_c.indices == in_torch.indices).all(axis=1) & (in_c.table == in_torch.table).all(axis=1)
    assert (~same).sum() <= len(same) // 8
    scale = in_c.objective[:, 0].max()
    close = {"rel": 1e-5, "abs": 1e-9 * scale}
    assert in_torch.objective[same] == pytest.approx(in_c.objective[same], **close)
    assert in_torch.objective[:, 0] == pytest.approx(in_c.objective[:, 0], **close)
    assert in_torch.objective[:, -1] == pytest.approx(in_c.objective[:, -1], rel=0.02, abs=1e-9 * scale)


@pytest.mark.parametrize("method", ["guided", "squeezellm"])
def test_a_task_has_the_same_parts_from_torch(method: str) -> None:
    p = problem(5, 32)
    measured = p.hessian if method == "guided" else np.abs(p.values) + np.float32(1e-3)
    recipe = Recipe(3, method, 2.0, 0.0)
    in_c, in_torch = (Task(p.values, measured, recipe, 1, device).run() for device in (None, "cpu"))
    assert in_c.keys() == in_torch.keys() == set(PARTS) - ({"lut_scale"} if method == "squeezellm" else set())
    assert all(np.array_equal(in_c[part], in_torch[part]) for part in in_c)


def test_it_beats_clustering_by_far() -> None:
    p = problem(16, 172)
    objective = p.refine(8).objective.sum(axis=0)
    assert objective[-1] < 0.6 * objective[0]


def test_the_result_does_not_depend_on_threads_or_neighbours() -> None:
    p = problem(21, 100)
    one = p.refine(8)
    three = p.refine(8, threads=3)
    assert np.array_equal(one.table, three.table)
    assert np.array_equal(one.indices, three.indices)
    assert np.array_equal(one.objective, three.objective)
    for row in (0, 7, 20):
        alone = Problem(p.values[row : row + 1], p.hessian, p.kept[row : row + 1]).refine(8)
        assert np.array_equal(alone.table[0], one.table[row])
        assert np.array_equal(alone.indices[0], one.indices[row])


def test_a_kept_weight_gets_its_nearest_entry_and_costs_nothing() -> None:
    p = problem(4, 40, kept=0.2)
    table, indices, _ = p.refine(8)
    gaps = np.abs(table.astype(np.float32)[:, None, :] - p.values[:, :, None])
    assert np.array_equal(indices[p.kept], gaps.argmin(axis=2)[p.kept])
    everything = p._replace(kept=np.ones_like(p.kept))
    assert not everything.refine(8).objective.any()


def test_columns_without_inputs_change_nothing() -> None:
    p = problem(3, 30)
    p.hessian[:, 7] = p.hessian[7, :] = 0
    assert np.isfinite(p.refine(8).objective).all()
    dead = p._replace(hessian=np.zeros_like(p.hessian))
    table, indices, objective = dead.refine(8)
    assert np.array_equal(table, rounded(dead.start(8)[0]))
    assert np.array_equal(indices, dead.start(8)[1])
    assert not objective.any()


def test_small_rows_end_near_the_best_of_all() -> None:
    """Against every pair of index vectors and its best table: five weights, two entries."""
    p = problem(24, 5, kept=0)
    hessian = p.counted()
    best = np.full(24, np.inf)
    for choice in itertools.product((0, 1), repeat=5):
        one_hot = np.eye(2)[list(choice)]
        table = np.linalg.pinv(one_hot.T @ hessian @ one_hot) @ one_hot.T @ hessian @ p.values.T
        error = (one_hot @ table).T - p.values
        best = np.minimum(best, np.einsum("ri,ij,rj->r", error, hessian, error))
    found = p.refine(2).objective[:, -1]
    assert (found < 1.01 * best).sum() >= 16
    assert found.sum() < 1.5 * best.sum()


@pytest.mark.parametrize("k", [4, 8, 16])
@pytest.mark.parametrize("size", [3e4, 0.02, 1e-4, 1e-6, 1e-7])
def test_tables_of_eight_bits_are_stored_exactly(size: float, k: int) -> None:
    random = np.random.default_rng(k)
    table = np.sort(size * random.standard_t(4, (200, k)), axis=1).clip(-65504, 65504)
    table[0], table[1, 0] = 0, -65504
    found = rounded(table)
    parts = table_parts(found, 8)
    assert parts["lut"].dtype == np.int8
    assert np.abs(parts["lut"].astype(int)).max() <= LARGEST_CODE
    assert np.array_equal(table_of(parts), found)
    least = 2.0**-24  # the distance of the smallest numbers that f16 has
    step = np.abs(table).max(axis=1, keepdims=True) / LARGEST_CODE + least
    assert (np.abs(found.astype(np.float64) - table) <= 0.51 * step + np.abs(table) / 1024 + least).all()


def test_tables_of_f16_are_not_taken_for_tables_of_eight_bits() -> None:
    with pytest.raises(ValueError, match="8 bits"):
        table_parts(np.asarray([[0.011, 0.0173, 0.0191, 0.0377]], np.float16), 8)


def test_refined_tables_can_be_stored() -> None:
    table, _, _ = problem(9, 64).refine(16)
    assert np.array_equal(table_of(table_parts(table, 8)), table)


@pytest.mark.parametrize(("k", "most"), [(4, 1.01), (8, 1.03), (16, 1.08)])
def test_rounding_tables_together_costs_little(k: int, most: float) -> None:
    """Of weights with heavy tails, beside the best tables for the same indices: the closed form, by numpy."""
    p = problem(16, 300)
    hessian = p.counted()
    _, indices, objective = p.refine(k)
    best = 0.0
    for row in range(16):
        free = ~p.kept[row]
        one_hot = np.eye(k)[indices[row]][free]
        h, w = hessian[np.ix_(free, free)], p.values[row][free].astype(np.float64)
        error = one_hot @ np.linalg.lstsq(one_hot.T @ h @ one_hot, one_hot.T @ h @ w, rcond=None)[0] - w
        best += error @ h @ error
    assert best <= objective[:, -1].sum() < most * best
