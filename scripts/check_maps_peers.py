#!/usr/bin/env python3
"""Sets maps of this program beside pytorch-grad-cam's on the same model and images: are they equal, and how long does each take?

    check_maps_peers.py --trainer target/release/trainer --checkpoint runs/squeezenet.safetensors --images FOLDER [--count 8]
                        [--batch 8] [--score-cam] [--json]

Needs: torch, torchvision, grad-cam, safetensors (from PyPI). The checkpoint is a squeezenet1_0 in torchvision's names as `trainer
convert` writes it; both sides see the images prepared in the same way (the whole image resized by Pillow, written as PNG files), explain
its most probable class at the last fire module, and use all cores. Maps are compared behind their ReLU: the largest difference as a
part of the largest value, 1e-4 allowed. Theirs gets the images in batches, since a large one is slow; times include the pass of the
model.
"""
import argparse
import functools
import json
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np
import torch
from PIL import Image
from pytorch_grad_cam import EigenCAM, GradCAM, GradCAMPlusPlus, HiResCAM, LayerCAM, ScoreCAM, XGradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from safetensors import safe_open
from safetensors.torch import load_file
from torchvision.models import squeezenet1_0


class PlusPlus(GradCAMPlusPlus):
    """Theirs without the 1e-6 in the denominator: it is larger than what it is added to wherever a mean over many positions follows."""

    def get_cam_weights(self, input_tensor, target_layers, target_category, activations, grads):
        grads, sums = grads.astype(np.float64), activations.astype(np.float64).sum(axis=(2, 3), keepdims=True)
        below = 2 * grads**2 + sums * grads**3
        alpha = np.where(grads != 0, grads**2 / np.where(below == 0, 1, below), 0)
        return (np.maximum(grads, 0) * alpha).sum(axis=(2, 3))


class Score(ScoreCAM):
    """Theirs with masks resized as in the authors' program: corners are not pinned to corners."""

    def get_cam_weights(self, *args):
        theirs = torch.nn.UpsamplingBilinear2d
        torch.nn.UpsamplingBilinear2d = functools.partial(torch.nn.Upsample, mode="bilinear", align_corners=False)
        try:
            return super().get_cam_weights(*args)
        finally:
            torch.nn.UpsamplingBilinear2d = theirs


METHODS = {
    "grad_cam": GradCAM,
    "grad_cam_pp": PlusPlus,
    "hires_cam": HiResCAM,
    "xgrad_cam": XGradCAM,
    "layer_cam": LayerCAM,
    "eigen_cam": EigenCAM,
}
# Theirs projects on the first component of the uncentred activations and leaves its sign to chance.
SIGN_IS_OPEN = {"eigen_cam"}


def distances(mine, other, sign_is_open):
    """The largest difference as a part of the largest value; where they leave the sign open, of maps to scale, for each sign."""
    if not sign_is_open:
        other = np.maximum(other, 0)
        return [abs(mine - other).max() / max(abs(other).max(), 1e-12)]
    to_scale = [m / max(m.max(), 1e-12) for m in (mine, np.maximum(other, 0), np.maximum(-other, 0))]
    return [abs(to_scale[0] - theirs).max() for theirs in to_scale[1:]]


def load(path):
    with safe_open(path, "pt") as file:
        meta = file.metadata()
    model = squeezenet1_0(num_classes=int(meta["num_classes"]))
    padding = int(meta.get("classifier_padding", "0"))
    model.classifier[1].padding = (padding, padding)
    # ReLUs in place would change what is explained.
    for module in model.modules():
        if isinstance(module, torch.nn.ReLU):
            module.inplace = False
    model.load_state_dict(load_file(path))
    side = json.loads(meta["input_size"])
    side = side if isinstance(side, int) else side[-1]
    return model.eval(), side, [torch.tensor(json.loads(meta[key])).view(3, 1, 1) for key in ("mean", "std")]


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--trainer", default="target/release/trainer")
    p.add_argument("--checkpoint", required=True)
    p.add_argument("--images", required=True)
    p.add_argument("--count", type=int, default=8)
    p.add_argument("--batch", type=int, default=8, help="of theirs")
    p.add_argument("--score-cam", action="store_true", help="512 passes an image, on both sides")
    p.add_argument("--json", action="store_true")
    a = p.parse_args()
    methods = METHODS | ({"score_cam": Score} if a.score_cam else {})
    model, side, (mean, std) = load(a.checkpoint)
    folder = tempfile.TemporaryDirectory()
    work = pathlib.Path(folder.name)
    (work / "images").mkdir()
    pixels = []
    found = sorted(f for f in pathlib.Path(a.images).iterdir() if f.suffix.lower() in (".jpeg", ".jpg", ".png"))
    for i, file in enumerate(found[: a.count]):
        image = Image.open(file).convert("RGB").resize((side, side), Image.Resampling.BILINEAR)
        image.save(work / "images" / f"{i:04}.png")
        pixels.append(torch.tensor(np.asarray(image)).permute(2, 0, 1))
    images = (torch.stack(pixels).float() / 255 - mean) / std
    layer = model.features[-1]
    # torchvision's last fire module ends with a concatenation: what the classifier reads.
    with torch.no_grad():
        classes = model(images).argmax(1)
    targets = [ClassifierOutputTarget(int(c)) for c in classes]
    result, failed = {}, []
    for name, make in methods.items():
        cam = make(model=model, target_layers=[layer])
        # The map itself, before it is scaled and resized.
        saved = {}
        original = cam.get_cam_image

        def keep(*args, original=original, saved=saved, **kwargs):
            saved["map"] = original(*args, **kwargs)
            return saved["map"]

        cam.get_cam_image = keep
        theirs, theirs_seconds = [], 0.0
        for at in range(0, len(images), a.batch):
            few = images[at : at + a.batch].clone()
            begin = time.perf_counter()
            cam(input_tensor=few, targets=targets[at : at + a.batch])
            theirs_seconds += time.perf_counter() - begin
            theirs.append(saved["map"])
        theirs = np.concatenate(theirs)
        out = work / f"{name}.safetensors"
        command = [a.trainer, "explain", "--checkpoint", a.checkpoint, "--images", str(work / "images"), "--method", name,
                   "--class", "top1", "--out", str(out), "--quiet", "--json"]
        ran = subprocess.run(command, capture_output=True, text=True)
        if ran.returncode:
            sys.exit(ran.stderr)
        row = json.loads(ran.stdout.splitlines()[-1])["rows"][0]
        with safe_open(out, "np") as file:
            ours, ours_classes = file.get_tensor(name), file.get_tensor("classes")
        assert (ours_classes == classes.numpy()).all(), "the models do not agree on the classes"
        off = 0.0
        for mine, other in zip(np.maximum(ours, 0), theirs):
            # np.max and np.min hand a NaN on, which is no equality.
            off = np.max([off, np.min(distances(mine, other, name in SIGN_IS_OPEN))])
        result[name] = {"off": float(off), "seconds": row["seconds"] / len(images), "theirs": theirs_seconds / len(images),
                        "ratio": row["seconds"] / theirs_seconds}
        if not off <= 1e-4:
            failed.append(name)
        print(f"{name:12} off by {off:.1e} of the largest value; {result[name]['seconds']:.3f} s an image, "
              f"pytorch-grad-cam {result[name]['theirs']:.3f}: ratio {result[name]['ratio']:.2f}", file=sys.stderr)
    if a.json:
        print(json.dumps({"n": len(images), "torch": torch.__version__, "threads": torch.get_num_threads(), "methods": result}))
    if failed:
        sys.exit(f"not equal to 1e-4: {', '.join(failed)}")


if __name__ == "__main__":
    main()
