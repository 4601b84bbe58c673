"""--bpw: the budget is kept and used, more of it never loses more; a plan is followed, or refused."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
from sq_convert import allocate
from sq_convert.allocate import Losses, Plan, Setting, settings
from sq_convert.arch import Kind, Tensor
from sq_convert.cli import main

SETTINGS = settings(8)
OPTIONS = ("--samples", "6", "--seq-len", "64", "--threads", "1")


def model(seed: int) -> tuple[list[Tensor], Losses]:
    """Matrices of many shapes whose losses fall with bits and kept weights, each in its own way."""
    random = np.random.default_rng(seed)
    matrices, losses = [], {}
    for i in range(30):
        shape = (int(random.integers(32, 700)), int(random.integers(64, 3000)))
        matrices.append(Tensor(f"blk.{i}.ffn_up.weight", "x", shape, Kind.MATRIX, block=i))
        scale, rate = np.exp(2 * random.standard_normal()), random.uniform(2, 5)
        gain = random.uniform(0, 0.6)
        losses[matrices[-1].name] = {
            s: float(scale * rate**-s.bits * (1 - gain * (s.outliers / 2) ** 0.5)) for s in SETTINGS
        }
    return matrices, losses


def loss(plan: Plan, losses: Losses) -> float:
    return sum(allocate.interpolate(losses[name], setting) for name, setting in plan.items())


@pytest.mark.parametrize("seed", range(4))
def test_the_budget_is_met_and_more_of_it_never_loses_more(seed: int) -> None:
    matrices, losses = model(seed)
    least = allocate.least_bits(matrices, 8)
    before = np.inf
    for bpw in np.linspace(least, 4.3, 60):
        plan = allocate.allocate(matrices, losses, float(bpw))
        assert bpw - 0.01 < allocate.bits_per_weight(matrices, plan) <= bpw
        assert loss(plan, losses) <= before
        before = loss(plan, losses)


def test_no_exchange_between_two_matrices_would_help() -> None:
    """Of all pairs of settings of two matrices that take no more bytes, the plan's lose least, nearly."""
    matrices, losses = model(9)
    plan = allocate.allocate(matrices, losses, 3.3)
    a, b = matrices[3], matrices[4]
    budget = plan[a.name].n_bytes(a) + plan[b.name].n_bytes(b)
    best = min(
        losses[a.name][s] + losses[b.name][t]
        for s in SETTINGS
        for t in SETTINGS
        if s.n_bytes(a) + t.n_bytes(b) <= budget
    )
    found = sum(allocate.interpolate(losses[t.name], plan[t.name]) for t in (a, b))
    assert found <= 1.1 * best


def test_a_plan_is_made_saved_edited_and_followed(
    stories: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, path = tmp_path / "m.sq.gguf", tmp_path / "plan.json"
    command = [str(stories), "-o", str(out), *OPTIONS]
    assert main([*command, "--bpw", "4", "--plan", str(path)]) == 0
    said = capsys.readouterr().err
    assert "true bits" in said
    assert "blk.4.ffn_down.weight" in said
    made = out.read_bytes()
    plan = json.loads(path.read_text())
    parts = [t for t in gguf.GGUFReader(out).tensors if t.name.rsplit(".", 1)[0] in plan]
    n_weights = 5 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 172 * 64)
    assert 3.99 < 8 * sum(int(t.n_bytes) for t in parts) / n_weights <= 4
    assert main([*command, "--plan", str(path)]) == 0
    assert out.read_bytes() == made

    name = "blk.2.ffn_gate.weight"
    plan[name] = {"bits": 4, "outliers": 1}
    path.write_text(json.dumps(plan))
    assert main([*command, "--plan", str(path)]) == 0
    tensors = {t.name: t.data for t in gguf.GGUFReader(out).tensors}
    assert tensors[f"{name}.lut"].shape == (172, 16)
    assert tensors[f"{name}.vals"].size == round(0.01 * 172 * 64)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda plan: "{", "is no JSON"),
        (lambda plan: "[" * 100_000, "is no JSON"),
        (lambda plan: [plan], "expected a JSON object"),
        (lambda plan: {**plan, "blk.9.attn_q.weight": plan["blk.0.attn_q.weight"]}, "does not have blk.9"),
        (lambda plan: dict(list(plan.items())[1:]), "has blk.0.attn_q.weight too"),
        (lambda plan: {**plan, "blk.0.attn_q.weight": 4}, 'with "bits" and "outliers" alone'),
        (lambda plan: {**plan, "blk.0.attn_q.weight": {"bits": 5, "outliers": 0}}, '"bits" is 5'),
        (lambda plan: {**plan, "blk.0.attn_q.weight": {"bits": True, "outliers": 0}}, '"bits" is True'),
        (lambda plan: {**plan, "blk.0.attn_q.weight": {"bits": 4, "outliers": float("nan")}}, "is nan"),
        (lambda plan: {**plan, "blk.0.attn_q.weight": {"bits": 4, "outliers": 51}}, "is 51"),
    ],
)
def test_a_wrong_plan_is_refused(
    change: object, said: str, stories: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from sq_convert.checkpoint import check_tensors, open_checkpoint

    matrices = [t for t in check_tensors(open_checkpoint(stories)) if t.kind is Kind.MATRIX]
    path = tmp_path / "plan.json"
    changed = change({t.name: {"bits": 4, "outliers": 0.5} for t in matrices})  # type: ignore[operator]
    path.write_text(changed if isinstance(changed, str) else json.dumps(changed))
    assert main([str(stories), "-o", str(tmp_path / "m.sq.gguf"), "--plan", str(path), "--dry-run"]) == 1
    assert said in capsys.readouterr().err


def test_options_that_contradict_a_budget(stories: Path, tmp_path: Path) -> None:
    command = [str(stories), "-o", str(tmp_path / "m.sq.gguf"), "--dry-run", "--bpw"]
    assert main([*command, "4"]) == 0
    for options in (["4", "--bits", "3"], ["4", "--outliers", "1"], ["4", "--method", "rtn"], ["1"], ["nan"]):
        assert main([*command, *options]) == 2
    assert main([*command, "2.1"]) == 1


def test_a_setting_counts_tables_pointers_and_kept_weights() -> None:
    tensor = Tensor("x", "x", (10, 128), Kind.MATRIX)
    assert Setting(4, 0.0, 16).n_bytes(tensor) == 10 * (64 + 32)
    assert Setting(4, 0.0, 8).n_bytes(tensor) == 10 * (64 + 18)
    assert Setting(4, 1.0, 16).n_bytes(tensor) == 10 * (64 + 32) + 4 * 11 + 13 * 4
