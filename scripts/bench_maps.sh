#!/bin/sh
# Times explanation maps here and in PyTorch, in turn, and prints the ratios.
#
#   scripts/bench_maps.sh [ROUNDS]
#
# Needs: Python 3 with venv; torch and grad-cam are installed from PyPI into target/torch. Run it on a quiet machine.
# Environment: PYTHON, a Python that has both already; THREADS, default all cores.
set -eu
cd "$(dirname "$0")/.."
. scripts/cargo.sh
rounds=${1:-3}
threads=${THREADS:-$(nproc)}
cargo build --release --quiet --package trainer
if [ -z "${PYTHON:-}" ]; then
    PYTHON=target/torch/bin/python
    [ -x "$PYTHON" ] || python3 -m venv target/torch
    "$PYTHON" -m pip install --quiet --disable-pip-version-check torch numpy grad-cam
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for round in $(seq "$rounds"); do
    echo "round $round of $rounds" >&2
    target/release/trainer bench maps --threads "$threads" --few 1 --repeats 9 --json | tail -1 >> "$work/ours"
    target/release/trainer bench maps --threads "$threads" --batch 1 --few 1 --repeats 9 --json | tail -1 >> "$work/single"
    "$PYTHON" scripts/bench_maps_peers.py --threads "$threads" | tail -1 >> "$work/torch"
done
"$PYTHON" - "$work" <<'PY'
import json, pathlib, statistics, sys
read = lambda name: [json.loads(l) for l in (pathlib.Path(sys.argv[1]) / name).read_text().splitlines()]
ours, single, torch = read("ours"), read("single"), read("torch")
row = lambda run, method: next(r for r in run["rows"] if r["method"] == method)
median = lambda values: statistics.median(values)
print(f"n = {len(ours)} rounds, {ours[0]['threads']} threads, {ours[0]['arch']}, PyTorch {torch[0]['torch']}")
step = median(r["train_ms"] for r in ours)
print(f"a training step of {ours[0]['batch']} images: {step:.1f} ms")
for method in ("grad_cam", "grad_cam_pp", "hires_cam", "xgrad_cam", "layer_cam", "ablation_cam", "shapley_cam", "shap_cam"):
    print(f"{method:24} matching {100 * median(row(r, method)['share_of_step'] for r in ours):6.1f} % of a step")
det2 = median(row(r, "shap_cam prob, det2")["ms_per_map"] * r["batch"] / r["train_ms"] for r in ours)
print(f"{'shap_cam prob, det2':24} forward  {100 * det2:6.1f} % of a step")
both = median(100 * row(r, "shap_cam prob, det2")["share_of_step"] for r in ours)
print(f"{'shap_cam prob, det2':24} matching {both:6.1f} % of a step")
score = median(row(r, "score_cam")["ms_per_map"] / (r["forward_ms"] * row(r, "score_cam")["evaluations"]) for r in ours)
print(f"{'score_cam':24} {score:.2f} times its forward passes")
mc = median(row(r, "shap_cam prob, mc 1000")["ms_per_map"] for r in single)
for key, what in (("one_by_one", "the head once a coalition"), ("chunks", "masked features in chunks"), ("product", "one product")):
    other = median(t[f"shap_{key}_ms"] for t in torch)
    print(f"shap_cam mc, 1,000 permutations: {mc:.3f} ms a map; PyTorch, {what}: {other:.1f} ms, {other / mc:.0f} times as long")
cam = median(r["forward_ms"] + row(r, "grad_cam")["ms_per_map"] for r in single)
other = median(t["grad_cam_ms"] for t in torch)
print(f"grad_cam, one image with its forward pass: {cam:.2f} ms; pytorch-grad-cam {other:.2f} ms, {other / cam:.1f} times as long")
PY
