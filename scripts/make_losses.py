#!/usr/bin/env python3
"""Writes tests/fixtures/losses.safetensors: loss terms and their gradients, by PyTorch in float64.

    make_losses.py tests/fixtures/losses.safetensors

Needs: torch, numpy, safetensors (from PyPI). Every value comes from the definition below, every gradient from
autograd through it; nothing flows into the teacher. n images, c classes, y_i the label of image i, z_s and z_t
the logits (n, c) of student and teacher, KL(p || q) = sum_j p_j (log p_j - log q_j), T the temperature.

ce         mean_i -log softmax(z_s)_{i, y_i}
ce_smooth  mean_i sum_j q_ij (-log softmax(z_s)_ij), q_ij = e/c + (1 - e) [j = y_i], e = 0.1 (PyTorch's label_smoothing)
kd         T^2/n sum_i KL(softmax(z_t/T) || softmax(z_s/T)), T = 4
kd_std     logit standardisation (Sun et al., CVPR 2024): kd with T = 2 of (z - mean_j z)/(1e-7 + std_j z), both nets,
           std divided by c - 1. The same as `normalize` and `kd_loss` of sunshangquan/logit-standardization-KD@f6e5aa5.
dkd        decoupled KD (Zhao et al., CVPR 2022), alpha = 1, beta = 8, T = 4:
           T^2/n sum_i alpha KL((p_t, 1 - p_t) || (p_s, 1 - p_s)) + beta KL(r_t || r_s), p the softmax of z/T at the label,
           r the softmax of z/T over the other c - 1 classes. Here log p = logsigmoid(z_y/T - logsumexp_{j != y} z_j/T) and
           log(1 - p) = logsigmoid of its negative. megvii-research/mdistiller@e8c5bb3 takes the log of sums of softmax
           values, which is -inf in f32 once a logit leads by more than about 100 T (its value of case 6 is inf, its
           gradient NaN), and masks the label by subtracting 1000 from its z/T instead of leaving it out, which is the
           same until that z/T leads by hundreds. In f64 its values and gradients of all cases here agree.
dist       DIST (Huang et al., NeurIPS 2022), beta = gamma = 1, T = 4, p = softmax(z/T):
           T^2 (beta mean_i (1 - r(p_s[i, :], p_t[i, :])) + gamma mean_j (1 - r(p_s[:, j], p_t[:, j]))),
           r(a, b) = <a', b'> / (|a'| |b'| + 1e-8), a' = a - mean a, b' = b - mean b. Read in the authors' code,
           hunto/image_classification_sota@6f7a70a, lib/models/losses/dist_kd.py, which hunto/DIST_KD names as its loss: the
           1e-8 is ADDED to the product of the two norms (not a maximum, not inside a root), and tau^2 multiplies both
           relations. DIST_KD's own segmentation/losses/dist_kd.py has the same r but no temperature. Their CIFAR recipe
           is tau = 4 with the whole term times 2. The 1e-8 is not negligible: r falls to 0 where |a'| |b'| is below it (a
           class with hardly any probability in the whole batch), and where a' = 0 (n = 1, case 4; equal logits, case 7) r
           is exactly 0, so that this relation counts 1. The norm's gradient at 0 is taken as 0 (PyTorch's choice), hence
           r's gradient with respect to a there is b'/1e-8: huge for equal logits, 0 for n = 1, where b' is 0 as well.
region_kl  SDD (CVPR 2024). Class maps M (n, c, 8, 8); a cell's logits are the mean of the map over the cell (bias 0),
           cells of the 1x1, 2x2 and 4x4 grids, 21 together: 1/(21 n) sum_i sum_cells w T^2 KL(softmax(cell_t/T) ||
           softmax(cell_s/T)), T = 4; w = 2 where the teacher's cell and its 1x1 cell differ in (argmax == y_i), else 1.
           `sdd_kd_loss` and `SPP` of shicaiwei123/SDD-CVPR2024@e412036 give the same for sides divisible by 4. They differ
           in: 2x2 and 1x1 are pooled from the 4x4 grid (another mean for other sides, whose adaptive cells overlap), the
           classifier's bias is in every cell, NaN elements count 0, and a loss that is not finite is replaced by a 0
           without gradient.
sp         similarity-preserving (Tung & Mori, ICCV 2019): 1/n^2 sum (G_s - G_t)^2, G the products of the flat activations of
           every two images, its rows divided by their norm.
rkd        relational KD (Park et al., CVPR 2019): 25 mean_ij h(d_s - d_t) + 50 mean_ijk h(a_s - a_t) of the activations'
           means over positions; d the distance of images i and j over the mean of those above 0, a the cosine of the
           angle at j between i and k (0 where i or k is j), h Huber's loss with its corner at 1. Means are over n^2 and n^3
           tuples, as in lenscloth/RKD and HobbitLong/RepDistiller@1e2f816, whose distances come from a difference of
           squares that is cut off at 1e-12.

Keys: case<i>.student, .teacher (n, c), .labels (n,) i64, .<term> (1,), .<term>.grad (n, c) with respect to z_s;
where n <= 6 also case<i>.student_maps, .teacher_maps (n, c, 8, 8) as f32, .region_kl (1,), .region_kl.grad
(n, c, 8, 8) with respect to the student's maps, which are not tied to case<i>.student; where n > 1 also
case<i>.student_features (n, 7, 3, 2), .teacher_features (n, 5, 2, 2) as f32, .sp, .rkd (1,), .sp.grad, .rkd.grad with
respect to the student's features. All inputs are representable in f32.
"""
import sys

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.numpy import save_file

torch.set_default_dtype(torch.float64)
torch.manual_seed(21)
SIDE, SCALES = 8, (1, 2, 4)
CASES = [  # name, images, classes, scale of the logits
    ("plain", 6, 5, 1),
    ("plain", 16, 10, 1),
    ("confident", 16, 10, 5),
    ("very confident", 16, 10, 30),
    ("one image", 1, 5, 5),
    ("the teacher is certain: the label's logit leads by 40", 4, 5, 1),
    ("the student is certain and wrong about the first image: another logit leads by 800", 3, 5, 1),
    ("the student's first row is equal logits: kd_std and dist have gradients of about 1e6 there", 4, 4, 1),
    ("very confident", 3, 5, 30),
]


def kl(log_p, log_q):
    return (log_p.exp() * (log_p - log_q)).sum(1)


def kd(zs, zt, y, t=4.0):
    return t**2 * kl(F.log_softmax(zt / t, 1), F.log_softmax(zs / t, 1)).mean()


def kd_std(zs, zt, y):
    unit = lambda z: (z - z.mean(1, keepdim=True)) / (1e-7 + z.std(1, keepdim=True))
    return kd(unit(zs), unit(zt), y, 2.0)


def dkd(zs, zt, y, t=4.0, alpha=1.0, beta=8.0):
    def split(z):
        n, c = z.shape
        others = z[F.one_hot(y, c) == 0].view(n, c - 1)
        margin = z.gather(1, y[:, None]) - others.logsumexp(1, keepdim=True)
        return F.logsigmoid(torch.cat([margin, -margin], 1)), F.log_softmax(others, 1)

    (binary_s, others_s), (binary_t, others_t) = split(zs / t), split(zt / t)
    return t**2 * (alpha * kl(binary_t, binary_s) + beta * kl(others_t, others_s)).mean()


def dist(zs, zt, y, t=4.0, beta=1.0, gamma=1.0):
    def relation(a, b):
        a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
        return (1 - (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + 1e-8)).mean()

    ps, pt = F.softmax(zs / t, 1), F.softmax(zt / t, 1)
    return t**2 * (beta * relation(ps, pt) + gamma * relation(ps.T, pt.T))


def ce(zs, zt, y):
    return F.cross_entropy(zs, y)


def ce_smooth(zs, zt, y):
    return F.cross_entropy(zs, y, label_smoothing=0.1)


def cells(maps):
    """(n, c, h, w) -> the cells' logits (n, c, 21), the 1x1 cell first."""
    return torch.cat([F.adaptive_avg_pool2d(maps, s).flatten(2) for s in SCALES], 2)


def weights(maps, y):
    right = cells(maps).argmax(1) == y[:, None]
    return 1.0 + (right != right[:, :1])


def region_kl(ms, mt, y, t=4.0):
    each = kl(F.log_softmax(cells(mt) / t, 1), F.log_softmax(cells(ms) / t, 1))
    return t**2 * (weights(mt, y) * each).mean()


def sp(fs, ft, y):
    def alike(f):
        f = f.flatten(1)
        return F.normalize(f @ f.T)

    return (alike(fs) - alike(ft)).square().mean()


def rkd(fs, ft, y, w_d=25.0, w_a=50.0):
    def relations(f):
        f = f.mean((2, 3))
        away = f[None] - f[:, None]  # [j, i] from j to i
        # A norm has no slope at 0: the diagonal stays out of it.
        apart = ~torch.eye(len(f), dtype=torch.bool)
        d = torch.zeros(len(f), len(f)).masked_scatter(apart, away[apart].norm(dim=1))
        unit = torch.zeros_like(away)
        unit[apart] = away[apart] / away[apart].norm(dim=1, keepdim=True)
        return d / d[apart].mean(), unit @ unit.transpose(1, 2)

    (d_s, a_s), (d_t, a_t) = relations(fs), relations(ft)
    return w_d * F.smooth_l1_loss(d_s, d_t) + w_a * F.smooth_l1_loss(a_s, a_t)


def keep(out, key, term, student, teacher, y):
    student = student.clone().requires_grad_()
    value = term(student, teacher, y)
    gradient = torch.autograd.grad(value, student)[0]
    assert value.isfinite() and gradient.isfinite().all(), key
    name = f"{key}.{term.__name__}"
    out.update({name: value.detach().view(1).numpy(), name + ".grad": gradient.numpy()})


def main():
    single = lambda z: z.float().double()
    out, about = {}, {}
    for i, (name, n, c, scale) in enumerate(CASES):
        key = f"case{i}"
        zs, zt = single(scale * torch.randn(n, c)), single(scale * torch.randn(n, c))
        # The teacher is right about every second image, and by chance about others.
        y = torch.where(torch.arange(n) % 2 == 0, zt.argmax(1), torch.randint(0, c, (n,)))
        lead = lambda z, at, by: single(z.scatter(1, at[:, None], z.max(1, keepdim=True).values + by))
        if "teacher is certain" in name:
            zt = lead(zt.scatter(1, y[:, None], -1e9), y, 40)
        if "student is certain" in name:
            zs[0] = lead(zs, (y + 1) % c, 800)[0]
        if "equal logits" in name:
            zs[0] = 0
        out.update({f"{key}.student": zs.numpy(), f"{key}.teacher": zt.numpy(), f"{key}.labels": y.numpy()})
        for term in (ce, ce_smooth, kd, kd_std, dkd, dist):
            keep(out, key, term, zs, zt, y)
        if n <= 6:
            maps = lambda z: single(z[:, :, None, None] + 3 * scale * torch.randn(n, c, SIDE, SIDE))
            ms, mt = maps(zs), maps(zt)
            inputs = {f"{key}.student_maps": ms, f"{key}.teacher_maps": mt}
            out.update({k: m.float().numpy() for k, m in inputs.items()})
            keep(out, key, region_kl, ms, mt, y)
            print(f"{key}: {int((weights(mt, y) == 2).sum())} of {n * 21} cells have weight 2")
        if n > 1:
            draw = torch.Generator().manual_seed(100 + i)
            features = lambda *shape: single(scale * torch.randn(n, *shape, generator=draw).relu())
            fs, ft = features(7, 3, 2), features(5, 2, 2)
            inputs = {f"{key}.student_features": fs, f"{key}.teacher_features": ft}
            out.update({k: f.float().numpy() for k, f in inputs.items()})
            keep(out, key, sp, fs, ft, y)
            keep(out, key, rkd, fs, ft, y)
        about[key] = f"{name}; n = {n}, c = {c}, logits times {scale}"
    about["made_by"] = f"scripts/make_losses.py, torch {torch.__version__.split('+')[0]}"
    save_file({k: np.ascontiguousarray(v) for k, v in out.items()}, sys.argv[1], metadata=about)
    print({k: f"{v.item():.6g}" for k, v in out.items() if v.size == 1 and v.ndim == 1 and v.dtype == np.float64})


if __name__ == "__main__":
    main()
