"""Merlin and Morgan (Jayaraman et al. 2021, arXiv:2005.10881): is the loss at a record a local minimum?

The attacker has: the target's p_y on a record and on noisy copies of it, and one shadow model for thresholds.
Merlin: ratio(x) = share of T copies x + eta, eta ~ N(0, sigma^2 I), of higher loss than x. Higher = member.
Morgan: member iff phi_L <= loss <= phi_U and ratio >= phi_M. Score: the ratio inside [phi_L, phi_U], and
ratio - 1 elsewhere, so that every threshold above 0 is Morgan's rule with that phi_M.
"""

import warnings
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Generator, Tensor
from torch.nn.functional import logsigmoid

from glasslab import signals
from glasslab.checks import Floored
from glasslab.metrics import allowed
from glasslab.oracle import BudgetExceeded, Oracle, complete, log_answer

Noise = Literal["gaussian", "uniform"]
Rule = Literal["grid", "script"]

ROWS = 4096  # asked at a time
GRID = 101  # values of each threshold that are tried, at most
FEW = 20  # records that the best thresholds must flag on the shadow, or 1 % of them
FPR_LOW, FPR_HIGH = 0.22, 0.30  # of the loss attack, at the authors' phi_L and phi_U


class Thresholds(NamedTuple):
    """Member iff low <= loss <= high (in nats) and Merlin's ratio >= `ratio`; infinite: flags nobody."""

    low: float
    high: float
    ratio: float


def merlin(
    oracle: Oracle,
    x: Float[Tensor, "n *d"],
    y: Int[Tensor, "n"],
    *,
    generator: Generator,
    T: int = 100,
    sigma: float = 0.01,
    noise: Noise = "gaussian",
    clip: bool = False,
) -> Float64[Tensor, "n"]:
    """The ratio, one of T + 1 values a record; settings, price and errors as in `neighbours`."""
    return neighbours(oracle, x, y, generator=generator, T=T, sigma=sigma, noise=noise, clip=clip)[1]


def neighbours(
    oracle: Oracle,
    x: Float[Tensor, "n *d"],
    y: Int[Tensor, "n"],
    *,
    generator: Generator,
    T: int = 100,
    sigma: float = 0.01,
    noise: Noise = "gaussian",
    clip: bool = False,
) -> tuple[Float64[Tensor, "n"], Float64[Tensor, "n"]]:
    """The loss in nats, and the share of T noisy copies with a strictly higher one: T + 1 queries a record.

    `uniform` noise is U(-sigma, sigma); `clip` cuts the copies to [0, 1]. Each record's noise is drawn anew.
    Warns Floored, with their number, of answers on the oracle's floor and of log-odds beyond +-700: ties.
    Raises ValueError where the oracle reveals labels, and unless T >= 1 and sigma > 0; BudgetExceeded before
    anything is asked.
    """
    _check(oracle, len(x), T, sigma)
    parts, low = [], 0
    for rows in torch.arange(len(x)).split(max(1, ROWS // (T + 1))):
        copies = _noisy(x[rows], T, sigma, noise, generator)
        asked = torch.cat([x[rows][:, None], copies.clamp(0, 1) if clip else copies], 1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Floored)  # said once, below
            p = complete(oracle(asked.flatten(0, 1)), oracle.floor)
        low += 0 if oracle.floor is None else int((p <= oracle.floor).any(-1).sum())
        labels = y[rows].to(p.device).repeat_interleave(T + 1)
        parts.append(signals.phi(log_answer(p, None), labels).unflatten(0, (-1, T + 1)))
    if low:
        warnings.warn(f"{low} of {len(x) * (T + 1)} answers sit on the floor {oracle.floor:g}", Floored, 2)
    phi = signals.bounded(torch.cat(parts))
    # DIFFERS: the authors compare -log max(p, 1e-6), in float32: sure models tie a member with its copies.
    higher = phi[:, 1:] < phi[:, :1]  # the loss is -logsigmoid(phi), which falls as phi grows
    return -logsigmoid(phi[:, 0]), higher.double().mean(1)


def morgan(
    loss: Float[Tensor, "*t n"],
    ratio: Float[Tensor, "*t n"],
    shadow_loss: Float[Tensor, "r"],
    shadow_ratio: Float[Tensor, "r"],
    shadow_member: Bool[Tensor, "r"],
    *,
    rule: Rule = "grid",
    alpha: float = 0.01,
) -> Float64[Tensor, "*t n"]:
    """The ratio for losses in [phi_L, phi_U] of the `morgan_thresholds`, ratio - 1 elsewhere: in [-1, 1].

    At or above their phi_M is the paper's decision. Settings and errors as there.
    """
    _fit("loss", loss, "ratio", ratio)
    found = morgan_thresholds(shadow_loss, shadow_ratio, shadow_member, rule=rule, alpha=alpha)
    # DIFFERS: the paper states a decision; this orders its records by the ratio for a ROC.
    return ratio.double() - ~((loss >= found.low) & (loss <= found.high)) * 1.0


def morgan_thresholds(
    shadow_loss: Float[Tensor, "r"],
    shadow_ratio: Float[Tensor, "r"],
    shadow_member: Bool[Tensor, "r"],
    *,
    rule: Rule = "grid",
    alpha: float = 0.01,
) -> Thresholds:
    """Found on one shadow, whose members are known; losses in nats.

    `grid` tries 101 values of each and takes the triple of greatest precision; of several the one that flags
    most, then the one of lowest phi_L, phi_U, phi_M. It must flag 20 records, and 1 %. phi_M is above 0,
    unless too few ratios are.
    `script` is the authors': phi_L and phi_U where the loss attack has an FPR of at most 0.22 and 0.30, phi_M
    where Merlin has at most `alpha`, which `grid` does not use.
    Raises ValueError where the shadow lacks members or non-members, or has fewer than 20 records for `grid`,
    on NaN or infinite losses, and on ratios outside [0, 1].
    """
    _fit("shadow_loss", shadow_loss, "shadow_ratio", shadow_ratio)
    inside = int(shadow_member.sum())
    if inside in (0, len(shadow_member)):
        raise ValueError(f"shadow_member must hold both sides, got {inside} of {len(shadow_member)} in")
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must lie between 0 and 1, got {alpha}")
    l, ratio = shadow_loss.double(), shadow_ratio.double()
    if rule == "grid":
        return _searched(l, ratio, shadow_member)
    low, high = (max(0.0, -_at(-l, shadow_member, fpr)) for fpr in (FPR_LOW, FPR_HIGH))
    return Thresholds(low, high, _at(ratio, shadow_member, alpha))


def _searched(
    loss: Float64[Tensor, "r"], ratio: Float64[Tensor, "r"], member: Bool[Tensor, "r"]
) -> Thresholds:
    """Counts of all triples at once, as differences of counts below phi_U and below phi_L."""
    # DIFFERS: at least 20 records and 1 % must be flagged. Else the best precision is 1, of one lucky member.
    least = max(FEW, len(loss) / 100)
    if len(loss) < least:
        raise ValueError(f"shadow_loss must hold {FEW}+ records for rule='grid', got {len(loss)}")
    edge = _grid(loss)
    # at phi_M = 0 a ratio of 1 outside the band would score as one of 0 inside, and so be flagged
    level = _grid(ratio[ratio > 0] if (ratio > 0).sum() >= least else ratio)
    at_most, below = loss[:, None] <= edge, loss[:, None] < edge
    above = (ratio[:, None] >= level).double()

    def counted(kept: Bool[Tensor, "r"]) -> Float64[Tensor, "e e v"]:
        upper, lower = ((side & kept[:, None]).double().T @ above for side in (at_most, below))
        return upper - lower[:, None]

    flagged, hits = counted(torch.ones_like(member)), counted(member)
    precision = torch.where(flagged >= least, hits / flagged, -1.0)
    best = torch.where(precision == precision.max(), flagged, -1.0)
    low, high, at = torch.unravel_index(best.argmax(), best.shape)
    return Thresholds(float(edge[low]), float(edge[high]), float(level[at]))


def _grid(value: Float64[Tensor, "r"]) -> Float64[Tensor, "v"]:
    """The distinct values, or 101 of them evenly by rank."""
    value = value.unique()
    # DIFFERS: a grid of ours, so that the search costs the same for any number of records.
    return value[torch.linspace(0, len(value) - 1, min(GRID, len(value)), dtype=torch.float64).round().long()]


def _at(score: Float64[Tensor, "r"], member: Bool[Tensor, "r"], fpr: float) -> float:
    """The lowest score at or above which at most that share of the non-members lies; infinite if none is."""
    outside = score[~member].sort(descending=True).values
    value = score.unique()
    alarms = len(outside) - torch.searchsorted(outside.flip(0), value)
    fit = value[alarms <= allowed(len(outside), fpr)]
    return float(fit[0]) if len(fit) else float("inf")


def _noisy(
    x: Float[Tensor, "r *d"], T: int, sigma: float, noise: Noise, generator: Generator
) -> Float[Tensor, "r {T} *d"]:
    """T copies of each record. Never cut to [0, 1] here: the paper does not."""
    shape = (len(x), T, *x.shape[1:])
    if noise == "gaussian":
        eta = torch.randn(shape, generator=generator, dtype=x.dtype)
    else:
        # DIFFERS: the authors' uniform noise is U(0, sigma), which asks on one side of x only.
        eta = 2 * torch.rand(shape, generator=generator, dtype=x.dtype) - 1
    return x[:, None] + sigma * eta.to(x.device)


def _check(oracle: Oracle, n: int, T: int, sigma: float) -> None:
    if oracle.reveals != "probabilities":
        raise ValueError(f"oracle must reveal probabilities to this attack, got {oracle.reveals}")
    if T < 1 or not 0 < sigma < float("inf"):
        raise ValueError(f"T must be 1 or more and sigma above 0, got {T} and {sigma}")
    if oracle.left is not None and n * (T + 1) > oracle.left:
        raise BudgetExceeded(
            f"{n * (T + 1)} queries asked, {oracle.left} left of a budget of {oracle.budget}"
        )


def _fit(a: str, loss: Float[Tensor, "*t n"], b: str, ratio: Float[Tensor, "*t n"]) -> None:
    if not loss.isfinite().all():
        raise ValueError(f"{a} must be finite, got {int((~loss.isfinite()).sum())} NaN or infinite values")
    if not ((ratio >= 0) & (ratio <= 1)).all():
        raise ValueError(f"{b} must lie in 0 .. 1, got {float(ratio[~((ratio >= 0) & (ratio <= 1))][0])}")
