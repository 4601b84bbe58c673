"""llama.cpp's side of the benchmark, run inside the environment that holds llama-cpp-python.

    peer.py quantize IN.gguf OUT.gguf TYPE [IMPORTANCE.npz]   TYPE: a name of llama_ftype, such as Q4_0
    peer.py bench MODEL.gguf N_CTX THREADS

`bench` loads the model and then, for each line KIND TOKENS DEPTH that it reads from standard input, prints
tokens a second: of a prompt, of a generation after DEPTH tokens, or of batches of TOKENS after as many.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from typing import Any

import llama_cpp


def importance_entries(path: str) -> Any:
    """What llama_model_quantize takes as importance matrix: entries up to one without a name."""
    import numpy as np

    with np.load(path) as file:
        found = {name: np.ascontiguousarray(file[name], np.float32) for name in file}
    entries = (llama_cpp.llama_model_imatrix_data * (len(found) + 1))()
    for entry, (name, values) in zip(entries, found.items(), strict=False):
        entry.name = name.encode()
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        entry.size = len(values)
    entries.values = found  # what they point to lives as long as they do
    return entries


def quantize(source: str, out: str, type_name: str, importance: str | None = None) -> None:
    """With an importance matrix of the blocks' inputs, embedding and head stay in F16."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{type_name}")
    params.allow_requantize = True
    if importance:
        entries = importance_entries(importance)
        params.imatrix = ctypes.cast(entries, type(params.imatrix))
        params.token_embedding_type = params.output_tensor_type = llama_cpp.GGML_TYPE_F16
    partial = f"{out}.partial"
    if llama_cpp.llama_model_quantize(source.encode(), partial.encode(), ctypes.byref(params)):
        sys.exit(f"{source}: llama.cpp cannot quantize it to {type_name}")
    os.replace(partial, out)


class Peer:
    """One llama.cpp model and context on `threads` threads."""

    def __init__(self, path: str, n_ctx: int, threads: int) -> None:
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(
            path.encode(), llama_cpp.llama_model_default_params()
        )
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = n_ctx
        params.n_batch = params.n_ubatch = 512
        params.n_threads = params.n_threads_batch = threads
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        if not self.context:
            sys.exit(f"{path}: llama.cpp cannot load it")

        self.depth = -1
        self.measure("prompt", 32, 0)

    def decode(self, n_tokens: int, *, all_logits: bool = False) -> None:
        batch = llama_cpp.llama_batch_init(n_tokens, 0, 1)
        batch.n_tokens = n_tokens
        for i in range(n_tokens):
            batch.token[i] = (7 + 31 * (self.position + i)) % 30000
            batch.pos[i] = self.position + i
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = 0
            batch.logits[i] = all_logits or i == n_tokens - 1
        if llama_cpp.llama_decode(self.context, batch):
            sys.exit("llama_decode failed")
        llama_cpp.llama_batch_free(batch)
        self.position += n_tokens

    def go_to(self, depth: int) -> None:
        """Makes the context exactly `depth` tokens long; computes it unless the last one was as long."""
        memory = llama_cpp.llama_get_memory(self.context)
        if depth == self.depth:
            llama_cpp.llama_memory_seq_rm(memory, 0, depth, -1)
        else:
            llama_cpp.llama_memory_clear(memory, True)
            self.position = 0
            while self.position < depth:
                self.decode(min(512, depth - self.position))
        self.position = self.depth = depth

    def measure(self, kind: str, n_tokens: int, depth: int) -> float:
        """Tokens a second, as sq-bench and llama-bench define them."""
        runs = {"prompt": (1, n_tokens), "generation": (n_tokens, 1), "batch": (8, n_tokens)}
        n_runs, n_at_once = runs[kind]
        self.go_to(depth)
        llama_cpp.llama_synchronize(self.context)
        start = time.perf_counter()
        for _ in range(n_runs):
            self.decode(n_at_once, all_logits=kind == "batch")
        llama_cpp.llama_synchronize(self.context)
        return n_runs * n_at_once / (time.perf_counter() - start)


def bench(path: str, n_ctx: int, threads: int) -> None:
    peer = Peer(path, n_ctx, threads)
    for line in sys.stdin:
        kind, n_tokens, depth = line.split()
        print(peer.measure(kind, int(n_tokens), int(depth)), flush=True)


if __name__ == "__main__":
    log = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(log, ctypes.c_void_p())
    if sys.argv[1] == "quantize":
        quantize(*sys.argv[2:6])
    else:
        bench(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
