"""From scores and the truth to a table: one row an (attack, target), and a summary, one row an attack."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from glasslab import columns, metrics
from glasslab.checks import check
from glasslab.per_record import LEAST, calibrated, calibrated_by_targets
from glasslab.split import stream
from workbench.arena import Arena
from workbench.attack import Attack
from workbench.play import Played, floored

Row = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Runs:
    """One attack in an arena: on each target, and on mock targets, whose thresholds are carried over."""

    name: str
    attack: Attack
    arena: Arena
    seed: int
    played: Sequence[Played]
    mocked: Sequence[Played]

    @property
    def score(self) -> Float64[Tensor, "t n"]:
        """NaN where the attack failed."""
        empty = torch.full(self.arena.truth.shape[1:], torch.nan, dtype=torch.float64)
        return torch.stack([empty if played.score is None else played.score for played in self.played])

    @property
    def mock(self) -> Float64[Tensor, "s n"] | None:
        """None unless every mock target has a score."""
        scores = [played.score for played in self.mocked if played.score is not None]
        return torch.stack(scores) if scores and len(scores) == len(self.arena.mock_truth) else None

    @property
    def error(self) -> str | None:
        """None where every target has a score."""
        failed = [played.error for played in self.played if played.score is None]
        if not failed or len(failed) == len(self.played):
            return failed[0] if failed else None
        return f"{len(failed)} of {len(self.played)} targets: {failed[0]}"


def rows(runs: Runs) -> list[Row]:
    """One row a target. Undefined numbers are absent."""
    made = []
    for a, played in enumerate(runs.played):
        row = _about(runs) | {"target": a, "targets": 1} | runs.arena.known[a]
        if played.score is not None:
            score, truth = played.score, runs.arena.truth[a]
            row |= columns.row(score, truth, stream(runs.seed, "row", a)) | _decided(runs, score, truth)
            row |= _carried(runs, a, score)
        row |= {"queries": played.queries, "seconds": played.seconds}
        made.append(row | {"notes": played.notes, "error": played.error})
    return made


def summary(runs: Runs, of_targets: Sequence[Row]) -> Row:
    """One attack over all targets, pooled. Where it failed on one, there are no numbers, but the error."""
    ring, notes = runs.arena, _notes(runs)
    gaps = {name: fmean(known[name] for known in ring.known) for name in ring.known[0]}
    row = _about(runs) | {"targets": len(ring.truth)} | gaps
    if not runs.error:
        score = runs.score
        row |= columns.summary(score, ring.truth, stream(runs.seed, "summary"))
        row |= _decided(runs, score, ring.truth)
        row |= _mean(of_targets) if ring.left_out else _carried(runs, None, score)
        with floored(notes):
            row |= _calibrated(runs, score)
        row["checks"] = check(score, ring.truth, gap=gaps["gap"])
    paid = [played for played in runs.played if played.queries is not None]
    row |= {"queries": sum(p.queries or 0 for p in paid), "seconds": sum(p.seconds or 0.0 for p in paid)}
    return row | {"notes": "; ".join(notes) or None, "error": runs.error}


def _about(runs: Runs) -> Row:
    attack, shadows = runs.attack, runs.arena.shadows
    return {
        "attack": runs.name,
        "family": attack.family,
        "access": attack.access,
        "holds": attack.holds,
        "paper": attack.paper,
        "shadows": shadows,
        "models": shadows if attack.needs.n_in + attack.needs.n_out else 0,
    }


def _decided(runs: Runs, score: Tensor, truth: Tensor) -> Row:
    """At the attack's own threshold, where it has one."""
    decision = runs.attack.decision
    if decision is None:
        return {}
    return {"balanced_accuracy_decision": metrics.balanced(metrics.above(score, truth, decision))}


def _carried(runs: Runs, a: int | None, score: Tensor) -> Row:
    """At thresholds from mock targets, for target a or for all of them."""
    ring, mock = runs.arena, runs.mock
    if not ring.left_out:
        truth = ring.truth if a is None else ring.truth[a]
        return {} if mock is None else columns.transferred(score, truth, mock, ring.mock_truth)
    others = [b for b, played in enumerate(runs.played) if b != a and played.score is not None]
    if not others:
        return {}
    return columns.transferred(score, ring.truth[a], runs.score[others], ring.truth[others])


def _mean(of_targets: Sequence[Row]) -> Row:
    """Leave-one-out: each target has thresholds of its own, so rates are averaged; without an interval."""
    whole: Row = {}
    for name in of_targets[0]:
        values = [row.get(name) for row in of_targets]
        rate = name.endswith("_transferred") and not name.endswith(("_low_transferred", "_high_transferred"))
        if rate and "ppv" not in name and all(isinstance(value, float) for value in values):
            whole[name] = fmean(value for value in values if value is not None)
    return whole


def _calibrated(runs: Runs, score: Float64[Tensor, "t n"]) -> Row:
    """Each record on its own scale of non-member scores, where there are 8 of each; supposes these normal."""
    ring, mock = runs.arena, runs.mock
    if ring.left_out and int((~ring.truth).sum(0).min()) > LEAST:
        own, by = calibrated_by_targets(score, ring.truth), f"{len(score) - 1} other targets"
    elif mock is not None and int((~ring.mock_truth).sum(0).min()) >= LEAST:
        own, by = calibrated(score, mock, ring.mock_truth), f"{len(mock)} mock targets"
    else:
        return {}
    rates = {
        f"calibrated_tpr_at_{name}": metrics.tpr_at_fpr(own, ring.truth, fpr).tpr
        for name, fpr in metrics.RATES.items()
    }
    return {"calibrated_auc": metrics.auc(own, ring.truth), **rates, "calibrated_by": by}


def _notes(runs: Runs) -> list[str]:
    """What was floored, in the first target's words, and why no threshold came from mock targets."""
    said = [played.notes for played in runs.played if played.notes]
    also = f" (so or alike on {len(said)} targets)" if len(said) > 1 else ""
    failed = [played.error for played in runs.mocked if played.error]
    failed += ["it is costly"] if runs.attack.costly and len(runs.arena.mock_truth) else []
    notes = [said[0] + also] if said else []
    return notes + ([f"no thresholds from mock targets: {failed[0]}"] if failed else [])
