#!/usr/bin/env bash
# scripts/run.sh MODEL.sq.gguf: the chat, or one answer where $SQ_RUN_PROMPT is set. Called by make.
#
# At a terminal sq-run gets a process group of its own (set -m): Ctrl-C stops the answer, not make.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ -t 0 ]; then set -m; fi
if [ -n "${SQ_RUN_PROMPT-}" ]; then
    .venv/bin/sq-run "$1" -p "$SQ_RUN_PROMPT"
else
    .venv/bin/sq-run "$1"
fi
