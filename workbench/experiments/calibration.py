"""Precision at a calibrated threshold beside that at the attack's own (Leino & Fredrikson 2020,
arXiv:1906.11798; conformal: Vovk et al. 2005).

A sixth of aux, which no fit has seen, is scored as if it were candidates: none of it is a member. Thresholds
that leave a share alpha of it, class by class, keep the false-positive rate at alpha; what the attack itself
calls a member keeps to nothing.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from glasslab.game import Game
from glasslab.intervals import clopper_pearson
from glasslab.transfer import precision
from glasslab.zoo import Zoo
from whitebox.calibration import conformal, decide
from workbench.arena import able, arena
from workbench.attack import Attack
from workbench.attacks import chosen
from workbench.experiments.runs import about, sized
from workbench.learned_weights import shares
from workbench.options import ZooOptions
from workbench.play import drawn, granted
from workbench.steps import Order

CALIBRATED = ("loss", "gradnorm", "bayes-wb", "general-wb", "meta")
ALPHAS = (0.1, 0.01)


def calibration(
    zoo: Zoo, *, attacks: Sequence[str] = CALIBRATED, alphas: Sequence[float] = ALPHAS, seed: int = 0
) -> pd.DataFrame:
    """One row an (attack, threshold): rates over all targets, and the precision at prior 1/2 that they make.

    `threshold` is "own", where the attack has one, or "conformal" with its alpha. `precision_counted` is the
    share of members among the flagged, with a Clopper-Pearson interval over them; None where none is.
    `fallback`: classes with too few calibration records, which take the threshold of all classes together.
    Raises ValueError for attacks that see shadows of the candidates: those cannot score aux; and
    for those that decide on all candidates together.
    """
    table = chosen(attacks)
    ring = arena(zoo, shadows=None, queries=1, mask=(), evaluate="targets")
    able(table, ring.held, strict=table)
    rows = []
    for name, row in table.items():
        if row.needs.n_in + row.needs.n_out:
            raise ValueError(f"attacks must score records without shadows of them, got {name}")
        if row.holds.endswith("candidates"):
            raise ValueError(f"attacks must score each record on its own, got {name}")
        flagged: dict[tuple[str, float | None], list[Tensor]] = {}
        fallback: dict[float, int] = {}
        for a in range(len(ring.truth)):
            score, found, y = _scored(ring.game(a), row, name, seed, a)
            if row.decision is not None:
                flagged.setdefault(("own", None), []).append(score > row.decision)
            for alpha in alphas:
                tau = conformal(found, y, alpha=alpha, classes=zoo.data.classes)
                fallback[alpha] = sum(flag is not None for flag in tau.flags)
                flagged.setdefault(("conformal", alpha), []).append(decide(score, zoo.pool.y, tau.tau))
        for (threshold, level), each in flagged.items():
            made = {"attack": name, "threshold": threshold, "alpha": level}
            made |= _rates(torch.stack(each), ring.truth)
            rows.append(made | {"fallback": 0 if level is None else fallback[level]})
    frame = pd.DataFrame(rows)
    frame.attrs["zoos"] = about({zoo.data.name: zoo})
    return frame


def _scored(
    game: Game, row: Attack, name: str, seed: int, a: int
) -> tuple[Float64[Tensor, "n"], Float64[Tensor, "k"], Tensor]:
    """Scores of the candidates, and of the calibration records with their labels."""
    spare = shares(game, drawn(row, name, seed, a).initial_seed())[0]
    other = replace(game, x=spare.x, y=spare.y, known=None, steps=None)
    scores = [row.run(granted(each, row), drawn(row, name, seed, a)).cpu().double() for each in (game, other)]
    return scores[0], scores[1], spare.y.cpu()


def _rates(flagged: Bool[Tensor, "t n"], truth: Bool[Tensor, "t n"]) -> dict[str, Any]:
    hits, alarms = int((flagged & truth).sum()), int((flagged & ~truth).sum())
    tpr, fpr = hits / int(truth.sum()), alarms / int((~truth).sum())
    row: dict[str, Any] = {"tpr": tpr, "fpr": fpr, "precision": precision(0.5, tpr, fpr)}
    ends = clopper_pearson(hits, hits + alarms) if hits + alarms else None
    row |= {"precision_counted": hits / (hits + alarms) if ends else None}
    row |= {"precision_low": ends and ends.low, "precision_high": ends and ends.high}
    return row | {"flagged": hits + alarms, "targets": len(truth)}


def orders(options: ZooOptions, also: Sequence[str]) -> dict[str, Order]:
    return {options.data: sized(options, shadows=2, targets=8)}


def short(frame: pd.DataFrame) -> pd.DataFrame:
    """Rates and precision, one line a threshold."""
    return frame[["attack", "threshold", "alpha", "tpr", "fpr", "precision", "fallback"]]
