"""The kernels that refinement has for GPUs: run by Triton's interpreter they give what PyTorch gives, and
they compile to code that keeps all in registers. Neither needs a GPU."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from unittest import mock

import pytest
import torch
from sq_convert.refine import Refined
from test_refine import assert_alike, problem
from torch import Tensor

triton = pytest.importorskip("triton")

TYPES = {"kept": "*u1", "movable": "*u1", "indices": "*i64", "found": "*i64"}
TYPES |= dict.fromkeys(("stride", "k", "n", "n_rows"), "i32")  # of the kernels' arguments; others are *fp32


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
def test_a_kernel_gives_what_pytorch_gives(interpreter: Executor, n: int, n_rows: int, k: int) -> None:
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


@pytest.mark.parametrize("k", [4, 16])
@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.parametrize("name", ["_round", "_descend"])
def test_a_kernel_compiles_to_code_that_stays_in_registers(
    name: str, architecture: int, k: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sq_convert import refine_triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernel = getattr(refine_triton, name)
    constants = {"n_columns": 64, "n_entries": k, "n_lanes": refine_triton.ROWS}
    signature = {n: "constexpr" if n in constants else TYPES.get(n, "*fp32") for n in kernel.arg_names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(signature) if n not in constants}
    source = ASTSource(kernel, signature, constants, aligned)  # as for sizes that are multiples of 16
    target = GPUTarget("cuda", architecture, 32)
    compiled = triton.compile(source, target=target, options=refine_triton.OPTIONS)
    assert "shfl" not in compiled.asm["ptx"]  # sums are over what one thread has
    usage = resources(compiled.asm["cubin"], tmp_path)
    assert usage["STACK"] == usage["LOCAL"] == 0
    assert usage["REG"] < 200


def resources(cubin: bytes, folder: Path) -> dict[str, int]:
    """What a thread takes, by the tool that comes with Triton."""
    path = folder / "kernel.cubin"
    path.write_bytes(cubin)
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    text = subprocess.run([tool, "-res-usage", path], check=True, capture_output=True, text=True).stdout
    return {name: int(number) for name, number in re.findall(r"(\w+):(\d+)", text)}
