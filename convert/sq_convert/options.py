"""What the user asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .measure import FISHER, MOMENTS, Measure
from .table import table_bits_of

PACKED_SUFFIXES = (".pt", ".pth", ".bin")  # of the original SqueezeLLM's packed checkpoints
METHODS = ("guided", "squeezellm", "kmeans", "rtn")
_MEASURES = {"guided": MOMENTS, "squeezellm": FISHER}


@dataclass(frozen=True)
class Options:
    """Checked options of one conversion; the command line says what they mean."""

    model: Path
    out: Path
    config: Path | None = None  # of a packed checkpoint: the folder it was made from
    bits: int = 4
    outliers: float = 0.45  # percent
    sensitive: float = 0.0  # percent, of squeezellm
    method: str = "guided"
    fisher: Path | None = None  # a gradient checkpoint, in place of calibration
    calibration: Path | None = None  # None: the text inside the package
    samples: int = 100
    seq_len: int = 512
    seed: int = 0
    device: str = "auto"
    threads: int = 1
    workers: int = 1  # processes that quantize
    cluster: str | None = None  # tcp://HOST:PORT of a Dask scheduler whose workers quantize
    head_bits: int = 8
    tune: int = 0  # steps
    bpw: float | None = None  # bits a weight, shared out among the matrices
    plan: Path | None = None  # how they are shared out already
    plan_out: Path | None = None  # where to write how
    keep_work: bool = False  # for another conversion of the same model

    @property
    def quantizes(self) -> bool:
        return self.bits != 16

    @property
    def packed(self) -> bool:
        """Whether the model is quantized already, by the original SqueezeLLM."""
        return self.model.suffix in PACKED_SUFFIXES and not self.model.is_dir()

    @property
    def measure(self) -> Measure | None:
        """What the method has to know of each matrix besides its weights."""
        return _MEASURES.get(self.method) if self.quantizes and not self.packed else None

    @property
    def table_bits(self) -> int:
        """Of an entry of a matrix's tables in the file."""
        return table_bits_of(self.method)

    @property
    def allocates(self) -> bool:
        """Whether bits are still to be shared out."""
        return self.bpw is not None and self.plan is None

    @property
    def calibrates(self) -> bool:
        return self.measure is not None and self.fisher is None

    @property
    def reads_text(self) -> bool:
        """Whether the calibration text is used."""
        return self.calibrates or self.tune > 0

    @property
    def uses_device(self) -> bool:
        """Whether anything is computed that a GPU could: calibration, clustering, refinement or tuning."""
        return self.reads_text or (self.quantizes and not self.packed and self.method != "rtn")
