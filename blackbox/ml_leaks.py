"""ML-Leaks (Salem et al. 2019, arXiv:1806.01246): what one shadow model, or none, is enough for.

First attack: the attacker has the target's probabilities, and a single shadow whose training set it knows.
One MLP for all classes learns from the shadow's three largest probabilities, in descending order and without
a label, whether a record was in training. Score: P(in | the three).
Third attack: the largest probability against a threshold; nothing is trained.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64
from torch import Generator, Tensor

from blackbox.mlps import TRAINING, Examples, Mlps, Training, train
from glasslab import signals

TOP = 3


@dataclass(frozen=True, eq=False)
class Learned:
    """What the shadow taught. Above 1/2 is the paper's decision for member."""

    mlp: Mlps

    def __call__(self, p: Float[Tensor, "*t n c"]) -> Float64[Tensor, "*t n"]:
        """P(in | the largest of p).

        Raises ValueError on NaN or infinite p, and where the shadow had another number of largest ones.
        """
        x, need = _largest("p", p), self.mlp.mean.shape[1]
        if x.shape[-1] != need:
            raise ValueError(f"p must have its {need} largest as the shadow, got {x.shape[-1]} classes")
        return self.mlp(0, x)


def ml_leaks(
    p: Float[Tensor, "*t n c"],
    shadow_p: Float[Tensor, "m r c"],
    shadow_member: Bool[Tensor, "m r"],
    *,
    generator: Generator,
    hidden: int = 64,
    training: Training = TRAINING,
) -> Float64[Tensor, "*t n"]:
    """P(in | the three largest of p), one score a record; settings and errors are told at `learn`."""
    return learn(shadow_p, shadow_member, generator=generator, hidden=hidden, training=training)(p)


def learn(
    shadow_p: Float[Tensor, "m r c"],
    shadow_member: Bool[Tensor, "m r"],
    *,
    generator: Generator,
    hidden: int = 64,
    training: Training = TRAINING,
) -> Learned:
    """The attack MLP, trained once for all targets, on as many members as non-members of the shadow.

    The larger side is drawn from. All epochs are run: of a single shadow nothing independent can be held out.
    The records need not be the candidates. Two classes give two probabilities.
    Raises ValueError for another number of shadows than one, a shadow without members or without non-members,
    a single class, and NaN or infinite answers.
    """
    if len(shadow_p) != 1:
        raise ValueError(f"shadow_p must hold 1 shadow, got {len(shadow_p)}: see the shadow attack for more")
    x, member = _largest("shadow_p", shadow_p)[0], shadow_member[0].cpu()
    sides = [side.nonzero().squeeze(1) for side in (member, ~member)]
    size = min(map(len, sides))
    if not size:
        raise ValueError(f"shadow_member must hold both sides, got {len(sides[0])} of {len(member)} in")
    rows = torch.cat([side[torch.randperm(len(side), generator=generator)[:size]] for side in sides])
    examples, held = Examples(x[rows], member[rows].long()), Examples(x[:0], member[:0].long())
    return Learned(train([examples], [held], hidden=hidden, generator=generator, training=training))


def confidence_max(z: Float[Tensor, "*t n c"]) -> Float64[Tensor, "*t n"]:
    """log of the largest probability, in nats; z are logits or log-probabilities.

    Needs no label, and takes the surely wrong for members too. Raises ValueError on NaN or infinite z, and
    for a single class.
    """
    _check("z", z)
    flat = z.flatten(0, -2)
    # DIFFERS: the logarithm ranks alike, and goes on where the probability itself is 1.
    return -signals.loss(flat, flat.argmax(-1)).reshape(z.shape[:-1])


def _largest(name: str, p: Float[Tensor, "*t n c"]) -> Float64[Tensor, "*t n k"]:
    """In descending order, on the processor."""
    _check(name, p)
    return p.double().cpu().topk(min(TOP, p.shape[-1]), -1).values


def _check(name: str, t: Float[Tensor, "*t n c"]) -> None:
    if t.shape[-1] < 2:
        raise ValueError(f"{name} must hold two classes or more, got {t.shape[-1]}")
    if not t.isfinite().all():
        raise ValueError(f"{name} must be finite, got {int((~t.isfinite()).sum())} NaN or infinite values")
