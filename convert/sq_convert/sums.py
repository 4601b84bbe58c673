"""Where the sums of calibration lie: in files of ours, or in a gradient checkpoint of the original."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .arch import Kind, Tensor
from .errors import ConvertError, count, some
from .measure import Measure
from .shards import WeightFiles, find_shards
from .workfolder import WorkFolder, write_atomically


class Sums(Protocol):
    """Sums to read."""

    def read(self, tensor: Tensor) -> NDArray[np.float32]:
        """Those of a matrix, as measure.py's docstring has them."""


class SumsFile:
    """Sums for some matrices: a safetensors file whose metadata counts the sequences in them."""

    def __init__(self, path: Path, tensors: Sequence[Tensor], measure: Measure) -> None:
        self.path, self.measure = path, measure
        self.matrices = [tensor for tensor in tensors if tensor.kind is Kind.MATRIX]

    @property
    def n_values(self) -> int:
        return sum(map(self.measure.n_values, self.matrices))

    def n_sequences(self) -> int:
        """How many sequences the file has summed; 0 where there is none."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.path, framework="numpy") as file:
                return int((file.metadata() or {})["sequences"])
        except (FileNotFoundError, SafetensorError, KeyError, ValueError):
            return 0

    def split(self, sums: Any) -> dict[str, Any]:
        """Views of a torch vector ``[n_values]``: one a matrix, by its name."""
        pieces = sums.split([self.measure.n_values(tensor) for tensor in self.matrices])
        return dict(zip((tensor.name for tensor in self.matrices), pieces, strict=True))

    def read(self, tensor: Tensor) -> NDArray[np.float32]:
        return self.measure.whole(tensor, self.read_values(tensor))

    def read_values(self, tensor: Tensor) -> NDArray[np.float32]:
        """The vector that :meth:`split` has of the matrix."""
        from safetensors import safe_open

        with safe_open(self.path, framework="numpy") as file:
            values: NDArray[np.float32] = file.get_tensor(tensor.name)
        return values

    def write(self, sums: NDArray[np.float32], n_sequences: int) -> None:
        """Saves ``sums`` ``[n_values]``, the matrices one after the other, without a copy in memory."""
        header: dict[str, Any] = {"__metadata__": {"sequences": str(n_sequences)}}
        at = 0
        for tensor in self.matrices:
            n_values = self.measure.n_values(tensor)
            end = at + 4 * n_values
            header[tensor.name] = {"dtype": "F32", "shape": [n_values], "data_offsets": [at, end]}
            at = end
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)

        def write(path: Path) -> None:
            with path.open("wb") as file:
                file.write(struct.pack("<Q", len(text)) + text)
                sums.tofile(file)

        write_atomically(self.path, write)


class SumsFiles:
    """The sums of a conversion: one file for all where the whole model was in memory, else one a block."""

    PATTERNS = ("sums.safetensors", "sums.*.safetensors")

    def __init__(
        self, work: WorkFolder, tensors: Sequence[Tensor], measure: Measure, n_sequences: int
    ) -> None:
        self.whole = SumsFile(work.file("sums.safetensors"), tensors, measure)
        blocks = sorted({tensor.block for tensor in self.whole.matrices if tensor.block is not None})
        self.blocks = {
            n: SumsFile(work.file(f"sums.{n}.safetensors"), [t for t in tensors if t.block == n], measure)
            for n in blocks
        }
        self._n_sequences = n_sequences

    def complete(self) -> bool:
        return self._whole_complete() or all(self.block_complete(n) for n in self.blocks)

    def block_complete(self, block: int) -> bool:
        return self.blocks[block].n_sequences() == self._n_sequences

    def read(self, tensor: Tensor) -> NDArray[np.float32]:
        assert tensor.block is not None
        return (self.whole if self._whole_complete() else self.blocks[tensor.block]).read(tensor)

    def _whole_complete(self) -> bool:
        return self.whole.n_sequences() == self._n_sequences


class GradientFolder:
    """A gradient checkpoint of the original: a Hugging Face folder of sums of squared gradients."""

    def __init__(self, path: Path, tensors: Sequence[Tensor]) -> None:
        if not path.is_dir():
            raise ConvertError(f"{path}: no such folder; --fisher names a gradient checkpoint.")
        self.path = path
        self._weights = WeightFiles(find_shards(path))
        matrices = [tensor for tensor in tensors if tensor.kind is Kind.MATRIX]
        missing = [tensor.source for tensor in matrices if tensor.source not in self._weights.shapes]
        if missing:
            raise ConvertError(
                f"{path}: {count(missing, 'matrix is', 'matrices are')} missing: {some(missing)}. It is "
                "incomplete, or another model's gradient checkpoint."
            )
        for tensor in matrices:
            shape = self._weights.shapes[tensor.source]
            if shape != tensor.source_shape:
                raise ConvertError(
                    f"{path}: {tensor.source} has shape {list(shape)}, in the model "
                    f"{list(tensor.source_shape)}: it is another model's gradient checkpoint."
                )

    def files(self) -> list[Path]:
        return self._weights.paths

    def read(self, tensor: Tensor) -> NDArray[np.float32]:
        values = self._weights.read_rows(tensor.source, tensor.rows.start, tensor.rows.stop)
        if not (values.min(initial=0) >= 0 and np.isfinite(values.max(initial=0))):
            raise ConvertError(
                f"{self.path}: {tensor.source} holds a negative number or none at all; expected sums of "
                "squared gradients."
            )
        return values
