"""The picture of what scarcity of data costs, drawn from a frame and its manifest; readable in grey."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.experiments.drawing import BASE, NAMES, Manifest, looks, signed
from workbench.plots import SMALL

WAYS = {
    "real": "real records alone",
    "noisy": "noisy copies of these",
    "marginals": "marginals of these",
    "hillclimb": "hill climbing, no record",
}
CHANCE = {"auc": 0.5, "tpr_at_1pct": 0.01}


def scarcity(frame: pd.DataFrame, manifest: Manifest) -> Figure:
    """Each attack's AUC and TPR at 1 % against the real records held; right: the shadows' own accuracy."""
    attacks = list(frame["attack"].unique())
    figure = Figure(figsize=(10.8, 2.7 * len(attacks) + 1.2), layout="constrained")
    panels = figure.subplots(len(attacks), 3, squeeze=False, sharex=True)
    sizes = sorted(frame.loc[frame["held"] > 0, "held"].unique().tolist())
    for row, attack in zip(panels, attacks, strict=True):
        own = frame[frame["attack"] == attack]
        for axes, value in zip(row, CHANCE, strict=False):
            _lines(axes, own, value, sizes)
            axes.axhline(CHANCE[value], zorder=0, **BASE)
            axes.set_title(f"{attack}: {NAMES[value]}", fontsize=SMALL + 1)
        _lines(row[2], own, "shadow_test", sizes)
        row[2].axhline(own["target_test"].iloc[0], zorder=0, **BASE)
        row[2].set_title("shadows' accuracy (dashed: the target's)", fontsize=SMALL + 1)
    for axes in panels[-1]:
        axes.set_xticks(range(len(sizes)), [f"{n:g}" for n in sizes])
        axes.set_xlabel("real records that the attacker holds", fontsize=SMALL + 1)
    handles = panels[0][0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper center", ncols=len(WAYS), fontsize=SMALL)
    note = f"Bars: 95 % intervals over targets and candidates. {frame['models'].iloc[0]} shadows a point; "
    note += "dashed in the two panels on the left: chance."
    return signed(figure, frame, manifest, note)


def _lines(axes: Axes, own: pd.DataFrame, value: str, sizes: list[int]) -> None:
    """A line a way, flat where no record is held."""
    bars = f"{value}_low" in own
    for k, (way, look) in enumerate(zip(WAYS, looks(len(WAYS)), strict=True)):
        held = own[own["way"] == way]
        at = np.arange(len(sizes)) + 0.05 * (k - 1.5)
        flat = held["held"].eq(0).all()
        held = held.loc[np.repeat(held.index, len(sizes))] if flat else held.set_index("held").loc[sizes]
        ends = (
            np.abs([held[value] - held[f"{value}_low"], held[f"{value}_high"] - held[value]])
            if bars
            else None
        )
        axes.errorbar(at, held[value], yerr=ends, label=WAYS[way], capsize=2, elinewidth=0.8, **look)
    axes.tick_params(labelsize=SMALL)
