#!/usr/bin/env bash
# scripts/packages.sh run|test|lm-eval PYTHON LOG: checks for what the set-up needs from the system. Installs what
# is missing with apt-get where that is allowed without asking, else names all of it in one message.
set -euo pipefail
needs=$1 python=$2 log=$3

# Prints the packages that are missing, named as Debian and Ubuntu name them.
missing() {
    command -v cc >/dev/null && echo 'int main(void) { return 0; }' | cc -xc - -o /dev/null 2>/dev/null ||
        echo build-essential
    command -v cmake >/dev/null || echo cmake
    command -v ninja >/dev/null || echo ninja-build
    command -v pkg-config >/dev/null || echo pkg-config
    pkg-config --exists libpcre2-8 2>/dev/null || echo libpcre2-dev
    pkg-config --exists libutf8proc 2>/dev/null || echo libutf8proc-dev
    pkg-config --exists libedit 2>/dev/null || echo libedit-dev
    if ! command -v "$python" >/dev/null; then
        echo python3 python3-venv
    elif ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        "$python" -c 'import sys; print(f"python{sys.version_info[0]}.{sys.version_info[1]}-venv")'
    fi
    [ "$needs" = test ] || return 0
    command -v c++ >/dev/null || echo g++
    command -v aarch64-linux-gnu-gcc >/dev/null || echo gcc-aarch64-linux-gnu
    [ -e /usr/aarch64-linux-gnu/include/stdio.h ] || echo libc6-dev-arm64-cross
    command -v qemu-aarch64 >/dev/null || echo qemu-user
    if ! command -v clang >/dev/null; then
        echo clang
    elif ! sanitizes; then
        echo "libclang-rt-$(clang -dumpversion | cut -d. -f1)-dev"
    fi
}

# Whether clang has its sanitizers and libFuzzer.
sanitizes() {
    local out
    out=$(mktemp)
    echo '#include <stddef.h>
        int LLVMFuzzerTestOneInput(const char *data, size_t n) { return data && n > 9 ? -1 : 0; }' |
        clang -fsanitize=fuzzer,address,undefined -xc - -o "$out" 2>/dev/null && rm -f "$out" ||
        { rm -f "$out" && false; }
}

as_root() { if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo -n "$@"; fi; }

may_install() {
    command -v apt-get >/dev/null && as_root true 2>/dev/null
}

packages=$(missing | xargs)
if [ -n "$packages" ] && may_install; then
    echo "setup: installing $packages" >&2
    # shellcheck disable=SC2086 # one word a package
    as_root apt-get -q update >>"$log" 2>&1 &&
        as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -y install $packages >>"$log" 2>&1 ||
        { tail -n 20 "$log" && echo "setup: apt-get failed; all of its output is in $log"; } >&2
    # clang may have come without its sanitizers, which it only recommends.
    packages=$(missing | xargs)
    if [[ $packages == libclang-rt-* ]]; then
        as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -y install "$packages" >>"$log" 2>&1 || true
        packages=$(missing | xargs)
    fi
fi
if [ -n "$packages" ]; then
    echo "setup: these system packages are missing: $packages
Install them and run make again. On Debian or Ubuntu:

    sudo apt-get install $packages
" >&2
    exit 1
fi
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "setup: expected Python 3.11 or newer, found $("$python" --version 2>&1);" \
        "name a newer one: make run PYTHON=python3.12" >&2
    exit 1
fi
