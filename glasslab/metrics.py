"""From scores and the truth to numbers. Higher score = member, always.

Scores [t n] of several targets are pooled. All is read off one curve of counts, so a strictly increasing map
of the scores changes nothing. Functions of scores raise ValueError on NaN or infinite ones, on unequal
shapes, and where members or non-members are missing.
"""

import math
from collections.abc import Mapping
from typing import Final, NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

RATES: Final[Mapping[str, float]] = {"1pct": 0.01, "0.1pct": 0.001, "0.001pct": 1e-5}  # false-positive rates
PRIORS: Final[Mapping[str, float]] = {"50pct": 0.5, "10pct": 0.1, "1pct": 0.01}  # shares of members
FEW: Final = 10  # false positives below which a bootstrap of the tail is not to be trusted


class Roc(NamedTuple):
    """One vertex a group of equal scores, highest first, from (0, 0) to (1, 1); nothing is dropped.

    `threshold` is the largest score that a vertex leaves unflagged, -inf at the last.
    """

    threshold: Float64[Tensor, "v"]
    hits: Int64[Tensor, "v"]  # members flagged
    alarms: Int64[Tensor, "v"]  # non-members flagged

    @property
    def tpr(self) -> Float64[Tensor, "v"]:
        return self.hits.double() / self.hits[-1]

    @property
    def fpr(self) -> Float64[Tensor, "v"]:
        return self.alarms.double() / self.alarms[-1]


class Point(NamedTuple):
    """What one threshold does: flagged is what lies strictly above it."""

    tpr: float
    fpr: float
    threshold: float
    hits: int
    alarms: int


def roc(score: Float[Tensor, "*t n"], member: Bool[Tensor, "*t n"]) -> Roc:
    """The curve in counts; `.fpr` and `.tpr` are its axes."""
    pooled, truth = pool(score, member)
    pooled, order = pooled.sort(descending=True)
    last = torch.cat([pooled[1:] != pooled[:-1], pooled.new_ones(1).bool()])  # of each group of equals
    hits, alarms = (side[order].cumsum(0)[last] for side in (truth, ~truth))
    start = hits.new_zeros(1)
    threshold = torch.cat([pooled[last], pooled.new_full((1,), -torch.inf)])
    return Roc(threshold, torch.cat([start, hits]), torch.cat([start, alarms]))


def auc(score: Float[Tensor, "*t n"], member: Bool[Tensor, "*t n"]) -> float:
    """Chance that a member outscores a non-member; ties count half. auc(-s) is 1 - auc(s) to the last bit.

    >>> auc(torch.tensor([0.9, 0.5, 0.5, 0.1]), torch.tensor([True, True, False, False]))
    0.875
    """
    _, hits, alarms = roc(score, member)
    twice = int((alarms.diff() * (hits[1:] + hits[:-1])).sum())
    pairs = 2 * int(hits[-1]) * int(alarms[-1])
    upper = 1 - min(twice, pairs - twice) / pairs
    return upper if 2 * twice > pairs else 1 - upper


def tpr_at_fpr(score: Float[Tensor, "*t n"], member: Bool[Tensor, "*t n"], fpr: float) -> Point:
    """The best point of the curve that flags at most `fpr` of the non-members, with the rate it really has.

    Equal scores are flagged together or not at all. A scoreless attack gets `tpr_null`, not `fpr`.

    >>> tpr_at_fpr(torch.tensor([0.9, 0.8, 0.7, 0.1]), torch.tensor([True, False, True, False]), 0.5).tpr
    1.0
    """
    curve = roc(score, member)
    k = allowed(int(curve.alarms[-1]), fpr)
    return _vertex(curve, int(torch.searchsorted(curve.alarms, k, right=True)) - 1)


def above(score: Float[Tensor, "*t n"], member: Bool[Tensor, "*t n"], threshold: float) -> Point:
    """What a threshold that was chosen elsewhere does here."""
    pooled, truth = pool(score, member)
    flagged = pooled > threshold
    hits, alarms = int((flagged & truth).sum()), int((flagged & ~truth).sum())
    return Point(hits / int(truth.sum()), alarms / int((~truth).sum()), threshold, hits, alarms)


def best(score: Float[Tensor, "*t n"], member: Bool[Tensor, "*t n"]) -> Point:
    """The point of highest balanced accuracy; among equals the one that flags least."""
    curve = roc(score, member)
    distance = curve.hits * curve.alarms[-1] - curve.alarms * curve.hits[-1]
    return _vertex(curve, int(distance.argmax()))


def balanced_accuracy(score: Float[Tensor, "*t n"], member: Bool[Tensor, "*t n"]) -> float:
    """Largest (TPR + 1 - FPR) / 2 over all thresholds. Optimistic: luck alone gets `ba_null`."""
    return balanced(best(score, member))


def balanced(point: Point) -> float:
    """Balanced accuracy of one threshold."""
    return (1 + (point.tpr - point.fpr)) / 2


def advantage(score: Float[Tensor, "*t n"], member: Bool[Tensor, "*t n"]) -> float:
    """Largest TPR - FPR over all thresholds (Yeom et al. 2018, arXiv:1709.01604)."""
    return 2 * balanced_accuracy(score, member) - 1


def allowed(n_neg: int, fpr: float) -> int:
    """K, how many of n_neg non-members a rate of at most `fpr` may flag. ValueError outside [0, 1].

    >>> allowed(100, 0.29)  # 0.29 * 100 is 28.999999999999996
    29
    """
    if not 0 <= fpr <= 1:
        raise ValueError(f"fpr must lie in [0, 1], got {fpr}")
    return min(n_neg, math.floor(n_neg * fpr + 1e-9))


def tpr_null(n_neg: int, fpr: float) -> float:
    """TPR that continuous scores without information are expected to get: (K + 1) / (n_neg + 1)."""
    return (allowed(n_neg, fpr) + 1) / (n_neg + 1) if fpr < 1 else 1.0


def ba_null(n_pos: int, n_neg: int, *, high: bool = False) -> float:
    """Balanced accuracy that luck alone gets on average; `high`: what it stays below in 95 % of cases.

    Half the one-sided Kolmogorov-Smirnov distance, for large sides; never above 1.
    """
    scaled = math.sqrt(-math.log(0.05) / 2) if high else math.sqrt(math.pi / 8)
    return min(1.0, 0.5 + 0.5 * scaled / math.sqrt(n_pos * n_neg / (n_pos + n_neg)))


def below_resolution(n_neg: int, rates: Mapping[str, float] = RATES) -> list[str]:
    """Names of the rates at which no false positive at all is allowed: there TPR is that at FPR 0."""
    return [name for name, fpr in rates.items() if not allowed(n_neg, fpr)]


def flag(n_neg: int, fpr: float) -> str | None:
    """Why a TPR at this rate is weak: `below_resolution`, `few_false_positives` (K < 10), or None."""
    k = allowed(n_neg, fpr)
    return None if k >= FEW else "few_false_positives" if k else "below_resolution"


def gap(correct: Bool[Tensor, "*t n"], member: Bool[Tensor, "*t n"]) -> float:
    """Generalisation gap on the candidates: accuracy on members minus accuracy on non-members.

    "Member if the model is right" has balanced accuracy (1 + gap) / 2: an identity, not an estimate.
    """
    point = above(correct.double(), member, 0.5)
    return point.tpr - point.fpr


def loss_ratio(loss: Float[Tensor, "*t n"], member: Bool[Tensor, "*t n"]) -> float | None:
    """Mean loss on non-members over mean loss on members; None where the latter is 0."""
    pooled, truth = pool(loss, member)
    inside = pooled[truth].mean().item()
    return pooled[~truth].mean().item() / inside if inside else None


def pool(
    score: Float[Tensor, "*t n"], member: Bool[Tensor, "*t n"]
) -> tuple[Float64[Tensor, "p"], Bool[Tensor, "p"]]:
    """All scores in one row, and their truth, once they are known to be fit for use."""
    if score.shape != member.shape:
        raise ValueError(
            f"score and member must have one shape, got {tuple(score.shape)} and {tuple(member.shape)}"
        )
    if not score.isfinite().all():
        bad = int((~score.isfinite()).sum())
        raise ValueError(f"score must be finite, got {bad} NaN or infinite of {score.numel()}")
    n_pos = int(member.sum())
    if not 0 < n_pos < member.numel():
        raise ValueError(f"member must name members and non-members, got {n_pos} of {member.numel()}")
    return score.cpu().double().flatten(), member.cpu().flatten()


def _vertex(curve: Roc, at: int) -> Point:
    hits, alarms = int(curve.hits[at]), int(curve.alarms[at])
    return Point(
        hits / int(curve.hits[-1]), alarms / int(curve.alarms[-1]), float(curve.threshold[at]), hits, alarms
    )
