"""Worlds with a known answer. Every attack can be asked: do you find what is there, and only that?"""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from glasslab.data import Data
from glasslab.game import Game, Shadows
from glasslab.oracle import Oracle
from glasslab.recipe import Recipe
from glasslab.split import shadow_rows, stream, target_rows
from whitebox.glir import Step, record_steps


def gaussian(
    leak: float, m: int, n: int, seed: int = 0, spread: float = 1.0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(phi, shadow_phi, shadow_member, truth): N(hard, 1), for members N(hard + leak, spread^2).

    At spread 1 no attack can have AUC above Phi(leak / sqrt 2) (Neyman-Pearson).
    """
    g = stream(seed, "gaussian")
    hard = 3 * torch.randn(n, generator=g, dtype=torch.float64)
    shadow_member, truth = shadow_rows(m, n, seed), target_rows(1, n, seed)

    def seen(member: Tensor) -> Tensor:
        noise = torch.randn(member.shape, generator=g, dtype=torch.float64)
        return hard + leak * member + torch.where(member, spread, 1.0) * noise

    return seen(truth)[0], seen(shadow_member), shadow_member, truth[0]


def null(m: int, n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """(S, member): signals that know nothing of the balanced rows beside them."""
    return torch.randn(m, n, generator=stream(seed, "null"), dtype=torch.float64), shadow_rows(m, n, seed)


def ridge(
    *,
    leaks: bool,
    seed: int,
    n: int = 400,
    d: int = 300,
    c: int = 5,
    m: int = 16,
    images: bool = False,
    peaked: bool = False,
    hidden: int = 0,
) -> tuple[Game, Tensor]:
    """A game with real models and its truth: ridge classifiers on noise with coin-flip labels.

    Closed form, so milliseconds. A target that leaks learned its members by heart; the other one
    learned as many fresh records, so that no score can tell its candidates apart. With more columns than
    records in training even the label-free entropy tells; with d = 40 it is upside down, and the loss weak.
    `images` gives the records the shape [3, 5, d / 15]. `peaked` models are linear in a narrow kernel around
    their training records, at which the loss then has minima; it has none in a linear model. `hidden` random
    units come before the linear layer, other ones in each model. The recipe says weight decay, for the ridge.
    """
    g, shape = stream(seed, "ridge"), (3, 5, d // 15) if images else (d,)
    pool, aux, fresh = (
        Data(torch.randn(n, *shape, generator=g), torch.randint(c, (n,), generator=g), c, name)
        for name in ("pool", "aux", "fresh")
    )
    member, truth = shadow_rows(m, n, seed), target_rows(1, n, seed)[0]
    fitted = Peaked if peaked else partial(_fitted, generator=g, hidden=hidden)
    models = [fitted(pool[row]) for row in member]
    target = fitted((pool if leaks else fresh)[truth])
    with torch.no_grad():
        z, z_aux = (torch.stack([model(data.x) for model in models]) for data in (pool, aux))
    shadows = Shadows(models, pool, member, member, z[:, :, None], z_aux)
    recipe = Recipe(
        net="mlp" if hidden else "softmax", hidden=(hidden,) if hidden else (), epochs=10, weight_decay=0.01
    )
    steps = partial(updates, (pool if leaks else fresh)[truth], seed)
    play = Game(Oracle(target), target, pool.x, pool.y, c, recipe, shadows, aux, known=truth, steps=steps)
    return play, truth


def updates(data: Data, seed: int) -> list[Step]:
    """Three steps of softmax regression from zero, each on a half of the records."""
    linear = nn.Linear(data.x[0].numel(), data.classes)
    for w in linear.parameters():
        nn.init.zeros_(w)
    flat = Data(data.x.flatten(1), data.y, data.classes, data.name)
    model = nn.Sequential(nn.Flatten(), linear).eval()
    return record_steps(model, flat, lr=0.1, batch=len(data) // 2, steps=3, generator=stream(seed, "steps"))


class Peaked(nn.Module):
    """4 in the logit of its label at a training record, next to nothing a unit away."""

    def __init__(self, data: Data) -> None:
        super().__init__()
        self.centre = nn.Parameter(data.x.flatten(1))
        self.last = nn.Linear(len(data), data.classes, bias=False)
        self.last.weight.data = 4 * one_hot(data.y, data.classes).T.float()
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.last((-torch.cdist(x.flatten(1), self.centre).square()).exp())


def _fitted(data: Data, generator: torch.Generator, hidden: int) -> nn.Module:
    """A linear classifier by ridge regression on the one-hot labels, made confident by a factor 4."""
    x, below = data.x.flatten(1), list[nn.Module]()
    if hidden:
        first = nn.Linear(x.shape[1], hidden)
        first.weight.data = torch.randn(hidden, x.shape[1], generator=generator) / x.shape[1] ** 0.5
        first.bias.data = torch.randn(hidden, generator=generator)
        below = [first, nn.ReLU()]
        x = nn.Sequential(*below)(x).detach()
    d = x.shape[1]
    linear = nn.Linear(d, data.classes, bias=False)
    w = torch.linalg.solve(x.T @ x + torch.eye(d), x.T @ one_hot(data.y, data.classes).float())
    linear.weight.data = 4 * w.T
    flat = [nn.Flatten()] if data.x.ndim > 2 else []
    return (nn.Sequential(*flat, *below, linear) if flat or below else linear).eval()
