"""The rows of the table: settings of sq-convert, and types of llama.cpp."""

from __future__ import annotations

from typing import NamedTuple


class Row(NamedTuple):
    """A way to quantize."""

    name: str
    options: tuple[str, ...] = ()
    """Of sq-convert; none: `name` is a type of llama.cpp."""

    @property
    def label(self) -> str:
        return f"`{' '.join(self.options)}`" if self.options else f"llama.cpp {self.name}, importance matrix"


def _uncalibrated(method: str, bits: int) -> tuple[str, ...]:
    return ("--method", method, "--bits", str(bits), "--outliers", "0")


def _squeezellm(bits: int, outliers: float, sensitive: float) -> tuple[str, ...]:
    kept = ("--outliers", f"{outliers:g}", "--sensitive", f"{sensitive:g}")
    return ("--method", "squeezellm", "--bits", str(bits), *kept)


def _guided(bits: int, outliers: float, tune: int) -> tuple[str, ...]:
    steps = ("--tune", str(tune)) if tune else ()
    return ("--method", "guided", "--bits", str(bits), "--outliers", f"{outliers:g}", *steps)


ROWS = [  # what can use what the row before has left follows it
    *(
        Row(f"{method}-{bits}-0", _uncalibrated(method, bits))
        for method in ("rtn", "kmeans")
        for bits in (3, 4)
    ),
    *(
        Row(f"squeezellm-{bits}-{outliers + sensitive:g}", _squeezellm(bits, outliers, sensitive))
        for bits in (3, 4)
        for outliers, sensitive in ((0, 0), (0.45, 0.05))
    ),
    *(
        Row(f"guided-{bits}-{outliers:g}" + "-tuned" * (tune > 0), _guided(bits, outliers, tune))
        for bits, outliers in ((3, 0), (3, 0.5), (4, 0), (4, 0.5), (4, 1))
        for tune in (0, 100)
    ),
    *(Row(f"bpw-{bpw}", ("--bpw", bpw)) for bpw in ("3.5", "4.0", "4.5")),
    # 576 inputs are no multiple of 256: most matrices of the K types and IQ3 fall back to a larger type.
    *map(Row, ("Q4_0", "IQ4_NL", "IQ4_XS", "Q3_K_M", "Q4_K_M", "IQ3_S", "IQ3_XXS")),
]
