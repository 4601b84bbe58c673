"""Calibration of a model larger than memory: one block at a time, and what flows between blocks on disk.

Forward, each block turns its inputs into the next one's; the head turns the last outputs into gradients;
backward, each block is computed once more, which gives its measure and its inputs' gradients.
The sums are those of calibrate.sum_up. A file of inputs, gradients or sums appears when all sequences
are in it; a later run goes on behind the last one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arch import Tensor
from .calibrate import build_model, check_loss, fill
from .checkpoint import Checkpoint
from .sums import SumsFiles
from .workfolder import WorkFolder, write_atomically

FLOW_FILES = "flow.*"


class BlockCalibration:
    """The passes over the blocks that are left to do."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        tensors: Sequence[Tensor],
        sequences: NDArray[np.int64],
        files: SumsFiles,
        work: WorkFolder,
        device: str,
    ) -> None:
        self._model = _BlockModel(checkpoint, tensors, device)
        self._sequences, self._files = sequences, files
        self._n_blocks = len(self._model.blocks)
        self._flow = _Flow(work, self._n_blocks, sequences.shape)

    @property
    def n_passes(self) -> int:
        """A pass is one sequence through one block or the head."""
        return (2 * self._n_blocks + 1) * len(self._sequences)

    @property
    def n_passes_done(self) -> int:
        forward, backward = self._flow.state()
        n_done = forward if backward is None else 2 * self._n_blocks + 1 - backward
        return n_done * len(self._sequences)

    def run(self, threads: int, advance: Callable[[], object]) -> None:
        """Does them. ``sequences`` are ``[n, seq_len]``; ``advance`` is called after each pass."""
        import torch

        torch.set_num_threads(threads)
        self._model.record(self._sequences[0])
        forward, backward = self._flow.state()
        if backward is None:
            for n in range(forward, self._n_blocks):
                self._forward(n, advance)
            self._head(advance)
            backward = self._n_blocks
        for n in reversed(range(backward)):
            self._backward(n, advance)
        self._flow.remove("gradients", 0)

    def _forward(self, n: int, advance: Callable[[], object]) -> None:
        import torch

        model, flow = self._model, self._flow
        if n == 0:
            with model.rest_loaded():
                flow.write("inputs", 0, (model.embed(ids) for ids in self._sequences))

        def outputs() -> Iterator[Any]:
            for number in range(len(self._sequences)):
                yield model.run_block(n, flow.read("inputs", n, number))
                advance()

        with model.block_loaded(n), torch.no_grad():
            flow.write("inputs", n + 1, outputs())

    def _head(self, advance: Callable[[], object]) -> None:
        model, flow, n = self._model, self._flow, self._n_blocks

        def gradients() -> Iterator[Any]:
            for number, ids in enumerate(self._sequences):
                hidden = flow.read("inputs", n, number).requires_grad_(True)
                loss = model.loss(ids, hidden)
                check_loss(loss, number)
                loss.backward()
                yield hidden.grad
                advance()

        with model.rest_loaded():
            flow.write("gradients", n, gradients())
        flow.remove("inputs", n)

    def _backward(self, n: int, advance: Callable[[], object]) -> None:
        import torch

        model, flow, file = self._model, self._flow, self._files.blocks[n]
        sums = torch.zeros(file.n_values, dtype=torch.float32, device=model.device)

        def gradients() -> Iterator[Any]:
            for number in range(len(self._sequences)):
                hidden = flow.read("inputs", n, number).requires_grad_(True)
                output = model.run_block(n, hidden)
                output.backward(flow.read("gradients", n + 1, number).to(output))
                yield hidden.grad
                advance()
            file.write(sums.cpu().numpy(), len(self._sequences))

        with (
            model.block_loaded(n),
            file.measure.watch(model.parameters(), file.matrices, file.split(sums)),
        ):
            flow.write("gradients", n, gradients())
        flow.remove("inputs", n)
        flow.remove("gradients", n + 1)


class _Flow:
    """Files of hidden states ``[n_sequences, seq_len, n_embd]`` in f32: a block's inputs, and the loss's
    gradients by them. Block ``n_blocks`` is the head."""

    def __init__(self, work: WorkFolder, n_blocks: int, shape: tuple[int, ...]) -> None:
        self._work, self._n_blocks = work, n_blocks
        self._n_sequences, self._seq_len = shape

    def state(self) -> tuple[int, int | None]:
        """The last block whose inputs are there, and the first whose inputs' gradients are, if any's."""
        blocks = range(self._n_blocks + 1)
        inputs = [n for n in blocks if self._path("inputs", n).is_file()]
        gradients = [n for n in blocks if self._path("gradients", n).is_file()]
        return max(inputs, default=0), min(gradients, default=None)

    def write(self, kind: str, n: int, states: Iterable[Any]) -> None:
        def write(path: Path) -> None:
            with path.open("wb") as file:
                for state in states:
                    state.float().cpu().numpy().tofile(file)

        write_atomically(self._path(kind, n), write)

    def read(self, kind: str, n: int, number: int) -> Any:
        """The states of one sequence, ``[1, seq_len, n_embd]``."""
        import torch

        path = self._path(kind, n)
        size = path.stat().st_size // self._n_sequences
        values = np.fromfile(path, np.float32, size // 4, offset=number * size)
        return torch.from_numpy(values.reshape(1, self._seq_len, -1))

    def remove(self, kind: str, n: int) -> None:
        self._path(kind, n).unlink(missing_ok=True)

    def _path(self, kind: str, n: int) -> Path:
        return self._work.file(f"flow.{n}.{kind}")


class _Embedded(Exception):  # noqa: N818 (no error)
    """Ends a forward pass before the first block, with what goes into it."""


class _BlockModel:
    """The unmodified transformers model, of which only what is asked for has weights; the rest has shapes.

    A block is called with the arguments (masks, rotations, positions) that the model itself gives it for
    sequences of this length.
    """

    def __init__(self, checkpoint: Checkpoint, tensors: Sequence[Tensor], device: str) -> None:
        from torch.nn.modules.module import register_module_parameter_registration_hook

        self.device = device
        self._checkpoint, self._tensors = checkpoint, tensors
        # A hook rather than the meta device for all: buffers, such as frequencies, keep their values.
        hook = register_module_parameter_registration_hook(_without_weights)
        try:
            self._model = build_model(checkpoint, device)
        finally:
            hook.remove()
        self._prefix = next(t.source for t in tensors if t.block == 0).partition(".0.")[0]
        self.blocks = list(self._model.get_submodule(self._prefix))
        self._calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self._as_output: Callable[[Any], Any] = lambda hidden: hidden

    def record(self, ids: NDArray[np.int64]) -> None:
        """Notes how the model calls its blocks, and in what form they answer."""
        import torch

        def stand_in(n: int, hidden: Any, *args: Any, **kwargs: Any) -> Any:
            self._calls.append((args, kwargs))
            if n == 0:
                block = self.blocks[0]
                if isinstance(type(block).forward(block, hidden, *args, **kwargs), tuple):
                    self._as_output = lambda hidden: (hidden,)
            return self._as_output(hidden)

        with self.rest_loaded(), self.block_loaded(0), self._stand_ins(stand_in), torch.no_grad():
            self._call(ids)

    def embed(self, ids: NDArray[np.int64]) -> Any:
        """The inputs of the first block."""
        import torch

        def stand_in(n: int, hidden: Any, *args: Any, **kwargs: Any) -> Any:
            raise _Embedded(hidden)

        with self._stand_ins(stand_in), torch.no_grad():
            try:
                self._call(ids)
            except _Embedded as embedded:
                return embedded.args[0]
        raise AssertionError("the model calls no block")

    def run_block(self, n: int, hidden: Any) -> Any:
        """The outputs of a block, which has its weights, for inputs ``[1, seq_len, n_embd]``."""
        args, kwargs = self._calls[n]
        output = self.blocks[n](hidden.to(self.device, self._model.dtype), *args, **kwargs)
        return output[0] if isinstance(output, tuple) else output

    def loss(self, ids: NDArray[np.int64], hidden: Any) -> Any:
        """The loss where ``hidden`` comes out of the last block."""

        def stand_in(n: int, _: Any, *args: Any, **kwargs: Any) -> Any:
            return self._as_output(hidden.to(self.device, self._model.dtype))

        with self._stand_ins(stand_in):
            return self._call(ids).loss

    def parameters(self) -> dict[str, Any]:
        return dict(self._model.named_parameters())

    def rest_loaded(self) -> AbstractContextManager[None]:
        """While the context lasts, everything outside the blocks has its weights."""
        return self._loaded(lambda name: not name.startswith(self._prefix))

    def block_loaded(self, n: int) -> AbstractContextManager[None]:
        """While the context lasts, a block has its weights."""
        return self._loaded(lambda name: name.startswith(f"{self._prefix}.{n}."))

    @contextmanager
    def _loaded(self, chosen: Callable[[str], bool]) -> Iterator[None]:
        self._place(chosen, self.device)
        try:
            fill(self.parameters(), self._checkpoint, [t for t in self._tensors if chosen(t.source)])
            yield
        finally:
            self._place(chosen, "meta")

    def _place(self, chosen: Callable[[str], bool], device: str) -> None:
        """Gives parameters new, empty memory; tied ones stay tied."""
        import torch

        new: dict[int, Any] = {}
        for name, old in list(self._model.named_parameters(remove_duplicate=False)):
            if not chosen(name):
                continue
            if id(old) not in new:
                data = torch.empty(old.shape, dtype=old.dtype, device=device)
                new[id(old)] = torch.nn.Parameter(data, requires_grad=False)
            module, _, field = name.rpartition(".")
            setattr(self._model.get_submodule(module), field, new[id(old)])

    @contextmanager
    def _stand_ins(self, stand_in: Callable[..., Any]) -> Iterator[None]:
        """While the context lasts, ``stand_in(n, hidden, …)`` is called in place of block n."""
        for n, block in enumerate(self.blocks):
            block.forward = functools.partial(stand_in, n)
        try:
            yield
        finally:
            for block in self.blocks:
                del block.forward

    def _call(self, ids: NDArray[np.int64]) -> Any:
        import torch

        batch = torch.from_numpy(ids[None]).to(self.device)
        return self._model(input_ids=batch, labels=batch, use_cache=False)


def _without_weights(module: Any, name: str, parameter: Any) -> Any:
    import torch

    if parameter is None or parameter.is_meta:
        return None  # stays as it is
    return torch.nn.Parameter(parameter.to("meta"), requires_grad=False)
