"""What the experiments on inversion share: a zoo's targets as victims, and rows over all of them.

The unit is the label: values are means over targets, label by label, and intervals go over the labels.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from glasslab.oracle import forward
from glasslab.zoo import Zoo
from inversion.result import Inversion
from workbench.experiments.runs import Row, net
from workbench.inverting import attacks
from workbench.inverting.measured import Measured, references
from workbench.inverting.victim import Victim, _judged
from workbench.options import InvertOptions

MEASURES = ("nearest_id", "judge_acc1", "feature_distance")
FULL = tuple(f"{name}{end}" for name in MEASURES for end in ("", "_low", "_high"))
HEADS = {"nearest_id": "nearest id", "judge_acc1": "judge acc.", "feature_distance": "feature distance"}


def victims(zoo: Zoo, seed: int) -> list[Victim]:
    """Each target with what it saw, what it did not see, and a judge of its own.

    Raises ValueError without targets, and for a class that leaves too little unseen.
    """
    if not len(zoo.target_member):
        raise ValueError(f"zoo must hold a target or more, got {zoo.key[:16]} with none")
    pool, aux = zoo.pool.to(zoo.device), zoo.aux.x.to(zoo.device)
    return [
        _judged(net(zoo), zoo.target(a), pool, member.nonzero()[:, 0], aux, None, {}, seed)
        for a, member in enumerate(zoo.target_member)
    ]


def labels(victim: Victim) -> Int[Tensor, "c"]:
    """All of them."""
    return torch.arange(victim.data.classes, device=victim.data.x.device)


def start(victim: Victim) -> Float[Tensor, "*d"]:
    """The image that MI-FACE begins with by default."""
    zero = attacks.start_of(victim, InvertOptions()) == "zero"
    return torch.zeros_like(victim.aux[0]) if zero else victim.aux.double().mean(0).to(victim.aux.dtype)


def confidence(victim: Victim, x: Float[Tensor, "n *d"], y: Int[Tensor, "n"]) -> Float64[Tensor, "n"]:
    """What the target itself says of an image, behind no mask."""
    return forward(victim.model, x).double().softmax(-1).gather(1, y[:, None])[:, 0]


def beside(victim: Victim, found: Inversion, seed: int) -> dict[str, Measured]:
    """The reference rows of an inversion; "one step" is made with the weights."""
    one = attacks.by_miface(victim, InvertOptions(seed=seed), found.y, steps=1)
    return references(victim, found, one.x, seed)


def averaged(each: Sequence[Measured]) -> Measured:
    """One row of several targets': the mean of every label's values."""
    held: dict[str, Float64[Tensor, "l"] | None] = {}
    for name in each[0].values:
        values = [value for m in each if (value := m.values[name]) is not None]
        held[name] = torch.stack(values).mean(0) if len(values) == len(each) else None
    return replace(each[0], values=held, frechet=None, reason=None)


def numbers(row: Measured, seed: int) -> Row:
    """Means over labels of three measures, with 95 % intervals."""
    line = row.line(seed)
    return {name: line[name] for name in FULL}


def moved(victim: Victim, found: Inversion) -> Bool[Tensor, "c"]:
    """Images that left the start: of the others no gradient was ever seen."""
    return (found.x != start(victim).to(found.x)).flatten(1).any(1)
