"""What is learned for white-box attacks before a target is looked at, once for a set of shadows or for aux.

aux has roles that never meet: a sixth calibrates thresholds, the rest feeds proxies and shadow targets.
"""

from typing import Literal

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from glasslab.data import Data
from glasslab.game import Game, Shadows
from glasslab.recipe import Recipe
from glasslab.split import stream
from whitebox import layerwise, meta, meta_features
from whitebox.meta_classifier import Classifier, fit_classifier
from whitebox.own_shadows import calibration_rows, remaining
from workbench.evidence import kept

Displacement = Literal["subtract", "learned"]


def shares(game: Game, seed: int) -> tuple[Data, Data]:
    """aux for calibration, and the rest of it."""
    return _shares(game.aux, seed)


def general(
    game: Game, seed: int, cut: str | None, fits: int, proxies: int, epochs: int, lr: float, n_steps: int
) -> layerwise.Learned:
    """The displacement net of general-wb, learned from aux."""
    return _general(game.aux, game.recipe, _n_train(game), seed, cut, fits, proxies, epochs, lr, n_steps)


def meta_model(
    game: Game,
    seed: int,
    cuts: tuple[str | None, ...],
    displacement: Displacement,
    fits: int,
    proxies: int,
    epochs: int,
    lr: float,
) -> meta.Learned:
    """The meta attack model, learned from aux."""
    return _meta(game.aux, game.recipe, _n_train(game), seed, cuts, displacement, fits, proxies, epochs, lr)


def shadow_classifier(
    game: Game, seed: int, cuts: tuple[str | None, ...], proxies: int, models: int, epochs: int
) -> Classifier:
    """The meta attack model, learned from the candidates in the first `models` shadows."""
    return _shadow_classifier(
        game.shadows, game.x, game.y, game.aux, game.recipe, seed, cuts, proxies, models, epochs
    )


def own_features(game: Game, seed: int, cuts: tuple[str | None, ...], proxies: int) -> Float64[Tensor, "n f"]:
    """The same of the target."""
    assert game.model is not None
    rest, generator = _shares(game.aux, seed)[1], stream(seed, "features")
    return meta_features.features(
        game.model, game.x, game.y, rest, game.recipe, generator, cuts, proxies=proxies
    ).values.cpu()


def _n_train(game: Game) -> int:
    """Records of a model of the zoo: half of a pool."""
    return len(game.shadows.records) // 2


@kept
def _shares(aux: Data, seed: int) -> tuple[Data, Data]:
    rows = calibration_rows(aux, torch.Generator().manual_seed(seed))
    return aux[rows], aux[remaining(aux, rows)]


@kept
def _general(
    aux: Data,
    recipe: Recipe,
    n_train: int,
    seed: int,
    cut: str | None,
    fits: int,
    proxies: int,
    epochs: int,
    lr: float,
    n_steps: int,
) -> layerwise.Learned:
    return layerwise.learn(
        aux,
        recipe,
        torch.Generator().manual_seed(seed),
        cut=cut,
        fits=fits,
        proxies=proxies,
        epochs=epochs,
        lr=lr,
        n_steps=n_steps,
        n_train=n_train,
    )


@kept
def _meta(
    aux: Data,
    recipe: Recipe,
    n_train: int,
    seed: int,
    cuts: tuple[str | None, ...],
    displacement: Displacement,
    fits: int,
    proxies: int,
    epochs: int,
    lr: float,
) -> meta.Learned:
    return meta.learn(
        aux,
        recipe,
        torch.Generator().manual_seed(seed),
        cuts=cuts,
        displacement=displacement,
        fits=fits,
        proxies=proxies,
        epochs=epochs,
        lr=lr,
        n_train=n_train,
    )


@kept
def _shadow_classifier(
    held: Shadows,
    x: Tensor,
    y: Int[Tensor, "n"],
    aux: Data,
    recipe: Recipe,
    seed: int,
    cuts: tuple[str | None, ...],
    proxies: int,
    models: int,
    epochs: int,
) -> Classifier:
    rest, member = _shares(aux, seed)[1], held.inside[:models]
    each = [
        meta_features.features(
            held.models[i], x, y, rest, recipe, stream(seed, "features"), cuts, proxies=proxies
        ).values.cpu()
        for i in range(len(member))
    ]
    # DIFFERS: batches of 1,024 and rate 1e-2, where the attack has 64 and 1e-3: m n rows, 16 times as fast.
    return fit_classifier(
        torch.cat(each), member.flatten(), stream(seed, "classifier"), epochs=epochs, batch=1024, lr=1e-2
    )
