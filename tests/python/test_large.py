"""A model of LLaMA-7B's shape at 3 bits, nearly 3 GB of random weights: written layer by layer, mapped, and
run in the memory that was promised."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter
from numpy.typing import NDArray
from sq_convert.writer import Entry, file_bytes, write_file

N_LAYERS, N_EMBD, N_FF, N_HEADS, N_VOCAB = 32, 4096, 11008, 32, 32000
N_KEPT = 18  # a row, 0.44 % of 4096
MATRICES = {
    "attn_q": (N_EMBD, N_EMBD),
    "attn_k": (N_EMBD, N_EMBD),
    "attn_v": (N_EMBD, N_EMBD),
    "attn_output": (N_EMBD, N_EMBD),
    "ffn_gate": (N_FF, N_EMBD),
    "ffn_up": (N_FF, N_EMBD),
    "ffn_down": (N_EMBD, N_FF),
}
N_CTX = 64
MB = 1 << 20

random = np.random.default_rng(7)


def noise(n_bytes: int) -> NDArray[np.int8]:
    return np.frombuffer(random.bytes(n_bytes), np.int8)


def entry(name: str, shape: tuple[int, ...], dtype: Any, make: Any, **more: Any) -> Entry:
    return Entry(name, shape, dtype, lambda: iter([make().reshape(shape).astype(dtype, copy=False)]), **more)


def q8_0(name: str, n_out: int) -> Entry:
    """Random blocks, each with the scale 2^-12."""

    def make() -> NDArray[np.int8]:
        blocks = noise(n_out * N_EMBD // 32 * 34).reshape(-1, 34).copy()
        blocks[:, :2].view(np.float16)[:] = 2**-12
        return np.asarray(blocks)

    shape = (n_out, N_EMBD // 32 * 34)
    return entry(name, shape, np.uint8, lambda: make().view(np.uint8), type=GGMLQuantizationType.Q8_0)


def matrix(name: str, n_out: int, n_in: int) -> Iterator[Entry]:
    row_bytes = 192 * (n_in // 512) + 12 * -(-(n_in % 512) // 32)
    gap = n_in // N_KEPT
    yield entry(f"{name}.codes", (n_out, row_bytes), np.int8, lambda: noise(n_out * row_bytes))
    yield entry(
        f"{name}.lut", (n_out, 8), np.float16, lambda: np.sort(random.normal(0, 0.02, (n_out, 8)), axis=1)
    )
    yield entry(f"{name}.rows", (n_out + 1,), np.int32, lambda: np.arange(n_out + 1) * N_KEPT)
    yield entry(
        f"{name}.cols",
        (n_out * N_KEPT,),
        np.int16,
        lambda: np.arange(N_KEPT) * gap + random.integers(0, gap, (n_out, N_KEPT)),
    )
    yield entry(f"{name}.vals", (n_out * N_KEPT,), np.float16, lambda: random.normal(0, 0.1, n_out * N_KEPT))


def entries() -> Iterator[Entry]:
    yield q8_0("token_embd.weight", N_VOCAB)
    yield q8_0("output.weight", N_VOCAB)
    yield entry("output_norm.weight", (N_EMBD,), np.float32, lambda: np.ones(N_EMBD))
    for i in range(N_LAYERS):
        for norm in ("attn_norm", "ffn_norm"):
            yield entry(f"blk.{i}.{norm}.weight", (N_EMBD,), np.float32, lambda: np.ones(N_EMBD))
        for name, shape in MATRICES.items():
            yield from matrix(f"blk.{i}.{name}.weight", *shape)


def add_keys(writer: GGUFWriter) -> None:
    names = [f"blk.{i}.{name}.weight" for i in range(N_LAYERS) for name in MATRICES]
    writer.add_uint32("squeezellm.version", 1)
    writer.add_array("squeezellm.matrix.names", names)
    writer.add_array("squeezellm.matrix.bits", [3] * len(names))
    writer.add_array(
        "squeezellm.matrix.inputs", [n_in for _ in range(N_LAYERS) for _, n_in in MATRICES.values()]
    )
    writer.add_block_count(N_LAYERS)
    writer.add_context_length(2048)
    writer.add_embedding_length(N_EMBD)
    writer.add_feed_forward_length(N_FF)
    writer.add_vocab_size(N_VOCAB)
    writer.add_head_count(N_HEADS)
    writer.add_head_count_kv(N_HEADS)
    writer.add_key_length(N_EMBD // N_HEADS)
    writer.add_value_length(N_EMBD // N_HEADS)
    writer.add_rope_dimension_count(N_EMBD // N_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000)


def nothing(path: Path) -> None:
    import sqllm  # noqa: F401


def generate(path: Path) -> None:
    from sqllm import Model

    with Model(path, ctx=N_CTX) as model:
        tokens = [t.id for t in model.stream_tokens([1, 2, 3], max_tokens=3, temperature=0)]
    assert len(tokens) == 3
    assert all(0 <= t < N_VOCAB for t in tokens)


def write(path: Path) -> None:
    write_file(path, "llama", add_keys, list(entries()), lambda n: None)


def peak_bytes(step: str, path: Path) -> int:
    """The most memory that this step takes in a process of its own, mapped files included."""
    done = subprocess.run([sys.executable, __file__, step, path], check=True, capture_output=True, text=True)
    return int(done.stdout)


def test_a_7b_model_at_3_bits(tmp_path: Path) -> None:
    n_bytes, n_free = file_bytes(list(entries())), shutil.disk_usage(tmp_path).free
    assert 2.7e9 < n_bytes < 3e9
    if n_free < n_bytes + 1024 * MB:
        pytest.skip(
            f"{n_free / 1e9:.1f} GB left in {tmp_path}, the model needs {n_bytes / 1e9:.1f} and some more"
        )
    path = tmp_path / "large.sq.gguf"
    try:
        embedding_bytes = N_VOCAB * N_EMBD // 32 * 34
        assert peak_bytes("write", path) < 200 * MB + 3 * embedding_bytes
        n_promised = path.stat().st_size + 2 * 2 * N_LAYERS * N_EMBD * N_CTX + 64 * MB
        assert peak_bytes("generate", path) < n_promised + peak_bytes("nothing", path)
    finally:
        path.unlink(missing_ok=True)


if __name__ == "__main__":
    {"write": write, "generate": generate, "nothing": nothing}[sys.argv[1]](Path(sys.argv[2]))
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert peak
    print(int(peak[1]) * 1024)
