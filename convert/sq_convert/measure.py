"""What calibration sums of each matrix, while the loss of each sequence (its mean over the tokens) is traced
back. See also convert/sq_convert/sums.py, where the sums lie.

*Fisher information*, a number a weight: (∂ loss / ∂ W)², the sum over sequences (SqueezeLLM, arXiv
2306.07629, section 4.1 and the authors' code).

*Moments*, a matrix H for the inputs of W, which all its rows share: Σ over tokens of s x xᵀ, with x the
input, s the mean over the outputs z of (∂ loss / ∂ z)² (GuidedQuant, arXiv 2505.07004, section 3, one group a
matrix). A row's error then costs (ŵ - w)ᵀ H (ŵ - w). H's diagonal is the Fisher information of the weights,
token by token and averaged over the rows. Of the symmetric H the panels on and below the diagonal are summed:
rows [PANEL p, PANEL (p + 1)) of the columns up to the last of these, panel after panel.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arch import Tensor

PANEL = 512  # the less, the less is summed twice; products of fewer rows run no faster


@dataclass(frozen=True)
class Measure:
    """What is summed, how many numbers that is, and how it is watched for."""

    name: str
    n_values: Callable[[Tensor], int]
    # watch(parameters, matrices, targets): while the context lasts, what is computed in it is watched, and
    # its backward pass adds to the targets, torch vectors of `n_values` by the matrix's name
    watch: Callable[[Mapping[str, Any], Sequence[Tensor], Mapping[str, Any]], AbstractContextManager[None]]
    # whole(tensor, values): from the vector to what the module's docstring says, two dimensions
    whole: Callable[[Tensor, NDArray[np.float32]], NDArray[np.float32]]


@contextmanager
def square_gradients(
    parameters: Mapping[str, Any], matrices: Sequence[Tensor], targets: Mapping[str, Any]
) -> Iterator[None]:
    """While the context lasts, a backward pass adds the squares of each matrix's gradient to its target."""
    parts_of: dict[str, list[Tensor]] = {}
    for tensor in matrices:
        parts_of.setdefault(tensor.in_model[0], []).append(tensor)
    hooks = []
    for name, parts in parts_of.items():

        def add_square(parameter: Any, parts: Sequence[Tensor] = parts) -> None:
            for tensor in parts:
                gradient = parameter.grad[tensor.in_model[1]].float()
                targets[tensor.name].view_as(gradient).addcmul_(gradient, gradient)
            parameter.grad = None  # as soon as it is known

        parameters[name].requires_grad_(True)
        hooks.append(parameters[name].register_post_accumulate_grad_hook(add_square))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def sum_moments(
    parameters: Mapping[str, Any], matrices: Sequence[Tensor], targets: Mapping[str, Any]
) -> Iterator[None]:
    """While the context lasts, the backward pass of what is computed in it adds to H of each matrix.

    Products are recognised by the memory of their weights, so that it does not matter which module of
    transformers computes them, nor which of several fused matrices it is.
    """
    from torch.nn.functional import linear
    from torch.overrides import TorchFunctionMode

    weights = {}
    for tensor in matrices:
        name, place = tensor.in_model
        weight = parameters[name].data[place]
        weights[weight.data_ptr()] = (tensor, weight.stride(0) * weight.element_size())
    starts = sorted(weights)
    sums = dict(targets)

    class Watch(TorchFunctionMode):  # type: ignore[misc]  # torch is not followed
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            if func is linear and out.requires_grad:
                weight = args[1] if len(args) > 1 else kwargs["weight"]
                for tensor, rows in parts(weight):
                    watch(tensor, rows, (args[0] if args else kwargs["input"]).detach(), out)
            return out

    def parts(weight: Any) -> Iterator[tuple[Tensor, slice]]:
        first, last = weight.data_ptr(), weight.data_ptr() + weight.numel() * weight.element_size()
        for start in starts[bisect_left(starts, first) : bisect_left(starts, last)]:
            tensor, row_bytes = weights[start]
            row = (start - first) // row_bytes
            yield tensor, slice(row, row + tensor.shape[0])

    def watch(tensor: Tensor, rows: slice, inputs: Any, out: Any) -> None:
        def add(gradient: Any) -> None:
            x = inputs.reshape(-1, inputs.shape[-1]).float()
            g = gradient.reshape(-1, gradient.shape[-1])[:, rows].float()
            x = x * g.square().mean(dim=1, keepdim=True).sqrt()
            for panel, into in zip(_panels(x.shape[1]), _split(sums[tensor.name], x.shape[1]), strict=True):
                into.addmm_(x[:, panel].T, x[:, : panel.stop])

        out.register_hook(add)

    try:
        with Watch():
            yield
    finally:
        sums.clear()  # Watch, like every class, lies in a cycle, which would keep a block's sums for a while


def _panels(n: int) -> Iterator[slice]:
    """The rows of each panel of H ``[n, n]``."""
    return (slice(start, min(start + PANEL, n)) for start in range(0, n, PANEL))


def _split(values: Any, n: int) -> Iterator[Any]:
    """The panels, each ``[its rows, the columns up to its last row]``, as views of all their numbers."""
    start = 0
    for panel in _panels(n):
        shape = (panel.stop - panel.start, panel.stop)
        stop = start + shape[0] * shape[1]
        yield values[start:stop].reshape(shape)
        start = stop


def _n_moments(tensor: Tensor) -> int:
    return sum((panel.stop - panel.start) * panel.stop for panel in _panels(tensor.shape[1]))


def _whole_moments(tensor: Tensor, values: NDArray[np.float32]) -> NDArray[np.float32]:
    n = tensor.shape[1]
    moments = np.empty((n, n), np.float32)
    for panel, part in zip(_panels(n), _split(values, n), strict=True):
        moments[panel, : panel.stop] = part
        moments[: panel.start, panel] = part[:, : panel.start].T
    return moments


FISHER = Measure(
    "fisher",
    lambda tensor: tensor.n_weights,
    square_gradients,
    lambda tensor, values: values.reshape(tensor.shape),
)
MOMENTS = Measure("moments", _n_moments, sum_moments, _whole_moments)
