"""FP16 on a GPU through PyTorch at its best: a token by a CUDA graph, a prompt's matrix products by cuBLAS.

Prints JSON: seconds a token, and seconds that the products of a prompt take.

usage: gpu_peer.py '{"n_layers": 32, "n_embd": 4096, "n_ff": 11008, "n_heads": 32, "n_kv_heads": 32,
                      "n_vocab": 32000}'
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import linear, rms_norm, scaled_dot_product_attention, silu

N_PROMPT, N_CONTEXT = 2048, 256


def seconds(work: Callable[[], Any], rounds: int) -> float:
    times: list[float] = []
    for _ in range(rounds + 1):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        work()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e-3)
    return statistics.median(times[1:])


def weight(n_out: int, n_in: int) -> torch.Tensor:
    return torch.randn(n_out, n_in, device="cuda", dtype=torch.float16) * 0.02


class Decoder:
    """A LLaMA with static buffers, its matrices fused as ours are."""

    def __init__(self, s: dict[str, int]) -> None:
        self.heads, self.kv_heads = s["n_heads"], s["n_kv_heads"]
        self.head_dim = s["n_embd"] // self.heads
        n_embd, n_kv = s["n_embd"], self.kv_heads * self.head_dim
        self.layers = [
            (
                weight(n_embd + 2 * n_kv, n_embd),
                weight(n_embd, n_embd),
                weight(2 * s["n_ff"], n_embd),
                weight(n_embd, s["n_ff"]),
            )
            for _ in range(s["n_layers"])
        ]
        self.head = weight(s["n_vocab"], n_embd)
        self.embedding = weight(s["n_vocab"], n_embd)
        self.norm = torch.ones(n_embd, device="cuda", dtype=torch.float16)
        shape = (s["n_layers"], 2, 1, self.kv_heads, N_CONTEXT, self.head_dim)
        self.cache = torch.zeros(shape, device="cuda", dtype=torch.float16)
        self.token = torch.zeros(1, device="cuda", dtype=torch.long)
        self.position = torch.full((1,), N_CONTEXT // 2, device="cuda", dtype=torch.long)
        half = torch.arange(self.head_dim // 2, device="cuda") * 2 / self.head_dim
        self.frequencies = 10000.0**-half

    def rotate(self, x: torch.Tensor) -> torch.Tensor:
        angle = self.position * self.frequencies
        a, b = x.chunk(2, dim=-1)
        cos, sin = angle.cos().half(), angle.sin().half()
        return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)

    def step(self) -> None:
        x = self.embedding[self.token]
        n_q, n_kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        seen = (torch.arange(N_CONTEXT, device="cuda") <= self.position)[None, None, None]
        for (qkv, out, gate_up, down), (keys, values) in zip(self.layers, self.cache, strict=True):
            h = rms_norm(x, x.shape[-1:], self.norm)
            q, k, v = linear(h, qkv).split((n_q, n_kv, n_kv), dim=-1)
            q = self.rotate(q.view(1, self.heads, 1, self.head_dim))
            keys.index_copy_(2, self.position, self.rotate(k.view(1, self.kv_heads, 1, self.head_dim)))
            values.index_copy_(2, self.position, v.view(1, self.kv_heads, 1, self.head_dim))
            attended = scaled_dot_product_attention(
                q, keys, values, attn_mask=seen, enable_gqa=self.heads != self.kv_heads
            )
            x = x + linear(attended.reshape(1, n_q), out)
            gate, up = linear(rms_norm(x, x.shape[-1:], self.norm), gate_up).chunk(2, dim=-1)
            x = x + linear(silu(gate) * up, down)
        logits = linear(rms_norm(x, x.shape[-1:], self.norm), self.head)
        self.token.copy_(logits.argmax(dim=-1))

    def token_seconds(self) -> float:
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for _ in range(3):
                self.step()
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.step()
        return seconds(graph.replay, 64)

    def prompt_seconds(self) -> float:
        inputs = {
            w.shape[1]: torch.randn(N_PROMPT, w.shape[1], device="cuda", dtype=torch.float16)
            for w in self.layers[0]
        }

        def products() -> None:
            for layer in self.layers:
                for w in layer:
                    linear(inputs[w.shape[1]], w)

        return seconds(products, 5)


def main() -> None:
    with torch.no_grad():
        decoder = Decoder(json.loads(sys.argv[1]))
        print(json.dumps({"token": decoder.token_seconds(), "prompt_products": decoder.prompt_seconds()}))


if __name__ == "__main__":
    main()
