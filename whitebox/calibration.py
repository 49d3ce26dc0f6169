"""Thresholds for scores that were fitted elsewhere: a false-positive rate a class, or a precision.

Conformal: of n_y calibration scores of non-members of class y, the ceil((1 - alpha)(n_y + 1))-th smallest is
tau_y; a non-member of that class, exchangeable with them, scores above it with probability alpha at most
(Vovk et al. 2005). The attacker has: records of aux that no fit has seen. Precision: the lowest tau whose
conservative precision on held-out shadows reaches a target. Claimed is what lies strictly above tau.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from glasslab.intervals import clopper_pearson
from glasslab.transfer import precision

EXACT = 1e-9  # (1 - 0.9) * 10 is 0.99999...


class Thresholds(NamedTuple):
    """One tau a class, and why it is not the class's own ("too_few_calibration"), or None."""

    tau: Float64[Tensor, "c"]
    flags: tuple[str | None, ...]


def conformal(
    score_calibration: Float[Tensor, "k"], y_calibration: Int[Tensor, "k"], *, alpha: float, classes: int
) -> Thresholds:
    """Thresholds that a non-member exceeds with probability alpha at most, on average over calibration sets.

    A class of fewer than 1 / alpha - 1 records takes the threshold of all classes together, and is flagged
    "too_few_calibration"; where they are too few as well it is inf, and nothing is claimed.
    Raises ValueError on alpha outside (0, 1), NaN scores, or labels outside 0 .. classes - 1.
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must lie between 0 and 1, got {alpha}")
    bad = int(score_calibration.isnan().sum())
    if bad:
        raise ValueError(f"score_calibration must not be NaN, got {bad} of {len(score_calibration)}")
    outside = int(((y_calibration < 0) | (y_calibration >= classes)).sum())
    if outside:
        raise ValueError(f"y_calibration must lie in 0 .. {classes - 1}, got {outside} labels outside")
    score = score_calibration.double()
    own = [_quantile(score[y_calibration == c], alpha) for c in range(classes)]
    pooled = _quantile(score, alpha)
    together = math.inf if pooled is None else pooled
    tau = torch.tensor([together if t is None else t for t in own], dtype=torch.float64, device=score.device)
    return Thresholds(tau, tuple("too_few_calibration" if t is None else None for t in own))


def precision_target(
    score: Float[Tensor, "*s r"],
    member: Bool[Tensor, "*s r"],
    *,
    target: float,
    prior: float,
    level: float = 0.95,
) -> Float64[Tensor, ""]:
    """The lowest tau whose precision on held-out shadows, at worst, reaches `target`; inf if none does.

    At worst: with the lower end of the true-positive rate's Clopper-Pearson interval and the upper end of the
    false-positive rate's, when `prior` of all candidates are members.
    Raises ValueError on a target or prior outside (0, 1), NaN scores, or a side without a score.
    """
    for name, value in (("target", target), ("prior", prior)):
        if not 0 < value < 1:
            raise ValueError(f"{name} must lie between 0 and 1, got {value}")
    s, m = score.double().flatten(), member.flatten()
    n_pos, n_neg = int(m.sum()), int((~m).sum())
    if s.isnan().any() or not n_pos or not n_neg:
        bad = int(s.isnan().sum())
        raise ValueError(f"score must hold both sides, no NaN; got {n_pos} in, {n_neg} out, {bad} NaN")
    levels, at = s.unique(return_inverse=True)
    inside, outside = (torch.bincount(at[side], minlength=len(levels)).tolist() for side in (m, ~m))
    hits, alarms = n_pos, n_neg  # what lies at tau or above; then less what is equal to tau
    for tau, a, b in zip(levels.tolist(), inside, outside, strict=True):
        hits, alarms = hits - a, alarms - b
        low = clopper_pearson(hits, n_pos, level=level).low
        worst = precision(prior, low, clopper_pearson(alarms, n_neg, level=level).high)
        if worst is not None and worst >= target:
            return s.new_tensor(tau)
    return s.new_tensor(math.inf)


def decide(
    score: Float[Tensor, "n"], y: Int[Tensor, "n"], tau: Float[Tensor, "c"] | Float[Tensor, ""]
) -> Bool[Tensor, "n"]:
    """Who is claimed to be a member: score above the tau of its class, or above the one tau for all.

    Raises ValueError on labels for which tau has no entry.
    """
    if not tau.ndim:
        return score.double() > tau
    if len(y) and (int(y.min()) < 0 or int(y.max()) >= len(tau)):
        raise ValueError(f"y must lie in 0 .. {len(tau) - 1}, got labels {int(y.min())} to {int(y.max())}")
    return score.double() > tau[y.long()]


def _quantile(score: Float64[Tensor, "k"], alpha: float) -> float | None:
    """The ceil((1 - alpha)(k + 1))-th smallest; None where there are not so many."""
    rank = math.ceil((1 - alpha) * (len(score) + 1) - EXACT)
    return float(score.sort().values[rank - 1]) if rank <= len(score) else None
