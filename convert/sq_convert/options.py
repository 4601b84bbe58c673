"""What the user asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

METHODS = ("squeezellm", "kmeans", "rtn")


@dataclass(frozen=True)
class Options:
    """Checked options of one conversion; the command line says what they mean."""

    model: Path
    out: Path
    bits: int = 4
    outliers: float = 0.45  # percent
    sensitive: float = 0.05  # percent
    method: str = "squeezellm"
    calibration: Path | None = None  # None: the text inside the package
    samples: int = 100
    seq_len: int = 512
    seed: int = 0
    device: str = "auto"
    threads: int = 1
    head_bits: int = 8

    @property
    def quantizes(self) -> bool:
        return self.bits != 16

    @property
    def calibrates(self) -> bool:
        return self.quantizes and self.method == "squeezellm"
