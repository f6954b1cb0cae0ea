#!/usr/bin/env python3
"""Writes tests/fixtures/wrn-10-1.pth, a state dict as torch.save leaves it with another library's names, and
the logits of that network for four random images beside it.

    make_pth.py tests/fixtures

Needs: torch, numpy, safetensors (from PyPI).
"""
import pathlib
import sys

import numpy as np
import torch
from safetensors.numpy import save_file

from bench_peers import wrn

RENAME = [("fc.", "head."), ("bn", "norm"), ("shortcut.", "down.")]


def main():
    torch.manual_seed(1)
    folder = pathlib.Path(sys.argv[1])
    model = wrn("wrn-10-1").eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if "running_mean" in name or name.endswith("bn.bias"):
                tensor.normal_(0, 0.1)
            elif "running_var" in name:
                tensor.uniform_(0.5, 1.5)
    state = {}
    for name, tensor in model.state_dict().items():
        for a, b in RENAME:
            name = name.replace(a, b)
        state["module." + name] = tensor
    torch.save({"epoch": 3, "state_dict": state}, folder / "wrn-10-1.pth")
    pixels = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        logits = model.double()((pixels / 255.0 - 0.5).double() / 0.25)[1]
    out = {"images_u8": pixels.numpy(), "logits": logits.numpy()}
    save_file({k: np.ascontiguousarray(v) for k, v in out.items()}, folder / "wrn-10-1.outputs.safetensors")


if __name__ == "__main__":
    main()
