"""Gradient checkpoints of the original in place of calibration."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sq_convert.cli import main
from sq_convert.quantize import Recipe, quantize_matrix

OFFICIAL = Path(__file__).parent.parent / "data" / "official"
UP = "model.layers.1.mlp.up_proj.weight"
OPTIONS = ("--method", "squeezellm", "--bits", "3", "--sensitive", "0.5")

Weights = dict[str, Any]


@pytest.fixture(scope="module")
def model(stories: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model that the original quantized, as a folder."""
    folder = tmp_path_factory.mktemp("fisher") / "model"
    folder.mkdir()
    packed = torch.load(OFFICIAL / "sq-tiny-w4-s0.pt", weights_only=True)
    rest = {name: values for name, values in packed.items() if name.endswith(".weight")}
    save_file(rest | load_file(OFFICIAL / "weights.safetensors"), folder / "model.safetensors")
    for path in (OFFICIAL / "config.json", *stories.glob("tokenizer*")):
        shutil.copy(path, folder)
    return folder


@pytest.fixture
def gradients(tmp_path: Path) -> Path:
    folder = tmp_path / "gradients"
    folder.mkdir()
    shutil.copy(OFFICIAL / "fisher.safetensors", folder / "model.safetensors")
    return folder


def test_they_weight_the_clustering(model: Path, gradients: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.sq.gguf"
    assert main([str(model), "--fisher", str(gradients), "-o", str(out), *OPTIONS]) == 0
    reader = gguf.GGUFReader(out)
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    values, fisher = (
        load_file(OFFICIAL / f"{name}.safetensors")[UP].float().numpy() for name in ("weights", "fisher")
    )
    expected = quantize_matrix(values, fisher, Recipe(3, "squeezellm", 0.45, 0.5), 1)
    assert all((tensors[f"blk.1.ffn_up.weight.{part}"] == data).all() for part, data in expected.items())
    other = quantize_matrix(values, None, Recipe(3, "squeezellm", 0.45, 0.5), 1)
    assert (tensors["blk.1.ffn_up.weight.lut"] != other["lut"]).any()
    field = reader.get_field("squeezellm.calibration")
    assert field is not None
    assert field.contents() == "gradient checkpoint gradients"


def test_shards_of_torch_save_give_the_same(model: Path, gradients: Path, tmp_path: Path) -> None:
    pickled = tmp_path / "pickled" / "gradients"
    pickled.mkdir(parents=True)
    torch.save(load_file(OFFICIAL / "fisher.safetensors"), pickled / "pytorch_model.bin")
    contents = []
    for folder in (gradients, pickled):
        out = tmp_path / f"{folder.parent.name}.sq.gguf"
        assert main([str(model), "--fisher", str(folder), "-o", str(out), *OPTIONS]) == 0
        contents.append(out.read_bytes())
    assert contents[0] == contents[1]


def test_others_than_before_are_not_resumed_with(
    model: Path, gradients: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = tmp_path / "m.sq.gguf"
    command = [str(model), "--fisher", str(gradients), "-o", str(out), *OPTIONS]
    with monkeypatch.context() as patch:
        patch.setattr("sq_convert.pipeline._write", lambda job: (_ for _ in ()).throw(KeyboardInterrupt))
        assert main(command) == 130
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler  # the caller's, as it was
    weights = load_file(gradients / "model.safetensors")
    weights[UP][0, 0] += 1
    save_file(weights, gradients / "model.safetensors")
    assert main(command) == 0
    assert "quantize: starting over (changed since: --fisher model.safetensors)" in capsys.readouterr().err


def edited(change: Callable[[Weights], object]) -> Callable[[Path], object]:
    def edit(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors")

    return edit


def put(value: float) -> Callable[[Path], object]:
    return edited(lambda weights: weights[UP][3].fill_(value))


REFUSALS: dict[str, tuple[Callable[[Path], object], str]] = {
    "negative": (put(-1.0), f"{UP} holds a negative number"),
    "nan": (put(np.nan), f"{UP} holds a negative number or none at all"),
    "infinite": (put(np.inf), f"{UP} holds a negative number or none at all"),
    "missing": (edited(lambda weights: weights.pop(UP)), f"1 matrix is missing: {UP}"),
    "shape": (
        edited(lambda weights: weights.update({UP: torch.zeros(352, 64)})),
        "has shape [352, 64], in the model [352, 128]",
    ),
    "empty": (lambda folder: (folder / "model.safetensors").unlink(), "14 matrices are missing"),
    "nowhere": (shutil.rmtree, "no such folder; --fisher names a gradient checkpoint"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(
    case: str, model: Path, gradients: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage, expected = REFUSALS[case]
    damage(gradients)
    out = tmp_path / "m.sq.gguf"
    assert main([str(model), "--fisher", str(gradients), "-o", str(out), *OPTIONS]) == 1
    assert expected in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("options", [("--samples", "5"), ("--method", "rtn"), ("--bits", "16")])
def test_options_that_contradict(
    options: tuple[str, ...], model: Path, gradients: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [str(model), "--fisher", str(gradients), "-o", str(gradients / "x"), *options]
    assert main(command) == 2
    assert "--fisher" in capsys.readouterr().err
