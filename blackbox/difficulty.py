"""Difficulty calibration: what the target says of a record, less what other models say of it.

Sablayrolles et al. 2019, arXiv:1908.11229 (MALT): s - (mu_in + mu_out) / 2. Watson et al. 2022,
arXiv:2111.08440: s - mu_out. The attacker has: the target's p_y, and shadow models in and out of each record,
or out of it only. s is any signal that grows with membership, such as minus the loss (the papers') or phi;
mu_in and mu_out are its locations over the shadows in and out. Over k queries it is the mean.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from glasslab.likelihood import Location
from glasslab.moments import a_model_each, moments


def sablayrolles(
    s: Float[Tensor, "... n"],
    S: Float[Tensor, "m *k n"],
    shadow_member: Bool[Tensor, "m n"],
    *,
    location: Location = "median",
) -> Float64[Tensor, "... n"]:
    """Scores in units of s, which must grow with membership (-loss, phi); one a record.

    [n], or [*t n] for s [*t n] with shadows S [m n], and [*t k n] with S [m k n].
    Raises ValueError naming a record without a model in, or without one out, or whose signal is not finite.
    """
    mu = _locations(S, {"in": shadow_member, "out": ~shadow_member}, location)
    return _above(s, (mu["in"] + mu["out"]) / 2)


def watson(
    s: Float[Tensor, "... n"],
    S: Float[Tensor, "m *k n"],
    shadow_member: Bool[Tensor, "m n"],
    *,
    location: Location = "mean",
) -> Float64[Tensor, "... n"]:
    """Scores from the OUT models alone, one of which is enough; shapes, signal, errors as `sablayrolles`."""
    return _above(s, _locations(S, {"out": ~shadow_member}, location)["out"])


def _locations(
    S: Float[Tensor, "m *k n"], sides: Mapping[str, Bool[Tensor, "m n"]], location: Location
) -> dict[str, Float64[Tensor, "*k n"]]:
    """One a side, record and query, in one pass over S, which may be memory-mapped."""
    for side, models in sides.items():
        if models.shape != (S.shape[0], S.shape[-1]):
            raise ValueError(
                f"shadow_member must be [m n] as S [m *k n], got {[*models.shape]}, {[*S.shape]}"
            )
        a_model_each(models, side)
    # DIFFERS: all models count. Published code keeps the last one only, and divides by their number.
    read = moments(S, sides, median=location == "median")
    return {side: getattr(read[side], location) for side in sides}


def _above(s: Float[Tensor, "... n"], mu: Float64[Tensor, "*k n"]) -> Float64[Tensor, "... n"]:
    """s - mu, mean over the queries."""
    if s.shape[-mu.ndim :] != mu.shape:
        raise ValueError(f"s must end in {[*mu.shape]} as S, got {[*s.shape]}")
    if not s.isfinite().all():
        record = int((~s.isfinite()).nonzero()[0, -1])
        raise ValueError(f"s must be finite, got NaN or infinity for record {record}")
    queries = tuple(range(-mu.ndim, -1))
    excess = s.double() - mu
    return torch.mean(excess, queries) if queries else excess
