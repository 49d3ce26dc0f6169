"""What chance reads: the law that every attack obeys in a world without a leak.

Where scores are all different and the truth is a fair shuffle whatever they are (independent coins, several
targets pooled too), the number of members above the (K + 1)-th largest of n_neg non-members is
BetaBinomial(n_pos, K + 1, n_neg - K) exactly, and AUC has the spread of the Mann-Whitney statistic.
"""

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from jaxtyping import Bool, Float
from scipy.stats import betabinom, norm
from torch import Tensor

from glasslab.metrics import allowed, auc, pool, tpr_at_fpr

RATE: Final[Mapping[str, float]] = MappingProxyType({"1pct": 0.01})
ALARM = 0.001  # chance that a whole suite of checks fails though nothing leaks


def null_hits(n_pos: int, n_neg: int, fpr: float, *, level: float = 0.95) -> tuple[int, int]:
    """Fewest and most members that a scoreless attack flags with probability `level` or more."""
    k = allowed(n_neg, fpr)
    if k == n_neg:
        return n_pos, n_pos
    tail = (1 - level) / 2
    law = betabinom(n_pos, k + 1, n_neg - k)
    return int(law.ppf(tail)), int(law.isf(tail))


def auc_se(n_pos: int, n_neg: int) -> float:
    """Standard error of a scoreless attack's AUC; ties only lower it."""
    return math.sqrt((n_pos + n_neg + 1) / (12 * n_pos * n_neg))


def null_breaches(
    score: Float[Tensor, "*t n"],
    member: Bool[Tensor, "*t n"],
    *,
    checks: int = 1,
    rates: Mapping[str, float] = RATE,
) -> list[str]:
    """One line for each way in which these scores know more than chance; [] where they know nothing.

    `checks` is the number of checks in the whole suite (attacks x levels): it fails by chance less than once
    in 1,000 runs. A TPR below what chance reads counts only where no scores are equal.
    """
    pooled, truth = pool(score, member)
    n_pos, n_neg = int(truth.sum()), int((~truth).sum())
    tied = len(pooled.unique()) < len(pooled)
    area, allowance = auc(score, member), max(4.0, float(norm.isf(ALARM / checks / 2))) * auc_se(n_pos, n_neg)
    out = [f"AUC {area:.4f} is not 0.5 ± {allowance:.4f}"] if abs(area - 0.5) > allowance else []
    for name, fpr in rates.items():
        least, most = null_hits(n_pos, n_neg, fpr, level=1 - ALARM / checks)
        hits = tpr_at_fpr(score, member, fpr).hits
        if hits > most or (hits < least and not tied):
            out.append(f"{hits} of {n_pos} members at FPR {name}, chance flags {least} to {most}")
    return out
