"""The whole model against transformers on the decoded weights: every width, every kernel, every way to cut
a prompt into pieces."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Convert
from numpy.typing import NDArray
from sqllm._ffi import check, ffi, lib

Logits = NDArray[np.float32]

TEXT = """Once upon a time, there was a little girl named Lily. She loved to play outside in the park with
her friends. One day she asked: "Why is the sky blue?" Nobody knew. They looked it up, counted 1, 2, 3,
and wrote 4,096 letters about light, air and the colour of water.\n"""


def run(path: Path, ids: list[int], pieces: list[int], cpu: str, kv: str = "f32", threads: int = 2) -> Logits:
    """Logits ``[n_tokens, n_vocab]`` of ids given to one session in pieces of these lengths."""
    error, model, session = ffi.new("sq_error *"), ffi.new("sq_model **"), ffi.new("sq_session **")
    cpu_text, kv_text = ffi.new("char[]", cpu.encode()), ffi.new("char[]", kv.encode())
    model_options = ffi.new("sq_model_options *", {"cpu": cpu_text})
    session_options = ffi.new("sq_session_options *", {"n_threads": threads, "kv": kv_text})
    check(lib.sq_model_open(str(path).encode(), model_options, model, error), error)
    try:
        check(lib.sq_session_create(model[0], session_options, session, error), error)
        info = ffi.new("sq_model_info *")
        lib.sq_model_get_info(model[0], info)
        out, at = np.empty((sum(pieces), info.n_vocab), np.float32), 0
        for n in pieces:
            rows = ffi.from_buffer("float[]", out[at : at + n])
            check(lib.sq_session_append(session[0], ids[at : at + n], n, rows, error), error)
            at += n
        return out
    finally:
        lib.sq_session_free(session[0])
        lib.sq_model_close(model[0])


def kl_divergence(reference: Logits, ours: Logits) -> NDArray[np.float64]:
    """KL(reference || ours) of each row, in nats."""

    def log_softmax(logits: Logits) -> NDArray[np.float64]:
        shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
        return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))

    p, q = log_softmax(reference), log_softmax(ours)
    return np.asarray((np.exp(p) * (p - q)).sum(axis=1))


def cpus() -> list[str]:
    """The instruction sets this machine has."""
    flags = Path("/proc/cpuinfo").read_text()
    sets = {"avx2": " avx2 ", "avx512": " avx512bw "}
    return ["scalar", *(name for name, flag in sets.items() if flag in flags)]


class Truth:
    """A converted file, and what transformers makes of its decoded weights."""

    def __init__(self, path: Path, folder: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.path = path
        tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.ids: list[int] = tokenizer(TEXT)["input_ids"]
        with torch.no_grad():
            self.logits: Logits = reference(torch.tensor([self.ids])).logits[0].numpy()


@pytest.fixture(scope="module", params=["stories260K", "smollm2"])
def source(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(f"{request.param}_source")


@pytest.fixture(
    scope="module",
    params=[("4", "0.45"), ("4", "0"), ("3", "0.45"), ("3", "0"), ("16", "0")],
    ids=["4-sparse", "4-dense", "3-sparse", "3-dense", "16"],
)
def truth(request: pytest.FixtureRequest, source: Path, convert: Convert, sq_convert: str) -> Iterator[Truth]:
    bits, outliers = request.param
    path = convert(source, "--bits", bits, "--method", "rtn", "--outliers", outliers)
    folder = path.with_name("decoded")
    subprocess.run([sq_convert, path, "-o", folder, "--dequantize"], check=True, capture_output=True)
    yield Truth(path, folder)
    shutil.rmtree(path.parent)


def assert_equal(reference: Logits, ours: Logits) -> None:
    divergence = kl_divergence(reference, ours)
    assert divergence.max() < 1e-6, f"KL divergence {divergence.max():.2e} at token {divergence.argmax()}"
    top = ours.argmax(axis=1)
    rows = np.arange(len(top))
    tied = reference[rows, top] == reference.max(axis=1)
    assert tied.all(), f"another top token at {np.flatnonzero(~tied)}"


@pytest.mark.parametrize("cpu", cpus())
def test_one_piece_chunks_and_single_tokens(truth: Truth, cpu: str) -> None:
    n = len(truth.ids) if cpu != "scalar" else 16
    for pieces in ([n], [7, 1, 2, n - 10], [1] * n):
        assert_equal(truth.logits[:n], run(truth.path, truth.ids, pieces, cpu))


def test_f16_cache_changes_nothing_that_matters(truth: Truth) -> None:
    ours = run(truth.path, truth.ids, [len(truth.ids)], "auto", kv="f16")
    assert kl_divergence(truth.logits, ours).mean() < 1e-4


def test_threads_change_nothing(truth: Truth) -> None:
    n = len(truth.ids)
    for pieces in ([n], [1] * 8):
        one, three = (run(truth.path, truth.ids, pieces, "auto", threads=t) for t in (1, 3))
        assert np.array_equal(one, three)
