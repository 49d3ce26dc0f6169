"""What an attacker reads off a game: the target's answers, and what the shadows say.

Whatever depends on the shadows alone is made once, and kept for the next target and the next attack.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache, wraps
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor
from torch.nn.functional import softplus

from blackbox import baseline, rmia
from glasslab import likelihood, masks, signals
from glasslab.augment import queries
from glasslab.game import Game, Shadows
from glasslab.likelihood import Fit, Sides, Variance
from glasslab.oracle import answer, forward, log_answer

T = TypeVar("T")
Mask = tuple[masks.Mask, ...]
Signal = Callable[[Tensor, Tensor], Tensor]  # z [n c], y [n] -> score [n]

AT_ONCE = 8192  # inputs asked at a time, all queries of a record counted
KEPT = 8  # results of each kind


@dataclass(frozen=True, eq=False)
class Told:
    """What the shadows answer about records of which one knows who trained on them."""

    z: Float[Tensor, "m r c"]  # logits or log-probabilities
    y: Int[Tensor, "r"]
    member: Bool[Tensor, "m r"]


def log_p(game: Game, k: int = 1) -> Float64[Tensor, "{k} n c"]:
    """The target's answers to each record's k queries, read as log-probabilities.

    Raises ValueError where the oracle gives labels only.
    """
    if game.oracle.reveals != "probabilities":
        raise ValueError(f"oracle must reveal probabilities to this attack, got {game.oracle.reveals}")
    parts = game.x.split(max(1, AT_ONCE // k))
    asked = [game.oracle(queries(x, k).flatten(0, 1)).cpu().unflatten(0, (k, len(x))) for x in parts]
    return log_answer(torch.cat(asked, 1), game.oracle.floor)


def labels(game: Game) -> Int[Tensor, "n"]:
    """The target's answers as labels, also where it reveals more."""
    answers = game.oracle(game.x).cpu()
    return answers if game.oracle.reveals == "labels" else answers.argmax(-1)


def phi(game: Game, k: int = 1) -> Float64[Tensor, "{k} n"]:
    """The target's log-odds in nats."""
    return signals.bounded(signals.phi(log_p(game, k), game.y))


def log_p_aux(game: Game) -> Float64[Tensor, "a c"]:
    """The target's answers about aux, asked once each."""
    return log_p(replace(game, x=game.aux.x, y=game.aux.y))[0]


def target_loss(game: Game, k: int = 1) -> Float64[Tensor, "{k} n"]:
    """The target's cross-entropy in nats."""
    return softplus(-phi(game, k))


def shadow_phi(game: Game) -> Float64[Tensor, "m k n"]:
    """The shadows' log-odds about the candidates."""
    return _shadow_phi(game.shadows, game.y)


def shadow_loss(game: Game) -> Float64[Tensor, "m k n"]:
    """The shadows' cross-entropy about the candidates, in nats."""
    return _shadow_loss(game.shadows, game.y)


def shadow_confidence(game: Game, T: float) -> Float64[Tensor, "m k n"]:
    """log p_y of the candidates at temperature T, as the shadows say."""
    return _shadow_confidence(game.shadows, game.y, T)


def shadow_confidence_aux(game: Game, T: float) -> Float64[Tensor, "m a"]:
    """The same of aux."""
    return _shadow_confidence_aux(game.shadows, game.aux.y, T)


def fitted(game: Game, variance: Variance, sides: Sides) -> Fit:
    """Gaussians of phi over the shadows in and out of each candidate."""
    return _fitted(game.shadows, game.y, variance, sides)


def told(game: Game) -> Told:
    """Answers about the candidates, where these are the shadows' own records; else about the latter."""
    held = game.shadows
    own = held.records.x is game.x or torch.equal(held.records.x, game.x)
    return _told(held, game.y if own else None, tuple(game.oracle.mask))


def scores(game: Game, score: Signal) -> Float64[Tensor, "m r"]:
    """A score of what was told, one a shadow and record."""
    return _scores(told(game), score)


def tau(game: Game, score: Signal) -> Float64[Tensor, "n"]:
    """For each candidate the threshold of its class: that of best balanced accuracy on the shadows."""
    return _tau(told(game), game.y, score)


@contextmanager
def one_thread() -> Iterator[None]:
    """For many small steps: a second thread brings nothing, and waits at each step on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def kept(f: Callable[..., T]) -> Callable[..., T]:
    """f, once for the same arguments; whoever asks again hears its warnings again."""

    @lru_cache(maxsize=KEPT)
    def first(*arguments: Any) -> tuple[T, list[warnings.WarningMessage]]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            return f(*arguments), caught

    @wraps(f)
    def again(*arguments: Any) -> T:
        value, caught = first(*arguments)
        for warning in caught:
            warnings.warn(warning.message, stacklevel=2)
        return value

    return again


@kept
def _shadow_phi(held: Shadows, y: Int[Tensor, "n"]) -> Float64[Tensor, "m k n"]:
    # one model after another: z may lie on disk
    return signals.bounded(torch.stack([signals.phi(z.movedim(1, 0), y) for z in held.z]))


@kept
def _shadow_loss(held: Shadows, y: Int[Tensor, "n"]) -> Float64[Tensor, "m k n"]:
    return softplus(-_shadow_phi(held, y))


@kept
def _shadow_confidence(held: Shadows, y: Int[Tensor, "n"], T: float) -> Float64[Tensor, "m k n"]:
    return torch.stack([rmia.log_confidence(z.movedim(1, 0), y, T=T) for z in held.z])


@kept
def _shadow_confidence_aux(held: Shadows, y: Int[Tensor, "a"], T: float) -> Float64[Tensor, "m a"]:
    return torch.stack([rmia.log_confidence(z, y, T=T) for z in held.z_aux])


@kept
def _fitted(held: Shadows, y: Int[Tensor, "n"], variance: Variance, sides: Sides) -> Fit:
    return likelihood.fit(_shadow_phi(held, y), held.inside, variance=variance, sides=sides)


@kept
def _told(held: Shadows, y: Int[Tensor, "n"] | None, mask: Mask) -> Told:
    """With the candidates' labels, or None for shadows of other records, which are then asked."""
    if y is not None:
        return Told(held.z[:, :, 0], y, held.inside)
    x, floor = held.records.x, masks.floor(mask)
    z = (forward(model, x) for model in held.models)
    read = [log_answer(answer(each, mask), floor) if mask else each for each in z]
    return Told(torch.stack(read), held.records.y, held.member)


@kept
def _scores(seen: Told, score: Signal) -> Float64[Tensor, "m r"]:
    return torch.stack([score(z, seen.y) for z in seen.z])


@kept
def _tau(seen: Told, y: Int[Tensor, "n"], score: Signal) -> Float64[Tensor, "n"]:
    return -baseline.per_class(torch.zeros(len(y)), y, _scores(seen, score), seen.y, seen.member)


def log_odds(z: Float[Tensor, "n c"], y: Int[Tensor, "n"]) -> Float64[Tensor, "n"]:
    """phi of answers, within what probabilities can hold."""
    return signals.bounded(signals.phi(z, y))


def loss(z: Float[Tensor, "n c"], y: Int[Tensor, "n"]) -> Float64[Tensor, "n"]:
    """The loss attack's score of answers."""
    return baseline.loss(log_odds(z, y))
