"""GGUF files as llama.cpp's converter writes them: of every family, and of every type of tensor."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from arch_variants import LLAMA3_ROPE, SIZES, long_rope, rope
from gguf import GGMLQuantizationType as Type
from gguf import GGUFValueType
from hard_text import hard_strings
from numpy.typing import NDArray
from sq_convert.arch import Kind
from sq_convert.checkpoint import Checkpoint, check_tensors, open_checkpoint, read_tensor
from sq_convert.cli import main
from sq_convert.codec import Codec
from sq_convert.errors import ConvertError
from sq_convert.hf_tokenizer import load_tokenizer
from sq_convert.tokenizer import export_tokenizer
from sq_convert.verify import compare
from tokenizers_for_tests import byte_level, sentencepiece_folder
from truth import assert_equal, reference_logits, run

Arrays = dict[str, NDArray[Any]]

_GEMMA = {"head_dim": 14, "query_pre_attn_scalar": 14, "sliding_window": 16, "num_hidden_layers": 7,
          "tie_word_embeddings": True, "hidden_activation": "gelu_pytorch_tanh"}  # fmt: skip
_LINEAR = {"full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
           "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}}  # fmt: skip
_YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 64}
_LLAMA3 = LLAMA3_ROPE | {"original_max_position_embeddings": 8192, "factor": 32.0}
# Model type and name, the configuration, and keys of the file beyond those that all have.
FAMILIES: dict[tuple[str, str], tuple[dict[str, Any], dict[str, Any]]] = {
    ("llama", "plain"): ({}, {}),
    ("llama", "bias"): ({"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}, {}),
    ("llama", "llama3"): ({"rope_parameters": _LLAMA3}, {}),
    ("llama", "linear"): (
        rope("linear", factor=4.0), {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0},
    ),
    ("mistral", "window"): ({"sliding_window": 16, "head_dim": 16}, {"attention.sliding_window": 16}),
    ("qwen2", "plain"): ({}, {}),
    ("qwen2", "yarn"): (
        {"rope_parameters": _YARN},
        {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 64},
    ),
    ("qwen3", "plain"): ({"head_dim": 22}, {}),
    ("qwen3_moe", "plain"): (
        {"head_dim": 10, "num_experts": 5, "num_experts_per_tok": 3, "moe_intermediate_size": 36,
         "norm_topk_prob": True},
        {"expert_count": 5, "expert_used_count": 3, "expert_feed_forward_length": 36},
    ),
    ("smollm3", "plain"): ({"num_hidden_layers": 4}, {}),
    ("gemma2", "plain"): (
        _GEMMA | {"attn_logit_softcapping": 4.0, "final_logit_softcapping": 6.0},
        {"attention.sliding_window": 16, "attn_logit_softcapping": 4.0, "final_logit_softcapping": 6.0},
    ),
    ("gemma3_text", "plain"): (
        _GEMMA | {"rope_parameters": _LINEAR},
        {"attention.sliding_window": 16, "rope.scaling.type": "linear", "rope.scaling.factor": 8.0},
    ),
    ("phi3", "partial"): (
        {"partial_rotary_factor": 0.6, "sliding_window": 16},
        {"rope.dimension_count": 6, "attention.sliding_window": 16},
    ),
    ("phi3", "long"): (long_rope(5), {"rope.scaling.original_context_length": 64}),
}  # fmt: skip
ARCHITECTURES = {"mistral": "llama", "gemma3_text": "gemma3", "qwen3_moe": "qwen3moe"}


def interleave(values: NDArray[np.float32], n_heads: int) -> NDArray[np.float32]:
    """Hugging Face's rows of each head in the order that rotates neighbouring pairs."""
    shape = (n_heads, 2, len(values) // n_heads // 2, *values.shape[1:])
    return np.ascontiguousarray(values.reshape(shape).swapaxes(1, 2).reshape(values.shape))


def llama_cpp_tensors(model: Any, model_type: str) -> Arrays:
    """transformers' weights by llama.cpp's names, changed as its converter changes them."""
    config = model.config
    architecture = ARCHITECTURES.get(model_type, model_type)
    number = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(number, config.num_hidden_layers)
    tensors: Arrays = {}
    for source, parameter in model.state_dict().items():
        values = parameter.float().numpy()
        if ".experts." in source:  # transformers has them stacked already, gate and up in one
            block = source.split(".")[2]
            half = values.shape[1] // 2
            parts = {"gate": values[:, :half], "up": values[:, half:]}
            for part, rows in parts.items() if "gate_up" in source else (("down", values),):
                tensors[f"blk.{block}.ffn_{part}_exps.weight"] = np.ascontiguousarray(rows)
            continue
        if source == "lm_head.weight" and config.tie_word_embeddings:
            continue
        name = names.get_name(source, (".weight", ".bias"))
        assert name, source
        if architecture in ("llama", "smollm3") and ".attn_q." in name:
            values = interleave(values, config.num_attention_heads)
        if architecture in ("llama", "smollm3") and ".attn_k." in name:
            values = interleave(values, config.num_key_value_heads)
        if architecture.startswith("gemma") and name.endswith("norm.weight"):
            values = values + 1
        tensors[name] = values
    return tensors


def hf_tokenizer(architecture: str, folder: Path) -> Any:
    """A byte-level one; for Gemma its kind, out of a new folder of its own."""
    if architecture.startswith("gemma"):
        folder.mkdir()
        return load_tokenizer(sentencepiece_folder(folder, "gemma"))
    return byte_level(pad_token="<|endoftext|>")


def write(
    path: Path, architecture: str, keys: dict[str, Any], tensors: Arrays, kinds: dict[str, Type] | None = None
) -> Path:
    writer = gguf.GGUFWriter(path, architecture)
    tokenizer = export_tokenizer(hf_tokenizer(architecture, path.parent / "tokenizer"), 512)
    if tokenizer.model == "llama":
        tokenizer = replace(tokenizer, merges=[])  # which the order of the tokens tells
    tokenizer.write(writer)
    writer.add_string("tokenizer.ggml.pre", "gpt-2")
    for key, value in keys.items():
        value_types = {str: GGUFValueType.STRING, float: GGUFValueType.FLOAT32, int: GGUFValueType.UINT32}
        writer.add_key_value(f"{architecture}.{key}", value, value_types[type(value)])
    for name, values in tensors.items():
        writer.add_tensor(name, values, raw_dtype=(kinds or {}).get(name))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def common_keys(config: Any) -> dict[str, Any]:
    parameters = config.rope_parameters
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return {
        "context_length": config.max_position_embeddings, "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers, "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": head_dim, "attention.value_length": head_dim,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps, "rope.dimension_count": head_dim,
        "rope.freq_base": float(parameters.get("full_attention", parameters)["rope_theta"]),
    }  # fmt: skip


@pytest.fixture(scope="module", params=FAMILIES, ids="-".join)
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Checkpoint, Checkpoint]:
    """The same random model as a Hugging Face folder and as a GGUF file."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    tmp_path = tmp_path_factory.mktemp("gguf")
    model_type, _ = request.param
    changes, keys = FAMILIES[request.param]
    torch.manual_seed(1)
    config = AutoConfig.for_model(model_type, **{**SIZES, **changes})
    model = AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():
        if name.endswith(("norm.weight", ".bias")):
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    model.save_pretrained(tmp_path / "folder")
    folder = open_checkpoint(tmp_path / "folder")
    tensors = llama_cpp_tensors(model, model_type)
    for name, values in folder.family.vectors(folder.config).items():
        if "rope_factors" in name or config.rope_parameters.get("rope_type") == "llama3":
            tensors[name] = values
    architecture = ARCHITECTURES.get(model_type, model_type)
    path = write(tmp_path / "model.gguf", architecture, common_keys(config) | keys, tensors)
    return folder, open_checkpoint(path)


def test_families(pair: tuple[Checkpoint, Checkpoint]) -> None:
    """The file says the same as the folder, which test_arch compares with transformers: keys and weights."""
    folder, file = pair
    expected, found = folder.family.keys(folder.config), file.family.keys(file.config)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key] == (value if isinstance(value, list) else pytest.approx(value, rel=1e-6)), key
    vectors, read = (checkpoint.family.vectors(checkpoint.config) for checkpoint in (folder, file))
    assert read.keys() == vectors.keys()
    for name, values in vectors.items():
        np.testing.assert_allclose(read[name], values, rtol=1e-5)
    tensors = check_tensors(folder)
    assert check_tensors(file) == tensors
    for tensor in tensors:
        assert (read_tensor(file, tensor) == read_tensor(folder, tensor)).all(), tensor.name


def test_logits(pair: tuple[Checkpoint, Checkpoint], tmp_path: Path) -> None:
    """The whole way; the logits are those of the decoded weights."""
    path, folder = tmp_path / "m.sq.gguf", tmp_path / "decoded"
    assert main([str(pair[1].path), "-o", str(path), "--method", "kmeans", "--outliers", "1"]) == 0
    assert main([str(path), "-o", str(folder), "--dequantize"]) == 0
    ids = np.random.default_rng(1).integers(0, 512, 60).tolist()
    reference = reference_logits(folder, ids)
    for pieces in ([60], [40, 1, 19], [1] * 60):
        assert_equal(reference, run(path, ids, pieces, "auto"))


@pytest.mark.parametrize("architecture", ["gemma2", "gemma3"])
def test_gemma_tokenizer(architecture: str, tmp_path: Path) -> None:
    """Read from the file, which has no merges, it gives the folder's tokens."""
    keys = LLAMA_KEYS | {"attention.sliding_window": 16}
    embedding: Arrays = {"token_embd.weight": np.ones((512, 256), np.float32)}
    path = write(tmp_path / "m.gguf", architecture, keys, embedding)
    data = export_tokenizer(open_checkpoint(path).tokenizer(), 512)
    hf = load_tokenizer(tmp_path / "tokenizer")  # where write() has put it
    with Codec(data.write) as codec:
        assert compare(hf, data, codec, hard_strings()) > 10_000


# ---- types of tensors ---------------------------------------------------------------------------

LLAMA_KEYS = {
    "context_length": 64, "embedding_length": 256, "block_count": 0, "feed_forward_length": 256,
    "attention.head_count": 4, "attention.head_count_kv": 4, "attention.layer_norm_rms_epsilon": 1e-5,
}  # fmt: skip
TYPES = [Type.F32, Type.F16, Type.BF16, Type.Q8_0, Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1, Type.Q2_K,
         Type.Q3_K, Type.Q4_K, Type.Q5_K, Type.Q6_K, Type.IQ4_NL, Type.IQ4_XS, Type.IQ3_S, Type.IQ3_XXS,
         Type.IQ2_XXS, Type.IQ2_XS, Type.IQ2_S, Type.IQ1_S, Type.IQ1_M, Type.TQ1_0, Type.TQ2_0]  # fmt: skip


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
def test_types(kind: Type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows decoded a few at a time are those that gguf decodes of the whole tensor."""
    shape = (50, 256)
    stored = gguf.quant_shape_to_byte_shape(shape, kind)
    # Bytes below 3C hexadecimal: whatever is read of them as a float is small and a number.
    data = np.random.default_rng(1).integers(0, 0x3C, stored).astype(np.uint8)
    stored_tensors: Arrays = {"token_embd.weight": data, "output_norm.weight": np.ones(256, np.float32)}
    write(tmp_path / "m.gguf", "llama", LLAMA_KEYS, stored_tensors, {"token_embd.weight": kind})
    monkeypatch.setattr("sq_convert.checkpoint.ROWS_AT_ONCE_WEIGHTS", 7 * 256)
    file = open_checkpoint(tmp_path / "m.gguf")
    tensors = check_tensors(file)
    assert [tensor.kind for tensor in tensors] == [Kind.TABLE, Kind.VECTOR]
    expected = gguf.quants.dequantize(data, kind).reshape(shape)
    assert np.isfinite(expected).all()
    assert (read_tensor(file, tensors[0]) == expected).all()


# ---- refusals -----------------------------------------------------------------------------------


def refused(path: Path, keys: dict[str, Any], architecture: str = "llama", n_norm: int = 256) -> str:
    tensors: Arrays = {
        "token_embd.weight": np.zeros((8, 256), np.float32),
        "output_norm.weight": np.ones(n_norm),
    }
    with pytest.raises(ConvertError) as refusal:
        check_tensors(open_checkpoint(write(path / "m.gguf", architecture, LLAMA_KEYS | keys, tensors)))
    return str(refusal.value)


def test_refusals(tmp_path: Path) -> None:
    said = refused(tmp_path, {}, "mamba")
    assert "'mamba' is not supported for GGUF files; supported are: gemma2, gemma3, llama" in said
    assert "llama.expert_count (8) is not understood" in refused(tmp_path, {"expert_count": 8})
    assert "key_length and .value_length differ" in refused(
        tmp_path, {"attention.key_length": 64, "attention.value_length": 32}
    )
    assert "rope scaling 'su' is not supported" in refused(
        tmp_path, {"rope.scaling.type": "su", "rope.scaling.factor": 2.0}
    )
    assert "there is no 'rope.scaling.factor'" in refused(tmp_path, {"rope.scaling.type": "linear"})
    assert "4000000000 blocks and 0 experts in 2 tensors" in refused(tmp_path, {"block_count": 4_000_000_000})
    assert "makes no sense" in refused(tmp_path, {"attention.head_count": 0})
    assert "9 tensors are missing: blk.0.attn_norm.weight" in refused(tmp_path, {"block_count": 1})
    assert "token_embd.weight has shape [8, 256]; the configuration implies [8, 128]" in refused(
        tmp_path, {"embedding_length": 128}, n_norm=128
    )
