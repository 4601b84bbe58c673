"""How long `sq-convert --device cuda` fits the tables of LLaMA-7B, `guided` at 4 bits, without calibration.

usage: convert_gpu.py

Where there is a GPU, it is measured: one matrix of each shape, by the functions that sq-convert calls.
Elsewhere it is estimated. The same functions run on PyTorch's meta device, where tensors have shapes but no
values, and what they start is counted. Where they ask for a value, the answer is the one that costs most: all
weights of a row differ, rounding a table helps each time, no descent ends early. The constants below turn
counts into seconds. What the host does is measured either way.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from sq_convert import cluster_torch, quantize, refine, refine_torch
from sq_convert.arch import Kind
from sq_convert.arch import Tensor as Matrix
from sq_convert.cluster import Clusters, cluster_rows
from sq_convert.measure import MOMENTS
from sq_convert.quantize import Recipe, quantize_matrix
from sq_convert.refine import N_OBJECTIVES, Refined, curvature_of, refine_rows
from sq_convert.shards import SafetensorsShard
from sq_convert.sums import SumsFile
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

N_LAYERS = 32
MATRICES = {(4096, 4096): 4, (11008, 4096): 2, (4096, 11008): 1}
"""By shape [n_out, n_in] how many a layer has."""
RECIPE, K = Recipe(4, "guided", 0.45, 0.0), 16
PARTS = ("factors of H", "clustering", "refinement")

OPERATION, VIEW, KERNEL = 4e-6, 1e-6, 10e-6  # seconds to start one; a kernel is one of Triton's
BLOCK = 41e-6  # seconds of those of refine_triton.py: 64 columns one after the other, some 1100 cycles each
FLOPS = 40e12  # a second, of products in f32
BANDWIDTH, BUS = 3e12, 5e9  # bytes a second, of the device's memory and between it and the host's
SORT = 8  # times that a sort reads and writes what it sorts

aten = torch.ops.aten


class Count(NamedTuple):
    operations: float = 0
    views: float = 0
    kernels: float = 0
    waiting: float = 0  # seconds of kernels that are neither busy with numbers nor with memory
    flops: float = 0
    bytes: float = 0

    def plus(self, other: Count, times: int = 1) -> Count:
        return Count(*(a + times * b for a, b in zip(self, other, strict=True)))

    @property
    def seconds(self) -> float:
        starting = OPERATION * self.operations + VIEW * self.views + KERNEL * self.kernels
        return starting + self.waiting + self.flops / FLOPS + self.bytes / BANDWIDTH


class Counting(TorchDispatchMode):  # type: ignore[misc]  # torch is not followed
    """Counts what is started while it is entered, and answers in place of values."""

    def __init__(self, n_cols: int) -> None:
        super().__init__()
        self.n_cols, self.count = n_cols, Count()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is aten._local_scalar_dense.default:
            return True if args[0].dtype is torch.bool else self.n_cols
        if func is aten.equal.default:
            return False
        out = func(*args, **(kwargs or {}))
        if func.is_view or func.name().startswith("aten::empty"):
            self.count = self.count.plus(Count(views=1))
        else:
            passes = SORT if func.name().startswith("aten::sort") else 1
            moved = passes * sum(map(n_bytes, [*tensors(args), *tensors(out)]))
            self.count = self.count.plus(Count(operations=1, flops=n_flops(func, args), bytes=moved))
        return out

    def level(self, points: Any, head: Tensor, c: int, last: Tensor, step: int, *out: Tensor) -> None:
        """In place of the kernel of cluster_triton.py."""
        moved = sum(map(n_bytes, (points.w, points.s, points.q, head, *out)))
        self.count = self.count.plus(Count(kernels=1, bytes=moved))

    def block(self, *arguments: Tensor) -> tuple[Tensor, Tensor]:
        """In place of those of refine_triton.py."""
        like = arguments[0]
        out = torch.empty_like(like, dtype=torch.long), torch.empty_like(like, dtype=torch.float32)
        moved = sum(map(n_bytes, (*arguments, *out)))
        self.count = self.count.plus(Count(kernels=1, waiting=BLOCK, bytes=moved))
        return out


def tensors(things: Any) -> list[Tensor]:
    if isinstance(things, Tensor):
        return [things]
    return [t for thing in things for t in tensors(thing)] if isinstance(things, (list, tuple)) else []


def n_bytes(tensor: Tensor) -> int:
    """What is repeated counts once."""
    n: int = tensor.element_size()
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        n *= size if stride else min(size, 1)
    return n


def n_flops(func: Any, args: Any) -> int:
    if func is aten.linalg_cholesky_ex.default:
        return int(args[0].numel()) * int(args[0].shape[-1]) // 3
    if func in (aten.mm.default, aten.addmm_.default):
        left, right = args[-2:]
        return 2 * int(left.numel()) * int(right.shape[-1])
    return 0


def counts(shape: tuple[int, int]) -> dict[str, Count]:
    """What each part does with one matrix."""
    n_cols, meta = shape[1], torch.device("meta")
    values, kept = torch.empty(shape, device=meta), torch.empty(shape, dtype=torch.bool, device=meta)
    order, hessian = torch.arange(n_cols, device=meta), torch.empty(n_cols, n_cols, device=meta)
    found = {}

    def counted(part: str, work: Callable[..., Any], *arguments: Any) -> Any:
        counting = Counting(n_cols)
        steps = refine_torch.Steps(counting.block, counting.block)
        with (
            mock.patch.object(cluster_torch, "_level_on", return_value=counting.level),
            mock.patch.object(refine_torch, "_steps", return_value=steps),
            counting,
        ):
            result = work(*arguments)
        found[part] = counting.count
        return result

    known = counted(PARTS[0], refine_torch.curvature, hessian, order)
    table, indices, _ = counted(PARTS[1], cluster_torch.cluster, values, hessian[0], kept, K)
    start = (order, values, kept, table.float(), indices)
    counted(PARTS[2], refine_torch.refine, (N_OBJECTIVES - 1) // 4, *known, *start)
    return found


def example(shape: tuple[int, int]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Weights, and H of inputs of different sizes that have something in common."""
    random = np.random.default_rng(0)
    values = 0.02 * random.standard_normal(shape, np.float32)
    common = random.standard_normal(shape[1], np.float32)
    hessian = np.outer(common, common)
    hessian[np.diag_indices_from(hessian)] += np.exp(random.standard_normal(shape[1], np.float32))
    return values, hessian


def measured(shape: tuple[int, int], n_rows: int | None = None) -> dict[str, float]:
    """Seconds of each part on a GPU, with what travels there and back."""
    values, hessian = example(shape)
    values = values[:n_rows]
    kept = np.random.default_rng(1).random(values.shape) < RECIPE.outliers / 100
    times = [time.perf_counter()]

    def done() -> None:
        torch.cuda.synchronize()
        times.append(time.perf_counter())

    curvature = curvature_of(hessian, "cuda")
    done()
    table, indices, _ = cluster_rows(values, curvature.diagonal, kept, K, 1, "cuda")
    done()
    refine_rows(values, curvature, kept, table, indices, 1, "cuda")
    done()
    return dict(zip(PARTS, np.diff(times).tolist(), strict=True))


def host_seconds(shape: tuple[int, int]) -> float:
    """What is left of a matrix's way from checkpoint and sums to its parts, on one thread; its files are in
    the system's cache."""
    values, hessian = example(shape)
    matrix = Matrix("w", "w", shape, Kind.MATRIX)
    clusters = Clusters(np.ones((shape[0], K), np.float16), np.ones(shape, np.uint8), np.zeros((shape[0], 2)))
    refined = Refined(np.ones((shape[0], K), np.float32), clusters.indices, clusters.errors)
    with tempfile.TemporaryDirectory() as folder:
        sums = SumsFile(Path(folder) / "sums", [matrix], MOMENTS)
        sums.write(np.ones(MOMENTS.n_values(matrix), np.float32), 1)
        save_file({"w": torch.from_numpy(values).half()}, Path(folder) / "w.safetensors")
        del values, hessian
        with (
            mock.patch.object(quantize, "cluster_rows", return_value=clusters),
            mock.patch.object(quantize, "refine_rows", return_value=refined),
            mock.patch.object(refine, "_curvature_on_torch", return_value=(0, 0)),
        ):
            start = time.process_time()
            read = SafetensorsShard(Path(folder) / "w.safetensors").read_rows("w", 0, shape[0])
            quantize_matrix(read, sums.read(matrix), RECIPE, 1, "cuda")
            return time.process_time() - start


def transferred(shape: tuple[int, int]) -> int:
    """Bytes of a matrix's weights, kept weights and indices, twice there and back, and of H."""
    return shape[0] * shape[1] * (2 * 4 + 2 + 3) + 4 * shape[1] ** 2


def all_layers(of_one: dict[tuple[int, int], float]) -> float:
    return N_LAYERS * sum(n * of_one[shape] for shape, n in MATRICES.items())


def main() -> None:
    torch.set_num_threads(1)
    host = all_layers({shape: host_seconds(shape) for shape in MATRICES})
    if torch.cuda.is_available():
        measured((4096, 4096), 64)  # compiles
        found = {shape: measured(shape) for shape in MATRICES}
        seconds = {part: all_layers({shape: found[shape][part] for shape in MATRICES}) for part in PARTS}
    else:
        sums = dict.fromkeys(PARTS, Count())
        for shape, n in MATRICES.items():
            for part, count in counts(shape).items():
                sums[part] = sums[part].plus(count, n * N_LAYERS)
        seconds = {part: count.seconds for part, count in sums.items()}
        bus = {shape: transferred(shape) / BUS for shape in MATRICES}
        seconds["to the device and back"] = all_layers(bus)
        print("Estimated:\n\n| | operations | views | kernels | TFLOP | TB |\n|---|---|---|---|---|---|")
        for part, count in sums.items():
            started = f"{count.operations:,} | {count.views:,} | {count.kernels:,}"
            print(f"| {part} | {started} | {count.flops / 1e12:,.0f} | {count.bytes / 1e12:.1f} |")
        print()
    seconds["the host's part"] = host
    print("| | seconds |\n|---|---|")
    for part, number in {**seconds, "all": sum(seconds.values())}.items():
        print(f"| {part} | {number:.0f} |")


if __name__ == "__main__":
    main()
