#!/usr/bin/env python3
"""Writes tests/fixtures/statistics.json: runs of three cells and what scipy and statsmodels make of them.

    make_statistics.py tests/fixtures/statistics.json

Needs: numpy, pandas, scipy, statsmodels (from PyPI).
"""
import json
import pathlib
import sys

import numpy as np
import pandas
from scipy import integrate, stats
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestIndPower
from statsmodels.stats.weightstats import CompareMeans, DescrStatsW, ttost_ind


def power(cells, tests, n, gap):
    """Of a two-sided test at 5 % over `tests`, of a gap in standard deviations, with the deviation that `cells` cells share."""
    df, shift = cells * (n - 1), gap / np.sqrt(2 / n)
    limit = stats.t.isf(0.025 / tests, df)
    return float(stats.nct.sf(limit, df, shift) + stats.nct.cdf(-limit, df, shift))


def power_of_equivalence(cells, n, margin):
    """Of two one-sided tests at 5 % of two equal cells, over the distribution of the shared deviation."""
    df, se = cells * (n - 1), np.sqrt(2 / n)
    limit = stats.t.isf(0.05, df)

    def given(s):
        room = max(margin / se - limit * s, 0)
        return (2 * stats.norm.cdf(room) - 1) * stats.chi.pdf(s * np.sqrt(df), df) * np.sqrt(df)

    return float(integrate.quad(given, 0, margin / se / limit)[0])


def alike(groups):
    """Of groups under the same conditions: the intraclass correlation, and p of the conditions' F test."""
    values = pandas.DataFrame(
        [{"v": v, "g": g, "c": c} for g, group in enumerate(groups) for c, v in enumerate(group)])
    table = anova_lm(ols("v ~ C(g) + C(c)", values).fit())
    between, rest = table["mean_sq"]["C(c)"], table["mean_sq"]["Residual"]
    correlation = (between - rest) / (between + (len(groups) - 1) * rest)
    return {"groups": groups, "correlation": float(correlation), "p": float(table["PR(>F)"]["C(c)"])}


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
    welch = stats.ttest_ind(a, groups[2], equal_var=False)
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
        "ac_welch": {"p": float(welch.pvalue), "df": float(welch.df)},
        "alike": [
            alike([[22.16, 21.14, 20.31], [20.77, 21.80, 20.98], [16.83, 16.77, 15.83], [20.25, 20.17, 19.61]]),
            alike([[1.0, 2.0, 4.0, 3.0], [2.5, 1.0, 2.0, 2.2]]),
        ],
        # Of two cells and one test the power is statsmodels's.
        "power_at_needed": [
            {"cells": cells, "tests": tests, "gap": gap, "sd": 0.15, "n": n,
             "power": [power(cells, tests, n, gap / 0.15) for n in (n - 1, n)]}
            for cells, tests, gap, n in [(2, 1, 0.2, 10), (2, 1, 0.1, 37), (10, 8, 0.2, 15), (10, 8, 0.5, 3)]
        ],
        "power_of_two": float(TTestIndPower().power(0.2 / 0.15, 10, 0.05)),
        "equivalence_at_needed": [
            {"cells": cells, "margin": margin, "sd": sd, "n": n,
             "power": [power_of_equivalence(cells, n, margin / sd) for n in (n - 1, n)]}
            for cells, margin, sd, n in [(10, 0.2, 0.15, 10), (2, 0.3, 0.15, 6), (10, 0.2, 0.474, 97)]
        ],
    }
    pathlib.Path(sys.argv[1]).write_text(json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
    main()
