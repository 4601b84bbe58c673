"""What --dry-run states about memory, against what conversions of large random checkpoints take."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from sq_convert.cli import main

# TinyLlama-1.1B's shape.
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 32000, "hidden_size": 2048,
    "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32, "num_key_value_heads": 4,
    "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "hidden_act": "silu",
}  # fmt: skip
SHARE = 0.15  # that the statement may be off

# Runs sq-convert, calibrating block by block where asked to, up to a stage, and prints its peak memory.
MEASURE = """
import re, sys
from pathlib import Path
from sq_convert import memory, pipeline
from sq_convert.cli import main
until, in_blocks, *arguments = sys.argv[1:]
if in_blocks == "True":
    memory.available_bytes = lambda device: 0
if until:
    def stop(job):
        raise KeyboardInterrupt
    setattr(pipeline, until, stop)
assert main(arguments) == (130 if until else 0)
print(1024 * int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1]))
"""


def create(folder: Path, stories: Path, **changes: int) -> Path:
    """A random bf16 checkpoint with a shard for each block, all of the same weights."""
    folder.mkdir()
    config: dict[str, Any] = {**CONFIG, **changes}
    (folder / "config.json").write_text(json.dumps(config))
    for path in stories.glob("tokenizer*"):
        shutil.copy(path, folder)
    n, n_ff = config["hidden_size"], config["intermediate_size"]
    n_kv = n // config["num_attention_heads"] * config["num_key_value_heads"]
    shapes = {
        "self_attn.q_proj": (n, n), "self_attn.k_proj": (n_kv, n), "self_attn.v_proj": (n_kv, n),
        "self_attn.o_proj": (n, n), "mlp.gate_proj": (n_ff, n), "mlp.up_proj": (n_ff, n),
        "mlp.down_proj": (n, n_ff), "input_layernorm": (n,), "post_attention_layernorm": (n,),
    }  # fmt: skip
    torch.manual_seed(1)
    block = {name: torch.randn(shape, dtype=torch.bfloat16) / 50 for name, shape in shapes.items()}
    table = torch.randn(config["vocab_size"], n, dtype=torch.bfloat16) / 50
    rest = {"model.embed_tokens": table, "lm_head": table + 1, "model.norm": table[0].clone()}
    shards = {f"model.layers.{i}.": block for i in range(config["num_hidden_layers"])} | {"": rest}
    index: dict[str, str] = {}
    for number, (prefix, tensors) in enumerate(shards.items()):
        names = {f"{prefix}{name}.weight": values for name, values in tensors.items()}
        save_file(names, folder / f"{number}.safetensors")
        index |= dict.fromkeys(names, f"{number}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return folder


def stated(said: str) -> float:
    """Bytes of memory in a plan."""
    found = re.search(r"^memory   about ([\d.]+) (MB|GB)$", said, re.MULTILINE)
    assert found, said
    return float(found[1]) * {"MB": 1e6, "GB": 1e9}[found[2]]


def plan(capsys: pytest.CaptureFixture[str], *command: str) -> str:
    capsys.readouterr()
    assert main([*command, "--dry-run"]) == 0
    return capsys.readouterr().out


def measured(command: list[str], until: str = "", in_blocks: bool = False) -> int:
    run = [sys.executable, "-c", MEASURE, until, str(in_blocks), *command]
    done = subprocess.run(run, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_a_model_of_1100_million_weights(
    stories: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = create(tmp_path / "model", stories)
    command = [str(folder), "-o", str(tmp_path / "m.sq.gguf"), "--method", "rtn", "--bits", "3"]
    said = plan(capsys, *command, "--outliers", "0")
    assert "1100.0 M weights" in said
    assert measured([*command, "--outliers", "0"]) == pytest.approx(stated(said), rel=SHARE)
    shutil.rmtree(folder)


@pytest.mark.parametrize("method", ["guided", "squeezellm"])
def test_calibration_of_blocks_of_that_size(
    method: str, stories: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Whole, and block by block, each up to its end. Quantizing, where it takes more, has a test below."""
    folder = create(tmp_path / "model", stories, num_hidden_layers=4, vocab_size=2000)
    command = [str(folder), "-o", str(tmp_path / "m.sq.gguf"), "--method", method]
    command += ["--samples", "2", "--seq-len", "128"]
    monkeypatch.setattr("sq_convert.memory.quantizing_bytes", lambda *_: 0)
    statements = []
    for in_blocks in (False, True):
        monkeypatch.setattr("sq_convert.memory.available_bytes", lambda _, n=in_blocks: 0 if n else 1 << 40)
        said = plan(capsys, *command)
        assert ("block by block" in said) == in_blocks
        statements.append(stated(said))
        assert measured(command, "_quantize", in_blocks) == pytest.approx(statements[-1], rel=SHARE)
        shutil.rmtree(tmp_path / "m.sq.gguf.work")
    assert statements[1] < statements[0] / 2
    shutil.rmtree(folder)


def test_refinement_against_many_inputs(
    stories: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """To the end: H of a matrix with 5632 inputs takes most."""
    sizes = {"hidden_size": 256, "num_attention_heads": 4, "num_hidden_layers": 1, "vocab_size": 2000}
    folder = create(tmp_path / "model", stories, **sizes)
    command = [str(folder), "-o", str(tmp_path / "m.sq.gguf"), "--samples", "2", "--seq-len", "128"]
    said = stated(plan(capsys, *command))
    assert measured(command) == pytest.approx(said, rel=SHARE)


def test_tuning_of_blocks_of_that_size(
    stories: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = create(tmp_path / "model", stories, num_hidden_layers=2, vocab_size=2000)
    command = [str(folder), "-o", str(tmp_path / "m.sq.gguf"), "--method", "rtn", "--tune", "1"]
    command += ["--samples", "2", "--seq-len", "128"]
    said = plan(capsys, *command)
    assert "for tuning" in said
    assert measured(command) == pytest.approx(stated(said), rel=SHARE)


SIZES: dict[str, tuple[dict[str, int], str]] = {
    "13B": ({"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40,
             "num_attention_heads": 40, "num_key_value_heads": 40}, "13015.9 M weights"),
    "70B": ({"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
             "num_attention_heads": 64, "num_key_value_heads": 8}, "68976.6 M weights"),
}  # fmt: skip
GIGABYTES = {
    ("13B", "squeezellm"): 4.2, ("13B", "guided"): 11,
    ("70B", "squeezellm"): 10, ("70B", "guided"): 45,
}  # fmt: skip


@pytest.mark.parametrize("method", ["squeezellm", "guided"])
@pytest.mark.parametrize("name", SIZES)
def test_plans_from_a_configuration_alone(
    name: str,
    method: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    changes, weights = SIZES[name]
    gigabytes = GIGABYTES[name, method]
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | changes))
    monkeypatch.setattr("sq_convert.memory.available_bytes", lambda _: 16 << 30)
    said = plan(capsys, str(tmp_path), "-o", str(tmp_path / "m.sq.gguf"), "--method", method)
    assert weights in said
    assert "calibration block by block; with " in said
    assert "all this is what config.json implies" in said
    assert gigabytes / 1.5 < stated(said) / 1e9 < gigabytes
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
