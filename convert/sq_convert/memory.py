"""How much memory a conversion takes at its peak, and whether calibration fits into what is free.

Each stage is the sum of the arrays that it holds at once; the constants are measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from .arch import Kind, Tensor
from .checkpoint import Checkpoint
from .errors import ConvertError
from .gguf_file import GgufCheckpoint
from .measure import FISHER, MOMENTS
from .options import Options
from .progress import size
from .quantize import part_bytes

_LIBRARIES = 345_000_000  # Python with torch, transformers and what they bring
_TRITON = 90_000_000  # which torch loads where it is installed
_CALIBRATION = 65_000_000  # the calibration text as tokens, PyTorch's backward pass loaded
_TOKEN = 1_000  # of a vocabulary: its tokenizer, and its verification
_GGUF_TOKEN = 5_200  # while the gguf package reads a vocabulary
_ROWS = 50_000_000  # the rows that are read and converted at a time, file buffers
_REFINED = 16  # a weight of a matrix to be refined: itself and, in three arrays, what says whether it is kept
_MOMENT = 40  # an element of H: in two orders, damped, its factor in f64 and f32
_ENTRY = 28  # a table's entry being tuned: where it was and is, gradient, Adam's means
_LOGITS = 6  # arrays of logits: of both models, their logarithms of probabilities, gradients
_WORKER = 60_000_000  # a process that quantizes: Python with numpy
_PACKED = 18  # a weight of a packed matrix: indices, decoded values, what is added, their sum


def peak_bytes(options: Options, checkpoint: Checkpoint, tensors: Sequence[Tensor], in_blocks: bool) -> int:
    """Peak memory of a conversion on the CPU; ``in_blocks`` says how it calibrates, if it does."""
    n_vocab = tensors[0].shape[0]
    stages = [_ROWS]
    if options.quantizes:
        stages.append(quantizing_bytes(options, tensors))
    if options.calibrates:
        stages.append(_CALIBRATION + calibration_bytes(options, checkpoint, tensors, in_blocks, 4))
    if options.tune:
        stages.append(_CALIBRATION + tuning_bytes(options, checkpoint, tensors))
    libraries = _LIBRARIES + (_TRITON if find_spec("triton") else 0)
    peak = libraries + _TOKEN * n_vocab + max(stages)
    if isinstance(checkpoint, GgufCheckpoint):
        peak = max(peak, libraries + _GGUF_TOKEN * n_vocab)
    return peak


def calibrates_in_blocks(
    options: Options, checkpoint: Checkpoint, tensors: Sequence[Tensor], device: str
) -> bool:
    """Whether calibration has to run block by block, since the memory that is free now holds no more."""
    if device == "cuda":
        needed = calibration_bytes(options, checkpoint, tensors, in_blocks=False, weight_bytes=2)
    else:
        needed = peak_bytes(options, checkpoint, tensors, in_blocks=False)
    return options.calibrates and needed > available_bytes(device)


def calibration_bytes(
    options: Options, checkpoint: Checkpoint, tensors: Sequence[Tensor], in_blocks: bool, weight_bytes: int
) -> int:
    """What calibration holds at once: weights, sums in f32, gradients, activations."""
    sizes = _sizes(checkpoint)
    largest = max(_parameter_weights(tensors).values()) if options.measure is FISHER else 0
    n_rest = sum(tensor.n_weights for tensor in tensors if tensor.block is None)
    kept = _activations(options, checkpoint)
    logits = 4 * options.seq_len * sizes["vocab_size"]  # themselves, shifted, their softmax, their gradient
    if not in_blocks:
        n_weights = sum(tensor.n_weights for tensor in tensors)
        held = weight_bytes * (n_weights + largest + kept * sizes["block_count"] + logits)
        return held + 4 * n_sums(options, tensors)
    block = [tensor for tensor in tensors if tensor.block == _largest_block(tensors)]
    n_block = sum(tensor.n_weights for tensor in block)
    of_head = n_rest + max(logits, n_block)  # the first block is there when the model's calls are recorded
    return max(
        weight_bytes * of_head, weight_bytes * (n_block + 2 * largest + kept) + 4 * n_sums(options, block)
    )


def tuning_bytes(options: Options, checkpoint: Checkpoint, tensors: Sequence[Tensor]) -> int:
    """What tuning holds at once: both models, indices, tables, one gradient, activations; all in f32."""
    sizes = _sizes(checkpoint)
    n_weights = sum(tensor.n_weights for tensor in tensors)
    matrices = [tensor for tensor in tensors if tensor.kind is Kind.MATRIX]
    n_quantized = sum(tensor.n_weights for tensor in matrices)
    n_entries = sum(tensor.shape[0] << options.bits for tensor in matrices)
    largest = max(_parameter_weights(tensors).values())
    logits = _LOGITS * options.seq_len * sizes["vocab_size"]
    kept = _activations(options, checkpoint) * sizes["block_count"]
    return 4 * (n_weights + n_quantized + kept + logits) + n_quantized + _ENTRY * n_entries + 16 * largest


def check_tuning(options: Options, checkpoint: Checkpoint, tensors: Sequence[Tensor], device: str) -> None:
    """Raises ConvertError where tuning does not fit into the memory that is free now."""
    needed = tuning_bytes(options, checkpoint, tensors)
    if device == "cpu":
        needed = peak_bytes(options, checkpoint, tensors, in_blocks=True)
    free = available_bytes(device)
    if needed > free:
        raise ConvertError(
            f"--tune {options.tune} holds the original and the quantized model at once: "
            f"about {size(needed)} needed, {size(free)} free. Free some memory, or convert without --tune."
        )


def n_sums(options: Options, tensors: Sequence[Tensor]) -> int:
    """Numbers that calibration sums for these tensors."""
    assert options.measure
    return sum(options.measure.n_values(tensor) for tensor in tensors if tensor.kind is Kind.MATRIX)


def flow_bytes(options: Options, checkpoint: Checkpoint) -> int:
    """Disk that calibration block by block needs for what flows between blocks."""
    sizes = _sizes(checkpoint)
    states = (sizes["block_count"] + 2) * options.samples * options.seq_len
    return 4 * states * sizes["embedding_length"]


def available_bytes(device: str) -> int:
    """Memory that a new process could have, of the GPU where ``device`` is one."""
    if device == "cuda":
        import torch

        return int(torch.cuda.mem_get_info()[0])
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return 1024 * int(fields["MemAvailable"].split()[0])


def quantizing_bytes(options: Options, tensors: Sequence[Tensor]) -> int:
    """The largest matrix being quantized, and the results of its block before they are written."""
    matrices = [tensor for tensor in tensors if tensor.kind is Kind.MATRIX]
    kept = options.outliers > 0 or options.sensitive > 0
    # values, sensitivities, scores and copies
    of_weight = 4 + 4 * (options.measure is not None) + (8 if kept else 4.5)
    largest = max(tensor.n_weights for tensor in matrices)
    block = _largest_block(tensors)
    done = sum(
        part_bytes(
            t.shape,
            options.bits,
            options.table_bits,
            round(t.n_weights * (options.outliers + options.sensitive) / 100),
        )
        for t in matrices
        if t.block == block
    )
    held = largest * (_PACKED if options.packed else of_weight)
    if options.measure is MOMENTS:
        held = max(_REFINED * t.n_weights + _MOMENT * t.shape[1] ** 2 for t in matrices)
    if options.workers > 1:  # and what waits here for its turn: twice as many matrices as are being made
        held = options.workers * (held + _WORKER + 2 * 4 * (largest + _largest_sums(options, matrices)))
    return round(held) + done


def _largest_sums(options: Options, matrices: Sequence[Tensor]) -> int:
    """Numbers of what was measured of a matrix, once it is whole."""
    if options.measure is MOMENTS:
        return max(tensor.shape[1] ** 2 for tensor in matrices)
    return max(tensor.n_weights for tensor in matrices) if options.measure else 0


def _activations(options: Options, checkpoint: Checkpoint) -> int:
    """What a backward pass needs of a block: inputs of its matrices and norms, attention's parts."""
    sizes = _sizes(checkpoint)
    n_ff = max(
        sizes["feed_forward_length"],
        sizes.get("expert_used_count", 0) * sizes.get("expert_feed_forward_length", 0),
    )
    return options.seq_len * (14 * sizes["embedding_length"] + 5 * n_ff)


def _largest_block(tensors: Sequence[Tensor]) -> int:
    sizes: dict[int, int] = {}
    for tensor in tensors:
        if tensor.block is not None:
            sizes[tensor.block] = sizes.get(tensor.block, 0) + tensor.n_weights
    return max(sizes, key=lambda block: sizes[block])


def _parameter_weights(tensors: Sequence[Tensor]) -> dict[str, int]:
    """Weights of each parameter with a gradient, by its name in transformers' model."""
    sizes: dict[str, int] = {}
    for tensor in tensors:
        if tensor.kind is Kind.MATRIX:
            name = tensor.in_model[0]
            sizes[name] = sizes.get(name, 0) + tensor.n_weights
    return sizes


def _sizes(checkpoint: Checkpoint) -> dict[str, int]:
    """The hyperparameters that are whole numbers, by GGUF key less the architecture."""
    keys = checkpoint.family.keys(checkpoint.config)
    return {key.partition(".")[2]: value for key, value in keys.items() if isinstance(value, int)}
