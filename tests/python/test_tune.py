"""--tune: what it moves and what it leaves alone, that it helps, and that it never makes worse."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from sq_convert import memory, pipeline, tune
from sq_convert.arch import Kind, Tensor
from sq_convert.calibrate import choose_sequences, read_text
from sq_convert.cli import main
from sq_convert.quantize import Recipe, decode_matrix, quantize_matrix
from sq_convert.table import sums_of, values_of
from torch.nn.functional import kl_div
from transformers import AutoModelForCausalLM, AutoTokenizer

OPTIONS = ("--bits", "3", "--method", "kmeans", "--samples", "8", "--seq-len", "64", "--threads", "1")
TUNE = (*OPTIONS, "--tune", "30")


def converted(stories: Path, out: Path, *options: str) -> dict[str, np.ndarray]:
    assert main([str(stories), "-o", str(out), *options]) == 0
    return {tensor.name: np.array(tensor.data) for tensor in gguf.GGUFReader(out).tensors}


@pytest.fixture(scope="module")
def files(stories: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of stories260K as it is before tuning and after."""
    folder = tmp_path_factory.mktemp("tune")
    converted(stories, folder / "before.sq.gguf", *OPTIONS)
    converted(stories, folder / "after.sq.gguf", *TUNE)
    return folder


@pytest.mark.parametrize("method", ["rtn", "squeezellm"])
def test_a_table_collects_the_gradients_of_its_weights(method: str) -> None:
    random = np.random.default_rng(1)
    values = random.normal(size=(3, 100)).astype(np.float32)
    parts = quantize_matrix(values, np.ones_like(values), Recipe(3, method, 2.0, 0.0), 1)
    table = tune._Table(Tensor("x", "x", values.shape, Kind.MATRIX), parts, "cpu", 2)
    decoded = decode_matrix(parts, 100, 3)
    assert (table.weights().numpy() == decoded).all()
    assert all((values == parts[name.removeprefix("x.")]).all() for name, values in table.parts().items())
    # A loss that is linear in the weights changes by a table's change times its gradient.
    gradient = random.normal(size=values.shape).astype(np.float32)
    table.add_gradient(torch.from_numpy(gradient))
    change = random.normal(size=table.moved.shape).astype(np.float32)
    table.moved += torch.from_numpy(change)
    expected = float((gradient * (table.weights().numpy() - decoded)).sum())
    assert float((table.moved.grad.numpy() * change).sum()) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("shape", [(1, 1), (3, 100), (33, 7), (40, 577)])
@pytest.mark.parametrize("k", [4, 8, 16])
def test_values_and_sums_of_tables(shape: tuple[int, int], k: int) -> None:
    random = np.random.default_rng(k)
    indices = random.integers(0, k, shape, np.uint8)
    values = random.normal(size=shape).astype(np.float32)
    table = random.normal(size=(shape[0], k)).astype(np.float32)
    chosen = indices[:, None, :] == np.arange(k)[None, :, None]  # [n_rows, k, n_cols]
    expected = np.where(chosen, values[:, None, :].astype(np.float64), 0).sum(axis=2)
    sums = sums_of(values, indices, k, 1)
    assert np.allclose(sums, expected, rtol=1e-6, atol=1e-5)
    assert (sums == sums_of(values, indices, k, 3)).all()
    for threads in (1, 3):
        assert (values_of(table, indices, threads) == np.take_along_axis(table, indices, axis=1)).all()


def test_tables_and_norms_alone_are_tuned(files: Path) -> None:
    before, after = (
        {tensor.name: np.array(tensor.data) for tensor in gguf.GGUFReader(files / name).tensors}
        for name in ("before.sq.gguf", "after.sq.gguf")
    )
    assert before.keys() == after.keys()
    for name, values in before.items():
        moved = (after[name] != values).any()
        if not name.endswith(".lut_scale"):  # which moves with a table's largest entry alone
            assert moved == (name.endswith(".lut") or "norm" in name), name


def test_tuning_brings_the_model_nearer_on_sequences_held_out(stories: Path, files: Path) -> None:
    sequences = choose_sequences(AutoTokenizer.from_pretrained(stories), *read_text(None), 8, 64, 0)
    ids = torch.from_numpy(tune.split(sequences)[0])
    found = []
    for folder in (stories, files / "before", files / "after"):
        if folder != stories:
            assert main([f"{folder}.sq.gguf", "-o", str(folder), "--dequantize"]) == 0
        with torch.no_grad():
            found.append(
                AutoModelForCausalLM.from_pretrained(folder)(ids).logits.log_softmax(-1).flatten(0, 1)
            )
    before, after = (float(kl_div(f, found[0], reduction="batchmean", log_target=True)) for f in found[1:])
    assert after < 0.95 * before


def test_steps_that_lead_nowhere_change_nothing(
    stories: Path, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    before = {
        tensor.name: np.array(tensor.data) for tensor in gguf.GGUFReader(files / "before.sq.gguf").tensors
    }
    for rate in (1e10, 1e30):
        monkeypatch.setattr(tune, "LEARNING_RATE", rate)
        found = converted(stories, tmp_path / "m.sq.gguf", *TUNE)
        assert "no step is better" in capsys.readouterr().err
        assert found.keys() == before.keys()
        assert all((found[name] == before[name]).all() for name in before)


def test_steps_too_large_become_smaller(
    stories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tune, "LEARNING_RATE", 5.0)
    converted(stories, tmp_path / "m.sq.gguf", *TUNE)
    assert "no step is better" not in capsys.readouterr().err
    monkeypatch.setattr(tune, "SLOWER", 1)
    converted(stories, tmp_path / "m.sq.gguf", *TUNE)
    assert "no step is better" in capsys.readouterr().err


def test_interrupted_tuning_starts_over_from_the_quantized_rows(
    stories: Path, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = tmp_path / "m.sq.gguf"
    command = [str(stories), "-o", str(out), *TUNE]

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    for owner, function, said in (
        (tune._Model, "judge", "quantize: 5 of 5 blocks are done already."),
        (pipeline, "_write", "tune: done already."),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(owner, function, interrupt)
            assert main(command) == 130
        capsys.readouterr()
        assert main(command) == 0
        assert said in capsys.readouterr().err
        assert out.read_bytes() == (files / "after.sq.gguf").read_bytes()


def test_what_does_not_fit_or_makes_no_sense_is_said_at_once(
    stories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [str(stories), "-o", str(tmp_path / "m.sq.gguf"), "--tune", "5"]
    assert main([*command, "--bits", "16"]) == 2
    assert main([*command, "--samples", "1"]) == 2
    capsys.readouterr()
    monkeypatch.setattr(memory, "available_bytes", lambda device: 100_000_000)
    assert main(command) == 1
    assert "holds the original and the quantized model at once" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    assert main([*command, "--dry-run"]) == 0
    assert "for tuning, which holds the original and the quantized model" in capsys.readouterr().out
