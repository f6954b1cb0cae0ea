#!/usr/bin/env python3
"""Times the work of `trainer bench step` in PyTorch, on the CPU or on a card, and prints one JSON line.

Needs: torch (scripts/bench.sh installs it into its own virtual environment); for --mode compile a C++ compiler.
Same work: a WRN student's training step (forward, cross-entropy, backward, SGD), the same with a live
WRN teacher, KD and explanation matching (closed-form Grad-CAM at the last layer), the teacher's
forward pass alone and its own training step. Fixed input, medians.
"""
import argparse
import contextlib
import json
import resource
import statistics
import time

import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    def __init__(self, c_in, c_out, stride):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(c_in)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.shortcut = None
        if c_in != c_out or stride != 1:
            self.shortcut = nn.Conv2d(c_in, c_out, 1, stride, bias=False)

    def forward(self, x):
        o = F.relu(self.bn1(x), inplace=True)
        y = self.conv2(F.relu(self.bn2(self.conv1(o)), inplace=True))
        return y + (x if self.shortcut is None else self.shortcut(o))


class WideResNet(nn.Module):
    def __init__(self, depth, width, classes=10):
        super().__init__()
        n = (depth - 4) // 6
        widths = [16, 16 * width, 32 * width, 64 * width]
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        for g in range(3):
            blocks = [Block(widths[g] if i == 0 else widths[g + 1], widths[g + 1], 2 if g > 0 and i == 0 else 1) for i in range(n)]
            setattr(self, f"layer{g + 1}", nn.Sequential(*blocks))
        self.bn1 = nn.BatchNorm2d(widths[3])
        self.fc = nn.Linear(widths[3], classes)

    def forward(self, x):
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        features = F.relu(self.bn1(x))
        return features, self.fc(features.mean((2, 3)))


def wrn(name):
    _, depth, width = name.split("-")
    return WideResNet(int(depth), int(width))


def cam(model, features, labels):
    return F.relu(torch.einsum("nk,nkhw->nhw", model.fc.weight[labels], features) / 64)


def median_ms(step, repeats, wait):
    for _ in range(2):
        step()
    wait()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        step()
        wait()
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--student", default="wrn-16-2")
    p.add_argument("--teacher", default="wrn-40-2")
    p.add_argument("--batch", type=int, default=128)
    p.add_argument("--repeats", type=int, default=5)
    p.add_argument("--threads", type=int, default=torch.get_num_threads())
    p.add_argument("--mode", choices=["nchw", "channels_last", "compile"], default="channels_last")
    p.add_argument("--dtype", choices=["f32", "bf16"], default="f32", help="bf16: autocast")
    p.add_argument("--device", default="cpu")
    p.add_argument("--only", help="one of the four works")
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    torch.manual_seed(0)
    layout = torch.contiguous_format if a.mode == "nchw" else torch.channels_last
    # A card's way of f32 is TF32 unless it is told otherwise; its fastest algorithms have to be looked for.
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    device = torch.device(a.device)
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    student, teacher = (wrn(name).to(device, memory_format=layout) for name in (a.student, a.teacher))
    teacher.eval()
    x = torch.randn(a.batch, 3, 32, 32).to(device, memory_format=layout)
    y = torch.randint(0, 10, (a.batch,)).to(device)

    def precision():
        return torch.autocast(device.type, dtype=torch.bfloat16) if a.dtype == "bf16" else contextlib.nullcontext()

    def compiled(f):
        return torch.compile(f) if a.mode == "compile" else f

    def optimiser(model):
        return torch.optim.SGD(model.parameters(), 0.01, 0.9, weight_decay=5e-4, nesterov=True)

    def training(model, loss):
        opt, loss = optimiser(model), compiled(loss)

        def step():
            opt.zero_grad(set_to_none=True)
            with precision():
                value = loss()
            value.backward()
            opt.step()
        return step

    def ce(model):
        return lambda: F.cross_entropy(model(x)[1].float(), y)

    def kd_loss():
        with torch.no_grad():
            tf, tl = teacher(x)
            tl, tm = tl.float(), cam(teacher, tf.float(), y)
        f, l = student(x)
        f, l = f.float(), l.float()
        soft = F.kl_div(F.log_softmax(l / 4, 1), F.softmax(tl / 4, 1), reduction="batchmean") * 16
        return 0.1 * F.cross_entropy(l, y) + 0.9 * soft + 0.01 * (cam(student, f, y) - tm).square().sum((1, 2)).mean()

    forward = compiled(teacher)

    def infer():
        with torch.no_grad(), precision():
            forward(x)

    works = {
        "train_ms": lambda: training(student, ce(student)),
        "kd_ms": lambda: training(student, kd_loss),
        "teacher_ms": lambda: infer,
        "teacher_train_ms": lambda: training(teacher.train(), ce(teacher)),
    }
    result = {name: median_ms(work(), a.repeats, wait) for name, work in works.items() if a.only in (None, name)}
    result |= {"threads": a.threads, "mode": a.mode, "dtype": a.dtype, "torch": torch.__version__, "batch": a.batch, "device": a.device}
    result["peak_rss_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps(result))


if __name__ == "__main__":
    main()
