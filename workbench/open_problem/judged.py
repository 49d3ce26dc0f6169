"""One table of an open problem: what each attack reads in the tail, and how many times its rivals' share."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from glasslab import metrics
from glasslab.bootstrap import paired
from glasslab.ratios import Ratio, ratios
from glasslab.split import stream
from workbench.evidence import one_thread

Row = dict[str, Any]
RATES: Final = {"1pct": 1e-2, "0.1pct": 1e-3}
LIRA, BLACK, WHITE, FREE = "lira", "B", "W", "decode"


def table(
    scores: Sequence[Mapping[str, Float64[Tensor, "t n"]]], truth: Sequence[Bool[Tensor, "t n"]], seed: int
) -> list[Row]:
    """One row an attack, over all seeds given, best tail first; `scores` and `truth` are one a seed."""
    names = [name for name in scores[0] if all(name in s for s in scores)]
    columns = {name: [s[name] for s in scores] for name in names}
    with one_thread():
        beside = {
            rival: dict(
                zip(
                    names,
                    ratios([columns[n] for n in names], columns[rival], truth, stream(seed, f"over {rival}")),
                    strict=True,
                )
            )
            for rival in (LIRA, BLACK)
        }
    rows = []
    for name in names:
        row: Row = {
            "attack": name,
            "auc": _mean(metrics.auc(s, m) for s, m in zip(columns[name], truth, strict=True)),
        }
        for rate, fpr in RATES.items():
            row[f"tpr_at_{rate}"] = _mean(
                metrics.tpr_at_fpr(s, m, fpr).tpr for s, m in zip(columns[name], truth, strict=True)
            )
        row |= _flat(beside[LIRA][name], "ratio_to_lira", "low", "high")
        row |= _flat(beside[BLACK][name], "ratio_to_blackbox_stack", "low_bb", "high_bb")
        rows.append(row)
    return sorted(rows, key=lambda row: -row["tpr_at_0.1pct"])


def verdict(rows: Sequence[Row]) -> dict[str, bool]:
    """Is W's interval above 1, and each seed's ratio, against LiRA and against the joint black-box stack?"""
    w = next(row for row in rows if row["attack"] == WHITE)
    return {
        "won_against_lira": _won(w["low"], w["ratio_to_lira_seeds"]),
        "won_against_blackbox_stack": _won(w["low_bb"], w["ratio_to_blackbox_stack_seeds"]),
    }


def differences(
    scores: Mapping[str, Float64[Tensor, "t n"]], truth: Bool[Tensor, "t n"], seed: int
) -> dict[str, Row]:
    """W less LiRA and less B in AUC and TPR at 1 % FPR, with 95 % intervals, on one seed's zoo."""
    found = {}
    for rival in (LIRA, BLACK):
        with one_thread():
            drawn = paired(
                scores[WHITE], scores[rival], truth, stream(seed, f"less {rival}"), rates={"1pct": 1e-2}
            )
        found[rival] = {
            name: {"value": drawn[name].value, "low": drawn[name].low, "high": drawn[name].high}
            for name in ("auc", "tpr_at_1pct")
        }
    return found


def permuted(truth: Bool[Tensor, "t n"], seed: int) -> Bool[Tensor, "t n"]:
    """Each target's members drawn anew, as many as it has."""
    generator = stream(seed, "permuted truth")
    return torch.stack([row[torch.randperm(len(row), generator=generator)] for row in truth])


def _flat(ratio: Ratio, value: str, low: str, high: str) -> Row:
    return {value: ratio.value, low: ratio.low, high: ratio.high, f"{value}_seeds": list(ratio.seeds)} | (
        {f"{value}_empty_draws": ratio.empty} if ratio.empty else {}
    )


def _won(low: float | None, seeds: Sequence[float | None]) -> bool:
    return low is not None and low > 1 and all(s is not None and s > 1 for s in seeds)


def _mean(values: Any) -> float:
    held = list(values)
    return sum(held) / len(held)
