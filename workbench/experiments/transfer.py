"""Shadows of another architecture, and of another data distribution, against the same targets.

Shokri et al. 2017 (arXiv:1610.05820) let the attacker know the target's architecture and sample its
distribution; Salem et al. 2019 (arXiv:1806.01246) drop both. The home case has shadows of the target's own
kind. Who trains on what depends on the data and the seed alone, so that zoos of two recipes share every
row.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pandas as pd
import torch
from jaxtyping import Float64
from torch import Tensor

from glasslab.data import Data
from glasslab.split import split, stream
from glasslab.zoo import Zoo
from workbench.experiments.runs import HEADS, Row, about, minus, net, numbers, seen, sized
from workbench.options import ZooOptions
from workbench.recipes import named
from workbench.steps import Order

SAME_RECORDS = ("loss-per-class", "modified-entropy-per-class", "shadow", "lira")
OTHER_RECORDS = ("loss-per-class", "modified-entropy-per-class", "shadow", "lira-offline")
HOME = "home"
NOISE, DIM, KEPT = 0.15, 0.6, 3  # spread of the noise, a share of the brightness, one record in so many


def transfer_architecture(
    zoo: Zoo, others: Mapping[str, Zoo], *, attacks: Sequence[str] = SAME_RECORDS, seed: int = 0
) -> pd.DataFrame:
    """One row a (kind of shadows, attack), those of `zoo` itself first, as "home"; targets pooled.

    `*_minus_home`: paired bootstrap over the same targets and records. Raises ValueError where another zoo is
    not of the same records and rows.
    """
    for name, other in others.items():
        if (other.pool.digest, other.seed) != (zoo.pool.digest, zoo.seed):
            raise ValueError(f"others must have the target's candidates and seed {zoo.seed}, got zoo {name}")
    return _transfer(zoo, others, attacks, seed)


def transfer_data(
    zoo: Zoo, others: Mapping[str, Zoo], *, attacks: Sequence[str] = OTHER_RECORDS, seed: int = 0
) -> pd.DataFrame:
    """The same, for shadows of records that the target never saw; `n_in` says whether they saw the
    candidates.

    Attacks that need shadows which trained on the candidates (online LiRA) are refused then: ValueError.
    """
    return _transfer(zoo, others, attacks, seed)


def _transfer(zoo: Zoo, others: Mapping[str, Zoo], attacks: Sequence[str], seed: int) -> pd.DataFrame:
    if HOME in others:
        raise ValueError(f"others must not be named {HOME!r}, got {', '.join(others)}")
    rows: list[Row] = []
    home: Mapping[str, Float64[Tensor, "t n"]] = {}
    for name, source in {HOME: zoo, **others}.items():
        held = seen(zoo, attacks, shadows=None if source is zoo else source, seed=seed)
        home = home or held.scores
        right = source.accuracy("shadow")
        for attack, score in held.scores.items():
            row: Row = {"shadows": name, "shadow_net": net(source), "shadow_data": source.data.name}
            row |= {"attack": attack, "models": held.shadows, "n_in": held.least_in, "n_out": held.least_out}
            row |= numbers(score, held.truth, seed)
            row |= {} if source is zoo else minus(score, home[attack], held.truth, HOME, seed)
            rows.append(row | {"shadow_test": right["test"], "notes": held.notes[attack]})
    frame = pd.DataFrame(rows)
    frame.attrs["zoos"] = about({HOME: zoo, **others})
    return frame


def architectures(options: ZooOptions, also: Sequence[str]) -> dict[str, Order]:
    """The target's own first; then a linear model, a narrow and a deeper dense net, a small conv net."""
    home = sized(options, shadows=16, targets=5)
    dense = home.recipe if home.recipe.net == "mlp" else named(home.data, "mlp", "quick")[0]
    recipes = {
        "softmax": named(home.data, "softmax", "quick")[0],
        "mlp, 16": replace(dense, hidden=(16,)),
        "mlp, 64 and 32": replace(dense, hidden=(64, 32)),
    }
    if len(home.data.shape) == 3:
        recipes["cnn"] = replace(named(home.data, "cnn", "quick")[0], width=8)
    others = {name: recipe for name, recipe in recipes.items() if recipe != home.recipe}
    return {HOME: home} | {name: replace(home, recipe=recipe) for name, recipe in others.items()}


def distributions(options: ZooOptions, also: Sequence[str]) -> dict[str, Order]:
    """Target from 60 % of the data set, shadows from the rest: as it is, noisy, dimmed, with other class
    shares; and from each data set of `also`. All take the same number of candidates.
    """
    order = sized(options, shadows=16, targets=5)
    data, seed = order.data, options.seed
    parts = split(data, seed)
    rest = data[torch.cat([parts.aux, parts.val, parts.test])]
    shapes = {name: sized(replace(options, data=name), shadows=16, targets=5).data for name in also}
    for name, other in shapes.items():
        if (other.shape, other.classes) != (data.shape, data.classes):
            got = f"{other.shape} and {other.classes} of {name}"
            raise ValueError(f"also must be of shape {data.shape} and {data.classes} classes, got {got}")
    changed = {"other records": rest, "noisy": noisy(rest, seed), "dimmed": dimmed(rest)}
    changed |= {"uneven classes": uneven(rest)} | shapes
    home = replace(data[parts.pool], name=f"{data.name}, 60 %")
    held = {HOME: home} | {name: replace(d, name=f"{d.name}, {name}") for name, d in changed.items()}
    least = min(round(0.59 * len(d)) for d in held.values())  # a little less: equal records stay together
    settings = order.settings | {"records": min(order.settings["records"] or least, least)}
    return {name: replace(order, data=d, settings=settings) for name, d in held.items()}


def noisy(data: Data, seed: int) -> Data:
    """Gaussian noise of 0.15 of the range of each data set's values, which stay in that range."""
    low, high = float(data.x.min()), float(data.x.max())
    drawn = torch.randn(data.x.shape, generator=stream(seed, "noisy"), dtype=data.x.dtype)
    return replace(data, x=(data.x + NOISE * (high - low) * drawn).clamp(low, high))


def dimmed(data: Data) -> Data:
    """All values at 0.6 of what they were: a darker image."""
    return replace(data, x=DIM * data.x)


def uneven(data: Data) -> Data:
    """Of the upper half of the classes one record in three, the first one of each among them."""
    kept = torch.ones(len(data.y)).bool()
    for c in range(data.classes // 2, data.classes):
        places = (data.y == c).nonzero().squeeze(1)
        kept[places[torch.arange(len(places)) % KEPT > 0]] = False
    return data[kept]


def short(frame: pd.DataFrame) -> pd.DataFrame:
    ends = {"auc_minus_home": "- home", "auc_minus_home_low": "low", "auc_minus_home_high": "high"}
    order = ["shadows", "attack", "auc", *ends, "tpr_at_1pct", "tpr_at_0.1pct"]
    return frame.reindex(columns=order).rename(columns=ends | HEADS)
