"""Mixtures of experts: what a file tells of them, and experts that calibration never reaches."""

from __future__ import annotations

import io
import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from arch_variants import SIZES, VARIANTS
from gguf import GGUFReader
from sq_convert.options import Options
from sq_convert.pipeline import convert
from sq_convert.progress import Progress
from sq_convert.quantize import PARTS
from sq_convert.table import rounded, table_of
from tokenizers_for_tests import byte_level

N_EXPERTS, N_USED, IDLE = 9, 1, 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose expert IDLE, with a logit of 0, is never the best of all."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    fields = {"model_type": "qwen3_moe", **SIZES, **VARIANTS["qwen3_moe", "plain"]}
    fields["num_experts_per_tok"] = N_USED
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**fields))
    for name, parameter in model.named_parameters():
        if name.endswith("mlp.gate.weight"):
            parameter.data[IDLE] = 0
    path = tmp_path_factory.mktemp("experts") / "model"
    model.save_pretrained(path)
    byte_level(pad_token="<|endoftext|>").save_pretrained(path)
    return path


def converted(folder: Path, out: Path, method: str) -> Path:
    options = Options(folder, out, method=method, outliers=1.0, samples=2, seq_len=64, threads=2)
    convert(options, Progress(io.StringIO()))
    return out


@pytest.mark.parametrize("method", ["squeezellm", "guided"])
def test_idle_experts(method: str, folder: Path, tmp_path: Path) -> None:
    """They are quantized as if there were no calibration, but for the rounding of tables."""
    calibrated = tensors_of(converted(folder, tmp_path / "calibrated.sq.gguf", method))
    plain = tensors_of(converted(folder, tmp_path / "plain.sq.gguf", "kmeans"))
    for name in ("gate", "up", "down"):
        same = []
        for expert in range(N_EXPERTS):
            stem = f"blk.1.ffn_{name}.{expert}.weight."
            found, wanted = (parts_of(tensors, stem) for tensors in (calibrated, plain))
            parts = PARTS if method == "guided" else ("codes", "rows", "cols")
            same.append(
                np.array_equal(
                    rounded(table_of(found)) if method == "squeezellm" else table_of(found), table_of(wanted)
                )
                and all(np.array_equal(found[part], wanted[part]) for part in parts)
            )
        assert same[IDLE]
        assert not all(same)


def parts_of(tensors: dict[str, np.ndarray], stem: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(stem): data for name, data in tensors.items() if name.startswith(stem)}


def tensors_of(path: Path) -> dict[str, np.ndarray]:
    return {tensor.name: np.array(tensor.data) for tensor in GGUFReader(path).tensors}


def test_info(folder: Path, tmp_path: Path, sq_info: str) -> None:
    """A token reads the experts it uses, and all else."""
    path = converted(folder, tmp_path / "model.sq.gguf", "rtn")
    shown = subprocess.run([sq_info, path], check=True, capture_output=True, text=True).stdout
    assert f"experts       {N_EXPERTS}, of which a token uses {N_USED}\n" in shown
    assert f"blk.*.ffn_up.*.weight           {2 * N_EXPERTS} " in shown
    report = subprocess.run([sq_info, path, "--json"], check=True, capture_output=True, text=True).stdout
    info = json.loads(report)
    assert (info["n_experts"], info["n_experts_used"]) == (N_EXPERTS, N_USED)
    n_bytes = {tensor["name"]: tensor["bytes"] for tensor in info["tensors"]}
    experts = sum(n for name, n in n_bytes.items() if name.split(".")[-2].isdigit())
    rest = sum(n_bytes.values()) - experts - n_bytes["token_embd.weight"]
    assert info["token_bytes"] == pytest.approx(rest + experts * N_USED / N_EXPERTS, abs=N_EXPERTS)
