"""Pictures of experiments, drawn from a frame and its manifest as they lie on disk; readable in grey."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from scipy.stats import norm

from workbench.experiments.drawing import (
    BASE,
    COLOUR,
    NAMES,
    SHADES,
    Manifest,
    dots,
    lighter,
    looks,
    short,
    signed,
)
from workbench.plots import DASHES, SIDES, SMALL

PANELS = 12


def metric_attacks(frame: pd.DataFrame, manifest: Manifest) -> Figure:
    """AUC and TPR at 1 % FPR of each attack, one column a data set; bars are 95 % intervals."""
    sets = list(frame["data"].unique())
    figure = Figure(figsize=(2.4 + 2.6 * len(sets), 5.4), layout="constrained")
    grid = figure.subplots(2, len(sets), sharey=True, sharex="row", squeeze=False)
    for column, name in zip(grid.T, sets, strict=True):
        held = frame[frame["data"] == name].iloc[::-1]
        for axes, value in zip(column, ("auc", "tpr_at_1pct"), strict=True):
            dots(axes, held["attack"], held, value)
            chance = 0.5 if value == "auc" else held["tpr_null_1pct"].iloc[0]
            axes.axvline(chance, zorder=0, **BASE)
        column[0].set_title(f"{short(name)}\ngap {held['gap'].iloc[0]:.3f}", fontsize=SMALL + 1)
    return signed(figure, frame, manifest, "Dashed: chance. Bars: 95 % intervals.")


def gap(frame: pd.DataFrame, manifest: Manifest) -> Figure:
    """One point a target: balanced accuracy against the gap; the line (1 + g) / 2, one fitted an attack."""
    figure = Figure(figsize=(6.6, 5.4), layout="constrained")
    axes = figure.subplots()
    held = frame.attrs["lines"]
    ends = np.array([min(0.0, frame["gap"].min()), frame["gap"].max()])
    axes.plot(ends, (1 + ends) / 2, color="black", linewidth=1, label="(1 + gap) / 2", zorder=3)
    for line, look in zip(held, looks(len(held)), strict=True):
        points = frame[frame["attack"] == line["attack"]]
        about = "" if line["slope"] is None else f"  slope {line['slope']:.2f}, r {line['r']:.2f}"
        axes.scatter(points["gap"], points["accuracy"], s=16, marker=look["marker"], color=look["color"])
        if line["slope"] is not None:
            fitted = line["intercept"] + line["slope"] * ends
            axes.plot(ends, fitted, color=look["color"], linestyle=look["linestyle"], linewidth=1)
        axes.plot([], [], label=line["attack"] + about, **look)
    axes.set(xlabel="gap: accuracy on members less accuracy on non-members", ylabel="balanced accuracy")
    axes.axhline(0.5, zorder=0, **BASE)
    axes.legend(fontsize=SMALL)
    note = "Thresholds: the attack's own, else from mock targets. Correctness lies on the line, exactly."
    return signed(figure, frame, manifest, note)


def transfer(frame: pd.DataFrame, manifest: Manifest) -> Figure:
    """AUC of each attack by the kind of shadows it learned from; dashed: the home case."""
    attacks = list(frame["attack"].unique())
    figure = Figure(figsize=(8.4, 5.2), layout="constrained")
    grid = figure.subplots(2, -(-len(attacks) // 2), sharey=True, sharex=True, squeeze=False)
    for axes, attack in zip(grid.flat, attacks, strict=False):
        held = frame[frame["attack"] == attack].iloc[::-1]
        dots(axes, held["shadows"], held, "auc")
        axes.axvline(held["auc"].iloc[-1], zorder=0, **BASE)
        axes.set_title(attack, fontsize=SMALL + 1)
    for axes in grid.flat[len(attacks) :]:
        axes.set_axis_off()
    return signed(figure, frame, manifest, "Dashed: shadows of the target's own kind. Bars: 95 % intervals.")


def overfitting(frame: pd.DataFrame, manifest: Manifest) -> Figure:
    """Accuracies of the targets, and precision and recall of the attack, over the number of classes."""
    figure = Figure(figsize=(6.2, 4.6), layout="constrained")
    axes = figure.subplots()
    drawn = {
        "training accuracy": ("train_accuracy", "0.55"),
        "test accuracy": ("test_accuracy", "0.55"),
        "attack precision": ("precision", COLOUR),
        "attack recall": ("recall", COLOUR),
    }
    place = np.arange(len(frame))
    for (label, (name, colour)), look in zip(drawn.items(), looks(4), strict=True):
        spread = frame.get(f"{name}_sd")
        look = look | {"color": colour, "capsize": 3, "label": label}
        axes.errorbar(place, frame[name], yerr=spread, **look)
    axes.axhline(0.5, zorder=0, **BASE)
    axes.set_xticks(place, [str(c) for c in frame["classes"]])
    axes.set(xlabel="classes", ylabel="share", ylim=(min(0.45, frame["precision"].min() - 0.05), 1.02))
    axes.legend(fontsize=SMALL, loc="center right")
    return signed(
        figure, frame, manifest, "Dashed: precision of a guess. Bars: standard deviation over targets."
    )


def precision_cdf(frame: pd.DataFrame, manifest: Manifest) -> Figure:
    """Share of the classes whose precision, and recall, is at most x."""
    figure = Figure(figsize=(8.0, 4.2), layout="constrained")
    styles = dict(zip(frame["attack"].unique(), looks(frame["attack"].nunique()), strict=True))
    for axes, measure in zip(figure.subplots(1, 2, sharey=True), ("precision", "recall"), strict=True):
        for attack, held in frame[frame["measure"] == measure].groupby("attack", sort=False):
            value = held["value"].dropna().sort_values()
            share = np.arange(1, len(value) + 1) / max(len(value), 1)
            x, y = ([0.0, *value, 1.0], [0.0, *share, 1.0]) if len(value) else ([], [])
            look = {key: styles[attack][key] for key in ("color", "linestyle")}
            absent = f"{len(held) - len(value)} of {len(held)} classes undefined"
            axes.step(x, y, where="post", label=f"{attack}\n{absent}", **look)
        axes.set(xlabel=f"{measure} of a class", xlim=(0, 1.01), ylim=(0, 1.02))
        axes.legend(fontsize=SMALL - 1, loc="upper left")
    figure.axes[0].axvline(0.5, zorder=0, **BASE)
    figure.axes[0].set_ylabel("share of the classes")
    return signed(figure, frame, manifest, "Dashed: precision of a guess.")


def entropy(frame: pd.DataFrame, manifest: Manifest) -> Figure:
    """Histograms of the normalised entropy of answers about members and non-members, a panel a class."""
    names = list(frame["class"].unique())[:PANELS]
    columns = min(4, len(names))
    figure = Figure(figsize=(9.2, 0.8 + 1.9 * -(-len(names) // columns)), layout="constrained")
    grid = figure.subplots(-(-len(names) // columns), columns, sharex=True, sharey=True, squeeze=False)
    for axes, name in zip(grid.flat, names, strict=False):
        for (side, held), (grey, hatch) in zip(_of(frame, "class", name), SIDES.values(), strict=True):
            edges = [*held["low"], held["high"].iloc[-1]]
            label = side if axes is grid[0, 0] else None
            axes.stairs(held["density"], edges, fill=True, color=grey, alpha=0.5, hatch=hatch, label=label)
        means = " / ".join(f"{held['mean'].iloc[0]:.3f}" for _, held in _of(frame, "class", name))
        title = "all classes" if name == "all" else f"class {name}"
        axes.set_title(f"{title}: {means}", fontsize=SMALL + 1)
        axes.set(yscale="log", xlim=(0, 1))
        axes.tick_params(labelsize=SMALL)
    for axes in grid.flat[len(names) :]:
        axes.set_axis_off()
    for axes in grid[-1]:
        axes.set_xlabel("normalised entropy", fontsize=SMALL + 1)
    for axes in grid[:, 0]:
        axes.set_ylabel("density", fontsize=SMALL + 1)
    figure.legend(loc="outside upper right", ncols=2, fontsize=SMALL)
    return signed(figure, frame, manifest, "Above each panel: means of members / of non-members.")


def records(frame: pd.DataFrame, manifest: Manifest) -> Figure:
    """Left: phi of four records under shadows in and out. Right: all records' TPR, highest first."""
    figure = Figure(figsize=(11.0, 5.0), layout="constrained")
    grid: Any = figure.subfigures(1, 2, width_ratios=(1.15, 1))
    left, right = grid
    phi, normal = (frame[frame["kind"] == kind] for kind in ("phi", "normal"))
    for axes, (quantile, held) in zip(left.subplots(2, 2).flat, phi.groupby("quantile"), strict=True):
        bins = np.linspace(held["value"].min(), held["value"].max() + 1e-9, 17)
        x = np.linspace(bins[0], bins[-1], 300)
        for side, (grey, hatch) in SIDES.items():
            values = held.loc[held["side"] == side, "value"]
            axes.hist(
                values, bins=bins, density=True, color=grey, alpha=0.6, hatch=hatch, label=f"shadows {side}"
            )
            mine = normal[(normal["record"] == held["record"].iloc[0]) & (normal["side"] == side)].iloc[0]
            axes.plot(x, norm.pdf(x, mine["value"], mine["high"]), color=grey, linewidth=1.2)
            answers = held.loc[held["side"] == f"target {side}", "value"]
            mark, face = ("^", "black") if side == "in" else ("v", "white")
            look: dict[str, Any] = {"marker": mark, "markerfacecolor": face, "label": f"targets {side}"}
            look |= {"color": "black", "linestyle": "", "markersize": 5}
            if len(answers):  # an empty line has no place on the page
                axes.plot(answers, 0 * answers, clip_on=False, zorder=5, **look)
        axes.set_title(f"record {held['record'].iloc[0]}, quantile {quantile:.2f}", fontsize=SMALL + 1)
        axes.tick_params(labelsize=SMALL)
    left.supxlabel("log-odds of the true class, nats", fontsize=SMALL + 1)
    named = dict(
        pair for axes in left.axes for pair in zip(*axes.get_legend_handles_labels()[::-1], strict=True)
    )
    left.legend(named.values(), named.keys(), loc="outside upper center", ncols=4, fontsize=SMALL)
    _exposed(right.subplots(), frame[frame["kind"] == "tpr"])
    note = (
        "Four records by quantile of mu_in - mu_out. Band: Clopper-Pearson over a record's IN targets, 0.1 %."
    )
    return signed(figure, frame, manifest, note)


def ablations(frame: pd.DataFrame, manifest: Manifest) -> Figure:
    """AUC and TPR at 1 % FPR over the values of each part; dashed: the unchanged attack."""
    parts = list(frame["ablation"].unique())
    width = [frame["ablation"].eq(part).sum() for part in parts]
    figure = Figure(figsize=(10.4, 5.2), layout="constrained")
    grid = figure.subplots(2, len(parts), sharey="row", width_ratios=width, squeeze=False)
    for column, part in zip(grid.T, parts, strict=True):
        held = frame[frame["ablation"] == part]
        for axes, value in zip(column, ("auc", "tpr_at_1pct"), strict=True):
            dots(axes, held["value"], held, value, upright=True)
            axes.axhline(held.loc[held["base"], value].iloc[0], zorder=0, **BASE)
            axes.set_ylabel(NAMES[value] if part == parts[0] else "")
        column[0].set_title(part, fontsize=SMALL + 1)
    return signed(figure, frame, manifest, "Dashed: LiRA unchanged. Bars: 95 % intervals.")


def _exposed(axes: Axes, points: pd.DataFrame) -> None:
    """TPR over the share of records, log axis; dark: 0.1 %, light: 1 %."""
    estimators = list(points["estimator"].unique())
    for (estimator, rate), held in points.groupby(["estimator", "rate"], sort=False):
        held = pd.concat([held.iloc[:1], held])  # the first step begins half a record early
        share = np.array([0.5, *range(1, len(held))]) / (len(held) - 1)
        grey = COLOUR if rate == "0.1pct" else lighter(COLOUR, SHADES)
        label = f"{estimator}, FPR {'0.1' if rate == '0.1pct' else '1'} %"
        dash = DASHES[estimators.index(estimator)]
        axes.step(share, held["value"], where="pre", color=grey, linestyle=dash, label=label)
        if estimator == "at_pooled_threshold" and rate == "0.1pct":
            axes.fill_between(share, held["low"], held["high"], color="0.9", linewidth=0, step="pre")
    axes.set(
        xscale="log",
        ylim=(-0.02, 1.02),
        xlabel="share of the records, most exposed first",
        ylabel="TPR of a record",
    )
    axes.set_ylabel("TPR of a record")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g} %"))
    axes.legend(fontsize=SMALL)


def _of(frame: pd.DataFrame, column: str, name: Any) -> Any:
    return frame[frame[column] == name].groupby("side", sort=False)
