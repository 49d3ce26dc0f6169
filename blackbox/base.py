"""BASE, the approximately Bayes-optimal attack (Lassila, Östman, Ngo & Graell i Amat 2025, arXiv:2505.24089).

The attacker has: the target's probability of the true class, and shadow models whose training sets it knows;
one is enough. Online: log p_theta - log mean_j p_j over models in and out in equal number. Offline:
log p_theta - a log mean_j p_j over the models out. Over k queries it is the mean of these.
Online it ranks as `blackbox.rmia.rmia` does without trimming, which adds steps, and ties with them.
Inputs are log p in nats, softmax temperature 2 by default: `blackbox.rmia.log_confidence`.
"""

import warnings

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from glasslab.checks import Floored
from glasslab.moments import a_model_each, chunks


def base(
    log_p: Float[Tensor, "... n"],
    shadow_log_p: Float[Tensor, "m *k n"],
    shadow_member: Bool[Tensor, "m n"],
) -> Float64[Tensor, "... n"]:
    """Scores in nats: [*t n] for log_p [*t n] with shadows [m n], [*t k n] with [m k n].

    Where a record has more models on one side, the first ones in model order are used. Where it has none on
    one side, as from a single shadow model, the other side stands alone; warns Floored with their number.
    Raises ValueError without a shadow model, and on shapes or values that do not fit.
    """
    if not len(shadow_member):
        raise ValueError("shadow_member must hold 1+ models, got 0")
    kept = _balanced(shadow_member)
    # DIFFERS: where published code needs both sides of each record, one side will do here, and is counted.
    lone = int((shadow_member.all(0) | ~shadow_member.any(0)).sum())
    if lone:
        warnings.warn(f"{lone} of {kept.shape[-1]} records have models on one side alone", Floored, 2)
    return _scores(log_p, shadow_log_p, kept, 1.0)


def base_offline(
    log_p: Float[Tensor, "... n"],
    shadow_log_p: Float[Tensor, "m *k n"],
    shadow_member: Bool[Tensor, "m n"],
    *,
    a: float = 0.33,
) -> Float64[Tensor, "... n"]:
    """As `base` from the models out alone, any number of them; ValueError names a record without one.

    a = 0 is the target's own log p, a = 1 the difference to the models out.
    """
    if not 0 <= a <= 1:
        raise ValueError(f"a must be in [0, 1], got {a}")
    a_model_each(~shadow_member, "out")
    # DIFFERS: public code asserts that exactly half of the models are out; any number from one on will do.
    return _scores(log_p, shadow_log_p, ~shadow_member, a)


def _balanced(member: Bool[Tensor, "m n"]) -> Bool[Tensor, "m n"]:
    """The first min(n_in, n_out) models of each side in model order, or all of the only side there is."""
    n_in, n_out = member.sum(0), (~member).sum(0)
    least = torch.minimum(n_in, n_out)
    if bool((n_in == n_out).all()):
        return torch.ones_like(member)
    place = torch.where(member, member.cumsum(0), (~member).cumsum(0))
    return place <= torch.where(least == 0, len(member), least)


def _scores(
    log_p: Float[Tensor, "... n"], S: Float[Tensor, "m *k n"], kept: Bool[Tensor, "m n"], a: float
) -> Float64[Tensor, "... n"]:
    """log p - a log mean over the models kept, mean over the queries, chunk by chunk."""
    if kept.shape != (S.shape[0], S.shape[-1]):
        need, got = [S.shape[0], S.shape[-1]], [*kept.shape]
        raise ValueError(f"shadow_member must be {need} as shadow_log_p, got {got}")
    if log_p.shape[-len(S.shape[1:]) :] != S.shape[1:]:
        raise ValueError(f"log_p must end in {[*S.shape[1:]]} as shadow_log_p, got {[*log_p.shape]}")
    if not log_p.isfinite().all():
        raise ValueError(f"log_p must be finite, got {int((~log_p.isfinite()).sum())} NaN or infinite values")
    parts = []
    for rows in chunks(S.shape[-1], max(S[..., :1].numel(), log_p[..., :1].numel())):
        x, used = (t[..., rows].movedim(0, -1).cpu().numpy() for t in (S, kept))
        x = np.array(x, dtype=np.float64, order="C")  # models last: summed along the memory
        if not np.isfinite(x).all():
            record = rows.start + int(np.argwhere(~np.isfinite(x))[0][-2])
            raise ValueError(f"shadow_log_p must be finite, got NaN or infinity for record {record}")
        parts.append(log_p[..., rows].double() - a * torch.from_numpy(_log_mean(x, used)).to(log_p.device))
    score = torch.cat(parts, -1)
    return score.mean(-2) if S.ndim > 2 else score


def _log_mean(x: Float64[np.ndarray, "*k r m"], used: Bool[np.ndarray, "r m"]) -> Float64[np.ndarray, "*k r"]:
    """log of the mean of exp(x) over the models used; exact where all are equal."""
    x = np.where(used, x, -np.inf)
    top = x.max(-1, keepdims=True)
    return top[..., 0] + np.log(np.exp(x - top).sum(-1) / used.sum(-1))
