"""Entries that 8 bits give (table.py), on any device of PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from .table import LARGEST_CODE, LARGEST_SCALE


def scale_of(table: Tensor, dim: int) -> Tensor:
    """The least scale, in f16, at which codes reach every entry; a table's entries lie along ``dim``."""
    largest = table.abs().amax(dim=dim, keepdim=True).float()
    scale = (largest / LARGEST_CODE).half()
    larger = (scale.view(torch.int16) + 1).view(torch.half)
    return torch.where(LARGEST_CODE * scale.float() < largest, larger, scale).float().clamp(max=LARGEST_SCALE)


def nearest(x: Tensor, scale: Tensor) -> Tensor:
    """The entries nearest to ``x``; the scale of entries that are all zero is zero."""
    codes = (x / scale).nan_to_num(0).round().clamp(-LARGEST_CODE, LARGEST_CODE)
    return scale * codes


def rounded(table: Tensor, dim: int) -> Tensor:
    """As table.rounded, of a table whose entries lie along ``dim``."""
    return nearest(table, scale_of(table, dim))
