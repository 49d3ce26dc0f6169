"""Robustness to noise: how often does a noisy copy of a record keep its label?

Choquette-Choo et al. 2021, arXiv:2007.14321: what stands in for the distance to the boundary where features
are zeros and ones. The attacker has: labels, and one shadow model to choose the strength of the noise by.
Score: the share of N noisy copies that the target calls y, 0 where it does not call the record itself y.
Binary features flip independently with probability `level`; others get Gaussian noise of deviation `level`.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Generator, Tensor

from blackbox.boundary import labels
from glasslab.metrics import auc
from glasslab.oracle import Oracle

Kind = Literal["auto", "binary", "gaussian"]

ROWS = 8192  # noisy copies held and asked for at a time
FLIPS = (1, 2, 3, 5, 10)  # expected flips in a record
SPREADS = (0.1, 0.25, 0.5, 1.0, 2.0)  # deviation of the noise over that of a feature
DEFAULT = {"binary": 1, "gaussian": 2}  # which of these


def noise_robustness(
    oracle: Oracle,
    x: Float[Tensor, "n *d"],
    y: Int[Tensor, "n"],
    *,
    generator: Generator,
    N: int = 2500,
    kind: Kind = "auto",
    level: float | None = None,
) -> Float64[Tensor, "n"]:
    """The share, one a record, in multiples of 1/N; costs one query, and N more where the answer is y.

    `kind` auto: binary where x holds zeros and ones only. `level` is the probability of a flip, by default
    that of 2 in a record, or the deviation of the noise in units of x, by default half of a feature's.
    Choose it with `best_level`.
    Raises ValueError on NaN or infinite x, on a binary kind for other x, on N below 1, and on a level that
    is not above 0, or for flips above 1/2.
    """
    kind = _kind(x, kind)
    if N < 1:
        raise ValueError(f"N, the number of noisy copies, must be 1 or more, got {N}")
    if level is None:
        grid = levels(x, kind)
        level = grid[min(DEFAULT[kind], len(grid) - 1)]
    if not 0 < level <= (0.5 if kind == "binary" else torch.inf):
        raise ValueError(f"level must lie above 0, and for flips not above 1/2, got {level}")
    y = y.to(x.device)
    right = (labels(oracle, x) == y).nonzero().squeeze(1)
    kept = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    noisy = _flipped if kind == "binary" else _blurred
    for first in range(0, len(right) * N, ROWS):
        copies = torch.arange(first, min(first + ROWS, len(right) * N), device=x.device)
        record = right[copies // N]
        same = labels(oracle, noisy(x[record], level, generator)) == y[record]
        kept.index_add_(0, record, same.double())
    return kept / N


def levels(x: Float[Tensor, "n *d"], kind: Kind = "auto") -> list[float]:
    """Strengths to choose from, rising: 1, 2, 3, 5, 10 flips in a record, where that is half of it at most.

    Of Gaussian noise: a tenth to twice the features' standard deviation, the root of their mean variance.
    """
    if _kind(x, kind) == "binary":
        d = x[0].numel()
        return [k / d for k in FLIPS if k / d <= 0.5] or [0.5]
    spread = float(x.flatten(1).double().var(0, correction=0).mean().sqrt())
    # DIFFERS: the official grid is 0.02 to 0.1 on images in [0, 1]; tables need one in units of their own.
    return [share * spread for share in SPREADS]


def best_level(
    oracle: Oracle,
    x: Float[Tensor, "n *d"],
    y: Int[Tensor, "n"],
    member: Bool[Tensor, "n"],
    *,
    generator: Generator,
    N: int = 200,
    kind: Kind = "auto",
) -> float:
    """Of `levels`, the one that tells best which records a shadow trained on, by AUC; of equals the weakest.

    `oracle` asks one of the attacker's own models, and `member` says what it trained on.
    """
    kind = _kind(x, kind)

    def area(level: float) -> float:
        score = noise_robustness(oracle, x, y, generator=generator, N=N, kind=kind, level=level)
        return auc(score, member.to(score.device))

    return max(levels(x, kind), key=area)


def _flipped(x: Float[Tensor, "b *d"], level: float, generator: Generator) -> Float[Tensor, "b *d"]:
    flip = torch.rand(x.shape, generator=generator) < level
    return (x - flip.to(x)).abs()


def _blurred(x: Float[Tensor, "b *d"], level: float, generator: Generator) -> Float[Tensor, "b *d"]:
    return x + level * torch.randn(x.shape, generator=generator).to(x)


def _kind(x: Float[Tensor, "n *d"], kind: Kind) -> Literal["binary", "gaussian"]:
    """What x calls for. Raises ValueError on NaN or infinite x, and where flips cannot be."""
    if kind not in ("auto", "binary", "gaussian"):
        raise ValueError(f"kind must be 'auto', 'binary' or 'gaussian', got {kind!r}")
    if bad := int((~x.isfinite()).sum()):
        raise ValueError(f"x must be finite, got {bad} NaN or infinite values")
    other = int(((x != 0) & (x != 1)).sum())
    if kind == "binary" and other:
        raise ValueError(f"x must hold zeros and ones where kind is 'binary', got {other} other values")
    return "binary" if kind == "binary" or (kind == "auto" and not other) else "gaussian"
