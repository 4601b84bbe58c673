"""One-dimensional k-means: exact on rows small enough to try everything, never worse than the original."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file
from sq_convert.cluster import cluster_rows
from sq_convert.outliers import kept_by_inputs, kept_weights, largest

OFFICIAL = Path(__file__).parent.parent / "data" / "official"


def least_error(values: NDArray[np.float32], weights: NDArray[np.float32], k: int) -> float:
    """The least weighted squared error over every way to cut the sorted row into k intervals."""
    order = np.argsort(values, kind="stable")
    x, w = values[order].astype(np.float64), weights[order].astype(np.float64)

    def cost(start: int, end: int) -> float:
        if end == start or w[start:end].sum() == 0:
            return 0.0
        mean = np.average(x[start:end], weights=w[start:end])
        return float((w[start:end] * (x[start:end] - mean) ** 2).sum())

    cuts = itertools.combinations_with_replacement(range(len(x) + 1), k - 1)
    return min(sum(cost(a, b) for a, b in itertools.pairwise((0, *cut, len(x)))) for cut in cuts)


def error_of(
    values: NDArray[np.float32], weights: NDArray[np.float32], table: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Weighted squared error of each row with every value at its nearest entry."""
    nearest = np.abs(values[:, :, None] - table[:, None, :]).min(axis=2)
    return np.asarray((weights * nearest**2).sum(axis=1))


@pytest.mark.parametrize("k", [1, 2, 3, 4])
@pytest.mark.parametrize("n", [1, 2, 5, 9])
def test_it_is_exact(n: int, k: int) -> None:
    random = np.random.default_rng(100 * n + k)
    values = random.standard_normal((30, n)).astype(np.float32)
    values[::3] = np.round(values[::3])  # equal values
    weights = np.exp(8 * random.standard_normal((30, n))).astype(np.float32)
    weights[::4] *= random.random((8, n)) < 0.6  # values without weight, rows without any
    found = cluster_rows(values, weights, None, k, 1).errors[:, 0]
    for row in range(30):
        used = weights[row] if weights[row].any() else np.ones(n, np.float32)
        scale = float((used * values[row].astype(np.float64) ** 2).sum())
        assert found[row] == pytest.approx(least_error(values[row], used, k), rel=1e-9, abs=1e-12 * scale)


@pytest.mark.parametrize(("n", "k"), [(1, 4), (5, 4), (9, 3), (64, 8), (100, 16)])
def test_torch_says_what_c_says(n: int, k: int) -> None:
    random = np.random.default_rng(n)
    values = random.standard_t(3, (12, n)).astype(np.float32)
    values[4] = np.round(values[4])
    weights = (random.standard_normal((12, n)) ** 4).astype(np.float32)
    weights[1] = 0
    weights[2] *= random.random(n) < 0.5
    weights[3] *= 1e-20
    kept = random.random((12, n)) < 0.05
    kept[0] = True
    for weighing, keeping in ((weights, kept), (weights, None), (None, None)):
        in_c, in_torch = (cluster_rows(values, weighing, keeping, k, 1, device) for device in (None, "cpu"))
        assert in_torch.errors == pytest.approx(in_c.errors, rel=1e-12)
        assert np.array_equal(in_torch.table, in_c.table)
        assert np.array_equal(in_torch.indices, in_c.indices)


def test_values_far_from_zero_and_tiny_weights_keep_their_digits() -> None:
    random = np.random.default_rng(1)
    values = (1000 + random.standard_normal((4, 9))).astype(np.float32)
    weights = (1e-20 * random.random((4, 9))).astype(np.float32)
    found = cluster_rows(values, weights, None, 3, 1).errors[:, 0]
    for row in range(4):
        assert found[row] == pytest.approx(least_error(values[row], weights[row], 3), rel=1e-6)


def test_kept_values_stay_out_but_have_the_nearest_index() -> None:
    values = np.array([[0, 0.1, 5, 5.1, 100]], np.float32)
    kept = np.array([[0, 0, 0, 0, 1]], np.bool_)
    result = cluster_rows(values, None, kept, 2, 1)
    assert result.table[0] == pytest.approx([0.05, 5.05], abs=1e-2)
    assert result.indices.tolist() == [[0, 0, 1, 1, 1]]


def test_rows_with_few_values_and_rows_wholly_kept() -> None:
    values = np.array([[3, 3, -1, 3], [1, 2, 3, 4]], np.float32)
    kept = np.array([[0] * 4, [1] * 4], np.bool_)
    result = cluster_rows(values, None, kept, 4, 1)
    assert result.table.tolist() == [[-1, 3, 3, 3], [1, 2, 3, 4]]
    assert result.indices.tolist() == [[1, 1, 0, 1], [0, 1, 2, 3]]
    assert not result.errors.any()


def test_tables_ascend_indices_are_nearest_and_threads_change_nothing() -> None:
    random = np.random.default_rng(2)
    values = random.standard_t(3, (100, 333)).astype(np.float32)
    weights = (random.standard_normal((100, 333)) ** 4).astype(np.float32)
    one, three = (cluster_rows(values, weights, None, 16, threads) for threads in (1, 3))
    assert all(np.array_equal(getattr(one, part), getattr(three, part)) for part in one._fields)
    table = one.table.astype(np.float64)
    assert (np.diff(table, axis=1) >= 0).all()
    distance = np.abs(values - np.take_along_axis(table, one.indices.astype(np.intp), axis=1))
    assert (distance == np.abs(values[:, :, None] - table[:, None, :]).min(axis=2)).all()
    assert one.errors[:, 1] == pytest.approx(error_of(values, weights, table))
    assert (one.errors[:, 1] <= one.errors[:, 0] * 1.001).all()


def test_f16_tables_round_to_nearest_even_down_to_the_smallest() -> None:
    values = np.array([[1 + 2**-11, 1 + 3 * 2**-11, 2**-24, -1e-9, 65504, -(2.0**-15)]], np.float32).T
    table = cluster_rows(np.ascontiguousarray(values), None, None, 1, 1).table
    assert (table == values.astype(np.float16)).all()


@pytest.mark.parametrize("config", ["w3-s0", "w3-s45", "w4-s0", "w4-s45"])
def test_no_row_is_worse_than_the_original(config: str) -> None:
    """On the original code's own model and sensitivities, with the weights it kept (tests/data/README.md)."""
    weights, fisher, original = (
        load_file(OFFICIAL / f"{name}.safetensors") for name in ("weights", "fisher", "tables")
    )
    n_rows = 0
    for name in weights:
        base = f"{config}.{name.removesuffix('.weight')}"
        values, sensitivity = weights[name].astype(np.float32), fisher[name].astype(np.float32)
        kept = np.zeros(values.shape, np.bool_)
        if f"{base}.rows" in original:
            rows = np.repeat(np.arange(len(values)), np.diff(original[f"{base}.rows"]))
            kept[rows, original[f"{base}.cols"]] = True
        table = original[f"{base}.lookup_table"].astype(np.float64)
        theirs = error_of(values, np.where(kept, 0, sensitivity), table)
        ours = cluster_rows(values, sensitivity, kept, 2 ** int(config[1]), 1).errors
        assert (ours[:, 0] <= theirs * (1 + 1e-9)).all(), (
            name
        )  # the optimum, tables in full precision as theirs
        theirs_f16 = error_of(
            values, np.where(kept, 0, sensitivity), table.astype(np.float16).astype(np.float64)
        )
        assert (ours[:, 1] <= theirs_f16 * (1 + 1e-9)).all(), name  # tables in f16 on both sides
        assert (ours[:, 1] <= theirs * 1.001).all(), name  # what f16 costs at most
        n_rows += len(values)
    assert n_rows == 2 * (4 * 128 + 2 * 352 + 128)


def test_shares_are_hit_to_the_weight_ties_or_not() -> None:
    random = np.random.default_rng(3)
    values = random.standard_normal((64, 100)).astype(np.float32)
    assert kept_weights(values, None, 0.45, 0).sum() == 29
    assert kept_weights(np.round(values), None, 0.45, 0).sum() == 29
    kept = kept_weights(values, None, 10, 0)
    assert np.abs(values[kept]).min() > np.abs(values[~kept]).max()
    fisher = np.abs(values[::-1]).copy()
    both = kept_weights(values, fisher, 1, 1)
    assert (both == (largest(np.abs(values), 64) | largest(fisher, 64))).all()
    assert not kept_weights(values, np.zeros_like(values), 0, 5).any()  # nothing is sensitive


def test_inputs_weigh_in_what_is_kept() -> None:
    values = np.random.default_rng(4).standard_normal((64, 100)).astype(np.float32)
    alike = np.full(100, 3, np.float32)
    assert (kept_by_inputs(values, alike, 1) == kept_weights(values, None, 1, 0)).all()
    alike[10:] = 0  # nothing goes in there
    assert kept_by_inputs(values, alike, 1)[:, :10].sum() == 64
    assert (kept_by_inputs(values, 0 * alike, 1) == kept_weights(values, None, 1, 0)).all()
