"""Conversions end to end: what comes out, that it is reproducible, and that a killed one goes on."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from conftest import Convert
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_torch_file
from sq_convert import memory, plan
from sq_convert.cli import main
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

CALIBRATION = ("--samples", "6", "--seq-len", "64", "--threads", "1")


def sq_convert(model: Path, out: Path, *options: str) -> bytes:
    assert main([str(model), "-o", str(out), *options]) == 0
    return out.read_bytes()


def dequantize(path: Path, folder: Path) -> dict[str, NDArray[np.float32]]:
    assert main([str(path), "-o", str(folder), "--dequantize"]) == 0
    return load_file(folder / "model.safetensors")


def tensors_of(path: Path) -> dict[str, NDArray[np.generic]]:
    return {tensor.name: np.array(tensor.data) for tensor in gguf.GGUFReader(path).tensors}


def greedy(folder: Path, n_tokens: int) -> str:
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("", return_tensors="pt")
    return str(tokenizer.decode(model.generate(**ids, max_new_tokens=n_tokens, do_sample=False)[0]))


@pytest.fixture(scope="module")
def reference(stories: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What CALIBRATION makes of stories260K."""
    return sq_convert(stories, tmp_path_factory.mktemp("reference") / "model.sq.gguf", *CALIBRATION)


# ---- what comes out ---------------------------------------------------------------------------


def test_sixteen_bits_decode_to_the_source_in_f16(stories: Path, stories16: Path, tmp_path: Path) -> None:
    source, decoded = load_file(stories / "model.safetensors"), dequantize(stories16, tmp_path / "hf")
    assert source.keys() == decoded.keys()
    for name, values in source.items():
        expected = values if "norm" in name else values.astype(np.float16).astype(np.float32)
        assert (decoded[name] == expected).all(), name


def test_the_decoded_model_still_tells_a_story_about_lily(stories4: Path, tmp_path: Path) -> None:
    dequantize(stories4, tmp_path / "hf")
    text = greedy(tmp_path / "hf", 40)
    assert "Once upon a time, there was a little girl named Lily" in text


def test_the_decoded_folder_tokenizes_as_the_source(stories: Path, stories4: Path, tmp_path: Path) -> None:
    dequantize(stories4, tmp_path / "hf")
    ours, theirs = (AutoTokenizer.from_pretrained(folder) for folder in (tmp_path / "hf", stories))
    for text in ("", "Lily's  cat \u00e9\u4f60\U0001f600\n\t", "<s> </s>"):
        assert ours(text)["input_ids"] == theirs(text)["input_ids"]


def test_shares_and_errors_are_those_of_the_method(stories: Path, convert: Convert, tmp_path: Path) -> None:
    """More bits and more kept weights err less; the share asked for is kept."""
    source = load_file(stories / "model.safetensors")
    errors = []
    for options in (("2", "0", "0"), ("3", "0", "0"), ("3", "1", "0.5"), ("4", "1", "0.5")):
        bits, outliers, sensitive = options
        path = convert(
            stories, "--bits", bits, "--outliers", outliers, "--sensitive", sensitive,
            "--method", "squeezellm", *CALIBRATION
        )  # fmt: skip
        decoded = dequantize(path, tmp_path / f"hf-{'-'.join(options)}")
        errors.append(sum(float(((decoded[n] - w) ** 2).sum()) for n, w in source.items() if "_proj" in n))
    assert errors[0] > errors[1] > errors[2] > errors[3] > 0
    tensors = tensors_of(path)
    for name in ("blk.0.ffn_down.weight", "blk.4.attn_k.weight"):
        n_weights = tensors[f"{name}.lut"].shape[0] * (172 if "down" in name else 64)
        n_kept = tensors[f"{name}.vals"].size
        assert round(0.01 * n_weights) <= n_kept <= round(0.01 * n_weights) + round(0.005 * n_weights)


def test_methods_rank_as_they_should(stories: Path, convert: Convert, tmp_path: Path) -> None:
    """Loss on the calibration kind of text: squeezellm below kmeans below rtn, at 3 bits."""
    text = (
        "Once upon a time, there was a little girl named Lily. She loved to play outside with her dog. " * 3
    )
    ids = AutoTokenizer.from_pretrained(stories)(text, return_tensors="pt")["input_ids"]
    loss = {}
    for method in ("squeezellm", "kmeans", "rtn"):
        options = ("--samples", "20", "--seq-len", "128") if method == "squeezellm" else ()
        path = convert(stories, "--bits", "3", "--outliers", "0.1", "--method", method, *options)
        dequantize(path, tmp_path / method)
        model = AutoModelForCausalLM.from_pretrained(tmp_path / method)
        with torch.no_grad():
            loss[method] = float(model(input_ids=ids, labels=ids).loss)
    assert loss["squeezellm"] < loss["kmeans"] < loss["rtn"]


def test_a_gguf_file_gives_what_its_folder_gives(stories: Path, stories16: Path, tmp_path: Path) -> None:
    """llama.cpp's files interleave the rows of q and k: undone."""
    source = gguf.GGUFReader(stories16)
    writer = gguf.GGUFWriter(tmp_path / "stories.gguf", "llama")
    skipped = ("GGUF.", "squeezellm.", "general.architecture", "general.alignment", "tokenizer.huggingface")
    for key, field in source.fields.items():
        if not key.startswith(skipped):
            sub_type = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(key, field.contents(), field.types[0], sub_type)
    for name, values in load_folder(stories).items():
        heads = {"attn_q": 8, "attn_k": 4}.get(name.split(".")[-2], 0)
        if heads:
            shape = (heads, 2, len(values) // heads // 2, values.shape[1])
            values = values.reshape(shape).swapaxes(1, 2).reshape(values.shape)
        writer.add_tensor(name, np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    sq_convert(tmp_path / "stories.gguf", tmp_path / "out.sq.gguf", "--bits", "16")
    expected, found = tensors_of(stories16), tensors_of(tmp_path / "out.sq.gguf")
    assert expected.keys() == found.keys()
    assert all((expected[name] == found[name]).all() for name in expected)


def test_shards_of_torch_save_give_what_safetensors_give(
    stories: Path, stories16: Path, tmp_path: Path
) -> None:
    """pytorch_model-*.bin, which is all that older models have."""
    folder = tmp_path / "model"
    shutil.copytree(stories, folder, ignore=shutil.ignore_patterns("model.safetensors"))
    weights = load_torch_file(stories / "model.safetensors")
    index: dict[str, str] = {}
    for number, names in enumerate((sorted(weights)[:20], sorted(weights)[20:])):
        torch.save({name: weights[name] for name in names}, folder / f"pytorch_model-{number}.bin")
        index |= dict.fromkeys(names, f"pytorch_model-{number}.bin")
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}))
    sq_convert(folder, tmp_path / "m.sq.gguf", "--bits", "16")
    expected, found = tensors_of(stories16), tensors_of(tmp_path / "m.sq.gguf")
    assert all((expected[name] == found[name]).all() for name in expected)


def load_folder(folder: Path) -> dict[str, NDArray[np.float32]]:
    """A folder's tensors by their GGUF names."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 5)
    source = load_file(folder / "model.safetensors")
    return {str(names.get_name(name, (".weight",))): values for name, values in source.items()}


LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 256,
}  # fmt: skip


@pytest.mark.parametrize("rope", [LLAMA3, {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}])
def test_biases_rope_scaling_shards_and_an_own_head(
    rope: dict[str, object], stories: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512, hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=3,
        num_key_value_heads=1, head_dim=20, attention_bias=True, mlp_bias=True, tie_word_embeddings=False,
        rope_parameters=rope, max_position_embeddings=1024, dtype="bfloat16",
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model.bfloat16().save_pretrained(tmp_path / "source", max_shard_size="100KB")
    assert len(list((tmp_path / "source").glob("*.safetensors"))) > 1
    for path in stories.glob("tokenizer*"):
        shutil.copy(path, tmp_path / "source")
    sq_convert(tmp_path / "source", tmp_path / "m.sq.gguf", "--bits", "16", "--head-bits", "8")
    decoded = dequantize(tmp_path / "m.sq.gguf", tmp_path / "hf")
    state = {name: values.float().numpy() for name, values in model.state_dict().items()}
    assert decoded.keys() == state.keys()
    # 48 is no multiple of 32: F16 heads. f16 holds these bf16 values but for the tiniest.
    for name, values in state.items():
        assert np.abs(decoded[name] - values).max() <= 2.0**-25, name
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    ids = torch.arange(40).reshape(1, 40)
    with torch.no_grad():
        assert torch.allclose(model.float()(ids).logits, again(ids).logits, atol=1e-4)
    # The divisors are those by which transformers changes the frequencies.
    plain = 1 / (rope["rope_theta"] ** (np.arange(0, 20, 2) / 20))  # type: ignore[operator]
    divisors = plain / again.model.rotary_emb.inv_freq.numpy()
    assert tensors_of(tmp_path / "m.sq.gguf")["rope_freqs.weight"] == pytest.approx(divisors, rel=1e-5)


def test_mistral_with_a_sliding_window(stories: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mistral"
    shutil.copytree(stories, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 32}
    (folder / "config.json").write_text(json.dumps(config))
    sq_convert(folder, tmp_path / "m.sq.gguf", "--bits", "16")
    field = gguf.GGUFReader(tmp_path / "m.sq.gguf").get_field("llama.attention.sliding_window")
    assert field is not None
    assert field.contents() == 32
    dequantize(tmp_path / "m.sq.gguf", tmp_path / "hf")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    assert type(again).__name__ == "MistralForCausalLM"
    assert again.config.sliding_window == 32


def test_calibration_from_jsonl(stories: Path, tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"Story {i}. Once upon a time there was a dog. " * 20}) for i in range(10)]
    (tmp_path / "stories.jsonl").write_text("\n".join(lines))
    options = ("--calibration", str(tmp_path / "stories.jsonl"), "--samples", "4", "--seq-len", "32")
    sq_convert(stories, tmp_path / "m.sq.gguf", *options)
    field = gguf.GGUFReader(tmp_path / "m.sq.gguf").get_field("squeezellm.calibration")
    assert field is not None
    assert field.contents().startswith("stories.jsonl sha256:")
    assert field.contents().endswith("4 sequences of 32 tokens")


def test_dry_run_writes_nothing(stories: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(stories), "-o", str(tmp_path / "m.sq.gguf"), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert all(word in said for word in ("output", "memory", "time", "bits per quantized weight"))
    assert not list(tmp_path.iterdir())


def test_dry_run_knows_the_size(stories: Path, stories16: Path, stories4: Path, tmp_path: Path) -> None:
    from sq_convert.checkpoint import check_tensors, open_checkpoint
    from sq_convert.options import Options

    tensors = check_tensors(open_checkpoint(stories))
    for path, bits, head_bits in ((stories16, 16, 16), (stories4, 4, 8)):
        options = Options(stories, tmp_path / "x", bits=bits, head_bits=head_bits, threads=1)
        assert plan.output_bytes(options, tensors) == pytest.approx(path.stat().st_size, rel=0.25)


# ---- reproducible, resumable ------------------------------------------------------------------


def test_the_same_seed_gives_the_same_bytes_on_any_number_of_threads(
    stories: Path, reference: bytes, tmp_path: Path
) -> None:
    assert sq_convert(stories, tmp_path / "a", *CALIBRATION) == reference
    assert sq_convert(stories, tmp_path / "b", *CALIBRATION, "--threads", "2") == reference
    assert sq_convert(stories, tmp_path / "c", *CALIBRATION, "--seed", "1") != reference
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]


# Runs sq-convert and kills itself after the n-th call of a function.
KILL = """
import os, signal, sys
import sq_convert.{module} as module
from sq_convert import calibrate, memory
from sq_convert.cli import main
calibrate.SAVE_SECONDS, calibrate.SAVE_SHARE = 0, 1e9  # save after every sequence
if {in_blocks}:
    memory.available_bytes = lambda device: 0
owner = {owner}
original, calls = owner.{function}, 0
def counted(*arguments):
    global calls
    result = original(*arguments)
    calls += 1
    if calls == {n}:
        os.kill(os.getpid(), signal.SIG{signal})
    return result
owner.{function} = counted
sys.exit(main(sys.argv[1:]))
"""


def run_killed(model: Path, out: Path, *options: str, **where: object) -> subprocess.CompletedProcess[str]:
    code = KILL.format(**{"signal": "KILL", "in_blocks": False, **where})
    command = [sys.executable, "-c", code, str(model), "-o", str(out), *options]
    return subprocess.run(command, capture_output=True, text=True)


IN_CALIBRATE = {"module": "sums", "owner": "module.SumsFile", "function": "write", "n": 3}
# Files of 4 blocks' inputs; then of the fifth's, of the head's and, backward, of 2 blocks' gradients.
IN_FORWARD = {
    "module": "blocks",
    "owner": "module",
    "function": "write_atomically",
    "in_blocks": True,
    "n": 4,
}
IN_BACKWARD = IN_FORWARD | {"n": 9}
# Killed between a block's sums and the gradients that go with them.
IN_SUMS = IN_FORWARD | {"module": "sums", "n": 2}
IN_QUANTIZE = {"module": "pipeline", "owner": "module", "function": "write_atomically", "n": 2}
IN_WRITE = {"module": "writer", "owner": "module.GGUFWriter", "function": "write_tensor_data", "n": 20}


@pytest.mark.parametrize(
    ("where", "said"),
    [
        (IN_CALIBRATE, "going on after sequence 3"),
        (IN_FORWARD, "going on after pass 18 of 66"),
        (IN_BACKWARD, "going on after pass 48 of 66"),
        (IN_SUMS, "going on after pass 42 of 66"),
        (IN_QUANTIZE, "2 of 5 blocks are done already"),
        (IN_WRITE, "5 of 5 blocks are done already"),
    ],
    ids=["calibrate", "forward", "backward", "sums", "quantize", "write"],
)
def test_a_killed_conversion_goes_on_and_gives_the_same_bytes(
    where: dict[str, object], said: str, stories: Path, reference: bytes, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Calibration block by block gives the same bytes too."""
    if where.get("in_blocks"):
        monkeypatch.setattr(memory, "available_bytes", lambda device: 0)
    out = tmp_path / "m.sq.gguf"
    assert run_killed(stories, out, *CALIBRATION, **where).returncode == -signal.SIGKILL
    assert not out.exists()
    assert (tmp_path / "m.sq.gguf.work").is_dir()
    assert sq_convert(stories, out, *CALIBRATION) == reference
    assert said in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["m.sq.gguf"]


def test_kept_work_serves_other_bits(
    stories: Path, reference: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "m.sq.gguf"
    sq_convert(stories, out, *CALIBRATION, "--bits", "3", "--keep-work")
    assert sq_convert(stories, out, *CALIBRATION) == reference
    assert "calibrate: done already." in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["m.sq.gguf"]


def test_a_killed_conversion_by_the_original_method_goes_on(
    stories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the whole model in memory, killed, and block by block: the same bytes."""
    options = ("--method", "squeezellm", *CALIBRATION)
    killed, blocks = tmp_path / "killed.sq.gguf", tmp_path / "blocks.sq.gguf"
    assert run_killed(stories, killed, *options, **IN_CALIBRATE).returncode == -signal.SIGKILL
    whole = sq_convert(stories, killed, *options)
    monkeypatch.setattr(memory, "available_bytes", lambda device: 0)
    assert sq_convert(stories, blocks, *options) == whole


@pytest.mark.parametrize(
    ("function", "n", "said"),
    [("_estimate", 20, "calibrate: done already."), ("_quantize", 1, "allocate: done already.")],
)
def test_a_conversion_killed_while_bits_are_shared_out_goes_on(
    function: str, n: int, said: str, stories: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = (*CALIBRATION, "--bpw", "3.5")
    out, undisturbed = tmp_path / "m.sq.gguf", tmp_path / "undisturbed.sq.gguf"
    where = {"module": "pipeline", "owner": "module", "function": function, "n": n}
    assert run_killed(stories, out, *options, **where).returncode == -signal.SIGKILL
    assert sq_convert(stories, out, *options) == sq_convert(stories, undisturbed, *options)
    assert said in capsys.readouterr().err


def test_ctrl_c_says_how_to_go_on(stories: Path, tmp_path: Path) -> None:
    done = run_killed(stories, tmp_path / "m.sq.gguf", *CALIBRATION, **{**IN_QUANTIZE, "signal": "INT"})
    assert done.returncode == 130
    assert done.stderr.splitlines()[-1] == (
        "sq-convert: Interrupted. The same command goes on where it stopped."
    )
    assert [path.name for path in tmp_path.iterdir()] == ["m.sq.gguf.work"]


def test_changed_options_and_inputs_never_resume_the_wrong_work(
    stories: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = tmp_path / "model", tmp_path / "m.sq.gguf"
    shutil.copytree(stories, model)
    assert run_killed(model, out, *CALIBRATION, **IN_WRITE).returncode == -signal.SIGKILL
    work, saved = tmp_path / "m.sq.gguf.work", tmp_path / "saved"
    shutil.copytree(work, saved)

    # Other bits: calibration is reused, the blocks are not.
    other = sq_convert(model, out, *CALIBRATION, "--bits", "3")
    said = capsys.readouterr().err
    assert "quantize: starting over (changed since: bits)." in said
    assert "calibrate: done already." in said
    assert other == sq_convert(model, tmp_path / "fresh", *CALIBRATION, "--bits", "3")

    # Another seed: nothing is reused.
    shutil.copytree(saved, work)
    other = sq_convert(model, out, *CALIBRATION, "--seed", "1")
    assert "calibrate: starting over (changed since:" in capsys.readouterr().err
    assert other == sq_convert(model, tmp_path / "fresh", *CALIBRATION, "--seed", "1")

    # Other weights under the same name: nothing is reused.
    shutil.copytree(saved, work)
    weights = load_file(model / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"][0, 0] += 1
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    other = sq_convert(model, out, *CALIBRATION)
    assert "changed since: model.safetensors" in capsys.readouterr().err
    assert other == sq_convert(model, tmp_path / "fresh", *CALIBRATION)
