#!/usr/bin/env bash
# scripts/test.sh: the linters and every test. Called by `make test`, which has set up .venv before.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '\n== %s\n' "$*"; }

# c_tests FOLDER OPTION...: builds the C tests in build/FOLDER and runs them.
c_tests() {
    local build=build/$1
    shift
    cmake -S . -B "$build" -G Ninja -DSQ_TESTS=ON -DSQ_TOOLS=OFF -DSQ_CUDA=OFF "$@" >"$build.log"
    cmake --build "$build" >>"$build.log" || { tail -n 60 "$build.log" && exit 1; }
    ctest --test-dir "$build" --output-on-failure --parallel 2
}

mkdir -p build
say "linters"
scripts/lint.sh
say "C tests"
c_tests tests
say "C tests under the address and undefined-behaviour sanitizers"
c_tests sanitize -DSQ_SANITIZE=ON
say "C tests of the kernels for 64-bit ARM, under an emulator"
c_tests arm64 -DSQ_KERNELS_ONLY=ON -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
    -DCMAKE_C_COMPILER=aarch64-linux-gnu-gcc \
    -DCMAKE_CROSSCOMPILING_EMULATOR="qemu-aarch64;-L;/usr/aarch64-linux-gnu"
if command -v nvcc >/dev/null; then
    say "tests of the GPU, compiled by nvcc; they run where there is one"
    { cmake -S . -B build/gpu -G Ninja -DSQ_TESTS=ON -DSQ_TOOLS=OFF -DSQ_CUDA=ON -DCMAKE_CUDA_ARCHITECTURES=90 &&
        cmake --build build/gpu --target gpu_test_device gpu_test_products gpu_test_attention gpu_test_layers gpu_bench_gpu; } \
        >build/gpu.log || { tail -n 60 build/gpu.log && exit 1; }
    ctest --test-dir build/gpu -L gpu --output-on-failure
fi
say "Python tests"
.venv/bin/python -m pytest -q --numprocesses 2 --dist loadfile
say "fuzzing"
tests/fuzz/run.sh 180 # a minute a target
say "all tests passed"
