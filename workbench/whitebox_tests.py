"""Rows of white-box attacks that test each record by itself: signals of weights, heads on features."""

from collections.abc import Mapping
from functools import partial

import torch
from jaxtyping import Float, Float64, Int
from torch import Generator, Tensor, nn

from glasslab.data import Data
from glasslab.game import Game, Shadows
from glasslab.likelihood import Variance
from glasslab.oracle import forward
from glasslab.split import stream
from whitebox import density, frozen_trunk, score_test
from whitebox.align import Method as Alignment
from whitebox.influence import Leverage, Method
from whitebox.stacked import Kind, Stack, fit_stack
from whitebox.whitened import WhitenedGamma, WhitenedTheta
from workbench.attack import Attack, Needs
from workbench.evidence import kept
from workbench.learned_weights import shares
from workbench.open_problem.scores import black
from workbench.whitebox_weights import held

Signals = Mapping[str, Float64[Tensor, "*m n"]]
DECAY = 1e-4  # of heads, where the recipe has none: fewer candidates than features need one


def signals(
    model: nn.Module, x: Float[Tensor, "n *d"], y: Int[Tensor, "n"], aux: Data
) -> dict[str, Float64[Tensor, "n"]]:
    """Five of a model's own logits, and for each layer l of its weights `gamma_l` and `theta_l`."""
    found = black(forward(model, x).cpu(), y)
    for name, signal in (("gamma", WhitenedGamma(aux)), ("theta", WhitenedTheta(aux))):
        found |= {f"{name}_{i}": s for i, s in enumerate(signal(model, x, y).cpu().unbind(1))}
    return found


def _score_test(
    game: Game,
    generator: Generator,
    *,
    lambda_s: float | None = None,
    variance: Variance = "pooled",
) -> Float64[Tensor, "n"]:
    shadows, lambda_s = game.shadows, _lambda(game, lambda_s)
    own = _summed(signals(held(game), game.x, game.y, game.aux), lambda_s)
    S = _summed(_shadow_signals(shadows, game.x, game.y, game.aux), lambda_s)
    return score_test.by_shadows(own, S, shadows.inside, variance=variance)


def _score_test_aux(
    game: Game, generator: Generator, *, lambda_s: float | None = None, leverage: Method = "last"
) -> Float64[Tensor, "n"]:
    spare, rest = shares(game, generator.initial_seed())
    model, reach = held(game), Leverage(rest, leverage)
    s, t = (
        score_test.score_test(model, each.x, each.y, rest, lambda_s=_lambda(game, lambda_s)).cpu()
        for each in (game, spare)
    )
    u, v = (reach(model, each.x, each.y).cpu() for each in (game, spare))
    return score_test.by_aux(s, game.y.cpu(), u, t, spare.y.cpu(), v)


def _score_test_raw(
    game: Game, generator: Generator, *, lambda_s: float | None = None
) -> Float64[Tensor, "n"]:
    return score_test.score_test(held(game), game.x, game.y, game.aux, lambda_s=_lambda(game, lambda_s)).cpu()


def _stacked(
    game: Game, generator: Generator, *, stacker: Kind = "logistic", C: float = 0.1
) -> Float64[Tensor, "n"]:
    own = signals(held(game), game.x, game.y, game.aux)
    seed = generator.initial_seed()
    return _stack(game.shadows, game.x, game.y, game.aux, stacker, C, seed)(own)


def _frozen_trunk(
    game: Game, generator: Generator, *, heads: int = 96, steps: int = 200
) -> Float64[Tensor, "n"]:
    return frozen_trunk.frozen_trunk(
        held(game), game.x, game.y, generator, weight_decay=_decay(game), heads=heads, steps=steps
    ).cpu()


def _frozen_trunk_trunks(
    game: Game,
    generator: Generator,
    *,
    heads: int = 96,
    trunks: int = 8,
    trunk_heads: int = 24,
    steps: int = 200,
) -> Float64[Tensor, "n"]:
    shadows = game.shadows
    return frozen_trunk.with_trunks(
        held(game),
        game.x,
        game.y,
        shadows.models,
        shadows.inside,
        generator,
        weight_decay=_decay(game),
        heads=heads,
        trunks=trunks,
        trunk_heads=trunk_heads,
        steps=steps,
    ).cpu()


def _density(
    game: Game,
    generator: Generator,
    *,
    alignment: Alignment | None = "activations",
    classifier: density.Classifier = "ridge",
) -> Float64[Tensor, "n"]:
    shadows = game.shadows
    return density.density(
        held(game),
        shadows.models,
        shadows.inside,
        game.aux.x,
        generator,
        alignment=alignment,
        classifier=classifier,
    ).cpu()


def _lambda(game: Game, lambda_s: float | None) -> float:
    """What theory says, unless told otherwise."""
    return game.recipe.weight_decay if lambda_s is None else lambda_s


def _decay(game: Game) -> float:
    return game.recipe.weight_decay or DECAY


def _summed(found: Signals, lambda_s: float) -> Float64[Tensor, "*m n"]:
    """The score test's T: over the layers, gamma + lambda_s theta."""
    weight = {"gamma": 1.0, "theta": lambda_s}
    parts = [weight[kind] * s for name, s in found.items() if (kind := name.partition("_")[0]) in weight]
    return torch.stack(parts).sum(0)


@kept
def _shadow_signals(
    shadows: Shadows, x: Float[Tensor, "n *d"], y: Int[Tensor, "n"], aux: Data
) -> dict[str, Float64[Tensor, "m n"]]:
    each = [signals(shadows.models[i], x, y, aux) for i in range(len(shadows.inside))]
    return {name: torch.stack([found[name] for found in each]) for name in each[0]}


@kept
def _stack(
    shadows: Shadows,
    x: Float[Tensor, "n *d"],
    y: Int[Tensor, "n"],
    aux: Data,
    stacker: Kind,
    C: float,
    seed: int,
) -> Stack:
    told = _shadow_signals(shadows, x, y, aux)
    return fit_stack(told, shadows.inside, stream(seed, "stack"), stacker=stacker, C=C)


VAART, CARLINI = "doi:10.1017/CBO9780511802256", "arXiv:2112.03570"
SABLAYROLLES, AINSWORTH = "arXiv:1908.11229", "arXiv:2209.04836"
AUX = Needs(aux=100)

_row = partial(Attack, family="whitebox", access="weights", holds="weights", asks=0)
_shadows = partial(_row, holds="weights+shadows", costly=True)
_stack_of = partial(_shadows, paper=CARLINI, needs=Needs(n_in=3, n_out=3, aux=100), random=True)
_control = partial(_shadows, paper=AINSWORTH, needs=Needs(n_in=1, n_out=1, aux=10), control=True)
_few = {"heads": 32, "steps": 20}

TESTS: Mapping[str, Attack] = {
    "score-test": _shadows(_score_test, paper=VAART, needs=Needs(n_in=2, n_out=2, aux=100)),
    "score-test-aux": _row(_score_test_aux, paper=VAART, needs=AUX, random=True, quick={"leverage": "ekfac"}),
    "score-test-raw": _row(_score_test_raw, paper=VAART, needs=AUX),
    "stacked": _stack_of(_stacked),
    "stacked-boosting": _stack_of(partial(_stacked, stacker="boosting")),
    "stacked-sum": _stack_of(partial(_stacked, stacker="sum")),
    "frozen-trunk": _row(_frozen_trunk, paper=SABLAYROLLES, costly=True, random=True, quick=_few),
    "frozen-trunk-trunks": _shadows(
        _frozen_trunk_trunks, paper=SABLAYROLLES, needs=Needs(n_in=1, n_out=2), random=True, quick=_few
    ),
    "density": _control(_density),
    "density-off": _control(partial(_density, alignment=None)),
}
