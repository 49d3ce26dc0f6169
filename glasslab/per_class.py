"""How an attack does on single classes, and how sure a model is (Shokri et al. 2017, arXiv:1610.05820).

Members and non-members of a class weigh the same, so the baseline of precision is 1/2 whatever the design.
"""

from typing import Final, NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from glasslab.metrics import pool

FEW: Final = 20  # records of a class below which its figures are marked


class PerClass(NamedTuple):
    """Precision is NaN where nothing is flagged or a side is empty; recall where the class has no member."""

    precision: Float64[Tensor, "c"]
    recall: Float64[Tensor, "c"]
    few: Bool[Tensor, "c"]


class Cdf(NamedTuple):
    """Share of the classes with a value of at most x; those without one are left out, and counted."""

    x: Float64[Tensor, "d"]
    share: Float64[Tensor, "d"]
    undefined: int


class Sides(NamedTuple):
    """Means of each class, NaN where that side is empty."""

    inside: Float64[Tensor, "c"]
    outside: Float64[Tensor, "c"]


def per_class(
    flagged: Bool[Tensor, "*t n"], member: Bool[Tensor, "*t n"], y: Int[Tensor, "n"], classes: int
) -> PerClass:
    """Precision and recall of an attack's own decision in each class, pooled over targets."""
    tpr, fpr = class_means(flagged.double(), member, y, classes)
    few = torch.bincount(y.cpu().long(), minlength=classes) < FEW
    return PerClass(tpr / (tpr + fpr), tpr, few)


def cdf(value: Float[Tensor, "c"]) -> Cdf:
    """Cumulative distribution over classes, of their precision or recall."""
    defined = value[~value.isnan()].double().sort().values
    share = torch.arange(1, len(defined) + 1, dtype=torch.float64) / max(len(defined), 1)
    return Cdf(defined, share, len(value) - len(defined))


def class_means(
    value: Float[Tensor, "*t n"], member: Bool[Tensor, "*t n"], y: Int[Tensor, "n"], classes: int
) -> Sides:
    """Mean of members and of non-members in each class. ValueError on a label outside 0 .. classes - 1."""
    low, high = int(y.min()), int(y.max())
    if low < 0 or high >= classes:
        raise ValueError(f"y must lie in 0 .. {classes - 1}, got labels from {low} to {high}")
    pooled, truth = pool(value, member)
    label = y.cpu().long().expand(member.shape).flatten()
    return Sides(*(_mean(pooled[side], label[side], classes) for side in (truth, ~truth)))


def normalised_entropy(p: Float[Tensor, "*n c"]) -> Float64[Tensor, "*n"]:
    """Entropy of a model's answers over ln c: 0 is sure, 1 knows nothing.

    Masked answers must be completed first: raises ValueError unless each row is a distribution.

    >>> f"{normalised_entropy(torch.tensor([0.7, 0.2, 0.1])).item():.3f}"
    '0.730'
    """
    p = p.double()
    off = float((p.sum(-1) - 1).abs().max())
    if not (off <= 1e-4 and bool((p >= 0).all())):
        raise ValueError(f"p must hold distributions, got rows {off:.2g} off 1 or entries below 0")
    return -torch.special.xlogy(p, p).sum(-1) / torch.tensor(p.shape[-1]).double().log()


def _mean(value: Float64[Tensor, "s"], label: Int[Tensor, "s"], classes: int) -> Float64[Tensor, "{classes}"]:
    total = torch.bincount(label, weights=value, minlength=classes)
    return total / torch.bincount(label, minlength=classes)  # 0 / 0 is NaN
