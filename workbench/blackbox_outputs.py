"""Rows of black-box attacks that judge an answer by itself: baselines, thresholds, and attack models."""

from collections.abc import Mapping
from functools import partial

from jaxtyping import Float64
from torch import Generator, Tensor

from blackbox import baseline, ml_leaks, reference
from blackbox.mlps import Training
from glasslab import signals
from glasslab.game import Game
from workbench import learned
from workbench.attack import Attack, Needs
from workbench.evidence import (
    labels,
    log_odds,
    log_p,
    log_p_aux,
    loss,
    phi,
    scores,
    target_loss,
    tau,
    told,
)

ALPHA = 0.01  # at which the decision of an attack with a p-value is taken


def _random(game: Game, generator: Generator) -> Float64[Tensor, "n"]:
    return baseline.random(len(game.y), generator)


def _correctness(game: Game, generator: Generator) -> Float64[Tensor, "n"]:
    return (labels(game) == game.y.cpu()).double()


def _loss(game: Game, generator: Generator) -> Float64[Tensor, "n"]:
    return baseline.loss(phi(game)[0])


def _yeom(game: Game, generator: Generator) -> Float64[Tensor, "n"]:
    return baseline.yeom(phi(game)[0], scores(game, log_odds), told(game).member)


def _confidence(game: Game, generator: Generator) -> Float64[Tensor, "n"]:
    return baseline.confidence(phi(game)[0])


def _confidence_max(game: Game, generator: Generator) -> Float64[Tensor, "n"]:
    return ml_leaks.confidence_max(log_p(game)[0])


def _entropy(game: Game, generator: Generator) -> Float64[Tensor, "n"]:
    return baseline.entropy(log_p(game)[0])


def _modified_entropy(game: Game, generator: Generator) -> Float64[Tensor, "n"]:
    return baseline.modified_entropy(log_p(game)[0], game.y)


def _loss_per_class(game: Game, generator: Generator) -> Float64[Tensor, "n"]:
    return _loss(game, generator) - tau(game, loss)


def _modified_entropy_per_class(game: Game, generator: Generator) -> Float64[Tensor, "n"]:
    return _modified_entropy(game, generator) - tau(game, baseline.modified_entropy)


def _shadow(
    game: Game,
    generator: Generator,
    *,
    per_class: bool = True,
    pairs: int = 5000,
    training: Training = Training(),  # noqa: B008 (frozen)
) -> Float64[Tensor, "n"]:
    model = learned.attack_model(game, generator.initial_seed(), per_class, pairs, training)
    return model(log_p(game)[0].exp(), game.y)


def _ml_leaks(
    game: Game,
    generator: Generator,
    *,
    training: Training = Training(),  # noqa: B008 (frozen)
) -> Float64[Tensor, "n"]:
    model = learned.leaks_model(game, generator.initial_seed(), training)
    return model(log_p(game)[0].exp())


def _ye_p(game: Game, generator: Generator) -> Float64[Tensor, "n"]:
    about_aux = signals.loss(log_p_aux(game), game.aux.y)
    threshold = -reference.threshold_p(about_aux, ALPHA)
    # in units of the threshold: a shift would round the smallest losses to ties
    return reference.ye_p(target_loss(game)[0], about_aux) / threshold.clamp(min=1e-290)


def _ye_s(game: Game, generator: Generator) -> Float64[Tensor, "n"]:
    seen = told(game)
    return reference.ye_s(target_loss(game)[0], game.y, -scores(game, loss), seen.y, seen.member)


YEOM, SONG, YE = "arXiv:1709.01604", "arXiv:2003.10595", "arXiv:2111.09679"
SHOKRI, SALEM = "arXiv:1610.05820", "arXiv:1806.01246"
THRESHOLDS = Needs(n_out=1)  # shadows to learn from; whether candidates are among their records or not
QUICK = {"pairs": 1000, "training": Training(epochs=20)}

_ask = partial(Attack, family="blackbox", access="probabilities")
_learn = partial(_ask, holds="probabilities+shadows", needs=THRESHOLDS)

OUTPUTS: Mapping[str, Attack] = {
    "random": Attack(_random, "blackbox", "nothing", "", holds="nothing", asks=0, control=True, random=True),
    "correctness": Attack(_correctness, "blackbox", "labels", YEOM, holds="labels", decision=0.5),
    "loss": _ask(_loss, paper=YEOM, default=True),
    "yeom": _learn(_yeom, paper=YEOM, decision=0.0),
    "confidence": _ask(_confidence, paper=SONG),
    "confidence-max": _ask(_confidence_max, paper=SALEM),
    "entropy": _ask(_entropy, paper=SONG),
    "modified-entropy": _ask(_modified_entropy, paper=SONG),
    "loss-per-class": _learn(_loss_per_class, paper=SONG, decision=0.0),
    "modified-entropy-per-class": _learn(_modified_entropy_per_class, paper=SONG, decision=0.0),
    "shadow": _learn(_shadow, paper=SHOKRI, decision=0.5, random=True, quick=QUICK, default=True),
    "shadow-sorted": _learn(
        partial(_shadow, per_class=False), paper=SHOKRI, decision=0.5, random=True, quick=QUICK
    ),
    "ml-leaks": _learn(
        _ml_leaks, paper=SALEM, decision=0.5, random=True, quick={"training": Training(epochs=20)}
    ),
    "ye-p": _ask(
        _ye_p,
        paper=YE,
        holds="probabilities+aux",
        needs=Needs(aux=round(1 / ALPHA)),
        asks_aux=1,
        decision=-1.0,
    ),
    "ye-s": _learn(_ye_s, paper=YE, decision=-ALPHA),
}
