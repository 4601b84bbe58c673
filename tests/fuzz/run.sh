#!/bin/sh
# tests/fuzz/run.sh [SECONDS]: builds the libFuzzer targets with clang, runs the smoke corpus through each,
# then fuzzes for SECONDS (default 60) in all. Fails on a crash, a leak, or an input that takes more than
# ten seconds or 1 GB, and names the file that did it. What it finds stays in build/fuzz/corpus for the next
# run.
set -eu

seconds=${1:-60}
case $seconds in
    '' | *[!0-9]*)
        echo "usage: tests/fuzz/run.sh [SECONDS]: \"$seconds\" is no whole number of seconds" >&2
        exit 2
        ;;
esac
cd "$(dirname "$0")/../.."
build=build/fuzz

if ! command -v clang >/dev/null; then
    echo "tests/fuzz/run.sh: clang is missing, and libFuzzer comes with it; install it (Debian, Ubuntu:" \
        "apt-get install clang)" >&2
    exit 1
fi
mkdir -p $build
generator=
if command -v ninja >/dev/null; then generator="-G Ninja"; fi
# shellcheck disable=SC2086
cmake -S . -B $build $generator -DCMAKE_C_COMPILER=clang -DSQ_FUZZ=ON -DSQ_TOOLS=OFF >$build.log 2>&1 &&
    cmake --build $build --parallel 2 --target fuzz_gguf fuzz_model fuzz_reference make_corpus >>$build.log 2>&1 || {
    tail -n 40 $build.log >&2
    echo "tests/fuzz/run.sh: the build failed; all of its output is in $build.log" >&2
    exit 1
}

$build/make_corpus $build/seeds
targets="fuzz_gguf fuzz_model fuzz_reference"
n_targets=3

# run TARGET WHAT OPTION...: one run of a target; its output is shown where it fails.
run() {
    target=$1 what=$2
    shift 2
    log=$build/$target.log
    if ! $build/$target -timeout=10 -rss_limit_mb=1024 -artifact_prefix=$build/$target- "$@" >$log 2>&1; then
        tail -n 60 $log >&2
        found=$(sed -n 's/.*Test unit written to //p' $log | tail -n 1)
        echo "tests/fuzz/run.sh: $target failed on ${found:-an input}; again: $build/$target $found" >&2
        exit 1
    fi
    echo "$target: $what, no complaint ($(grep -Eo 'Done [0-9]+ runs' $log || echo 'all seeds'))"
}

for target in $targets; do
    run $target "smoke corpus" -runs=0 $build/seeds
done
if [ "$seconds" -eq 0 ]; then exit 0; fi
for target in $targets; do
    mkdir -p $build/corpus/$target
    run $target "$((seconds / n_targets)) seconds" -max_total_time=$((seconds / n_targets)) -max_len=65536 \
        $build/corpus/$target $build/seeds
done
