"""Rows of white-box attacks on one model: its weights and aux, no shadow of the candidates."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal

from jaxtyping import Float64
from torch import Generator, Tensor, nn

from glasslab.game import Game
from whitebox import boundary, displacement, gradnorm, influence, proxy, sif
from whitebox.proxy import train_heads
from workbench.attack import Attack, Needs
from workbench.learned_weights import shares


def held(game: Game) -> nn.Module:
    """The target's model, which the access has granted."""
    assert game.model is not None, "granted without a model"
    return game.model


def shortened(game: Game, epochs: int) -> Game:
    """With a recipe of so many epochs; 0 leaves the recipe as it is."""
    return replace(game, recipe=replace(game.recipe, epochs=epochs)) if epochs else game


def _gradnorm(
    game: Game,
    generator: Generator,
    *,
    layers: Sequence[str] | None = None,
    of: Literal["loss", "input"] = "loss",
) -> Float64[Tensor, "n"]:
    return gradnorm.gradnorm(held(game), game.x, game.y, layers=layers, of=of).cpu()


def _bayes_wb(
    game: Game,
    generator: Generator,
    *,
    form: Literal["difference", "integrated"] = "difference",
    proxies: int = 10,
    epochs: int = 0,
    n_steps: int = 50,
) -> Float64[Tensor, "n"]:
    game, rest = shortened(game, epochs), shares(game, generator.initial_seed())[1]
    return proxy.bayes_wb(
        held(game),
        game.x,
        game.y,
        rest,
        game.recipe,
        generator,
        proxies=proxies,
        form=form,
        n_steps=n_steps,
    ).cpu()


def _matt(game: Game, generator: Generator, *, epochs: int = 0) -> Float64[Tensor, "n"]:
    """The reference is the target with a last layer learned anew on aux: they share a trunk."""
    game = shortened(game, epochs)
    reference = train_heads(held(game), None, game.aux, game.recipe, generator)[0]
    n_aux, n_train = len(game.aux), len(game.y) // 2
    return displacement.matt(
        reference, held(game), game.x, game.y, shared=True, n_aux=n_aux, n_train=n_train
    ).cpu()


def _influence(
    game: Game, generator: Generator, *, method: influence.Method = "last"
) -> Float64[Tensor, "n"]:
    aux = game.aux
    return influence.influence(
        held(game), game.x, game.y, aux.x, aux.y, method=method, generator=generator
    ).cpu()


def _sif(game: Game, generator: Generator) -> Float64[Tensor, "n"]:
    return sif.sif(held(game), game.x, game.y).cpu()


def _distance(
    game: Game, generator: Generator, *, steps: int = 50, classes: int = 10
) -> Float64[Tensor, "n"]:
    inside = bool((game.x >= 0).all() and (game.x <= 1).all())
    box = (0.0, 1.0) if inside else None
    return boundary.distance(held(game), game.x, game.y, steps=steps, classes=classes, box=box).cpu()


def _curvature(game: Game, generator: Generator) -> Float64[Tensor, "n"]:
    return boundary.curvature(held(game), game.x, game.y).cpu()


REZAEI, LEINO = "arXiv:2005.13702", "arXiv:1906.11798"
SABLAYROLLES, KOH, COHEN = "arXiv:1908.11229", "arXiv:1703.04730", "arXiv:2205.13680"
GROSSO, RAVIKUMAR = "arXiv:2203.09566", "arXiv:2407.02747"
AUX = Needs(aux=100)

row = partial(Attack, family="whitebox", access="weights", holds="weights", asks=0)
_proxy = partial(row, paper=LEINO, needs=AUX, random=True)
FEW = {"proxies": 1, "epochs": 2}

WEIGHTS: Mapping[str, Attack] = {
    "gradnorm": row(_gradnorm, paper=REZAEI, default=True),
    "gradnorm-last": row(partial(_gradnorm, layers=("last",)), paper=REZAEI),
    "gradnorm-input": row(partial(_gradnorm, of="input"), paper=REZAEI),
    "bayes-wb": _proxy(_bayes_wb, decision=0.0, quick=FEW, default=True),
    "bayes-wb-ig": _proxy(
        partial(_bayes_wb, form="integrated"), decision=0.0, quick=FEW | {"n_steps": 4}, costly=True
    ),
    "matt": row(_matt, paper=SABLAYROLLES, needs=AUX, random=True, quick={"epochs": 2}),
    "influence": row(_influence, paper=KOH, needs=AUX),
    "influence-ekfac": row(partial(_influence, method="ekfac"), paper=KOH, needs=AUX, costly=True),
    "sif": row(_sif, paper=COHEN, costly=True),
    "adversarial-distance": row(_distance, paper=GROSSO, costly=True, quick={"steps": 5}),
    "curvature": row(_curvature, paper=RAVIKUMAR),
}
