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


def layers(frame: pd.DataFrame, manifest: Manifest) -> Figure:
    """AUC of each attack over the layers, from the records to the logits; bars are 95 % intervals."""
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.subplots()
    names = ["input", *(name for name in dict.fromkeys(frame["layer"]) if name != "input")]
    attacks = list(frame["attack"].unique())
    for k, (attack, look) in enumerate(zip(attacks, looks(len(attacks)), strict=True)):
        held = frame[frame["attack"] == attack]
        at = [names.index(name) + 0.12 * (k - (len(attacks) - 1) / 2) for name in held["layer"]]
        spread = [held["auc"] - held["auc_low"], held["auc_high"] - held["auc"]]
        axes.errorbar(at, held["auc"], yerr=spread, label=attack, capsize=2, **(look | {"linestyle": "none"}))
    axes.axhline(0.5, zorder=0, **BASE)
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right")
    axes.set(xlabel="layer", ylabel="AUC")
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return signed(figure, frame, manifest, "Dashed: chance. Bars: 95 % intervals.")
