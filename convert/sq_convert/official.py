"""Packed checkpoints of the original SqueezeLLM (SqueezeAILab/SqueezeLLM, quantization/pack.py): sq-*.pt.

A file of torch.save: a dictionary with, for each quantized matrix NAME of shape [n_out, n_in],

    NAME.qweight           i32 [n_in / 32 · bits, n_out]: 32 indices in `bits` words, low bits first
    NAME.lookup_table      f32 [n_out, 2^bits], in no order
    NAME.rows .cols .vals  CSR, values to add: a kept weight less the entry nearest to zero (optional)
    NAME.full_rows         f32 [n_in, n]: values to add to n whole rows of the matrix (optional)
    NAME.full_row_indices  i32 [n]: which rows
    NAME.startrows         a schedule for the original's kernels, without meaning here
    sparse_threshold.NAME  the number of vals

and the model's other tensors under their own names. Files of 2023 may lack those; then they are taken from
the unquantized model.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arch import Kind, Tensor
from .errors import ConvertError, count, some
from .folder import FolderCheckpoint
from .quantize import F16_MAX, assemble
from .shards import is_float_tensor, read_json, torch_tensors

_TABLE_BITS = {8: 3, 16: 4}  # by entries of a table
_GROUP = 32  # indices that share `bits` words
_DENSE, _SPARSE, _FULL = (
    ("qweight", "lookup_table"),
    ("rows", "cols", "vals"),
    ("full_rows", "full_row_indices"),
)
_INTEGERS = {"qweight", "rows", "cols", "full_row_indices"}
_MEANINGLESS = ("startrows",)
_ADVICE = "The file is damaged, or was not made by the original SqueezeLLM."


class OfficialCheckpoint:
    """A packed file, and the folder of the model it was made from, for all that the file lacks."""

    def __init__(self, path: Path, config: Path | None) -> None:
        if config is None and not (path.parent / "config.json").is_file():
            raise ConvertError(
                f"{path}: there is no config.json beside it; give --config FOLDER, the Hugging Face folder "
                "of the model that was quantized."
            )
        self.path = path
        self.name = path.stem
        self._folder = FolderCheckpoint(config or path.parent)
        self.family = self._folder.family
        self.config = self._folder.config
        tensors = self.family.tensors(self.config)
        self._matrices = [_stem(tensor) for tensor in tensors if tensor.kind is Kind.MATRIX]
        self._shapes: dict[str, tuple[int, ...]] = {}
        with torch_tensors(path) as entries:
            self.bits = self._find_bits(entries)
            n_kept = sum(self._index_matrix(entries, name) for name in self._matrices)
            self._index_rest(entries)
        n_weights = sum(tensor.n_weights for tensor in tensors if tensor.kind is Kind.MATRIX)
        self.kept_percent = round(100 * n_kept / n_weights, 3)
        lacking = {tensor.source for tensor in tensors} - self._shapes.keys()
        self._borrowed = {n: s for n, s in self._folder.shapes().items() if n in lacking} if lacking else {}

    def files(self) -> list[Path]:
        beside = self.path.parent / "quant_config.json"
        folder = self._folder.files() if self._borrowed else self._folder.small_files()
        return [self.path, *[beside] * beside.is_file(), *folder]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return self._shapes | self._borrowed

    def own_name(self, tensor: Tensor) -> str:
        return tensor.source

    def read_raw(self, tensor: Tensor, start: int, stop: int) -> NDArray[np.float32]:
        if tensor.source in self._borrowed:
            return self._folder.read_raw(tensor, start, stop)
        first = tensor.first_row
        with torch_tensors(self.path) as entries:
            return _array(entries[tensor.source][first + start : first + stop])

    def tokenizer(self) -> Any:
        return self._folder.tokenizer()

    def source(self) -> dict[str, Any]:
        return self._folder.source()

    def read_parts(self, tensor: Tensor) -> dict[str, NDArray[Any]]:
        """A matrix in the parts of docs/FORMAT.md, section 2.

        Tables are rounded to f16 and sorted. A kept weight gets the index nearest to it, so that what is
        added to it is as small, and as exact in f16, as in a file that this converter quantized.
        """
        name = _stem(tensor)
        with torch_tensors(self.path) as entries:
            parts = {part: _array(value) for part, value in _parts(entries, name).items()}
        table, codes = _sort_table(parts["lookup_table"], unpack_words(parts["qweight"], self.bits))
        dense = np.take_along_axis(table, codes.astype(np.intp), axis=1)
        values = dense + self._added(name, parts, tensor.shape)
        if not (np.abs(table).max() <= F16_MAX and np.abs(values).max() <= F16_MAX):  # nor NaN
            raise ConvertError(f"{self.path}: {name} decodes to numbers that f16 does not hold. {_ADVICE}")
        rounded = table.astype(np.float16)
        kept = values != dense
        row, column = np.nonzero(kept)
        distance = np.abs(rounded[row].astype(np.float32) - values[row, column][:, None])
        codes[row, column] = distance.argmin(axis=1)
        return assemble(values, kept, rounded, codes, self.bits, table_bits=16)

    def _added(
        self, name: str, parts: Mapping[str, NDArray[Any]], shape: tuple[int, ...]
    ) -> NDArray[np.float32]:
        """What is added to the decoded indices, as a matrix ``[n_out, n_in]``."""
        n_out, n_in = shape
        added = np.zeros(shape, np.float32)
        if "vals" in parts:
            rows, cols = parts["rows"], parts["cols"]
            if rows[0] or rows[-1] != len(cols) or (np.diff(rows) < 0).any() or not _below(cols, n_in):
                raise ConvertError(f"{self.path}: {name}.rows and .cols are no CSR of its shape. {_ADVICE}")
            np.add.at(added, (np.repeat(np.arange(n_out), np.diff(rows)), cols), parts["vals"])
        if "full_rows" in parts:
            if not _below(parts["full_row_indices"], n_out):
                raise ConvertError(
                    f"{self.path}: {name}.full_row_indices lie outside its {n_out} rows. {_ADVICE}"
                )
            np.add.at(added, parts["full_row_indices"], parts["full_rows"].T)
        return added

    # ---- what the file holds, checked -----------------------------------------------------

    def _find_bits(self, entries: Mapping[str, Any]) -> int:
        """Bits of an index, on which all tables and quant_config.json must agree."""
        missing = [name for name in self._matrices if not set(_DENSE) <= _parts(entries, name).keys()]
        if missing:
            raise ConvertError(
                f"{self.path}: {count(missing, 'matrix', 'matrices')} of {len(self._matrices)} not in it "
                f"(qweight and lookup_table): {some(missing)}. It is incomplete or not packed, or "
                "--config names another model's folder."
            )
        sizes = sorted({entries[f"{name}.lookup_table"].shape[-1] for name in self._matrices})
        if len(sizes) != 1 or sizes[0] not in _TABLE_BITS:
            raise ConvertError(
                f"{self.path}: tables of {' and '.join(map(str, sizes))} entries; expected 8 in all (3 bits) "
                f"or 16 in all (4 bits). {_ADVICE}"
            )
        bits = _TABLE_BITS[sizes[0]]
        beside = self.path.parent / "quant_config.json"
        said = read_json(beside, "").get("wbits") if beside.is_file() else bits
        if said != bits:
            raise ConvertError(
                f"{beside} says {said} bits, but the tables of {self.path.name} have {sizes[0]} entries, "
                f"which is {bits} bits: the two files do not belong together."
            )
        return bits

    def _index_matrix(self, entries: Mapping[str, Any], name: str) -> int:
        """Notes a matrix's shape and checks its parts; the number of values it keeps beside the tables."""
        parts = _parts(entries, name)
        for group in (_SPARSE, _FULL):
            if 0 < len(parts.keys() & set(group)) < len(group):
                raise ConvertError(f"{self.path}: {name} has only some of {', '.join(group)}. {_ADVICE}")
        shape = {part: tuple(value.shape) for part, value in parts.items()}
        n_words, n_out = shape["qweight"] if len(shape["qweight"]) == 2 else (0, 0)
        n_in = n_words // self.bits * _GROUP
        n_sparse, n_full = shape.get("vals", (0,)), shape.get("full_row_indices", (0,))
        expected = {
            "qweight": (n_in // _GROUP * self.bits, n_out),
            "lookup_table": (n_out, 2**self.bits),
            "rows": (n_out + 1,),
            "cols": (n_sparse[0],),
            "vals": (entries.get(f"sparse_threshold.{name}", n_sparse[0]),),
            "full_rows": (n_in, n_full[0]),
            "full_row_indices": (n_full[0],),
        }
        for part in parts:
            if shape[part] != expected[part]:
                raise ConvertError(
                    f"{self.path}: {name}.{part} has shape {list(shape[part])}, beside its other parts "
                    f"expected {list(expected[part])}. {_ADVICE}"
                )
        self._shapes[f"{name}.weight"] = (n_out, n_in)
        return int(n_sparse[0] + n_in * n_full[0])

    def _index_rest(self, entries: Mapping[str, Any]) -> None:
        """Notes the shapes of everything that is no part of a matrix."""
        known = {
            f"{name}.{part}" for name in self._matrices for part in (*_DENSE, *_SPARSE, *_FULL, *_MEANINGLESS)
        }
        known |= {f"sparse_threshold.{name}" for name in self._matrices}
        for name in entries.keys() - known:
            if not is_float_tensor(entries[name]):
                raise ConvertError(
                    f"{self.path}: {name} has no place in this architecture, or is no tensor of "
                    "floating-point numbers. --config may name another model's folder."
                )
            self._shapes[name] = tuple(entries[name].shape)


def unpack_words(words: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """qweight ``[n_in / 32 · bits, n_out]`` to indices ``[n_out, n_in]``."""
    n_words, n_out = words.shape
    groups = np.zeros((n_words // bits, bits + 1, n_out), np.uint64)  # one word more, for what straddles two
    groups[:, :bits] = words.astype(np.uint32).reshape(-1, bits, n_out)
    codes = np.empty((n_words // bits, _GROUP, n_out), np.uint8)
    for k in range(_GROUP):
        word, shift = divmod(bits * k, 32)
        pair = groups[:, word] | groups[:, word + 1] << np.uint64(32)
        codes[:, k] = pair >> np.uint64(shift) & np.uint64(2**bits - 1)
    return np.ascontiguousarray(codes.reshape(-1, n_out).T)


def _sort_table(
    table: NDArray[np.float32], codes: NDArray[np.uint8]
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """The tables in ascending order, and the indices into them."""
    order = np.argsort(table, axis=1, kind="stable")
    rank = np.argsort(order, axis=1, kind="stable").astype(np.uint8)
    return np.take_along_axis(table, order, axis=1), np.take_along_axis(rank, codes.astype(np.intp), axis=1)


def _parts(entries: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The parts of a matrix that have a meaning and the right kind of numbers."""
    parts = {}
    for part in (*_DENSE, *_SPARSE, *_FULL):
        value = entries.get(f"{name}.{part}")
        if _is_integer_tensor(value) if part in _INTEGERS else is_float_tensor(value):
            parts[part] = value
    return parts


def _is_integer_tensor(value: Any) -> bool:
    import torch

    return isinstance(value, torch.Tensor) and value.dtype in (torch.int32, torch.int64)


def _array(value: Any) -> NDArray[Any]:
    """A tensor as a numpy array of its own memory, in f32 or whole numbers."""
    array: NDArray[Any] = (value.float() if value.is_floating_point() else value).numpy().copy()
    return array


def _below(indices: NDArray[Any], limit: int) -> bool:
    return not len(indices) or (int(indices.min()) >= 0 and int(indices.max()) < limit)


def _stem(tensor: Tensor) -> str:
    return tensor.source.removesuffix(".weight")
