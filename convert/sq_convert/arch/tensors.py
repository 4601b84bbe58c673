"""What a family says about one tensor."""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


class Kind(enum.Enum):
    """How a tensor is stored."""

    MATRIX = "matrix"  # a block's linear layer: quantized
    EXACT = "exact"  # a small matrix, or one with much effect: F16
    TABLE = "table"  # embedding or head: Q8_0 or F16
    VECTOR = "vector"  # norm or bias: F32


@dataclass(frozen=True)
class Tensor:
    """One tensor of a model: its name in GGUF and in the Hugging Face checkpoint, its shape.

    Where the checkpoint fuses several into one, each is some of that one's rows.
    """

    name: str  # "blk.0.attn_q.weight"
    source: str  # "model.layers.0.self_attn.q_proj.weight"
    shape: tuple[int, ...]  # [n_out, n_in] or [n]
    kind: Kind
    block: int | None = None  # the block it belongs to
    rotary_heads: int = 0  # of q and k: heads whose rows llama.cpp's files interleave
    first_row: int = 0  # where it begins in the source
    source_rows: int = 0  # rows of the source; 0: there is no more than this tensor
    plus: float = 0.0  # what its values have more than the source's
    parameter: tuple[str, Any] | None = None  # of transformers' model, and where in it; None: as the source

    @property
    def n_weights(self) -> int:
        return math.prod(self.shape)

    @property
    def source_shape(self) -> tuple[int, ...]:
        return (self.source_rows or self.shape[0], *self.shape[1:])

    @property
    def rows(self) -> slice:
        """Where the tensor lies in its source."""
        return slice(self.first_row, self.first_row + self.shape[0])

    @property
    def in_model(self) -> tuple[str, Any]:
        """The parameter of transformers' model that holds the tensor, and the tensor's place in it."""
        return self.parameter or (self.source, self.rows)


def by_source(tensors: Iterable[Tensor]) -> dict[str, list[Tensor]]:
    """The tensors of each of the checkpoint's, in order."""
    groups: dict[str, list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault(tensor.source, []).append(tensor)
    return groups
