"""BaVarIA, Bayesian variance inference for few shadow models (Brännvall 2026, arXiv:2603.11799).

The attacker has: the target's probabilities, and m shadow models whose training sets it knows. It is LiRA
with a normal-inverse-gamma prior on centre and variance of each side of each record: centre mu0 of weight
kappa0, variance s0^2 of nu0 degrees of freedom. After n values of mean f, Q the sum of squares around it,
    kappa = kappa0 + n,  mu = (kappa0 mu0 + n f) / kappa,  nu = nu0 + n,
    nu s^2 = nu0 s0^2 + Q + (kappa0 n / kappa) (f - mu0)^2.
A side's law of phi is Student's t_nu(mu, s^2 (1 + 1 / kappa)) in form t, N(mu, s^2) in form n.
Online: log density in - log density out. Offline: -log Pr[Z > phi], Z of the OUT law. Mean over k queries.
"""

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int
from scipy.optimize import brentq
from scipy.special import betaln, digamma, polygamma, stdtr
from torch import Tensor

from glasslab.checks import Floored
from glasslab.likelihood import FLOOR, log_prob, shrunk
from glasslab.moments import Moments, chunks, moments

Form = Literal["t", "n"]
Nu0 = float | Literal["fit"]

ZERO = 1e-12  # of the pooled variance
FAR = 8.0  # spreads, from which on a t tail is integrated
NODE, WEIGHT = np.polynomial.laguerre.laggauss(32)


class Law(NamedTuple):
    """Student's t of phi on one side; nu = inf is the normal law."""

    mu: Float64[Tensor, "*k n"]
    scale: Float64[Tensor, "*k n"]
    nu: Float64[Tensor, "n"]


def bavaria(
    phi: Float[Tensor, "... n"],
    shadow_phi: Float[Tensor, "m *k n"],
    shadow_member: Bool[Tensor, "m n"],
    *,
    form: Form = "t",
    nu0: Nu0 = 4.0,
    kappa0: float = 0.0,
) -> Float64[Tensor, "... n"]:
    """Scores in nats: [*t n] for phi [*t n] with shadows [m n], [*t k n] with [m k n].

    s0^2 is the side's pooled variance. nu0 = 0 trusts a record's own variance alone, math.inf the pooled one;
    `"fit"` reads nu0 and s0^2 off how unequal the records' own variances are. With kappa0 > 0, centres shrink
    towards mu0, the mean of the side's centres; a record may then lack models on a side, and s0^2 is had from
    the centres where no record has two models to pool.
    Raises ValueError where kappa0 = 0 does not allow that, and on shapes or values that do not fit. Warns
    Floored with the number of spreads below 1e-3 of s0, and where s0^2 is had from the centres.
    """
    sides = {"in": shadow_member, "out": ~shadow_member}
    law = _laws(shadow_phi, sides, form, nu0, kappa0)

    def score(s: Tensor, rows: slice) -> Tensor:
        return _log_density(s, _at(law["in"], rows)) - _log_density(s, _at(law["out"], rows))

    return _over_records(score, phi, law["out"])


def bavaria_offline(
    phi: Float[Tensor, "... n"],
    shadow_phi: Float[Tensor, "m *k n"],
    shadow_member: Bool[Tensor, "m n"],
    *,
    form: Form = "t",
    nu0: Nu0 = 4.0,
    kappa0: float = 0.0,
) -> Float64[Tensor, "... n"]:
    """Minus the log p-value in nats from the OUT models alone; shapes, settings, errors as in `bavaria`."""
    law = _laws(shadow_phi, {"out": ~shadow_member}, form, nu0, kappa0)["out"]
    # DIFFERS: minus the log p-value of one side, as in our offline LiRA; the prior and its settings are ours.
    return _over_records(lambda s, rows: -_log_tail(s, _at(law, rows)), phi, law)


def _laws(
    S: Float[Tensor, "m *k n"],
    sides: Mapping[str, Bool[Tensor, "m n"]],
    form: Form,
    nu0: Nu0,
    kappa0: float,
) -> dict[str, Law]:
    if sides["out"].shape != (S.shape[0], S.shape[-1]):
        need, got = [S.shape[0], S.shape[-1]], [*sides["out"].shape]
        raise ValueError(f"shadow_member must be {need} as shadow_phi, got {got}")
    if not 0 <= kappa0 < math.inf:
        raise ValueError(f"kappa0 must be 0 or more and finite, got {kappa0}")
    if nu0 != "fit" and not nu0 >= 0:
        raise ValueError(f"nu0 must be 0 or more, or 'fit', got {nu0}")
    for side, models in sides.items():
        _demand(side, models.sum(0), nu0, kappa0)
    # `moments` needs a model of each record; one without is lent all, and _law forgets what came of it
    read = moments(S, {side: w | ~w.any(0) for side, w in sides.items()}, median=False)
    return {side: _law(side, read[side], w.sum(0), form, nu0, kappa0) for side, w in sides.items()}


def _demand(side: str, n: Int[Tensor, "n"], nu0: Nu0, kappa0: float) -> None:
    """A centre takes one model of each record or a prior, a variance two of some record or centres."""
    if (n < 1).any() and not (kappa0 and nu0 and n.any()):
        record = int((n < 1).nonzero()[0])
        hint = "; bavaria_offline needs none" if side == "in" else ""
        raise ValueError(
            f"shadow_member must hold 1+ models {side} of each record, or of some with kappa0 and nu0 > 0, "
            f"got 0 for record {record}{hint}"
        )
    if (n < 2).all() and (not kappa0 or nu0 == "fit"):
        raise ValueError(f"shadow_member must hold 2+ models {side} of some record to pool, got 1 of each")


def _law(side: str, read: Moments, n: Int[Tensor, "n"], form: Form, nu0: Nu0, kappa0: float) -> Law:
    """The law of the next value after n of them."""
    some, kappa = n > 0, kappa0 + n.double()
    mu0 = read.mean[..., some].mean(-1, keepdim=True)
    f, square = read.mean.where(some, mu0), read.square.where(some, 0.0)
    away = (kappa0 * n / kappa) * (f - mu0).square()
    freedom, variance = _prior(side, square, away, n, nu0)
    nu = freedom + n.double()
    s = shrunk(square + away, n, variance, freedom).sqrt()
    # As in LiRA: a record with equal shadows would get a score that owns the tail.
    floor = FLOOR * (math.sqrt(variance) or float(f.std(correction=0)) or 1.0)
    if low := int((s < floor).sum()):
        warnings.warn(f"{low} of {s.numel()} spreads {side} floored at {floor:.3g}", Floored, stacklevel=4)
    s, mu = s.clamp(min=floor), f + (kappa0 / kappa) * (mu0 - f)
    if form == "n":
        return Law(mu, s, torch.full_like(nu, math.inf))
    return Law(mu, s * (1 + 1 / kappa).sqrt(), nu)


def _prior(
    side: str, square: Float64[Tensor, "*k n"], away: Float64[Tensor, "*k n"], n: Int[Tensor, "n"], nu0: Nu0
) -> tuple[float, float]:
    """(nu0, s0^2) of one side, over records and queries."""
    spare = (n - 1).clamp(min=0)
    if not spare.any():
        # under the prior, each of these squares is expected to be the variance
        warnings.warn(f"no record has 2 models {side}: s0^2 is had from the centres", Floored, stacklevel=5)
        return float(nu0), float(away[..., n > 0].mean())
    pooled = float(square.sum()) / float(spare.expand(square.shape).sum())
    return (float(nu0), pooled) if nu0 != "fit" else _fit(side, square[..., n > 1], spare[n > 1] / 2, pooled)


def _fit(
    side: str, square: Float64[Tensor, "*k r"], half: Float[Tensor, "r"], pooled: float
) -> tuple[float, float]:
    """(nu0, s0^2) that make a record's variance, of 2 half degrees of freedom, s0^2 times F(2 half, nu0).

    By mean and variance of the logarithms; (inf, pooled) where these differ no more than by chance.
    """
    v = square / (2 * half.double())
    good = v > ZERO * pooled
    if low := int((~good).sum()):
        warnings.warn(
            f"{low} of {v.numel()} variances {side} of 0 left out of the fit", Floored, stacklevel=6
        )
    if good.sum() < 2:
        return math.inf, pooled
    half = half.double().expand(v.shape)[good]
    e = v[good].log() - half.digamma() + half.log()
    excess = float(e.var() - half.polygamma(1).mean())
    if excess <= 0:
        return math.inf, pooled
    start = max(excess**-0.5, 1 / excess)  # trigamma(x) is above 1 / x and 1 / x^2, and below their sum
    x = brentq(lambda x: polygamma(1, x) - excess, start, 2 * start)
    return 2 * x, math.exp(float(e.mean()) + digamma(x) - math.log(x))


def _log_density(s: Float[Tensor, "... r"], law: Law) -> Float64[Tensor, "... r"]:
    if law.nu.isinf().all():
        return log_prob(s, law.mu, law.scale)
    u, nu = (s.double() - law.mu) / law.scale, law.nu
    # betaln, as the difference of two lgamma has no digits left for large nu
    peak = -torch.from_numpy(betaln(nu.cpu().numpy() / 2, 0.5)).to(nu.device) - nu.log() / 2
    return peak - law.scale.log() - (nu + 1) / 2 * (u.square() / nu).log1p()


def _log_tail(s: Float[Tensor, "... r"], law: Law) -> Float64[Tensor, "... r"]:
    """log Pr[Z > s], exact where the probability itself is 0 or 1."""
    u = (s.double() - law.mu) / law.scale
    if law.nu.isinf().all():
        return torch.special.log_ndtr(-u)
    x, nu = u.cpu().numpy(), np.broadcast_to(law.nu.cpu().numpy(), u.shape)
    below = np.log1p(-stdtr(nu, np.minimum(x, 0.0)))
    out = np.where(x < 0, below, np.log(stdtr(nu, -np.clip(x, 0.0, FAR))))
    far = x > FAR
    out[far] = _log_far_tail(x[far], nu[far])
    return torch.from_numpy(out).to(u.device)


def _log_far_tail(u: Float64[np.ndarray, "q"], nu: Float64[np.ndarray, "q"]) -> Float64[np.ndarray, "q"]:
    """log Pr[T > u]: the density is exp(-w) from u on, w = (nu + 1) / 2 log((nu + t^2) / (nu + u^2)).

    Gauss-Laguerre quadrature over w, as the probability itself is 0 far out.
    """
    size, total = nu + u * u, np.zeros_like(u)
    for node, weight in zip(NODE, WEIGHT, strict=True):
        v = 2 * node / (nu + 1)
        total += weight * size * np.exp(v) / np.sqrt(u * u + size * np.expm1(v))
    peak = -betaln(nu / 2, 0.5) - np.log(nu) / 2
    return peak - (nu + 1) / 2 * np.log1p(u * u / nu) + np.log(total / (nu + 1))


def _at(law: Law, rows: slice) -> Law:
    return Law(law.mu[..., rows], law.scale[..., rows], law.nu[rows])


def _over_records(
    score: Callable[[Tensor, slice], Tensor], phi: Float[Tensor, "... n"], law: Law
) -> Float64[Tensor, "... n"]:
    """Scores, mean over the queries, chunk by chunk."""
    shape = law.mu.shape
    if phi.shape[-len(shape) :] != shape:
        raise ValueError(f"phi must end in {[*shape]} as shadow_phi, got {[*phi.shape]}")
    if not phi.isfinite().all():
        raise ValueError(f"phi must be finite, got {int((~phi.isfinite()).sum())} NaN or infinite values")
    parts = [score(phi[..., rows], rows) for rows in chunks(shape[-1], phi[..., :1].numel())]
    whole = torch.cat(parts, -1)
    return whole.mean(-2) if len(shape) > 1 else whole
