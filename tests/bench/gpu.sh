#!/usr/bin/env bash
# gpu.sh test|bench|found: builds the plugin and its tests with nvcc under build/gpu and runs the tests that need a GPU, once
# more under compute-sanitizer where that is installed; "bench" then measures, and writes build/bench/gpu.json and the
# GPU's section of docs/BENCHMARKS.md; "found" says what is missing, before anything takes time. Called by `make test-gpu`
# and `make bench-gpu`.
set -euo pipefail
cd "$(dirname "$0")/../.."

absent() {
    echo "$1" >&2
    [ "$what" = test ] # without a GPU there is nothing to test, and no measurement
    exit
}

what=$1
programs=build/gpu/tests/cuda
nvidia-smi -L >/dev/null 2>&1 || absent "${what/found/bench}-gpu: no NVIDIA GPU is there (nvidia-smi finds none)"
command -v nvcc >/dev/null || absent "${what/found/bench}-gpu: nvcc is missing; install NVIDIA's CUDA toolkit, version 12.4 or newer"
[ "$what" != found ] || exit 0
mkdir -p build/bench
if ! { cmake -S . -B build/gpu -G Ninja -DSQ_TESTS=ON -DSQ_TOOLS=OFF -DSQ_CUDA=ON \
    -DCMAKE_CUDA_ARCHITECTURES=native && cmake --build build/gpu --target sq_cuda gpu_test_device gpu_test_products \
    gpu_test_attention gpu_test_layers gpu_bench_gpu; } >build/gpu.log 2>&1; then
    tail -n 40 build/gpu.log
    exit 1
fi
ctest --test-dir build/gpu -L gpu --output-on-failure
if [ "$what" = test ]; then
    if command -v compute-sanitizer >/dev/null; then
        for test in test_products test_attention test_device test_layers; do
            compute-sanitizer --error-exitcode 1 "$programs/gpu_$test"
        done
    else
        echo "test-gpu: compute-sanitizer is not installed; the tests ran without it"
    fi
    exit
fi
python=.venv/bin/python
if [ -x "$python" ]; then
    [ -e build/bench/stories.sq.gguf ] || .venv/bin/sq-convert tests/data/stories260K -o build/bench/stories.sq.gguf >/dev/null
else # a machine without a network: accuracy, which takes the package, is left out
    python=python3
fi
# Nine minutes are for all of it.
PYTHONPATH=tests/python "$python" tests/bench/gpu.py --program "$programs/gpu_bench_gpu" --plugin build/gpu \
    --model build/bench/stories.sq.gguf --model models-cache/SmolLM2-135M-Instruct.sq.gguf \
    --seconds $((540 - SECONDS)) --json build/bench/gpu.json --out docs/BENCHMARKS.md
echo "bench-gpu: $SECONDS s"
