#!/usr/bin/env python3
"""How far PyTorch's own f32 leaves the recorded float64 training steps, by layout and number of threads.

    golden_f32.py GOLDEN_DIR

Needs: torch, safetensors; GOLDEN_DIR with train-wrn-16-2.safetensors and ../weights beside it.
Prints, for each way, the largest relative deviation of a loss term at each of the ten steps.
"""
import json
import pathlib
import sys

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file

from bench_peers import Block, cam, wrn


def raw_block(self, x):
    """These checkpoints' shortcut reads x itself."""
    y = self.conv2(F.relu(self.bn2(self.conv1(F.relu(self.bn1(x))))))
    return y + (x if self.shortcut is None else self.shortcut(x))


def load(folder, name, pixels, dtype, layout):
    file = folder / ".." / "weights" / f"{name}.safetensors"
    weights = load_file(file)
    model = wrn(name)
    if "layer1.0.shortcut.weight" not in weights:
        model.layer1[0].shortcut = None
    model.load_state_dict(weights, strict=False)
    metadata = safe_open(file, "pt").metadata()
    mean, std = (torch.tensor(json.loads(metadata[k]), dtype=torch.float64).view(3, 1, 1) for k in ("mean", "std"))
    return model.to(dtype).to(memory_format=layout), ((pixels - mean) / std).to(dtype).to(memory_format=layout)


def deviations(folder, golden, dtype, layout, threads):
    torch.set_num_threads(threads)
    pixels, labels = golden["images_u8"].double() / 255, golden["labels"]
    student, xs = load(folder, "wrn-16-2", pixels, dtype, layout)
    teacher, xt = load(folder, "wrn-40-1", pixels, dtype, layout)
    student.train(), teacher.eval()
    opt = torch.optim.SGD(student.parameters(), 0.001, 0.9, nesterov=True, weight_decay=5e-4)
    result = []
    for step in range(10):
        batch = slice(step % 2 * 32, step % 2 * 32 + 32)
        y = labels[batch]
        with torch.no_grad():
            ft, zt = teacher(xt[batch])
            target = cam(teacher, ft, y)
        fs, zs = student(xs[batch])
        ce = F.cross_entropy(zs, y)
        kd = F.kl_div(F.log_softmax(zs / 4, 1), F.softmax(zt / 4, 1), reduction="batchmean") * 16
        explanation = (cam(student, fs, y) - target).square().sum((1, 2)).mean()
        total = 0.1 * ce + 0.9 * kd + 0.01 * explanation
        opt.zero_grad()
        total.backward()
        opt.step()
        terms = {"ce": ce, "kd": kd, "explanation": explanation, "total": total}
        result.append(max(abs(t.item() / golden[k][step].item() - 1) for k, t in terms.items()))
    return result


def main():
    folder = pathlib.Path(sys.argv[1])
    golden = load_file(folder / "train-wrn-16-2.safetensors")
    Block.forward = raw_block
    ways = [(torch.float64, torch.contiguous_format, 1)]
    ways += [(torch.float32, layout, n) for n in (1, 2, 3) for layout in (torch.contiguous_format, torch.channels_last)]
    for dtype, layout, threads in ways:
        row = " ".join(f"{d:.0e}" for d in deviations(folder, golden, dtype, layout, threads))
        print(f"{dtype}  {layout}  {threads} threads: {row}")


if __name__ == "__main__":
    main()
