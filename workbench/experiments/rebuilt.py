"""What the experiments on inversion share: a zoo's targets as victims, and rows over all of them.

The unit is the label: values are means over targets, label by label, and intervals go over the labels.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from glasslab.checks import Floored
from glasslab.oracle import forward
from glasslab.recon_rows import Row as Images
from glasslab.zoo import Zoo
from inversion.result import Inversion
from workbench.experiments.runs import Row, net, sized
from workbench.inverting import attacks, measured
from workbench.inverting.measured import Measured
from workbench.inverting.victim import Victim, judged
from workbench.options import InvertOptions, ZooOptions
from workbench.steps import Order

MEASURES = ("nearest_id", "judge_acc1", "feature_distance")
FULL = tuple(f"{name}{end}" for name in MEASURES for end in ("", "_low", "_high"))
HEADS = {"judge_acc1": "judge", "feature_distance": "distance", "label_smoothing": "smoothing"}  # in print
REFERENCES = ("one step", "class mean", "random private image", "other class", "public mean")


@dataclass(eq=False)
class Found:
    """One row: what MI-FACE rebuilds of every label of some victims, under the same settings."""

    rows: list[Measured] = field(default_factory=list)
    found: list[Inversion] = field(default_factory=list)
    sure: list[Tensor] = field(default_factory=list)  # the target's own confidence, behind no mask
    moved: list[Tensor] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def averaged(self) -> Measured:
        """One row for all victims."""
        return averaged(self.rows)

    def line(self, seed: int) -> Row:
        """Means over labels with intervals, and what it cost; `moved`: share of images off the start."""
        steps, queries = (torch.cat([getattr(f, k) for f in self.found]) for k in ("steps", "queries"))
        row = numbers(self.averaged, seed) | {"moved": float(torch.cat(self.moved).double().mean())}
        row |= {"confidence": median(torch.cat(self.sure)), "steps": median(steps)}
        row |= {"queries": round(float(queries.double().mean())), "targets": len(self.rows)}
        return row | {"notes": "; ".join(dict.fromkeys(self.notes)) or None}


def invert(
    victims: Sequence[Victim], name: str, options: InvertOptions, *, steps: int | None = None
) -> Found:
    """MI-FACE on all labels of all victims. Where gradients are 0, `notes` says so."""
    out = Found()
    for victim in victims:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", Floored)
            found = attacks.by_miface(victim, options, labels(victim), steps=steps)
        out.notes += [str(w.message) for w in caught]
        out.rows.append(measured.measured(victim, name, Images(found.x, found.y, False)))
        out.found.append(found)
        p = forward(victim.model, found.x).double().softmax(-1)
        out.sure.append(p.gather(1, found.y[:, None])[:, 0])
        out.moved.append((found.x != start(victim).to(found.x)).flatten(1).any(1))
    return out


def references(victims: Sequence[Victim], white: Found, seed: int) -> dict[str, Measured]:
    """Rows that stand beside the inversions made with the weights; so is their one step."""
    each = []
    for victim, found in zip(victims, white.found, strict=True):
        one = attacks.by_miface(victim, InvertOptions(seed=seed), found.y, steps=1)
        each.append(measured.references(victim, found, one.x, seed))
    return {name: averaged([rows[name] for rows in each]) for name in REFERENCES}


def ordered(options: ZooOptions, *, shadows: int, targets: int) -> Order:
    """An experiment's zoo. Raises ValueError for a net that cannot be inverted here."""
    _invertible(options.net)
    return sized(options, shadows=shadows, targets=targets)


def victims(zoo: Zoo, seed: int) -> list[Victim]:
    """Each target with what it saw, what it did not see, and a judge of its own.

    Raises ValueError without a target, for net dae, and for a class that leaves too little unseen.
    """
    _invertible(net(zoo))
    if not len(zoo.target_member):
        raise ValueError(f"zoo must hold a target, got none in {zoo.folder.name}")
    pool, aux = zoo.pool.to(zoo.device), zoo.aux.x.to(zoo.device)
    return [
        judged(net(zoo), zoo.target(a), pool, member.nonzero()[:, 0], aux, None, {}, seed)
        for a, member in enumerate(zoo.target_member)
    ]


def labels(victim: Victim) -> Int[Tensor, "c"]:
    """All of them."""
    return torch.arange(victim.data.classes, device=victim.data.x.device)


def start(victim: Victim) -> Float[Tensor, "*d"]:
    """The image that MI-FACE begins with by default."""
    zero = attacks.start_of(victim, InvertOptions()) == "zero"
    return torch.zeros_like(victim.aux[0]) if zero else victim.aux.double().mean(0).to(victim.aux.dtype)


def averaged(each: Sequence[Measured]) -> Measured:
    """One row of several targets': the mean of every label's values."""
    held: dict[str, Tensor | None] = {}
    for name in each[0].values:
        values = [value for m in each if (value := m.values[name]) is not None]
        held[name] = torch.stack(values).mean(0) if len(values) == len(each) else None
    return replace(each[0], values=held, frechet=None, reason=None)


def numbers(row: Measured, seed: int) -> Row:
    """Means over labels of three measures, with 95 % intervals."""
    line = row.line(seed)
    return {name: line[name] for name in FULL}


def against(row: Found, rival: Measured, name: str, seed: int) -> Row:
    """Paired tests over labels. A label is identified if it is so on more than half of the targets."""
    return measured.against(row.averaged, replace(rival, name=name), seed)


def median(t: Tensor) -> float:
    return float(t.double().quantile(0.5))


def _invertible(name: str | None) -> None:
    if name == "dae":
        raise ValueError("net must be another than dae, whose decoder no zoo trains, got 'dae'")
