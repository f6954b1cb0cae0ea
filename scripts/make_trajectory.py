#!/usr/bin/env python3
"""Writes tests/fixtures/trajectory.safetensors: training steps of a tiny network, by PyTorch in float64.

    make_trajectory.py tests/fixtures/trajectory.safetensors

Needs: torch, numpy, safetensors (from PyPI). The test `trajectory` must follow these steps: total =
0.3 CE + 0.7 KD (T = 3) + 0.05 explanation (Grad-CAM, raw L2, ReLU on both maps) + 2 attention, SGD with Nesterov
momentum and weight decay on everything, BatchNorm in train mode in the student and in eval mode in the
teacher. Behind it lie step 0's explanation terms and gradients for other methods and distances, by autograd
from the definitions, not from closed forms.

Keys with the prefix `long.` hold a second run of 12 steps from the same weights, with the same data and terms. Four steps
are an epoch; s = 0..11 counts steps, u = s/4 is the epoch time before a step, the weights are
    ce 0.3;  kd 0.7 min(u/1.5, 1);  explanation 0.05 while u < 2, then 0;  attention 2.
A term of weight 0 is stored as NaN (kd in step 0, explanation from step 8 on).
    gradient g of the total over all parameters, norm = |g|;  g *= clip/norm if norm > clip (no 1e-6 as in PyTorch)
    g += 5e-4 p;  m = 0.9 m + g;  p -= lr m          (SGD without Nesterov; weight decay after the clipping)
    lr = 0.05 in epoch 1, 0.01 in epoch 2, 0.002 in epoch 3, and m = 0 at the start of each
    average += (1 - d)/(1 - d^t) (value - average), t = s + 1, d = 0.9, of parameters and BatchNorm's running statistics
`long.{ce,kd,explanation,attention,total,norm,lr}` are (12,): the terms unweighted, total weighted, norm before the
clipping; `long.clip` (1,); `long.final.*` and `long.ema.*` are named as `final.*`.
"""
import sys

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.numpy import save_file
from torch import nn

torch.set_default_dtype(torch.float64)
torch.manual_seed(20)
CLASSES, SIDE, IMAGES, BATCH, STEPS = 5, 12, 16, 8, 10
LONG_STEPS, EPOCH, CLIP, EMA = 12, 4, 0.272, 0.9
MEAN, STD = [0.5, 0.45, 0.4], [0.25, 0.2, 0.3]


def conv(c_in, c_out, stride=1):
    return nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)


class Residual(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.inner = nn.Sequential(conv(c, c), nn.BatchNorm2d(c), nn.ReLU(), conv(c, c))

    def forward(self, x):
        return x + self.inner(x)


class Net(nn.Module):
    """The list in tests/tests/trajectory.rs; entries without weights keep its numbering."""

    def __init__(self, a, b):
        super().__init__()
        self.layers = nn.ModuleList([
            conv(3, a), nn.BatchNorm2d(a), nn.ReLU(), nn.Identity(),  # cut layer1
            Residual(a), nn.Identity(),                               # cut layer2
            nn.MaxPool2d(2), conv(a, b), nn.BatchNorm2d(b), nn.ReLU(), nn.Identity(),  # cut layer3
            conv(b, b), nn.BatchNorm2d(b), nn.ReLU(),
        ])
        self.fc = nn.Linear(b, CLASSES)

    def forward(self, x):
        cuts = []
        for i, layer in enumerate(self.layers):
            x = layer(x)
            if i in (3, 5, 10):
                cuts.append(x)
        return cuts, x, self.fc(x.mean((2, 3)))

    def named(self):
        return {k.replace(".inner", ""): v for k, v in self.state_dict().items() if "num_batches" not in k}


def attention(cuts_s, cuts_t):
    unit = lambda m: m / (m.square().sum(1, keepdim=True) + 1e-12).sqrt()
    at = lambda f: unit(f.square().mean(1).flatten(1))
    return sum((at(s) - at(t.detach())).square().mean() for s, t in zip(cuts_s, cuts_t))


def gradient(net, features, labels):
    """d logit / d A by autograd, still a function of the classifier's weights."""
    logits = net.fc(features.mean((2, 3)))
    return torch.autograd.grad(logits.gather(1, labels[:, None]).sum(), features, create_graph=True)[0]


def grad_cam(net, features, labels):
    return (gradient(net, features, labels).mean((2, 3), keepdim=True) * features).sum(1)


def grad_cam_pp(net, features, labels):
    g = gradient(net, features, labels)
    s = features.sum((2, 3), keepdim=True)
    denominator = 2 * g**2 + s * g**3
    a = torch.where(denominator == 0, 0.0, g**2 / torch.where(denominator == 0, 1.0, denominator))
    return ((a * F.relu(g)).sum((2, 3), keepdim=True) * features).sum(1)


def shap_cam_mean(net, features, labels):
    """Shapley values of the positions under the logit, by one permutation: the game is additive."""
    n, k, h, w = features.shape
    fill = features.mean((2, 3), keepdim=True)
    values = []
    for p in range(h * w):
        present = torch.zeros(h * w, dtype=torch.bool)
        with_p = present.clone()
        with_p[p] = True
        v = []
        for mask in (present, with_p):
            masked = torch.where(mask.view(1, 1, h, w), features, fill)
            v.append(net.fc(masked.mean((2, 3))).gather(1, labels[:, None])[:, 0])
        values.append(v[1] - v[0])
    return torch.stack(values, 1).view(n, h, w)


def distance(kind, s, t):
    s, t = s.flatten(1), t.detach().flatten(1)
    unit = lambda m: m / (m.square().sum(1, keepdim=True) + 1e-12).sqrt()
    if kind == "raw_l2":
        return (s - t).square().sum(1).mean()
    if kind == "at_l2":
        return (unit(s) - unit(t)).square().mean()
    return (1 - (unit(s) * unit(t)).sum(1)).mean()


def all_class_pooled(net, features):
    maps = torch.einsum("ck,nkhw->nchw", net.fc.weight, features)
    return F.adaptive_avg_pool2d(maps, 2)


def terms(student, teacher, x, y):
    with torch.no_grad():
        cuts_t, _, zt = teacher(x)
    _, ft, _ = teacher(x)
    cuts_s, fs, zs = student(x)
    ce = F.cross_entropy(zs, y)
    kd = F.kl_div(F.log_softmax(zs / 3, 1), F.softmax(zt / 3, 1), reduction="batchmean") * 9
    ex = distance("raw_l2", F.relu(grad_cam(student, fs, y)), F.relu(grad_cam(teacher, ft, y)))
    return ce, kd, ex, attention(cuts_s, cuts_t)


def sgd(net, lr, nesterov):
    return torch.optim.SGD(net.parameters(), lr, momentum=0.9, nesterov=nesterov, weight_decay=5e-4)


def long_run(student, teacher, images, labels):
    """The second run; trains `student`."""
    out = {k: [] for k in ("ce", "kd", "explanation", "attention", "total", "norm", "lr")}
    average = {k: torch.zeros_like(v) for k, v in student.named().items()}
    for step in range(LONG_STEPS):
        epoch, u = 1 + step // EPOCH, step / EPOCH
        if step % EPOCH == 0:  # the learning rate drops at the start of epochs 2 and 3, and the momentum is lost
            lr = 0.05 * 0.2 ** (epoch - 1)
            opt = sgd(student, lr, nesterov=False)
        weights = [0.3, 0.7 * min(u / 1.5, 1.0), 0.05 if u < 2 else 0.0, 2.0]
        batch = slice(step % 2 * BATCH, (step % 2 + 1) * BATCH)
        found = terms(student, teacher, images[batch], labels[batch])
        total = sum(w * term for w, term in zip(weights, found) if w > 0)
        opt.zero_grad()
        total.backward()
        norm = torch.cat([p.grad.flatten() for p in student.parameters()]).norm()
        if norm > CLIP:
            for p in student.parameters():
                p.grad *= CLIP / norm
        opt.step()
        t = step + 1
        for key, value in student.named().items():
            average[key] += (1 - EMA) / (1 - EMA**t) * (value - average[key])
        values = [term.item() if w > 0 else np.nan for w, term in zip(weights, found)]
        for key, value in zip(out, (*values, total.item(), norm.item(), lr)):
            out[key].append(value)
    out = {k: np.array(v) for k, v in out.items()} | {"clip": np.array([CLIP])}
    out.update({"final." + k: v.clone().numpy() for k, v in student.named().items()})
    out.update({"ema." + k: v.numpy() for k, v in average.items()})
    return {"long." + k: v for k, v in out.items()}


def main():
    student, teacher = Net(8, 12), Net(6, 10).eval()
    with torch.no_grad():
        for net in (student, teacher):
            for name, tensor in net.state_dict().items():
                if "running_var" in name:
                    tensor.uniform_(0.5, 1.5)
                elif "running_mean" in name or (tensor.dim() == 1 and "bias" in name):
                    tensor.normal_(0, 0.1)
                elif tensor.dim() == 1 and "num_batches" not in name:
                    tensor.uniform_(0.5, 1.5)
                if tensor.is_floating_point():
                    tensor.copy_(tensor.float().double())  # representable in a checkpoint
    pixels = torch.randint(0, 256, (IMAGES, 3, SIDE, SIDE), dtype=torch.uint8)
    labels = torch.randint(0, CLASSES, (IMAGES,))
    images = (pixels / 255.0 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    out = {"images_u8": pixels.numpy(), "labels": labels.numpy()}
    keep = lambda prefix, net: out.update({prefix + k: v.clone().numpy() for k, v in net.named().items()})
    keep("student.", student)
    keep("teacher.", teacher)

    # Step 0 under other methods and distances.
    start = {k: v.clone() for k, v in student.state_dict().items()}
    batch = slice(0, BATCH)
    for method in (grad_cam, grad_cam_pp, shap_cam_mean):
        for kind in ("raw_l2", "at_l2", "cosine"):
            student.zero_grad()
            _, ft, _ = teacher(images[batch])
            _, fs, _ = student(images[batch])
            maps = [F.relu(method(net, f, labels[batch])) for net, f in ((student, fs), (teacher, ft))]
            term = distance(kind, *maps)
            term.backward()
            key = f"terms.{method.__name__}.{kind}"
            out[key] = np.array([term.item()])
            out[key + ".grad.fc.weight"] = student.fc.weight.grad.numpy().copy()
            out[key + ".grad.layers.0.weight"] = student.layers[0].weight.grad.numpy().copy()
            student.load_state_dict(start)
    student.zero_grad()
    _, ft, _ = teacher(images[batch])
    _, fs, _ = student(images[batch])
    term = F.mse_loss(all_class_pooled(student, fs), all_class_pooled(teacher, ft).detach())
    term.backward()
    out["terms.all_class_pooled"] = np.array([term.item()])
    out["terms.all_class_pooled.grad.fc.weight"] = student.fc.weight.grad.numpy().copy()
    student.load_state_dict(start)

    opt = sgd(student, 0.05, nesterov=True)
    losses = {k: [] for k in ("ce", "kd", "explanation", "attention", "total")}
    for step in range(STEPS):
        batch = slice(step % 2 * BATCH, (step % 2 + 1) * BATCH)
        ce, kd, ex, at = terms(student, teacher, images[batch], labels[batch])
        total = 0.3 * ce + 0.7 * kd + 0.05 * ex + 2 * at
        opt.zero_grad()
        total.backward()
        if step == 0:
            grads = {k.replace(".inner", ""): p.grad.numpy().copy() for k, p in student.named_parameters()}
            out.update({"grad0." + k: g for k, g in grads.items()})
        opt.step()
        for key, value in zip(losses, (ce, kd, ex, at, total)):
            losses[key].append(value.item())
    out.update({k: np.array(v) for k, v in losses.items()})
    keep("final.", student)
    student.load_state_dict(start)
    out.update(long_run(student, teacher, images, labels))
    meta = {"mean": str(MEAN), "std": str(STD), "made_by": f"scripts/make_trajectory.py, torch {torch.__version__.split('+')[0]}"}
    save_file({k: np.ascontiguousarray(v) for k, v in out.items()}, sys.argv[1], metadata=meta)
    series = {k: v for k, v in out.items() if k in losses or k.removeprefix("long.") in (*losses, "norm", "lr")}
    print({k: [f"{x:.5f}" for x in v] for k, v in series.items()})


if __name__ == "__main__":
    main()
