"""Packed checkpoints of the original SqueezeLLM: they decode to what its pipeline computed, and run as in
transformers; damaged ones are refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from arch_variants import SIZES, VARIANTS
from numpy.typing import NDArray
from safetensors.numpy import load_file
from safetensors.torch import save_file
from sq_convert.cli import main
from tokenizers_for_tests import byte_level
from transformers import AutoConfig, AutoModelForCausalLM
from truth import assert_equal, cpus, reference_logits, run

OFFICIAL = Path(__file__).parent.parent / "data" / "official"
FILES = ("w3-s45", "w4-s0")
GATE = "model.layers.1.mlp.gate_proj"  # [352, 128]

Entries = dict[str, Any]


@pytest.fixture(scope="module")
def folder(stories: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What --config names: a configuration and a tokenizer of as many tokens, no weights."""
    path = tmp_path_factory.mktemp("official") / "folder"
    path.mkdir()
    for source in (OFFICIAL / "config.json", *stories.glob("tokenizer*")):
        shutil.copy(source, path)
    return path


def packed(name: str) -> Path:
    return OFFICIAL / f"sq-tiny-{name}.pt"


def load(name: str) -> Entries:
    entries: Entries = torch.load(packed(name), weights_only=True)
    return entries


def convert(model: Path, folder: Path, out: Path) -> dict[str, bytes]:
    """The tensors of the new file."""
    assert main([str(model), "--config", str(folder), "-o", str(out)]) == 0
    return {tensor.name: tensor.data.tobytes() for tensor in gguf.GGUFReader(out).tensors}


def expected_weights(name: str) -> dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """The matrices as the pipeline's intermediate results say, and what a kept weight may be off: half a unit
    of f16 of what is added to the nearest entry of its table; zero for other weights."""
    tables = load_file(OFFICIAL / "tables.safetensors")
    result = {}
    for source, weights in load_file(OFFICIAL / "weights.safetensors").items():
        matrix = f"{name}.{source.removesuffix('.weight')}"
        values, table = weights.astype(np.float32), tables[f"{matrix}.lookup_table"]
        nearest = np.abs(values[:, :, None] - table[:, None, :]).argmin(axis=2)
        kept = np.zeros(values.shape, np.bool_)
        if f"{matrix}.rows" in tables:
            row = np.repeat(np.arange(len(values)), np.diff(tables[f"{matrix}.rows"]))
            kept[row, tables[f"{matrix}.cols"]] = True
        added = np.abs(values[:, :, None] - table.astype(np.float16)[:, None, :]).min(axis=2)
        rounded = np.take_along_axis(table, nearest, axis=1).astype(np.float16)
        result[source] = np.where(kept, values, rounded), kept * (2.0**-11 * added + 2.0**-25)
    return result


@pytest.mark.parametrize("name", FILES)
def test_it_decodes_to_the_pipelines_weights_and_runs_as_in_transformers(
    name: str, folder: Path, tmp_path: Path
) -> None:
    convert(packed(name), folder, tmp_path / "m.sq.gguf")
    assert main([str(tmp_path / "m.sq.gguf"), "-o", str(tmp_path / "hf"), "--dequantize"]) == 0
    decoded = load_file(tmp_path / "hf" / "model.safetensors")
    expected = expected_weights(name)
    for source, (values, tolerance) in expected.items():
        assert (np.abs(decoded[source] - values) <= tolerance).all(), source
    assert any(tolerance.any() for _, tolerance in expected.values()) == name.endswith("s45")
    ids = [1, *np.random.default_rng(1).integers(3, 512, 59).tolist()]
    reference = reference_logits(tmp_path / "hf", ids)
    for cpu in cpus():
        for pieces in ([60], [40, 1, 19], [1] * 60):
            assert_equal(reference, run(tmp_path / "m.sq.gguf", ids, pieces, cpu))


# ---- the same matrices, packed otherwise ------------------------------------------------------


def full_rows(entries: Entries) -> None:
    """The two heaviest rows of each matrix kept whole, for the original's hybrid kernel, and padding."""
    for name in [name.removesuffix(".vals") for name in entries if name.endswith(".vals")]:
        rows, cols, vals = (entries[f"{name}.{part}"].numpy() for part in ("rows", "cols", "vals"))
        heavy = np.argsort(np.diff(rows))[-2:]
        row = np.repeat(np.arange(len(rows) - 1), np.diff(rows))
        whole = np.zeros((entries[f"{name}.qweight"].shape[0] // 3 * 32, 3), np.float32)
        for i, r in enumerate(heavy):
            whole[cols[row == r], i] = vals[row == r]
        rest = ~np.isin(row, heavy)
        counts = np.bincount(row[rest], minlength=len(rows) - 1)
        entries[f"{name}.rows"] = torch.from_numpy(np.concatenate([[0], np.cumsum(counts)]).astype(np.int32))
        entries[f"{name}.cols"], entries[f"{name}.vals"] = map(torch.from_numpy, (cols[rest], vals[rest]))
        entries[f"sparse_threshold.{name}"] = int(rest.sum())
        entries[f"{name}.full_rows"] = torch.from_numpy(whole)
        entries[f"{name}.full_row_indices"] = torch.from_numpy(np.array([*heavy, 0], np.int32))


def start_rows(entries: Entries) -> None:
    for name in [name.removesuffix(".vals") for name in entries if name.endswith(".vals")]:
        entries[f"{name}.startrows"] = torch.full((128,), -1, dtype=torch.int32)


def no_counts(entries: Entries) -> None:
    for name in [name for name in entries if name.startswith("sparse_threshold.")]:
        del entries[name]


@pytest.mark.parametrize("repack", [full_rows, start_rows, no_counts])
def test_ways_to_pack(repack: Callable[[Entries], object], folder: Path, tmp_path: Path) -> None:
    entries = load("w3-s45")
    repack(entries)
    torch.save(entries, tmp_path / "sq.pt")
    found = convert(tmp_path / "sq.pt", folder, tmp_path / "a.sq.gguf")
    expected = convert(packed("w3-s45"), folder, tmp_path / "b.sq.gguf")
    assert found == expected


def test_tensors_that_the_file_lacks_are_the_unquantized_models(folder: Path, tmp_path: Path) -> None:
    entries = load("w4-s0")
    rest = {
        name: entries.pop(name) for name in list(entries) if name.endswith(("norm.weight", "lm_head.weight"))
    }
    torch.save(entries, tmp_path / "sq.pt")
    model = tmp_path / "model"
    shutil.copytree(folder, model)
    save_file(rest, model / "model.safetensors")
    found = convert(tmp_path / "sq.pt", model, tmp_path / "a.sq.gguf")
    expected = convert(packed("w4-s0"), folder, tmp_path / "b.sq.gguf")
    assert found == expected


def test_everything_in_one_folder(folder: Path, tmp_path: Path) -> None:
    """As published for other runtimes: --config is the file's own folder."""
    model = tmp_path / "model"
    shutil.copytree(folder, model)
    shutil.copy(packed("w4-s0"), model / "sq.pt")
    (model / "quant_config.json").write_text('{"wbits": 4}')
    assert main([str(model / "sq.pt"), "-o", str(tmp_path / "m.sq.gguf")]) == 0


# ---- another family -----------------------------------------------------------------------------


def random_matrix(
    shape: tuple[int, int], bits: int, rng: np.random.Generator
) -> tuple[Entries, NDArray[np.float32]]:
    """A matrix in the original's layout, one weight in 25 with something added to it, and what it means."""
    n_out, n_in = shape
    codes = rng.integers(0, 2**bits, (n_in, n_out))
    stream = (codes[:, None] >> np.arange(bits)[:, None] & 1).reshape(-1, 32, n_out)  # low bits first
    words = (stream << np.arange(32)[:, None]).sum(axis=1).astype(np.uint32).view(np.int32)
    table = rng.normal(0, 0.2, (n_out, 2**bits)).astype(np.float32)
    row, column = np.nonzero(rng.random(shape) < 0.04)
    added = rng.normal(0, 0.5, len(row)).astype(np.float32)
    values = np.take_along_axis(table, codes.T, axis=1)
    values[row, column] += added
    rows = np.searchsorted(row, np.arange(n_out + 1)).astype(np.int32)
    arrays = {"qweight": words, "lookup_table": table, "rows": rows, "cols": column, "vals": added}
    return {part: torch.from_numpy(array) for part, array in arrays.items()}, values


@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("name", ["plain", "350m"])
def test_opt(name: str, bits: int, tmp_path: Path) -> None:
    """Biases, learned positions and, of 350m, the projections, which stay as they are."""
    sizes = {"hidden_size": 96, "ffn_dim": 160}  # the layout wants multiples of 32
    torch.manual_seed(1)
    config = AutoConfig.for_model("opt", **{**SIZES, **VARIANTS["opt", name], **sizes})
    model = AutoModelForCausalLM.from_config(config)
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.endswith(("norm.weight", ".bias")):
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    expected: dict[str, NDArray[np.float32]] = {}
    entries: Entries = {}
    rng = np.random.default_rng(1)
    for source, values in model.half().state_dict().items():
        if ".layers." in source and values.dim() == 2:
            parts, expected[source] = random_matrix(tuple(values.shape), bits, rng)
            entries |= {f"{source.removesuffix('.weight')}.{part}": array for part, array in parts.items()}
        else:
            entries[source], expected[source] = values, values.float().numpy()
    torch.save(entries, tmp_path / "sq.pt")
    folder = tmp_path / "folder"
    config.save_pretrained(folder)
    byte_level().save_pretrained(folder)
    convert(tmp_path / "sq.pt", folder, tmp_path / "m.sq.gguf")
    assert main([str(tmp_path / "m.sq.gguf"), "-o", str(tmp_path / "hf"), "--dequantize"]) == 0
    decoded = load_file(tmp_path / "hf" / "model.safetensors")
    for source, weights in expected.items():
        if "embed_" not in source and "lm_head" not in source:  # 8 bits wide, or without unused rows
            assert decoded[source] == pytest.approx(weights, abs=2e-3), source
    ids = rng.integers(0, 512, 60).tolist()
    reference = reference_logits(tmp_path / "hf", ids)
    for pieces in ([60], [40, 1, 19], [1] * 60):
        assert_equal(reference, run(tmp_path / "m.sq.gguf", ids, pieces, "auto"))


# ---- refusals -------------------------------------------------------------------------------------


def refuses(capsys: pytest.CaptureFixture[str], model: Path, *options: str, status: int = 1) -> str:
    """Runs sq-convert, which must fail with one line and write nothing; returns the line."""
    out = model.parent / "out.sq.gguf"
    capsys.readouterr()
    assert main([str(model), "-o", str(out), *options]) == status
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("sq-convert: ")]
    assert len(said) == 1
    assert not out.exists()
    return said[0]


def put(part: str, value: Any, name: str = GATE) -> Callable[[Entries], object]:
    return lambda entries: entries.__setitem__(f"{name}.{part}", value)


def drop(name: str) -> Callable[[Entries], object]:
    return lambda entries: entries.pop(name)


def fill(part: str, value: float) -> Callable[[Entries], object]:
    return lambda entries: entries[f"{GATE}.{part}"][3].fill_(value)


def row_outside(entries: Entries) -> None:
    put("full_rows", torch.zeros(128, 1))(entries)
    put("full_row_indices", torch.tensor([352]))(entries)


def words(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.int32)


NO_CSR = "rows and .cols are no CSR of its shape"
DAMAGES: dict[str, tuple[Callable[[Entries], object], str]] = {
    "no-table": (drop(f"{GATE}.lookup_table"), "1 matrix of 14 not in it (qweight and lookup_table): model."),
    "no-cols": (drop(f"{GATE}.cols"), "has only some of rows, cols, vals"),
    "no-norm": (drop("model.norm.weight"), "1 tensor is missing: model.norm.weight"),
    "two-widths": (put("lookup_table", torch.zeros(352, 16)), "tables of 8 and 16 entries"),
    "two-bits": (put("lookup_table", torch.zeros(352, 4)), "tables of 4 and 8 entries"),
    "table-rows": (put("lookup_table", torch.zeros(351, 8)), "has shape [351, 8], beside its other parts"),
    "words": (
        put("qweight", words(13, 352)),
        "has shape [13, 352], beside its other parts expected [12, 352]",
    ),
    "inputs": (put("qweight", words(9, 352)), "has shape [352, 96]; the configuration implies [352, 128]"),
    "flat": (put("qweight", words(12)), "qweight has shape [12]"),
    "float-words": (put("qweight", torch.zeros(12, 352)), "1 matrix of 14 not in it"),
    "count": (put(GATE, 7, "sparse_threshold"), "vals has shape"),
    "column": (fill("cols", 128), NO_CSR),
    "pointers": (fill("rows", 10_000), NO_CSR),
    "nan": (fill("vals", float("nan")), "numbers that f16 does not hold"),
    "large": (fill("lookup_table", 1e5), "numbers that f16 does not hold"),
    "layer": (put("qweight", words(1), "model.layers.2.mlp.up_proj"), "up_proj.qweight has no place"),
    "extra": (put("weight", torch.zeros(3), "extra"), "1 tensor has no place in this architecture: extra."),
    "row": (row_outside, "full_row_indices lie outside its 352 rows"),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_damaged_entries(case: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damage, expected = DAMAGES[case]
    entries = load("w3-s45")
    damage(entries)
    torch.save(entries, tmp_path / "sq.pt")
    assert expected in refuses(capsys, tmp_path / "sq.pt", "--config", str(folder))


def test_damaged_files(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = packed("w4-s0").read_bytes()
    for content in (b"", whole[:1000], whole[: len(whole) // 2], whole[:-30], b"\x80\x02" + bytes(50)):
        (tmp_path / "sq.pt").write_bytes(content)
        said = refuses(capsys, tmp_path / "sq.pt", "--config", str(folder))
        assert "sq.pt: damaged, or not a dictionary of tensors as torch.save has written it" in said


def test_a_wrong_folder_and_contradicting_bits(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "sq.pt"
    shutil.copy(packed("w3-s45"), model)
    assert "no config.json beside it; give --config FOLDER" in refuses(capsys, model)
    (tmp_path / "quant_config.json").write_text('{"wbits": 4}')
    said = refuses(capsys, model, "--config", str(folder))
    assert "says 4 bits, but the tables of sq.pt have 8 entries, which is 3 bits" in said
    (tmp_path / "quant_config.json").unlink()
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    config = json.loads((other / "config.json").read_text())
    for changes, expected in (
        ({"num_hidden_layers": 3}, "7 matrices of 21 not in it"),
        ({"num_hidden_layers": 1}, "model.layers.1"),
        ({"intermediate_size": 384}, "has shape [352, 128]; the configuration implies [384, 128]"),
    ):
        (other / "config.json").write_text(json.dumps(config | changes))
        assert expected in refuses(capsys, model, "--config", str(other))
    for path in folder.glob("*"):
        shutil.copy(path, other)
    for path in other.glob("tokenizer*"):
        path.unlink()
    assert "reads no tokenizer" in refuses(capsys, model, "--config", str(other))


def test_options_that_belong_elsewhere(
    stories: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(packed("w3-s45"), tmp_path / "sq.pt")
    for options in (("--bits", "4"), ("--method", "rtn"), ("--outliers", "1"), ("--samples", "5")):
        said = refuses(capsys, tmp_path / "sq.pt", "--config", str(folder), *options, status=2)
        assert f"{options[0]}: sq.pt is quantized already" in said
    shutil.copytree(stories, tmp_path / "model")
    assert "--config belongs to a packed" in refuses(capsys, tmp_path / "model", "--config", "x", status=2)
