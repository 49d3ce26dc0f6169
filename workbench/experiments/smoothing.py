"""Inversion of targets trained with label smoothing (Szegedy et al. 2016, arXiv:1512.00567).

A training-side change, so that the attacker with the weights meets it too. It moves the confidences, and with
them the step at which an attack stops; so one row stops at a confidence and one makes all steps.

The zoos differ in nothing else: split and rows depend on data and seed alone, hence one judge looks at a
target of each, and the labels can be compared in pairs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pandas as pd
import torch

from glasslab.oracle import forward
from glasslab.zoo import Zoo
from workbench.experiments.rebuilt import HEADS, Found, against, invert, numbers, ordered, references, victims
from workbench.experiments.runs import Row, about
from workbench.inverting.victim import Victim
from workbench.options import InvertOptions, ZooOptions
from workbench.steps import Order

SMOOTHINGS = (0.0, 0.1, 0.3)
STOPS = {"miface": 0.99, "miface, no stop": 1.0}
STEPS = 500
SHOWN = ("one step", "class mean")
PLAIN = "unsmoothed"


def smoothing(zoos: Mapping[str, Zoo], *, steps: int = STEPS, seed: int = 0) -> pd.DataFrame:
    """Four rows a zoo: MI-FACE with the weights up to a confidence, without that stop, one step, class mean.

    Values are means over targets, `confidence` and `steps` medians over labels and targets. An image takes
    `steps` at most; `reached` is the share that came to the confidence 0.99. `train_accuracy` and `accuracy`
    are the targets', the latter on records that neither they nor the judge saw. `against_*`: paired tests
    over labels with the one step, and with the same row of the unsmoothed zoo, if there is one.
    Raises ValueError for zoos of other data, split or rows than the first, and without a target.
    """
    table = sorted(zoos.items(), key=lambda item: item[1].recipe.label_smoothing)
    home = table[0][1]
    for name, zoo in table:
        _same(home, zoo, name)
    judged, rows = victims(home, seed), list[Row]()
    plain: dict[str, Found] = {}
    for name, zoo in table:
        held = [replace(victim, model=zoo.target(a)) for a, victim in enumerate(judged)]
        made = {
            row: invert(held, row, InvertOptions(confidence=stop, seed=seed), steps=steps)
            for row, stop in STOPS.items()
        }
        rivals = references(held, made["miface"], seed)
        common: Row = {"zoo": name, "label_smoothing": zoo.recipe.label_smoothing, "targets": len(held)}
        common |= pd.DataFrame([_accuracy(victim) for victim in held]).mean().to_dict()
        for shown, found in made.items():
            row = common | {"row": shown, "reference": False} | found.line(seed)
            row |= {"reached": _reached(found)} | against(found, rivals["one step"], "one step", seed)
            if not zoo.recipe.label_smoothing:
                plain[shown] = found
            elif plain:
                row |= against(found, plain[shown].averaged, PLAIN, seed)
            rows.append(row)
        for shown in SHOWN:
            where = common | {"row": shown, "reference": rivals[shown].row.reference}
            rows.append(where | numbers(rivals[shown], seed))
    frame = pd.DataFrame(rows)
    frame.attrs["zoos"] = about(zoos)
    return frame


def _same(home: Zoo, zoo: Zoo, name: str) -> None:
    alike = home.data.digest == zoo.data.digest and torch.equal(home.split.pool, zoo.split.pool)
    if not alike or not torch.equal(home.target_member, zoo.target_member):
        raise ValueError(f"zoos must have the same data, split and targets' rows, got others in {name!r}")


def _accuracy(victim: Victim) -> Row:
    sides = {"train_accuracy": victim.trained, "accuracy": victim.comparison}
    parts = {name: victim.data[rows] for name, rows in sides.items()}
    return {
        name: float((forward(victim.model, part.x).argmax(1) == part.y).double().mean())
        for name, part in parts.items()
    }


def _reached(found: Found) -> float:
    """By the target's own confidence, which needs no stop."""
    return float((torch.cat(found.sure) >= STOPS["miface"]).double().mean())


def orders(options: ZooOptions, also: Sequence[str]) -> dict[str, Order]:
    """One zoo a smoothing, all else the same."""
    order = ordered(options, shadows=0, targets=4)
    recipes = {s: replace(order.recipe, label_smoothing=s) for s in SMOOTHINGS}
    return {f"{options.data}, smoothing {s:g}": replace(order, recipe=recipes[s]) for s in SMOOTHINGS}


def short(frame: pd.DataFrame) -> pd.DataFrame:
    """Numbers without their intervals."""
    names = ["label_smoothing", "row", "nearest_id", "judge_acc1", "feature_distance"]
    return frame[[*names, "confidence", "reached", "steps", "accuracy"]].rename(columns=HEADS)
