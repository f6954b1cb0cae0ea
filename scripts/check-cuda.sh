#!/bin/sh
# Type-checks the workspace's libraries and program with the feature `cuda` on a machine without a GPU: NVIDIA's compiler and headers come
# from PyPI into target/cuda, all of candle's kernels are compiled; only the final link would need a driver.
#
#   scripts/check-cuda.sh
#
# Needs: Python 3 with venv and some GB of disk.
set -eu
cd "$(dirname "$0")/.."
. scripts/cargo.sh
venv=$PWD/target/cuda
if [ ! -x "$venv/bin/python" ]; then
    python3 -m venv "$venv"
fi
"$venv/bin/pip" install --quiet --disable-pip-version-check "nvidia-cuda-nvcc>=13,<14" "nvidia-cuda-runtime>=13,<14" \
    "nvidia-cuda-cccl>=13,<14" "nvidia-cuda-crt>=13,<14" "nvidia-nvvm>=13,<14" "nvidia-curand>=10" "nvidia-cublas>=13"
home=$("$venv/bin/python" -c 'import glob, sysconfig; print(glob.glob(sysconfig.get_paths()["purelib"] + "/nvidia/cu13")[0])')
[ -e "$home/lib64" ] || ln -s lib "$home/lib64"
export CUDA_HOME="$home" CUDA_PATH="$home" CUDA_ROOT="$home" CUDA_TOOLKIT_ROOT_DIR="$home" PATH="$home/bin:$PATH"
# cudarc does not know the newest toolkits; the target is any that is shipped for, as there is no device to ask.
export CUDARC_CUDA_VERSION=13000 CUDA_COMPUTE_CAP="${CUDA_COMPUTE_CAP:-80}"
cargo check --release --workspace --features trainer/cuda --target-dir target/cuda-check
echo "the workspace type-checks with CUDA"
