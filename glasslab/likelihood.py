"""The Gaussian in/out likelihood of a signal (Carlini et al. 2022, arXiv:2112.03570, Algorithm 1).

For each record and query, the signal is N(mu_in, sig_in^2) over the models that trained on the record, and
N(mu_out, sig_out^2) over the others. One `Fit` serves every target. `fit` reads the signal once and keeps
counts, means, medians and squares (glasslab/moments.py); all spread rules are arithmetic on these.
"""

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int
from scipy.stats import shapiro
from torch import Tensor

from glasslab.checks import Floored
from glasslab.moments import Moments, chunks, moments

Rule = Literal["record", "shrunk", "pooled", "grand", "grand_in"]
Variance = Literal["auto", Rule]
Location = Literal["median", "mean"]
Sides = Literal["both", "out"]

ENOUGH = 32  # models a side from which on "auto" trusts a record's own spread
FLOOR = 1e-3  # of the pooled spread
NU0 = 4.0  # models that the pooled variance counts for in "shrunk"


@dataclass(frozen=True, eq=False)
class Fit:
    """Location and spread over the models in and out, one a record and query; `variance` says by which rule.

    The IN side is None where the OUT models alone were fitted.
    """

    mu_in: Float64[Tensor, "*k n"] | None
    sig_in: Float64[Tensor, "*k n"] | None
    mu_out: Float64[Tensor, "*k n"]
    sig_out: Float64[Tensor, "*k n"]
    n_in: Int[Tensor, "n"]
    n_out: Int[Tensor, "n"]
    variance: Rule


def fit(
    S: Float[Tensor, "m *k n"],
    member: Bool[Tensor, "m n"],
    *,
    variance: Variance = "auto",
    location: Location = "median",
    sides: Sides = "both",
    nu0: float = NU0,
) -> Fit:
    """One pass over S, which may be memory-mapped: O(m k n) time, and little more memory than the result.

    The spread is one of
    - `record`: standard deviation of each record's own values (ddof 0);
    - `shrunk`: of n own values, variance (nu0 pooled^2 + n record^2) / (nu0 + n), the rules above and below;
    - `pooled`: one number a side over records and queries, around each record's own location;
    - `grand`: one number a side, around one grand mean (ddof 0);
    - `grand_in`: as `grand`, the IN number for both sides: an error of published code, for conformance only;
    - `auto`: `record` where every record has 32 models a side, else `pooled`.

    Warns Floored with the number of spreads below 1e-3 of the pooled one. Raises ValueError where a side has
    too few models, with record, needed and found count, where S is NaN or infinite, and for a nu0 below 0.
    """
    if not nu0 >= 0:
        raise ValueError(f"nu0 must be 0 or more, got {nu0}")
    if member.shape != (S.shape[0], S.shape[-1]):
        raise ValueError(f"member must be [m n] as S [m *k n], got {[*member.shape]} for {[*S.shape]}")
    both = sides == "both" or variance == "grand_in"
    where = {"in": member, "out": ~member} if both else {"out": ~member}
    rule = _enough(variance, {side: models.sum(0) for side, models in where.items()})
    read = moments(S, where, median=location == "median")
    mu = {side: getattr(read[side], location) for side in where}
    sig = {
        side: _spread(read["in" if rule == "grand_in" else side], rule, mu[side], side, nu0) for side in where
    }
    n_out = read["out"].count
    return Fit(mu.get("in"), sig.get("in"), mu["out"], sig["out"], len(member) - n_out, n_out, rule)


def shrunk(
    square: Float64[Tensor, "*k n"], n: Int[Tensor, "n"], pooled: float, nu0: float
) -> Float64[Tensor, "*k n"]:
    """(nu0 pooled + square) / (nu0 + n): variances of n values each, `square` their sum of squares.

    The posterior scale of a variance under a scaled inverse chi-square prior of nu0 degrees of freedom
    (Brännvall 2026, arXiv:2603.11799). nu0 = 0 leaves square / n, math.inf the pooled variance.
    """
    own = n / (nu0 + n.double())  # the weight of a record's own variance; 0 at nu0 = inf
    return (1 - own) * pooled + own * square / n.clamp(min=1)


def log_prob(
    s: Float[Tensor, "... n"], mu: Float64[Tensor, "*k n"], sig: Float64[Tensor, "*k n"]
) -> Float64[Tensor, "... n"]:
    """log N(s; mu, sig^2) in nats."""
    return -((s.double() - mu) / sig).square() / 2 - sig.log() - math.log(2 * math.pi) / 2


def ratio(phi: Float[Tensor, "... n"], fit: Fit) -> Float64[Tensor, "... n"]:
    """log N(phi | in) - log N(phi | out) in nats, mean over the queries; any number of targets at once.

    phi is [*t n] for S [m n], and [*t k n] for S [m k n].
    Raises ValueError where the fit has no IN side, and where phi does not suit it or is not finite.
    """
    mu_in, sig_in = fit.mu_in, fit.sig_in
    if mu_in is None or sig_in is None:
        raise ValueError("fit must hold both sides, got one of sides='out'")

    def score(s: Tensor, rows: slice) -> Tensor:
        inside = log_prob(s, mu_in[..., rows], sig_in[..., rows])
        return inside - log_prob(s, fit.mu_out[..., rows], fit.sig_out[..., rows])

    return _over_records(score, phi, fit)


def tail(phi: Float[Tensor, "... n"], fit: Fit, *, two_sided: bool = False) -> Float64[Tensor, "... n"]:
    """-log Pr[Z > phi] in nats for Z ~ N(mu_out, sig_out^2), mean over the queries; the IN side is not used.

    `two_sided` is -log N(phi | out): an unusually low phi counts too. Shapes and errors as in `ratio`.
    """

    def score(s: Tensor, rows: slice) -> Tensor:
        mu, sig = fit.mu_out[..., rows], fit.sig_out[..., rows]
        # log_ndtr(-u) stays exact where 1 - Phi(u) is 0 and Phi(u) is 1, from u = 8.3 on
        return -log_prob(s, mu, sig) if two_sided else -torch.special.log_ndtr((mu - s.double()) / sig)

    return _over_records(score, phi, fit)


def not_normal(
    S: Float[Tensor, "m n"], member: Bool[Tensor, "m n"], *, level: float = 0.05, records: int = 1000
) -> float:
    """Share of the first `records` whose OUT signals fail a Shapiro-Wilk test; normal ones fail at `level`.

    A diagnostic. Constant signals fail. ValueError unless 3 models are out of each record.
    """
    S, out = S[:, :records], ~member[:, :records]
    _demand(out.sum(0), 3, "out", "a Shapiro-Wilk test")
    values = [s[w].double().numpy() for s, w in zip(S.T, out.T, strict=True)]
    return float(np.mean([np.ptp(v) == 0 or shapiro(v).pvalue < level for v in values]))


def _enough(variance: Variance, counts: Mapping[str, Int[Tensor, "n"]]) -> Rule:
    """The rule, where the counts allow it: a location needs 1, an own spread 2, a pooled one 2 somewhere."""
    ample = all(bool((count >= ENOUGH).all()) for count in counts.values())
    rule: Rule = variance if variance != "auto" else "record" if ample else "pooled"
    for side, count in counts.items():
        if rule == "record":
            _demand(count, 2, side, "variance='record' ('pooled' needs 1)")
        _demand(count, 1, side, f"variance={rule!r}")
        if rule in ("pooled", "shrunk") and (count < 2).all():
            raise ValueError(f"member must hold 2+ models {side} of some record to pool, got 1 of each")
    return rule


def _demand(count: Int[Tensor, "n"], least: int, side: str, purpose: str) -> None:
    if (count < least).any():
        found, record = count.min(0)
        raise ValueError(
            f"member must hold {least}+ models {side} of each record for {purpose}, "
            f"got {found} for record {record}"
        )


def _spread(
    read: Moments, rule: Rule, mu: Float64[Tensor, "*k n"], side: str, nu0: float
) -> Float64[Tensor, "*k n"]:
    """One spread a record and query, above the floor."""
    pooled, grand = read.pooled(mu), read.grand()
    if rule == "record":
        sig = read.own()
    elif rule == "shrunk":
        sig = shrunk(read.square, read.count, pooled**2, nu0).sqrt()
    else:
        sig = torch.full_like(mu, pooled if rule == "pooled" else grand)
    # DIFFERS: the reference adds 1e-30, so that a record with equal shadows gets a score that owns the tail.
    floor = FLOOR * (pooled or grand or 1.0)
    low = int((sig < floor).sum())
    if low:
        warnings.warn(f"{low} of {sig.numel()} spreads {side} floored at {floor:.3g}", Floored, stacklevel=3)
    return sig.clamp(min=floor)


def _over_records(score: Callable[[Tensor, slice], Tensor], phi: Tensor, fit: Fit) -> Tensor:
    """Scores, mean over the queries, chunk by chunk."""
    shape = fit.mu_out.shape
    if phi.shape[-len(shape) :] != shape:
        raise ValueError(f"phi must end in {[*shape]} as the fit, got {[*phi.shape]}")
    if not phi.isfinite().all():
        raise ValueError(f"phi must be finite, got {int((~phi.isfinite()).sum())} NaN or infinite values")
    queries = tuple(range(-len(shape), -1))
    parts = [score(phi[..., rows], rows) for rows in chunks(shape[-1], phi[..., :1].numel())]
    return torch.cat([part.mean(queries) if queries else part for part in parts], -1)
