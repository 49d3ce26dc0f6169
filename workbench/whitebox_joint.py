"""Rows of white-box attacks on all candidates at once: of whose gradients do the weights consist?

A score is what it is because of the other candidates: with fewer of them, it is another one.
"""

from collections.abc import Mapping
from functools import partial

import torch
from jaxtyping import Float, Float64, Int
from torch import Generator, Tensor, nn

from glasslab.game import Game, Shadows
from glasslab.likelihood import Variance
from whitebox import decode, dual
from workbench import evidence
from workbench.attack import Attack, Needs
from workbench.evidence import kept
from workbench.whitebox_weights import held


def _dual(game: Game, generator: Generator, *, ridge: float = 0.01) -> Float64[Tensor, "n"]:
    return _alpha(held(game), game.x, game.y, ridge)


def _dual_shadows(
    game: Game, generator: Generator, *, ridge: float = 0.01, variance: Variance = "shrunk"
) -> Float64[Tensor, "n"]:
    shadows = game.shadows
    own = _alpha(held(game), game.x, game.y, ridge)
    S = _shadow_alphas(shadows, game.x, game.y, ridge)
    return dual.by_shadows(own, S, shadows.inside, variance=variance)


def _dual_shadow(game: Game, generator: Generator, *, ridge: float = 0.01) -> Float64[Tensor, "n"]:
    z = evidence.log_p(game)[0]
    shadow = game.shadows.models[0]
    return dual.dual_shadow(shadow, *_beside(shadow, game.x, game.y, z), ridge=ridge).cpu()


def _decode(game: Game, generator: Generator, *, law: decode.Law = decode.USUAL) -> Float64[Tensor, "n"]:
    model = held(game)
    x, y = _beside(model, game.x, game.y)
    return decode.decode(
        model, x, y, weight_decay=game.recipe.weight_decay, n_train=_n_train(game), law=law
    ).cpu()


def _decode_shadow(
    game: Game, generator: Generator, *, law: decode.Law = decode.USUAL
) -> Float64[Tensor, "n"]:
    z = evidence.log_p(game)[0]
    shadow = game.shadows.models[0]
    return decode.decode_shadow(
        shadow,
        *_beside(shadow, game.x, game.y, z),
        weight_decay=game.recipe.weight_decay,
        n_train=_n_train(game),
        law=law,
    ).cpu()


def _n_train(game: Game) -> int:
    """Records that the target trained on: half of the candidates."""
    return max(1, len(game.y) // 2)


def _beside(model: nn.Module, *tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors where the model is."""
    home = next(model.parameters(), tensors[0]).device
    return tuple(t.to(home) for t in tensors)


def _alpha(
    model: nn.Module, x: Float[Tensor, "n *d"], y: Int[Tensor, "n"], ridge: float
) -> Float64[Tensor, "n"]:
    return dual.dual(model, *_beside(model, x, y), ridge=ridge).cpu()


@kept
def _shadow_alphas(
    shadows: Shadows, x: Float[Tensor, "n *d"], y: Int[Tensor, "n"], ridge: float
) -> Float64[Tensor, "m n"]:
    return torch.stack([_alpha(shadows.models[i], x, y, ridge) for i in range(len(shadows.inside))])


KIMELDORF, MINKA = "doi:10.1016/0022-247X(71)90184-3", "arXiv:1301.2294"
ONE = Needs(n_out=1)  # shadow, of which it does not matter what it learned

_row = partial(Attack, family="whitebox", access="weights", asks=0, costly=True)
_answers = partial(
    Attack,
    family="whitebox",
    access="probabilities",
    holds="probabilities+shadows+candidates",
    costly=True,
    random=True,  # by which shadow comes first
)

JOINT: Mapping[str, Attack] = {
    "dual": _row(_dual, paper=KIMELDORF, holds="weights+candidates"),
    "dual-shadows": _row(
        _dual_shadows, paper=KIMELDORF, holds="weights+shadows+candidates", needs=Needs(n_in=2, n_out=2)
    ),
    "dual-shadow": _answers(_dual_shadow, paper=KIMELDORF, needs=ONE),
    "decode": _row(_decode, paper=MINKA, holds="weights+candidates", needs=Needs(decay=True)),
    "decode-shadow": _answers(_decode_shadow, paper=MINKA, needs=Needs(n_out=1, decay=True)),
}
