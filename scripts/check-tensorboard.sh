#!/bin/sh
# Trains for a moment, is killed on the way, goes on, and reads the run's events back with the real TensorBoard, installed from PyPI
# into target/tensorboard: every number once, as metrics.jsonl has it.
#
#   scripts/check-tensorboard.sh
#
# Needs: Python 3 with venv, and target/release/trainer (built if it is missing).
set -eu
cd "$(dirname "$0")/.."
. scripts/cargo.sh
. scripts/venv.sh
[ -x target/release/trainer ] || cargo build --release --package trainer
venv target/tensorboard "tensorboard>=2.16" "setuptools<81"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# $1: what runs it.
train() {
    $1 target/release/trainer train configs/quickstart.toml --run "$work/run" --quiet --resume \
        --set data.limit=128 --set train.batch=16 --set train.epochs=2 --set train.log_every=1 --set train.save_every=4
}
lines() { if [ -f "$work/run/metrics.jsonl" ]; then wc -l <"$work/run/metrics.jsonl"; else echo 0; fi; }
# Killed three steps behind a saved state, whose events are written already.
train exec >"$work/log" 2>&1 &
while [ "$(lines)" -lt 7 ]; do
    kill -0 $! 2>/dev/null || { cat "$work/log"; exit 1; }
    sleep 0.05
done
kill -9 $!
wait $! || true
train env
target/tensorboard/bin/python scripts/check_tensorboard.py "$work/run"
