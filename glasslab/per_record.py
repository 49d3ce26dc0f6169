"""Whom an attack finds: TPR of single records over targets [t n], and scores on each record's own scale.

Three estimators of a record's TPR, not to be mixed. A pooled threshold is calibrated on average only: single
records have other false-positive rates (Jälkö et al. 2026, arXiv:2605.25819).
"""

import warnings
from typing import Final, NamedTuple

import torch
from jaxtyping import Bool, Float, Float64
from scipy.stats import norm
from torch import Tensor

from glasslab.checks import Floored
from glasslab.metrics import pool, tpr_at_fpr

LEAST: Final = 8  # non-member scores a record needs for a mean and a spread of its own


class Empirical(NamedTuple):
    """NaN where a record is never in, or never out; `below_resolution` where no false positive is allowed."""

    tpr: Float64[Tensor, "n"]
    below_resolution: Bool[Tensor, "n"]


class AtPooled(NamedTuple):
    """Shares of a record's IN and OUT targets that one common threshold flags; NaN where there are none."""

    tpr: Float64[Tensor, "n"]
    fpr: Float64[Tensor, "n"]


def empirical(score: Float[Tensor, "t n"], member: Bool[Tensor, "t n"], fpr: float) -> Empirical:
    """Each record's threshold from its OUT targets; share of its IN targets above. Resolves 1 / n_out.

    Raises ValueError as functions of scores do, and unless 0 <= fpr <= 1.
    """
    pool(score, member)
    n_out = (~member).sum(0)
    if not 0 <= fpr <= 1:
        raise ValueError(f"fpr must lie in [0, 1], got {fpr}")
    k = (n_out.double() * fpr + 1e-9).floor().long()
    outside = score.double().masked_fill(member, -torch.inf).sort(0, descending=True).values
    tau = outside.gather(0, k.clamp(max=len(score) - 1)[None])[0].where(k < n_out, -torch.inf)
    caught = _share(score.double() > tau, member)
    return Empirical(caught.where(n_out > 0, torch.nan), k == 0)


def gaussian(
    mu_in: Float[Tensor, "*k n"],
    sig_in: Float[Tensor, "*k n"],
    mu_out: Float[Tensor, "*k n"],
    sig_out: Float[Tensor, "*k n"],
    fpr: float,
) -> Float64[Tensor, "*k n"]:
    """Risk of a record, without any attack: TPR of a threshold between its two normal laws of phi.

    Works at any rate in (0, 1) and stands or falls with normality. A spread of 0 is a law in one point.
    """
    if not 0 < fpr < 1:
        raise ValueError(f"fpr must lie between 0 and 1, got {fpr}")
    beyond = mu_in.double() - mu_out.double() - float(norm.isf(fpr)) * sig_out.double()
    sure = (beyond > 0).double()
    return torch.special.ndtr(beyond / sig_in.double()).where(sig_in > 0, sure)


def at_pooled_threshold(score: Float[Tensor, "t n"], member: Bool[Tensor, "t n"], fpr: float) -> AtPooled:
    """What the threshold of all records and targets does to each: shows who makes the false positives."""
    flagged = score.double() > tpr_at_fpr(score, member, fpr).threshold
    return AtPooled(_share(flagged, member), _share(flagged, ~member))


def calibrated(
    score: Float[Tensor, "t n"], mock: Float[Tensor, "s n"], mock_member: Bool[Tensor, "s n"]
) -> Float64[Tensor, "t n"]:
    """Scores standardised by mean and spread of their record's own mock non-member scores.

    Assumes these near normal. Raises ValueError where a record has fewer than 8. A spread of 0 takes that of
    the average record, and warns with Floored.
    """
    pool(mock, mock_member)
    return _standardised(score, mock, mock_member, own=False)


def calibrated_by_targets(score: Float[Tensor, "t n"], member: Bool[Tensor, "t n"]) -> Float64[Tensor, "t n"]:
    """The same without mock targets: by the record's non-member scores in the *other* targets, at least 8.

    A score never standardises itself: that would thin the tails of non-members alone, and tell them apart.
    """
    pool(score, member)
    return _standardised(score, score, member, own=True)


def _standardised(score: Tensor, reference: Tensor, inside: Tensor, *, own: bool) -> Float64[Tensor, "t n"]:
    """By the reference where it is not inside; `own`: score and reference are one, and each is left out."""
    weight, reference = (~inside).double(), reference.double()
    n = weight.sum(0)
    centre = (weight * reference).sum(0) / n.clamp(min=1)  # sums around it do not cancel
    off = weight * (reference - centre)
    total, square = off.sum(0), off.square().sum(0)
    if own:
        n, total, square = n - weight, total - off, square - off.square()
    if (n < LEAST).any():
        least = int(n.min())
        raise ValueError(f"member must leave {LEAST} non-member scores of each record, got {least} for one")
    mean = total / n
    spread = ((square - total * mean) / (n - 1)).clamp(min=0).sqrt()
    return (score.double() - centre - mean) / _floored(spread, float(reference.abs().max()))


def _floored(spread: Float64[Tensor, "*t n"], size: float) -> Float64[Tensor, "*t n"]:
    """Spreads, with that of the average record in place of those that are nothing but rounding."""
    typical = float(spread.square().mean().sqrt())
    zero = spread <= max(1e-9 * typical, 1e-12 * size)
    if zero.any():
        share = float(zero.double().mean())
        warnings.warn(f"{share:.1%} of calibrating spreads are 0: took the average", Floored, stacklevel=3)
    return spread.where(~zero, typical if typical > 1e-12 * size else 1.0)


def _share(flagged: Bool[Tensor, "t n"], among: Bool[Tensor, "t n"]) -> Float64[Tensor, "n"]:
    return (flagged & among).sum(0).double() / among.sum(0)  # 0 / 0 is NaN
