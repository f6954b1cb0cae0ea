#!/usr/bin/env python3
"""How far Shap-CAM's det2 rule is off, and whether it knows: its maps against sampled ones, image by image.

    check_det2.py [--images cifar10:test[0..100]] [--permutations 40000] CHECKPOINT...

Prints for each checkpoint, fill and score the share of images whose difference (root mean square over positions) is within twice the
estimate, the sampling's own standard error included; the worst ratio of difference and estimate among images where the difference is
above three standard errors of the sampling; and the share that `auto` trusts (estimate below 5 %).

Needs: target/release/trainer, CIFAR-10, numpy and safetensors (from PyPI).
"""
import argparse
import pathlib
import subprocess
import tempfile

import numpy as np
from safetensors.numpy import load_file

ROOT = pathlib.Path(__file__).resolve().parent.parent


def maps(checkpoint, images, out, **settings):
    command = [ROOT / "target/release/trainer", "explain", "--quiet", "--checkpoint", checkpoint, "--images", images,
               "--method", "shap_cam", "--out", out]
    for key, value in settings.items():
        command += ["--set", f"interpreter.shap_cam.{key}={value}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
    found = load_file(out)
    flat = {name: t.reshape(len(t), -1).astype(float) for name, t in found.items() if name.startswith("shap_cam")}
    error = flat.get("shap_cam.error_estimate", flat.get("shap_cam.standard_error"))
    return flat["shap_cam"], error


def rms(x):
    return np.sqrt((x**2).mean(axis=1))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", default="cifar10:test[0..100]")
    parser.add_argument("--permutations", type=int, default=40000)
    parser.add_argument("checkpoints", nargs="+")
    args = parser.parse_args()
    everything = []
    print(f"{'checkpoint':28}{'fill':14}{'score':10}{'n':>5}{'within':>8}{'worst':>7}{'trusted':>9}")
    with tempfile.TemporaryDirectory() as work:
        out = pathlib.Path(work) / "maps.safetensors"
        for checkpoint in args.checkpoints:
            for fill in ("zero", "channel_mean"):
                for score in ("prob", "log_prob", "rest"):
                    rule, estimate = maps(checkpoint, args.images, out, fill=fill, score=score, estimator="det2")
                    sampled, se = maps(checkpoint, args.images, out, fill=fill, score=score, estimator="mc",
                                       permutations=args.permutations, tolerance=0.0)
                    size, off, se, estimate = rms(rule), rms(rule - sampled), rms(se), rms(estimate)
                    within = off <= 2 * np.sqrt(estimate**2 + se**2)
                    clear = off > 3 * se
                    true = np.sqrt(np.maximum(off**2 - se**2, 0))
                    worst = (true / estimate)[clear].max() if clear.any() else 0
                    everything.append((within, true / estimate * clear))
                    name = pathlib.Path(checkpoint).stem
                    print(f"{name:28}{fill:14}{score:10}{len(off):5}{within.mean():8.3f}{worst:7.2f}"
                          f"{(estimate < 0.05 * size).mean():9.2f}", flush=True)
    within = np.concatenate([w for w, _ in everything])
    ratio = np.concatenate([r for _, r in everything])
    print(f"all: n = {len(within)}, within twice the estimate {within.mean():.4f}, worst ratio {ratio.max():.2f}")


if __name__ == "__main__":
    main()
