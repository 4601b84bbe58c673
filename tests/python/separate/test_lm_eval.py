"""The model class of lm-evaluation-harness, against its Hugging Face backend on the decoded weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

STORIES = [
    ("Once upon a time, there was a little", [" girl named Lily.", " stone and the and.", "s"]),
    ("The dog was very happy and he ", ["wanted to play.", "blue"]),  # the space moves to the endings
    ("", ["One day, a bird saw a cat.", "zq"]),
    ("<s>A bear", [" went to the park", " §"]),  # spells the first token itself
    ("He ran. " * 150, ["He ran."]),  # longer than the context
]
LONG = "Lily had a red ball. She liked to play with Tom in the sun. " * 40


def task(name: str, folder: Path, documents: list[dict[str, Any]], **more: Any) -> Path:
    """A task of the harness on documents of its own, as a file."""
    data, path = folder / f"{name}.jsonl", folder / f"{name}.yaml"
    data.write_text("".join(json.dumps(document) + "\n" for document in documents))
    files = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}}}
    path.write_text(json.dumps({"task": name, **files, "test_split": "test", **more}))
    return path


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("tasks")
    starts = [{"start": start, "ends": ends, "label": 0} for start, ends in STORIES]
    return [
        task("choice", folder, starts, output_type="multiple_choice", doc_to_text="{{start}}",
             doc_to_choice="{{ends}}", doc_to_target="label", target_delimiter="",
             metric_list=[{"metric": "acc"}]),
        task("rolling", folder, [{"text": LONG}, {"text": "A cat."}], output_type="loglikelihood_rolling",
             doc_to_text="", doc_to_target="{{text}}", metric_list=[{"metric": "word_perplexity"}]),
        task("generate", folder, starts[:2], output_type="generate_until", doc_to_text="{{start}}",
             doc_to_target="x", generation_kwargs={"until": [".", "\n"], "max_gen_toks": 40},
             metric_list=[{"metric": "exact_match"}]),
    ]  # fmt: skip


def answers(folder: Path) -> dict[str, Any]:
    """What the model answered to each document of each task, from the samples that the harness logs."""
    return {
        path.name.split("_")[1]: [
            sample["filtered_resps"]
            for sample in sorted(map(json.loads, path.read_text().splitlines()), key=lambda s: s["doc_id"])
        ]
        for path in folder.rglob("samples_*.jsonl")
    }


def run(module: str, model: str, arguments: str, tasks: list[Path], out: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", module, "--model", model, "--model_args", arguments, "--log_samples"]
    command += ["--output_path", str(out), "--tasks", ",".join(map(str, tasks)), "--device", "cpu"]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(out)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=env)
    assert done.returncode == 0, done.stderr
    return answers(out)


def numbers(found: Any) -> Any:
    """Log-likelihoods, from the texts that the harness logs."""
    return [
        float(answer[0]) if isinstance(answer, list) else float(answer)
        for answers in found
        for answer in answers
    ]


def test_answers(sq_convert: str, stories4: Path, stories: Path, tasks: list[Path], tmp_path: Path) -> None:
    decoded = tmp_path / "decoded"
    subprocess.run([sq_convert, stories4, "-o", decoded, "--dequantize"], check=True, capture_output=True)
    ours = run("sqllm.lm_eval", "sqllm", f"path={stories4},exact=True,kv=f32", tasks, tmp_path / "ours")
    arguments = f"pretrained={decoded},tokenizer={stories},dtype=float32"
    theirs = run("lm_eval", "hf", arguments, tasks, tmp_path / "theirs")
    assert ours.keys() == theirs.keys() == {"choice", "rolling", "generate"}
    assert ours["generate"] == theirs["generate"]
    for name in ("choice", "rolling"):
        assert numbers(ours[name]) == pytest.approx(numbers(theirs[name]), abs=1e-3)
    greedy = [[answer[1] for answer in answers] for answers in ours["choice"]]
    assert greedy == [[answer[1] for answer in answers] for answers in theirs["choice"]]
    assert greedy[0][0] == "True"
