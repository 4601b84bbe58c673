"""What a family says about one tensor."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Kind(enum.Enum):
    """How a tensor is stored."""

    MATRIX = "matrix"  # a block's linear layer: quantized
    TABLE = "table"  # embedding or head: Q8_0 or F16
    VECTOR = "vector"  # norm or bias: F32


@dataclass(frozen=True)
class Tensor:
    """One tensor of a model: its name in GGUF and in the Hugging Face checkpoint, its shape there."""

    name: str  # "blk.0.attn_q.weight"
    source: str  # "model.layers.0.self_attn.q_proj.weight"
    shape: tuple[int, ...]  # [n_out, n_in] or [n]
    kind: Kind
    block: int | None = None  # the block it belongs to
    rotary_heads: int = 0  # of q and k: heads whose rows llama.cpp's files interleave

    @property
    def n_weights(self) -> int:
        n = 1
        for size in self.shape:
            n *= size
        return n
