"""sq-eval's two protocols and its comparison with a reference, against numpy and transformers."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Convert
from numpy.typing import NDArray
from sqllm import Model
from truth import kl_divergence

TEXT = "Once upon a time, there was a big dog. He liked to run, and he had 1,234 friends! " * 20
HEADER_BYTES = 28

Finished = subprocess.CompletedProcess[str]


def run(*command: object, **options: Any) -> Finished:
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120, **options)


def report(*command: object) -> Any:
    done = run(*command, "--json", "--kv", "f32", "--threads", 1)
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text"
    path.write_text(TEXT)
    return path


@pytest.fixture(scope="module")
def stories3(convert: Convert, stories: Path) -> Path:
    return convert(stories, "--bits", "3", "--method", "rtn")


def windows_of(path: Path, protocol: str, n_window: int) -> tuple[NDArray[np.int64], int]:
    """Windows ``[n, n_window]`` and the first position that is scored, by the protocols' definitions."""
    with Model(path, threads=1) as model:
        ids = np.array(model.tokenize(TEXT))
        bos = model.tokenize("")[0]
    windows = ids[: len(ids) // n_window * n_window].reshape(-1, n_window).copy()
    if protocol == "llama.cpp":
        windows[:, 0] = bos
        return windows, n_window // 2
    return windows, 0


def logits_of(path: Path, windows: NDArray[np.int64], first: int) -> NDArray[np.float32]:
    with Model(path, threads=1, kv="f32") as model:
        return np.concatenate([model.logits(w.tolist())[first:-1] for w in windows])


@pytest.mark.parametrize("protocol", ["gptq", "llama.cpp"])
def test_scores(
    sq_eval: str, stories16: Path, stories3: Path, text: Path, tmp_path: Path, protocol: str
) -> None:
    options = ("--protocol", protocol, "--ctx", 64)
    saved = tmp_path / "saved.ref"
    report(sq_eval, stories16, text, *options, "--save-reference", saved)
    found = report(sq_eval, stories16, stories3, saved)
    assert [m["file"] for m in found] == [str(stories16), str(stories3)]

    windows, first = windows_of(stories16, protocol, 64)
    next_tokens = windows[:, first + 1 :].ravel()
    p, q = (logits_of(path, windows, first).astype(np.float64) for path in (stories16, stories3))
    nats = [np.log(np.exp(z).sum(1)) - z[np.arange(len(z)), next_tokens] for z in (p, q)]
    for model, own in zip(found, nats, strict=True):
        assert model["protocol"] == protocol
        assert model["n_predicted"] == len(own)
        assert model["perplexity"] == pytest.approx(np.exp(own.mean()), rel=1e-5)
        assert model["standard_error"] == pytest.approx(
            np.exp(own.mean()) * own.std(ddof=1) / len(own) ** 0.5, rel=1e-3
        )
        assert model["reference_perplexity"] == pytest.approx(np.exp(nats[0].mean()), rel=1e-4)
    same, other = found
    assert abs(same["kl_divergence"]) < 1e-6
    assert same["top1_agreement"] == 1
    divergence = kl_divergence(p.astype(np.float32), q.astype(np.float32))
    assert other["kl_divergence"] == pytest.approx(divergence.mean(), abs=1e-5)
    assert other["kl_standard_error"] == pytest.approx(
        divergence.std(ddof=1) / len(divergence) ** 0.5, rel=1e-3
    )
    assert other["kl_median"] == pytest.approx(np.median(divergence), abs=1e-4)
    assert other["kl_99_percent"] == pytest.approx(np.percentile(divergence, 99), abs=1e-3)
    agreement = (p.argmax(1) == q.argmax(1)).mean()
    assert other["top1_agreement"] == pytest.approx(agreement)
    assert 0 < agreement < 1
    again = report(sq_eval, stories3, text, *options)
    assert again["perplexity"] == other["perplexity"]
    assert "kl_divergence" not in again


def test_first_windows(sq_eval: str, stories16: Path, text: Path) -> None:
    found = report(sq_eval, stories16, text, "--ctx", 32, "--windows", 2)
    assert (found["n_windows"], found["n_predicted"]) == (2, 62)


@pytest.mark.parametrize("protocol", ["gptq", "llama.cpp"])
def test_reference_of_a_checkpoint(
    sq_eval: str, stories: Path, stories16: Path, text: Path, tmp_path: Path, protocol: str
) -> None:
    """transformers' probabilities, on its own tokens; the F16 file differs by rounding alone."""
    saved = tmp_path / "saved.ref"
    command = (sys.executable, "-m", "sq_convert.reference", stories, text, "-o", saved)
    done = run(*command, "--protocol", protocol, "--ctx", 64, "--windows", 3)
    assert done.returncode == 0, done.stderr
    found = report(sq_eval, stories16, saved)
    windows, first = windows_of(stories16, protocol, 64)
    assert found["n_windows"] == 3
    assert found["n_predicted"] == 3 * (63 - first)
    tokens = np.frombuffer(saved.read_bytes(), "<i4", 64, HEADER_BYTES)
    assert np.array_equal(tokens, windows[0])
    assert abs(found["kl_divergence"]) < 1e-5
    assert found["top1_agreement"] > 0.98
    assert found["reference_perplexity"] == pytest.approx(found["perplexity"], rel=1e-3)


def test_references_that_are_refused(
    sq_eval: str, stories: Path, stories16: Path, text: Path, tmp_path: Path
) -> None:
    saved = tmp_path / "saved.ref"
    report(sq_eval, stories16, text, "--windows", 1, "--save-reference", saved)
    whole = saved.read_bytes()
    damages = {
        "bytes, its header says": whole[:-1],
        "version 7": whole[:8] + b"\7" + whole[9:],
        "vocabulary": whole[:12] + b"\1\0\0\0" + whole[13:],
        "token -1": whole[:HEADER_BYTES] + b"\xff" * 4 + whole[HEADER_BYTES + 4 :],
        "on top of a row": whole[:-1024] + b"\1" * 1024,
    }
    for part, content in damages.items():
        saved.write_bytes(content)
        done = run(sq_eval, stories16, saved)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
        assert part in done.stderr or "its header says" in done.stderr
    saved.write_bytes(whole)
    done = run(sq_eval, stories16, saved, "--ctx", 7)
    assert (done.returncode, done.stdout) == (2, "")
    assert "leave --protocol" in done.stderr
    done = run(sq_eval, stories16, stories16, text, "--save-reference", saved)
    assert done.returncode == 2
    assert "expected one model, found 2" in done.stderr
    done = run(sq_eval, stories16, text, "--save-reference", text)
    assert done.returncode == 1
    assert "exists and is no reference" in done.stderr
    assert text.read_text() == TEXT
    done = run(sys.executable, "-m", "sq_convert.reference", stories, text, "-o", tmp_path / "no" / "x.ref")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "no such folder to write to" in done.stderr


def without_room() -> None:
    """Files may not grow; a signal says so besides, unless it is ignored."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


def test_disk_without_room(sq_eval: str, stories16: Path, stories: Path, text: Path, tmp_path: Path) -> None:
    saved = tmp_path / "saved.ref"
    for command in (
        (sq_eval, stories16, text, "--save-reference", saved),
        (sys.executable, "-m", "sq_convert.reference", stories, text, "-o", saved),
    ):
        done = run(
            *command,
            preexec_fn=without_room,
            restore_signals=False,
        )
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.count("\n") == 1
        assert "File too large" in done.stderr
        assert list(tmp_path.iterdir()) == []
