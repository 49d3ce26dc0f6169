"""Pictures of the experiments on inversion, drawn from a frame and its manifest; readable in grey."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.experiments.drawing import BASE, COLOUR, Manifest, lighter, looks, signed
from workbench.plots import SMALL

HEADS = {
    "nearest_id": "share identified (nearest image)",
    "judge_acc1": "judge's accuracy on inversions",
    "feature_distance": "squared feature distance",
}
LEVELS = {
    "miface": "the weights",
    "one step": "one step",
    "class mean": "class mean",
    "public mean": "public mean",
}
WIDTH_BY = {"shadows": "width chosen on shadows", "narrowest": "narrowest width"}


def rounding(frame: pd.DataFrame, manifest: Manifest) -> Figure:
    """Identification against the rounding step, of each attack and each rule for its width; bars are 95 %
    intervals over labels. Levels: who needs no answers.
    """
    figure = Figure(figsize=(9.6, 4.6), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    lines = list(frame.dropna(subset=["width_by"]).groupby(["attack", "width_by"], sort=False))
    rounds = sorted(frame["round"].dropna().unique())
    for axes, value in zip(panels, ("nearest_id", "judge_acc1"), strict=True):
        for k, ((attack, by), held) in enumerate(lines):
            look = {"color": lighter(COLOUR, 0.45 * (k // 2)), "marker": "os"[k // 2], "markersize": 4}
            look |= {"linestyle": "-" if by == "shadows" else ":", "linewidth": 1.4}
            look |= {"markerfacecolor": look["color"] if by == "shadows" else "white"}
            at = [rounds.index(r) + 0.06 * (k - (len(lines) - 1) / 2) for r in held["round"]]
            _bars(axes, at, held, value, f"{attack}, {WIDTH_BY[by]}", look)
        _levels(axes, frame, value)
        axes.set_xticks(range(len(rounds)), ["none" if not r else f"{r:g}" for r in rounds])
        axes.set_xlabel("answers rounded to multiples of")
        axes.set_ylabel(HEADS[value])
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=4, fontsize=SMALL)
    note = "Bars: 95 % intervals over labels. Dashed: what no mask touches; the class mean is private data."
    return signed(figure, frame, manifest, note)


def smoothing(frame: pd.DataFrame, manifest: Manifest) -> Figure:
    """Each measure of MI-FACE, its one step and the class mean against the targets' label smoothing."""
    figure = Figure(figsize=(10.2, 4.0), layout="constrained")
    panels = figure.subplots(1, len(HEADS))
    rows = list(frame["row"].unique())
    values = sorted(frame["label_smoothing"].unique())
    for axes, value in zip(panels, HEADS, strict=True):
        for k, (row, look) in enumerate(zip(rows, looks(len(rows)), strict=True)):
            held = frame[frame["row"] == row]
            at = [values.index(s) + 0.06 * (k - (len(rows) - 1) / 2) for s in held["label_smoothing"]]
            _bars(axes, at, held, value, row, look)
        axes.set_xticks(range(len(values)), [f"{s:g}" for s in values])
        axes.set_xlabel("label smoothing in training")
        axes.set_title(HEADS[value], fontsize=SMALL + 1)
    panels[0].legend(fontsize=SMALL)
    note = "Bars: 95 % intervals over labels. Feature distance: lower is nearer to a training image."
    return signed(figure, frame, manifest, note)


def _bars(
    axes: Axes, at: list[float], held: pd.DataFrame, value: str, label: str, look: dict[str, Any]
) -> None:
    ends = np.abs([held[value] - held[f"{value}_low"], held[f"{value}_high"] - held[value]])
    axes.errorbar(at, held[value], yerr=ends, label=label, capsize=2, elinewidth=0.8, **look)


def _levels(axes: Axes, frame: pd.DataFrame, value: str) -> None:
    """Names stand at the right; rows of one level share a line."""
    rows = frame[frame["attack"].isin(LEVELS)].set_index("attack")[value]
    for level in rows.unique():
        axes.axhline(level, zorder=0, **BASE)
        names = ", ".join(LEVELS[name] for name in rows[rows == level].index)
        axes.annotate(names, (1.01, level), xycoords=("axes fraction", "data"), fontsize=6, va="center")
