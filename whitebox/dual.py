"""Dual coefficients: the training set read out of the weights, jointly over all candidates.

Ours; the representer of an L2-regularised optimum (Kimeldorf & Wahba 1971) read backwards. The attacker has:
the weights and the candidates, all at once. Training minimises mean loss + lambda/2 |theta|^2, so at its end
theta = sum_i alpha_i J_i over the training set, J = grad phi, alpha_i = sigma(-phi_i) / (n lambda) > 0, and 0
for whoever was not in it. With more weights than candidates that is a regression:
  alpha = (G + r tr(G)/n I)^-1 b,   G = J J',  b = J theta,   for each layer, and for all of them together.
Score: alpha (raw), or its likelihood ratio over shadows that are solved on the same candidates.
`dual_shadow` needs no weights of the target: J of an own shadow, b from the target's answers.
Higher = member.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor, nn

from glasslab.likelihood import Variance, fit, ratio
from whitebox.gram import Gram, foreign, grams, pooled

TINY: Final = 1e-300  # all g are 0 in float64 where every phi is above 745


def dual(
    model: nn.Module,
    x: Float[Tensor, "n *d"],
    y: Int[Tensor, "n"],
    *,
    ridge: float = 0.01,
    layers: Sequence[str] | str | None = None,
    memory: str = "512MiB",
) -> Float64[Tensor, "n"]:
    """alpha of all layers together. O(n^3): 10,000 candidates need 2.4 GB and minutes.

    Raises ValueError for a ridge not above 0, and as `grams` does.
    """
    found = [g for _, g in grams(model, x, y, layers=layers, memory=memory)]
    return solve(pooled(found), ridge)


def dual_shadow(
    shadow: nn.Module,
    x: Float[Tensor, "n *d"],
    y: Int[Tensor, "n"],
    z: Float[Tensor, "n c"],
    *,
    ridge: float = 0.01,
    layers: Sequence[str] | str | None = None,
    memory: str = "512MiB",
) -> Float64[Tensor, "n"]:
    """alpha from the target's answers z (logits, or log-probabilities) and a shadow's gradients.

    In the units of the shadow's own alpha. Raises ValueError as `dual` does.
    """
    found = [g for _, g in grams(shadow, x, y, layers=layers, memory=memory)]
    return solve(foreign(pooled(found), z, y), ridge)


def by_shadows(
    s: Float[Tensor, "*t n"],
    S: Float[Tensor, "m n"],
    member: Bool[Tensor, "m n"],
    *,
    variance: Variance = "shrunk",
) -> Float64[Tensor, "*t n"]:
    """log N(s | IN) - log N(s | OUT) in nats: alpha of the target, and of shadows on the same candidates."""
    return ratio(s, fit(S, member, variance=variance, location="mean"))


def solve(of: Gram, ridge: float) -> Float64[Tensor, "n"]:
    """(G + ridge tr(G)/n I)^-1 b by Cholesky; ValueError where ridge is not above 0."""
    if not ridge > 0:
        raise ValueError(f"ridge must be above 0, got {ridge}")
    A = of.G.clone()
    A.diagonal().add_(ridge * of.G.diagonal().mean().clamp(min=TINY))
    return torch.cholesky_solve(of.b[:, None], torch.linalg.cholesky(A))[:, 0]


def shaped(of: Gram, g: Float64[Tensor, "n"], ridge: float) -> Float64[Tensor, "n"]:
    """alpha / sqrt(g) under a prior of variance g: as `solve` with gradients sqrt(g_i) J_i, mean g = 1.

    What a record's weight would be if it was a member, g = sigma(-phi) / (n lambda) up to scale, is known
    from the model's answers; where it is near 0 nothing is to be found, and nothing is looked for.
    """
    q = (g / g.mean().clamp(min=TINY)).sqrt()
    return solve(of._replace(G=q[:, None] * of.G * q, b=q * of.b), ridge)


@dataclass(frozen=True)
class Dual:
    """alpha of each layer, one column a layer, and with `together` one more of all layers."""

    ridge: float = 0.01
    layers: tuple[str, ...] | None = None
    together: bool = True
    memory: str = "512MiB"

    def __call__(
        self, model: nn.Module, x: Float[Tensor, "n *d"], y: Int[Tensor, "n"]
    ) -> Float64[Tensor, "n L"]:
        found = [g for _, g in grams(model, x, y, layers=self.layers, memory=self.memory)]
        every = [*found, pooled(found)] if self.together else found
        return torch.stack([solve(g, self.ridge) for g in every], 1)
