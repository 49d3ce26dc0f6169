"""Measures of many inversions together, in the features of a classifier other than the target.

diversity: mean pairwise squared distance within a label; recall, the share of its private images inside a
ball around one of its inversions, the radius reaching the k-th nearest other inversion (Kynkaanniemi et al.
2019, arXiv:1904.06991); coverage, the share of its private images whose own ball, up to the k-th nearest
other private image, holds an inversion (Naeem et al. 2020, arXiv:2002.09797).
frechet: ||mu_a - mu_b||^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2), the Frechet distance of two Gaussians. It is
none of the published scores of that kind, which rest on another network's features.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from glasslab.recon import squared


class Diversity(NamedTuple):
    """One value a label, ascending; NaN where undefined; then `reason` says which labels and why."""

    pairwise: Float64[Tensor, "l"]
    recall: Float64[Tensor, "l"]
    coverage: Float64[Tensor, "l"]
    reason: str | None


class Frechet(NamedTuple):
    """A squared distance, or None and the reason why there is none."""

    value: float | None
    reason: str | None


def diversity(
    features: Float[Tensor, "n d"],
    y: Int[Tensor, "n"],
    private: Float[Tensor, "p d"],
    y_private: Int[Tensor, "p"],
    *,
    k: int = 3,
) -> Diversity:
    """How much a label's inversions differ, and how much of its private images they reach (shares).

    `pairwise` needs 2 inversions a label, `recall` k + 1 of them and a private image, `coverage` k + 1
    private images. Raises ValueError for k < 1 and without inversions.
    """
    if k < 1:
        raise ValueError(f"k must be 1 or more, got {k}")
    if not len(y):
        raise ValueError("y must hold one inversion or more, got none")
    rows, missing = [], []
    for label in y.unique():
        ours, real = features[y == label], private[y_private == label]
        n, p = len(ours), len(real)
        among, across = squared(ours, ours), squared(real, ours)
        nan = among.new_tensor(torch.nan)
        pairwise = among.sum() / (n * (n - 1)) if n > 1 else nan
        recall = (across <= _radius(among, k)[None]).any(1).double().mean() if n > k and p else nan
        covered = across <= _radius(squared(real, real), k)[:, None] if p > k else None
        coverage = covered.any(1).double().mean() if covered is not None else nan
        rows.append(torch.stack([pairwise, recall, coverage]))
        if n <= max(k, 1) or p <= k:
            missing.append(f"label {int(label)} has {n} and {p}")
    table = torch.stack(rows, 1)
    need = f"all three need {k + 1} inversions and {k + 1} private images a label: "
    return Diversity(table[0], table[1], table[2], need + "; ".join(missing) if missing else None)


def frechet(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"], *, shrinkage: float | None = None) -> Frechet:
    """Frechet distance of the Gaussians with the means and covariances (over n - 1) of two sets of features.

    Without `shrinkage` either set needs d + 1 rows; with it S becomes (1 - s) S + s tr(S) / d I, and two rows
    will do. Raises ValueError unless 0 < shrinkage <= 1.
    """
    if shrinkage is not None and not 0 < shrinkage <= 1:
        raise ValueError(f"shrinkage must lie in (0, 1], got {shrinkage}")
    d, few = a.shape[1], min(len(a), len(b))
    need = d + 1 if shrinkage is None else 2
    if few < need:
        return Frechet(None, f"{few} rows of {d} features: a covariance needs {need} or more")
    if not (a.isfinite().all() and b.isfinite().all()):
        return Frechet(None, "features are NaN or infinite")
    (mean_a, cov_a), (mean_b, cov_b) = (_moments(t.double(), shrinkage or 0.0) for t in (a, b))
    value, vector = torch.linalg.eigh(cov_a)
    root = (vector * value.clamp(min=0).sqrt()) @ vector.T
    product = root @ cov_b @ root  # symmetric, so its eigenvalues are real
    shared = torch.linalg.eigvalsh((product + product.T) / 2).clamp(min=0).sqrt().sum()
    distance = (mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * shared
    return Frechet(max(float(distance), 0.0), None)


def _radius(among: Float64[Tensor, "n n"], k: int) -> Float64[Tensor, "n"]:
    """Distance to the k-th nearest other row: the nearest is the row itself."""
    return among.kthvalue(k + 1, dim=1).values


def _moments(t: Float64[Tensor, "n d"], s: float) -> tuple[Float64[Tensor, "d"], Float64[Tensor, "d d"]]:
    d = t.shape[1]
    cov = (t - t.mean(0)).T @ (t - t.mean(0)) / (len(t) - 1)
    return t.mean(0), (1 - s) * cov + s * cov.trace() / d * torch.eye(d, dtype=t.dtype, device=t.device)
