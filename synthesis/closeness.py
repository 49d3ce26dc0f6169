"""How near synthetic records x [n d] come to real ones, without any model: tables of flat records.

marginal_distance: total variation of each feature, 1/2 sum_b |share of x in b - share of real in b|.
pair_distance: mean |corr(x)_ij - corr(real)_ij| over i < j. nearest: distance to the nearest training record
and to the nearest held-out one. covered: the coverage of Naeem et al. 2020, arXiv:2002.09797: the share of
real records with a synthetic one at most as far off as their own k-th nearest other real record.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Int
from torch import Generator, Tensor

BINS = 20
ROWS = 1024  # records whose distances are held at a time
ROUNDING = 1e-12  # of squared distances, as a share of squared norms


class Near(NamedTuple):
    """Distance of each synthetic record to its nearest training and its nearest held-out record."""

    train: Float64[Tensor, "n"]
    held: Float64[Tensor, "n"]
    each: int  # training records, and as many held-out ones


def marginal_distance(
    x: Float[Tensor, "n d"], real: Float[Tensor, "r d"], *, bins: int = BINS
) -> Float64[Tensor, "d"]:
    """Total variation per feature, 0 to 1, in `bins` bins that hold equally many real records.

    A value that fills a bin of its own is one: for zeros and ones this is |p - q|. Features of at most `bins`
    real values are compared value by value, and so is what lies between these.
    """
    columns = zip(x.double().T, real.double().T, strict=True)
    return torch.stack([_variation(a, b, _edges(b, bins)) for a, b in columns])


def _edges(real: Float64[Tensor, "r"], bins: int) -> Float64[Tensor, "e"]:
    values = real.unique()
    if len(values) <= bins:
        return values
    inner = torch.linspace(0, 1, bins + 1, dtype=real.dtype, device=real.device)[1:-1]
    return real.quantile(inner).unique()


def _variation(a: Tensor, b: Tensor, edges: Float64[Tensor, "e"]) -> Float64[Tensor, ""]:
    """Below, at and above each edge are bins: an edge that is no single value is one that nobody is at."""
    shares = []
    for v in (a, b):
        v = v.contiguous()
        cell = torch.searchsorted(edges, v) + torch.searchsorted(edges, v, right=True)
        shares.append(torch.bincount(cell, minlength=2 * len(edges) + 1).double() / len(v))
    return (shares[0] - shares[1]).abs().sum() / 2


def pair_distance(x: Float[Tensor, "n d"], real: Float[Tensor, "r d"]) -> float:
    """Mean absolute difference of the correlations of all pairs of two features; d >= 2.

    A feature of one value is correlated with nothing: 0.
    """
    difference = (_correlation(x) - _correlation(real)).abs()
    upper = torch.triu(torch.ones_like(difference), 1).bool()
    return float(difference[upper].mean())


def _correlation(x: Float[Tensor, "n d"]) -> Float64[Tensor, "d d"]:
    x = x.double()
    constant = (x == x[0]).all(0)  # whose computed spread may be 1e-17 instead of 0
    spread = torch.where(constant, torch.inf, x.std(0, correction=0))
    z = (x - x.mean(0)) / spread
    return z.T @ z / len(x)


def nearest(
    x: Float[Tensor, "n d"], train: Float[Tensor, "t d"], held: Float[Tensor, "h d"], *, generator: Generator
) -> Near:
    """Euclidean distances. Of more records one is nearer by chance: the larger side is cut to the smaller."""
    each = min(len(train), len(held))
    sides = [side if len(side) == each else some(side, each, generator) for side in (train, held)]
    near = [torch.cat([_squared(rows, side).amin(1) for rows in x.split(ROWS)]).sqrt() for side in sides]
    return Near(near[0], near[1], each)


def covered(x: Float[Tensor, "n d"], real: Float[Tensor, "r d"], *, k: int = 5) -> float:
    """Share of real records with a synthetic one within their k-th nearest other real record; r > k.

    As far off counts as within. Of as many independent records of the same kind it is about 1 - 2^-k, and it
    grows with their number.
    """
    if not len(x):
        return 0.0
    hits = 0
    for start in range(0, len(real), ROWS):
        rows = real[start : start + ROWS]
        own = _squared(rows, real)
        own[torch.arange(len(rows)), start + torch.arange(len(rows))] = torch.inf
        radius = own.kthvalue(k, 1).values + ROUNDING * rows.double().square().sum(1)
        hits += int((_squared(rows, x).amin(1) <= radius).sum())
    return hits / len(real)


def _squared(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> Float64[Tensor, "n m"]:
    """||a_i - b_j||^2 by a product of matrices, a hundred times as fast as differences.

    Exact for small whole numbers, and so for bits; else equal records may be ROUNDING ||a||^2 apart.
    """
    a, b = a.double(), b.double()
    norms = a.square().sum(1)[:, None] + b.square().sum(1)
    return (norms - 2 * a @ b.T).clamp(min=0)


def some(x: Float[Tensor, "n *d"], m: int, generator: Generator) -> Float[Tensor, "m *d"]:
    """m of the records, or all where there are no more, in their order."""
    return x[chosen(len(x), m, generator)]


def chosen(n: int, m: int, generator: Generator) -> Int[Tensor, "m"]:
    """m of the numbers 0 .. n - 1, ascending; all of them where n <= m, and then nothing is drawn."""
    return torch.arange(n) if n <= m else torch.randperm(n, generator=generator)[:m].sort().values
