"""One target, its candidate records, and what the attacker holds. Never the truth."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from glasslab.data import Data
from glasslab.oracle import Oracle
from glasslab.recipe import Recipe


@dataclass(frozen=True, eq=False)
class Shadows:
    """The attacker's own models, what they trained on and what they answer (a Zoo knows the truth).

    `records` and `member` say which model trained on what; `inside` says it of the candidates (all False
    for foreign shadows). z are the answers about the candidates, one for each of k queries, z_aux those about
    aux: logits, or log-probabilities where the interface masks them; either may be memory-mapped.
    """

    models: Sequence[nn.Module]
    records: Data
    member: Bool[Tensor, "m r"]
    inside: Bool[Tensor, "m n"]
    z: Float[Tensor, "m n k c"]
    z_aux: Float[Tensor, "m a c"]


@dataclass(frozen=True, eq=False)
class Game:
    """`model` is None unless the attacker holds the weights; the last four unless its access grants them."""

    oracle: Oracle
    model: nn.Module | None
    x: Float[Tensor, "n *d"]
    y: Int[Tensor, "n"]
    classes: int
    recipe: Recipe
    shadows: Shadows
    aux: Data
    init: nn.Module | None = None
    checkpoints: Sequence[nn.Module] | None = None
    known: Bool[Tensor, "n"] | None = None
    steps: int | None = None
