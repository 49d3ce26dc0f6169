"""Rounded answers against inversion (Fredrikson, Jha & Ristenpart 2015, doi:10.1145/2810103.2813677).

A difference quotient over a width h is 0 unless the confidence moves by about half a rounding step within h.
A defence is worth what the attack that knows of it leaves: h, or the sigma of NES, is chosen for each step r
on shadow models behind the same mask, by the cosine with their true gradients where an inversion passes.
Beside it stands the attack that takes the narrowest width whatever the mask. Who holds the weights sees no
mask at all.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import get_args

import pandas as pd
import torch
from jaxtyping import Float64
from torch import Tensor

from glasslab.checks import Floored
from glasslab.zoo import Zoo
from inversion.gradient import WIDTHS, Gradient, adapted
from inversion.result import Inversion
from workbench.experiments.rebuilt import averaged, beside, confidence, labels, moved, numbers, start, victims
from workbench.experiments.runs import Row, about, sized
from workbench.inverting import attacks
from workbench.inverting.measured import Measured, against, measured
from workbench.inverting.measured import Row as Images
from workbench.inverting.victim import Victim
from workbench.options import Gradient as Kind
from workbench.options import InvertOptions, ZooOptions
from workbench.steps import Order

ROUNDS = (0.0, 0.001, 0.01, 0.05, 0.1)
KINDS: tuple[Kind, ...] = tuple(kind for kind in get_args(Kind) if kind != "autograd")
STEPS = 100
SHADOWS = 2  # that a width is chosen on
ALONG = (1, 4, 16)  # steps of an inversion after which its gradients are looked at, beside the start
ONE, WHITE, UNROUNDED = "one step", "weights", "unrounded"
ACCESS = {ONE: "weights", "class mean": "private", "random private image": "private"}
ACCESS |= {"other class": "weights", "public mean": "aux"}


@dataclass(eq=False)
class Told:
    """What one row collects over the targets."""

    rows: list[Measured] = field(default_factory=list)
    found: list[Inversion] = field(default_factory=list)
    sure: list[Tensor] = field(default_factory=list)
    left: list[Tensor] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, victim: Victim, name: str, options: InvertOptions, steps: int | None) -> Inversion:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", Floored)
            found = attacks.by_miface(victim, options, labels(victim), steps=steps)
        self.notes += [str(w.message) for w in caught]
        self.rows.append(measured(victim, name, Images(found.x, found.y, False)))
        self.found.append(found)
        self.sure.append(confidence(victim, found.x, found.y))
        self.left.append(moved(victim, found))
        return found

    def line(self, seed: int) -> Row:
        made, asked = (torch.cat([getattr(f, k) for f in self.found]).double() for k in ("steps", "queries"))
        row = numbers(averaged(self.rows), seed) | {"moved": float(torch.cat(self.left).double().mean())}
        row |= {"confidence": float(torch.cat(self.sure).quantile(0.5)), "steps": float(made.quantile(0.5))}
        row |= {"queries": round(float(asked.mean())), "targets": len(self.rows)}
        return row | {"notes": "; ".join(dict.fromkeys(self.notes)) or None}


def rounding(
    zoo: Zoo,
    *,
    rounds: Sequence[float] = ROUNDS,
    widths: Sequence[float] = WIDTHS,
    steps: int = STEPS,
    seed: int = 0,
) -> pd.DataFrame:
    """One row an (attack, rounding step, rule for the width), then one a reference; means over targets.

    `round` is the step of the answers, 0 where nothing is rounded. `width_by` says whether `width` was chosen
    on shadows, where its gradients had the mean `cosine`, or is the narrowest. `moved`: share of the images
    that left their start; of the others every gradient was 0, they are no find, and `notes` says so.
    `confidence` is the target's own, behind no mask, a median like `steps`; `queries` a label. `against_*`: paired
    tests over labels with the one step that the weights show, and with the same attack on plain answers.
    Raises ValueError without a target or two shadows, and for widths or rounds that cannot be.
    """
    if len(zoo.shadow_member) < SHADOWS or not len(zoo.target_member):
        got = f"{len(zoo.shadow_member)} and {len(zoo.target_member)}"
        raise ValueError(f"zoo must hold {SHADOWS}+ shadows and a target, got {got}")
    if not widths or min(widths) <= 0:
        raise ValueError(f"widths must be one or more above 0, got {list(widths)}")
    held, chances = victims(zoo, seed), [replace_model(zoo, i) for i in range(SHADOWS)]
    told, known = dict[tuple[Kind, float, str], Told](), dict[tuple[Kind, float, str], Row]()
    for kind in KINDS:
        for r in rounds:
            options = InvertOptions(gradient=kind, mask=(f"round_by:{r!r}",) if r else (), seed=seed)
            cosine = adapt([replace(held[0], model=model) for model in chances], options, widths)
            for by, at in (("shadows", int(cosine.argmax())), ("narrowest", widths.index(min(widths)))):
                key = kind, r, by
                known[key] = {"width": widths[at], "cosine": float(cosine[at])}
                told[key] = Told()
                for victim in held:
                    told[key].add(victim, kind, replace(options, width=widths[at]), steps)
    rows, one = _references(held, seed)
    frame = pd.DataFrame([*_lines(told, known, one, seed), *rows])
    frame.attrs["zoos"] = about({zoo.data.name: zoo})
    return frame
