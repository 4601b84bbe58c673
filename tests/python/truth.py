"""A converted model and what transformers makes of its decoded weights: what the two tests of whole models
share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sqllm._ffi import check, ffi, lib

Logits = NDArray[np.float32]


def run(
    path: Path,
    ids: list[int],
    pieces: list[int],
    cpu: str,
    kv: str = "f32",
    threads: int = 2,
    exact: bool = True,
    device: str = "cpu",
) -> Logits:
    """Logits ``[n_tokens, n_vocab]`` of ids given to one session in pieces of these lengths."""
    error, model, session = ffi.new("sq_error *"), ffi.new("sq_model **"), ffi.new("sq_session **")
    cpu_text, kv_text = ffi.new("char[]", cpu.encode()), ffi.new("char[]", kv.encode())
    device_text = ffi.new("char[]", device.encode())
    model_options = ffi.new("sq_model_options *", {"cpu": cpu_text, "exact": exact, "device": device_text})
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
    sets = {"avx2": " avx2 ", "avxvnni": " avx_vnni ", "avx512": " avx512bw ", "avx512vnni": " avx512_vnni "}
    return ["scalar", *(name for name, flag in sets.items() if flag in flags)]


def reference_logits(folder: Path, ids: list[int]) -> Logits:
    """Logits ``[n_tokens, n_vocab]`` of transformers, in f32, for a Hugging Face folder."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        logits: Logits = model(torch.tensor([ids])).logits[0].numpy()
    return logits


def assert_equal(reference: Logits, ours: Logits) -> None:
    divergence = kl_divergence(reference, ours)
    assert divergence.max() < 1e-6, f"KL divergence {divergence.max():.2e} at token {divergence.argmax()}"
    top = ours.argmax(axis=1)
    rows = np.arange(len(top))
    tied = reference[rows, top] == reference.max(axis=1)
    assert tied.all(), f"another top token at {np.flatnonzero(~tied)}"
