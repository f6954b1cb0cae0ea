#!/usr/bin/env python3
"""Times explanation maps in PyTorch on the CPU and prints one JSON line; scripts/bench_maps.sh sets it beside `trainer bench maps`.

Needs: torch, grad-cam (from PyPI). A WRN-16-2 with random weights, images of 32 x 32, medians.
shap_*: Shapley values of the class's probability, 64 players, 1,000 permutations of one image: the head evaluated once a coalition
(measured on one permutation), on masked features in chunks, and as one product of masks and the positions' contributions.
grad_cam_ms: pytorch-grad-cam at the last layer, one image a call.
"""
import argparse
import json
import sys
import pathlib

import torch
import torch.nn.functional as F

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from bench_peers import median_ms, wrn


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--threads", type=int, default=torch.get_num_threads())
    p.add_argument("--repeats", type=int, default=5)
    p.add_argument("--permutations", type=int, default=1000)
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    torch.manual_seed(0)
    model = wrn("wrn-16-2").eval()
    image = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        features = model(image)[0].flatten(2)[0]  # (128, 64)
    weight, bias = model.fc.weight.detach(), model.fc.bias.detach()
    order = torch.stack([torch.randperm(64) for _ in range(a.permutations)])
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(64).expand_as(order))
    masks = (rank[:, None, :] <= torch.arange(64)[None, :, None]).float()  # (permutation, prefix, player)

    def values(prob):
        """Shapley values from the class's probability of every prefix, (permutations, 64)."""
        start = F.softmax(bias, 0)[0].expand(len(prob), 1)
        gains = torch.diff(torch.cat([start, prob], 1), dim=1)
        return torch.zeros_like(gains).scatter_(1, order[:len(prob)], gains).mean(0)

    @torch.no_grad()
    def one_by_one():
        for mask in masks[0]:
            F.softmax(F.linear((features * mask).mean(1), weight, bias), 0)[0].item()

    @torch.no_grad()
    def chunks():
        prob = []
        for part in masks.flatten(0, 1).split(2048):
            pooled = (features[None] * part[:, None]).mean(2)
            prob.append(F.softmax(F.linear(pooled, weight, bias), 1)[:, 0])
        return values(torch.cat(prob).view(-1, 64))

    @torch.no_grad()
    def one_product():
        contributions = (weight @ features / 64).T  # (64, 10)
        logits = masks.flatten(0, 1) @ contributions + bias
        return values(F.softmax(logits, 1)[:, 0].view(-1, 64))

    assert torch.allclose(chunks(), one_product(), atol=1e-5), "the two forms disagree"
    result = {
        "shap_one_by_one_ms": median_ms(one_by_one, a.repeats) * a.permutations,
        "shap_chunks_ms": median_ms(chunks, a.repeats),
        "shap_product_ms": median_ms(one_product, a.repeats),
    }
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    class Logits(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model
            self.last = torch.nn.Identity()

        def forward(self, x):
            features = self.last(self.model(x)[0])
            return self.model.fc(features.mean((2, 3)))

    net = Logits().eval()
    cam = GradCAM(model=net, target_layers=[net.last])
    result["grad_cam_ms"] = median_ms(lambda: cam(image, targets=[ClassifierOutputTarget(0)]), a.repeats)
    result |= {"threads": a.threads, "torch": torch.__version__, "permutations": a.permutations}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
