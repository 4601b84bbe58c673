"""A second reader of docs/FORMAT.md: the stock gguf.GGUFReader, numpy and the document's formulas."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from conftest import Convert
from numpy.typing import NDArray
from safetensors.numpy import load_file
from sq_convert.cli import main


def codes_4_bits(words: NDArray[np.uint32], n_in: int) -> NDArray[np.uint32]:
    """Section 2.1: weight D·j + i of a block is nibble j of dword i."""
    weight = np.arange(n_in)
    block, within = weight // 128, weight % 128
    rest = n_in % 128
    width = np.where(block < n_in // 128, 16, -(-rest // 8))
    j, i = within // np.maximum(width, 1), within % np.maximum(width, 1)
    return np.asarray(words[:, 16 * block + i] >> (4 * j).astype(np.uint32) & 15)


def codes_3_bits(words: NDArray[np.uint32], n_in: int) -> NDArray[np.uint32]:
    """Section 2.2: three planes; codes 24 … 31 lie in the top bits of all three."""
    weight = np.arange(n_in)
    block, within = weight // 512, weight % 512
    width = np.where(block < n_in // 512, 16, -(-(n_in % 512) // 32))
    c, i = within // np.maximum(width, 1), within % np.maximum(width, 1)
    start = 48 * block + i
    low = words[:, start + width * np.minimum(c // 8, 2)] >> (4 * (c % 8)).astype(np.uint32) & 7
    shift = (4 * np.maximum(c - 24, 0) + 3).astype(np.uint32)
    high = sum((words[:, start + width * p] >> shift & 1) << np.uint32(p) for p in range(3))
    return np.asarray(np.where(c < 24, low, high))


def matrix(tensors: dict[str, Any], name: str, bits: int, n_in: int) -> NDArray[np.float32]:
    """Section 2: W[r, i] = f32(entry(r, code(r, i))) + Σ f32(vals[k])."""
    table, raw, scale = (tensors.get(f"{name}.{part}") for part in ("lut", "codes", "lut_scale"))
    assert table is not None
    assert raw is not None
    table_type = gguf.GGMLQuantizationType.F16 if scale is None else gguf.GGMLQuantizationType.I8
    assert table.tensor_type == table_type
    assert raw.tensor_type == gguf.GGMLQuantizationType.I8
    n_out = int(table.shape[1])
    assert list(table.shape) == [2**bits, n_out]
    per_block, dwords, per_dword = (128, 16, 8) if bits == 4 else (512, 48, 32)
    planes = 1 if bits == 4 else 3
    row_bytes = 4 * (dwords * (n_in // per_block) + planes * -(-(n_in % per_block) // per_dword))
    assert list(raw.shape) == [row_bytes, n_out]
    words = np.frombuffer(raw.data.tobytes(), "<u4").reshape(n_out, -1)
    codes = codes_4_bits(words, n_in) if bits == 4 else codes_3_bits(words, n_in)
    lut = table.data.astype(np.float32)
    if scale is not None:
        assert scale.tensor_type == gguf.GGMLQuantizationType.F16
        assert list(scale.shape) == [n_out]
        lut = lut * scale.data.astype(np.float32)[:, None]
    assert (np.diff(lut, axis=1) >= 0).all()
    values: NDArray[np.float32] = np.take_along_axis(lut, codes.astype(np.intp), axis=1)
    if f"{name}.rows" not in tensors:
        assert f"{name}.cols" not in tensors
        assert f"{name}.vals" not in tensors
        return values
    rows, vals = tensors[f"{name}.rows"].data, tensors[f"{name}.vals"].data.astype(np.float32)
    cols = tensors[f"{name}.cols"].data.view(np.uint16)
    assert rows[0] == 0
    assert rows[-1] == len(cols) == len(vals)
    for r in range(n_out):
        mine = cols[rows[r] : rows[r + 1]]
        assert (np.diff(mine.astype(np.int64)) > 0).all()
        values[r, mine] += vals[rows[r] : rows[r + 1]]
    return values


HUGGING_FACE = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj", "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
}  # fmt: skip
OUTSIDE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
}


def hugging_face_name(name: str) -> str:
    if name in OUTSIDE:
        return OUTSIDE[name]
    _, block, part, kind = name.split(".")
    return f"model.layers.{block}.{HUGGING_FACE[part]}.{kind}"


SQUEEZELLM = ("--method", "squeezellm", "--samples", "4", "--seq-len", "64")  # whose tables are f16


@pytest.mark.parametrize(
    ("options", "method"),
    [
        (("--bits", "4", "--method", "kmeans"), "kmeans"),
        (("--bits", "3", "--method", "kmeans"), "kmeans"),
        (("--bits", "4", "--outliers", "0", "--method", "kmeans"), "kmeans"),
        (("--bits", "4", *SQUEEZELLM), "squeezellm"),
        (("--bits", "3", *SQUEEZELLM), "squeezellm"),
    ],
)
def test_a_stock_reader_rebuilds_every_matrix(
    options: tuple[str, ...], method: str, convert: Convert, stories: Path, tmp_path: Path
) -> None:
    path = convert(stories, *options)
    folder = tmp_path / "decoded"
    assert main([str(path), "-o", str(folder), "--dequantize"]) == 0
    decoded = load_file(folder / "model.safetensors")
    reader = gguf.GGUFReader(path)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    fields = {key: field.contents() for key, field in reader.fields.items()}

    assert fields["squeezellm.version"] == 1
    assert fields["squeezellm.method"] == method
    assert fields["squeezellm.bits"] == int(options[1])
    assert bool(fields["squeezellm.calibration"]) == (method == "squeezellm")
    assert any(name.endswith(".lut_scale") for name in tensors) == (method != "squeezellm")
    assert fields["general.alignment"] == 64
    assert all(tensor.data_offset % 64 == 0 for tensor in reader.tensors)
    names = fields["squeezellm.matrix.names"]
    assert len(names) == 5 * 7
    rebuilt = 0
    for name, bits, n_in in zip(
        names, fields["squeezellm.matrix.bits"], fields["squeezellm.matrix.inputs"], strict=True
    ):
        assert (matrix(tensors, name, bits, n_in) == decoded[hugging_face_name(name)]).all(), name
        rebuilt += 1
    for name, tensor in tensors.items():
        if name.endswith((".codes", ".lut", ".lut_scale", ".rows", ".cols", ".vals")):
            continue
        values = tensor.data
        if tensor.tensor_type == gguf.GGMLQuantizationType.Q8_0:  # section 3: w = scale · q
            blocks = values.reshape(-1, 34)
            scale = blocks[:, :2].copy().view(np.float16).astype(np.float32)
            values = scale * blocks[:, 2:].copy().view(np.int8).astype(np.float32)
        expected = decoded[hugging_face_name(name)]
        assert (values.reshape(expected.shape) == expected).all(), name
        rebuilt += 1
    assert rebuilt == len(decoded)
    kept = [name for name in tensors if name.endswith(".vals")]
    assert len(kept) == (0 if "--outliers" in options else 5 * 7)


def test_the_keys_are_those_of_the_document(stories16: Path) -> None:
    fields = {key: field.contents() for key, field in gguf.GGUFReader(stories16).fields.items()}
    expected = {
        "general.architecture": "llama", "general.name": "stories260K", "squeezellm.method": "none",
        "squeezellm.bits": 16, "llama.block_count": 5, "llama.context_length": 512,
        "llama.embedding_length": 64, "llama.feed_forward_length": 172, "llama.vocab_size": 512,
        "llama.attention.head_count": 8, "llama.attention.head_count_kv": 4, "llama.attention.key_length": 8,
        "llama.attention.value_length": 8, "llama.rope.dimension_count": 8, "llama.rope.freq_base": 10000.0,
    }  # fmt: skip
    assert {key: fields.get(key) for key in expected} == expected
    assert fields["llama.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-5)
    assert "squeezellm.matrix.names" not in fields
