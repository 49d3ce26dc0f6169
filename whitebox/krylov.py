"""Conjugate gradients for a block of right sides at once, with the matrix known by its products alone.

Run as the Lanczos method (Lanczos 1950) with its basis kept: the same iterates, and H^-2 g and H^-3 g come
from the space that H^-1 g was found in, without a further product.
"""

import warnings
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from glasslab.checks import Floored

Product = Callable[[Float64[Tensor, "b d"]], Float64[Tensor, "b d"]]


def powers(
    product: Product, g: Float64[Tensor, "b d"], *, tolerance: float, limit: int
) -> Float64[Tensor, "3 b d"]:
    """H^-1 g, H^-2 g and H^-3 g of each row; `product` gives H v for a block of rows, H symmetric.

    A row is done when |H a - b| <= tolerance |b| for each of its three steps from b to a, and is then no
    longer multiplied. Warns Floored with the number of rows that met negative curvature, and of those that
    `limit` products left undone.
    """
    out, size = g.new_zeros(3, *g.shape), g.norm(dim=1)
    left = size.nonzero()[:, 0]  # rows still running: a zero row is solved by zeros
    size, negative = size[left], 0
    basis = [g[left] / size[:, None]]
    diagonal, beside = g.new_zeros(len(left), 0), g.new_zeros(len(left), 0)
    for step in range(1, limit + 1):
        if not len(left):
            break
        v = product(basis[-1])
        diagonal = torch.cat([diagonal, (v * basis[-1]).sum(1, keepdim=True)], 1)
        v = v - diagonal[:, -1:] * basis[-1]
        if step > 1:
            v -= beside[:, -1:] * basis[-2]
        beta = v.norm(dim=1)
        T = diagonal.diag_embed() + beside.diag_embed(1) + beside.diag_embed(-1)
        z, done = _small(T, beta, tolerance)
        end = done | (step == limit)
        if end.any():
            negative += int((torch.linalg.eigvalsh(T[end]) <= 0).any(1).sum())
            parts = (z[end, :, k : k + 1] * q[end, None] for k, q in enumerate(basis))
            out[:, left[end]] = (sum(parts, g.new_zeros(())) * size[end, None, None]).transpose(0, 1)
            if not done.all() and step == limit:
                text = (
                    f"{int((~done).sum())} of {len(g)} records not within {tolerance:g} after {limit} steps"
                )
                warnings.warn(text, Floored, stacklevel=4)
        keep = ~end
        left, size = left[keep], size[keep]
        basis = [q[keep] for q in basis] if end.any() else basis
        basis.append(v[keep] / beta[keep, None].clamp(min=torch.finfo(v.dtype).tiny))
        diagonal, beside = diagonal[keep], torch.cat([beside, beta[:, None]], 1)[keep]
    if negative:
        text = f"{negative} of {len(g)} records met negative curvature, which eps does not outweigh"
        warnings.warn(text, Floored, stacklevel=4)
    return out


def _small(
    T: Float64[Tensor, "b k k"], beta: Float64[Tensor, "b"], tolerance: float
) -> tuple[Float64[Tensor, "b 3 k"], Bool[Tensor, "b"]]:
    """T^-1 e, T^-2 e, T^-3 e for e = (1, 0, ..., 0), and whether all three are within the tolerance."""
    b = T.new_zeros(len(T), T.shape[1], 1)
    b[:, 0] = 1.0
    solved, done = [], torch.ones(len(T), dtype=torch.bool, device=T.device)
    for _ in range(3):
        a = torch.linalg.solve_ex(T, b).result
        # What H maps out of the space: the last coordinate times beta. NaN compares as not done.
        done &= beta * a[:, -1, 0].abs() <= tolerance * b.norm(dim=(1, 2))
        solved.append(a[:, :, 0])
        b = a
    return torch.stack(solved, 1).nan_to_num(0.0, 0.0, 0.0), done
