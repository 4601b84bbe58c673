#!/usr/bin/env bash
# scripts/lint.sh: formatters (they change nothing here) and linters. Called by `make lint`.
set -euo pipefail
cd "$(dirname "$0")/.."

find runtime models convert cuda tests examples -regex '.*\.\(c\|h\|cu\|cuh\|cpp\)' -not -path 'tests/data/*' -print0 |
    xargs -0 .venv/bin/clang-format --dry-run -Werror
.venv/bin/ruff check
.venv/bin/ruff format --check
.venv/bin/mypy
