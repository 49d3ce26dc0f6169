"""What the pictures of experiments are made of: dots with intervals, looks, the small print at the foot."""

from collections.abc import Mapping, Sequence
from textwrap import shorten, wrap
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from workbench.plots import DASHES, FAMILIES, SMALL

Manifest = Mapping[str, Any]

COLOUR = FAMILIES["blackbox"]
MARKS = "osD^vPX*"
SHADES = 0.65  # how far the lightest shade goes to white
BASE: Mapping[str, Any] = {"color": "0.45", "linewidth": 0.9, "linestyle": (0, (4, 2))}
NAMES = {"auc": "AUC", "tpr_at_1pct": "TPR at 1 % FPR", "tpr_at_0.1pct": "TPR at 0.1 % FPR"}


def dots(
    axes: Axes, names: "pd.Series[Any]", held: pd.DataFrame, value: str, *, upright: bool = False
) -> None:
    """A dot a row with its interval, from left to right or upright."""
    place = np.arange(len(held))
    ends = np.abs([held[value] - held[f"{value}_low"], held[f"{value}_high"] - held[value]])
    look: dict[str, Any] = {"fmt": "o", "color": COLOUR, "markersize": 4, "capsize": 2, "linewidth": 1}
    ticks = ["\n".join(wrap(str(name), 18)) for name in names]
    if upright:
        axes.errorbar(place, held[value], yerr=ends, **look)
        axes.set_xticks(place, ticks, fontsize=SMALL)
        axes.set_xlim(-0.5, len(held) - 0.5)
    else:
        axes.errorbar(held[value], place, xerr=ends, **look)
        axes.set_yticks(place, ticks, fontsize=SMALL)
        axes.set_xlabel(NAMES[value], fontsize=SMALL + 1)
    axes.tick_params(labelsize=SMALL)


def looks(count: int) -> list[dict[str, Any]]:
    """From dark to light, each with a dash and a mark of its own."""
    return [
        {"color": lighter(COLOUR, SHADES * i / max(count - 1, 1)), "linestyle": DASHES[i % len(DASHES)]}
        | {"marker": MARKS[i % len(MARKS)], "markersize": 4, "linewidth": 1.4}
        for i in range(count)
    ]


def lighter(colour: str, white: float) -> tuple[float, ...]:
    return tuple(part + white * (1 - part) for part in to_rgb(colour))


def short(data: str) -> str:
    return data.rsplit("/", 1)[-1]


def signed(figure: Figure, frame: pd.DataFrame, manifest: Manifest, note: str) -> Figure:
    """How to read it, and what every picture carries, in small print at its foot."""
    zoos = manifest["zoos"]
    counts = {
        sign: _few(sorted({zoo[name] for zoo in zoos.values()}))
        for sign, name in (("m", "shadows"), ("t", "targets"), ("candidates", "pool"))
    }
    if "n_neg" in frame:
        counts["n_neg"] = _few(sorted(set(frame["n_neg"].dropna().astype(int))))
    models = ", ".join(f"{sign} = {count}" for sign, count in counts.items())
    data = _few(list(dict.fromkeys(short(zoo["data"]) for zoo in zoos.values())))
    about = f"{data}; {models}; seed {manifest['seed']}, commit {manifest['commit']}"
    lines = [
        note,
        shorten(about, 190, placeholder=" ..."),
        shorten(manifest["command"], 170, placeholder=" ..."),
    ]
    figure.get_layout_engine().set(rect=(0, 0.09, 1, 0.91))  # type: ignore[union-attr, call-arg]
    figure.text(0.01, 0.012, "\n".join(lines), fontsize=6, color="0.35", in_layout=False)
    return figure


def _few(values: Sequence[Any]) -> str:
    return ", ".join(map(str, values)) if len(values) < 4 else f"{values[0]} .. {values[-1]}"
