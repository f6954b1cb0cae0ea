#!/bin/sh
# The main job in one command: builds the program, then distils a student from checkpoints/wrn-40-2-cifar10
# on the embedded cifar10-mini, measures it and draws its maps.
#
#   scripts/quickstart.sh [SEED]
#
# Needs: git, gcc, and cargo (the script says how to install it). The first build takes some minutes.
set -eu
cd "$(dirname "$0")/.."
. scripts/cargo.sh
seed=${1:-0}
run=runs/quickstart-s$seed

echo "== 1/4 building (some minutes the first time)"
cargo build --release --quiet --package trainer
trainer=target/release/trainer

echo "== 2/4 distilling a student (one to three minutes on two cores; stop it, run it again, and it goes on)"
"$trainer" train configs/quickstart.toml --seed "$seed" --run "$run" --resume

echo "== 3/4 its error on the test images"
"$trainer" eval --checkpoint "$run/last.safetensors" --data cifar10-mini

echo "== 4/4 where it looks, and where its teacher does"
"$trainer" explain --checkpoint "$run/last.safetensors" --images 'cifar10-mini:test[0..8]' \
    --method grad_cam,grad_cam_pp,layer_cam,eigen_cam,score_cam,shap_cam,random --gallery "$run/maps" \
    --beside checkpoints/wrn-40-2-cifar10.safetensors
"$trainer" report "$run"

echo
echo "Open $run/report.html for all of it, $run/maps/index.html for more maps, or: tensorboard --logdir runs"
