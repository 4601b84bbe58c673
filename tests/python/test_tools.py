"""sq-run with one prompt, sq-info, sq-bench and sq-eval: options, output, errors."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import DATA

Tool = Callable[[str], str]
Finished = subprocess.CompletedProcess[str]

TOOLS = ["sq-run", "sq-info", "sq-bench", "sq-eval"]
BIG_TEXT = "hello world " * 5000


@pytest.fixture
def tool(request: pytest.FixtureRequest) -> Tool:
    """`tool("sq-run")` is the path of the program."""
    return lambda name: str(request.getfixturevalue(name.replace("-", "_")))


def run(*command: object, stdin: str | None = None) -> Finished:
    """Runs a command on one thread of the default locale; standard input is empty where not given."""
    source: dict[str, Any] = {"stdin": subprocess.DEVNULL} if stdin is None else {"input": stdin}
    return subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=60, **source)


def assert_complaint(done: Finished, code: int, *parts: str) -> None:
    """One sentence on standard error, nothing on standard output."""
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    for part in parts:
        assert part in done.stderr


def answer(tool: Tool, model: Path, *options: object, stdin: str | None = None) -> str:
    done = run(tool("sq-run"), model, "--threads", 1, *options, stdin=stdin)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


# ---- command lines -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TOOLS)
def test_help_and_version(tool: Tool, name: str) -> None:
    done = run(tool(name), "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: {name} MODEL.sq.gguf")
    done = run(tool(name), "--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split()[0] == name


@pytest.mark.parametrize("name", TOOLS)
def test_wrong_command_line(tool: Tool, name: str) -> None:
    assert_complaint(run(tool(name)), 2, "expected MODEL.sq.gguf", "found 0 arguments")
    if name != "sq-eval":  # takes any number of models
        assert_complaint(run(tool(name), "a", "b", "c"), 2, "found 3 arguments")
    assert_complaint(run(tool(name), "a", "--nonsense"), 2, "unknown option --nonsense")
    assert_complaint(run(tool(name), "a", "--nonsense=1"), 2, "unknown option")


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--temp", "warm"], ["--temp: expected a number from 0 to 100", '"warm"']),
        (["--temp=-1"], ["--temp", "-1"]),
        (["--temp", "nan"], ["nan"]),
        (["--temp", "0x1"], ["0x1"]),
        (["--top-p", "1.01"], ["from 0 to 1"]),
        (["--top-k", "1.5"], ["whole number"]),
        (["--top-k", "4294967296"], ["4294967295"]),
        (["--seed", "-1"], ["whole number"]),
        (["--seed", "18446744073709551616"], ["18446744073709551615"]),
        (["--ctx", "0"], ["from 1"]),
        (["--threads", ""], ["--threads"]),
        (["--kv", "f"], ["f16|q8|f32"]),
        (["--raw=yes"], ["expected no value"]),
        (["-n"], ["expected a value"]),
        (["--raw", "--system", "x", "-p", "y"], ["--system", "--raw"]),
        (["--raw", "--think", "0", "-p", "y"], ["--think", "--raw"]),
        (["--think", "2"], ["--think: expected a whole number from 0 to 1"]),
    ],
)
def test_wrong_option(tool: Tool, options: list[str], parts: list[str]) -> None:
    assert_complaint(run(tool("sq-run"), "no-such-model", *options), 2, *parts)


# ---- files that are no models ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TOOLS)
def test_file_that_is_no_model(tool: Tool, name: str, stories4: Path, tmp_path: Path) -> None:
    more = [__file__] if name == "sq-eval" else []
    nonsense, cut = tmp_path / "nonsense", tmp_path / "cut"
    nonsense.write_bytes(b"nonsense" * 100)
    cut.write_bytes(stories4.read_bytes()[:-100_000])
    for path in (tmp_path / "missing", tmp_path, nonsense, cut):
        assert_complaint(run(tool(name), path, *more), 1, str(path))


def test_model_without_chat(tool: Tool, stories4: Path) -> None:
    assert_complaint(run(tool("sq-run"), stories4, "-p", "hi"), 1, "chat template", "--raw")


# ---- one answer --------------------------------------------------------------------------------------------


def test_raw_tells_about_lily(tool: Tool, stories4: Path) -> None:
    story = answer(tool, stories4, "--raw", "-p", "Once upon a time", "--temp", 0, "-n", 60)
    assert "girl named Lily" in story
    assert story.startswith(", there")
    assert story.endswith("\n")


def test_answer_is_reproducible(tool: Tool, stories_chat: Path) -> None:
    seeded = [answer(tool, stories_chat, "-p", "Hello", "--seed", 7, "-n", 40) for _ in range(2)]
    assert seeded[0] == seeded[1]
    others = {answer(tool, stories_chat, "-p", "Hello", "-n", 40) for _ in range(4)}
    assert len(others) > 1, "without --seed, answers differ"


def test_length_and_temperature(tool: Tool, stories_chat: Path) -> None:
    short, long = (answer(tool, stories_chat, "-p", "A dog", "--temp", 0, "-n", n) for n in (5, 30))
    assert long.startswith(short.rstrip("\n"))
    assert len(long) > len(short)


def test_lookup_changes_nothing(tool: Tool, stories_chat: Path) -> None:
    for options in (["--temp", 0], ["--seed", 3]):
        plain = answer(tool, stories_chat, "-p", "Tom and Lily and Tom and Lily and", *options, "-n", 60)
        assert plain == answer(
            tool, stories_chat, "-p", "Tom and Lily and Tom and Lily and", *options, "-n", 60, "--lookup"
        )


def test_pipe(tool: Tool, stories_chat: Path) -> None:
    greedy = ("--temp", 0, "-n", 20)
    assert answer(tool, stories_chat, *greedy, stdin="Lily ran\n") == answer(
        tool, stories_chat, *greedy, "-p", "Lily ran"
    )
    both = answer(tool, stories_chat, *greedy, "-p", "Go on:", stdin="Lily ran\n")
    assert both == answer(tool, stories_chat, *greedy, "-p", "Go on:\n\nLily ran")
    assert both != answer(tool, stories_chat, *greedy, "-p", "Go on:")


def test_system_prompt_counts(tool: Tool, stories_chat: Path) -> None:
    greedy = ("-p", "Hello", "--temp", 0, "-n", 20)
    assert answer(tool, stories_chat, *greedy, "--system", "Tom") != answer(tool, stories_chat, *greedy)


def test_thinking_is_switched(tool: Tool, stories_switch: Path, stories_chat: Path) -> None:
    """By an option, or by a word in the system prompt, which is stronger."""
    greedy = ("-p", "Lily saw a dog", "--temp", 0, "-n", 20)
    thinking = answer(tool, stories_switch, *greedy)
    quick = answer(tool, stories_switch, *greedy, "--think", 0)
    assert thinking != quick
    assert answer(tool, stories_switch, *greedy, "--system", "/no_think") == quick
    assert answer(tool, stories_switch, *greedy, "--system", "/think", "--think", 0) == thinking
    done = run(tool("sq-run"), stories_chat, *greedy, "--think", 0)
    assert_complaint(done, 1, "this model's chat template has no switch for thinking")


def test_system_message_in_the_last_turn(
    tool: Tool, convert: Callable[..., Path], with_template: Callable[[str], Path]
) -> None:
    template = (DATA / "templates" / "system_last.jinja").read_text(encoding="utf-8")
    model = convert(with_template(template), "--bits", "16")
    greedy = ("-p", "Lily saw a dog", "--temp", 0, "-n", 20)
    assert answer(tool, model, *greedy)
    assert answer(tool, model, *greedy, "--system", "Tom was sad.") != answer(tool, model, *greedy)


def test_nothing_to_answer(tool: Tool, stories_chat: Path) -> None:
    assert_complaint(run(tool("sq-run"), stories_chat), 1, "the prompt is empty")
    assert_complaint(run(tool("sq-run"), stories_chat, "-p", " \n"), 1, "the prompt is empty")
    assert_complaint(run(tool("sq-run"), stories_chat, stdin="a\0b"), 1, "zero byte")


def test_full_context(tool: Tool, stories4: Path) -> None:
    raw = (tool("sq-run"), stories4, "--threads", 1, "--raw", "-p", "Once")
    done = run(*raw, "--temp", 0, "--ctx", 30)
    assert done.returncode == 1
    assert done.stdout.startswith(" upon a time"), "what fits is shown"
    assert "the context is full: it holds 30 tokens" in done.stderr
    assert "--ctx TOKENS makes room, up to 512" in done.stderr
    assert_complaint(run(*raw, "--ctx", 1), 1, "tokens, the context holds 1")
    done = run(tool("sq-run"), stories4, "--raw", stdin=BIG_TEXT)
    assert_complaint(done, 1, "the context holds 512", "this model takes no more")


# ---- writing fails -----------------------------------------------------------------------------------------


@pytest.fixture(params=TOOLS)
def writer(request: pytest.FixtureRequest, tool: Tool, stories4: Path, tmp_path: Path) -> list[str]:
    """A command that writes to standard output."""
    text = tmp_path / "text"
    text.write_text("Once upon a time, there was a big dog.")
    options: dict[str, list[str]] = {
        "sq-run": ["--raw", "-p", "Once", "-n", "20", "--threads", "1"],
        "sq-info": [],
        "sq-bench": ["-p", "4", "-n", "2", "-r", "1", "--threads", "1"],
        "sq-eval": [str(text), "--threads", "1"],
    }
    return [tool(request.param), str(stories4), *options[request.param]]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_full_disk(writer: list[str]) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            writer, stdin=subprocess.DEVNULL, stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "cannot write to standard output: No space left on device" in done.stderr


def test_closed_pipe(writer: list[str]) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    done = subprocess.run(
        writer, stdin=subprocess.DEVNULL, stdout=write_end, stderr=subprocess.PIPE, text=True
    )
    os.close(write_end)
    assert done.returncode == 1
    assert "standard output was closed" in done.stderr


# ---- sq-info, sq-bench, sq-eval ----------------------------------------------------------------------------


def report(*command: object) -> dict[str, Any]:
    done = run(*command, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_info(tool: Tool, stories4: Path, stories_chat: Path) -> None:
    found = report(tool("sq-info"), stories4, "--ctx", 128)
    assert found["architecture"] == "llama"
    assert found["file_bytes"] == stories4.stat().st_size
    assert found["kv_bytes"] == 128 * 5 * 2 * 4 * 8 * 2, "tokens, layers, K and V, heads, head size, bytes"
    for n, kv, n_bytes in ((97, "f16", 8 * 2), (128, "f32", 8 * 4), (128, "q8", 8 + 4)):
        less = report(tool("sq-info"), stories4, "--ctx", n, "--kv", kv)
        assert less["kv_bytes"] == 128 * 5 * 2 * 4 * n_bytes, "blocks of 32 tokens; q8 with scales"
    tensors = found["tensors"]
    assert found["weight_bytes"] == sum(t["bytes"] for t in tensors)
    assert found["memory_bytes"] == found["weight_bytes"] + found["kv_bytes"]
    tables = [t for t in tensors if t["type"] == "lut4"]
    assert len(tables) == 5 * 7
    n_weights = sum(t["n_out"] * t["n_in"] for t in tables)
    assert found["sparse_share"] == pytest.approx(sum(t["n_sparse"] for t in tables) / n_weights)
    assert found["bits_per_weight"] == pytest.approx(8 * sum(t["bytes"] for t in tables) / n_weights)
    assert found["chat"] is False
    assert "template" in found["chat_problem"]
    assert report(tool("sq-info"), stories_chat)["chat"] is True


def test_info_for_people(tool: Tool, stories4: Path) -> None:
    text = run(tool("sq-info"), stories4).stdout
    assert "blk.*.attn_q.weight" in text
    assert "64 x 64 lut4" in text
    assert "blk.0." not in text


def test_info_of_a_hostile_name(tool: Tool, stories4: Path, tmp_path: Path) -> None:
    """A name is bytes from a stranger: JSON stays JSON."""
    plain = report(tool("sq-info"), stories4)["model"].encode()
    hostile = b'"\n\\\x1b]\xff'.ljust(len(plain), b"'")
    path = tmp_path / "hostile.sq.gguf"
    content = stories4.read_bytes()
    assert content.count(plain) == 1
    assert len(hostile) == len(plain)
    path.write_bytes(content.replace(plain, hostile))
    assert report(tool("sq-info"), path)["model"] == hostile.decode(errors="replace")


def test_bench(tool: Tool, stories4: Path) -> None:
    options = ("-p", 16, "-n", 8, "-r", 3)
    found = report(tool("sq-bench"), stories4, *options, "--threads", 1)
    for key in ("prompt_tokens_per_second", "generation_tokens_per_second", "read_gb_per_second"):
        assert found[key] > 0
    assert [len(found[f"{key}_rounds"]) for key in ("prompt", "generation", "read")] == [3, 3, 3]
    assert found["generation_tokens_per_second"] == found["generation_rounds"][1], "the median"
    info = report(tool("sq-info"), stories4, "--ctx", 4)
    assert found["bytes_per_token"] == info["token_bytes"] + info["kv_bytes"]
    gb_per_second = 1e-9 * found["bytes_per_token"] * found["generation_tokens_per_second"]
    assert found["generation_gb_per_second"] == pytest.approx(gb_per_second)
    assert found["read_share"] == pytest.approx(gb_per_second / found["read_gb_per_second"])
    assert found["threads"] == 1
    again = report(tool("sq-bench"), stories4, "-p", 16, "-n", 8, "-r", 1, "--threads", 2)
    assert again["logits_hash"] == found["logits_hash"], "threads change nothing"
    other = report(tool("sq-bench"), stories4, "-p", 15, "-n", 8, "-r", 1, "--threads", 1)
    assert other["logits_hash"] != found["logits_hash"], "the prompt changes them"
    assert_complaint(run(tool("sq-bench"), stories4, "-p", 600), 1, "512", "600")


def test_bench_sweeps(tool: Tool, stories4: Path) -> None:
    """All combinations of the lists, in the order of threads, depths and kinds."""
    options = ("-p", "16,8", "-n", "4", "-d", "0,40", "--batch", "2,3", "-r", 2, "--threads", "1,2")
    found = report(tool("sq-bench"), stories4, *options)
    at_depth = [("generation", 4), ("batch", 2), ("batch", 3)]
    assert [(c["threads"], c["depth"], c["kind"], c["tokens"]) for c in found["cases"]] == [
        (threads, *case)
        for threads in (1, 2)
        for case in [
            (0, "prompt", 16),
            (0, "prompt", 8),
            *((depth, kind, n) for depth in (0, 40) for kind, n in at_depth),
        ]
    ]
    for case in found["cases"]:
        assert len(case["rounds"]) == 2
        assert case["tokens_per_second"] == pytest.approx(np.median(case["rounds"]))
        assert "ms_per_token" not in case
    generation, batch = found["cases"][5], found["cases"][7]
    info = report(tool("sq-info"), stories4, "--ctx", 42)
    assert generation["bytes_read"] == info["token_bytes"] + info["kv_bytes"]
    runs_per_second = batch["tokens_per_second"] / 3
    assert batch["gb_per_second"] == pytest.approx(1e-9 * batch["bytes_read"] * runs_per_second)
    for wrong in ("1,", ",1", "", "1,,2", "1;2", "0", ",".join("1" * 17)):
        assert_complaint(run(tool("sq-bench"), stories4, "-p", wrong), 2, "-p", "commas")


def test_bench_profile(tool: Tool, stories4: Path) -> None:
    """The parts are all of the time but for the sampler's and the caller's."""
    found = report(tool("sq-bench"), stories4, "-p", 200, "-n", 16, "-r", 3, "--threads", 1, "--profile")
    for case in found["cases"]:
        parts = case["ms_per_token"]
        assert {"attention", "ffn down", "head", "waiting"} < parts.keys()
        assert parts["experts"] == parts["waiting"] == 0, "no experts, nobody to wait for"
        total = np.mean([1e3 / rate for rate in case["rounds"]])
        assert 0.5 * total < sum(parts.values()) <= 1.001 * total


def perplexity_of(folder: Path, text: str, n_window: int) -> tuple[float, int]:
    """Perplexity by transformers, GPTQ's protocol, and the number of tokens predicted."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.tensor(tokenizer(text)["input_ids"])
    windows = ids[: len(ids) // n_window * n_window].reshape(-1, n_window)
    with torch.no_grad():
        losses = [float(model(w[None], labels=w[None]).loss) for w in windows]
    return float(np.exp(np.mean(losses))), windows.numel() - len(windows)


def test_eval_agrees_with_transformers(tool: Tool, sq_convert: str, stories4: Path, tmp_path: Path) -> None:
    """With --exact; without it to what fixed point may change, which test_truth.py measures."""
    text = "Once upon a time, there was a big dog. He liked to run, and he had 1,234 friends! " * 20
    path = tmp_path / "text"
    path.write_text(text)
    decoded = tmp_path / "decoded"
    assert run(sq_convert, stories4, "-o", decoded, "--dequantize").returncode == 0
    expected, n_predicted = perplexity_of(decoded, text, 64)
    found = report(tool("sq-eval"), stories4, path, "--ctx", 64, "--kv", "f32", "--threads", 1, "--exact")
    assert found["perplexity"] == pytest.approx(expected, rel=1e-5)
    assert found["n_predicted"] == n_predicted
    fixed = report(tool("sq-eval"), stories4, path, "--ctx", 64, "--kv", "f32", "--threads", 1)
    assert fixed["perplexity"] == pytest.approx(expected, rel=1e-3)
    assert found["window_tokens"] == 64
    assert 0 < found["standard_error"] < found["perplexity"]
    whole = report(tool("sq-eval"), stories4, path, "--threads", 1)
    assert whole["window_tokens"] == 512, "the model's context is shorter than 2048"


def test_eval_without_text(tool: Tool, stories4: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.touch()
    assert_complaint(run(tool("sq-eval"), stories4, empty), 1, str(empty), "2 tokens")
    assert_complaint(run(tool("sq-eval"), stories4, tmp_path / "missing"), 1, "No such file")
    assert_complaint(run(tool("sq-eval"), stories4, tmp_path), 1, "Is a directory")
