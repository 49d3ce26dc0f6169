"""What is learned from the shadows before the target is looked at: attack models, thresholds, levels.

Each is made once for a set of shadows. What needs only one shadow takes the first; it answers through the
same mask as the target, and its queries cost nothing, since it is the attacker's own.
"""

import warnings
from typing import Literal

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from blackbox import augmentation, merlin, ml_leaks, noise_robustness, rmia, shadow, similarity
from blackbox.mlps import Training
from glasslab.checks import Floored
from glasslab.data import Data
from glasslab.game import Game, Shadows
from glasslab.oracle import Oracle
from glasslab.split import stream
from workbench.evidence import Mask, Told, kept, one_thread, told

RECORDS = 2000  # of one shadow's that it is asked about, where each costs many queries
SCALE = 0.3  # RMIA's a for the paper's images of ten classes
MODELS = 16  # whose features tell which records have neighbours


def attack_model(
    game: Game, seed: int, per_class: bool, pairs: int, training: Training
) -> shadow.AttackModel:
    """Shokri's attack model, trained on the shadows' answers."""
    return _attack_model(told(game), seed, per_class, pairs, training)


def leaks_model(game: Game, seed: int, training: Training) -> ml_leaks.Learned:
    """Salem's attack model, trained on the answers of one shadow."""
    return _leaks_model(told(game), seed, training)


def offline_scale(game: Game, T: float) -> float:
    """RMIA's a, best where the first shadow plays the target; 0.3, and a warning, for fewer than four."""
    return _offline_scale(told(game), game.shadows, game.aux, T)


def selected(game: Game) -> Bool[Tensor, "n"]:
    """Candidates that have few neighbours in what a target trains on, as the shadows' features say."""
    return _selected(game.shadows, game.x, game.aux)


def neighbours(
    game: Game, seed: int, T: int
) -> tuple[Float64[Tensor, "r"], Float64[Tensor, "r"], Bool[Tensor, "r"]]:
    """Of one shadow: loss and Merlin's ratio of some records, and which of them it trained on."""
    return _neighbours(game.shadows, tuple(game.oracle.mask), seed, T)


def agreement(
    game: Game, kind: Literal["translations", "rotations"]
) -> tuple[Bool[Tensor, "r q"], Data, Bool[Tensor, "r"]]:
    """Of one shadow: whether augmented records keep their label; these records; which it trained on."""
    return _agreement(game.shadows, kind)


def noise_level(game: Game, seed: int, N: int) -> float:
    """The strength of noise that tells best which records one shadow trained on."""
    return _noise_level(game.shadows, seed, N)


@kept
def _attack_model(
    seen: Told, seed: int, per_class: bool, pairs: int, training: Training
) -> shadow.AttackModel:
    generator = torch.Generator().manual_seed(seed)
    p = seen.z.double().softmax(-1)
    with one_thread():
        return shadow.attack_model(
            p,
            seen.y,
            seen.member,
            generator=generator,
            per_class=per_class,
            pairs=pairs,
            training=training,
        )


@kept
def _leaks_model(seen: Told, seed: int, training: Training) -> ml_leaks.Learned:
    generator = torch.Generator().manual_seed(seed)
    with one_thread():
        p = seen.z[:1].double().softmax(-1)
        return ml_leaks.learn(p, seen.member[:1], generator=generator, training=training)


@kept
def _offline_scale(seen: Told, held: Shadows, aux: Data, T: float) -> float:
    if len(seen.z) < 4:  # none is left once one plays the target and its complement leaves with it
        warnings.warn(f"a = {SCALE} is not tuned: {len(seen.z)} shadows, 4 needed", Floored, stacklevel=2)
        return SCALE
    own = torch.stack([rmia.log_confidence(z, seen.y, T=T) for z in seen.z])
    about_aux = torch.stack([rmia.log_confidence(z, aux.y, T=T) for z in held.z_aux])
    return rmia.tune(own, about_aux, seen.member)


@kept
def _selected(held: Shadows, x: Float[Tensor, "n *d"], aux: Data) -> Bool[Tensor, "n"]:
    models = [held.models[i] for i in range(min(MODELS, len(held.models)))]
    own, other = (torch.cat([similarity.hidden(m, t) for m in models], 1) for t in (x, aux.x))
    few = similarity.select(own, other, n_target=round(float(held.member.sum(1).double().mean())))
    warnings.warn(f"{int(few.sum())} of {len(few)} records are selected", Floored, stacklevel=2)
    return few


@kept
def _neighbours(
    held: Shadows, mask: Mask, seed: int, T: int
) -> tuple[Float64[Tensor, "r"], Float64[Tensor, "r"], Bool[Tensor, "r"]]:
    records, member = _of_one(held)
    oracle = Oracle(held.models[0], mask=mask)
    return *merlin.neighbours(oracle, records.x, records.y, generator=stream(seed), T=T), member


@kept
def _agreement(
    held: Shadows, kind: Literal["translations", "rotations"]
) -> tuple[Bool[Tensor, "r q"], Data, Bool[Tensor, "r"]]:
    oracle = Oracle(held.models[0], reveals="labels")
    return (
        augmentation.agreement(oracle, held.records.x, held.records.y, kind=kind),
        held.records,
        held.member[0],
    )


@kept
def _noise_level(held: Shadows, seed: int, N: int) -> float:
    records, member = _of_one(held)
    oracle = Oracle(held.models[0], reveals="labels")
    return noise_robustness.best_level(oracle, records.x, records.y, member, generator=stream(seed), N=N)


def _of_one(held: Shadows) -> tuple[Data, Bool[Tensor, "r"]]:
    rows = torch.arange(min(RECORDS, len(held.records)))
    return held.records[rows], held.member[0, rows]
