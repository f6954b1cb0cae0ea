#!/usr/bin/env python3
"""Writes tests/fixtures/statistics.json: runs of three cells and what scipy and statsmodels make of them.

    make_statistics.py tests/fixtures/statistics.json

Needs: numpy, scipy, statsmodels (from PyPI).
"""
import json
import pathlib
import sys

import numpy as np
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestIndPower
from statsmodels.stats.weightstats import CompareMeans, DescrStatsW, ttost_ind


def main():
    cells = {
        "a": [6.78, 6.91, 6.59, 6.85, 6.70],
        "b": [6.55, 6.73, 6.41, 6.62, 6.60],
        "c": [6.80, 6.88, 6.52],
    }
    groups = [np.array(v) for v in cells.values()]
    df = sum(len(g) - 1 for g in groups)
    pooled = float(np.sqrt(sum(((g - g.mean()) ** 2).sum() for g in groups) / df))
    a, b = groups[0], groups[1]
    # Of two cells alone the pooled test is the ordinary one.
    ordinary = stats.ttest_ind(a, b)
    interval = CompareMeans(DescrStatsW(a), DescrStatsW(b)).tconfint_diff(usevar="pooled")
    paired = stats.ttest_rel(a, b)
    p = [0.01, 0.04, 0.03, 0.005, 0.5]
    out = {
        "cells": cells,
        "pooled": {"sd": pooled, "df": df},
        "half_width_a": float(stats.t.ppf(0.975, df) * pooled / np.sqrt(len(a))),
        "ab": {
            "mean": float(a.mean() - b.mean()),
            "p": float(ordinary.pvalue),
            "half_width": float((interval[1] - interval[0]) / 2),
            "equivalence_0.2": float(ttost_ind(a, b, -0.2, 0.2, usevar="pooled")[0]),
            "equivalence_0.5": float(ttost_ind(a, b, -0.5, 0.5, usevar="pooled")[0]),
        },
        "ab_pooled_over_all_p": float(
            2 * stats.t.sf(abs(a.mean() - b.mean()) / (pooled * np.sqrt(1 / len(a) + 1 / len(b))), df)
        ),
        "ab_paired": {"mean": float((a - b).mean()), "p": float(paired.pvalue), "r": float(np.corrcoef(a, b)[0, 1])},
        "holm": {"p": p, "corrected": multipletests(p, method="holm")[1].tolist()},
        "mcnemar": [
            {"b": b, "c": c, "p": float(mcnemar([[0, b], [c, 0]], exact=True).pvalue)}
            for b, c in [(0, 0), (3, 9), (9, 3), (210, 260), (5, 5)]
            if b + c
        ],
        "power_at_needed": [
            {"gap": gap, "sd": 0.15, "n": n,
             "power": float(TTestIndPower().power(gap / 0.15, n, 0.05))}
            for gap, n in [(0.2, 10), (0.1, 37)]
        ],
    }
    pathlib.Path(sys.argv[1]).write_text(json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
    main()
