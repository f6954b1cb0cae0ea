#!/bin/sh
# Builds the program and its tests for NVIDIA cards on a machine without one, and packs what such a machine needs.
#
#   scripts/build-cuda.sh [FILE.tar.xz]          (default: target/trainer-cuda.tar.xz)
#
# Compiler and libraries come from PyPI (scripts/cuda.sh). The driver's own library does not, so the program is linked against a
# stand-in that has the functions that its bindings know and says of each that there is no card; where there is a driver, its library
# is found instead. The same for libcurand and libnvrtc, which candle links and this program never needs. cuBLAS and the CUDA
# runtime are needed for real at run time: PyTorch's wheels bring them, and start.sh in the package looks there.
# Cards from compute capability 8.0 on (CUDA_COMPUTE_CAP), drivers from 580 on: kernels are PTX, which newer cards compile as they load it.
#
# Needs: Python 3 with venv, gcc, xz, 10 GB of disk. Unpacked, scripts/check-gpu.sh in it proves the package on a machine with a card.
set -eu
cd "$(dirname "$0")/.."
. scripts/cargo.sh
. scripts/cuda.sh
package=${1:-target/trainer-cuda.tar.xz}
target=$PWD/target/cuda-build
stage=$target/trainer-cuda
mkdir -p "$target/stubs" "$target/libs"

# Libraries by the names that the linker looks for.
for lib in cudart cublas cublasLt curand nvrtc; do
    found=$(ls "$CUDA_HOME"/lib/lib$lib.so.* | grep -v builtins | head -1)
    ln -sf "$found" "$target/libs/lib$lib.so"
done

# A stand-in for a library: every function of a list returns a number.
stand_in() { # NAME SONAME RETURNS FILE-OF-FUNCTIONS
    { echo "/* A stand-in: see scripts/build-cuda.sh. */"; sed "s/.*/int &(void) { return $3; }/" "$4"; } > "$target/stubs/$1.c"
    gcc -shared -fPIC -w -Wl,-soname,"$2" "$target/stubs/$1.c" -o "$target/stubs/$2"
    ln -sf "$2" "$target/stubs/lib$1.so"
}
# Flags that stay the same, so that nothing is built twice.
export RUSTFLAGS="-L native=$target/stubs -L native=$target/libs" CARGO_TARGET_DIR="$target"
# The library needs no linker; what its bindings leave open is what the driver must have.
cargo build --release --package trainer --features cuda --lib
nm --undefined-only "$target"/release/deps/libcudarc-*.rlib "$target"/release/deps/libcandle_core-*.rlib | awk '{print $2}' \
    | grep '^cu[A-Z]' | sort -u > "$target/stubs/cuda.txt"
[ -s "$target/stubs/cuda.txt" ] || { echo "no function of the driver's was found in the libraries that were built" >&2; exit 1; }
# CUDA_ERROR_NO_DEVICE.
stand_in cuda libcuda.so.1 100 "$target/stubs/cuda.txt"
cargo build --release --package trainer --features cuda
cargo test --release --no-run --package testkit --package kernels --features trainer/cuda,kernels/cuda,kernels/cuda-on-host \
    --test device --test engines --test trajectory --test gradients > "$target/tests.log" 2>&1 || { cat "$target/tests.log"; exit 1; }

# PTX of a newer CUDA than the driver's is refused by it: see scripts/cuda.sh.
newest=$(cat "$target"/release/build/*/out/*.ptx | sed -n 's/^\.version //p' | sort -uV | tail -1)
[ -n "$newest" ] && [ "$(printf '%s\n9.0\n' "$newest" | sort -V | tail -1)" = 9.0 ] || {
    echo "the kernels are PTX \"$newest\"; drivers of CUDA 13.0 take up to 9.0 (made by an older nvcc: remove $target)" >&2
    exit 1
}

# A generator of random numbers is made with every device, and never used; whoever did would be told that it failed.
nm -D --undefined-only "$target/release/trainer" | awk '{print $2}' | sed 's/@.*//' | grep '^curand[A-Z]' | sort -u > "$target/stubs/curand.txt"
nm -D --undefined-only "$target/release/trainer" | awk '{print $2}' | sed 's/@.*//' | grep '^nvrtc[A-Z]' | sort -u > "$target/stubs/nvrtc.txt"
rm -rf "$stage"
mkdir -p "$stage/lib/driver" "$stage/lib/unused" "$stage/tests" "$stage/scripts"
{ grep -E 'Create|Seed|SetStream|Destroy' "$target/stubs/curand.txt" | sed 's/.*/int &(void) { return 0; }/'
  grep -vE 'Create|Seed|SetStream|Destroy' "$target/stubs/curand.txt" | sed 's/.*/int &(void) { return 999; }/'; } > "$target/stubs/curand.c"
sed 's/.*/int &(void) { return 11; }/' "$target/stubs/nvrtc.txt" > "$target/stubs/nvrtc.c"
for lib in curand nvrtc; do
    soname=$(objdump -p "$target/release/trainer" | awk -v lib="lib$lib.so" '$1 == "NEEDED" && index($2, lib) == 1 {print $2}')
    [ -n "$soname" ] || continue
    # The real one's functions have a version, its name; the loader wants it of a library that it has found.
    echo "$soname { *; };" > "$target/stubs/$lib.version"
    gcc -shared -fPIC -w -Wl,-soname,"$soname" -Wl,--version-script="$target/stubs/$lib.version" "$target/stubs/$lib.c" \
        -o "$stage/lib/unused/$soname"
done
cp "$target/stubs/libcuda.so.1" "$stage/lib/driver/"
strip -o "$stage/trainer" "$target/release/trainer"
sed -n 's/.*(\(.*\/deps\/\([a-z_]*\)-[0-9a-f]*\)).*/\1 \2/p' "$target/tests.log" | sort -u | while read -r file name; do
    case $file in /*) ;; *) file=$PWD/$file ;; esac
    strip -o "$stage/tests/$name" "$file"
done
cp scripts/check-gpu.sh scripts/check_gpu.py scripts/bench_peers.py "$stage/scripts/"
cp -r configs "$stage/configs"
mkdir -p "$stage/checkpoints" "$stage/fixtures"
cp checkpoints/wrn-40-2-cifar10.safetensors "$stage/checkpoints/"
cp -r tests/fixtures/. "$stage/fixtures/"
git rev-parse HEAD > "$stage/commit"
cat > "$stage/start.sh" <<'START'
#!/bin/sh
# Starts a program of this package with the libraries that it needs: start.sh ./trainer train ... --device cuda
here=$(cd "$(dirname "$0")" && pwd)
# cuBLAS and the CUDA runtime, of version 13: from an installation, or from PyTorch's wheels.
found=$(for python in "${PYTHON:-}" python3 python; do
    [ -n "$python" ] && "$python" -c 'import glob, site, sysconfig
roots = {sysconfig.get_paths()["purelib"], *site.getsitepackages()}
print(":".join(p for r in roots for p in glob.glob(r + "/nvidia/*/lib")))' 2>/dev/null && break
done)
path=${LD_LIBRARY_PATH:-}:$found:/usr/local/cuda/lib64
# The stand-ins come last, and the driver's only where the loader finds no driver.
LD_LIBRARY_PATH=$path:$here/lib/unused ldd "$here/trainer" | grep -q 'libcuda\.so\.1 => not found' && path=$path:$here/lib/driver
LD_LIBRARY_PATH=$path:$here/lib/unused exec "$@"
START
chmod +x "$stage/start.sh" "$stage"/scripts/*.sh
tar -C "$target" --sort=name -cf - trainer-cuda | xz -T2 -9 --lzma2=preset=9,dict=192MiB > "$package"
[ "$(stat -c %s "$package")" -lt $((64 << 20)) ] || { echo "$package has 64 MiB or more" >&2; exit 1; }
echo "$package: $(du -m "$package" | cut -f1) MiB, unpacked $(du -sm "$stage" | cut -f1) MiB. Needed at run time:"
objdump -p "$stage/trainer" | awk '$1 == "NEEDED" {print "  " $2}'
echo "On this machine, with the stand-ins, and with cuBLAS from PyPI:"
mkdir -p "$target/needed"
for lib in cublas cublasLt cudart; do
    ln -sf "$CUDA_HOME"/lib/lib$lib.so.13 "$target/needed/"
done
LD_LIBRARY_PATH=$target/needed PYTHON=false "$stage/start.sh" "$stage/trainer" list methods > /dev/null
PYTHON="$cuda_venv/bin/python" "$stage/start.sh" "$stage/trainer" eval --checkpoint "$stage/checkpoints/wrn-40-2-cifar10.safetensors" --data cifar10-mini --device cuda || true
