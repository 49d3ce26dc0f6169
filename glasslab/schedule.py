"""A training job, and its course: which records come in which step, at which learning rate, and its end."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor, nn
from torch.nn.functional import cross_entropy

from glasslab.data import Data
from glasslab.recipe import Recipe


@dataclass(frozen=True, eq=False)
class Job:
    """What an engine is given: the checked arguments of glasslab.train.train; val only where it is used."""

    net: Callable[[], nn.Module]
    recipe: Recipe
    x: Float[Tensor, "n *d"]
    y: Int[Tensor, "n"] | Float[Tensor, "n *o"]
    member: Bool[Tensor, "b n"]
    seeds: Sequence[int]
    val: Data | None
    loss: Callable[[Tensor, Tensor], Tensor] | None  # (outputs, targets) -> mean; None: cross-entropy
    device: torch.device
    tick: Callable[[int], None]

    @property
    def steps(self) -> int:
        """Steps an epoch, as many as half of the candidates fill: the same for all rows, so they stack."""
        return math.ceil(self.member.shape[1] / 2 / self.recipe.batch)

    def mean_loss(self, z: Tensor, target: Tensor) -> Tensor:
        if self.loss is not None:
            return self.loss(z, target)
        return cross_entropy(z, target, label_smoothing=self.recipe.label_smoothing)

    def fresh(self, seed: int) -> nn.Module:
        """A net on the device, drawn from torch's global generator, which is put back afterwards."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.net().to(self.device).train()


def order(
    row: Bool[Tensor, "n"], steps: int, batch: int, generator: Generator
) -> Int[Tensor, "{steps} {batch}"]:
    """One epoch: the row's members shuffled, from the start again where they run out."""
    members = row.nonzero().squeeze(1)
    shuffled = members[torch.randperm(len(members), generator=generator)]
    return shuffled[torch.arange(steps * batch) % len(members)].view(steps, batch)


def rate(recipe: Recipe, step: int, steps: int) -> float:
    """Learning rate of one of `steps` steps in all.

    >>> [rate(Recipe(lr=1.0, schedule="step"), step, 8) for step in (0, 4, 6)]
    [1.0, 0.1, 0.01]
    """
    if recipe.schedule == "cosine":
        return recipe.lr * (1 + math.cos(math.pi * step / steps)) / 2
    if recipe.schedule == "step":
        return recipe.lr * 10.0 ** -(int(step >= steps / 2) + int(step >= 3 * steps / 4))
    return recipe.lr


class Patience:
    """Which of b models still learn: each stops after `patience` epochs without a lower validation loss."""

    def __init__(self, models: int, patience: int) -> None:
        self.patience = patience
        self.best = torch.full((models,), math.inf)
        self.waited = torch.zeros(models, dtype=torch.long)

    def better(self, loss: Float[Tensor, "b"]) -> Bool[Tensor, "b"]:
        """Takes one epoch's losses; the models whose weights of this epoch are to be kept."""
        better = (loss < self.best) & (self.waited < self.patience)
        self.best = torch.where(better, loss, self.best)
        self.waited = torch.where(better, 0, self.waited + 1)
        return better

    @property
    def over(self) -> bool:
        return bool((self.waited >= self.patience).all())
