"""Hostile inputs to sq-convert: one clear sentence, a non-zero status, and no output, whole or partial."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from sq_convert.cli import main

Edit = Callable[[Path], object]


@pytest.fixture
def model(stories: Path, tmp_path: Path) -> Path:
    """A copy of stories260K to damage."""
    folder = tmp_path / "model"
    shutil.copytree(stories, folder)
    return folder


def refuses(
    capsys: pytest.CaptureFixture[str], model: Path, *options: str, status: int = 1, out: str = "out.sq.gguf"
) -> str:
    """Runs sq-convert, which must fail with one line; returns it. Nothing may be left behind."""
    path = model.parent / out
    before = set(model.parent.iterdir())
    capsys.readouterr()
    assert main([str(model), "-o", str(path), *options]) == status
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("sq-convert: ")]
    assert len(said) == 1
    assert set(model.parent.iterdir()) == before
    return said[0].removeprefix("sq-convert: ")


def change_config(model: Path, **changes: Any) -> None:
    path = model / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def change_weights(model: Path, change: Callable[[dict[str, Any]], object]) -> None:
    weights = {name: values.copy() for name, values in load_file(model / "model.safetensors").items()}
    change(weights)
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})


# ---- the model --------------------------------------------------------------------------------


def test_no_such_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no such file or folder" in refuses(capsys, tmp_path / "nowhere")


def test_a_folder_that_is_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "photos").mkdir()
    assert "is no Hugging Face model folder" in refuses(capsys, tmp_path / "photos")


CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "gpt_neox": ({"model_type": "gpt_neox"}, "'gpt_neox' is not supported; supported are: gemma2"),
    "none": ({"model_type": None}, "is not supported; supported are"),
    "field": ({"clip_qkv": 8.0}, "clip_qkv is 8.0, which is not understood"),
    "rope": (
        {"rope_parameters": {"rope_type": "proportional", "rope_theta": 1e4}},
        "rope scaling 'proportional' is not supported; supported are: default, linear, dynamic, llama3",
    ),
    "factor": (
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4}},
        'transformers refuses it: "Missing required keys',
    ),
    "mscale": (
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4, "short_mscale": 1.1}},
        "rope parameter short_mscale is 1.1",
    ),
    "partial": ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
    "gelu": ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; only 'silu'"),
    "quantized": ({"quantization_config": {"quant_method": "awq"}}, "quantized already"),
    "text": ({"hidden_size": "wide"}, "transformers refuses it"),
    "layers": ({"num_hidden_layers": 6}, "9 tensors are missing: model.layers.5"),
    "fewer": ({"num_hidden_layers": 4}, "9 tensors have no place in this architecture: model.layers.4"),
    "shape": ({"intermediate_size": 170}, "has shape [172, 64]; the configuration implies [170, 64]"),
    "untied": ({"tie_word_embeddings": False}, "1 tensor is missing: lm_head.weight"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_configurations(case: str, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes, expected = CONFIGS[case]
    change_config(model, **changes)
    assert expected in refuses(capsys, model, "--bits", "16")


def test_damaged_json(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (model / "config.json").write_text('{"model_type": "llama"')
    assert "config.json: not readable as JSON" in refuses(capsys, model)


def cut_short(model: Path) -> None:
    os.truncate(model / "model.safetensors", 500_000)


def nonsense(model: Path) -> None:
    (model / "model.safetensors").write_bytes(os.urandom(1000))


class _Pickled:
    """What a harmful checkpoint holds: a call."""

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return os.system, ("touch /tmp/sq-convert-was-here",)


def harmful(model: Path) -> None:
    no_weights(model)
    torch.save({"a": _Pickled()}, model / "pytorch_model.bin")


def old_pickle(model: Path) -> None:
    no_weights(model)
    torch.save({"a": torch.ones(1)}, model / "pytorch_model.bin", _use_new_zipfile_serialization=False)


def pickled_list(model: Path) -> None:
    no_weights(model)
    torch.save([torch.ones(1)], model / "pytorch_model.bin")


def pickled_codes(model: Path) -> None:
    no_weights(model)
    torch.save({"a": torch.ones(1, dtype=torch.int8)}, model / "pytorch_model.bin")


def no_weights(model: Path) -> None:
    (model / "model.safetensors").unlink()


def missing_shard(model: Path) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))


def shard_elsewhere(model: Path) -> None:
    index = {"weight_map": {"a": "../../etc/passwd"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))


def not_a_number(model: Path) -> None:
    change_weights(model, lambda w: w["model.layers.2.mlp.up_proj.weight"].__setitem__((3, 5), np.nan))


def too_large(model: Path) -> None:
    change_weights(model, lambda w: w["model.layers.2.mlp.up_proj.weight"].__setitem__((3, 5), 1e6))


def no_tokenizer(model: Path) -> None:
    for path in model.glob("tokenizer*"):
        path.unlink()


def without_tensor(model: Path) -> None:
    change_weights(model, lambda w: w.pop("model.layers.3.self_attn.q_proj.weight"))


def integers(model: Path) -> None:
    name = "model.layers.3.self_attn.q_proj.weight"
    change_weights(model, lambda w: w.__setitem__(name, w[name].astype(np.int8)))


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (cut_short, "model.safetensors: damaged or no safetensors file"),
        (nonsense, "model.safetensors: damaged or no safetensors file"),
        (harmful, "pytorch_model.bin: damaged, or not a dictionary of tensors"),
        (old_pickle, "pytorch_model.bin: damaged, or not a dictionary of tensors"),
        (pickled_list, "pytorch_model.bin: holds no dictionary of tensors by name"),
        (pickled_codes, "pytorch_model.bin: a is no tensor of floating-point numbers"),
        (no_weights, "there are no weights in it; expected model.safetensors"),
        (missing_shard, "1 shard is missing: model-00002-of-00002.safetensors"),
        (shard_elsewhere, "1 shard is missing: passwd"),
        (not_a_number, "model.layers.2.mlp.up_proj.weight holds a value that is no finite number"),
        (too_large, "holds 1e+06; the file's f16 values end at 65504"),
        (no_tokenizer, "reads no tokenizer"),
        (without_tensor, "1 tensor is missing: model.layers.3.self_attn.q_proj.weight"),
        (integers, "is of type I8; expected F32, F16 or BF16"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_damaged_folders(
    damage: Edit, expected: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(model)
    work = model.parent / "out.sq.gguf.work"
    work.mkdir()  # may stay: what was done before the damage was found
    assert expected in refuses(capsys, model, "--method", "rtn")
    assert not Path("/tmp/sq-convert-was-here").exists()


def test_damaged_gguf(stories16: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGML" + bytes(100))
    assert "it starts with b'GGML', expected b'GGUF'" in refuses(capsys, path)
    whole = stories16.read_bytes()
    for length in (4, 20, 500, 9_000, len(whole) // 2):
        path.write_bytes(whole[:length])
        assert "damaged or cut short" in refuses(capsys, path)
    path.write_bytes(whole)
    assert "quantized by SqueezeLLM already; --dequantize" in refuses(capsys, path)


# ---- options, calibration, places ---------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        ("--samples", "0"), ("--seq-len", "1"), ("--threads", "0"), ("--seed", "-1"), ("--outliers", "-1"),
        ("--outliers", "51"), ("--outliers", "nan"), ("--sensitive", "1", "--method", "kmeans"),
    ],
)  # fmt: skip
def test_values_out_of_range(
    options: tuple[str, ...], stories: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(stories), "-o", str(tmp_path / "x"), *options]) == 2
    assert options[0] in capsys.readouterr().err


@pytest.mark.parametrize(
    "options", [("--bits", "5"), ("--method", "gptq"), ("--samples", "many"), ("--wrong",)]
)
def test_wrong_usage(options: tuple[str, ...], stories: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([str(stories), "-o", "x", *options])
    assert stop.value.code == 2
    assert "usage:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("empty.txt", b"", "has 0 tokens, which is 0 sequences of 512; 100 are asked for"),
        (
            "short.txt",
            b"Once upon a time. " * 100,
            "100 are asked for. Give a longer text, or fewer --samples",
        ),
        ("latin.txt", b"caf\xe9 " * 1000, "is not UTF-8 (byte 3)"),
        (
            "bad.jsonl",
            b'{"text": "a"}\n{"body": "b"}\n',
            'bad.jsonl, line 2: expected a JSON object with a string "text"',
        ),
    ],
)
def test_calibration_texts(
    name: str, content: bytes, expected: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (model.parent / name).write_bytes(content)
    assert expected in refuses(capsys, model, "--calibration", str(model.parent / name))


def test_no_calibration_file_and_too_long_sequences(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "cannot be read" in refuses(capsys, model, "--calibration", str(model / "nowhere.txt"))
    assert "the model's context is 512 tokens" in refuses(capsys, model, "--seq-len", "513")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_a_gpu(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "PyTorch finds no usable GPU here. Use --device cpu" in refuses(capsys, model, "--device", "cuda")


def test_places_to_write(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (model.parent / "folder.sq.gguf").mkdir()
    assert "is a folder" in refuses(capsys, model, out="folder.sq.gguf")
    assert "no such folder to write to" in refuses(capsys, model, out="nowhere/x.sq.gguf")
    plan = ("--bpw", "4", "--plan", str(model / "nowhere" / "plan.json"))
    assert "no such folder to write to" in refuses(capsys, model, *plan)


def test_a_missing_file_is_not_called_damaged(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main([str(tmp_path / "no.sq.gguf"), "-o", str(tmp_path / "out"), "--dequantize"]) == 1
    assert "no.sq.gguf: cannot be read: No such file or directory" in capsys.readouterr().err


def test_an_older_output_survives_a_failure(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = model.parent / "out.sq.gguf"
    out.write_text("precious")
    refuses(capsys, model, "--seq-len", "513")
    assert out.read_text() == "precious"


def test_too_little_free_space(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (model.parent / "out.sq.gguf.work").mkdir()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 10_000))
    said = refuses(capsys, model, "--method", "rtn")
    assert "10 kB free on this disk" in said
    assert "needed for the output" in said


def test_a_disk_that_fills_up_leaves_no_partial_output(stories: Path, tmp_path: Path) -> None:
    """A limit on file sizes stands in for the full disk: the same call fails, with another error number."""
    command = [sys.executable, "-m", "sq_convert.cli", str(stories), "-o", str(tmp_path / "x.sq.gguf")]
    done = subprocess.run(
        [*command, "--bits", "16"],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
    )
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("sq-convert: ")
    assert "disk is full" in last or "File too large" in last
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["x.sq.gguf.work"]


def test_two_at_once(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from sq_convert.workfolder import WorkFolder

    with WorkFolder(model.parent / "out.sq.gguf").locked():
        assert "another sq-convert is writing the same output" in refuses(capsys, model, "--method", "rtn")


# ---- --dequantize ---------------------------------------------------------------------------------


def test_dequantize_refuses_other_files(
    stories: Path, stories16: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model.sq.gguf"
    whole = stories16.read_bytes()
    for length in (20, 500, 9_000, len(whole) // 2):
        path.write_bytes(whole[:length])
        assert "damaged or cut short" in refuses(capsys, path, "--dequantize", out="hf")
    path.write_bytes(whole.replace(b"squeezellm.version", b"squeezellm.varsion"))
    assert "no SqueezeLLM file" in refuses(capsys, path, "--dequantize", out="hf")
    path.write_bytes(whole)
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "mine").touch()
    assert "exists already" in refuses(capsys, path, "--dequantize", out="hf")
