"""llama.cpp's side of the benchmark, run inside the environment that holds llama-cpp-python.

    peer.py quantize IN.gguf OUT.gguf TYPE          TYPE: a name of llama_ftype, such as Q4_0
    peer.py bench MODEL.gguf PROMPT GENERATE THREADS

`bench` loads the model, warms it up, and then, for each line it reads from standard input, measures one
prompt and one generation and prints {"prompt": tok/s, "generation": tok/s}.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time

import llama_cpp


def quantize(source: str, out: str, type_name: str) -> None:
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{type_name}")
    params.allow_requantize = True
    if llama_cpp.llama_model_quantize(source.encode(), out.encode(), ctypes.byref(params)):
        sys.exit(f"{source}: llama.cpp cannot quantize it to {type_name}")


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

    def decode(self, tokens: list[int]) -> None:
        array = (llama_cpp.llama_token * len(tokens))(*tokens)
        if llama_cpp.llama_decode(self.context, llama_cpp.llama_batch_get_one(array, len(tokens))):
            sys.exit("llama_decode failed")

    def measure(self, n_prompt: int, n_generate: int) -> dict[str, float]:
        """Tokens a second of a prompt, and of a generation from an empty context, as llama-bench does."""
        rates = {}
        for name, n, piece in (("prompt", n_prompt, n_prompt), ("generation", n_generate, 1)):
            llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
            tokens = [(7 + 31 * i) % 30000 for i in range(n)]
            start = time.perf_counter()
            for i in range(0, n, piece):
                self.decode(tokens[i : i + piece])
            llama_cpp.llama_synchronize(self.context)
            rates[name] = n / (time.perf_counter() - start)
        return rates


def bench(path: str, n_prompt: int, n_generate: int, threads: int) -> None:
    peer = Peer(path, n_prompt + n_generate, threads)
    peer.measure(32, 4)
    print("ready", flush=True)
    for _ in sys.stdin:
        print(json.dumps(peer.measure(n_prompt, n_generate)), flush=True)


if __name__ == "__main__":
    log = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(log, ctypes.c_void_p())
    if sys.argv[1] == "quantize":
        quantize(*sys.argv[2:5])
    else:
        bench(sys.argv[2], *(int(n) for n in sys.argv[3:6]))
