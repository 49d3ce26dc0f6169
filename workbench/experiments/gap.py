"""Attack accuracy against the generalisation gap (Yeom et al. 2018, arXiv:1709.01604).

"Member if the model is right" has TPR = accuracy on members and FPR = accuracy on non-members, so its
balanced accuracy is (1 + g) / 2 with g their difference: an identity on the same candidates, checked here
for every target. It bounds the best attack from below, never from above: a point below the line is a weak
attack, not a safe model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pandas as pd
from scipy.stats import linregress

from glasslab.metrics import above, ba_null, balanced, balanced_accuracy
from glasslab.transfer import best_threshold
from glasslab.zoo import Zoo
from workbench.attacks import ATTACKS
from workbench.experiments.runs import Row, Seen, about, net, seen, sized
from workbench.options import ZooOptions
from workbench.steps import Order

EXACT = 1e-12  # what rounding may leave of the identity
CORRECTNESS = "correctness"
OTHERS = ("loss", "entropy", "modified-entropy", "lira")
EPOCHS = (0.05, 0.2, 1.0)  # of the usual recipe's
RECORDS = (0.125, 0.35, 1.0)  # of the candidates: fewer records, larger gap


def gap(zoos: Mapping[str, Zoo], *, attacks: Sequence[str] = OTHERS, seed: int = 0) -> pd.DataFrame:
    """One row a (zoo, target, attack), correctness always among them; `.attrs["lines"]` holds `lines`.

    `accuracy` is balanced, at a threshold that the attacker could know, `at`: its own decision, or one
    chosen on mock targets. `balanced_accuracy` is the best over all thresholds, which flatters: luck gets
    `ba_null`. Raises ArithmeticError where correctness is off (1 + gap) / 2 by more than rounding, and
    ValueError where a zoo has too few shadows for mock targets.
    """
    names = list(dict.fromkeys([CORRECTNESS, *attacks]))
    rows = [
        {"zoo": name, "data": zoo.data.name, "net": net(zoo), "epochs": zoo.recipe.epochs}
        | {"candidates": len(zoo.pool)}
        | row
        for name, zoo in zoos.items()
        for row in _of_targets(name, seen(zoo, names, mocks=True, seed=seed))
    ]
    frame = pd.DataFrame(rows)
    frame.attrs |= {"lines": lines(frame).to_dict("records"), "zoos": about(zoos)}
    return frame


def lines(frame: pd.DataFrame) -> pd.DataFrame:
    """Least squares of accuracy on gap, one row an attack: slope, intercept, r, its p, number of points.

    Numbers are undefined (NaN) where all gaps are equal. Correctness has slope and intercept 1/2.
    """
    rows = []
    for attack, points in frame.groupby("attack", sort=False):
        row: Row = {"attack": attack, "slope": None, "intercept": None, "r": None, "p": None}
        if points["gap"].nunique() > 1:
            fit = linregress(points["gap"], points["accuracy"])
            row |= {"slope": fit.slope, "intercept": fit.intercept, "r": fit.rvalue, "p": fit.pvalue}
        rows.append(row | {"points": len(points)})
    return pd.DataFrame(rows)


def identity_error(accuracy: float, gap: float) -> float:
    """How far correctness is off (1 + gap) / 2. Raises ArithmeticError beyond rounding."""
    error = abs(accuracy - (1 + gap) / 2)
    if not error <= EXACT:
        raise ArithmeticError(
            f"balanced accuracy of correctness must be (1 + gap) / 2 = {(1 + gap) / 2}, got {accuracy}"
        )
    return error


def _of_targets(name: str, held: Seen) -> list[Row]:
    rows = []
    for attack, score in held.scores.items():
        decision = ATTACKS[attack].decision
        if decision is None and attack not in held.mocked:
            raise ValueError(
                f"attacks must have a decision of their own or mock targets, got {attack} with "
                f"{held.shadows} shadows of zoo {name}"
            )
        threshold = best_threshold(held.mocked[attack], held.mock_truth) if decision is None else decision
        for a, (s, inside) in enumerate(zip(score, held.truth, strict=True)):
            accuracy, g = balanced(above(s, inside, threshold)), held.known[a]["gap"]
            n_pos = int(inside.sum())
            rows.append(
                {"target": a, "attack": attack, "gap": g, "gap_test": held.known[a]["gap_test"]}
                | {"accuracy": accuracy, "at": "mock targets" if decision is None else "decision"}
                | {"balanced_accuracy": balanced_accuracy(s, inside)}
                | {"ba_null": ba_null(n_pos, len(s) - n_pos), "n_pos": n_pos, "n_neg": len(s) - n_pos}
                | {"identity_error": identity_error(accuracy, g) if attack == CORRECTNESS else None}
            )
    return rows


def orders(options: ZooOptions, also: Sequence[str]) -> dict[str, Order]:
    """Each data set with shorter and longer training on fewer and more records."""
    made = {}
    for data in dict.fromkeys([options.data, *also]):
        order = sized(replace(options, data=data), shadows=16, targets=4)
        pool = min(order.settings["records"] or len(order.data), round(0.6 * len(order.data)))
        for share in RECORDS:
            settings = order.settings | {"records": round(share * pool)}
            for part in EPOCHS:
                epochs = max(1, round(part * order.recipe.epochs))
                name = f"{data}, {settings['records']} candidates, {epochs} epochs"
                recipe = replace(order.recipe, epochs=epochs)
                made[name] = replace(order, recipe=recipe, settings=settings)
    return made


def short(frame: pd.DataFrame) -> pd.DataFrame:
    """The lines, with the mean of what was fitted."""
    means = frame.groupby("attack")[["gap", "accuracy", "identity_error"]].mean().reset_index()
    return lines(frame).merge(means, on="attack")
