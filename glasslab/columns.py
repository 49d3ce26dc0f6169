"""A table's columns for one attack: plain values, strict JSON, None where undefined.

For each rate: `tpr_at_NAME`, its `_low` and `_high`, the rate that was realised (`_fpr`, `_fpr_low`,
`_fpr_high`), and `_flag`, why it is weak. Precision at a prior, `ppv_at_NAME`, is read at FPR 1 %.
"""

from statistics import mean, stdev

from jaxtyping import Bool, Float
from torch import Generator, Tensor

from glasslab import metrics
from glasslab.bootstrap import bootstrap
from glasslab.intervals import Interval, clopper_pearson
from glasslab.metrics import PRIORS, RATES
from glasslab.transfer import Realised, best_threshold, ppv, realised, tau

PPV_RATE = "1pct"  # the one rate that a single target of some hundred records can resolve

Value = float | int | str | list[str] | None
Columns = dict[str, Value]


def row(score: Float[Tensor, "n"], member: Bool[Tensor, "n"], generator: Generator) -> Columns:
    """One target. Intervals by a bootstrap over its records; Clopper-Pearson where K < 10."""
    return _columns(score, member, generator)


def summary(score: Float[Tensor, "t n"], member: Bool[Tensor, "t n"], generator: Generator) -> Columns:
    """All targets pooled; `_mean` and `_sd` are over targets, None for one target or where one has no number.

    From 5 targets on the bootstrap draws targets and records, below that records only.
    """
    return {**_columns(score, member, generator), **_spread(score, member), "targets": len(score)}


def transferred(
    score: Float[Tensor, "*t n"],
    member: Bool[Tensor, "*t n"],
    mock: Float[Tensor, "*s n"],
    mock_member: Bool[Tensor, "*s n"],
) -> Columns:
    """The same numbers at thresholds chosen on mock targets; all names end in `_transferred`."""
    outside = mock[~mock_member]
    top = realised(score, member, best_threshold(mock, mock_member))
    out: Columns = {"balanced_accuracy": metrics.balanced(top.point)}
    for name, fpr in RATES.items():
        found = realised(score, member, tau(outside, fpr))
        out |= _tpr(name, found, found.tpr, metrics.flag(len(outside), fpr))
        out |= _ppv(found) if name == PPV_RATE else {}
    return {f"{name}_transferred": value for name, value in out.items()}


def _columns(score: Tensor, member: Tensor, generator: Generator) -> Columns:
    drawn = bootstrap(score, member, generator)
    n_pos = int(member.sum())
    n_neg = member.numel() - n_pos
    out: Columns = {
        "auc": metrics.auc(score, member),
        **_ends("auc", drawn["auc"]),
        "balanced_accuracy": metrics.balanced_accuracy(score, member),
        **_ends("balanced_accuracy", drawn["balanced_accuracy"]),
        "ba_null": metrics.ba_null(n_pos, n_neg),
    }
    for name, fpr in RATES.items():
        found, why = _at(score, member, fpr), metrics.flag(n_neg, fpr)
        out |= _tpr(name, found, found.tpr if why else drawn[f"tpr_at_{name}"], why)
        out[f"tpr_null_{name}"] = metrics.tpr_null(n_neg, fpr)
        out |= _ppv(found) if name == PPV_RATE else {}
    return {**out, "n_pos": n_pos, "n_neg": n_neg, "below_resolution": list(metrics.below_resolution(n_neg))}


def _at(score: Tensor, member: Tensor, fpr: float) -> Realised:
    """The point at a rate, with the threshold taken from the truth."""
    point = metrics.tpr_at_fpr(score, member, fpr)
    n_pos = int(member.sum())
    n_neg = member.numel() - n_pos
    return Realised(point, clopper_pearson(point.hits, n_pos), clopper_pearson(point.alarms, n_neg))


def _tpr(name: str, found: Realised, between: Interval | None, why: str | None) -> Columns:
    column = f"tpr_at_{name}"
    return {
        column: found.point.tpr,
        **_ends(column, between),
        f"{column}_fpr": found.point.fpr,
        **_ends(f"{column}_fpr", found.fpr),
        f"{column}_flag": why,
    }


def _ppv(found: Realised) -> Columns:
    out: Columns = {}
    for name, prior in PRIORS.items():
        out[f"ppv_at_{name}"], out[f"ppv_at_{name}_low"] = ppv(found, prior)
    return out


def _ends(column: str, between: Interval | None) -> Columns:
    low, high = between or (None, None)
    return {f"{column}_low": low, f"{column}_high": high}


def _spread(score: Tensor, member: Tensor) -> Columns:
    """Mean and standard deviation over targets: how much they differ, not an interval."""
    names = ["auc", "balanced_accuracy", *(f"tpr_at_{name}" for name in RATES)]
    whole = len(score) > 1 and bool((member.any(1) & ~member.all(1)).all())
    each = [_numbers(s, m) for s, m in zip(score, member, strict=True)] if whole else []
    columns = dict(zip(names, zip(*each, strict=True), strict=True)) if whole else {}
    return {
        f"{name}_{kind}": f(columns[name]) if whole else None
        for name in names
        for kind, f in (("mean", mean), ("sd", stdev))
    }


def _numbers(score: Tensor, member: Tensor) -> list[float]:
    tpr = [metrics.tpr_at_fpr(score, member, fpr).tpr for fpr in RATES.values()]
    return [metrics.auc(score, member), metrics.balanced_accuracy(score, member), *tpr]
