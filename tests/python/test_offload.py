"""Layers on a GPU: the plugin's own kernels, run on the CPU by its emulator, say what the CPU says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sqllm
from sqllm.error import Status

ROOT = Path(__file__).parent.parent.parent
N_LAYERS = 5  # of stories260K
RUN = ("--raw", "-p", "Once upon a time", "-n", 12)

pytestmark = pytest.mark.usefixtures("no_gpu")


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def run(*command: Any, plugin: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = os.environ | ({"LD_LIBRARY_PATH": str(plugin)} if plugin else {})
    words = [str(word) for word in command]
    return subprocess.run(words, capture_output=True, text=True, env=environment, stdin=subprocess.DEVNULL)


def output(*command: Any, plugin: Path | None = None) -> str:
    done = run(*command, plugin=plugin)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return done.stdout


@pytest.mark.parametrize("n_layers", [*range(1, N_LAYERS + 1), "auto"])
def test_answers_are_the_cpus(sq_run: str, stories4: Path, emulated: Path, n_layers: int | str) -> None:
    expected = output(sq_run, stories4, *RUN, "--temp", 0, "--device", "cpu")
    options = ("--device", "cuda", "--gpu-layers", n_layers)
    assert output(sq_run, stories4, *RUN, "--temp", 0, *options, plugin=emulated) == expected
    assert output(sq_run, stories4, *RUN, "--temp", 0, "--lookup", *options, plugin=emulated) == expected


@pytest.mark.parametrize(("n_layers", "kv"), [(2, "f32"), (N_LAYERS, "f16"), (N_LAYERS, "q8")])
def test_probabilities_are_the_cpus(
    sq_eval: str, stories4: Path, emulated: Path, tmp_path: Path, n_layers: int, kv: str
) -> None:
    text, saved = tmp_path / "text", tmp_path / "reference"
    text.write_text((ROOT / "README.md").read_text()[:150])
    output(sq_eval, stories4, text, "--device", "cpu", "--exact", "--kv", kv, "--save-reference", saved)
    options = ("--device", "cuda", "--gpu-layers", n_layers, "--exact", "--kv", kv, "--json")
    found = json.loads(output(sq_eval, stories4, saved, *options, plugin=emulated))
    assert found["gpu_layers"] == n_layers
    assert found["n_predicted"] > 50
    assert found["kl_divergence"] < 1e-5


def test_bench_says_who_computes_and_compares_no_gpu_with_the_cpus_memory(
    sq_bench: str, stories4: Path, emulated: Path
) -> None:
    options = ("-p", 4, "-n", 1, "-r", 1, "--device", "cuda")
    found = json.loads(output(sq_bench, stories4, *options, "--profile", "--json", plugin=emulated))
    assert "emulating" in found["device"]
    assert found["gpu_layers"] == N_LAYERS
    assert found["read_share"] is None
    times = found["cases"][1]["ms_per_token"]
    assert times["GPU"] > 0
    assert sum(times.values()) == times["GPU"]
    shown = output(sq_bench, stories4, *options, "--gpu-layers", 2, plugin=emulated)
    assert "for the last 2 of 5 layers" in shown
    assert "of the memory's" not in shown


def test_python(stories4: Path, emulated: Path) -> None:
    program = f"""
from sqllm import Model
with Model({str(stories4)!r}, device="cuda", gpu_layers=3) as model:
    assert model.info.gpu_layers == 3 and model.info.device and not model.info.device_absent
    print(model.generate("Once upon a time", max_tokens=8, temperature=0), end="|")
    tokens = list(model.stream_tokens("Once upon a time", max_tokens=8, temperature=0))
    assert all(token.log_probability < 0 for token in tokens)
    print(b"".join(token.text for token in tokens).decode(), end="")
"""
    with sqllm.Model(stories4, device="cpu") as model:
        assert not model.info.device
        assert not model.info.device_absent
        expected = model.generate("Once upon a time", max_tokens=8, temperature=0)
    assert output(sys.executable, "-c", program, plugin=emulated) == f"{expected}|{expected}"


def test_without_a_gpu(sq_run: str, stories4: Path) -> None:
    expected = output(sq_run, stories4, *RUN, "--temp", 0, "--device", "cpu")
    assert output(sq_run, stories4, *RUN, "--temp", 0) == expected, "auto is silent"
    done = run(sq_run, stories4, *RUN, "--device", "cuda")
    assert done.returncode == 1
    assert not done.stdout
    assert len(done.stderr.splitlines()) == 1
    assert "run on the CPU" in done.stderr
    with sqllm.Model(stories4) as model:
        assert model.info.gpu_layers == 0
        assert "run on the CPU" in model.info.device_absent


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        ({"device": "cuda"}, Status.UNSUPPORTED, "CPU"),
        ({"device": "gpu"}, Status.ARGUMENT, '"gpu"'),
        ({"gpu_layers": 6}, Status.ARGUMENT, "at most 5"),
        ({"gpu_layers": 0}, Status.ARGUMENT, "gpu_layers"),
    ],
)
def test_options_that_are_refused(
    stories4: Path, options: dict[str, Any], status: Status, words: str
) -> None:
    with pytest.raises(sqllm.Error, match=words) as refusal:
        sqllm.Model(stories4, **options)
    assert refusal.value.status == status


@pytest.mark.parametrize("value", ["0", "many", "-1"])
def test_gpu_layers_is_a_number_or_auto(sq_run: str, stories4: Path, value: str) -> None:
    done = run(sq_run, stories4, "--gpu-layers", value)
    assert done.returncode == 2
    assert "or auto" in done.stderr
