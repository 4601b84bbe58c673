"""Tiny random models of every family against transformers, on the decoded weights."""

from __future__ import annotations

import copy
import io
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from arch_variants import N_SHORT, SIZES, VARIANTS
from gpu_logits import run_with_plugin
from sq_convert.arch import Tensor
from sq_convert.blocks import BlockCalibration
from sq_convert.calibrate import sum_up
from sq_convert.checkpoint import Checkpoint, check_tensors, open_checkpoint, read_tensor
from sq_convert.dequantize import dequantize
from sq_convert.measure import FISHER, MOMENTS, Measure
from sq_convert.options import Options
from sq_convert.pipeline import convert
from sq_convert.progress import Progress
from sq_convert.sums import SumsFile, SumsFiles
from sq_convert.workfolder import WorkFolder
from tokenizers_for_tests import byte_level
from truth import Logits, assert_equal, cpus, kl_divergence, reference_logits, run

N_TOKENS = 100
PIECES = ([N_TOKENS], [40, 1, 59], [1] * N_TOKENS)
WIDTHS = (16, 4, 2)


@dataclass
class Source:
    """A Hugging Face folder of a random model."""

    folder: Path
    long_rope: bool  # past N_SHORT tokens all positions are rotated otherwise


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer that transformers takes for every model type; for Qwen2 it wants this padding token."""
    folder = tmp_path_factory.mktemp("tokenizer")
    byte_level(pad_token="<|endoftext|>").save_pretrained(folder)
    return folder


def create(model_type: str, name: str, tokenizer: Path, folder: Path) -> Any:
    """Writes a model with random weights, biases and norms; returns transformers' model."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    fields = {"model_type": model_type, **SIZES, **VARIANTS[model_type, name]}
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**fields))
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.endswith(("norm.weight", ".bias")):
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    model.save_pretrained(folder)
    shutil.copytree(tokenizer, folder, dirs_exist_ok=True)
    return model


@pytest.fixture(params=VARIANTS, ids="-".join, scope="module")
def source(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tokenizer: Path
) -> Source:
    folder = tmp_path_factory.mktemp("arch") / "model"
    model_type, name = request.param
    model = create(model_type, name, tokenizer, folder)
    rope: dict[str, Any] = getattr(model.config, "rope_parameters", {})
    return Source(folder, rope.get("rope_type") == "longrope")


def expected(folder: Path, ids: list[int], pieces: list[int], long_rope: bool) -> Logits:
    """What transformers computes when it sees, with each piece, what has come so far."""
    logits = reference_logits(folder, ids)
    ends = np.cumsum(pieces)
    n_short = int(max((end for end in ends if end <= N_SHORT), default=0)) if long_rope else 0
    if n_short:
        logits[:n_short] = reference_logits(folder, ids[:n_short])
    return logits


@pytest.mark.parametrize("bits", WIDTHS)
def test_logits(source: Source, bits: int, emulated: Path, tmp_path: Path) -> None:
    """Every way to cut the prompt; every instruction set, and the plugin for GPUs, at 4 bits."""
    progress = Progress(io.StringIO())
    path, folder = tmp_path / "model.sq.gguf", tmp_path / "decoded"
    options = Options(
        source.folder,
        path,
        bits=bits,
        method="kmeans",
        outliers=1,
        threads=2,
        head_bits=16 if bits == 16 else 8,
    )
    convert(options, progress)
    dequantize(path, folder, progress)
    ids = np.random.default_rng(1).integers(0, 512, N_TOKENS).tolist()
    for pieces in PIECES:
        reference = expected(folder, ids, pieces, source.long_rope)
        for cpu in cpus() if bits == 4 else ["auto"]:
            assert_equal(reference, run(path, ids, pieces, cpu))
    if bits == 4:
        check_emulated(emulated, path, ids)


def check_emulated(plugin: Path, path: Path, ids: list[int]) -> None:
    """The plugin for GPUs, its kernels run on the CPU; prompts in f16 as a GPU has them, and exactly.

    Exactly with an f32 cache: elements of an f16 one round apart where sums differ in their last bit, which
    alone is 7e-6 between the CPU's own instruction sets in gemma2-no-caps.
    """
    pieces = [20, 1, 2]
    ids = ids[: sum(pieces)]
    exact, fast = (
        kl_divergence(run(path, ids, pieces, "auto", kv), run_with_plugin(plugin, path, ids, pieces, e, kv))
        for e, kv in ((True, "f32"), (False, "f16"))
    )
    assert exact.max() < 1e-6, f"KL divergence {exact.max():.2e} at token {exact.argmax()}"
    assert fast.mean() < 1e-4, f"KL divergence {fast.mean():.2e}, of prompts in f16"


@pytest.mark.parametrize(
    ("model_type", "name"),
    [
        ("phi3", "long-partial"),
        ("qwen3", "windows"),
        ("smollm3", "nope"),
        ("gemma2", "plain"),
        ("gemma3_text", "rope"),
        ("opt", "350m"),
        ("qwen3_moe", "mixed"),
    ],
)
def test_calibration(
    model_type: str, name: str, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both measures of every matrix, of fused ones row by row, in one piece and block by block."""
    import torch

    monkeypatch.setattr("sq_convert.measure.PANEL", 20)  # no divisor of the numbers of inputs
    model = create(model_type, name, tokenizer, tmp_path / "model").eval()  # without dropout
    sequences = np.random.default_rng(1).integers(0, 512, (2, 24))
    squares = {name: torch.zeros_like(parameter) for name, parameter in model.named_parameters()}
    by_linears = with_linear_experts(model)
    seen = watch_linears(by_linears)
    for ids in torch.from_numpy(sequences[:, None]):
        by_linears(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        model.zero_grad()
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        for parameter_name, parameter in model.named_parameters():
            squares[parameter_name] += parameter.grad**2

    checkpoint = open_checkpoint(tmp_path / "model")
    for tensor, sums in both_ways(checkpoint, sequences, FISHER, tmp_path):
        parameter_name, place = tensor.in_model
        wanted = squares[parameter_name][place].numpy()
        np.testing.assert_allclose(sums, wanted, 1e-4, 1e-6 * wanted.max())
    for tensor, sums in both_ways(checkpoint, sequences, MOMENTS, tmp_path):
        parameter_name, place = tensor.in_model
        if tensor.parameter:
            expert, place = place
            parameter_name += f".{expert}.weight"
        wanted = sum(x.T @ (x * g[:, place].square().mean(1, True)) for x, g in seen[parameter_name])
        np.testing.assert_allclose(sums, wanted, 1e-4, 1e-6 * wanted.max())


def with_linear_experts(model: Any) -> Any:
    """A copy whose experts are linear modules, ``….experts.gate_up_proj.3`` and so on."""
    import torch

    class Experts(torch.nn.Module):  # type: ignore[misc]  # torch is not followed
        def __init__(self, stacked: Any) -> None:
            super().__init__()
            self.act = stacked.act_fn
            self.gate_up_proj = torch.nn.ModuleList(map(linear, stacked.gate_up_proj))
            self.down_proj = torch.nn.ModuleList(map(linear, stacked.down_proj))

        def forward(self, x: Any, chosen: Any, shares: Any) -> Any:
            out = torch.zeros_like(x)
            for expert, (gate_up, down) in enumerate(zip(self.gate_up_proj, self.down_proj, strict=True)):
                token, rank = torch.where(chosen == expert)
                gate, up = gate_up(x[token]).chunk(2, dim=-1)
                out = out.index_add(0, token, shares[token, rank, None] * down(self.act(gate) * up))
            return out

    def linear(weight: Any) -> Any:
        module = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        module.weight = torch.nn.Parameter(weight.detach().clone())
        return module

    model = copy.deepcopy(model)
    for block in model.modules():
        if hasattr(getattr(block, "experts", None), "gate_up_proj"):
            block.experts = Experts(block.experts)
    return model


def watch_linears(model: Any) -> dict[str, list[Any]]:
    """Inputs ``[n_tokens, n_in]`` of linear modules and their outputs' gradients, by the weight's name."""
    import torch

    seen: dict[str, list[Any]] = {}

    def watch(name: str) -> Any:
        def forward(module: Any, inputs: Any, out: Any) -> None:
            out.register_hook(
                lambda g: seen.setdefault(f"{name}.weight", []).append(
                    (inputs[0].detach().flatten(0, -2), g.flatten(0, -2))
                )
            )

        return forward

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(watch(name))
    return seen


def both_ways(
    checkpoint: Checkpoint, sequences: np.ndarray, measure: Measure, folder: Path
) -> Iterator[tuple[Tensor, np.ndarray]]:
    """The sums of each matrix, with the model in one piece and then block by block."""
    tensors = check_tensors(checkpoint)
    whole = SumsFile(folder / f"{measure.name}.safetensors", tensors, measure)
    sum_up(checkpoint, tensors, sequences, whole, "cpu", 2, lambda: None)
    work = WorkFolder(folder / measure.name)
    with work.locked():
        blocks = SumsFiles(work, tensors, measure, len(sequences))
        BlockCalibration(checkpoint, tensors, sequences, blocks, work, "cpu").run(2, lambda: None)
        for tensor in whole.matrices:
            yield tensor, whole.read(tensor)
            yield tensor, blocks.read(tensor)


def test_language_model_of_multimodal(
    tokenizer: Path, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    """Gemma 3 with a part for images, which is left out, under the names of its publisher."""
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import AutoConfig, AutoModelForCausalLM

    text = {"model_type": "gemma3_text", **SIZES, **VARIANTS["gemma3_text", "tied"]}
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**text))
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    shutil.copytree(tokenizer, folder, dirs_exist_ok=True)
    weights = load_file(folder / "model.safetensors")
    ids = np.random.default_rng(1).integers(0, 512, N_TOKENS).tolist()
    reference = reference_logits(folder, ids)

    renamed = {f"language_model.{name}": values for name, values in weights.items()}
    renamed["vision_tower.vision_model.post_layernorm.bias"] = torch.zeros(8)
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
    config = {"model_type": "gemma3", "text_config": text, "vision_config": {"hidden_size": 8}}
    (folder / "config.json").write_text(json.dumps(config))
    path = tmp_path / "model.sq.gguf"
    convert(Options(folder, path, bits=16, head_bits=16), Progress(io.StringIO()))
    rounded = np.abs(run(path, ids, [N_TOKENS], "auto") - reference).max()  # by F16
    assert rounded < 0.02 * np.abs(reference).max()


def test_names_of_a_base_model(tokenizer: Path, tmp_path: Path) -> None:
    """OPT's publisher left out the first part of the names in some of its checkpoints."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "model"
    create("opt", "plain", tokenizer, folder)
    checkpoint = open_checkpoint(folder)
    wanted = {tensor.name: read_tensor(checkpoint, tensor) for tensor in check_tensors(checkpoint)}
    weights = load_file(folder / "model.safetensors")
    renamed = {name.removeprefix("model."): values for name, values in weights.items()}
    assert renamed.keys() != weights.keys()
    save_file(renamed, folder / "model.safetensors")
    checkpoint = open_checkpoint(folder)
    for tensor in check_tensors(checkpoint):
        np.testing.assert_array_equal(read_tensor(checkpoint, tensor), wanted[tensor.name])
