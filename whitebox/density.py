"""Density over the weights: the direct attempt at Pr[theta | member], kept as a negative control. Ours.

The attacker has: the target's weights, m shadow models and their membership, and records that show which
units are alike. All models are carried onto one, the target, by permutations of their units (see `align`;
Ainsworth et al. 2023, arXiv:2209.04836); their parameters are stacked, [m, d], and standardised. Membership
b of every record is then predicted at once by kernel ridge: k (K + I)^-1 (b - mean b), K the shadows' Gram
matrix, k the target's products with them. It needs no inverse in d, and finds next to nothing: m models are
too few for d directions, also where no symmetry is left. Higher = member.
"""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Float64
from torch import Generator, Tensor, nn

from whitebox.align import Method, align
from whitebox.gradients import check_eval, owners
from whitebox.symmetry import check_shapes

Classifier = Literal["ridge", "lda"]

FORMED = 1 << 22  # numbers in float64 at a time


def density(
    model: nn.Module,
    shadows: Sequence[nn.Module],
    member: Bool[Tensor, "m n"],
    aux_x: Float[Tensor, "a *d"],
    generator: Generator,
    *,
    alignment: Method | None = "activations",
    classifier: Classifier = "ridge",
    ridge: float = 1.0,
    components: int = 16,
) -> Float64[Tensor, "n"]:
    """Predicted membership of each record less its mean over the shadows; with "lda" a log-ratio in nats.

    member[i, j]: record j is in shadow i. `ridge` is added to the Gram matrix. "lda" takes the top
    `components` of the shadows, and in them two Gaussians a record with one covariance. Without `alignment`
    units stay as they stand. The records themselves are not used, and neither are buffers.
    Raises ValueError in training mode, on fewer than 2 shadows, or of other shapes; with "lda" unless each
    record has a shadow a side and the shadows number 3 more than the components.
    """
    _check(model, shadows, member, classifier, ridge, components)
    K = gram(_stacked(model, shadows, aux_x, generator, alignment))
    b = member.double().to(K.device)
    if classifier == "ridge":
        root = K[1:, 1:] + ridge * torch.eye(len(b)).to(K)
        score = torch.linalg.solve(root, K[0, 1:]) @ (b - b.mean(0))
    else:
        score = _lda(K, b, components)
    return score.to(member.device)


def gram(theta: Float[Tensor, "models d"]) -> Float64[Tensor, "models models"]:
    """Inner products of standardised rows; the first row is the target's, the others set mean and spread.

    Coordinates that are the same in all shadows do not count.
    """
    K = torch.zeros(len(theta), len(theta), dtype=torch.float64, device=theta.device)
    for part in theta.split(max(1, FORMED // len(theta)), 1):
        t = part.double()
        mean, spread = t[1:].mean(0), t[1:].std(0, correction=0)
        alive = spread > 1e-12 * t[1:].abs().amax(0)
        t = torch.where(alive, (t - mean) / torch.where(alive, spread, 1.0), 0.0)
        K += t @ t.T
    return K


def _stacked(
    model: nn.Module, shadows: Sequence[nn.Module], x: Tensor, generator: Generator, alignment: Method | None
) -> Float[Tensor, "models d"]:
    """Parameters of the target, then of each shadow in the order of the target's units, one row each."""
    device = next(model.parameters(), x).device
    rows = [_flat(model)]
    for i in range(len(shadows)):
        net = shadows[i]
        check_eval(net)
        check_shapes(net, model, f"shadows[{i}]")
        if alignment is not None and len(owners(model)) > 1:  # one layer: nothing is hidden
            net = align(net, model, x, method=alignment, generator=generator)
        rows.append(_flat(net).to(device))
    return torch.stack(rows)


def _flat(net: nn.Module) -> Float[Tensor, "d"]:
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def _lda(
    K: Float64[Tensor, "models models"], b: Float64[Tensor, "m n"], components: int
) -> Float64[Tensor, "n"]:
    """w.(t - middle), w = S^-1 (mu_in - mu_out), S the covariance within both sides, a record at a time."""
    value, vector = torch.linalg.eigh(K[1:, 1:])
    value, vector = value[-components:], vector[:, -components:]
    alive = value > 1e-9 * value[-1]
    value, vector = value[alive], vector[:, alive]
    S = vector * value.sqrt()  # the shadows in their own components, [m q]
    t = K[0, 1:] @ vector / value.sqrt()
    n_in, n_out = b.sum(0)[:, None], (1 - b).sum(0)[:, None]
    mu_in, mu_out = b.T @ S / n_in, (1 - b).T @ S / n_out
    apart, m = mu_in - mu_out, len(b)
    # all models have diagonal squares in their components; what lies between the sides is one outer product
    between = (n_in * n_out / m)[:, :, None] * apart[:, :, None] * apart[:, None, :]
    within = (torch.diag(value) - between) / (m - 2)
    w = torch.linalg.solve(within, apart)
    return (w * (t - (mu_in + mu_out) / 2)).sum(1)


def _check(
    model: nn.Module,
    shadows: Sequence[nn.Module],
    member: Tensor,
    classifier: str,
    ridge: float,
    components: int,
) -> None:
    check_eval(model)
    if classifier not in get_args(Classifier):
        raise ValueError(f"classifier must be one of {', '.join(get_args(Classifier))}, got {classifier!r}")
    if len(shadows) < 2 or len(shadows) != len(member):
        raise ValueError(
            f"shadows must be 2 or more, one a row of member, got {len(shadows)} for {len(member)} rows"
        )
    if not ridge > 0:
        raise ValueError(f"ridge must be above 0, got {ridge}")
    if classifier == "lda":
        if not 1 <= components <= len(shadows) - 3:
            raise ValueError(
                f"components must lie in 1 .. {len(shadows) - 3} for {len(shadows)} shadows, got {components}"
            )
        empty = ~(member.any(0) & ~member.all(0))
        if empty.any():
            record = int(empty.nonzero()[0])
            raise ValueError(
                f"member must hold 1+ shadows in and out of each record, got 0 for record {record}"
            )
