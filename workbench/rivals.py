"""Attack against attack: differences of the pooled numbers under the same resampled targets and records."""

from collections.abc import Iterator, Sequence

from glasslab.bootstrap import against
from glasslab.intervals import holm
from glasslab.metrics import RATES as ALL
from glasslab.split import stream
from workbench.rows import Row, Runs

RATES = {name: ALL[name] for name in ("1pct", "0.1pct")}
OVER_LIRA = ("probabilities+shadows", "weights+shadows")
MEASURES = ("auc", *(f"tpr_at_{name}" for name in RATES))


def differences(runs: Sequence[Runs]) -> dict[str, Row]:
    """For each attack `MEASURE_minus_RIVAL`, its 95 % interval, and p.

    The rival of all is loss; of those that hold shadows and see as much as lira, lira too. p is two-sided,
    corrected by Holm for the number of attacks that meet the same rival in the same measure. An attack that
    failed on some target has no differences.
    """
    found: dict[str, Row] = {run.name: {} for run in runs}
    for rival, others in _pairs([run for run in runs if not run.error]):
        truth, draws = rival.arena.truth, stream(rival.seed, "rivals")
        met = against(rival.score, [run.score for run in others], truth, draws, rates=RATES)
        for measure in MEASURES:
            column = f"{measure}_minus_{rival.name}"
            p = [pair[measure].p or 1.0 for pair in met]  # undefined: no evidence
            for run, pair, corrected in zip(others, met, holm(p), strict=True):
                value, low, high, *_ = pair[measure]
                found[run.name] |= {column: value, f"{column}_low": low, f"{column}_high": high}
                found[run.name][f"{column}_p"] = corrected
    return found


def _pairs(runs: Sequence[Runs]) -> Iterator[tuple[Runs, list[Runs]]]:
    for rival in runs:
        if rival.name == "loss":
            yield rival, [run for run in runs if run is not rival]
        if rival.name == "lira":
            alike = [run for run in runs if run.attack.holds.startswith(OVER_LIRA)]
            yield rival, [run for run in alike if run is not rival]
