"""Curvature of the last layer, exactly: H and G without a Kronecker approximation.

Who calls this holds the weights and some records. The last layer's gradient of a record is (p - e_y) a', a =
its input, with a 1 appended for a bias. The entries of p - e_y sum to 0 over the c classes, so H and G have
rank (c - 1) i1 of c i1, and no inverse. Hence all is written in P' [W | b], the columns of P an orthonormal
basis of the vectors that sum to 0. H = mean of kron(P' (diag p - p p') P, a a'), G = covariance of the
gradients with true labels; labels drawn from p would make G equal to H, up to the draw.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor, nn

from glasslab.signals import phi
from whitebox.gradients import captured, check_eval, chosen

LARGEST = 8192  # parameters: 512 MiB a matrix
FORMED = 2**22  # numbers of the gradients that are formed at once


class Last(NamedTuple):
    """H and true-label G of Theta = P' [W | b], row by row; P has orthonormal columns that sum to 0."""

    H: Float64[Tensor, "q q"]
    G: Float64[Tensor, "q q"]
    P: Float64[Tensor, "c c-1"]
    records: int


def last_layer(
    model: nn.Module, x: Float[Tensor, "n *d"], y: Int[Tensor, "n"], *, memory: str = "512MiB"
) -> Last:
    """H = mean of kron(diag p - p p', a a') and G = covariance of the true-label gradients, both exact.

    Both live in the subspace that a gradient can reach: its entries sum to 0 over the classes.
    Raises ValueError where the last layer is not dense or does not give the logits, or is too large.
    """
    a, z = last_inputs(model, x, y, memory=memory)
    P = projection(z)
    # p - e_y as -sigma(-phi) (e_y - q), since p_y - 1 is 0 in floating point from phi about 37
    slope = -(-phi(z, y)).sigmoid()[:, None] * (own_less_wrong(z, y) @ P)
    mean = (slope.T @ a / len(a)).flatten()
    G = mean.new_zeros(len(mean), len(mean))
    rows = max(1, FORMED // len(mean))
    for d, v in zip(slope.split(rows), a.split(rows), strict=True):
        g = (d[:, :, None] * v[:, None, :]).flatten(1) - mean
        G.addmm_(g.T, g)
    return Last(hessian(a, z), G / len(a), P, len(a))


def hessian(a: Float64[Tensor, "n i1"], z: Float64[Tensor, "n c"]) -> Float64[Tensor, "q q"]:
    """Mean of kron(P' (diag p - p p') P, a a'); ValueError above 8,192 rows."""
    p, P, (n, width) = z.softmax(-1), projection(z), a.shape
    k = P.shape[1]
    if k * width > LARGEST:
        raise ValueError(f"model must have at most {LARGEST} parameters in its last layer, got {k * width}")
    # p_i (1 - p_i) is the sum of p_i p_j over the others, which does not cancel at p_i near 1
    spread = -p[:, :, None] * p[:, None, :]
    spread.diagonal(dim1=1, dim2=2).zero_()
    spread.diagonal(dim1=1, dim2=2).copy_(-spread.sum(-1))
    within = P.T @ spread @ P
    H = a.new_empty(k, width, k, width)
    for i in range(k):
        for j in range(i + 1):
            block = a.T @ (a * within[:, i, j, None]) / n
            H[i, :, j], H[j, :, i] = block, block  # a block is symmetric
    return H.view(k * width, k * width)


def last_inputs(
    model: nn.Module, x: Float[Tensor, "n *d"], y: Int[Tensor, "n"], *, memory: str = "512MiB"
) -> tuple[Float64[Tensor, "n i1"], Float64[Tensor, "n c"]]:
    """Inputs of the last executed layer, with a 1 for a bias, and the logits it makes of them.

    Raises ValueError where that layer is not dense with one position, or where its outputs are no logits.
    """
    check_eval(model)
    (name,) = chosen(model, "last", x)
    layer, kind = model.get_submodule(name), "dense with one position"
    if not isinstance(layer, nn.Linear):
        raise ValueError(f"the last layer must be {kind}, got {type(layer).__name__} {name!r}")
    parts = [part[name] for part in captured(model, x, y, layers=(name,), of="phi", memory=memory)]
    if (t := parts[0].a.shape[1]) != 1:
        raise ValueError(f"the last layer must be {kind}, got {t} positions in {name!r}")
    a, delta = (torch.cat([part[i][:, 0].double() for part in parts]) for i in (0, 1))
    theta = [layer.weight] if layer.bias is None else [layer.weight, layer.bias[:, None]]
    z = a @ torch.cat(theta, 1).detach().double().T
    off = (delta - own_less_wrong(z, y)).abs().amax()
    if not off < 0.01:  # what follows the layer may add one number to all classes, no more
        raise ValueError(f"the last layer must give the logits, got gradients {off:.2g} off in {name!r}")
    return a, z


def own_less_wrong(z: Float64[Tensor, "n c"], y: Int[Tensor, "n"]) -> Float64[Tensor, "n c"]:
    """d phi / d z = e_y - q, q the softmax of the wrong classes' logits."""
    own = y[:, None] == torch.arange(z.shape[1], device=z.device)
    return own.double() - z.masked_fill(own, -torch.inf).softmax(-1)


def projection(z: Float64[Tensor, "n c"]) -> Float64[Tensor, "c c-1"]:
    """Helmert's orthonormal basis of the vectors that sum to 0 over the classes of z."""
    c = z.shape[1]
    k = torch.arange(1, c, dtype=torch.float64, device=z.device)
    row = torch.arange(c, device=z.device)[:, None]
    return ((row < k).double() - k * (row == k)) / (k * (k + 1)).sqrt()
