"""How many times as much of the tail one attack reads as another: ratios of TPR, over several seeds."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float64
from torch import Generator, Tensor

from glasslab.bootstrap import DRAWS, Over, drawn
from glasslab.intervals import percentile
from glasslab.metrics import tpr_at_fpr


class Tails(NamedTuple):
    """TPR at one FPR of each attack and seed, and the same in each draw; all attacks share the draws."""

    tpr: Float64[Tensor, "s a"]
    drawn: Float64[Tensor, "s a b"]


class Ratio(NamedTuple):
    """TPR of an attack over that of a rival, both means over seeds; None where the rival's is 0.

    `seeds` are the ratios one by one, `empty` the share of draws in which the rival found nothing; they
    count as the largest ratios.
    """

    value: float | None
    low: float | None
    high: float | None
    seeds: tuple[float | None, ...]
    empty: float


def tails(
    attacks: Sequence[Sequence[Float[Tensor, "t n"]]],
    member: Sequence[Bool[Tensor, "t n"]],
    generator: Generator,
    *,
    fpr: float = 1e-3,
    draws: int = DRAWS,
) -> Tails:
    """Scores of each attack, one [t n] a seed, pooled over its targets.

    Targets and records are both redrawn within a seed. Raises ValueError where seeds differ in number.
    """
    for i, attack in enumerate(attacks):
        if len(attack) != len(member):
            raise ValueError(f"attacks[{i}] must hold {len(member)} seeds as member, got {len(attack)}")
    both: Over = "targets and records"
    seeds = range(len(member))
    parts = [drawn([a[i] for a in attacks], member[i], generator, fpr, over=both, draws=draws) for i in seeds]
    tpr = [[tpr_at_fpr(a[i], member[i], fpr).tpr for a in attacks] for i in seeds]
    return Tails(torch.tensor(tpr, dtype=torch.float64), torch.stack(parts))


def ratio(found: Tails, attack: int, rival: int) -> Ratio:
    """Interval: 2.5 and 97.5 percentiles of the log ratio of the means over seeds."""
    ours, theirs = (found.drawn[:, i].mean(0) for i in (attack, rival))
    log = (ours / theirs).log().nan_to_num(nan=0.0, posinf=700.0, neginf=-700.0)
    between = percentile(log)
    low, high = (None, None) if between is None else map(_exp, between)
    each = tuple(_over(float(a), float(b)) for a, b in found.tpr[:, [attack, rival]])
    mean = found.tpr.mean(0)
    empty = float((theirs == 0).double().mean())
    return Ratio(_over(float(mean[attack]), float(mean[rival])), low, high, each, empty)


def _over(a: float, b: float) -> float | None:
    return a / b if b > 0 else None


def _exp(v: float) -> float | None:
    """None for what stands for infinity."""
    return float(torch.tensor(v, dtype=torch.float64).exp()) if v < 700 else None
