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
from sqllm import Model
from truth import assert_equal, cpus, kl_divergence, reference_logits, run

CALIBRATION = Path(__file__).parents[2] / "convert/sq_convert/data/calibration.txt"
TEXT = """Once upon a time, there was a little girl named Lily. She loved to play outside in the park with
her friends. One day she asked: "Why is the sky blue?" Nobody knew. They looked it up, counted 1, 2, 3,
and wrote 4,096 letters about light, air and the colour of water.\n"""


class Truth:
    """A converted file, tokens of a text, and the logits that they should have."""

    def __init__(self, path: Path, folder: Path) -> None:
        from transformers import AutoTokenizer

        tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self.path = path
        self.ids: list[int] = tokenizer(TEXT)["input_ids"]
        self.logits = reference_logits(folder, self.ids)


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


@pytest.mark.parametrize("cpu", cpus())
def test_one_piece_chunks_and_single_tokens(truth: Truth, cpu: str) -> None:
    n = len(truth.ids) if cpu != "scalar" else 16
    for pieces in ([n], [7, 1, 2, n - 10], [1] * n):
        assert_equal(truth.logits[:n], run(truth.path, truth.ids, pieces, cpu))


# Without kept weights rounding to 3 bits leaves so little of SmolLM2 that its logits amplify any noise.
@pytest.mark.parametrize("truth", [("4", "0.45"), ("4", "0"), ("3", "0.45"), ("16", "0")], indirect=True)
@pytest.mark.parametrize("cpu", cpus())
def test_fixed_point_changes_nothing_that_matters(truth: Truth, cpu: str) -> None:
    n = len(truth.ids) if cpu != "scalar" else 20
    divergence = kl_divergence(truth.logits[:n], run(truth.path, truth.ids, [n], cpu, exact=False))
    assert 0 < divergence.mean() < 1e-4


@pytest.fixture(scope="module")
def long_ids(truth: Truth) -> list[int]:
    """Enough tokens for a mean: coarse models stray much further at some tokens than at others."""
    with Model(truth.path) as model:
        return model.tokenize(TEXT + CALIBRATION.read_text(encoding="utf-8")[:4000])[:400]


def test_f16_cache_changes_nothing_that_matters(truth: Truth, long_ids: list[int]) -> None:
    f32, f16 = (run(truth.path, long_ids, [400], "auto", kv=kv) for kv in ("f32", "f16"))
    assert kl_divergence(f32, f16).mean() < 1e-4


# The model as it was trained: one that is damaged by rounding amplifies any noise, its own above all.
@pytest.mark.parametrize("truth", [("16", "0")], indirect=True)
def test_q8_cache_changes_little(truth: Truth, long_ids: list[int], source: Path, stories: Path) -> None:
    bound = 1e-2 if source == stories else 1e-3  # rounding averages out less over heads of 8 than of 64
    for pieces in ([400], [1] * 400):
        f16, q8 = (run(truth.path, long_ids, pieces, "auto", kv=kv) for kv in ("f16", "q8"))
        assert 0 < kl_divergence(f16, q8).mean() < bound


def test_threads_change_nothing(truth: Truth) -> None:
    n = len(truth.ids)
    for pieces, exact in (([n], True), ([n], False), ([1] * 8, True)):
        one, three = (run(truth.path, truth.ids, pieces, "auto", threads=t, exact=exact) for t in (1, 3))
        assert np.array_equal(one, three)


def test_the_unquantized_path_tells_the_original_story(stories: Path, stories16: Path) -> None:
    """Token for token what transformers makes of the original f32 weights, f16 cache included."""
    import torch
    from transformers import AutoModelForCausalLM

    bos, n_tokens = 1, 300
    original = AutoModelForCausalLM.from_pretrained(stories, dtype=torch.float32)
    start = torch.tensor([[bos]])
    expected = original.generate(start, max_new_tokens=n_tokens, do_sample=False, eos_token_id=None)[0, 1:]
    with Model(stories16) as model:
        told = [t.id for t in model.stream_tokens([bos], max_tokens=n_tokens, temperature=0)]
    assert told == expected.tolist()
