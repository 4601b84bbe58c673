"""Write a GGUF model of random weights in TinyLlama's shape (1.1B), for speed alone.

usage: random_model.py TOKENIZER.gguf OUT.gguf

Metadata and tokenizer are TOKENIZER.gguf's (SmolLM2's, 49152 tokens); hyperparameters and weights are not.
The weights are F16, normal with standard deviation 0.02. One tensor is in memory at a time.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np

SHAPE = {
    "block_count": 22,
    "context_length": 8192,
    "embedding_length": 2048,
    "feed_forward_length": 5632,
    "attention.head_count": 32,
    "attention.head_count_kv": 4,
    "rope.dimension_count": 64,
}
KV_WIDTH = 4 * 64


def tensors(n_vocab: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes, [n_out, n_in]; one dimension: a norm."""
    n_embd, n_ff = SHAPE["embedding_length"], SHAPE["feed_forward_length"]
    yield "token_embd.weight", (n_vocab, n_embd)
    for i in range(SHAPE["block_count"]):
        yield f"blk.{i}.attn_norm.weight", (n_embd,)
        yield f"blk.{i}.attn_q.weight", (n_embd, n_embd)
        yield f"blk.{i}.attn_k.weight", (KV_WIDTH, n_embd)
        yield f"blk.{i}.attn_v.weight", (KV_WIDTH, n_embd)
        yield f"blk.{i}.attn_output.weight", (n_embd, n_embd)
        yield f"blk.{i}.ffn_norm.weight", (n_embd,)
        yield f"blk.{i}.ffn_gate.weight", (n_ff, n_embd)
        yield f"blk.{i}.ffn_up.weight", (n_ff, n_embd)
        yield f"blk.{i}.ffn_down.weight", (n_embd, n_ff)
    yield "output_norm.weight", (n_embd,)
    yield "output.weight", (n_vocab, n_embd)


def copy_metadata(reader: gguf.GGUFReader, writer: gguf.GGUFWriter) -> None:
    """Everything but the hyperparameters that SHAPE replaces and the container's own keys."""
    replaced = {f"llama.{key}" for key in SHAPE} | {"general.architecture", "llama.attention.key_length"}
    for name, field in reader.fields.items():
        if name in replaced or name.startswith("GGUF."):
            continue
        value: Any = field.contents()
        if field.types[0] == gguf.GGUFValueType.ARRAY:
            writer.add_array(name, value)
        else:
            writer.add_key_value(name, value, field.types[0])
    for key, number in SHAPE.items():
        writer.add_uint32(f"llama.{key}", number)


def draw(shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray[Any, Any]:
    if len(shape) == 1:
        return np.ones(shape, np.float32)
    weights: np.ndarray[Any, Any] = (random.standard_normal(shape, np.float32) * 0.02).astype(np.float16)
    return weights


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()

    partial = args.out.with_suffix(".partial")
    reader = gguf.GGUFReader(args.tokenizer)
    writer = gguf.GGUFWriter(partial, "llama")
    copy_metadata(reader, writer)
    n_vocab = len(reader.fields["tokenizer.ggml.tokens"].data)
    for name, shape in tensors(n_vocab):
        dtype = np.dtype(np.float32 if len(shape) == 1 else np.float16)
        writer.add_tensor_info(name, shape, dtype, int(np.prod(shape)) * dtype.itemsize)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    random = np.random.default_rng(1)
    for _, shape in tensors(n_vocab):
        writer.write_tensor_data(draw(shape, random))
    writer.close()
    os.replace(partial, args.out)


if __name__ == "__main__":
    main()
