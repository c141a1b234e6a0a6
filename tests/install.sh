#!/usr/bin/env bash
# Installs what the tests use beyond the toolchain, where this script may:
#   bash tests/install.sh [clients] [chromium] [mpi] [cuda]
# (all of them without arguments). Public clients go into $HYBRA_CLIENT_VENV [target/clients-venv] in
# the versions of clients/requirements.txt, NVIDIA's run-time compiler into $HYBRA_CUDA_VENV
# [target/cuda-venv]; Chromium, OpenMPI and libclang come from the distribution.
# What cannot be installed is left to the test that needs it, which says that it was not run.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
venv=${HYBRA_CLIENT_VENV:-$here/../target/clients-venv}
cuda_venv=${HYBRA_CUDA_VENV:-${CARGO_TARGET_DIR:-$here/../target}/cuda-venv}
wanted=$here/clients/requirements.txt

clients() {
    cmp -s "$wanted" "$venv/installed.txt" && return
    type -P python3 >/dev/null || { echo 'there is no python3' >&2; return 1; }
    [ -x "$venv/bin/python" ] || python3 -m venv "$venv" || return 1
    "$venv/bin/pip" install --quiet --disable-pip-version-check -r "$wanted" || return 1
    cp "$wanted" "$venv/installed.txt"
}

cuda() {
    [ -z "${HYBRA_NVRTC:-}" ] || return 0
    type -P python3 >/dev/null || { echo 'there is no python3' >&2; return 1; }
    [ -x "$cuda_venv/bin/python" ] || python3 -m venv "$cuda_venv" || return 1
    "$cuda_venv/bin/pip" install --quiet --disable-pip-version-check nvidia-cuda-nvrtc-cu12==12.8.93
}

# Of the distribution.
packages() {
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || return 0
    timeout --foreground 120 apt-get update -qq &&
        DEBIAN_FRONTEND=noninteractive timeout --foreground 240 apt-get install -y -qq "$@" >/dev/null
}

chromium() {
    [ -n "${CHROMIUM:-}" ] || { type -P chromium || type -P google-chrome; } >/dev/null ||
        packages chromium
}

mpi() {
    { type -P mpirun && type -P mpicc; } >/dev/null ||
        packages libopenmpi-dev openmpi-bin libclang-dev
}

status=0
[ $# -gt 0 ] || set -- clients chromium mpi cuda
for part in "$@"; do
    case $part in
        clients | chromium | mpi | cuda) "$part" || status=1 ;;
        *) echo "tests/install.sh: expected clients, chromium, mpi or cuda, found $part" >&2; exit 2 ;;
    esac
done
exit "$status"
