"""What an attacker would really get: a threshold that is chosen on shadow models, then used on the target.

A shadow plays the target (a mock target), so its truth is known. Scores of several mock targets are pooled.
"""

from typing import NamedTuple

from jaxtyping import Bool, Float
from torch import Tensor

from glasslab.intervals import Interval, clopper_pearson
from glasslab.metrics import Point, above, allowed, best


class Realised(NamedTuple):
    """A threshold's point on the target; both intervals are Clopper-Pearson at 95 %."""

    point: Point
    tpr: Interval
    fpr: Interval


class Precision(NamedTuple):
    """Share of members among the flagged, at a prior; `low` takes the low TPR and the high FPR."""

    value: float | None
    low: float | None


def tau(outside: Float[Tensor, "*s k"], fpr: float) -> float:
    """The lowest threshold that flags at most `fpr` of these mock non-member scores; -inf if it may flag all.

    Flagged is what lies strictly above. Raises ValueError without a score, or on NaN or infinite ones.
    """
    pooled = outside.cpu().double().flatten()
    if not len(pooled) or not pooled.isfinite().all():
        bad = int((~pooled.isfinite()).sum())
        raise ValueError(f"outside must hold finite scores, got {bad} NaN or infinite of {len(pooled)}")
    k = allowed(len(pooled), fpr)
    return float(pooled.kthvalue(len(pooled) - k).values) if k < len(pooled) else float("-inf")


def best_threshold(mock: Float[Tensor, "*s n"], mock_member: Bool[Tensor, "*s n"]) -> float:
    """The threshold of highest balanced accuracy on mock targets."""
    return best(mock, mock_member).threshold


def realised(score: Float[Tensor, "*t n"], member: Bool[Tensor, "*t n"], threshold: float) -> Realised:
    """What a threshold from elsewhere does on the target. Intervals take the threshold as given."""
    point = above(score, member, threshold)
    n_pos = int(member.sum())
    return Realised(
        point, clopper_pearson(point.hits, n_pos), clopper_pearson(point.alarms, member.numel() - n_pos)
    )


def precision(prior: float, tpr: float, fpr: float) -> float | None:
    """Share of members among the flagged when `prior` of all are members; None if nothing is flagged.

    Raises ValueError unless 0 < prior < 1.

    >>> f"{precision(0.01, 0.5, 0.005):.3f}"
    '0.503'
    """
    if not 0 < prior < 1:
        raise ValueError(f"prior must lie between 0 and 1, got {prior}")
    flagged = prior * tpr + (1 - prior) * fpr
    return prior * tpr / flagged if flagged else None


def ppv(found: Realised, prior: float) -> Precision:
    """Precision at a prior. With no false positive it is 1 by construction: believe `low`."""
    value = precision(prior, found.point.tpr, found.point.fpr)
    return Precision(value, None if value is None else precision(prior, found.tpr.low, found.fpr.high))
