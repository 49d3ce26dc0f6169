"""What the pictures of a run are drawn from, as one tidy frame: one row a point, `curve` names its kind.

`roc`: the steps of an attack over all targets, x = FPR, y = TPR; points on a straight line are left out.
`per_record`: y = TPR of a record at `rate`; `estimator` says which of the three it is.
`null`: x = FPR, y = the least or the most TPR (`side` low, high) that chance gives in 95 % of cases.
`phi`: y = log-odds of a record under one model; `side` is in, out (shadows), target in, target out; x is the
quantile of mu_in - mu_out at which the record was chosen. `normal`: x, y = location and spread of its sides.
"""

from collections.abc import Mapping, Sequence
from math import log10
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from glasslab import per_record
from glasslab.likelihood import Fit
from glasslab.metrics import RATES, roc
from glasslab.null_law import null_hits

COLUMNS = ("curve", "attack", "estimator", "rate", "record", "side", "x", "y")
AT = ("1pct", "0.1pct")
QUANTILES = (0.05, 0.5, 0.95, 1.0)  # of mu_in - mu_out: how much a model's having seen the record changes phi
Scores = Mapping[str, Float64[Tensor, "t n"]]


def curves(scores: Scores, truth: Bool[Tensor, "t n"], records: Int[Tensor, "n"]) -> pd.DataFrame:
    """ROC steps and records' TPR of attacks that have a score for every record and target."""
    parts = [pd.DataFrame(columns=COLUMNS)]
    for name, score in scores.items():
        if score.isfinite().all():
            x, y = _corners(score, truth)
            parts.append(_frame(y, {"curve": "roc", "attack": name, "x": x.tolist()}))
            parts += _found(name, score, truth, records)
    return joined([*parts, *_chance(truth)])


def risks(
    fit: Fit,
    phi: Float[Tensor, "m n"],
    inside: Bool[Tensor, "m n"],
    target_phi: Float[Tensor, "t n"],
    truth: Bool[Tensor, "t n"],
    records: Int[Tensor, "n"],
) -> pd.DataFrame:
    """Each record's risk by the Gaussian of its shadows, and all values of phi of four records."""
    assert fit.mu_in is not None
    assert fit.sig_in is not None
    parts = []
    for rate in AT:
        y = per_record.gaussian(fit.mu_in, fit.sig_in, fit.mu_out, fit.sig_out, RATES[rate])
        parts.append(_of_records("gaussian", rate, records, y))
    order = (fit.mu_in - fit.mu_out).argsort()
    for q in QUANTILES:
        i = int(order[round(q * (len(order) - 1))])
        about = {"curve": "phi", "record": int(records[i]), "x": q}
        sides = {"in": phi[inside[:, i], i], "out": phi[~inside[:, i], i]}
        sides |= {"target in": target_phi[truth[:, i], i], "target out": target_phi[~truth[:, i], i]}
        parts += [_frame(values, about | {"side": side}) for side, values in sides.items()]
        for side, mu, sig in (("in", fit.mu_in, fit.sig_in), ("out", fit.mu_out, fit.sig_out)):
            normal = {"curve": "normal", "record": int(records[i]), "side": side, "x": float(mu[i])}
            parts.append(_frame(sig[i : i + 1], normal))
    return joined(parts)


def _chance(truth: Bool[Tensor, "t n"]) -> list[pd.DataFrame]:
    """The null law's band, at about 20 rates a decade."""
    n_pos = int(truth.sum())
    n_neg = truth.numel() - n_pos
    k = torch.logspace(0, log10(n_neg), round(20 * log10(n_neg)) + 1).long().unique()[:-1]
    fpr = [0.0, *(k.double() / n_neg).tolist()]
    hits = torch.tensor([null_hits(n_pos, n_neg, f) for f in fpr]).double() / n_pos
    return [
        _frame(y, {"curve": "null", "side": side, "x": fpr})
        for side, y in zip(("low", "high"), hits.T, strict=True)
    ]


def _found(
    name: str, score: Float64[Tensor, "t n"], truth: Bool[Tensor, "t n"], records: Int[Tensor, "n"]
) -> list[pd.DataFrame]:
    """By the pooled threshold; by the record's own where at least one record resolves the rate."""
    parts = []
    for rate in AT:
        pooled = per_record.at_pooled_threshold(score, truth, RATES[rate])
        parts.append(_of_records("at_pooled_threshold", rate, records, pooled.tpr, name))
        own = per_record.empirical(score, truth, RATES[rate])
        if not own.below_resolution.all():
            parts.append(_of_records("empirical", rate, records, own.tpr, name))
    return parts


def _corners(score: Float64[Tensor, "t n"], truth: Bool[Tensor, "t n"]) -> tuple[Tensor, Tensor]:
    """The curve's vertices at which it turns."""
    curve = roc(score, truth)
    up, right = curve.hits.diff(), curve.alarms.diff()
    turns = up[1:] * right[:-1] != up[:-1] * right[1:]
    end = torch.ones(1).bool()
    kept = torch.cat([end, turns, end])
    return curve.fpr[kept], curve.tpr[kept]


def _of_records(
    estimator: str, rate: str, records: Tensor, y: Tensor, attack: str | None = None
) -> pd.DataFrame:
    about = {"curve": "per_record", "attack": attack, "estimator": estimator, "rate": rate}
    return _frame(y, about | {"record": records.tolist()})


def _frame(y: Tensor, about: Mapping[str, Any]) -> pd.DataFrame:
    """One row a value of y; what is said of it in other columns is one value, or one a row."""
    held = dict.fromkeys(COLUMNS) | {"y": y.tolist()} | dict(about)
    return pd.DataFrame(held, index=range(len(y)))


def joined(parts: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """One frame with fixed types, whichever parts there are."""
    kinds = dict.fromkeys(COLUMNS, "string") | {"record": "Int64", "x": "float64", "y": "float64"}
    typed = [part.astype(kinds) for part in parts if len(part)]
    return pd.concat(typed, ignore_index=True) if typed else pd.DataFrame(columns=COLUMNS).astype(kinds)
