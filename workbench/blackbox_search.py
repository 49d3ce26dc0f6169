"""Rows of black-box attacks that ask around each record, or train something for each target."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float64
from torch import Generator, Tensor

from blackbox import augmentation, boundary, merlin, noise_robustness, quantile, reference
from glasslab import nets, signals
from glasslab.game import Game
from glasslab.oracle import forward
from workbench import learned
from workbench.attack import Attack, Needs
from workbench.blackbox_outputs import ALPHA, THRESHOLDS, YE
from workbench.evidence import log_p, log_p_aux, target_loss

COPIES = 100  # Merlin's T, where the budget allows it
DISTILLED = 8


def _merlin(game: Game, generator: Generator, *, budget: int = 101) -> Float64[Tensor, "n"]:
    return merlin.merlin(game.oracle, game.x, game.y, generator=generator, T=_copies(budget))


def _morgan(game: Game, generator: Generator, *, budget: int = 101) -> Float64[Tensor, "n"]:
    T = _copies(budget)
    loss, ratio = merlin.neighbours(game.oracle, game.x, game.y, generator=generator, T=T)
    shadow = learned.neighbours(game, generator.initial_seed(), T)
    # a ratio of phi_M is enough; ratios are multiples of 1 / T
    enough = merlin.morgan_thresholds(*shadow).ratio - 0.5 / T
    return merlin.morgan(loss, ratio, *shadow) - enough


def _copies(budget: int) -> int:
    """Noisy copies of a record, the record itself being asked for too."""
    return max(1, min(COPIES, budget - 1))


def _boundary(game: Game, generator: Generator, *, budget: int = 2500) -> Float64[Tensor, "n"]:
    return boundary.boundary(
        game.oracle, game.x, game.y, generator=generator, budget=budget, start=game.aux.x
    )


def _noise_robustness(game: Game, generator: Generator, *, budget: int = 2500) -> Float64[Tensor, "n"]:
    N = max(1, budget - 1)
    level = learned.noise_level(game, generator.initial_seed(), min(N, 200))
    return noise_robustness.noise_robustness(
        game.oracle, game.x, game.y, generator=generator, N=N, level=level
    )


def _augmentation(
    game: Game,
    generator: Generator,
    *,
    rule: Literal["share", "mlp"] = "mlp",
    kind: Literal["translations", "rotations"] = "translations",
) -> Float64[Tensor, "n"]:
    agree = augmentation.agreement(game.oracle, game.x, game.y, kind=kind)
    if rule == "share":
        return augmentation.augmentation(agree, game.y, rule="share")
    shadow_agree, records, member = learned.agreement(game, kind)
    return augmentation.augmentation(
        agree,
        game.y,
        shadow_agree=shadow_agree,
        shadow_y=records.y,
        shadow_member=member,
        generator=generator,
    )


def _ye_d(game: Game, generator: Generator, *, q: int = DISTILLED, epochs: int = 0) -> Float64[Tensor, "n"]:
    recipe = replace(game.recipe, epochs=epochs) if epochs else game.recipe
    own = target_loss(game)[0]
    models = reference.distil(game.oracle, game.aux, recipe, q=q, seed=generator.initial_seed())
    loss = torch.stack([signals.loss(forward(model, game.x).cpu(), game.y) for model in models])
    return reference.ye_d(own, loss)


def _quantile(
    game: Game,
    generator: Generator,
    *,
    form: Literal["gaussian", "pinball"] = "gaussian",
    trees: bool = True,
    epochs: int = 30,
) -> Float64[Tensor, "n"]:
    images = game.x.ndim == 4  # for tables: trees, which have no quantiles of their own, else a dense net
    return quantile.quantile(
        signals.hinge(log_p(game)[0], game.y),
        game.x,
        signals.hinge(log_p_aux(game), game.aux.y),
        game.aux.x,
        generator=generator,
        form=form,
        regressor="boosting" if trees and not images and form == "gaussian" else "net",
        net=(lambda outputs: nets.build(game.recipe, game.x.shape[1:], outputs)) if images else None,
        epochs=epochs,
    )


JAYARAMAN, BERTRAN = "arXiv:2005.10881", "arXiv:2307.03694"
CHOQUETTE, LI = "arXiv:2007.14321", "arXiv:2007.15528"

_around = partial(Attack, family="blackbox", access="probabilities", asks=None, costly=True, random=True)
_labels = partial(Attack, family="blackbox", access="labels", random=True)
_for_each = partial(Attack, family="blackbox", access="probabilities", asks_aux=1, costly=True, random=True)

SEARCH: Mapping[str, Attack] = {
    "merlin": _around(_merlin, paper=JAYARAMAN, quick={"budget": 21}),
    "morgan": _around(
        _morgan,
        paper=JAYARAMAN,
        holds="probabilities+shadows",
        needs=THRESHOLDS,
        decision=0.0,
        quick={"budget": 21},
    ),
    "quantile": _for_each(
        _quantile,
        paper=BERTRAN,
        holds="probabilities+aux",
        needs=Needs(aux=40),
        quick={"epochs": 2, "trees": False},
    ),
    "quantile-pinball": _for_each(
        partial(_quantile, form="pinball"),
        paper=BERTRAN,
        holds="probabilities+aux",
        needs=Needs(aux=40),
        quick={"epochs": 2},
    ),
    "ye-d": _for_each(
        _ye_d,
        paper=YE,
        holds="probabilities+aux",
        needs=Needs(aux=40),
        decision=-ALPHA,
        quick={"q": 4, "epochs": 2},
    ),
    "boundary": _labels(
        _boundary,
        paper=f"{CHOQUETTE}, {LI}",
        needs=Needs(aux=1, continuous=True),
        holds="labels+aux",
        asks=None,
        asks_aux=1,
        costly=True,
        quick={"budget": 40},
    ),
    "noise-robustness": _labels(
        _noise_robustness,
        paper=CHOQUETTE,
        needs=THRESHOLDS,
        holds="labels+shadows",
        asks=None,
        costly=True,
        quick={"budget": 21},
    ),
    "augmentation": _labels(
        _augmentation,
        paper=CHOQUETTE,
        needs=Needs(n_out=1, images=True),
        holds="labels+shadows",
        asks=5,
        costly=True,
        decision=0.5,
    ),
    "augmentation-rotations": _labels(
        partial(_augmentation, kind="rotations"),
        paper=CHOQUETTE,
        needs=Needs(n_out=1, images=True),
        holds="labels+shadows",
        asks=9,
        costly=True,
        decision=0.5,
    ),
    "augmentation-share": Attack(
        partial(_augmentation, rule="share"),
        "blackbox",
        "labels",
        CHOQUETTE,
        Needs(images=True),
        "labels",
        asks=5,
        costly=True,
    ),
}
