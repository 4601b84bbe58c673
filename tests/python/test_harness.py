"""The model class for lm-evaluation-harness, on what it uses of it; Model.score, on which it rests."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lm_eval_interface
import numpy as np
import pytest
from sqllm import Error, Model

START, END = "Once upon a time, there was a little", " girl named Lily."


@pytest.fixture(scope="module")
def harness(stories4: Path) -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        for name, module in lm_eval_interface.modules().items():
            patch.setitem(sys.modules, name, module)
        patch.delitem(sys.modules, "sqllm.harness", raising=False)
        import sqllm.harness  # noqa: F401  # registers itself

        yield lm_eval_interface.registered["sqllm"](str(stories4), threads=1, exact=True, kv="f32")
        patch.delitem(sys.modules, "sqllm.harness")


def scored(model: Model, ids: list[int], n_context: int) -> float:
    """The definition: from the logits of the whole text at once."""
    logits = model.logits(ids[:-1]).astype(np.float64)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return float(log_p[np.arange(n_context - 1, len(ids) - 1), ids[n_context:]].sum())


def test_score(stories4: Path) -> None:
    with Model(stories4, threads=1, exact=True, kv="f32") as model:
        ids = model.tokenize(START + END)
        for n_context in (1, 2, len(ids) - 1):
            found = model.score(ids, n_context)
            assert found.log_probabilities.shape == found.greedy.shape == (len(ids) - n_context,)
            assert found.log_probabilities.sum() == pytest.approx(scored(model, ids, n_context), abs=1e-4)
        top = model.logits(ids[:-1]).argmax(axis=1)
        assert model.score(ids, 1).greedy.tolist() == (top == ids[1:]).tolist()
        assert model.score(ids, len(ids)).greedy.shape == (0,)
        for n_context in (0, len(ids) + 1):
            with pytest.raises(Error, match="n_context: expected 1 to"):
                model.score(ids, n_context)


def test_loglikelihood(harness: Any) -> None:
    """In the order of the requests, whatever they share, and the last tokens of what is too long."""
    encode, n_ctx = harness.tok_encode, harness.model.n_ctx
    start = encode(START)
    long = [7] * n_ctx
    requests = [
        (None, start, encode(END, False)),
        (None, [1], start[1:]),
        (None, long, [9, 10]),
        (None, start, [9]),
    ]
    found = harness._loglikelihood_tokens(requests, disable_tqdm=True)
    for (_, context, continuation), (score, greedy) in zip(requests, found, strict=True):
        ids = (context + continuation)[-n_ctx - 1 :]
        assert score == pytest.approx(scored(harness.model, ids, len(ids) - len(continuation)), abs=1e-3)
        assert isinstance(greedy, bool)
    assert found[0][1]
    assert not found[3][1]


def test_first_token(harness: Any) -> None:
    assert (harness.prefix_token_id, harness.eot_token_id) == (1, 2)
    plain = harness.tok_encode("A bear", False)
    assert harness.tok_encode("A bear") == [1, *plain]
    assert harness.tok_encode("<s>A bear") == [1, *plain]  # it is spelled already
    assert harness.tok_encode("<s>A bear", True)[:2] == [1, 1]


def test_rolling(harness: Any) -> None:
    """Windows of the whole context; each begins with the token before it."""
    text = "Lily had a red ball. " * 90
    ids, n_ctx = harness.tok_encode(text), harness.model.n_ctx
    assert n_ctx < len(ids) < 2 * n_ctx
    (found,) = harness.loglikelihood_rolling([SimpleNamespace(args=(text,))], disable_tqdm=True)
    windows = [[1, *ids[:n_ctx]], ids[n_ctx - 1 :]]
    assert found == pytest.approx(sum(scored(harness.model, window, 1) for window in windows), abs=1e-2)


def test_generate(harness: Any) -> None:
    def generate(context: str, **arguments: Any) -> str:
        request = SimpleNamespace(args=(context, arguments))
        (text,) = harness.generate_until([request], disable_tqdm=True)
        return str(text)

    whole = generate(START, max_gen_toks=30)
    assert START + " " + whole == START + harness.model.generate(START, 30, temperature=0)
    assert generate(START, max_gen_toks=30, until=[".", ""]) == whole.split(".")[0]
    assert generate("ran " * 1000, max_gen_toks=5)
    drawn = {generate(START, max_gen_toks=30, do_sample=True, temperature=t) for t in (1.0, 3.0)}
    assert len(drawn) == 2
    with pytest.raises(ValueError, match=r"max_gen_toks 512: expected less than the context of 512"):
        generate(START, max_gen_toks=512)
    with pytest.raises(TypeError, match="unexpected option num_beams"):
        generate(START, do_sample=True, num_beams=2)


def test_command_without_the_harness(tmp_path: Path) -> None:
    (tmp_path / "lm_eval.py").write_text("raise ImportError")
    command = [sys.executable, "-m", "sqllm.lm_eval", "--model", "sqllm"]
    done = subprocess.run(command, capture_output=True, text=True, env={"PYTHONPATH": str(tmp_path)})
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == ("sqllm.lm_eval: lm-evaluation-harness is missing: pip install 'sqllm[lm-eval]'\n")
