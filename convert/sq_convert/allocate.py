"""Bits and kept weights of each matrix, chosen so that the model errs least within a budget of bits.

Each matrix can be quantized in several ways, its choices, each of a size and an estimated loss. Of these only
the corners of the lower convex hull are worth taking; from the cheapest ones on, the step that gains most for
its bytes is taken next, until the budget has no room for it (H. Everett, "Generalized Lagrange multiplier
method", 1963; Y. Shoham and A. Gersho, "Efficient bit allocation for an arbitrary set of quantizers", 1988).
What is left of the budget keeps further weights.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from .arch import Tensor
from .errors import ConvertError, count, some
from .pack import WIDTHS
from .quantize import part_bytes

SHARES = (0.0, 0.5, 1.5)  # percent of a matrix's weights, among which a plan chooses
MAX_SHARE = 50.0  # percent, that a plan may ask for
MAX_FILE_BYTES = 64 << 20


@dataclass(frozen=True)
class Setting:
    """How one matrix is quantized."""

    bits: int  # of pack.WIDTHS
    outliers: float  # percent
    table_bits: int  # of an entry of its tables

    def n_bytes(self, tensor: Tensor) -> int:
        """Of the matrix in the file: indices, tables, kept weights and where they are."""
        return self.n_bytes_with(tensor, round(tensor.n_weights * self.outliers / 100))

    def n_bytes_with(self, tensor: Tensor, n_kept: int) -> int:
        """The same with so many kept weights."""
        return part_bytes(tensor.shape, self.bits, self.table_bits, n_kept)


N_SETTINGS = len(WIDTHS) * len(SHARES)


def settings(table_bits: int) -> list[Setting]:
    """Those that a plan chooses among, the smallest first."""
    return [Setting(bits, share, table_bits) for bits in WIDTHS for share in SHARES]


Plan = dict[str, Setting]  # by the matrix's name
Losses = Mapping[str, Mapping[Setting, float]]  # of settings(), by the matrix's name


def bits_per_weight(matrices: Sequence[Tensor], plan: Plan) -> float:
    """What is stored for a weight, on average."""
    n_bytes = sum(plan[tensor.name].n_bytes(tensor) for tensor in matrices)
    return 8 * n_bytes / sum(tensor.n_weights for tensor in matrices)


def least_bits(matrices: Sequence[Tensor], table_bits: int) -> float:
    """The smallest budget that there is a plan for."""
    return bits_per_weight(matrices, {tensor.name: settings(table_bits)[0] for tensor in matrices})


def allocate(matrices: Sequence[Tensor], losses: Losses, bpw: float) -> Plan:
    """The plan of least loss of at most ``bpw`` bits a weight, which is ``least_bits`` or more."""
    steps = [
        (gain / n_bytes, tensor, setting)
        for tensor in matrices
        for gain, n_bytes, setting in _steps(tensor, losses[tensor.name])
    ]
    steps.sort(key=lambda step: -step[0])  # stable: along a hull the gain falls
    plan = {tensor.name: next(iter(losses[tensor.name])) for tensor in matrices}
    left = int(bpw * sum(tensor.n_weights for tensor in matrices) / 8)
    left -= sum(plan[tensor.name].n_bytes(tensor) for tensor in matrices)
    for _, tensor, setting in steps:
        cost = setting.n_bytes(tensor) - plan[tensor.name].n_bytes(tensor)
        if cost > left:
            return _fill(matrices, plan, left)
        plan[tensor.name] = setting
        left -= cost
    return plan


def interpolate(losses: Mapping[Setting, float], setting: Setting) -> float:
    """The loss of a setting whose share may lie between two of SHARES, at most at the last one."""
    known = [losses[replace(setting, outliers=share)] for share in SHARES]
    return float(np.interp(setting.outliers, SHARES, known))


def _steps(tensor: Tensor, losses: Mapping[Setting, float]) -> Iterator[tuple[float, int, Setting]]:
    """From corner to corner of the hull: what a step gains, its bytes, and where it leads."""
    here = next(iter(losses))
    while True:
        size = here.n_bytes(tensor)
        further = [
            ((losses[here] - losses[s]) / (s.n_bytes(tensor) - size), s.n_bytes(tensor), s)
            for s in losses
            if s.n_bytes(tensor) > size and losses[s] < losses[here]
        ]
        if not further:
            return
        _, n_bytes, best = max(further, key=lambda step: step[:2])
        yield losses[here] - losses[best], n_bytes - size, best
        here = best


def _fill(matrices: Sequence[Tensor], plan: Plan, left: int) -> Plan:
    """Keeps more weights with the bytes that are left: where some are kept already, then elsewhere."""
    for tensor in sorted(matrices, key=lambda t: (plan[t.name].outliers == 0, t.shape[0])):
        here = plan[tensor.name]
        n_kept = round(tensor.n_weights * here.outliers / 100)
        most = round(tensor.n_weights * SHARES[-1] / 100)
        size = here.n_bytes(tensor)
        each = here.n_bytes_with(tensor, 2) - here.n_bytes_with(tensor, 1)
        first = here.n_bytes_with(tensor, n_kept + 1) - size
        if n_kept >= most or first > left:
            continue
        n_kept = min(most, n_kept + 1 + (left - first) // each)
        plan[tensor.name] = replace(here, outliers=100 * n_kept / tensor.n_weights)
        left -= plan[tensor.name].n_bytes(tensor) - size
    return plan


# ---- file ------------------------------------------------------------------------------


def write_plan(path: Path, plan: Plan) -> None:
    """A JSON object: {"blk.0.attn_q.weight": {"bits": 3, "outliers": 0.5}, …}, a matrix a line."""
    lines = [
        f"{json.dumps(name)}: {json.dumps({'bits': s.bits, 'outliers': s.outliers})}"
        for name, s in plan.items()
    ]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def read_plan(path: Path, matrices: Sequence[Tensor], table_bits: int) -> Plan:
    """The plan in a file, for just these matrices; ConvertError where it is none."""
    if not path.is_file():
        raise ConvertError(f"{path}: no such plan; --bpw writes one where --plan says.")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise ConvertError(f"{path}: larger than {MAX_FILE_BYTES >> 20} MB, which no plan is.")
    try:
        read = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ConvertError(f"{path}: the plan is no JSON: {error}.") from error
    if not isinstance(read, dict):
        raise ConvertError(f"{path}: expected a JSON object with a member for each matrix.")
    names = [tensor.name for tensor in matrices]
    unknown, missing = [n for n in read if n not in set(names)], [n for n in names if n not in read]
    if unknown or missing:
        what = f"does not have {some(unknown)}" if unknown else f"has {some(missing)} too"
        wrong = count(unknown or missing, "matrix", "matrices")
        raise ConvertError(f"{path}: the plan is another model's: this one {what} ({wrong}).")
    return {name: _setting(f"{path}: {name}", read[name], table_bits) for name in names}


def _setting(where: str, value: Any, table_bits: int) -> Setting:
    if not isinstance(value, dict) or value.keys() != {"bits", "outliers"}:
        raise ConvertError(f'{where}: expected an object with "bits" and "outliers" alone.')
    bits, share = value["bits"], value["outliers"]
    if type(bits) is not int or bits not in WIDTHS:
        raise ConvertError(f'{where}: "bits" is {bits!r:.40}, expected one of {", ".join(map(str, WIDTHS))}.')
    if type(share) not in (int, float) or not 0 <= share <= MAX_SHARE:
        raise ConvertError(
            f'{where}: "outliers" is {share!r:.40}, expected a share between 0 and {MAX_SHARE:g} percent.'
        )
    return Setting(bits, float(share), table_bits)
