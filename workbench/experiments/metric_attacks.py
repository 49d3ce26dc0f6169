"""Attacks that read one number off an answer, on several data sets (Yeom et al. 2018, arXiv:1709.01604; Salem
et al. 2019, arXiv:1806.01246; Song & Mittal 2021, arXiv:2003.10595).

Correctness, loss, confidence, entropy and modified entropy need no shadow model; random is the floor. Loss
and confidence of the true class are one ranking, so their rows agree. Which metric is best is read down a
column, how much a data set leaks across.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pandas as pd

from glasslab.zoo import Zoo
from workbench.experiments.runs import HEADS, Row, about, net, numbers, seen, sized
from workbench.options import ZooOptions
from workbench.steps import Order

METRICS = ("random", "correctness", "confidence", "loss", "entropy", "modified-entropy")
ALSO = ("breast_cancer",)


def metric_attacks(
    zoos: Mapping[str, Zoo], *, attacks: Sequence[str] = METRICS, seed: int = 0
) -> pd.DataFrame:
    """One row a (data, attack), targets pooled: AUC, balanced accuracy and TPR at low FPR with 95 %
    intervals.

    `zoos` by the name that the rows shall bear. `gap` is accuracy on members less that on non-members, `test`
    the accuracy on records that no model saw. Raises ValueError for a zoo without a target.
    """
    rows: list[Row] = []
    for name, zoo in zoos.items():
        held, right = seen(zoo, attacks, seed=seed), zoo.accuracy()
        for attack, score in held.scores.items():
            row: Row = {"data": name, "net": net(zoo), "attack": attack}
            row |= numbers(score, held.truth, seed) | right
            rows.append(row | {"notes": held.notes[attack]})
    frame = pd.DataFrame(rows)
    frame.attrs["zoos"] = about(zoos)
    return frame


def orders(options: ZooOptions, also: Sequence[str]) -> dict[str, Order]:
    """One zoo a data set."""
    named = dict.fromkeys([options.data, *also])
    return {name: sized(replace(options, data=name), shadows=16, targets=8) for name in named}


def short(frame: pd.DataFrame) -> pd.DataFrame:
    ends = {"auc_low": "low", "auc_high": "high"}
    order = ["data", "attack", "auc", *ends, "balanced_accuracy", "tpr_at_1pct", "tpr_at_0.1pct", "gap"]
    return frame[order].rename(columns=ends | HEADS)
