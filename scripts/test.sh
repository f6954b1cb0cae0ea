#!/bin/sh
# All checks and tests: format, lints, documentation, unit and end-to-end tests, and a look at a run's events with
# the real TensorBoard and at exported models with the real ONNX Runtime.
#
#   scripts/test.sh
#
# Needs: git, gcc, Python 3 with venv and PyPI, and cargo (the script says how to install it). Golden files are compared with where
# GOLDEN_DIR names their folder. From nothing, most of the time goes into building.
set -eu
cd "$(dirname "$0")/.."
. scripts/cargo.sh

step() { printf '\n== %s\n' "$*"; }

# Rust's components may be missing in a minimal installation.
for tool in fmt clippy; do
    cargo $tool --version >/dev/null 2>&1 || rustup component add "$(echo $tool | sed s/fmt/rustfmt/)"
done

step "format"
cargo fmt --all --check

# All that is built here is built with the tests' features (`--all-targets`, an example, or a test among the targets): without
# them cargo compiles candle and its relatives a second time.
step "tests"
cargo build --release --workspace --all-targets
cargo test --release --workspace

step "lints"
cargo clippy --release --workspace --all-targets -- -D warnings

step "documentation"
RUSTDOCFLAGS="-D warnings" cargo doc --release --workspace --no-deps --lib --examples

step "a dummy of each kind takes the places that CONTRIBUTING.md names"
python3 scripts/check-lists.py

step "TensorBoard reads what a run writes"
scripts/check-tensorboard.sh

step "ONNX Runtime gets what this program gets"
scripts/check-onnx.sh

step "everything passed"
