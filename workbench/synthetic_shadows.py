"""Shadow models of an attacker without data of the target's kind: trained on records that it makes.

The records come from the target itself (hill climbing), from marginals of aux, or are records of aux with
noise. There are as many as candidates, and each shadow learns a random half of them, as the target does.
None of them is a candidate: whoever learns from these shadows learns from others than the candidates.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn

from glasslab import nets
from glasslab.data import Data
from glasslab.game import Game, Shadows
from glasslab.oracle import BudgetExceeded, forward
from glasslab.recipe import Recipe
from glasslab.split import shadow_rows, stream, subseed
from glasslab.train import resolve, train
from synthesis.features import features_of
from synthesis.hillclimb import hillclimb
from synthesis.marginals import marginals
from synthesis.noisy import noisy
from synthesis.synthetic import labels
from workbench.evidence import kept

Method = Literal["hillclimb", "marginals", "noisy"]
CLIMB = 200  # queries a record at most


def made(
    game: Game,
    method: Method,
    generator: Generator,
    *,
    conf_min: float = 0.2,
    rate: float = 0.1,
    records: int | None = None,
    climb: int = CLIMB,
) -> Data:
    """As many records as candidates, or `records`; what a class lacks is lacking.

    Raises ValueError where hill climbing made none, BudgetExceeded where none is left for the candidates.
    """
    n = len(game.y) if records is None else records
    if method != "noisy":
        _payable(game, n if method == "marginals" else 1)
    if method == "marginals":
        return marginals(game.aux, n, oracle=game.oracle, generator=generator).data(game.classes)
    if method == "noisy":
        return _changed(game.aux, rate, n, generator)
    found = hillclimb(
        game.oracle,
        labels(n, game.classes),
        features_of(game.aux),  # what values a feature may have: kinds and ranges, no record
        shape=game.aux.shape,
        conf_min=conf_min,
        iter_max=climb,
        seed=generator.initial_seed(),
    )
    if "interrupted" in found.reason:
        raise KeyboardInterrupt
    if not len(found.x):
        raise ValueError(f"hillclimb must make a record, got none of {n}: {found.reasons()}")
    return found.data(game.classes)


def _payable(game: Game, queries: int) -> None:
    """So many to make records, and one a candidate."""
    left, need = game.oracle.left, queries + len(game.y)
    if left is not None and left < need:
        raise BudgetExceeded(f"{need} queries asked, {left} left of a budget of {game.oracle.budget}")


def on_synthetic(
    game: Game,
    generator: Generator,
    *,
    method: Method,
    attack: Callable[..., Float[Tensor, "n"]],
    m: int = 4,
    conf_min: float = 0.2,
    rate: float = 0.1,
    epochs: int = 0,
    records: int | None = None,
    climb: int = CLIMB,
) -> Float[Tensor, "n"]:
    """The attack, whose shadows learned what `method` makes. `epochs`: of the shadows, 0 the recipe's."""
    if game.oracle.reveals != "probabilities":
        raise ValueError(f"oracle must reveal probabilities to this attack, got {game.oracle.reveals}")
    seed, recipe = generator.initial_seed(), replace(game.recipe, epochs=epochs or game.recipe.epochs)
    if method == "noisy":  # no target has a say in these: learned once for all
        held = _noisy(game.x, game.aux, recipe, m, seed, rate, len(game.y) if records is None else records)
        return attack(replace(game, shadows=held), generator)
    data = made(game, method, generator, conf_min=conf_min, rate=rate, records=records, climb=climb)
    held = trained(data, game.x, game.aux, recipe, m, seed)
    return attack(replace(game, shadows=held), generator)


def trained(data: Data, x: Float[Tensor, "n *d"], aux: Data, recipe: Recipe, m: int, seed: int) -> Shadows:
    """m shadows of these records, and what they answer about x and aux; x is none of their records."""
    device = x.device
    own = resolve(replace(recipe, patience=0), aux.to("cpu"), device)
    scale = nets.statistics(aux.x.cpu()) if own.scale == "standard" else None  # as the target has it
    net = partial(nets.build, own, data.shape, data.classes, scale)
    member = shadow_rows(m, len(data), seed)
    seeds = [subseed(seed, "synthetic shadow", j) for j in range(m)]
    state = train(net, own, data.x.to(device), data.y.to(device), member, seeds, device=device)
    models = []
    for j in range(m):
        with torch.random.fork_rng(devices=[]):
            model = net().to(device).eval()
        model.load_state_dict({name: t[j] for name, t in state.items()})
        models.append(model)
    z, z_aux = (torch.stack([forward(model, each).cpu() for model in models]) for each in (x, aux.x))
    inside = torch.zeros(m, len(x), dtype=torch.bool)
    return Shadows(models, data, member, inside, z[:, :, None], z_aux)


@kept
def _noisy(
    x: Float[Tensor, "n *d"], aux: Data, recipe: Recipe, m: int, seed: int, rate: float, n: int
) -> Shadows:
    return trained(_changed(aux, rate, n, stream(seed, "noisy")), x, aux, recipe, m, seed)


def _changed(aux: Data, rate: float, n: int, generator: Generator) -> Data:
    """n records of aux at most, with noise."""
    return noisy(aux[torch.randperm(len(aux), generator=generator)[:n]], rate, generator=generator)


def accuracy(
    models: Callable[[int], nn.Module], m: int, x: Float[Tensor, "n *d"], y: Int[Tensor, "n"]
) -> float:
    """Of m shadows, on records of the target's kind: it orders the ways to make records."""
    right = [(forward(models(j), x).argmax(1) == y).double().mean() for j in range(m)]
    return float(torch.stack(right).mean())
