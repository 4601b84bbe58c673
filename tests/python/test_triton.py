"""The kernels that fitting has for GPUs: run by Triton's interpreter they give what PyTorch gives, and they
compile to code that keeps all in registers. Neither needs a GPU."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from sq_convert.cluster import Clusters, cluster_rows
from sq_convert.refine import Refined
from test_refine import assert_alike, problem
from torch import Tensor

triton = pytest.importorskip("triton")


@pytest.fixture(scope="module")
def interpreter() -> Iterator[Executor]:
    """A process in which Triton runs kernels as Python: it looks at its variable when it is imported."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TRITON_INTERPRET", "1")
            pool.submit(os.getpid).result()  # it has started
        yield pool


@pytest.mark.parametrize("k", [2, 5, 8, 16])
@pytest.mark.parametrize(("n", "n_rows"), [(1, 1), (3, 31), (37, 33), (64, 40)])
def test_a_block_gives_what_pytorch_gives(interpreter: Executor, n: int, n_rows: int, k: int) -> None:
    interpreter.submit(compare, n, n_rows, k).result()


def compare(n: int, n_rows: int, k: int) -> None:
    """With numbers of few bits nothing is rounded, whatever is added first, and many lie amid two entries."""
    from sq_convert import refine_torch, refine_triton

    random = torch.Generator().manual_seed(n)

    def numbers(*shape: int) -> Tensor:
        return torch.randint(-16, 17, shape, generator=random) / 16

    table = (4 * numbers(k, n_rows)).round().div(4).sort(dim=0).values  # some entries are the same
    values, feedback = numbers(n, n_rows), numbers(n, n_rows)
    indices = torch.arange(n * n_rows).view(n, n_rows) % k
    fixed = torch.rand(n, n_rows, generator=random) < 0.1
    matrix = torch.zeros(n + 5, n + 9)[3 : n + 3, 2 : n + 2]  # as a block lies in its matrix
    factor = numbers(n, n).triu(1)
    diagonal = 2.0 ** torch.randint(-1, 3, (n,), generator=random)
    matrix.copy_(factor + factor.T + diagonal.diag())
    for column in range(0, n, 7):  # of no weight: it does not move
        matrix[column] = matrix[:, column] = 0
    movable = ~fixed & (matrix.diagonal() > 0)[:, None]
    for step, arguments in (
        ("round_block", (values, feedback, factor, table, fixed)),
        ("descend_block", (indices, feedback, matrix, table, movable)),
    ):
        expected = getattr(refine_torch, step)(*arguments)
        found = getattr(refine_triton, step)(*arguments)
        assert all(map(torch.equal, found, expected)), step
        assert n == 1 or expected[1].any()


@pytest.mark.parametrize(("n_rows", "n_cols", "k"), [(1, 1, 8), (3, 5, 16), (9, 64, 8), (9, 70, 16)])
def test_refinement_says_what_c_says(interpreter: Executor, n_rows: int, n_cols: int, k: int) -> None:
    found = interpreter.submit(refine, n_rows, n_cols, k).result()
    assert_alike(found, problem(n_rows, n_cols).refine(k))


def refine(n_rows: int, n_cols: int, k: int) -> Refined:
    from sq_convert import refine_torch, refine_triton

    steps = refine_torch.Steps(refine_triton.round_block, refine_triton.descend_block)
    with mock.patch.object(refine_torch, "_steps", return_value=steps):
        return problem(n_rows, n_cols).refine(k, torch_device="cpu")


@pytest.mark.parametrize(("n", "k"), [(1, 4), (5, 4), (64, 8), (100, 3)])
def test_clustering_gives_what_pytorch_gives(interpreter: Executor, n: int, k: int) -> None:
    found, expected = interpreter.submit(cluster, n, k, True).result(), cluster(n, k, False)
    assert np.array_equal(found.table, expected.table)
    assert np.array_equal(found.errors, expected.errors)


def cluster(n: int, k: int, by_kernel: bool) -> Clusters:
    """Rows with few values, equal ones, and ones without weight among them."""
    from sq_convert import cluster_torch, cluster_triton

    random = np.random.default_rng(n)
    values = random.standard_t(3, (8, n)).astype(np.float32)
    values[4] = np.round(values[4])
    weights = (random.standard_normal((8, n)) ** 4).astype(np.float32)
    weights[1] = 0
    weights[2] *= random.random(n) < 0.5
    level = cluster_triton.level if by_kernel else cluster_torch.level
    with mock.patch.object(cluster_torch, "_level_on", return_value=level):
        return cluster_rows(values, weights, None, k, 1, "cpu")


def test_of_equal_costs_the_first_counts(interpreter: Executor) -> None:
    interpreter.submit(compare_levels).result()


def compare_levels() -> None:
    from sq_convert import cluster_torch, cluster_triton

    random, n_rows, n = torch.Generator().manual_seed(0), 2, 300
    w = torch.arange(n + 1.0, dtype=torch.float64).repeat(n_rows, 1)
    s, q, head = torch.randint(-2, 3, (3, n_rows, n + 1), generator=random).double()
    points = cluster_torch._Points(torch.tensor([n, n]), w[:, 1:], w[:, 1:], w, s, q)
    last = torch.tensor([n, n - 7])
    found, expected = ((torch.full_like(w, -1), torch.zeros_like(w).long()) for _ in range(2))
    for exponent in reversed(range(n.bit_length())):
        cluster_torch.level(points, head, 5, last, 1 << exponent, *expected)
        cluster_triton.level(points, head, 5, last, 1 << exponent, *found)
        assert all(map(torch.equal, found, expected)), exponent


def test_what_a_conversion_starts_can_be_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "bench")
    from convert_gpu import counts

    found = counts((32, 200))
    assert found["refinement"].kernels == 4 * (3 + 3 * 4)  # blocks; roundings and descents of four sweeps
    assert found["clustering"].kernels == 15 * 8  # numbers of clusters; halvings of 200 columns
    assert found["factors of H"].operations < 50


TYPES = {"kept": "*u1", "movable": "*u1"}  # of the kernels' arguments; others are f32, in clustering f64
TYPES |= dict.fromkeys(("indices", "found", "last", "starts"), "*i64")
TYPES |= dict.fromkeys(("stride", "k", "n", "n_rows", "width", "c", "step"), "i32")


@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.parametrize("n_entries", [4, 16])
@pytest.mark.parametrize("name", ["_round", "_descend"])
def test_a_block_compiles_to_code_that_stays_in_registers(
    name: str, n_entries: int, architecture: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sq_convert import refine_triton

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    constants = {"n_columns": 64, "n_entries": n_entries, "n_lanes": refine_triton.ROWS}
    kernel = getattr(refine_triton, name)
    code = compiled(kernel, "*fp32", constants, refine_triton.OPTIONS, architecture)
    assert "shfl" not in code["ptx"]  # sums are over what one thread has
    used = resources(code["cubin"], tmp_path)
    assert used["STACK"] == used["LOCAL"] == 0
    assert used["REG"] < 200


@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.parametrize("n_lanes", [2, 32, 128])
def test_clustering_compiles_to_code_that_stays_in_registers(
    n_lanes: int, architecture: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sq_convert import cluster_triton as module

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    constants = {"n_numbers": module.LANES // n_lanes, "n_lanes": n_lanes}
    code = compiled(module._level, "*fp64", constants, {"num_warps": 1}, architecture)
    used = resources(code["cubin"], tmp_path)
    assert used["STACK"] == used["LOCAL"] == 0
    assert used["REG"] <= 128  # half of a GPU's warps can be at work


def compiled(
    kernel: Any, numbers: str, constants: dict[str, int], options: dict[str, int], architecture: int
) -> Any:
    """The kernel's code, by kind, for sizes that are multiples of 16."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature = {name: TYPES.get(name, numbers) for name in kernel.arg_names}
    signature |= dict.fromkeys(constants, "constexpr")
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(signature) if name not in constants}
    source = ASTSource(kernel, signature, constants, aligned)
    return triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options).asm


def resources(cubin: bytes, folder: Path) -> dict[str, int]:
    """What a thread takes, by the tool that comes with Triton."""
    path = folder / "kernel.cubin"
    path.write_bytes(cubin)
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    text = subprocess.run([tool, "-res-usage", path], check=True, capture_output=True, text=True).stdout
    return {name: int(number) for name, number in re.findall(r"(\w+):(\d+)", text)}
