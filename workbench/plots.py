"""Pictures of a run, drawn from its files alone. Readable in grey: a family has one colour, its attacks differ in
shade and dash. No state of pyplot is touched.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from scipy.stats import norm

from glasslab.results import Results

FAMILIES = {"blackbox": "#1b4f8f", "whitebox": "#a63603", "inversion": "#2d6a32", "synthesis": "#6a3d8f"}
DASHES = ("-", (0, (6, 1.5)), (0, (1, 1)), (0, (5, 1.5, 1, 1.5)), (0, (3, 1, 1, 1, 1, 1)), (0, (2, 2)))
CURVES = 8
SHADES = 0.62  # how far the lightest shade goes to white
FLOOR = 1e-5
RATES = {"1pct": 1e-2, "0.1pct": 1e-3}


def save(results: Results, folder: str | Path) -> list[Path]:
    """Writes roc.png, and where the attacker has shadows records.png; returns the paths."""
    drawn = {"roc.png": roc(results)}
    if (results.curves["curve"] == "phi").any():
        drawn["records.png"] = records(results)
    for name, figure in drawn.items():
        figure.savefig(Path(folder) / name, dpi=150)
    return [Path(folder) / name for name in drawn]


def roc(results: Results, attacks: list[str] | None = None) -> Figure:
    """TPR against FPR over all targets, both logarithmic, as steps; the eight best at 0.1 % unless named.

    Left of the hatched edge no rate can be resolved. Grey: where 95 % of attacks without information lie.
    Bars: 95 % intervals of the best attack at 1 % and 0.1 %.
    """
    rows = {row["attack"]: row for row in results.summary if row["error"] is None}
    names = (attacks or _best(rows))[:CURVES]
    first = rows[names[0]]
    low = max(FLOOR, 0.5 / first["n_neg"]), max(FLOOR, 0.5 / first["n_pos"])
    figure, axes = _page(6.4, 6.0)
    _null(axes, results.curves, low)
    styles = _styles([rows[name] for name in names])
    for place, name in enumerate(names):
        points = results.curves.query("curve == 'roc' and attack == @name")
        x, y = points["x"].clip(lower=low[0]), points["y"].clip(lower=low[1])
        label = f"{name}  {_percent(rows[name]['tpr_at_0.1pct'])}"
        axes.step(x, y, where="post", label=label, zorder=9 - place, **styles[name])
    _bars(axes, first, styles[names[0]]["color"])
    axes.axvspan(low[0], 1 / first["n_neg"], facecolor="none", edgecolor="0.75", hatch="///", linewidth=0)
    axes.set(xscale="log", yscale="log", xlim=(low[0], 1), ylim=(low[1], 1))
    axes.set(xlabel="false-positive rate", ylabel="true-positive rate")
    handles, labels = axes.get_legend_handles_labels()
    extra = [Patch(facecolor="0.85"), Patch(facecolor="none", edgecolor="0.75", hatch="///")]
    handles, labels = handles + extra, [*labels, "chance, 95 %", "below resolution"]
    axes.legend(handles, labels, title="TPR at 0.1 % FPR", loc="lower right", fontsize=8, title_fontsize=8)
    return _signed(figure, results)


def records(results: Results) -> Figure:
    """log-odds of four records under the shadows that trained on them and those that did not.

    Chosen by quantiles of mu_in - mu_out. Lines: the fitted normals. Marks below: what the targets say.
    """
    phi = results.curves.query("curve == 'phi'")
    figure = Figure(figsize=(8.0, 6.0), layout="constrained")
    panels = figure.subplots(2, 2).flat
    for axes, (record, points) in zip(panels, phi.groupby("record", sort=False), strict=False):
        normals = results.curves.query("curve == 'normal' and record == @record").set_index("side")
        _sides(axes, points, normals)
        gap = normals.loc["in", "x"] - normals.loc["out", "x"]
        axes.set_title(f"record {record}: quantile {points['x'].iloc[0]:.2f}, gap {gap:.2f} nats", fontsize=9)
    figure.supxlabel("log-odds of the true class, nats", fontsize=9)
    figure.supylabel("density over shadows", fontsize=9)
    styles = {"in": FAMILIES["blackbox"], "out": "0.6"}
    handles: list[Any] = [Patch(facecolor=colour, alpha=0.5, label=side) for side, colour in styles.items()]
    for side, mark in (("in", "^"), ("out", "v")):
        dot = {"marker": mark, "linestyle": "", "color": "black"}
        handles.append(Line2D([], [], markerfacecolor="black" if side == "in" else "white", label=f"target {side}", **dot))
    figure.legend(handles=handles, loc="outside upper center", ncols=4, fontsize=8)
    return _signed(figure, results)
