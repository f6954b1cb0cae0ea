#!/bin/sh
# Writes ONNX files of every kind of model and runs them with the real ONNX Runtime, installed from PyPI into target/onnx: the same
# logits and maps as here.
#
#   scripts/check-onnx.sh
#
# Needs: Python 3 with venv.
set -eu
cd "$(dirname "$0")/.."
. scripts/cargo.sh
. scripts/venv.sh
venv target/onnx "onnx>=1.16" "onnxruntime>=1.17"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
ONNX_DIR=$work cargo test --release --quiet --workspace --test onnx
target/onnx/bin/python scripts/check_onnx.py "$work"
