"""Quantile regression (Bertran et al. 2023, arXiv:2307.03694): how would a non-member like this one score?

The attacker has: a signal s read off the target's answers (the paper's: hinge), and aux, records in no
training set. No shadow model: one regressor learns on aux, from x alone, how s is distributed.
gaussian: s ~ N(mu(x), sigma(x)^2); score (s - mu) / sigma. pinball: q_alpha(x), which s exceeds with
probability alpha, for 41 alpha from 1 to 1e-4; score -log(alpha) where s crosses them. A threshold on either
has a nominal false-positive rate; it holds on average over records like those of aux, not for each of them.
"""

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Float64
from scipy.stats import norm
from sklearn.ensemble import HistGradientBoostingRegressor
from threadpoolctl import threadpool_limits
from torch import Generator, Tensor, nn

from glasslab import nets
from glasslab.checks import Floored
from glasslab.data import Data
from glasslab.oracle import forward
from glasslab.recipe import Recipe
from glasslab.train import train

Form = Literal["gaussian", "pinball"]
Net = Callable[[int], nn.Module]  # outputs -> a fresh net

ALPHA = torch.logspace(0, -4, 41, dtype=torch.float64)  # falling, so that the quantiles rise
BOUND = 7.0  # of log sigma, either way, in spreads of s
FOLDS, LEAST = 5, 20


def quantile(
    s: Float[Tensor, "n"],
    x: Float[Tensor, "n *d"],
    s_aux: Float[Tensor, "a"],
    x_aux: Float[Tensor, "a *d"],
    *,
    generator: Generator,
    regressor: Literal["net", "boosting"] = "net",
    form: Form = "gaussian",
    net: Net | None = None,
    epochs: int = 30,
    batch: int = 32,
    lr: float = 1e-3,
    patience: int = 5,
    iterations: int = 100,
    alpha: float = 0.01,
) -> Float64[Tensor, "n"]:
    """How far s lies above what is usual for x: in spreads, or as -log(alpha) with `pinball`.

    `net(outputs)` makes a fresh net for standardised records (by default one hidden layer of 128). Adam
    trains it on 80 % of aux for `epochs`, each over half as many records as aux has; it keeps its weights of
    lowest loss on the other 20 %, and stops after `patience` epochs without a lower one. `boosting`, for
    tables, grows up to `iterations` trees for mu and for log sigma; it has no `pinball`.
    `alpha` is the lowest false-positive rate that is asked of the scores. Warns Floored where aux has fewer
    than 10 / alpha records, where candidates are among them, and where s is the same on all of aux, so that
    there is nothing to learn: sigma is then at its bound.
    Raises ValueError on NaN or infinite inputs, fewer than 20 records of aux, records of two shapes, a net of
    other outputs.
    """
    _check(s, x, s_aux, x_aux)
    _doubt(s, x, s_aux, x_aux, alpha)
    if regressor == "boosting" and form != "gaussian":
        raise ValueError(f"form must be 'gaussian' with regressor 'boosting', got {form!r}")
    centre, spread = s_aux.double().mean(), s_aux.double().std(correction=0)
    if (s_aux == s_aux[0]).all():
        warnings.warn(f"{len(s_aux)} of {len(s_aux)} signals on aux are equal", Floored, stacklevel=2)
        return (s.double() - s_aux[0].double()) * math.exp(BOUND)
    u, u_aux = (s.double() - centre) / spread, (s_aux.double() - centre) / spread
    if regressor == "boosting":
        heads = _boosted(x, x_aux, u_aux, iterations, generator)
    else:
        recipe = Recipe(epochs=epochs, batch=batch, optimiser="adam", lr=lr, patience=patience)
        heads = _learned(x, x_aux, u_aux, net, form, recipe, generator)
    return _standing(u, heads) if form == "gaussian" else _level(u, heads)


def threshold(alpha: float, form: Form = "gaussian") -> float:
    """The score that a non-member exceeds with probability alpha, as the regressor has it."""
    return float(norm.isf(alpha)) if form == "gaussian" else -math.log(alpha)


def realised(score: Float64[Tensor, "r"], alpha: float, form: Form = "gaussian") -> float:
    """The false-positive rate that a nominal alpha has on non-members, which must not be of aux."""
    return float((score > threshold(alpha, form)).double().mean())


def _standing(u: Float64[Tensor, "n"], heads: Float64[Tensor, "n 2"]) -> Float64[Tensor, "n"]:
    return (u - heads[:, 0]) * (-heads[:, 1].clamp(-BOUND, BOUND)).exp()


def _level(u: Float64[Tensor, "n"], heads: Float64[Tensor, "n 41"]) -> Float64[Tensor, "n"]:
    """-log(alpha) where u crosses the sorted heads, linear between two of them."""
    q, level = heads.sort(-1).values, -ALPHA.log().to(u.device)
    upper = torch.searchsorted(q, u[:, None].contiguous()).clamp(1, len(ALPHA) - 1)
    low, high = (q.gather(1, i)[:, 0] for i in (upper - 1, upper))
    share = torch.where(high > low, (u - low) / (high - low), (u > high).double()).clamp(0, 1)
    below, above = (level[i][:, 0] for i in (upper - 1, upper))
    # DIFFERS: beyond the last head the distance counts, in widths of the upper half; a clamp would tie the
    # surest members. Likewise below the first.
    width = (q[:, -1] - q[:, len(ALPHA) // 2]).clamp(min=math.exp(-BOUND))
    beyond = ((u - q[:, -1]).clamp(min=0) - (q[:, 0] - u).clamp(min=0)) / width
    return below + share * (above - below) + beyond


def _gaussian_loss(z: Float[Tensor, "b 2"], u: Float[Tensor, "b"]) -> Float[Tensor, ""]:
    """Minus the log-likelihood of N(mu, sigma^2) in nats, but for a constant."""
    log_sigma = z[:, 1].clamp(-BOUND, BOUND)
    return (log_sigma + ((u - z[:, 0]) * (-log_sigma).exp()).square() / 2).mean()


def _pinball_loss(z: Float[Tensor, "b 41"], u: Float[Tensor, "b"]) -> Float[Tensor, ""]:
    """Mean over the heads of max(q d, (q - 1) d) with q = 1 - alpha and d = u - z."""
    d, q = u[:, None] - z, (1 - ALPHA).to(z)
    return torch.maximum(q * d, (q - 1) * d).mean()


def _learned(
    x: Float[Tensor, "n *d"],
    x_aux: Float[Tensor, "a *d"],
    u: Float64[Tensor, "a"],
    net: Net | None,
    form: Form,
    recipe: Recipe,
    generator: Generator,
) -> Float64[Tensor, "n h"]:
    """What the net says of x once it has learned aux."""
    outputs, error = (2, _gaussian_loss) if form == "gaussian" else (len(ALPHA), _pinball_loss)
    # DIFFERS: heads start from the quantiles of all of aux; from 0 the rare ones take many steps.
    start = u.new_zeros(2) if form == "gaussian" else u.quantile((1 - ALPHA).to(u.device))
    scale, shape, a = nets.statistics(x_aux), tuple(x_aux.shape[1:]), len(x_aux)

    def make() -> nn.Module:
        own = nets.build(Recipe(), shape, outputs) if net is None else net(outputs)
        return nn.Sequential(nets.Scale(*scale, shape), own)

    with torch.random.fork_rng(devices=[]):
        model = make().to(x_aux.device).eval()
    if (got := tuple(forward(model, x_aux[:1]).shape[1:])) != (outputs,):
        raise ValueError(f"net must give {outputs} numbers a record, got shape {got}")
    # A record's label is its place, by which the loss finds its signal: early stopping knows labels alone.
    place, held = torch.arange(a, device=x_aux.device), torch.randperm(a, generator=generator) < a // 5
    val = Data(x_aux.float(), place, a, "held out")[held.to(x_aux.device)]
    told, offset = u.float(), start.float()
    recipe = replace(recipe, scale="none", engine="serial", precision="float32")
    state = train(
        make,
        recipe,
        x_aux.float(),
        place,
        ~held[None],
        [_seed(generator)],
        val=val if recipe.patience else None,
        loss=lambda z, i: error(z + offset, told[i]),
        device=x_aux.device,
    )
    model.load_state_dict({name: t[0] for name, t in state.items()})
    return forward(model, x).double() + start


def _boosted(
    x: Float[Tensor, "n *d"],
    x_aux: Float[Tensor, "a *d"],
    u: Float64[Tensor, "a"],
    iterations: int,
    generator: Generator,
) -> Float64[Tensor, "n 2"]:
    """mu: mean over 5 folds. sigma: of the residuals out of their fold, those within it being too small."""
    table, known, t = (v.detach().cpu().flatten(1).numpy() for v in (x, x_aux, u[:, None]))
    grow = partial(
        HistGradientBoostingRegressor,
        max_iter=iterations,
        max_leaf_nodes=8,  # with the penalty: overfitted trees leave tails that no sigma explains
        l2_regularization=10.0,
        early_stopping=True,
        validation_fraction=0.2,
        random_state=_seed(generator),
    )
    fold = (torch.randperm(len(t), generator=generator) % FOLDS).numpy()
    mu, residual = np.zeros(len(table)), np.empty(len(t))
    with threadpool_limits(1):  # on busy cores the threads of so small fits wait for each other
        for k in range(FOLDS):
            model = grow().fit(known[fold != k], t[fold != k, 0])
            residual[fold == k] = t[fold == k, 0] - model.predict(known[fold == k])
            mu += model.predict(table) / FOLDS
        square = np.maximum(residual**2, math.exp(-2 * BOUND))
        # The gamma deviance of squares is the Gaussian loss in log sigma, at that mu.
        log_sigma = np.log(grow(loss="gamma").fit(known, square).predict(table)) / 2
    return torch.from_numpy(np.stack([mu, log_sigma], 1)).to(x.device)


def _seed(generator: Generator) -> int:
    return int(torch.randint(2**31 - 1, (1,), generator=generator))


def _check(s: Tensor, x: Tensor, s_aux: Tensor, x_aux: Tensor) -> None:
    for name, t in (("s", s), ("x", x), ("s_aux", s_aux), ("x_aux", x_aux)):
        if not t.isfinite().all():
            raise ValueError(
                f"{name} must be finite, got {int((~t.isfinite()).sum())} NaN or infinite values"
            )
    if x.shape[1:] != x_aux.shape[1:]:
        raise ValueError(f"x_aux must hold records of shape {[*x.shape[1:]]}, got {[*x_aux.shape[1:]]}")
    if len(s_aux) < LEAST:
        raise ValueError(f"s_aux must hold {LEAST}+ records, got {len(s_aux)}")


def _doubt(s: Tensor, x: Tensor, s_aux: Tensor, x_aux: Tensor, alpha: float) -> None:
    need = math.ceil(10 / alpha - 1e-9)
    if len(x_aux) < need:
        text = f"{len(x_aux)} of {need} records of aux that a rate of {alpha:g} asks for"
        warnings.warn(text, Floored, stacklevel=3)
    known = set(_bytes(s_aux, x_aux))
    shared = sum(record in known for record in _bytes(s, x))
    if shared:
        text = f"{shared} of {len(x)} candidates are records of aux, on which the regressor was fitted"
        warnings.warn(text, Floored, stacklevel=3)


def _bytes(s: Tensor, x: Tensor) -> Iterator[bytes]:
    """Each record with its answer: in a table of few values others may have the same features."""
    rows, told = x.cpu().flatten(1).numpy(), s.double().cpu().numpy()
    return (row.tobytes() + one.tobytes() for row, one in zip(rows, told, strict=True))
