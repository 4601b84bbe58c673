"""The rate of plain matrix products of the 1.1B model's shapes by PyTorch (oneDNN), beside the prompt's.

usage: matmul.py TOKENS THREADS

Prints GFLOP/s in bf16 as JSON: {"bf16": …}.
"""

from __future__ import annotations

import json
import sys
import time

import torch
from random_model import KV_WIDTH, SHAPE

N_EMBD, N_FF = SHAPE["embedding_length"], SHAPE["feed_forward_length"]
SHAPES = [(N_EMBD, N_EMBD)] * 2 + [(KV_WIDTH, N_EMBD)] * 2 + [(N_FF, N_EMBD)] * 2 + [(N_EMBD, N_FF)]
"""[n_out, n_in] of a layer's matrices."""


def rate(n_tokens: int, dtype: torch.dtype, n_layers: int) -> float:
    pairs = [
        (torch.randn(n_tokens, n_in).to(dtype), torch.randn(n_out, n_in).to(dtype)) for n_out, n_in in SHAPES
    ]
    for x, w in pairs:
        torch.nn.functional.linear(x, w)
    start = time.perf_counter()
    for _ in range(n_layers):
        for x, w in pairs:
            torch.nn.functional.linear(x, w)
    seconds = time.perf_counter() - start
    return n_layers * sum(2e-9 * n_tokens * n_out * n_in for n_out, n_in in SHAPES) / seconds


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[2]))
    with torch.inference_mode():
        print(json.dumps({"bf16": rate(int(sys.argv[1]), torch.bfloat16, SHAPE["block_count"])}))
