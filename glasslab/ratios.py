"""How many times as much of the tail one attack reads as another: ratios of TPR, over several seeds."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor

from glasslab.bootstrap import DRAWS, Over, drawn
from glasslab.intervals import percentile
from glasslab.metrics import tpr_at_fpr


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


def ratios(
    attacks: Sequence[Sequence[Float[Tensor, "t n"]]],
    rival: Sequence[Float[Tensor, "t n"]],
    member: Sequence[Bool[Tensor, "t n"]],
    generator: Generator,
    *,
    fpr: float = 1e-3,
    draws: int = DRAWS,
) -> list[Ratio]:
    """One `Ratio` an attack: its scores and the rival's, one [t n] a seed, pooled over the targets.

    Interval: 2.5 and 97.5 percentiles of the log ratio of the means over seeds. Targets and records are both
    redrawn within a seed, the same draw for all attacks. Raises ValueError where seeds differ in number.
    """
    for name, given in (("rival", rival), *((f"attacks[{i}]", a) for i, a in enumerate(attacks))):
        if len(given) != len(member):
            raise ValueError(f"{name} must hold {len(member)} seeds as member, got {len(given)}")
    both: Over = "targets and records"
    parts = [
        drawn([rival[i], *(a[i] for a in attacks)], member[i], generator, fpr, over=both, draws=draws)
        for i in range(len(member))
    ]
    mean = torch.stack(parts).mean(0)
    floor = [tpr_at_fpr(s, m, fpr).tpr for s, m in zip(rival, member, strict=True)]
    found = []
    for column, attack in zip(mean[1:], attacks, strict=True):
        tpr = [tpr_at_fpr(s, m, fpr).tpr for s, m in zip(attack, member, strict=True)]
        log = (column / mean[0]).log().nan_to_num(nan=0.0, posinf=700.0, neginf=-700.0)
        between = percentile(log)
        low, high = (None, None) if between is None else map(_exp, between)
        each = tuple(_over(a, b) for a, b in zip(tpr, floor, strict=True))
        found.append(
            Ratio(_over(sum(tpr), sum(floor)), low, high, each, float((mean[0] == 0).double().mean()))
        )
    return found


def _over(a: float, b: float) -> float | None:
    return a / b if b > 0 else None


def _exp(v: float) -> float | None:
    """None for what stands for infinity."""
    return float(torch.tensor(v, dtype=torch.float64).exp()) if v < 700 else None
