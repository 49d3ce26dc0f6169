"""How sure a model is of members and of others, class by class (Shokri et al. 2017, arXiv:1610.05820).

Prediction uncertainty is the normalised entropy -sum p_i ln p_i / ln c of an answer: 0 is sure, 1 knows
nothing. Where the histograms of members and non-members part, the entropy alone gives members away.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float64
from torch import Tensor

from glasslab.per_class import normalised_entropy
from glasslab.zoo import Zoo
from workbench.experiments.runs import about, sized
from workbench.options import ZooOptions
from workbench.steps import Order

ALL = "all"


def entropy(zoo: Zoo, *, bins: int = 20) -> pd.DataFrame:
    """One row a (class, side, bin) over all targets: bin edges `low` and `high`, `count`, `density`; and the
    side's `mean` and `records`. The class "all" has every record.

    Densities integrate to 1; they and the mean are NaN for a side without a record. Raises ValueError for a
    zoo without a target, or fewer bins than one.
    """
    if bins < 1:
        raise ValueError(f"bins must be 1 or more, got {bins}")
    if not len(zoo.target_member):
        raise ValueError("zoo must hold a target, got none")
    z = zoo.answers("target")[:, :, 0]
    value = normalised_entropy(z.double().softmax(-1))
    y = zoo.pool.y.expand(value.shape)
    parts = []
    for c in (ALL, *range(zoo.data.classes)):
        chosen = (y == y) if c == ALL else (y == c)
        for side, inside in (("member", zoo.target_member), ("non-member", ~zoo.target_member)):
            parts.append(_histogram(value, chosen & inside, bins).assign(side=side, **{"class": str(c)}))
    frame = pd.concat(parts, ignore_index=True)
    frame.attrs["zoos"] = about({zoo.data.name: zoo})
    return frame[["class", "side", "low", "high", "count", "density", "mean", "records"]]


def _histogram(value: Float64[Tensor, "t n"], chosen: Bool[Tensor, "t n"], bins: int) -> pd.DataFrame:
    # rounding can put the entropy of a uniform answer above 1, where no bin would count it
    held = value[chosen].clamp(0.0, 1.0).numpy()
    count, edges = np.histogram(held, bins=bins, range=(0.0, 1.0))
    density = count * bins / len(held) if len(held) else np.full(bins, np.nan)
    mean = held.mean() if len(held) else np.nan
    numbers = {"count": count, "density": density, "mean": mean, "records": len(held)}
    return pd.DataFrame({"low": edges[:-1], "high": edges[1:]} | numbers)


def orders(options: ZooOptions, also: Sequence[str]) -> dict[str, Order]:
    return {options.data: sized(options, shadows=0, targets=16)}


def short(frame: pd.DataFrame) -> pd.DataFrame:
    """Mean normalised entropy of each class's sides."""
    first = frame.drop_duplicates(["class", "side"])
    table = first.pivot_table("mean", "class", "side", sort=False).reset_index()
    return table.assign(ratio=table["non-member"] / table["member"])
