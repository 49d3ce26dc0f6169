"""Rows of inversion attacks: what MI-FACE rebuilds of each label, read as a membership score."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from jaxtyping import Float, Float64, Int
from torch import Generator, Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from glasslab.data import Data
from glasslab.game import Game, Shadows
from inversion.gradient import Gradient
from inversion.membership import Distance, calibrated, membership
from inversion.miface import miface
from inversion.result import Inversion
from workbench.attack import Attack, Needs
from workbench.evidence import kept, one_thread
from workbench.whitebox_weights import held

AT_ONCE = 16  # models inverted as one batch


def stacked(models: Sequence[nn.Module], classes: int) -> Gradient:
    """The gradient of m models as one: label i * classes + y stands for label y of model i.

    The models are of one kind and in eval mode. A batch asks each (model, label) pair once at most.
    """
    if any(layer.training for model in models for layer in model.modules()):
        raise ValueError("models must be in eval mode, got training mode")
    weights, buffers = stack_module_state(list(models))
    weights, pairs = {name: w.detach() for name, w in weights.items()}, len(models) * classes

    def logits(own: dict[str, Tensor], fixed: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(models[0], (own, fixed), (x,))

    def gradient(
        x: Float[Tensor, "b *d"], y: Int[Tensor, "b"]
    ) -> tuple[Float[Tensor, "b"], Float[Tensor, "b *d"]]:
        # Every pair has its place, asked or not: the shape stays when images have stopped.
        images = x.new_zeros(pairs, *x.shape[1:]).index_copy(0, y, x.detach()).requires_grad_()
        with torch.enable_grad():
            z = vmap(logits)(weights, buffers, images.unflatten(0, (len(models), classes)))
            pair = torch.arange(pairs, device=z.device)
            p = z.flatten(0, 1).double().softmax(-1)[pair, pair % classes]
            if not p.requires_grad:  # a model that is constant in x
                return p[y], torch.zeros_like(x)
            (slope,) = torch.autograd.grad(p.sum(), images, allow_unused=True, materialize_grads=True)
        return p.detach()[y], slope[y]

    return gradient


def inverted(
    models: Sequence[nn.Module], aux: Data, classes: int, *, steps: int, rate: float
) -> list[Inversion]:
    """For each model an inversion of every label, from the mean of aux; also of labels that aux lacks."""
    found = list[Inversion]()
    for start in range(0, len(models), AT_ONCE):
        own = [models[i] for i in range(start, min(start + AT_ONCE, len(models)))]
        device = next(own[0].parameters(), aux.x).device
        y = torch.arange(len(own) * classes, device=device)
        public = aux.x.to(device)
        with one_thread():
            images = miface(
                stacked(own, classes),
                y,
                shape=aux.shape,
                steps=steps,
                rate=rate,
                start="public_mean",
                aux=public,
            )
        found += [_of_model(images, i, classes) for i in range(len(own))]
    return found


def _of_model(found: Inversion, i: int, classes: int) -> Inversion:
    rows = slice(i * classes, (i + 1) * classes)
    return replace(
        found,
        x=found.x[rows],
        y=found.y[rows] - i * classes,
        cost=found.cost[rows],
        confidence=found.confidence[rows],
        steps=found.steps[rows],
        queries=found.queries[rows],
        stop_reason=found.stop_reason[rows],
        curve=None if found.curve is None else found.curve[:, rows],
    )


@kept
def _shadow_scores(
    shadows: Shadows,
    x: Tensor,
    y: Int[Tensor, "n"],
    aux: Data,
    classes: int,
    steps: int,
    rate: float,
    distance: Distance,
) -> Float64[Tensor, "m n"]:
    found = inverted(shadows.models, aux, classes, steps=steps, rate=rate)
    return torch.stack([membership(each, x, y, distance=distance) for each in found])


def _raw(
    game: Game,
    generator: Generator,
    *,
    steps: int = 100,
    rate: float = 0.1,
    distance: Distance = "correlation",
) -> Float64[Tensor, "n"]:
    (found,) = inverted([held(game)], game.aux, game.classes, steps=steps, rate=rate)
    return membership(found, game.x, game.y, distance=distance).cpu()


def _calibrated(
    game: Game,
    generator: Generator,
    *,
    steps: int = 100,
    rate: float = 0.1,
    distance: Distance = "correlation",
) -> Float64[Tensor, "n"]:
    own = _raw(game, generator, steps=steps, rate=rate, distance=distance)
    others = _shadow_scores(game.shadows, game.x, game.y, game.aux, game.classes, steps, rate, distance)
    return calibrated(own, others.cpu())


FREDRIKSON, WATSON = "doi:10.1145/2810103.2813677", "arXiv:2111.08440"

_row = partial(Attack, family="inversion", access="weights", asks=0, default=True, quick={"steps": 20})

INVERSIONS: Mapping[str, Attack] = {
    "inversion-raw": _row(_raw, paper=FREDRIKSON, holds="weights", needs=Needs(aux=1)),
    "inversion-calibrated": _row(
        _calibrated, paper=WATSON, holds="weights+shadows", needs=Needs(n_out=1, aux=1)
    ),
}
