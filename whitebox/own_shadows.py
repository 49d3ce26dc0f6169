"""Shadow targets that an attacker trains on records of its own: aux, cut so that no role meets another.

A sixth of aux is set aside for calibration. The rest is cut anew for each shadow: a third of aux for the
proxy (S_prx), up to a third that the shadow trains on (S_in), a sixth that neither has seen (S_out). So S_out
are non-members of shadow *and* proxy, as the target's non-members are.
"""

import warnings
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Generator, Tensor, nn

from glasslab import nets
from glasslab.checks import Floored
from glasslab.data import Data
from glasslab.recipe import Recipe
from glasslab.split import stream
from glasslab.train import resolve, train

ROLES = torch.tensor([0, 1, 2, 0, 1])  # proxy, inside, outside: three in a row of any five hold 0 and 1


class Parts(NamedTuple):
    """Rows of aux: what the proxy learns, what the shadow learns, what neither sees."""

    proxy: Int[Tensor, "p"]
    inside: Int[Tensor, "i"]
    outside: Int[Tensor, "o"]


@dataclass(frozen=True, eq=False)
class Shadow:
    """A shadow target in eval mode, the rows it knows and does not know, and what its proxies learn from."""

    model: nn.Module
    parts: Parts
    proxy: Data
    records: Data  # inside, then outside
    member: Bool[Tensor, "r"]


def calibration_rows(aux: Data, generator: Generator) -> Int[Tensor, "k"]:
    """A sixth of aux, by the seed that `generator` began with, whatever was drawn from it since."""
    order = _dealt(torch.arange(len(aux)), aux, stream(generator.initial_seed(), "calibration"))
    return order[2::6].sort().values


def proxy_records(
    aux: Data, calibration: Int[Tensor, "k"], y: Int[Tensor, "n"], generator: Generator
) -> Data:
    """A third of aux, for the proxies of a target with candidates of labels y.

    Raises ValueError where it lacks one of their classes, for which a proxy could say nothing.
    """
    proxy = aux[cut_aux(aux, calibration, generator).proxy.to(aux.y.device)]
    absent = sorted(set(y.tolist()) - set(proxy.y.tolist()))
    if absent:
        raise ValueError(f"aux must hold 3+ records of every class of y, got too few of class {absent[0]}")
    return proxy


def remaining(aux: Data, calibration: Int[Tensor, "k"]) -> Int[Tensor, "r"]:
    """The rows of aux that do not calibrate."""
    return torch.ones(len(aux), dtype=torch.bool).index_fill(0, calibration, False).nonzero().squeeze(1)


def cut_aux(
    aux: Data, calibration: Int[Tensor, "k"], generator: Generator, *, n_train: int | None = None
) -> Parts:
    """One draw of the three parts, class by class as far as they go; `inside` holds n_train at most."""
    order = _dealt(remaining(aux, calibration), aux, generator)
    role = ROLES.repeat(len(order) // len(ROLES) + 1)[: len(order)]
    proxy, inside, outside = (order[role == k] for k in range(3))
    inside = inside[torch.randperm(len(inside), generator=generator)[:n_train]]
    return Parts(proxy.sort().values, inside.sort().values, outside.sort().values)


def shadows(
    aux: Data,
    calibration: Int[Tensor, "k"],
    recipe: Recipe,
    generator: Generator,
    *,
    fits: int,
    n_train: int | None = None,
) -> list[Shadow]:
    """`fits` shadow targets, trained as `recipe` has it on a third of aux each, or on n_train records.

    n_train is the number of records that the target was trained on: Floored warns where aux has fewer for a
    shadow. ValueError for less than one fit or less than 12 records of aux.
    """
    if fits < 1:
        raise ValueError(f"fits must be 1 or more, got {fits}")
    if len(aux) < 12:
        raise ValueError(f"aux must hold 12 records or more, got {len(aux)}")
    parts = [cut_aux(aux, calibration, generator, n_train=n_train) for _ in range(fits)]
    if n_train is not None and (got := len(parts[0].inside)) < n_train:
        text = f"a shadow learns {got} records, {got / n_train:.2f} of the target's {n_train}"
        warnings.warn(text, Floored, stacklevel=3)
    models = _trained(aux, parts, recipe, generator)
    return [_shadow(aux, model, part) for model, part in zip(models, parts, strict=True)]


def _shadow(aux: Data, model: nn.Module, parts: Parts) -> Shadow:
    rows = torch.cat([parts.inside, parts.outside])
    member = (torch.arange(len(rows)) < len(parts.inside)).to(aux.y.device)
    return Shadow(model, parts, aux[parts.proxy.to(aux.y.device)], aux[rows.to(aux.y.device)], member)


def _trained(aux: Data, parts: list[Parts], recipe: Recipe, generator: Generator) -> list[nn.Module]:
    """All at once, or one after the other where each stops early, by the records of its proxy."""
    device = aux.x.device
    recipe = resolve(recipe, aux.to("cpu"), device)
    scale = nets.statistics(aux.x.cpu()) if recipe.scale == "standard" else None  # as the target has it
    net = partial(nets.build, recipe, aux.shape, aux.classes, scale)
    seeds = torch.randint(2**62, (len(parts),), generator=generator).tolist()
    member = torch.zeros(len(parts), len(aux), dtype=torch.bool)
    for row, part in zip(member, parts, strict=True):
        row[part.inside] = True
    models: list[nn.Module] = []
    # The trainer's epoch is half of the records it is given, since a target has half of the candidates.
    passes = 2 * len(parts[0].inside) / len(aux)
    epochs, patience = (round(passes * k) for k in (recipe.epochs, recipe.patience))
    recipe = replace(recipe, epochs=max(1, epochs), patience=max(patience, min(1, recipe.patience)))
    size = 1 if recipe.patience else len(parts)
    for i in range(0, len(parts), size):
        val = aux[parts[i].proxy.to(device)] if recipe.patience else None
        some = slice(i, i + size)
        state = train(net, recipe, aux.x, aux.y, member[some], seeds[some], val=val, device=device)
        for k in range(size):
            with torch.random.fork_rng(devices=[]):
                model = net().to(device).eval()
            model.load_state_dict({name: t[k] for name, t in state.items()})
            models.append(model)
    return models


def _dealt(rows: Int[Tensor, "r"], aux: Data, generator: Generator) -> Int[Tensor, "r"]:
    """The rows in random order, then sorted by class: every k-th of them is a share of each class."""
    shuffled = rows[torch.randperm(len(rows), generator=generator)]
    return shuffled[aux.y.cpu()[shuffled].argsort(stable=True)]
