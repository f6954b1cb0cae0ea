#!/usr/bin/env python3
"""Times the work of `trainer bench forward` with torchvision's models on the CPU, and prints one JSON line: milliseconds by architecture.

Needs: torch, torchvision (scripts/bench.sh installs them); for --mode compile a C++ compiler. Random weights, eval mode, medians.
"""
import argparse
import json
import statistics
import time

import torch
import torchvision.models as zoo

p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
p.add_argument("--arch", action="append")
p.add_argument("--batch", type=int, default=8)
p.add_argument("--side", type=int, default=224)
p.add_argument("--repeats", type=int, default=5)
p.add_argument("--threads", type=int, default=torch.get_num_threads())
p.add_argument("--mode", choices=["nchw", "channels_last", "compile", "frozen"], default="channels_last", help="frozen: torch.jit's graph with BatchNorm folded")
a = p.parse_args()
torch.set_num_threads(a.threads)
torch.manual_seed(0)
layout = torch.contiguous_format if a.mode in ("nchw", "frozen") else torch.channels_last
x = torch.randn(a.batch, 3, a.side, a.side).to(memory_format=layout)
result = {}
with torch.inference_mode(a.mode != "frozen"), torch.no_grad():
    for arch in a.arch or ["vgg16", "resnet18", "resnet50", "squeezenet1_1"]:
        model = getattr(zoo, arch)(weights=None).eval().to(memory_format=layout)
        if a.mode == "compile":
            model = torch.compile(model)
        if a.mode == "frozen":
            model = torch.jit.optimize_for_inference(torch.jit.trace(model, x))
        times = []
        for _ in range(a.repeats + 2):
            start = time.perf_counter()
            model(x)
            times.append((time.perf_counter() - start) * 1e3)
        result[arch] = statistics.median(times[2:])
print(json.dumps(result | {"threads": a.threads, "mode": a.mode, "torch": torch.__version__, "batch": a.batch, "side": a.side}))
