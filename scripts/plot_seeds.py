#!/usr/bin/env python3
"""The plot and the Markdown table of docs/seed-dependence.md from what `trainer evaluate seeds --json` printed.

    plot_seeds.py results/seeds-wrn-16-2.json docs/seed-dependence.png

Needs: matplotlib.
"""
import json
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

rows = json.load(open(sys.argv[1]))["rows"]
games = list(dict.fromkeys((r["score"], r["fill"]) for r in rows))
figure, axes = plt.subplots(1, 3, figsize=(11, 3.6), layout="constrained")
styles = {"zero": "-", "channel_mean": "--"}
colours = {"logit": "#222222", "prob": "#bc3754", "log_prob": "#57106e", "rest": "#f98e09"}
# The logit's maps do not differ: there is nothing to draw on a logarithmic axis.
for score, fill in [g for g in games if g[0] != "logit"]:
    game = [r for r in rows if (r["score"], r["fill"]) == (score, fill)]
    x = [r["permutations"] for r in game]
    how = {"linestyle": styles.get(fill, ":"), "color": colours[score], "marker": "o", "markersize": 3, "label": f"{score}, {fill}"}
    axes[0].errorbar(x, [1 - r["correlation"]["mean"] for r in game], [r["correlation"]["se"] for r in game], **how)
    axes[1].errorbar(x, [100 * r["error"]["mean"] for r in game], [100 * r["error"]["se"] for r in game], **how)
    axes[2].plot(x, [r["average_drop_seed_sd"] for r in game], **how)
for axis, title in zip(axes, ["1 - correlation of two seeds' maps", "error of a map, %", "Average Drop's SD between seeds"]):
    axis.set(xscale="log", yscale="log", xlabel="permutations an image")
    axis.set_title(title, fontsize=10)
    axis.grid(True, which="major", alpha=0.3)
axes[0].set_ylim(1e-6, 1)
axes[1].set_ylim(1e-2, 100)
axes[2].set_ylim(1e-3, 10)
axes[2].legend(fontsize=7)
figure.savefig(sys.argv[2], dpi=110)
print("| score | fill | permutations | correlation of two seeds | error of a map, % | Average Drop, % | its SD between seeds |")
print("|---|---|---|---|---|---|---|")
for r in rows:
    if r["score"] == "logit" and r["permutations"] != 10:
        continue
    c, e, d = r["correlation"], r["error"], r["average_drop"]
    print(f"| {r['score']} | {r['fill']} | {r['permutations']} | {c['mean']:.4f} ± {c['se']:.4f} | {100 * e['mean']:.2f} ± {100 * e['se']:.2f} "
          f"| {d['mean']:.2f} ± {d['se']:.2f} | {r['average_drop_seed_sd']:.3f} |")
