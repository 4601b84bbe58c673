"""What a conversion needs and gives: sizes, memory, time. For --dry-run and the check of free space."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from rich.table import Column, Table

from . import allocate, memory, tune
from .arch import Kind, Tensor
from .checkpoint import Checkpoint
from .errors import ConvertError
from .measure import MOMENTS
from .options import Options
from .progress import duration, size
from .quantize import SAMPLE, part_bytes
from .writer import Q8_BLOCK, Q8_BLOCK_BYTES

CLUSTER_SECONDS = {2: 240e-9, 3: 330e-9, 4: 470e-9}  # per weight and thread; measured, but for 2 bits
REFINE_SECONDS = 1e-9  # of guided, per weight, thread and input of its matrix; measured
FACTOR_SECONDS = 1e-11  # per cube of a matrix's inputs, however many threads; measured
PLAIN_SECONDS = {2: 30e-9, 3: 40e-9, 4: 65e-9}  # the same of rtn and packed checkpoints, on one thread
DISK_BYTES_PER_SECOND = 500e6
METADATA_BYTES = 200  # per token of the vocabulary: texts, merges, tokenizer.json


def tensor_bytes(options: Options, tensor: Tensor) -> int:
    """Bytes of a tensor in the output."""
    if tensor.kind is Kind.VECTOR:
        return 4 * tensor.n_weights
    if tensor.kind is Kind.MATRIX and options.bpw:
        return round(tensor.n_weights * options.bpw / 8)
    if tensor.kind is Kind.MATRIX and options.quantizes:
        kept = min(100.0, options.outliers + options.sensitive)
        return part_bytes(
            tensor.shape, options.bits, options.table_bits, round(tensor.n_weights * kept / 100)
        )
    if tensor.kind is Kind.TABLE and options.head_bits == 8 and tensor.shape[1] % Q8_BLOCK == 0:
        return tensor.n_weights // Q8_BLOCK * Q8_BLOCK_BYTES
    return 2 * tensor.n_weights


def f16_tables(options: Options, tensors: Sequence[Tensor]) -> list[str]:
    """Names of the embedding and head that --head-bits 8 cannot store in Q8_0."""
    tables = [tensor for tensor in tensors if tensor.kind is Kind.TABLE]
    return [tensor.name for tensor in tables if options.head_bits == 8 and tensor.shape[1] % Q8_BLOCK]


def output_bytes(options: Options, tensors: Sequence[Tensor]) -> int:
    n_vocab = tensors[0].shape[0]
    return sum(tensor_bytes(options, tensor) for tensor in tensors) + METADATA_BYTES * n_vocab


def work_bytes(options: Options, checkpoint: Checkpoint, tensors: Sequence[Tensor], in_blocks: bool) -> int:
    """Bytes that the work folder grows to: quantized blocks; what calibration sums, twice while it is saved
    whole; block by block, what flows between blocks."""
    matrices = [tensor for tensor in tensors if tensor.kind is Kind.MATRIX]
    sums = 0
    if options.calibrates:
        sums = 4 * memory.n_sums(options, matrices)
        sums += memory.flow_bytes(options, checkpoint) if in_blocks else sums
    blocks = sum(tensor_bytes(options, tensor) for tensor in matrices) if options.quantizes else 0
    return sums + blocks


def check_space(
    options: Options, checkpoint: Checkpoint, tensors: Sequence[Tensor], in_blocks: bool, work: Path
) -> None:
    """Raises ConvertError where the disk has too little room for the work folder and the output."""
    present = sum(path.stat().st_size for path in work.glob("*") if path.is_file())
    needed = output_bytes(options, tensors) + work_bytes(options, checkpoint, tensors, in_blocks)
    needed -= present
    free = shutil.disk_usage(work).free
    if free < needed:
        raise ConvertError(
            f"{work.parent}: {size(free)} free on this disk, about {size(needed)} needed for the output and "
            "the work folder. Free some, or give -o a path on another disk."
        )


def quantization(options: Options) -> str:
    """The method in words."""
    if not options.quantizes:
        return "matrices in F16"
    tuned = f", tuned for {options.tune} steps" if options.tune else ""
    if options.bpw:
        return f"{options.bpw:.2f} bits by {options.method}, shared out among the matrices{tuned}"
    kept = f"{options.outliers:g} % outliers"
    if options.sensitive:
        kept += f" and {options.sensitive:g} % sensitive weights"
    return f"{options.bits} bits by {options.method}, {kept} kept{tuned}"


def table(matrices: Sequence[Tensor], chosen: allocate.Plan, losses: allocate.Losses) -> Table:
    """What each matrix gets; its loss as a share of what all lose where each has the least bits."""
    shown = Table(
        "matrix", *(Column(name, justify="right") for name in ("bits", "kept", "true bits", "loss"))
    )
    most = sum(next(iter(losses[tensor.name].values())) for tensor in matrices) or 1.0
    for tensor in matrices:
        setting = chosen[tensor.name]
        loss = allocate.interpolate(losses[tensor.name], setting)
        bits = 8 * setting.n_bytes(tensor) / tensor.n_weights
        kept = f"{setting.outliers:.2f} %"
        shown.add_row(tensor.name, str(setting.bits), kept, f"{bits:.2f}", f"{100 * loss / most:.3f} %")
    return shown


def describe(options: Options, checkpoint: Checkpoint, tensors: Sequence[Tensor], device: str) -> list[str]:
    """The plan, line by line."""
    matrices = [tensor for tensor in tensors if tensor.kind is Kind.MATRIX]
    n_matrix = sum(tensor.n_weights for tensor in matrices)
    n_all = sum(tensor.n_weights for tensor in tensors)
    stages = (
        ["check"]
        + ["calibrate"] * options.calibrates
        + ["allocate"] * options.allocates
        + ["quantize"] * options.quantizes
    )
    stages += ["tune"] * (options.tune > 0) + ["write"]
    lines = [
        f"model    {checkpoint.name}: {checkpoint.family.gguf_name}, {n_all / 1e6:.1f} M weights, "
        f"{n_matrix / 1e6:.1f} M of them in {len(matrices)} matrices",
        f"method   {quantization(options)}",
        f"stages   {', '.join(stages)}",
        f"output   {options.out}, about {size(output_bytes(options, tensors))}",
    ]
    if options.quantizes:
        bits = 8 * sum(tensor_bytes(options, tensor) for tensor in matrices) / n_matrix
        lines.append(f"         {bits:.2f} bits per quantized weight, tables and kept weights included")
    in_blocks = memory.calibrates_in_blocks(options, checkpoint, tensors, device)
    disk = work_bytes(options, checkpoint, tensors, in_blocks)
    lines.append(f"disk     about {size(disk)} more while converting")
    lines.append(f"memory   about {size(memory.peak_bytes(options, checkpoint, tensors, in_blocks))}")
    if in_blocks:
        whole = memory.peak_bytes(options, checkpoint, tensors, in_blocks=False)
        lines.append(f"         calibration block by block; with {size(whole)} free it would be quicker")
    if options.tune:
        held = memory.tuning_bytes(options, checkpoint, tensors)
        lines.append(
            f"         {size(held)} of it for tuning, which holds the original and the quantized model"
        )
    n_flow = memory.flow_bytes(options, checkpoint) if in_blocks else 0
    lines.append(f"time     about {duration(_seconds(options, n_all, matrices, device, n_flow))}")
    return lines


def _seconds(options: Options, n_all: int, matrices: Sequence[Tensor], device: str, n_flow: int) -> float:
    """Time of a conversion; ``n_flow`` bytes flow between blocks where calibration runs block by block."""
    seconds = 15 + n_all * 20e-9  # loading libraries, reading, hashing, writing
    if options.quantizes:
        seconds += sum(_fit_seconds(options, tensor, tensor.shape[0]) for tensor in matrices)
    if options.allocates:
        tried = sum(_fit_seconds(options, tensor, min(SAMPLE, tensor.shape[0])) for tensor in matrices)
        seconds += allocate.N_SETTINGS * tried
    if options.measure is MOMENTS:
        n_factored = sum(tensor.shape[1] ** 3 for tensor in matrices)
        seconds += (1 + options.allocates) * n_factored * FACTOR_SECONDS
    if options.calibrates:
        # Forward 2, gradients of activations 2, of weights 2 operations per weight and token, for moments 2
        # per pair of inputs; attention, the head's softmax and what is no product cost about as much again on
        # a small model. Block by block, the forward part is done twice, and weights and flow are read twice.
        n_operations = 2 * ((6 if n_flow else 4) * n_all + 2 * memory.n_sums(options, matrices))
        n_operations *= options.samples * options.seq_len
        seconds += n_operations / _operations_per_second(device, options.threads)
        seconds += (2 * 2 * n_all + 3 * n_flow) / DISK_BYTES_PER_SECOND if n_flow else 0
    if options.tune:
        # Forward by both models, backward by one; what is no product costs as much again, as above.
        n_judged = (tune.N_JUDGED + 1) * -(-options.samples // tune.HELD_OUT)
        n_operations = (16 * tune.BATCH * options.tune + 8 * n_judged) * n_all * options.seq_len
        seconds += n_operations / _operations_per_second(device, options.threads)
    return seconds


def _fit_seconds(options: Options, tensor: Tensor, n_rows: int) -> float:
    """Time to find tables and indices of so many rows of a matrix."""
    n_weights = n_rows * tensor.shape[1]
    if options.method == "rtn" or options.packed:
        return n_weights * PLAIN_SECONDS[options.bits]
    seconds = n_weights * CLUSTER_SECONDS[options.bits] / options.threads
    if options.method == "guided":
        seconds += n_weights * tensor.shape[1] * REFINE_SECONDS / options.threads
    return seconds


def _operations_per_second(device: str, threads: int) -> float:
    """Speed of a matrix product on the device, measured in a moment."""
    import torch

    torch.set_num_threads(threads)
    n = 1024
    matrix = torch.ones(n, n, device=device, dtype=torch.bfloat16 if device == "cuda" else torch.float32)
    float((matrix @ matrix)[0, 0])
    start = time.monotonic()
    for _ in range(3):
        float((matrix @ matrix)[0, 0])
    return 3 * 2 * n**3 / (time.monotonic() - start)
