#!/usr/bin/env bash
# Training over MPI gives the bytes of one process:
#   bash tests/mpi/run.sh
# OpenMPI and libclang come from the distribution where this script may install them. Where they
# cannot be had, nothing is checked and a banner says so.
set -euo pipefail
cd "$(dirname "$0")/../.."

skipped() {
    printf '%s\n' '' '!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!' \
        "SKIPPED: training over MPI was NOT run: $1" \
        '!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!' ''
    exit 0
}

for command in mpirun mpicc; do
    command -v $command >/dev/null || bash tests/install.sh mpi >/dev/null 2>&1 || true
    command -v $command >/dev/null || skipped "OpenMPI could not be installed: there is no $command"
done

# The whole workspace is named so that libraries are those that `cargo test --workspace` built.
cargo build --workspace --features hybra-train/mpi --example mpi_ranks --locked
program=${CARGO_TARGET_DIR:-target}/debug/examples/mpi_ranks
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for ranks in 1 2 4; do
    timeout --foreground 120 mpirun -n "$ranks" --allow-run-as-root --oversubscribe "$program" "$work/$ranks"
done
for ranks in 2 4; do
    for file in model/model.safetensors log.jsonl checkpoints/step-000006/optimizer.safetensors; do
        cmp "$work/1/$file" "$work/$ranks/$file"
    done
    echo "$ranks ranks over MPI: weights, log and moments are those of one"
done
