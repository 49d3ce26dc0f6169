"""How much data an attacker needs, with and without synthesis (Shokri et al. 2017, arXiv:1610.05820).

Shadows learn what the attacker holds: some real records alone; or records with noise, or drawn from
marginals, both made of the same real records; or what hill climbing finds, which needs no record at all and
many answers. The shadow attack and offline LiRA then read the same shadows. No candidate is among the
records of any.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import pandas as pd
import torch
from jaxtyping import Float64
from torch import Tensor

from glasslab.data import Data
from glasslab.game import Game, Shadows, game
from glasslab.split import stream
from glasslab.zoo import Zoo
from workbench.attacks import chosen
from workbench.experiments.runs import HEADS, Row, about, minus, numbers, sized
from workbench.options import ZooOptions
from workbench.play import drawn, play
from workbench.steps import Order
from workbench.synthetic_shadows import Method, accuracy, made, trained

ATTACKS = ("shadow", "lira-offline")
HELD = (50, 100, 200)  # real records; all of aux come on top
SHADOWS = 8
RATE = 0.1  # of noise
REAL = "real"
CLIMBED: Method = "hillclimb"
WAYS: tuple[Method, ...] = ("noisy", "marginals")


@dataclass(frozen=True, eq=False)
class Way:
    """`held` real records, and how shadows' records are made of them; queries and accuracy are a target's."""

    name: str
    held: int
    shadows: list[Shadows]
    records: float
    queries: float | int
    accuracy: float


def scarcity(
    zoo: Zoo, *, held: Sequence[int] = HELD, shadows: int = SHADOWS, rate: float = RATE, seed: int = 0
) -> pd.DataFrame:
    """One row a (way, number of real records held, attack); targets pooled, 95 % intervals.

    `records` is what the shadows of a target share out among them, `queries` what making them asked of it,
    both means over targets; `shadow_test` and `target_test` are accuracies on the target's test records.
    `*_minus_real`: paired bootstrap, against shadows of the same real records alone. Hill climbing holds 0.
    Smaller numbers are part of larger ones. Raises ValueError for a zoo without a target, numbers below 2,
    fewer than 2 shadows, and rates outside [0, 1].
    """
    _check(zoo, held, shadows, rate)
    sizes = sorted({n for n in held if n < len(zoo.aux)} | {len(zoo.aux)})
    rows: list[Row] = []
    plain: dict[tuple[str, int], Float64[Tensor, "t n"]] = {}
    right = zoo.accuracy("target")["test"]
    for way in _ways(zoo, sizes, shadows, rate, seed):
        for attack in ATTACKS:
            score, notes = _scored(zoo, way, attack, seed)
            row: Row = {"way": way.name, "held": way.held, "attack": attack, "records": way.records}
            row |= {"queries": way.queries, "models": shadows, "shadow_test": way.accuracy}
            row |= {"target_test": right} | numbers(score, zoo.target_member, seed)
            if way.name == REAL:
                plain[attack, way.held] = score
            elif way.held:
                row |= minus(score, plain[attack, way.held], zoo.target_member, REAL, seed)
            rows.append(row | {"notes": notes})
    frame = pd.DataFrame(rows)
    frame.attrs["zoos"] = about({zoo.data.name: zoo})
    return frame


def few(aux: Data, n: int, seed: int) -> Data:
    """n records of aux; more of them begin with fewer."""
    return aux[torch.randperm(len(aux), generator=stream(seed, "scarcity"))[:n]]


def _ways(zoo: Zoo, sizes: Sequence[int], m: int, rate: float, seed: int) -> Iterator[Way]:
    for n in sizes:
        real = few(zoo.aux, n, seed)
        yield _way(zoo, REAL, n, [real] * len(zoo.target_member), 0, m, seed)
        for method in WAYS:
            yield _made(zoo, method, real, m, rate, seed)
    yield _made(zoo, CLIMBED, None, m, rate, seed)


def _made(zoo: Zoo, method: Method, real: Data | None, m: int, rate: float, seed: int) -> Way:
    """Every target is asked for itself; noise asks none, and is the same for all of them."""
    data, asked, n = list[Data](), 0, len(zoo.pool)
    for a in range(1 if method == "noisy" else len(zoo.target_member)):
        one = game(zoo, a)
        one = one if real is None else replace(one, aux=_repeated(real, n) if method == "noisy" else real)
        data.append(made(one, method, stream(seed, "scarcity", method), rate=rate, records=n))
        asked += one.oracle.queries
    data = data * len(zoo.target_member) if method == "noisy" else data
    return _way(zoo, method, 0 if real is None else len(real), data, asked / len(data), m, seed)


def _repeated(real: Data, n: int) -> Data:
    """The records again and again, n in all; each copy gets noise of its own."""
    return real[torch.arange(n) % len(real)]


def _way(
    zoo: Zoo, name: str, held: int, data: Sequence[Data], queries: float | int, m: int, seed: int
) -> Way:
    """Trains the shadows; what all targets share is trained once."""
    known: dict[int, Shadows] = {}
    for each in data:
        if id(each) not in known:
            # scaled as the target is; no more of aux is looked at
            known[id(each)] = trained(each, zoo.pool.x, zoo.aux, zoo.recipe, m, seed)
    test = zoo.test
    right = [accuracy(s.models.__getitem__, m, test.x, test.y) for s in known.values()]
    records = sum(map(len, data)) / len(data)
    return Way(name, held, [known[id(each)] for each in data], records, queries, sum(right) / len(right))


def _scored(zoo: Zoo, way: Way, name: str, seed: int) -> tuple[Float64[Tensor, "t n"], str | None]:
    """Scores on every target, and what was floored."""
    attack, scores, notes = chosen(name)[name], list[Tensor](), list[str]()
    for a, shadows in enumerate(way.shadows):
        one: Game = replace(game(zoo, a), shadows=shadows)
        played = play(attack, one, drawn(attack, name, seed, a))
        if played.score is None:
            raise RuntimeError(f"{name}, {way.name} of {way.held}: {played.error}")
        scores.append(played.score)
        notes += [played.notes] if played.notes else []
    return torch.stack(scores), "; ".join(dict.fromkeys(notes)) or None


def _check(zoo: Zoo, held: Sequence[int], shadows: int, rate: float) -> None:
    if not len(zoo.target_member):
        raise ValueError("zoo must hold a target, got none")
    if any(n < 2 for n in held):
        raise ValueError(f"held must be 2+ real records each, got {list(held)}")
    if shadows < 2:
        raise ValueError(f"shadows must be 2 or more, got {shadows}")
    if not 0 <= rate <= 1:
        raise ValueError(f"rate must lie in [0, 1], got {rate:g}")


def orders(options: ZooOptions, also: Sequence[str]) -> dict[str, Order]:
    """Targets alone: each way trains shadows of its own."""
    if options.shadows:
        raise ValueError(
            f"shadows must be left out for scarcity, which trains its own, got {options.shadows}"
        )
    return {options.data: sized(replace(options, shadows=0), shadows=0, targets=4)}


def short(frame: pd.DataFrame) -> pd.DataFrame:
    names = ["attack", "way", "held", "shadow_test", "auc", "tpr_at_1pct", "auc_minus_real"]
    ends = {"auc_minus_real": "- real", "auc_minus_real_low": "low", "auc_minus_real_high": "high"}
    kept = frame.sort_values("attack", kind="stable", ascending=False)
    return kept.reindex(columns=[*names, *list(ends)[1:], "queries"]).rename(columns=ends | HEADS)
