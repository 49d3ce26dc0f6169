"""general-wb, the layer-wise white-box attack (Leino & Fredrikson 2020, arXiv:1906.11798, "Stolen Memories").

The attacker has: the target's weights, its recipe, and aux, records of the same distribution.
The net is cut into trunk h and head g; at z = h(x) the log-probability of y is replaced by the linear map
w.z + b, for the target's head (w^, b^) and for a proxy head (w~, b~) that learned aux on the same trunk. A
displacement net D says what a pair (w^_j, w~_j) tells of membership, the same for every feature j:
m = sum_j D(w^_j, w~_j) z_j + D(b^, b~). D is learned on shadow targets of the attacker's own; where it
subtracts, m is bayes-wb. Higher = member.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int
from torch import Generator, Tensor, nn

from glasslab.data import Data
from glasslab.recipe import Recipe
from whitebox.cut import check_slice
from whitebox.cut import cut as features_at
from whitebox.gradients import check_eval
from whitebox.own_shadows import calibration_rows, proxy_records, shadows
from whitebox.pairs import Displacement, chunks, displaced, learn_displacement, pairs
from whitebox.proxy import train_heads


@dataclass(frozen=True, eq=False)
class Learned:
    """What the attacker's own shadows have taught, for any target of the same recipe and aux."""

    displacement: Displacement
    cut: str | None
    calibration: Int[Tensor, "k"]  # rows of aux that no fit and no proxy has seen
    proxies: int
    n_steps: int


def general_wb(
    model: nn.Module,
    x: Float[Tensor, "n *d"],
    y: Int[Tensor, "n"],
    aux: Data,
    recipe: Recipe,
    generator: Generator,
    *,
    cut: str | None = None,
    fits: int = 10,
    proxies: int = 1,
    n_steps: int = 50,
    epochs: int = 32,
    batch: int = 64,
    lr: float = 1e-3,
    n_train: int | None = None,
) -> Float64[Tensor, "n"]:
    """Logit of membership, in nats, as the displacement net of one cut has it.

    `cut` names the module at whose output the net is cut (None: the input of the last one with parameters),
    in the target and in `fits` shadow targets that `recipe` describes. Heads are averaged over `proxies`;
    `n_steps` of the integral, `epochs`, `batch`, `lr` of the displacement net. `n_train`: records that the
    target was trained on; Floored warns where a shadow learns fewer.
    Raises ValueError in training mode, for a cut with a way around it, and for too small an aux.
    """
    check_given(model, cut, x, y)
    learned = learn(
        aux,
        recipe,
        generator,
        cut=cut,
        fits=fits,
        proxies=proxies,
        n_steps=n_steps,
        epochs=epochs,
        batch=batch,
        lr=lr,
        n_train=n_train,
    )
    return apply(learned, model, x, y, aux, recipe, generator)


def learn(
    aux: Data,
    recipe: Recipe,
    generator: Generator,
    *,
    cut: str | None = None,
    fits: int = 10,
    proxies: int = 1,
    n_steps: int = 50,
    epochs: int = 32,
    batch: int = 64,
    lr: float = 1e-3,
    n_train: int | None = None,
) -> Learned:
    """The displacement net, learned on `fits` shadow targets from aux alone; serves any target.

    Raises and warns as `general_wb`.
    """
    calibration = calibration_rows(aux, generator)
    drawn = shadows(aux, calibration, recipe, generator, fits=fits, n_train=n_train)
    heads = [train_heads(s.model, cut, s.proxy, recipe, generator, proxies=proxies) for s in drawn]
    net = learn_displacement(
        drawn, heads, generator, cut=cut, n_steps=n_steps, epochs=epochs, batch=batch, lr=lr
    )
    return Learned(net, cut, calibration, proxies, n_steps)


def apply(
    learned: Learned,
    model: nn.Module,
    x: Float[Tensor, "n *d"],
    y: Int[Tensor, "n"],
    aux: Data,
    recipe: Recipe,
    generator: Generator,
) -> Float64[Tensor, "n"]:
    """The scores of `general_wb`: proxies of this target, then what was learned. Raises alike."""
    check_given(model, learned.cut, x, y)
    proxy = proxy_records(aux, learned.calibration, y, generator)
    heads = train_heads(model, learned.cut, proxy, recipe, generator, proxies=learned.proxies)
    return displaced(learned.displacement, model, heads, learned.cut, x, y, n_steps=learned.n_steps)


def explain(
    model: nn.Module,
    x: Float[Tensor, "n *d"],
    y: Int[Tensor, "n"],
    aux: Data,
    recipe: Recipe,
    generator: Generator,
    *,
    cut: str | None = None,
    proxies: int = 1,
    n_steps: int = 50,
) -> Float64[Tensor, "n *d"]:
    """How membership, in nats, changes with each feature of x: w^ - w~, carried back through the trunk.

    For a cut at the input it is w^ - w~ itself. A feature of large influence, by which members differ from
    the others of their class, is one that the target took from its training set. Raises as `general_wb`.
    """
    check_given(model, cut, x, y)
    proxy = proxy_records(aux, calibration_rows(aux, generator), y, generator)
    heads = train_heads(model, cut, proxy, recipe, generator, proxies=proxies)
    parts = []
    for rows in chunks(model, cut, x):
        both = pairs(model, heads, cut, x[rows], y[rows], n_steps)
        with torch.enable_grad():
            given = x[rows].detach().clone().requires_grad_()
            z = features_at(model, cut, given)
            change = (both.hat - both.tilde).reshape(z.shape).to(z)
            parts.append(torch.autograd.grad(z, given, change)[0].double())
    return torch.cat(parts)


def check_given(model: nn.Module, cut: str | None, x: Tensor, y: Tensor) -> None:
    """Raises ValueError in training mode, without a record, and for a cut with a way around it."""
    check_eval(model)
    if not len(x) or len(x) != len(y):
        raise ValueError(f"x and y must hold as many records, 1 or more, got {len(x)} and {len(y)}")
    check_slice(model, cut, x)
