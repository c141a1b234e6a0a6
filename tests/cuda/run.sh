#!/usr/bin/env bash
# The CUDA backend, as far as this machine can try it:
#   bash tests/cuda/run.sh           NVIDIA's compiler on every kernel, for sm_80, sm_86 and sm_90
#   bash tests/cuda/run.sh --gpu OUT besides, all tests of the backend on the machine's own GPU,
#                                    `hybra verify` of the golden checkpoints on it, and records of
#                                    `hybra bench` in the folder OUT (random weights of the 9B, for
#                                    which 18 GB of $TMPDIR are used meanwhile)
# The compiler's library (libnvrtc.so.12) is looked for in the folder $HYBRA_NVRTC, else taken from
# the Python package nvidia-cuda-nvrtc-cu12. Where it cannot be had a banner says so.
set -euo pipefail
if [ "${1:-}" = --gpu ]; then
    mkdir -p "${2:?"usage: tests/cuda/run.sh --gpu OUT"}"
    out=$(cd "$2" && pwd)
fi
cd "$(dirname "$0")/../.."
venv=$(realpath -m "${HYBRA_CUDA_VENV:-${CARGO_TARGET_DIR:-target}/cuda-venv}")

banner() {
    printf '%s\n' '' '!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!' "$1" \
        '!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!' ''
}

if [ -z "${HYBRA_NVRTC:-}" ]; then
    bash tests/install.sh cuda || true
    HYBRA_NVRTC=$(find "$venv" -name 'libnvrtc.so.12' -printf '%h' -quit 2>/dev/null || true)
fi
# The whole workspace is named so that libraries are those that `cargo test --workspace` built.
if [ -n "$HYBRA_NVRTC" ]; then
    export HYBRA_NVRTC
    cargo test --workspace --locked --test architectures -- --nocapture
else
    banner 'SKIPPED: there is no libnvrtc; kernels were NOT compiled for any GPU.'
fi

[ "${1:-}" = --gpu ] || exit 0
export HYBRA_TEST_GPU=1
export LD_LIBRARY_PATH=${HYBRA_NVRTC:+$HYBRA_NVRTC:}${LD_LIBRARY_PATH:-}
cargo test --workspace --locked --test attention --test device --test device_graphs \
    --test device_sampler --test graph --test limits --test mamba --test matmul --test rms_norm \
    --test sample --test staging
cargo build --release --locked
hybra=${CARGO_TARGET_DIR:-target}/release/hybra
shared=${HYBRA_SHARED:-../shared}
for case in micro odd nano2; do
    golden=$shared/golden/$case
    reference=$golden/reference.safetensors
    [ -e "$reference" ] || reference=$golden/reference.json
    "$hybra" verify "$golden" -r "$reference" --device cuda:0
done

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for dtype in bf16 q8_0 q4_0; do
    "$hybra" init nano2-9b "$work/9b.gguf" --dtype "$dtype" --force
    "$hybra" bench "$work/9b.gguf" --device cuda:0 --prefill 512,8192 --depth 0,8192 \
        --batch 1,16,64 --chunk 8192 --seconds 120 --json >"$out/nano2-9b-$dtype.json"
    "$hybra" bench "$work/9b.gguf" --device cuda:0 --quick
done
rm "$work/9b.gguf"
# The published claim, at the largest batches of a 22 GiB card, and the longest context in 19.66 GiB.
compare=("$hybra" bench --compare transformer-8b nano2-9b --dtype bf16 --device cuda:0 --chunk 8192)
TMPDIR=$work "${compare[@]}" --memory-budget 22GiB --points 8k/16k,1k/8k,8k/1k --seconds 300 \
    --json >"$out/nano2-9b-transformer-8b-bf16.json"
TMPDIR=$work "${compare[@]}" --memory-budget 19.66GiB --points 127k/1k --max-batch 1 \
    --json >"$out/nano2-9b-128k-bf16.json"
