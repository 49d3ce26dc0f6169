"""Precision of an attack class by class, and its distribution over classes (Shokri et al. 2017,
arXiv:1610.05820).

An average hides the classes that leak most. For each class: precision and recall of the attack's own
decision, members and non-members at equal weight; then x -> share of the classes with at most x.
"""

from collections.abc import Sequence

import pandas as pd
import torch
from jaxtyping import Float64
from torch import Tensor

from glasslab.per_class import cdf, per_class
from glasslab.zoo import Zoo
from workbench.experiments.overfitting import decided
from workbench.experiments.runs import about, sized
from workbench.options import ZooOptions
from workbench.steps import Order

DECIDED = ("shadow", "modified-entropy-per-class")


def precision_cdf(zoo: Zoo, *, attacks: Sequence[str] = DECIDED, seed: int = 0) -> pd.DataFrame:
    """One row an (attack, measure, class): `value`, and the `share` of classes that have at most this value.

    Both are NaN for a class without one: nothing of it is flagged, or a side is empty; such classes are
    left out of the shares. `few` marks classes with fewer than 20 candidates. Raises ValueError for an
    attack without a decision of its own.
    """
    y, c = zoo.pool.y, zoo.data.classes
    records = torch.bincount(y.cpu().long(), minlength=c).tolist()
    parts = []
    for attack in attacks:
        held = per_class(*decided(zoo, attack, seed), y, c)
        for measure in ("precision", "recall"):
            value = getattr(held, measure)
            about_classes = {"class": range(c), "records": records, "few": held.few.tolist()}
            numbers = {"value": value.tolist(), "share": shares(value).tolist()}
            parts.append(
                pd.DataFrame({"attack": attack, "measure": measure} | about_classes | numbers, index=range(c))
            )
    frame = pd.concat(parts, ignore_index=True)
    frame.attrs["zoos"] = about({zoo.data.name: zoo})
    return frame


def shares(value: Float64[Tensor, "c"]) -> Float64[Tensor, "c"]:
    """For each class the share of defined classes with at most its value; NaN where it has none."""
    held = cdf(value)
    at = torch.searchsorted(held.x, value.nan_to_num(), right=True) - 1
    padded = torch.cat([held.share, held.share.new_zeros(1)])  # equal values share the highest step
    return padded[at].masked_fill(value.isnan(), torch.nan)


def orders(options: ZooOptions, also: Sequence[str]) -> dict[str, Order]:
    return {options.data: sized(options, shadows=32, targets=8)}


def short(frame: pd.DataFrame) -> pd.DataFrame:
    """The spread over classes of each measure."""
    by = frame.groupby(["attack", "measure"], sort=False)["value"]
    table = by.quantile([0, 0.25, 0.5, 0.75, 1]).unstack()
    table.columns = ["min", "25 %", "median", "75 %", "max"]
    return table.assign(classes=by.count()).reset_index()
