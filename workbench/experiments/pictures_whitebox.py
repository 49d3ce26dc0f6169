"""Pictures of the white-box experiments, drawn from a frame and its manifest; readable in grey."""

import pandas as pd
from matplotlib.figure import Figure

from workbench.experiments.drawing import BASE, Manifest, looks, signed


def calibration(frame: pd.DataFrame, manifest: Manifest) -> Figure:
    """Precision at prior 1/2 of each attack at its own threshold and at calibrated ones; recall beside it."""
    figure = Figure(figsize=(8.4, 1.2 + 0.5 * frame["attack"].nunique() + 1.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    names = list(frame["attack"].unique())
    kinds = list(dict.fromkeys(zip(frame["threshold"], frame["alpha"].fillna(1.0), strict=True)))
    for k, ((kind, alpha), look) in enumerate(zip(kinds, looks(len(kinds)), strict=True)):
        held = frame[(frame["threshold"] == kind) & (frame["alpha"].fillna(1.0) == alpha)]
        at = [names.index(name) + 0.2 * (k - (len(kinds) - 1) / 2) for name in held["attack"]]
        label = "its own threshold" if kind == "own" else f"conformal, {100 * alpha:g} %"
        for axes, column in ((left, "precision"), (right, "tpr")):
            axes.scatter(held[column], at, s=28, label=label, marker=look["marker"], color=look["color"])
    left.set_yticks(range(len(names)), names)
    left.invert_yaxis()
    left.axvline(0.5, zorder=0, **BASE)
    left.set_xlabel("precision at prior 1/2")
    right.set_xlabel("share of members found")
    right.legend(fontsize="small", loc="best")
    return signed(figure, frame, manifest, "Dashed: what guessing gives.")
