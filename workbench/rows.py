"""From scores and the truth to a table: one row an (attack, target), and a summary, one row an attack."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from glasslab import columns, metrics
from glasslab.bootstrap import bootstrap
from glasslab.checks import check
from glasslab.intervals import holm, percentile
from glasslab.per_record import LEAST, calibrated, calibrated_by_targets
from glasslab.split import stream
from workbench.attacks import Attack
from workbench.play import Played

Row = dict[str, Any]
AGAINST = ("loss", "lira")  # attacks that all others are compared with
MEASURES = ("auc", "balanced_accuracy", "tpr_at_1pct", "tpr_at_0.1pct")


@dataclass(frozen=True, eq=False)
class Runs:
    """One attack's runs: on each target, and on mock targets, whose thresholds are carried over.

    In a leave-one-out evaluation there are no mocks: the other targets serve.
    """

    name: str
    attack: Attack
    played: Sequence[Played]
    truth: Bool[Tensor, "t n"]
    mock: Float64[Tensor, "s n"] | None
    mock_truth: Bool[Tensor, "s n"]
    left_out: bool
    seed: int

    @property
    def score(self) -> Float64[Tensor, "t n"]:
        """A row of NaN where the attack failed."""
        empty = torch.full(self.truth.shape[1:], torch.nan, dtype=torch.float64)
        return torch.stack([empty if p.score is None else p.score for p in self.played])

    @property
    def failed(self) -> list[str]:
        return [f"target {a}: {p.error}" for a, p in enumerate(self.played) if p.score is None]


def rows(runs: Runs, common: Sequence[Row]) -> list[Row]:
    """One row a target; `common` holds what is known of each target without any attack."""
    made = []
    for a, played in enumerate(runs.played):
        row = _about(runs) | {"target": a, "targets": 1} | common[a]
        if played.score is not None:
            row |= columns.row(played.score, runs.truth[a], _draws(runs)) | _decided(runs, a)
            row |= _carried(runs, slice(a, a + 1))
        cost = {"queries": played.queries, "seconds": played.seconds}
        made.append(row | cost | {"notes": played.notes, "error": played.error})
    return made
