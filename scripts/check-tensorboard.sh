#!/bin/sh
# Trains for a moment and reads the run's events back with the real TensorBoard, installed from PyPI into
# target/tensorboard.
#
#   scripts/check-tensorboard.sh
#
# Needs: Python 3 with venv, and target/release/trainer (built if it is missing).
set -eu
cd "$(dirname "$0")/.."
. scripts/cargo.sh
[ -x target/release/trainer ] || cargo build --release --package trainer

venv=target/tensorboard
if [ ! -x "$venv/bin/tensorboard" ]; then
    if ! python3 -m venv "$venv"; then
        # Debian keeps venv in a package of its own.
        $(command -v sudo || true) apt-get install -y python3-venv
        python3 -m venv "$venv"
    fi
    "$venv/bin/pip" install --quiet --disable-pip-version-check "tensorboard>=2.16" "setuptools<81"
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
target/release/trainer train configs/quickstart.toml --run "$work/run" --quiet \
    --set data.limit=128 --set train.batch=64 --set train.epochs=2 --set train.log_every=1
"$venv/bin/python" scripts/check_tensorboard.py "$work/run"
