"""What LiRA's parts are worth (Carlini et al. 2022, arXiv:2112.03570): one part is changed, the rest is kept.

- `shadows`: 4, 8, 16, ... of them, always whole pairs of a half and its complement;
- `queries`: versions of an image that target and shadows are asked for, 1, 2, 18;
- `variance`: the rules of `glasslab.likelihood.fit`;
- `signal`: log-odds phi = log(p / (1 - p)), near normal in law, against the plain loss and confidence.

All from the signals that a zoo keeps; no model is asked twice.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import pandas as pd
from jaxtyping import Float64
from torch import Tensor

from glasslab.likelihood import Rule, Variance, fit, ratio
from glasslab.signals import bounded
from glasslab.zoo import Zoo
from workbench.experiments.runs import HEADS, Row, about, minus, numbers, sized
from workbench.options import ZooOptions
from workbench.play import floored
from workbench.steps import Order

Signal = Literal["phi", "loss", "confidence"]
LEAST = 4  # shadows: two a side, of which a spread can be had
QUERIES = (1, 2, 18)


@dataclass(frozen=True)
class Setting:
    """One way to run LiRA."""

    shadows: int
    queries: int = 1
    variance: Variance = "auto"
    signal: Signal = "phi"


def ablations(zoo: Zoo, *, queries: Sequence[int] | None = None, seed: int = 0) -> pd.DataFrame:
    """One row an (ablation, value); targets pooled, 95 % intervals. `base` marks the unchanged attack, all
    shadows, one query, log-odds, variance "auto", which stands in every ablation.

    `rule` is the variance that "auto" meant. `*_minus_base`: paired bootstrap over the same targets and
    records. `queries` defaults to 1, 2, 18 for images that are large enough, to 1 for tables. Raises
    ValueError for a zoo of fewer than 4 shadows or without a target.
    """
    m, t = len(zoo.shadow_member), len(zoo.target_member)
    if m < LEAST or not t:
        raise ValueError(f"zoo must hold {LEAST}+ shadows and a target, got {m} and {t}")
    asked = _able(zoo) if queries is None else queries
    base = Setting(m)
    scored: dict[Setting, tuple[Float64[Tensor, "t n"], Row]] = {}
    rows = []
    for ablation, value, setting in _settings(base, asked):
        for each in (base, setting):
            if each not in scored:
                scored[each] = _run(zoo, each, seed)
        score, found = scored[setting]
        row: Row = {"ablation": ablation, "value": value, "base": setting == base}
        row |= found | (
            {} if setting == base else minus(score, scored[base][0], zoo.target_member, "base", seed)
        )
        rows.append(row)
    frame = pd.DataFrame(rows)
    frame.attrs["zoos"] = about({zoo.data.name: zoo})
    return frame


def _settings(base: Setting, queries: Sequence[int]) -> Iterator[tuple[str, str, Setting]]:
    counts = [m for m in (2**i for i in range(2, 20)) if m < base.shadows]
    for m in (*counts, base.shadows):
        yield "shadows", str(m), replace(base, shadows=m)
    for k in queries:
        yield "queries", str(k), replace(base, queries=k)
    for rule in get_args(Rule):
        yield "variance", rule, replace(base, variance=rule)
    yield "variance", "auto", base
    for signal in get_args(Signal):
        yield "signal", signal, replace(base, signal=signal)


def _run(zoo: Zoo, how: Setting, seed: int) -> tuple[Float64[Tensor, "t n"], Row]:
    """Scores in nats and what is read off them."""
    notes: list[str] = []
    with floored(notes):
        shadow, target = _signal(zoo, "shadow", how)[: how.shadows], _signal(zoo, "target", how)
        held = fit(shadow, zoo.shadow_member[: how.shadows], variance=how.variance)
        score = ratio(target, held)
    row: Row = {"shadows": how.shadows, "queries": how.queries, "rule": held.variance, "signal": how.signal}
    return score, row | numbers(score, zoo.target_member, seed) | {"notes": "; ".join(notes) or None}


def _signal(zoo: Zoo, of: Literal["shadow", "target"], how: Setting) -> Float64[Tensor, "_ k n"]:
    s = zoo.signal(how.signal, of=of, queries=how.queries)
    return bounded(s) if how.signal == "phi" else s  # as log-odds that an attacker reads off probabilities


def _able(zoo: Zoo) -> tuple[int, ...]:
    """Queries that these records allow: images larger than a shift of one pixel; tables as they are."""
    shape = zoo.data.shape
    return QUERIES if len(shape) == 3 and min(shape[1:]) > 1 else QUERIES[:1]


def orders(options: ZooOptions, also: Sequence[str]) -> dict[str, Order]:
    return {options.data: sized(options, shadows=64, targets=8)}


def short(frame: pd.DataFrame) -> pd.DataFrame:
    ends = {"auc_minus_base": "- base", "auc_minus_base_low": "low", "auc_minus_base_high": "high"}
    order = ["ablation", "value", "rule", "auc", *ends, "tpr_at_1pct", "tpr_at_0.1pct"]
    return frame.reindex(columns=order).rename(columns=ends | HEADS)
