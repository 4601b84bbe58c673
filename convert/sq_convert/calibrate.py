"""Calibration: how much the loss hears of errors in each matrix; a backward pass a sequence, sums in f32."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arch import Tensor
from .checkpoint import Checkpoint, read_rows, row_blocks
from .errors import ConvertError, first_line
from .sums import SumsFile

DEFAULT_TEXT = "calibration.txt"
SAVE_SECONDS = 20.0  # at least, between two savings of what has been summed so far
SAVE_SHARE = 0.05  # of the time may go into saving


# ---- text -----------------------------------------------------------------------------


def read_text(path: Path | None) -> tuple[str, bytes]:
    """Name and content of the calibration text; None is the one inside the package."""
    if path is None:
        return f"sq_convert/{DEFAULT_TEXT}", (
            resources.files(__package__) / "data" / DEFAULT_TEXT
        ).read_bytes()
    try:
        return path.name, path.read_bytes()
    except OSError as error:
        raise ConvertError(f"{path}: the calibration text cannot be read: {error.strerror}.") from error


def parse_text(name: str, content: bytes) -> str:
    """The text of a plain or a JSONL file: of the latter's objects the member "text", between blank lines."""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConvertError(f"{name}: the calibration text is not UTF-8 (byte {error.start}).") from error
    if not name.endswith((".jsonl", ".json")):
        return text
    documents = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            document = json.loads(line)["text"]
        except (ValueError, KeyError, TypeError):
            document = None
        if not isinstance(document, str):
            raise ConvertError(f'{name}, line {number}: expected a JSON object with a string "text".')
        documents.append(document)
    return "\n\n".join(documents)


def choose_sequences(
    tokenizer: Any, name: str, content: bytes, samples: int, seq_len: int, seed: int
) -> NDArray[np.int64]:
    """Token ids ``[samples, seq_len]``: crops that do not overlap, drawn by the seed, in text order."""
    text = parse_text(name, content)
    ids = np.asarray(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], np.int64)
    n_crops = len(ids) // seq_len
    if n_crops < samples:
        raise ConvertError(
            f"The calibration text {name} has {len(ids)} tokens, which is {n_crops} sequences of {seq_len}; "
            f"{samples} are asked for. Give a longer text, or fewer --samples or a shorter --seq-len."
        )
    crops = np.sort(np.random.default_rng(seed).permutation(n_crops)[:samples])
    start = (len(ids) - n_crops * seq_len) // 2
    return ids[start : start + n_crops * seq_len].reshape(n_crops, seq_len)[crops]


# ---- gradients -----------------------------------------------------------------------------


def choose_device(device: str) -> str:
    """ "cpu" or "cuda"; ConvertError where "cuda" is asked for in vain."""
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise ConvertError(
            "--device cuda: PyTorch finds no usable GPU here. Use --device cpu, or install a PyTorch "
            "built for CUDA."
        )
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device


def sum_up(
    checkpoint: Checkpoint,
    tensors: Sequence[Tensor],
    sequences: NDArray[np.int64],
    file: SumsFile,
    device: str,
    threads: int,
    advance: Callable[[], object],
) -> None:
    """Sums the measure of every block matrix over ``sequences`` ``[n, seq_len]`` into ``file``.

    Goes on where the file stands. The sums do not depend on ``threads``; on a GPU the model runs in bf16.
    """
    import torch

    torch.set_num_threads(threads)
    done = file.n_sequences()
    model = build_model(checkpoint, device)
    # without this, what weights that need no gradient make of it needs none either
    model.get_input_embeddings().register_forward_hook(lambda module, inputs, out: out.requires_grad_(True))
    parameters = dict(model.named_parameters())
    fill(parameters, checkpoint, tensors)
    sums = torch.zeros(file.n_values, dtype=torch.float32, device=device)
    targets = file.split(sums)
    for tensor in file.matrices if done else ():
        targets[tensor.name].copy_(torch.from_numpy(file.read_values(tensor)))

    saved, cost = time.monotonic(), 0.0
    for number in range(done, len(sequences)):
        ids = torch.from_numpy(sequences[number : number + 1]).to(device)
        with file.measure.watch(parameters, file.matrices, targets):
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
            check_loss(loss, number)
            loss.backward()
        advance()
        now = time.monotonic()
        if number + 1 == len(sequences) or now - saved > max(SAVE_SECONDS, cost / SAVE_SHARE):
            file.write(sums.cpu().numpy(), number + 1)
            saved = time.monotonic()
            cost = saved - now


def build_model(checkpoint: Checkpoint, device: str) -> Any:
    """The unmodified transformers model, in bf16 on a GPU, else in f32; its weights have no values yet."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    with gpu_memory("calibration"), no_init_weights(), torch.device(device):
        model = AutoModelForCausalLM.from_config(
            checkpoint.config,
            dtype=torch.bfloat16 if device == "cuda" else torch.float32,
            experts_implementation="eager",  # one product an expert, as measure.py watches for
        )
    model.tie_weights()
    model.requires_grad_(False)
    return model.eval()


def fill(parameters: Mapping[str, Any], checkpoint: Checkpoint, tensors: Sequence[Tensor]) -> None:
    """Reads weights into a model's parameters, a few rows at a time, so that they lie in memory once."""
    import torch

    with gpu_memory("calibration"):
        for tensor in tensors:
            name, place = tensor.in_model
            if name not in parameters:
                raise ConvertError(f"{checkpoint.path}: transformers' model has no parameter {name}.")
            weights = parameters[name].data[place]
            for start, stop in row_blocks(tensor.shape):
                values = read_rows(checkpoint, tensor, start, stop) - np.float32(tensor.plus)
                weights[start:stop].copy_(torch.from_numpy(values))


def check_loss(loss: Any, number: int) -> None:
    """Raises ConvertError where the loss on a sequence is no number."""
    if not math.isfinite(loss.item()):
        raise ConvertError(
            f"The model's loss on calibration sequence {number + 1} is {loss.item()}: its weights are "
            "damaged, or belong to another configuration."
        )


@contextmanager
def gpu_memory(purpose: str) -> Iterator[None]:
    """Says in a sentence that the GPU's memory is too small for it."""
    import torch

    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        raise ConvertError(
            f"The GPU has too little memory for {purpose} ({first_line(error)}); use --device cpu."
        ) from error
