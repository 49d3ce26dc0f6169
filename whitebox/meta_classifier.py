"""The classifier of the meta attack model: Dense 16 ReLU -> Dense 1 on standardised features.

Sizes and steps are those of a public port of "Stolen Memories" (Leino & Fredrikson 2020, arXiv:1906.11798).
"""

from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float, Float64
from torch import Generator, Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from whitebox.fitting import fit, fresh

HIDDEN = 16
CONSTANT = 1e-9  # spread of a column, as a share of its size, that is none


@dataclass(frozen=True, eq=False)
class Classifier:
    """What tells members by their features, standardised by the non-members it was fitted with."""

    mean: Float64[Tensor, "f"]
    std: Float64[Tensor, "f"]
    net: nn.Module

    @torch.no_grad()
    def __call__(self, features: Float[Tensor, "n f"]) -> Float64[Tensor, "n"]:
        """Logits of membership, in nats."""
        return self.net((features.double() - self.mean) / self.std).squeeze(1)


def fit_classifier(
    features: Float[Tensor, "r f"],
    member: Bool[Tensor, "r"],
    generator: Generator,
    *,
    epochs: int = 32,
    batch: int = 64,
    lr: float = 1e-3,
) -> Classifier:
    """The meta classifier on rows (model, record); serves any target. Raises as `meta_shadows`."""
    values = features.double()
    if not values.isfinite().all() or member.all() or not member.any():
        bad, inside = int((~values.isfinite()).sum()), int(member.sum())
        raise ValueError(
            f"features must be finite, with both sides; got {bad} NaN or infinite values, "
            f"{inside} in and {len(member) - inside} out"
        )
    outside = values[~member]
    mean, std = outside.mean(0), outside.std(0, correction=0)
    std = torch.where(std > CONSTANT * (1 + mean.abs()), std, 1.0)
    width = values.shape[1]
    make = partial(_dense, width)
    net = fit(
        fresh(make, generator).to(values.device),
        [(values - mean) / std],
        member,
        generator,
        loss=_loss,
        epochs=epochs,
        batch=batch,
        lr=lr,
    )
    for w in net.parameters():
        w.requires_grad_(False)
    return Classifier(mean, std, net)


def _dense(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(width, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1)).double()


def _loss(logits: Float[Tensor, "b 1"], member: Float[Tensor, "b"]) -> Float[Tensor, ""]:
    return binary_cross_entropy_with_logits(logits.squeeze(1), member)
