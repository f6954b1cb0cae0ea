#!/bin/sh
# Proves the device kernels on a machine with an NVIDIA card, in at most 8 minutes, and writes what it saw as JSON.
#
#   scripts/check-gpu.sh [OUT]              (default OUT: gpu)
#
# Run it in the unpacked package of scripts/build-cuda.sh. Needs: Python 3; with PyTorch in it (PYTHON names another one) the same
# steps are timed there too, in the same call. DEVICE: cuda, cuda:N, or cpu for a rehearsal without a card. In OUT: report.json, and in logs.tar.gz what every part has printed.
set -eu
cd "$(dirname "$0")/.."
exec "${PYTHON:-python3}" scripts/check_gpu.py "${1:-gpu}"
