# Sourced by the other scripts, in the repository's root: NVIDIA's compiler and libraries from PyPI in target/cuda, and the
# environment that builds with them on a machine without a card.
cuda_venv=$PWD/target/cuda
if [ ! -x "$cuda_venv/bin/python" ]; then
    python3 -m venv "$cuda_venv"
fi
# A driver compiles PTX of its own version of CUDA or an older one, never a newer one's: 13.0 is what drivers from 580 on take.
"$cuda_venv/bin/pip" install --quiet --disable-pip-version-check "nvidia-cuda-nvcc==13.0.*" "nvidia-cuda-runtime==13.0.*" \
    "nvidia-cuda-cccl==13.0.*" "nvidia-cuda-crt==13.0.*" "nvidia-nvvm==13.0.*" "nvidia-cuda-nvrtc==13.0.*" "nvidia-curand>=10,<11" \
    "nvidia-cublas==13.0.*"
CUDA_HOME=$("$cuda_venv/bin/python" -c 'import glob, sysconfig; print(glob.glob(sysconfig.get_paths()["purelib"] + "/nvidia/cu13")[0])')
[ -e "$CUDA_HOME/lib64" ] || ln -s lib "$CUDA_HOME/lib64"
# cudarc does not know the newest toolkits; the target is the oldest that is shipped for, as there is no device to ask.
export CUDA_HOME CUDA_PATH="$CUDA_HOME" CUDA_ROOT="$CUDA_HOME" CUDA_TOOLKIT_ROOT_DIR="$CUDA_HOME" PATH="$CUDA_HOME/bin:$PATH"
export CUDARC_CUDA_VERSION=13000 CUDA_COMPUTE_CAP="${CUDA_COMPUTE_CAP:-80}"
