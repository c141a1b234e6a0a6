#!/usr/bin/env bash
# Builds the emulated device into OUT_DIR: libcuda.so.1, libnvrtc.so.12 and the program selftest.
# What is newer than all sources stays. The folder OUT_DIR/kernels, meant for the cache of compiled
# kernels, is removed whenever the libraries change.
set -euo pipefail
out=${1:?"usage: build.sh OUT_DIR"}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
mkdir -p "$out"
cd "$here"

stamp=$(cat emulator.h fiber.h | cksum | cut -d ' ' -f 1)
flags=(-std=c++17 -O2 -fPIC -fvisibility=hidden -Wall -Wextra -Werror
    "-DHYBRA_EMULATOR_STAMP=${stamp}u" "-DHYBRA_EMULATOR_DIR=\"$here\"")

# Whether $out/$1 is older than a source.
stale() { [ ! -e "$out/$1" ] || [ -n "$(find . -maxdepth 1 -type f -newer "$out/$1")" ]; }

# Files appear whole: another process may be using the old ones.
build() {
    local name=$1
    shift
    ${CXX:-c++} "${flags[@]}" "$@" -o "$out/$name.new"
    mv "$out/$name.new" "$out/$name"
}

pids=()
if stale libcuda.so.1; then
    rm -rf "$out/kernels"
    build libcuda.so.1 -shared -Wl,-soname,libcuda.so.1 driver.cpp transfer.cpp stream.cpp \
        memory.cpp runtime.cpp -ldl -pthread &
    pids+=($!)
fi
if stale libnvrtc.so.12; then
    build libnvrtc.so.12 -shared -Wl,-soname,libnvrtc.so.12 nvrtc.cpp &
    pids+=($!)
fi
if [ -e selftest.cpp ] && stale selftest; then
    build selftest selftest.cpp -ldl &
    pids+=($!)
fi
for pid in ${pids[@]+"${pids[@]}"}; do wait "$pid"; done
