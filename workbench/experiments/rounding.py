"""Rounded answers against inversion (Fredrikson, Jha & Ristenpart 2015, doi:10.1145/2810103.2813677).

A difference quotient over a width h is 0 unless rounded answers differ within h, so h must grow with the
rounding step. A defence is worth what the attack that knows of it leaves: h, or the sigma of NES, is chosen
on shadow models behind the same mask, by the cosine with their true gradients where an inversion passes.
Beside it stands the attack that takes the narrowest width whatever the mask. Who holds the weights sees no
mask at all.
"""

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from glasslab.zoo import Zoo
from inversion.gradient import WIDTHS, Gradient, adapted
from workbench.experiments.rebuilt import (
    HEADS,
    Found,
    against,
    invert,
    labels,
    numbers,
    ordered,
    references,
    start,
    victims,
)
from workbench.experiments.runs import Row, about
from workbench.inverting import attacks
from workbench.inverting.victim import Victim
from workbench.options import Gradient as Kind
from workbench.options import InvertOptions, ZooOptions
from workbench.steps import Order

ROUNDS = (0.0, 0.001, 0.01, 0.05, 0.1)
KINDS: tuple[Kind, ...] = ("difference", "nes")
STEPS = 100
SHADOWS = 2  # that a width is chosen on
ALONG = (1, 4, 16)  # steps of an inversion after which its gradients are looked at, as at its start
ACCESS = {"one step": "weights", "other class": "weights", "public mean": "aux"}


def rounding(
    zoo: Zoo,
    *,
    rounds: Sequence[float] = ROUNDS,
    widths: Sequence[float] = WIDTHS,
    steps: int = STEPS,
    seed: int = 0,
) -> pd.DataFrame:
    """One row an (attack, rounding step, rule for the width), then MI-FACE with the weights, then references.

    `round` is the step of the answers, 0 where none is. `width_by` says whether `width` was chosen on
    shadows, or is the narrowest; `cosine` is the mean there, with the true gradients. `moved`: share of the
    images that left the start; the others are no find, and where their gradients were 0 `notes` says so.
    `confidence` is the target's own, behind no mask, a median like `steps`; `queries` are a label's.
    `against_*`: paired tests over labels with one step by the weights, and with the same attack where answers
    are plain, if `rounds` has 0. Raises ValueError for a zoo without two shadows and a target, for widths
    that are not above 0, and for rounds outside [0, 1].
    """
    _check(zoo, rounds, widths)
    held = victims(zoo, seed)
    shadows = [replace(held[0], model=zoo.shadow(i)) for i in range(SHADOWS)]
    white = invert(held, "miface", InvertOptions(seed=seed))
    rivals = references(held, white, seed)
    rows: list[Row] = []
    plain: dict[tuple[Kind, str], Found] = {}
    for kind in KINDS:
        for r in sorted(rounds):
            options = InvertOptions(gradient=kind, mask=(f"round_by:{r!r}",) if r else (), seed=seed)
            cosine = adapt(shadows, options, widths)
            for by, at in (("shadows", int(cosine.argmax())), ("narrowest", widths.index(min(widths)))):
                found = invert(held, kind, replace(options, width=widths[at]), steps=steps)
                row: Row = {"attack": kind, "access": "answers", "reference": False, "round": r}
                row |= {"width_by": by, "width": widths[at], "cosine": float(cosine[at])} | found.line(seed)
                row |= against(found, rivals["one step"], "one step", seed)
                if not r:
                    plain[kind, by] = found
                elif (kind, by) in plain:
                    row |= against(found, plain[kind, by].averaged, "unrounded", seed)
                rows.append(row)
    last: Row = {"attack": "miface", "access": "weights", "reference": False} | white.line(seed)
    rows.append(last | against(white, rivals["one step"], "one step", seed))
    for name, rival in rivals.items():
        where = {"attack": name, "access": ACCESS.get(name, "private"), "reference": rival.row.reference}
        rows.append(where | numbers(rival, seed) | {"targets": len(held)})
    frame = pd.DataFrame(rows)
    frame.attrs["zoos"] = about({zoo.data.name: zoo})
    return frame


def adapt(shadows: Sequence[Victim], options: InvertOptions, widths: Sequence[float]) -> Float64[Tensor, "w"]:
    """Of each width the mean cosine with the shadows' true gradients, behind the mask of `options`."""
    return torch.stack([_cosines(shadow, options, tuple(widths)) for shadow in shadows]).mean(0)


def _cosines(shadow: Victim, options: InvertOptions, widths: tuple[float, ...]) -> Float64[Tensor, "w"]:
    y = labels(shadow)
    x = _passed(shadow, options.seed)

    def make(width: float) -> Gradient:
        return attacks.estimated(shadow, replace(options, width=width))

    return adapted(make, shadow.model, x, y.repeat(len(x) // len(y)), widths=widths)[1]


def _passed(shadow: Victim, seed: int) -> Float[Tensor, "b *d"]:
    """Where an inversion of the shadow with its weights passes: its start, then after some steps."""
    y, white = labels(shadow), InvertOptions(seed=seed)
    first = start(shadow).expand(len(y), *shadow.data.shape)
    return torch.cat([first, *(attacks.by_miface(shadow, white, y, steps=k).x.to(first) for k in ALONG)])


def _check(zoo: Zoo, rounds: Sequence[float], widths: Sequence[float]) -> None:
    if len(zoo.shadow_member) < SHADOWS or not len(zoo.target_member):
        got = f"{len(zoo.shadow_member)} and {len(zoo.target_member)}"
        raise ValueError(f"zoo must hold {SHADOWS}+ shadows and a target, got {got}")
    if not rounds or not all(0 <= r <= 1 for r in rounds):
        raise ValueError(f"rounds must be one or more of 0 to 1, got {list(rounds)}")
    if not widths or not all(width > 0 for width in widths):
        raise ValueError(f"widths must be one or more above 0, got {list(widths)}")


def orders(options: ZooOptions, also: Sequence[str]) -> dict[str, Order]:
    return {options.data: ordered(options, shadows=SHADOWS, targets=4)}


def short(frame: pd.DataFrame) -> pd.DataFrame:
    """Rates without their intervals. A row in which no image moved is marked: it found nothing."""
    still = frame["moved"] == 0
    names = ["attack", "access", "round", "width_by", "width", "nearest_id", "judge_acc1"]
    held = frame[[*names, "feature_distance", "moved", "queries"]].copy()
    held["attack"] = held["attack"].mask(still, held["attack"] + ": no find")
    held["queries"] = held["queries"].astype("Int64")
    return held.rename(columns=HEADS)
