"""What models of the LLaMA family differ in, each on a tiny random model against transformers."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Convert
from truth import assert_equal, cpus, reference_logits, run

SIZES = {
    "vocab_size": 512,
    "hidden_size": 60,
    "intermediate_size": 100,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bias": {"attention_bias": True, "mlp_bias": True},
    "tied": {"tie_word_embeddings": True, "hidden_size": 96},
    "wide-head": {"head_dim": 34},
    "one-kv-head": {"num_key_value_heads": 1},
    "rope-base": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    "rope-linear": {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
    "rope-llama3": {"rope_parameters": LLAMA3_ROPE},
    "window": {"model_type": "mistral", "sliding_window": 16},
}


@pytest.fixture(params=VARIANTS)
def source(request: pytest.FixtureRequest, tmp_path: Path, stories: Path) -> Path:
    """A Hugging Face folder with random weights, biases and norms, and stories260K's tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    variant = {"model_type": "llama", "tie_word_embeddings": False} | SIZES | VARIANTS[request.param]
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**variant))
    for name, parameter in model.named_parameters():
        if name.endswith(("norm.weight", ".bias")):
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copy(stories / name, folder)
    return folder


def test_variant(source: Path, convert: Convert, sq_convert: str, tmp_path: Path) -> None:
    path = convert(source, "--method", "kmeans", "--outliers", "1")
    folder = tmp_path / "decoded"
    subprocess.run([sq_convert, path, "-o", folder, "--dequantize"], check=True, capture_output=True)
    ids = [1, *np.random.default_rng(1).integers(3, 512, 99).tolist()]
    reference = reference_logits(folder, ids)
    for cpu in cpus():
        for pieces in ([100], [40, 1, 59], [1] * 100):
            assert_equal(reference, run(path, ids, pieces, cpu))
