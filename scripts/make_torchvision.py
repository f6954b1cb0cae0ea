#!/usr/bin/env python3
"""Writes tests/fixtures/torchvision.safetensors: what torchvision's models make of weights and images that are functions of names.

    make_torchvision.py tests/fixtures/torchvision.safetensors

Needs: torch, torchvision, numpy, safetensors (from PyPI). No weights are stored: value i of the tensor NAME is u(NAME, i), uniform in
[-1/2, 1/2), scaled to torch's usual spread by kind, and tests/tests/torchvision.rs computes the same. For each model, on three
images of 64 x 64 pixels, in eval mode and float64:
    <model>.logits                 (3, 10)
    <model>.<layer>                every 485th activation at each layer where it can be cut
    <model>.<layer>.grad_cam       Grad-CAM of classes 0, 1, 2 by autograd, without its ReLU
"""
import sys

import numpy as np
import torch
import torchvision.models as zoo
from safetensors.numpy import save_file

torch.set_default_dtype(torch.float64)
CLASSES, SIDE, EVERY = 10, 64, 485
CUTS = {
    "vgg16": ["features.3", "features.8", "features.15", "features.22", "features.29", "features.30"],
    "vgg11_bn": ["features.2", "features.6", "features.13", "features.20", "features.27", "features.28"],
    "resnet18": ["layer1", "layer2", "layer3", "layer4"],
    "resnet34": ["layer1", "layer2", "layer3", "layer4"],
    "resnet50": ["layer1", "layer2", "layer3", "layer4"],
    "squeezenet1_0": ["features.2", "features.6", "features.11", "features.12"],
    "squeezenet1_1": ["features.2", "features.5", "features.8", "features.12"],
}


def u(name, count):
    """Uniform in [-1/2, 1/2): a hash of the name and the position."""
    seed = 2166136261
    for byte in name.encode():
        seed = ((seed ^ byte) * 16777619) & 0xFFFFFFFF
    with np.errstate(over="ignore"):
        x = np.arange(count, dtype=np.uint32) * np.uint32(2654435761) + np.uint32(seed)
        x = (x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D)
        x = (x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B)
        x ^= x >> np.uint32(16)
    return x.astype(np.float64) / 2**32 - 0.5


def fill(name, tensor):
    value = u(name, tensor.numel()).reshape(tensor.shape)
    if name.endswith("running_var"):
        value = 1 + 0.4 * value
    elif name.endswith(("running_mean", "bias")):
        value = 0.2 * value
    elif tensor.dim() == 1:
        value = 1 + 0.4 * value
    else:
        value = value * np.sqrt(12) * np.sqrt(2 / np.prod(tensor.shape[1:]))
    return torch.from_numpy(value.astype(np.float32).astype(np.float64))


def main():
    out = {}
    images = torch.from_numpy((4 * u("images", 3 * 3 * SIDE * SIDE)).astype(np.float32).astype(np.float64)).reshape(3, 3, SIDE, SIDE)
    for name, cuts in CUTS.items():
        model = getattr(zoo, name)(num_classes=CLASSES).eval()
        state = model.state_dict()
        with torch.no_grad():
            for key, tensor in state.items():
                if "num_batches" not in key:
                    tensor.copy_(fill(key, tensor))
        kept = {}

        def keep(layer):
            def hook(_, __, output):
                kept[layer] = output.clone()  # what follows may be in place
                kept[layer].retain_grad()
                return kept[layer]

            return hook

        for layer in cuts:
            model.get_submodule(layer).register_forward_hook(keep(layer))
        logits = model(images)
        logits[torch.arange(3), torch.arange(3)].sum().backward()
        out[f"{name}.logits"] = logits.detach().numpy()
        names = [f"layer{i + 1}" for i in range(len(cuts) - 1)] + ["last"]
        if name.startswith("resnet"):
            names = [f"layer{i + 1}" for i in range(len(cuts))]
        for layer, ours in zip(cuts, names):
            features = kept[layer]
            gradient = features.grad
            out[f"{name}.{ours}"] = features.detach().flatten()[::EVERY].float().numpy()
            out[f"{name}.{ours}.grad_cam"] = (gradient.mean((2, 3), keepdim=True) * features).sum(1).detach().float().numpy()
        print(name, logits[0, :3].tolist())
    save_file({k: np.ascontiguousarray(v) for k, v in out.items()}, sys.argv[1])


if __name__ == "__main__":
    main()
