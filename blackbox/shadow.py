"""The shadow attack (Shokri et al. 2017, arXiv:1610.05820): learn from shadow models what members look like.

The attacker has: the target's probabilities, and shadow models with their training sets, on records that need
not be the candidates. Each (model, record) is a pair: an answer p, a label y, and whether it was in training.
An MLP a class learns the last from p, or one MLP for all from the sorted p and y. Score: P(in | p, y).
"""

import warnings
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Generator, Tensor
from torch.nn.functional import one_hot

from blackbox.mlps import TRAINING, Examples, Mlps, Training, train
from glasslab.checks import Floored

Features = Literal["probability", "log"]

FEW = 20  # pairs a side, below which a class has no MLP of its own


@dataclass(frozen=True, eq=False)
class AttackModel:
    """What the shadows taught. Above 1/2 is the paper's decision for member."""

    own: Mlps | None
    place: Int[Tensor, "c"]  # of each class's MLP among its own; -1: it goes by the one for all
    shared: Mlps | None
    features: Features

    def __call__(self, p: Float[Tensor, "*t n c"], y: Int[Tensor, "n"]) -> Float64[Tensor, "*t n"]:
        """P(in | p, y). Raises ValueError on NaN or infinite p, and on labels outside 0..c-1."""
        _check(p, y, len(self.place))
        score = torch.zeros(p.shape[:-1], dtype=torch.float64)
        for k in y.unique().tolist():
            rows, g = y == k, int(self.place[k])
            x = _scaled(p[..., rows, :], self.features)
            if self.own is not None and g >= 0:
                score[..., rows] = self.own(g, x)
            elif self.shared is not None:
                score[..., rows] = self.shared(0, _told(x, y[rows]))
        return score


def shadow(
    p: Float[Tensor, "*t n c"],
    y: Int[Tensor, "n"],
    shadow_p: Float[Tensor, "m r c"],
    shadow_y: Int[Tensor, "r"],
    shadow_member: Bool[Tensor, "m r"],
    *,
    generator: Generator,
    hidden: int = 64,
    features: Features = "probability",
    per_class: bool = True,
    pairs: int = 10_000,
    training: Training = TRAINING,
) -> Float64[Tensor, "*t n"]:
    """P(in | p, y), one score a record, of the `attack_model`; settings and errors are told there."""
    model = attack_model(
        shadow_p,
        shadow_y,
        shadow_member,
        generator=generator,
        hidden=hidden,
        features=features,
        per_class=per_class,
        pairs=pairs,
        training=training,
    )
    return model(p, y)


def attack_model(
    shadow_p: Float[Tensor, "m r c"],
    shadow_y: Int[Tensor, "r"],
    shadow_member: Bool[Tensor, "m r"],
    *,
    generator: Generator,
    hidden: int = 64,
    features: Features = "probability",
    per_class: bool = True,
    pairs: int = 10_000,
    training: Training = TRAINING,
) -> AttackModel:
    """The attack MLPs, trained once for all targets.

    `features="log"` takes log p (of answers that hide nothing: complete masked ones first). With
    `per_class=False` one MLP learns from the sorted answers and the one-hot label. An MLP sees `pairs` pairs
    at most, as many in as out in each class. A tenth of the shadows is held out for early stopping; where it
    cannot be, as of a single shadow, because a part would lack members or non-members, all epochs are run.
    A class with fewer than 20 pairs a side goes by the one MLP for all, and is counted in a Floored warning.
    Raises ValueError on NaN or infinite answers, on labels outside 0..c-1, and where no class has both sides.
    """
    m, _, c = shadow_p.shape
    _check(shadow_p, shadow_y, c)
    # DIFFERS: the paper takes all pairs; more of them cost time and teach so small a net nothing.
    kept, held = (
        _pairs(shadow_y, shadow_member, models, c, pairs, generator)
        for models in _parted(shadow_member, generator)
    )
    if not any(map(len, kept)):
        raise ValueError(f"shadow_member must hold both sides of a class, got no such class in {m} models")

    able = [k for k in range(c) if len(kept[k]) >= 2 * FEW] if per_class else []
    if per_class and len(able) < c:
        warnings.warn(f"{c - len(able)} of {c} classes go by the one MLP for all", Floored, stacklevel=2)

    def examples(drawn: Int[Tensor, "l 2"], told: bool) -> Examples:
        model, record = drawn.T
        x = _scaled(shadow_p[model, record], features)
        return Examples(_told(x, shadow_y[record]) if told else x, shadow_member[model, record].long())

    def learned(kept: list[Tensor], held: list[Tensor], told: bool) -> Mlps:
        sets = [[examples(drawn, told) for drawn in side] for side in (kept, held)]
        return train(sets[0], sets[1], hidden=hidden, generator=generator, training=training)

    def some(drawn: list[Tensor]) -> list[Tensor]:
        every = torch.cat(drawn)
        return [every[torch.randperm(len(every), generator=generator)[:pairs]]]

    own = learned([kept[k] for k in able], [held[k] for k in able], False) if able else None
    shared = learned(some(kept), some(held), True) if len(able) < c else None
    place = torch.full((c,), -1).index_put((torch.tensor(able, dtype=torch.long),), torch.arange(len(able)))
    return AttackModel(own, place, shared, features)


def _parted(member: Bool[Tensor, "m r"], generator: Generator) -> tuple[Int[Tensor, "a"], Int[Tensor, "b"]]:
    """Rows to learn from, and a tenth to stop by, spread evenly from rows with few members to rows with many.

    Leave-one-out rows are all in or all out: a tenth at random might be of one kind.
    """
    m = len(member)
    order = torch.randperm(m, generator=generator)
    order = order[member[order].double().mean(1).argsort(stable=True)]
    size = max(1, m // 10)
    held = torch.zeros(m).bool().index_fill(0, ((torch.arange(size) + 0.5) * m / size).long(), True)
    mixed = all(bool(member[rows].any() and not member[rows].all()) for rows in (order[~held], order[held]))
    return (order[~held], order[held]) if mixed else (order, order[:0])


def _pairs(
    y: Int[Tensor, "r"],
    member: Bool[Tensor, "m r"],
    models: Int[Tensor, "s"],
    c: int,
    most: int,
    generator: Generator,
) -> list[Int[Tensor, "l 2"]]:
    """(model, record) pairs of each class: as many in as out, and `most` in all."""
    drawn = []
    for k in range(c):
        records = (y == k).nonzero().squeeze(1)
        inside = member[models][:, records]
        sides = [inside.nonzero(), (~inside).nonzero()]
        size = min(len(sides[0]), len(sides[1]), most // 2)
        chosen = torch.cat([side[torch.randperm(len(side), generator=generator)[:size]] for side in sides])
        drawn.append(torch.stack([models[chosen[:, 0]], records[chosen[:, 1]]], 1))
    return drawn


def _scaled(p: Float[Tensor, "*n c"], features: Features) -> Float64[Tensor, "*n c"]:
    p = p.double()
    # DIFFERS: the paper feeds probabilities; their logarithms do not crowd at 0 and 1.
    return p.clamp(min=torch.finfo(torch.float64).tiny).log() if features == "log" else p


def _told(x: Float64[Tensor, "*t n c"], y: Int[Tensor, "n"]) -> Float64[Tensor, "*t n 2*c"]:
    """Largest first, then the one-hot label."""
    label = one_hot(y.long(), x.shape[-1]).double().expand(x.shape)
    return torch.cat([x.sort(-1, descending=True).values, label], -1)


def _check(p: Float[Tensor, "*t n c"], y: Int[Tensor, "n"], classes: int) -> None:
    if classes < 2 or p.shape[-1] != classes:
        raise ValueError(f"p must hold {max(classes, 2)} classes, got {p.shape[-1]}")
    if not p.isfinite().all():
        raise ValueError(f"p must be finite, got {int((~p.isfinite()).sum())} NaN or infinite answers")
    if len(y) and (y.min() < 0 or y.max() >= classes):
        raise ValueError(
            f"y must lie in 0 .. {classes - 1}, got labels from {int(y.min())} to {int(y.max())}"
        )
