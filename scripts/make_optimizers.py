#!/usr/bin/env python3
"""Writes tests/fixtures/optimizers.safetensors: ten steps of AdamW and SGD, by PyTorch in float64.

    make_optimizers.py tests/fixtures/optimizers.safetensors

Needs: torch, numpy, safetensors (from PyPI). The gradients g are given, they do not depend on the parameters p.
Steps t = 1..10 with lr_t = 0.01 (1 - (t - 1)/10):

adamw         p -= lr_t wd p; m = b1 m + (1 - b1) g; v = b2 v + (1 - b2) g^2;
              p -= lr_t m/(1 - b1^t) / (sqrt(v/(1 - b2^t)) + eps); b1 = 0.9, b2 = 0.999, eps = 1e-8, wd = 0.05
sgd_nesterov  g += wd p; m = 0.9 m + g; p -= lr_t (g + 0.9 m); wd = 5e-4, m = 0 at the start
sgd_reset     g += wd p; m = 0.9 m + g; p -= lr_t m; wd = 5e-4, m = 0 at the start and again after step 5

Keys: start (37,), gradients (10, 37), lr (10,), and adamw, sgd_nesterov, sgd_reset (10, 37): the parameters after each
step. Starts and gradients are representable in f32. The gradient of element 0 is 0 in every step, that of element 1
about 1e-8, where AdamW's eps decides.
"""
import sys

import numpy as np
import torch
from safetensors.numpy import save_file

torch.set_default_dtype(torch.float64)
torch.manual_seed(22)
STEPS, SIZE, RESET = 10, 37, 5


def path(start, gradients, lr, make, reset=None):
    """The parameters after each step; after `reset` steps the optimizer is made anew."""
    p = torch.nn.Parameter(start.clone())
    optimizer, after = make([p]), []
    for step in range(STEPS):
        if step == reset:
            optimizer = make([p])
        optimizer.param_groups[0]["lr"] = lr[step].item()
        p.grad = gradients[step].clone()
        optimizer.step()
        after.append(p.detach().clone())
    return torch.stack(after)


def main():
    start, gradients = torch.randn(SIZE), torch.randn(STEPS, SIZE)
    gradients[:, 0] = 0
    gradients[:, 1] *= 1e-8
    start, gradients = start.float().double(), gradients.float().double()
    lr = 0.01 * (1 - torch.arange(STEPS) / STEPS)
    adamw = lambda p: torch.optim.AdamW(p, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.05)
    sgd = lambda nesterov: lambda p: torch.optim.SGD(p, momentum=0.9, nesterov=nesterov, weight_decay=5e-4)
    out = {
        "start": start,
        "gradients": gradients,
        "lr": lr,
        "adamw": path(start, gradients, lr, adamw),
        "sgd_nesterov": path(start, gradients, lr, sgd(True)),
        "sgd_reset": path(start, gradients, lr, sgd(False), RESET),
    }
    assert all(v.isfinite().all() for v in out.values())
    meta = {"made_by": f"scripts/make_optimizers.py, torch {torch.__version__.split('+')[0]}"}
    save_file({k: np.ascontiguousarray(v.numpy()) for k, v in out.items()}, sys.argv[1], metadata=meta)
    print({k: [f"{x:.5f}" for x in v[-1, :4]] for k, v in out.items() if k in ("adamw", "sgd_nesterov", "sgd_reset")})


if __name__ == "__main__":
    main()
