"""Tuning from end to end: tables, norms and biases move until the model says what the original says.

Minimises the KL divergence of the quantized model's next-token probabilities from the original's, in nats a
token, over the calibration sequences; indices and the differences of kept weights stay. A table's gradient is
the sum of its weights' gradients, entry by entry. Masters are in f32, the model computes with what the file
would hold, tables in f16: a gradient there is taken for one of the master. Of the values met on the way those
stay that are best on sequences held out, the first ones among them; where a look at those finds no
better ones, tuning goes on from the best, in smaller steps.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arch import Kind, Tensor
from .calibrate import build_model, fill
from .checkpoint import Checkpoint, read_tensor
from .errors import ConvertError
from .pack import unpack
from .quantize import sparse_values
from .table import sums_of, table_of, table_parts, values_of

LEARNING_RATE = 0.01  # in units: the mean distance of a table's entries, a quarter of a vector's size
BATCH = 2  # sequences a step
HELD_OUT = 8  # of so many sequences one is held out
SLOWER = 3  # where the held-out sequences say that values got no better, they go back, and on at this part
N_JUDGED = 10  # times that the held-out sequences are looked at, the start not counted


@dataclass(frozen=True)
class Tuning:
    """What came of it."""

    values: dict[str, NDArray[Any]]  # by name in the file: the parts of tables (table.py), vectors in f32
    step: int  # after which they were best; 0: nothing was better than the start, and there are none
    start: float  # KL divergence on the held-out sequences
    end: float  # that of `values`


def tune(
    checkpoint: Checkpoint,
    tensors: Sequence[Tensor],
    read_parts: Callable[[Tensor], Mapping[str, NDArray[Any]]],
    sequences: NDArray[np.int64],
    steps: int,
    seed: int,
    device: str,
    threads: int,
    advance: Callable[[], object],
) -> Tuning:
    """Tunes the matrices whose parts (quantize.py) ``read_parts`` gives, and the vectors.

    ``sequences`` are ``[n, seq_len]``, at least two; ``advance`` is called after each of ``steps`` steps.
    Holds the original model and the quantized one, in f32, at once.
    """
    import torch

    torch.set_num_threads(threads)
    original = build_model(checkpoint, device).float()
    fill(dict(original.named_parameters()), checkpoint, tensors)
    tuned: list[_Table | _Vector] = []
    for tensor in tensors:
        if tensor.kind is Kind.MATRIX:
            tuned.append(_Table(tensor, read_parts(tensor), device, threads))
        elif tensor.kind is Kind.VECTOR:
            tuned.append(_Vector(tensor, read_tensor(checkpoint, tensor), device))
    model = _Model(original, tuned)

    held, rest = split(sequences)
    batches = _batches(rest, steps, seed)
    start = best = model.judge(held)
    if not math.isfinite(start):
        raise ConvertError(
            f"{checkpoint.path}: the quantized model's KL divergence from the original is {start}; its "
            "weights are damaged, or belong to another configuration."
        )
    kept, values = 0, {}
    rate, adam = LEARNING_RATE, _adam(tuned)
    moved = [part.moved.clone() for part in tuned]  # of the best values
    for step, batch in enumerate(batches, 1):
        adam.param_groups[0]["lr"] = rate * (1 + math.cos(math.pi * (step - 1) / steps)) / 2
        for ids in batch:
            model.divergence(ids).backward()
        adam.step()
        adam.zero_grad(set_to_none=False)
        model.update()
        if step % -(-steps // N_JUDGED) == 0 or step == steps:
            found = model.judge(held)
            if found < best:
                kept, best = step, found
                values = {name: value for part in tuned for name, value in part.parts().items()}
                moved = [part.moved.clone() for part in tuned]
            else:
                for part, start_again in zip(tuned, moved, strict=True):
                    part.moved.copy_(start_again)
                rate, adam = rate / SLOWER, _adam(tuned)
                model.update()
        advance()
    return Tuning(values, kept, start, best)


def _adam(tuned: Sequence[_Table | _Vector]) -> Any:
    import torch

    return torch.optim.Adam([part.moved for part in tuned], eps=1e-15)


def split(sequences: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The sequences that are held out, the last of each HELD_OUT, and the rest."""
    n = len(sequences)
    held = np.arange(n) % HELD_OUT == (n - 1) % HELD_OUT
    return sequences[held], sequences[~held]


def _batches(sequences: NDArray[np.int64], steps: int, seed: int) -> NDArray[np.int64]:
    """``[steps, BATCH, seq_len]``: all sequences in random order, again and again."""
    random = np.random.default_rng(seed)
    n_rounds = -(-steps * BATCH // len(sequences))
    order = np.concatenate([random.permutation(len(sequences)) for _ in range(n_rounds)])
    batches: NDArray[np.int64] = sequences[order[: steps * BATCH].reshape(steps, BATCH)]
    return batches


class _Model:
    """The original and the quantized model; the latter's parameters follow what is being tuned."""

    def __init__(self, original: Any, tuned: Sequence[_Table | _Vector]) -> None:
        parameters = dict(original.named_parameters())
        by_parameter: dict[str, list[_Table | _Vector]] = {}
        for part in tuned:
            by_parameter.setdefault(part.tensor.in_model[0], []).append(part)
        shared = {id(value): value for name, value in parameters.items() if name not in by_parameter}
        self._original, self._quantized = original, copy.deepcopy(original, shared)
        self._device = next(iter(parameters.values())).device
        self._parts: list[tuple[Any, list[_Table | _Vector]]] = []
        parameters = dict(self._quantized.named_parameters())
        for name, parts in by_parameter.items():
            parameter = parameters[name].requires_grad_(True)

            def pass_on(parameter: Any, parts: Sequence[_Table | _Vector] = parts) -> None:
                for part in parts:
                    part.add_gradient(parameter.grad[part.tensor.in_model[1]])
                parameter.grad = None  # as soon as it is known

            parameter.register_post_accumulate_grad_hook(pass_on)
            self._parts.append((parameter, parts))
        self.update()

    def update(self) -> None:
        """Computes the quantized model's weights anew."""
        for parameter, parts in self._parts:
            for part in parts:
                parameter.data[part.tensor.in_model[1]].copy_(part.weights())

    def divergence(self, tokens: NDArray[np.int64]) -> Any:
        """KL divergence over a sequence ``[seq_len]``, the mean of its tokens."""
        import torch
        from torch.nn.functional import kl_div, log_softmax

        ids = torch.from_numpy(tokens[None]).to(self._device)
        with torch.no_grad():
            expected = log_softmax(self._original(input_ids=ids, use_cache=False).logits[0], dim=-1)
        found = log_softmax(self._quantized(input_ids=ids, use_cache=False).logits[0], dim=-1)
        return kl_div(found, expected, reduction="batchmean", log_target=True)

    def judge(self, sequences: NDArray[np.int64]) -> float:
        """The mean divergence over sequences ``[n, seq_len]``; no number where values have run away."""
        import torch

        with torch.no_grad():
            return float(np.mean([float(self.divergence(ids)) for ids in sequences]))


class _Table:
    """A matrix, its tables in f32 as ``start + unit · moved``, each row in a unit of its own."""

    def __init__(self, tensor: Tensor, parts: Mapping[str, NDArray[Any]], device: str, threads: int) -> None:
        import torch

        self.tensor, self._table_bits = tensor, 8 if "lut_scale" in parts else 16
        self._threads = threads
        self._start = torch.from_numpy(table_of(parts)).to(device)
        self._largest = self._start.abs().amax(dim=1, keepdim=True)
        if self._table_bits == 8:
            self._scale = torch.from_numpy(parts["lut_scale"].astype(np.float32)[:, None]).to(device)
        low, high = self._start.aminmax(dim=1, keepdim=True)
        self._unit = (high - low) / (self._start.shape[1] - 1)
        bits = parts["lut"].shape[1].bit_length() - 1
        self._indices = torch.from_numpy(unpack(parts["codes"], tensor.shape[1], bits)).to(device)
        self._sparse = [torch.from_numpy(array).to(device) for array in sparse_values(parts)]
        self.moved = torch.zeros_like(self._start)
        self.moved.grad = torch.zeros_like(self._start)

    def _stored(self) -> Any:
        """The entries as the file gives them back."""
        import torch

        from .table_torch import nearest, scale_of

        table = self._start + self._unit * self.moved
        if self._table_bits == 16:
            return table.half().float()
        larger = table.abs().amax(dim=1, keepdim=True) > self._largest
        return nearest(table, torch.where(larger, scale_of(table, dim=1), self._scale))

    def parts(self) -> dict[str, NDArray[Any]]:
        parts = table_parts(self._stored().cpu().numpy(), self._table_bits)
        return {f"{self.tensor.name}.{part}": values for part, values in parts.items()}

    def weights(self) -> Any:
        row, column, values = self._sparse
        return self._dense(self._stored()).index_put_((row, column), values, accumulate=True)

    def _dense(self, table: Any) -> Any:
        """PyTorch looks up and sums on one core alone."""
        import torch

        if table.is_cuda:
            return table.gather(1, self._indices.long())
        return torch.from_numpy(values_of(table.numpy(), self._indices.numpy(), self._threads))

    def add_gradient(self, gradient: Any) -> None:
        import torch

        if gradient.is_cuda:
            sums = torch.zeros_like(self.moved).scatter_add_(1, self._indices.long(), gradient)
        else:
            values, indices = gradient.contiguous().numpy(), self._indices.numpy()
            sums = torch.from_numpy(sums_of(values, indices, self.moved.shape[1], self._threads))
        self.moved.grad.addcmul_(sums, self._unit)


class _Vector:
    """A norm's or bias's values in f32, as ``start + unit · moved``."""

    def __init__(self, tensor: Tensor, values: NDArray[np.float32], device: str) -> None:
        import torch

        self.tensor = tensor
        self._start = torch.from_numpy(values).to(device)
        self._unit = self._start.square().mean().sqrt() / 4
        self.moved = torch.zeros_like(self._start)
        self.moved.grad = torch.zeros_like(self._start)

    def _stored(self) -> Any:
        return self._start + self._unit * self.moved

    def parts(self) -> dict[str, NDArray[Any]]:
        return {self.tensor.name: self._stored().cpu().numpy()}

    def weights(self) -> Any:
        return self._stored() - self.tensor.plus

    def add_gradient(self, gradient: Any) -> None:
        self.moved.grad.add_(gradient * self._unit)
