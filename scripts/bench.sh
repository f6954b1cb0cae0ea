#!/bin/sh
# Times a training step here and in PyTorch, in turn, and prints the ratios (below 1: this program is faster).
#
#   scripts/bench.sh [ROUNDS]
#
# Needs: Python 3 with venv; PyTorch is installed from PyPI into target/torch. Run it on a quiet machine.
# Environment: PYTHON, a Python that has torch already; THREADS, default all cores.
set -eu
cd "$(dirname "$0")/.."
. scripts/cargo.sh
rounds=${1:-5}
threads=${THREADS:-$(nproc)}
cargo build --release --quiet --package trainer
if [ -z "${PYTHON:-}" ]; then
    PYTHON=target/torch/bin/python
    if [ ! -x "$PYTHON" ]; then
        python3 -m venv target/torch
        "$PYTHON" -m pip install --quiet --disable-pip-version-check torch numpy
    fi
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for round in $(seq "$rounds"); do
    echo "round $round of $rounds" >&2
    target/release/trainer bench step --threads "$threads" --repeats 3 --json | tail -1 >> "$work/ours"
    "$PYTHON" scripts/bench_peers.py --threads "$threads" --repeats 3 | tail -1 >> "$work/torch"
done
"$PYTHON" - "$work" <<'PY'
import json, pathlib, statistics, sys
read = lambda name: [json.loads(l) for l in (pathlib.Path(sys.argv[1]) / name).read_text().splitlines()]
ours, torch = read("ours"), read("torch")
print(f"n = {len(ours)} rounds, {ours[0]['threads']} threads, batch {ours[0]['batch']}, PyTorch {torch[0]['torch']} {torch[0]['layout']}")
print(f"{'':18}{'ours ms':>10}{'torch ms':>10}{'ratio':>8}{'each round':>30}")
for key in ("train_ms", "kd_ms", "teacher_ms", "teacher_train_ms"):
    a, b = [o[key] for o in ours], [t[key] for t in torch]
    ratio = statistics.median(a) / statistics.median(b)
    rounds = " ".join(f"{x / y:.2f}" for x, y in zip(a, b))
    print(f"{key:18}{statistics.median(a):10.1f}{statistics.median(b):10.1f}{ratio:8.2f}{rounds:>30}")
PY
