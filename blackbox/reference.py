"""Attacks P, S, R and D (Ye et al. 2022, arXiv:2111.09679): is the loss low for a non-member?

All four say member where the loss l lies below a quantile of non-member losses, that is where their
distribution function F(l) is small. The attacker has the target's probability of the true class, and what F
is made of. P: the target's losses on aux. S: the shadows' losses on records of that class out of their
training. R: the losses on this record of the shadows that it was out of. D: those of models distilled from
the target. Score: -F(l); P returns -l, and takes F for its threshold alone.
F from q losses: 0 at 0, j / (q + 1) at the j-th smallest, 1 at 1000, linear between; equal ones: the middle.
"""

import math
import warnings
from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor, nn

from glasslab import nets
from glasslab.checks import Floored
from glasslab.data import Data
from glasslab.likelihood import Location, Variance, fit, tail
from glasslab.metrics import allowed
from glasslab.moments import a_model_each, chunks
from glasslab.oracle import Oracle, complete
from glasslab.recipe import Recipe
from glasslab.signals import bounded
from glasslab.split import stream, subseed
from glasslab.train import resolve, train

CEILING = 1000.0  # nats


def ye_p(loss: Float[Tensor, "*t n"], loss_aux: Float[Tensor, "*t a"]) -> Float64[Tensor, "*t n"]:
    """Minus the loss in nats; the `threshold_p` of `loss_aux` turns it into a decision.

    Raises ValueError on NaN, infinite or negative losses, as do all that take losses here.
    """
    _checked("loss_aux", loss_aux)
    # DIFFERS: not 1 - F, which ties all records below the smallest loss on aux.
    return -_checked("loss", loss)


def threshold_p(loss_aux: Float[Tensor, "*t a"], alpha: float) -> Float64[Tensor, "*t"]:
    """Minus the alpha-quantile of the target's losses on aux, in nats: above it, `ye_p` says member.

    That quantile is the k-th smallest of a losses, with the largest k for which k / (a + 1) <= alpha. This is
    the false-positive rate, on average over draws of aux and whatever the law of the losses (with equal ones
    it is lower), if aux is as non-members are.
    Raises ValueError where aux has fewer than 1 / alpha records, and for alpha outside (0, 1).
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must lie in (0, 1), got {alpha}")
    a = loss_aux.shape[-1]
    if not allowed(a, alpha):
        least = math.ceil(1 / alpha - 1e-9)
        raise ValueError(f"loss_aux must hold {least}+ records for a threshold at {alpha:g}, got {a}")
    # DIFFERS: the usual sample quantiles flag too many, with a = 1 / alpha records half as many again.
    return -_checked("loss_aux", loss_aux).kthvalue(allowed(a + 1, alpha)).values


def ye_s(
    loss: Float[Tensor, "*t n"],
    y: Int[Tensor, "n"],
    shadow_loss: Float[Tensor, "m r"],
    shadow_y: Int[Tensor, "r"],
    shadow_member: Bool[Tensor, "m r"],
    *,
    per_class: bool = True,
) -> Float64[Tensor, "*t n"]:
    """-F(l), F of the shadows' losses out of their training, on records of the candidate's class.

    `per_class=False` takes those of all classes; so does a class that has none, counted in a Floored warning.
    Raises ValueError where every shadow was trained on every record.
    """
    l, S, out = _checked("loss", loss), _checked("shadow_loss", shadow_loss), ~shadow_member
    if not out.any():
        raise ValueError(f"shadow_member must leave 1+ models out of some record, got 0 of {len(S)}")
    l, S = _capped("loss", l), _capped("shadow_loss", S)
    score, without = torch.empty_like(l), 0
    classes = y.unique().tolist()
    for c in classes if per_class else [None]:
        rows, own = (torch.ones_like(y).bool(), slice(None)) if c is None else (y == c, shadow_y == c)
        held = S[:, own][out[:, own]]
        without += int(not len(held))
        held = (held if len(held) else S[out]).sort().values
        score[..., rows] = -_cdf(l[..., rows].reshape(1, -1), held[None]).reshape(*l.shape[:-1], -1)
    if without:
        text = f"{without} of {len(classes)} classes without losses out of training go by those of all"
        warnings.warn(text, Floored, stacklevel=2)
    return score


def ye_r(
    loss: Float[Tensor, "*t n"],
    shadow_loss: Float[Tensor, "m n"],
    shadow_member: Bool[Tensor, "m n"],
    *,
    smooth: Literal["linear", "gaussian"] = "linear",
    variance: Variance = "auto",
    location: Location = "median",
) -> Float64[Tensor, "*t n"]:
    """-F(l), F of the losses on the record itself of the shadows that it was out of.

    How F is smoothed decides everything below a false-positive rate of 1 / (number of these). `gaussian`:
    -log(1 - Phi) of the log-odds in nats, one-sided offline LiRA, with `variance` and `location` as in
    `glasslab.likelihood.fit`. Log-odds beyond +-700, those of a loss of 0 too, count as +-700 and are told in
    a Floored warning.
    Raises ValueError, naming record, needed and found count, where too few shadows are out of a record.
    """
    l, S, out = _checked("loss", loss), _checked("shadow_loss", shadow_loss), ~shadow_member
    S = S.masked_fill(shadow_member, 1.0)  # what models in say is neither used nor counted below
    if smooth == "gaussian":
        held = fit(_log_odds(S), shadow_member, variance=variance, location=location, sides="out")
        return tail(_log_odds(l), held)
    a_model_each(out, "out")
    l, S = _capped("loss", l), _capped("shadow_loss", S)
    flat, parts = l.reshape(-1, l.shape[-1]), []
    for rows in chunks(l.shape[-1], len(S) + len(flat)):
        own = S[:, rows].masked_fill(~out[:, rows], torch.inf).T.sort().values
        parts.append(_cdf(flat[:, rows].T, own).T)
    # DIFFERS: not 1 - F, which is 1 from F = 1e-16 down and ties the surest members.
    return -torch.cat(parts, -1).reshape(l.shape)


def ye_d(loss: Float[Tensor, "n"], distilled_loss: Float[Tensor, "q n"]) -> Float64[Tensor, "n"]:
    """-F(l), F of the losses on the record itself of q models that were distilled from the target."""
    return ye_r(loss, distilled_loss, torch.zeros_like(distilled_loss, dtype=torch.bool))


def distil(oracle: Oracle, aux: Data, recipe: Recipe, *, q: int, seed: int) -> list[nn.Module]:
    """q models in eval mode, each trained on its own random half of aux towards the target's probabilities.

    Asks one query a record of aux. The recipe may be an open one; the models lie on the device of aux.
    Raises ValueError for an oracle that reveals labels, no model, and aux of a single record.
    """
    if oracle.reveals != "probabilities":
        raise ValueError(f"oracle must reveal probabilities to distil from, got {oracle.reveals}")
    if q < 1 or len(aux) < 2:
        raise ValueError(f"q and aux must be 1+ models and 2+ records, got {q} and {len(aux)}")
    # DIFFERS: all epochs are run, as no labelled record is spared; what the target smoothed stays as it is.
    recipe = replace(resolve(recipe, aux, aux.x.device), patience=0, label_smoothing=0.0)
    scale = nets.statistics(aux.x) if recipe.scale == "standard" else None

    def net() -> nn.Module:
        return nets.build(recipe, aux.shape, aux.classes, scale)

    p = complete(oracle(aux.x), oracle.floor)
    soft = (p / p.sum(-1, keepdim=True)).float()  # of a masked answer the sum is not 1
    draws = [torch.randperm(len(aux), generator=stream(seed, "distil", "half", j)) for j in range(q)]
    half = torch.stack(draws) < len(aux) // 2
    seeds = [subseed(seed, "distil", "weights", j) for j in range(q)]
    state = train(net, recipe, aux.x, soft, half, seeds, device=aux.x.device)
    with torch.random.fork_rng(devices=[]):
        models = [net().to(aux.x.device).eval() for _ in range(q)]
    for j, model in enumerate(models):
        model.load_state_dict({name: held[j] for name, held in state.items()})
    return models


def _cdf(l: Float64[Tensor, "b t"], held: Float64[Tensor, "b q"]) -> Float64[Tensor, "b t"]:
    """F of each row's sorted losses, infinity standing for none. Small F keep all their digits."""
    q = held.isfinite().sum(-1, keepdim=True)
    ends = held.new_tensor([0.0, CEILING]).expand(len(held), 2)
    knots = torch.cat([ends[:, :1], held.clamp(max=CEILING), ends[:, 1:]], -1)
    l = l.contiguous()
    first = torch.searchsorted(knots, l)  # knot of l or above
    last = (torch.searchsorted(knots, l, right=True) - 1).minimum(q + 1)  # of l or below
    low, high = knots.gather(-1, last), knots.gather(-1, first)
    share = torch.where(high > low, (l - low) / (high - low), 0.0)
    return torch.where(first <= last, (first + last) / 2, last + share) / (q + 1)


def _log_odds(l: Float64[Tensor, "*t n"]) -> Float64[Tensor, "*t n"]:
    """log(p / (1 - p)) from l = -log p, without forming p; a loss that underflowed to 0 is at the bound."""
    return bounded(-(l + (-torch.expm1(-l)).log()))


def _capped(name: str, l: Float64[Tensor, "*t n"]) -> Float64[Tensor, "*t n"]:
    high = int((l > CEILING).sum())
    if high:
        text = f"{high} of {l.numel()} values of {name} above {CEILING:g} nats count as that"
        warnings.warn(text, Floored, stacklevel=3)
    return l.clamp(max=CEILING)


def _checked(name: str, loss: Float[Tensor, "*t n"]) -> Float64[Tensor, "*t n"]:
    bad = ~loss.isfinite() | (loss < 0)
    if bad.any():
        raise ValueError(f"{name} must be finite and 0 or more, got {int(bad.sum())} other values")
    return loss.double()
