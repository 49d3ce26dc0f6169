"""One table of an open problem: what each attack reads in the tail, and how many times its rivals' share."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from glasslab import metrics
from glasslab.bootstrap import DRAWS, paired
from glasslab.ratios import Ratio, Tails, ratio, tails
from glasslab.split import stream
from workbench.evidence import one_thread

Row = dict[str, Any]
RATES: Final = {"1pct": 1e-2, "0.1pct": 1e-3}
LIRA, BLACK, WHITE, FREE = "lira", "B", "W", "decode"


def table(
    scores: Sequence[Mapping[str, Float64[Tensor, "t n"]]],
    truth: Sequence[Bool[Tensor, "t n"]],
    seeds: Sequence[int],
    *,
    draws: int = DRAWS,
) -> list[Row]:
    """Rows {seed, attack, ...}: of all seeds together ("all"), best tail first, and of each seed.

    `scores` and `truth` are one a seed.
    """
    names = [name for name in scores[0] if all(name in s for s in scores)]
    with one_thread():
        found = tails(
            [[s[name] for s in scores] for name in names],
            truth,
            stream(seeds[0], "tails"),
            draws=draws,
            fpr=RATES["0.1pct"],
        )
        auc = torch.tensor(
            [[metrics.auc(s[n], m) for n in names] for s, m in zip(scores, truth, strict=True)]
        )
        more = torch.tensor(
            [
                [metrics.tpr_at_fpr(s[n], m, RATES["1pct"]).tpr for n in names]
                for s, m in zip(scores, truth, strict=True)
            ]
        )
    parts = [("all", slice(None)), *((seed, slice(i, i + 1)) for i, seed in enumerate(seeds))]
    rows = []
    for seed, which in parts if len(seeds) > 1 else parts[:1]:
        here = Tails(found.tpr[which], found.drawn[which])
        of_seed: list[Row] = [
            {"seed": seed, "attack": name, "auc": float(auc[which, i].mean())}
            | {"tpr_at_1pct": float(more[which, i].mean()), "tpr_at_0.1pct": float(here.tpr[:, i].mean())}
            | _flat(ratio(here, i, names.index(LIRA)), "ratio_to_lira", "low", "high")
            | _flat(ratio(here, i, names.index(BLACK)), "ratio_to_blackbox_stack", "low_bb", "high_bb")
            for i, name in enumerate(names)
        ]
        rows += sorted(of_seed, key=lambda row: -float(row["tpr_at_0.1pct"]))
    return rows


def verdict(rows: Sequence[Row]) -> dict[str, bool]:
    """Is W's interval above 1, and each seed's ratio, against LiRA and against the joint black-box stack?"""
    w = next(row for row in rows if row["attack"] == WHITE and row["seed"] == "all")
    return {
        "won_against_lira": _won(w["low"], w["ratio_to_lira_seeds"]),
        "won_against_blackbox_stack": _won(w["low_bb"], w["ratio_to_blackbox_stack_seeds"]),
    }


def differences(
    scores: Mapping[str, Float64[Tensor, "t n"]], truth: Bool[Tensor, "t n"], seed: int, *, draws: int = DRAWS
) -> dict[str, Row]:
    """W less LiRA and less B in AUC and TPR at 1 % FPR, with 95 % intervals, on one seed's zoo."""
    found = {}
    for rival in (LIRA, BLACK):
        with one_thread():
            drawn = paired(
                scores[WHITE],
                scores[rival],
                truth,
                stream(seed, f"less {rival}"),
                rates={"1pct": 1e-2},
                draws=draws,
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


def _flat(of: Ratio, value: str, low: str, high: str) -> Row:
    empty = {f"{value}_empty_draws": of.empty} if of.empty else {}
    return {value: of.value, low: of.low, high: of.high, f"{value}_seeds": list(of.seeds)} | empty


def _won(low: float | None, seeds: Sequence[float | None]) -> bool:
    return low is not None and low > 1 and all(s is not None and s > 1 for s in seeds)
