"""Pictures of a run, drawn from its files alone, without pyplot.

Readable in grey: a family has one colour everywhere, its attacks differ in shade and dash.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from scipy.stats import norm

from glasslab.results import Results

FAMILIES = {"blackbox": "#123f7a", "whitebox": "#9c3603", "inversion": "#1f5c26", "synthesis": "#5b2d82"}
DASHES: tuple[Any, ...] = ("-", (0, (6, 1.5)), (0, (1, 1)), (0, (5, 1.5, 1, 1.5)), (0, (3, 1, 1, 1, 1, 1)))
SIDES = {"in": ("0.25", "///"), "out": ("0.65", None)}  # grey, and a hatch
CURVES = 8
FADE = 0.6  # how far a family's lightest shade goes to white
FLOOR = 1e-5
SMALL = 8

Row = Mapping[str, Any]


def save(results: Results, folder: str | Path) -> list[Path]:
    """Writes roc.png, and records.png where the attacker has shadows; returns the paths."""
    drawn = {"roc.png": roc(results)} if _ranked(results) else {}
    if (results.curves["curve"] == "phi").any():
        drawn["records.png"] = records(results)
    for name, figure in drawn.items():
        figure.savefig(Path(folder) / name, dpi=150)
    return [Path(folder) / name for name in drawn]


def roc(results: Results, attacks: Sequence[str] | None = None) -> Figure:
    """TPR against FPR over all targets, both logarithmic, as steps.

    The best at 0.1 % unless `attacks` are named, eight at most; raises ValueError for one without a curve.
    Hatched: rates that so few non-members cannot resolve. Grey: where 95 % of attacks without information
    lie. Bars: 95 % intervals of the first attack at 1 % and 0.1 %. A TPR of 0 lies on the floor.
    """
    sound = {row["attack"]: row for row in results.summary if row["error"] is None}
    names = list(attacks or _ranked(results))[:CURVES]
    for name in names:
        if name not in sound:
            raise ValueError(f"attacks must be some of {', '.join(sound)}, got {name!r}")
    first, styles = sound[names[0]], _styles([sound[name] for name in names])
    floor = tuple(max(FLOOR, 0.5 / first[side]) for side in ("n_neg", "n_pos"))
    figure = Figure(figsize=(6.4, 6.2), layout="constrained")
    axes = figure.subplots()
    axes.set(xscale="log", yscale="log", xlim=(floor[0], 1), ylim=(floor[1], 1.02))
    axes.set(xlabel="false-positive rate", ylabel="true-positive rate")
    _chance(axes, results.curves, floor, 1 / first["n_neg"])
    for name in names:
        points = results.curves.query("curve == 'roc' and attack == @name")
        x, y = points["x"].clip(lower=floor[0]), points["y"].clip(lower=floor[1])
        axes.step(
            x, y, where="post", label=f"{100 * sound[name]['tpr_at_0.1pct']:.2f} %  {name}", **styles[name]
        )
    _bars(axes, first, floor[1], styles[names[0]]["color"])
    axes.legend(title="TPR at 0.1 % FPR", loc="lower right", fontsize=SMALL, title_fontsize=SMALL)
    return _signed(figure, results)


def records(results: Results) -> Figure:
    """Log-odds of four records under the shadows that trained on them and under the others.

    Chosen by quantiles of mu_in - mu_out. Lines: the fitted normals. Marks: what the targets answer.
    """
    phi, normals = (results.curves[results.curves["curve"] == kind] for kind in ("phi", "normal"))
    figure = Figure(figsize=(8.0, 6.4), layout="constrained")
    grid = figure.subplots(2, 2)
    for axes, (quantile, points) in zip(grid.flat, phi.groupby("x"), strict=True):
        record = points["record"].iloc[0]
        fitted = normals[normals["record"] == record].drop_duplicates("side").set_index("side")
        _sides(axes, points, fitted)
        gap = fitted.loc["in", "x"] - fitted.loc["out", "x"]
        axes.set_title(f"record {record}: quantile {quantile:.2f}, gap {gap:.2f} nats", fontsize=SMALL + 1)
    for axes in grid[1]:
        axes.set_xlabel("log-odds of the true class, nats", fontsize=SMALL + 1)
    figure.supylabel("density over shadows", fontsize=SMALL + 1)
    patches = [
        Patch(facecolor=grey, alpha=0.6, hatch=hatch, label=f"shadows {side}")
        for side, (grey, hatch) in SIDES.items()
    ]
    figure.legend(handles=[*patches, *_marks()], loc="outside upper center", ncols=4, fontsize=SMALL)
    return _signed(figure, results)


def _ranked(results: Results) -> list[str]:
    """Attacks with a score for every target, best first; of two with the same curve, one."""
    rows = [row for row in results.summary if row["error"] is None]
    rows.sort(key=lambda row: (row["tpr_at_0.1pct"], row["auc"]), reverse=True)
    numbers = [tuple(row[name] for name in ("auc", "tpr_at_1pct", "tpr_at_0.1pct")) for row in rows]
    return [row["attack"] for i, row in enumerate(rows) if numbers[i] not in numbers[:i]]


def _styles(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """Dark and solid first; then lighter, with other dashes."""
    styles = {}
    for family in dict.fromkeys(row["family"] for row in rows):
        names = [row["attack"] for row in rows if row["family"] == family]
        for place, name in enumerate(names):
            white = FADE * place / max(len(names) - 1, 1)
            colour = tuple(part + white * (1 - part) for part in to_rgb(FAMILIES[family]))
            dash = DASHES[place % len(DASHES)]
            styles[name] = {"color": colour, "linestyle": dash, "linewidth": 1.8, "zorder": 9 - place}
    return styles


def _chance(axes: Axes, curves: pd.DataFrame, floor: Sequence[float], unresolved: float) -> None:
    null = curves[curves["curve"] == "null"]
    low, high = (null[null["side"] == side] for side in ("low", "high"))
    x = low["x"].clip(lower=floor[0]).to_numpy()
    least, most = (side["y"].clip(lower=floor[1]).to_numpy() for side in (low, high))
    axes.fill_between(x, least, most, step="post", color="0.88", linewidth=0, label="chance, 95 %")
    axes.plot([floor[0], 1], [floor[0], 1], color="0.5", linewidth=0.8)
    blank: dict[str, Any] = {"facecolor": "none", "edgecolor": "0.8", "hatch": "////", "linewidth": 0}
    axes.axvspan(floor[0], unresolved, label="not resolved", **blank)


def _bars(axes: Axes, row: Row, floor: float, colour: Any) -> None:
    for rate, x in (("1pct", 1e-2), ("0.1pct", 1e-3)):
        y, low, high = (row[f"tpr_at_{rate}{end}"] for end in ("", "_low", "_high"))
        if low is not None and x > 1 / row["n_neg"]:
            ends = [[max(y, floor) - max(low, floor)], [high - max(y, floor)]]
            axes.errorbar([x], [max(y, floor)], yerr=ends, color=colour, capsize=3, linewidth=1, zorder=10)


def _sides(axes: Axes, points: pd.DataFrame, fitted: pd.DataFrame) -> None:
    """Histograms on common bins, the normals over them, the targets' values on the axis."""
    low, high = points["y"].min(), points["y"].max()
    bins = np.linspace(low, high + 1e-9, 17)
    x = np.linspace(low - 0.1 * (high - low), high + 0.1 * (high - low), 400)
    for side, (grey, hatch) in SIDES.items():
        values = points.loc[points["side"] == side, "y"]
        axes.hist(
            values, bins=bins.tolist(), density=True, color=grey, alpha=0.6, hatch=hatch, edgecolor="white"
        )
        mu, sig = fitted.loc[side, ["x", "y"]].astype(float)
        axes.plot(x, norm.pdf(x, mu, sig), color="black" if side == "in" else "0.45", linewidth=1.2)
    for mark in _marks():
        values = points.loc[points["side"] == mark.get_label(), "y"]
        if len(values):  # an empty line has no place on the page
            axes.plot(values, np.zeros(len(values)), clip_on=False, zorder=5, **_look(mark))
    axes.tick_params(labelsize=SMALL)


def _marks() -> list[Line2D]:
    """Targets that trained on the record, and those that did not."""
    look: dict[str, Any] = {"linestyle": "", "color": "black", "markersize": 6}
    return [
        Line2D([], [], marker="^", markerfacecolor="black", label="target in", **look),
        Line2D([], [], marker="v", markerfacecolor="white", label="target out", **look),
    ]


def _look(mark: Line2D) -> dict[str, Any]:
    return {
        "linestyle": "",
        "color": "black",
        "marker": mark.get_marker(),
        "markerfacecolor": mark.get_markerfacecolor(),
    }


def _signed(figure: Figure, results: Results) -> Figure:
    """What every picture carries, in small print at its foot."""
    held = results.manifest
    n_neg = int((~results.truth).sum())
    models = f"m = {held['shadows']} shadows, t = {held['targets']} targets, n_neg = {n_neg}"
    about = f"{held['data']['name']}, {held['recipe']['net']}; {models}; seed {held['seed']}"
    lines = [f"{about}, commit {held['commit']}", shorten(held["command"], 150, placeholder=" ...")]
    figure.get_layout_engine().set(rect=(0, 0.06, 1, 0.94))  # type: ignore[union-attr, call-arg]
    figure.text(0.01, 0.012, "\n".join(lines), fontsize=6, color="0.35", in_layout=False)
    return figure
