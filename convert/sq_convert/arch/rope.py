"""Rotary positions: what each scaling that transformers knows comes to, as numbers that a file can hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ConvertError

_COMMON = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
_PARAMETERS: dict[str, set[str]] = {
    "default": set(),
    "linear": {"factor"},
    "dynamic": {"factor"},
    "llama3": {"factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"},
    "yarn": {"factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow",
             "mscale", "mscale_all_dim", "truncate"},
    "longrope": {"factor", "original_max_position_embeddings", "attention_factor", "short_factor",
                 "long_factor"},
}  # fmt: skip


@dataclass(frozen=True)
class Rope:
    """A rotary embedding, as its difference from the plain one of the same base."""

    theta: float  # the base
    n_rot: int  # dimensions of a head that rotate
    scale: float = 1.0  # of cosines and sines
    divisors: NDArray[np.float32] | None = None  # of the plain frequencies, [n_rot / 2]; None: all 1
    long_divisors: NDArray[np.float32] | None = None  # in their place for more than n_short tokens
    n_short: int = 0


def read_rope(config: Any) -> Rope:
    """The rotary embedding of a configuration; ConvertError where its type or a parameter is unknown.

    ``dynamic`` scaling is none up to ``max_position_embeddings``, where the context ends: past it, every new
    token would turn all the others anew.
    """
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    parameters = config.rope_parameters
    kind, theta = parameters["rope_type"], float(parameters["rope_theta"])
    _check(kind, parameters)
    n_rot = int(head_dim(config) * parameters.get("partial_rotary_factor", 1.0))
    if kind in ("default", "dynamic"):
        return Rope(theta, n_rot)
    plain = theta ** -(np.arange(0, n_rot, 2, dtype=np.float64) / n_rot)

    def divisors(seq_len: int | None) -> tuple[NDArray[np.float32], float]:
        frequencies, scale = ROPE_INIT_FUNCTIONS[kind](config, "cpu", seq_len=seq_len)
        return np.asarray(plain / frequencies.numpy(), np.float32), float(scale)

    short, scale = divisors(None)
    if kind != "longrope":
        return Rope(theta, n_rot, scale, short)
    n_short = int(parameters["original_max_position_embeddings"])
    return Rope(theta, n_rot, scale, short, divisors(n_short + 1)[0], n_short)


def _check(kind: str, parameters: dict[str, Any]) -> None:
    if kind not in _PARAMETERS:
        raise ConvertError(
            f"config.json: rope scaling {kind!r} is not supported; supported are: {', '.join(_PARAMETERS)}."
        )
    for name, value in parameters.items():
        if value is not None and name not in _COMMON | _PARAMETERS[kind]:
            raise ConvertError(
                f"config.json: rope parameter {name} is {value!r}, which {kind!r} scaling does not know."
            )


def head_dim(config: Any) -> int:
    """Dimensions of each head of queries, keys and values."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
