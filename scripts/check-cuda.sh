#!/bin/sh
# Type-checks the workspace's libraries and program with the feature `cuda` on a machine without a GPU: NVIDIA's compiler and headers come
# from PyPI into target/cuda, all kernels, ours and candle's, are compiled. scripts/build-cuda.sh links them too.
#
#   scripts/check-cuda.sh
#
# Needs: Python 3 with venv and some GB of disk.
set -eu
cd "$(dirname "$0")/.."
. scripts/cargo.sh
. scripts/cuda.sh
cargo check --release --workspace --features trainer/cuda --target-dir target/cuda-check
echo "the workspace type-checks with CUDA"
