"""The meta attack model of "Stolen Memories" (Leino & Fredrikson 2020, arXiv:1906.11798): all cuts together.

The attacker has: the target's weights, its recipe, and aux, records of the same distribution.
Features of a record: for each cut m, what target and proxy head differ in (`layerwise.py`), and log|h|, the
length of its features there; phi and sigma(-phi); log|J_l|, the length of grad phi in the parameters of each
layer, and log|grad_x phi|. They are standardised by the non-members of shadow targets, and a classifier
Dense 16 ReLU -> Dense 1, the same for all records, tells the members. Score: its logit. Higher = member.
`calibration.py` turns scores into claims.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Generator, Tensor, nn

from glasslab.data import Data
from glasslab.recipe import Recipe
from whitebox.layerwise import check_given
from whitebox.meta_classifier import Classifier, fit_classifier
from whitebox.meta_features import described, features
from whitebox.own_shadows import calibration_rows, proxy_records, shadows
from whitebox.pairs import Displacement, learn_displacement
from whitebox.proxy import train_heads


@dataclass(frozen=True, eq=False)
class Learned:
    """What the attacker's own shadows have taught, for any target of the same recipe and aux."""

    classifier: Classifier
    displacements: tuple[Displacement, ...] | None  # one a cut; None: they are subtracted
    names: tuple[str, ...]
    cuts: tuple[str | None, ...]
    calibration: Int[Tensor, "k"]  # rows of aux that no fit and no proxy has seen
    gradients: bool
    proxies: int
    n_steps: int


class Rehearsed(NamedTuple):
    """Scores of records by shadow targets, and whether the shadow has learned the record."""

    score: Float64[Tensor, "r"]
    member: Bool[Tensor, "r"]


def meta(
    model: nn.Module,
    x: Float[Tensor, "n *d"],
    y: Int[Tensor, "n"],
    aux: Data,
    recipe: Recipe,
    generator: Generator,
    *,
    cuts: Sequence[str | None] = (None,),
    displacement: Literal["subtract", "learned"] = "subtract",
    fits: int = 10,
    gradients: bool = True,
    proxies: int = 1,
    n_steps: int = 50,
    epochs: int = 32,
    batch: int = 64,
    lr: float = 1e-3,
    n_train: int | None = None,
) -> Float64[Tensor, "n"]:
    """Logit of membership, in nats, uncalibrated: 0 is no threshold that keeps to a rate.

    `cuts` name the modules at whose output the net is cut (None: the input of the last one with parameters),
    in the target and in `fits` shadow targets that `recipe` describes. `displacement`: whether target and
    proxy are subtracted, or a net learns how they tell. `gradients` adds the lengths of gradients. Heads are
    averaged over `proxies`. `n_steps` are those of the integral in "learned"; `epochs`, `batch` and `lr` are
    those of what is fitted.
    `n_train`: records that the target was trained on; Floored warns where a shadow learns fewer.
    Raises ValueError in training mode, for a cut with a way around it, for too small an aux, and for a target
    with more or fewer layers than a shadow.
    """
    for place in cuts:
        check_given(model, place, x, y)
    learned = learn(
        aux,
        recipe,
        generator,
        cuts=cuts,
        displacement=displacement,
        fits=fits,
        gradients=gradients,
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
    cuts: Sequence[str | None] = (None,),
    displacement: Literal["subtract", "learned"] = "subtract",
    fits: int = 10,
    gradients: bool = True,
    proxies: int = 1,
    n_steps: int = 50,
    epochs: int = 32,
    batch: int = 64,
    lr: float = 1e-3,
    n_train: int | None = None,
) -> Learned:
    """The classifier, learned on `fits` shadow targets from aux alone; serves any target.

    Raises and warns as `meta`.
    """
    if not cuts or displacement not in ("subtract", "learned"):
        raise ValueError(f"cuts must name 1 or more, got {len(cuts)}, with displacement {displacement!r}")
    calibration = calibration_rows(aux, generator)
    drawn = shadows(aux, calibration, recipe, generator, fits=fits, n_train=n_train)
    heads = [
        [train_heads(s.model, place, s.proxy, recipe, generator, proxies=proxies) for place in cuts]
        for s in drawn
    ]
    nets = None
    if displacement == "learned":
        nets = tuple(
            learn_displacement(
                drawn,
                [of[k] for of in heads],
                generator,
                cut=place,
                n_steps=n_steps,
                epochs=epochs,
                batch=batch,
                lr=lr,
            )
            for k, place in enumerate(cuts)
        )
    seen = [
        described(
            s.model,
            of,
            s.records.x,
            s.records.y,
            cuts,
            displacements=nets,
            gradients=gradients,
            n_steps=n_steps,
        )
        for s, of in zip(drawn, heads, strict=True)
    ]
    values, member = torch.cat([one.values for one in seen]), torch.cat([s.member for s in drawn])
    classifier = fit_classifier(values, member, generator, epochs=epochs, batch=batch, lr=lr)
    return Learned(classifier, nets, seen[0].names, tuple(cuts), calibration, gradients, proxies, n_steps)


def apply(
    learned: Learned,
    model: nn.Module,
    x: Float[Tensor, "n *d"],
    y: Int[Tensor, "n"],
    aux: Data,
    recipe: Recipe,
    generator: Generator,
) -> Float64[Tensor, "n"]:
    """The scores of `meta`: proxies of this target, its features, then what was learned. Raises alike."""
    for place in learned.cuts:
        check_given(model, place, x, y)
    proxy = proxy_records(aux, learned.calibration, y, generator)
    return _score(learned, model, x, y, proxy, recipe, generator)


def rehearse(
    learned: Learned, aux: Data, recipe: Recipe, generator: Generator, *, fits: int = 2
) -> Rehearsed:
    """Scores on `fits` fresh shadow targets, which no fit has seen, for `calibration.precision_target`."""
    drawn = shadows(aux, learned.calibration, recipe, generator, fits=fits)
    score = [_score(learned, s.model, s.records.x, s.records.y, s.proxy, recipe, generator) for s in drawn]
    return Rehearsed(torch.cat(score), torch.cat([s.member for s in drawn]))


def meta_shadows(
    features: Float[Tensor, "n f"],
    shadow_features: Float[Tensor, "m n f"],
    member: Bool[Tensor, "m n"],
    generator: Generator,
    *,
    epochs: int = 32,
    batch: int = 64,
    lr: float = 1e-3,
) -> Float64[Tensor, "n"]:
    """Logit of membership, in nats, where the classifier is fitted to shadow models of the candidates.

    Columns are those of `features`, of the target and of m shadows; `member` says which shadow learned which
    record. Raises ValueError on NaN or infinite features, and where a side has no record.
    """
    if not features.isfinite().all():
        bad = int((~features.isfinite()).sum())
        raise ValueError(f"features must be finite, got {bad} NaN or infinite values")
    classifier = fit_classifier(
        shadow_features.flatten(0, 1), member.flatten(), generator, epochs=epochs, batch=batch, lr=lr
    )
    return classifier(features)


def _score(
    learned: Learned,
    model: nn.Module,
    x: Float[Tensor, "n *d"],
    y: Int[Tensor, "n"],
    proxy: Data,
    recipe: Recipe,
    generator: Generator,
) -> Float64[Tensor, "n"]:
    found = features(
        model,
        x,
        y,
        proxy,
        recipe,
        generator,
        learned.cuts,
        displacements=learned.displacements,
        gradients=learned.gradients,
        proxies=learned.proxies,
        n_steps=learned.n_steps,
    )
    if len(found.names) != len(learned.names):
        need, got = len(learned.names), len(found.names)
        raise ValueError(f"model must have the layers of recipe's net, {need} features, got {got}")
    return learned.classifier(found.values)
