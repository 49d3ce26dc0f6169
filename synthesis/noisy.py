"""Noisy real data (Shokri et al. 2017, arXiv:1610.05820): real records, a share of whose features is changed.

The attacker has: records like the target's, with their labels, of which some features are wrong. In each
record round(rate * u) of its u features, chosen anew for each, are changed: binary ones flipped, all others
redrawn from their marginal, uniform where none is known. Labels are kept, and the target is asked nothing.
"""

import warnings
from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor

from glasslab.checks import Floored
from glasslab.data import Data
from synthesis.features import (
    Features,
    check_legal,
    features_of,
    flips,
    joined,
    resolved,
    units,
    with_marginals,
)
from synthesis.synthetic import named

CELLS = 1 << 22  # random numbers of one chunk of records


def noisy(data: Data, rate: float | int, *, generator: Generator, features: Features | None = None) -> Data:
    """The same records and labels, each with exactly round(rate * u) features changed, without replacement.

    A one-hot group or a block of pixels is one of the u features. `features` default to a guess with the
    marginals of data itself. A redrawn value may be the one it was; a flipped bit never is. The name is
    "synthetic:noisy:" and a digest of data and settings.
    Warns Floored where a rate above 0 changes no feature. Raises ValueError on a rate outside [0, 1], and on
    values that the features forbid.
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"rate must lie in [0, 1], got {rate:g}")
    d, device = data.x[0].numel(), generator.device
    x = data.x.reshape(len(data), d)
    if features is None:
        held = resolved(with_marginals(features_of(data), data), d, device)
    else:
        check_legal(features, x, "data")
        held = resolved(features, d, device)
    unit, bits = units(held), flips(held)
    u = int(unit.max()) + 1
    k = round(rate * u)
    if rate and not k:
        warnings.warn(f"0 of {u} features change at a rate of {rate:g}", Floored, stacklevel=2)
    method = named(
        "noisy",
        {"data": data.digest, "rate": float(rate), "features": held, "generator": generator.get_state()},
    )
    parts = []
    for rows in x.split(max(1, CELLS // u)):
        changed = _chosen(len(rows), u, k, generator)[:, unit.to(device)].to(rows.device)
        parts.append(_changed(rows, changed, held, bits.to(rows.device), generator))
    return replace(data, x=torch.cat(parts).reshape(data.x.shape), name=f"synthetic:{method}")


def _chosen(n: int, u: int, k: int, generator: Generator) -> Bool[Tensor, "{n} {u}"]:
    """For each record a uniform set of exactly k of its u features."""
    order: Int[Tensor, "n u"] = torch.rand(n, u, generator=generator, device=generator.device).argsort(1)
    return torch.zeros(n, u, dtype=torch.bool, device=order.device).scatter(1, order[:, :k], True)


def _changed(
    x: Float[Tensor, "n d"],
    changed: Bool[Tensor, "n d"],
    features: Features,
    bits: Bool[Tensor, "d"],
    generator: Generator,
) -> Float[Tensor, "n d"]:
    """`bits` says which columns are flipped; the others are redrawn."""
    other = 1 - x if bits.all() else joined(features, len(x), generator).to(x)
    return torch.where(changed, torch.where(bits, 1 - x, other), x)
