#!/bin/sh
# Times training here and in PyTorch, in turn, and prints the ratios to PyTorch's fastest way (below 1: this program is faster).
#
#   scripts/bench.sh [ROUNDS] [FILE.json]
#
# PyTorch runs eagerly in both memory layouts and through torch.compile, in f32 and under bf16 autocast; then the forward pass of
# torchvision's models in f32, in the same ways and as a frozen graph. Each process measures medians of its own repetitions.
# Needs: Python 3 with venv, a C++ compiler; PyTorch is installed from PyPI into target/torch.
# Run it on a quiet machine. Environment: PYTHON, a Python that has torch and torchvision already; THREADS, default all cores.
set -eu
cd "$(dirname "$0")/.."
. scripts/cargo.sh
rounds=${1:-5}
threads=${THREADS:-$(nproc)}
cargo build --release --quiet --package trainer
if [ -z "${PYTHON:-}" ]; then
    PYTHON=target/torch/bin/python
    [ -x "$PYTHON" ] || python3 -m venv target/torch
    "$PYTHON" -m pip install --quiet --disable-pip-version-check torch torchvision numpy
fi
"$PYTHON" -c 'import torch, torchvision'
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
ours() {
    target/release/trainer bench step --repeats 5 --json "$@" | tail -1
}
for round in $(seq "$rounds"); do
    echo "round $round of $rounds" >&2
    for dtype in f32 bf16; do
        ours --threads "$threads" --dtype $dtype >> "$work/ours-$dtype"
        for mode in nchw channels_last compile; do
            "$PYTHON" scripts/bench_peers.py --threads "$threads" --repeats 5 --mode $mode --dtype $dtype \
                > "$work/last" 2> "$work/errors" || { cat "$work/errors" >&2; exit 1; }
            tail -1 "$work/last" >> "$work/$mode-$dtype"
        done
    done
    target/release/trainer bench forward --repeats 5 --threads "$threads" --json | tail -1 >> "$work/ours-forward"
    for mode in nchw channels_last compile frozen; do
        "$PYTHON" scripts/bench_forward_peers.py --threads "$threads" --mode $mode \
            > "$work/last" 2> "$work/errors" || { cat "$work/errors" >&2; exit 1; }
        tail -1 "$work/last" >> "$work/$mode-forward"
    done
    # How it scales: one thread; a quarter of and four times the batch.
    ours --threads 1 >> "$work/one-thread"
    ours --threads "$threads" --batch 32 >> "$work/batch-32"
    ours --threads "$threads" --batch 512 >> "$work/batch-512"
done
"$PYTHON" scripts/bench_table.py "$work" "${2:-}"
