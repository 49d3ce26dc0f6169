"""How sure a number is: 95 % intervals in closed form, and Holm's correction for many comparisons.

`clopper_pearson` takes the threshold as given, `auc_interval` counts records and targets as random; intervals
by resampling stand in `bootstrap.py`.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from scipy.special import expit, logit
from scipy.stats import beta, norm
from torch import Tensor

from glasslab.metrics import auc, pool


class Interval(NamedTuple):
    low: float
    high: float


def clopper_pearson(hits: int, n: int, *, level: float = 0.95) -> Interval:
    """Covers the true rate with probability `level` or more, for every rate and n.

    Raises ValueError unless 0 <= hits <= n and n >= 1.

    >>> f"{clopper_pearson(0, 100).high:.4f}"
    '0.0362'
    """
    if not 0 <= hits <= n or not n:
        raise ValueError(f"hits must lie in 0 .. n with n >= 1, got {hits} of {n}")
    tail = (1 - level) / 2
    low = beta.ppf(tail, hits, n - hits + 1) if hits else 0.0
    high = beta.isf(tail, hits + 1, n - hits) if hits < n else 1.0
    return Interval(float(low), float(high))


def percentile(draws: Float[Tensor, "b"], *, level: float = 0.95) -> Interval | None:
    """Middle `level` of bootstrap draws; undefined ones (NaN) are left out. None if all are."""
    defined = draws[~draws.isnan()]
    if not len(defined):
        return None
    tail = (1 - level) / 2
    low, high = defined.quantile(torch.tensor([tail, 1 - tail], dtype=draws.dtype)).tolist()
    return Interval(low, high)


def auc_interval(
    score: Float[Tensor, "*t n"], member: Bool[Tensor, "*t n"], *, level: float = 0.95
) -> Interval:
    """AUC's interval from each record's share in it, on the logit scale, without resampling.

    One target: DeLong et al. 1988. Several: shares are summed over a record's targets (Obuchowski 1997) and
    over a target's records, and both variances added, which errs on the wide side. An AUC of 0 or 1 has
    no spread: there min(n_pos, n_neg) disjoint pairs agree, which Clopper-Pearson turns into a limit.
    """
    pooled, truth = pool(score, member)
    area, pairs = auc(score, member), int(min(truth.sum(), (~truth).sum()))
    if area in (0.0, 1.0):
        return clopper_pearson(round(area) * pairs, pairs, level=level)
    share = torch.zeros_like(pooled)
    for side, other, sign in ((truth, ~truth, 1), (~truth, truth, -1)):
        placed = _placement(pooled[side], pooled[other])
        count = len(placed)
        share[side] = sign * (placed - placed.mean()) / count * math.sqrt(count / max(count - 1, 1))
    shares = share.reshape(-1, score.shape[-1])
    t = len(shares)
    variance = shares.sum(0).square().sum() + (shares.sum(1).square().sum() * t / (t - 1) if t > 1 else 0.0)
    half = float(norm.isf((1 - level) / 2)) * math.sqrt(float(variance)) / (area * (1 - area))
    return Interval(float(expit(logit(area) - half)), float(expit(logit(area) + half)))


def holm(p: Sequence[float]) -> list[float]:
    """p-values corrected for their number (Holm 1979): below 0.05 all hold at once, 19 times in 20.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    out, floor = [0.0] * len(p), 0.0
    for rank, i in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        floor = max(floor, min(1.0, p[i] * (len(p) - rank)))
        out[i] = floor
    return out


def _placement(score: Float[Tensor, "a"], others: Float[Tensor, "b"]) -> Float[Tensor, "a"]:
    """Share of the others below each score; equals count half."""
    others = others.sort().values
    below = torch.searchsorted(others, score) + torch.searchsorted(others, score, right=True)
    return below.double() / (2 * len(others))
