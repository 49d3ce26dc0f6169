"""Who is attacked, with what truth: the zoo's targets, or each shadow in its turn."""

from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from jaxtyping import Bool, Float
from torch import Tensor

from glasslab import metrics
from glasslab.game import Game, game, mock_game
from glasslab.masks import Mask
from glasslab.zoo import Zoo
from workbench.attack import Attack, Needs, unmet
from workbench.mock import folds, mock_games
from workbench.recorded import watched

Evaluate = Literal["targets", "leave-one-out"]


@dataclass(frozen=True, eq=False)
class Arena:
    """t games with their truth, and mock games, which have a truth by construction."""

    game: Callable[[int], Game]
    truth: Bool[Tensor, "t n"]
    known: list[dict[str, Any]]  # of each target, without any attack: the two gaps
    mocks: Callable[[], Iterator[tuple[int, Game]]]
    mock_truth: Bool[Tensor, "s n"]
    held: Needs
    shadows: int
    left_out: bool


def arena(
    zoo: Zoo,
    *,
    shadows: Zoo | Sequence[Zoo] | None,
    queries: int,
    mask: Sequence[Mask],
    evaluate: Evaluate,
) -> Arena:
    """`shadows`: of another zoo, or of one zoo a target. Raises ValueError where the zoo has no targets or no
    shadows to leave out, and where zoos are not as many as targets.
    """
    left_out, source = evaluate == "leave-one-out", zoo if shadows is None else shadows
    each = source if isinstance(source, Sequence) else [source] * len(zoo.target_member)
    if len(each) != len(zoo.target_member):
        raise ValueError(
            f"shadows must be one zoo a target, {len(zoo.target_member)} of them, got {len(each)}"
        )
    if evaluate not in ("targets", "leave-one-out"):
        raise ValueError(f"evaluate must be 'targets' or 'leave-one-out', got {evaluate!r}")
    if left_out and shadows is not None:
        raise ValueError("evaluate='leave-one-out' takes the zoo's own shadows, got shadows of another zoo")
    of: Literal["shadow", "target"] = "shadow" if left_out else "target"
    if not len(zoo.member(of)):
        raise ValueError(f"zoo must hold a {of} for evaluate={evaluate!r}, got none")

    def play(a: int) -> Game:
        if left_out:
            one = mock_game(zoo, a, mask=mask, weights=True, known=True, queries=queries)
        else:
            one = game(zoo, a, shadows=each[a], mask=mask, weights=True, known=True, queries=queries)
        return watched(one, zoo, of, a)

    mine = not left_out and source is zoo
    mocks = [j for fold in folds(len(zoo.shadow_member)) for j in fold] if mine else []
    kept = lru_cache(maxsize=1 if left_out else None)(play)
    return Arena(
        kept,
        zoo.member(of),
        _known(zoo, of),
        lambda: mock_games(zoo, kept(0)) if mocks else iter(()),
        zoo.shadow_member[mocks],
        _held(kept(0), queries),
        (len(zoo.shadow_member) - 2) if left_out else len(each[0].shadow_member),
        left_out,
    )


def holdings(
    m: int, aux: int, queries: int, x: Float[Tensor, "n *d"], *, left_out: bool, decay: bool = False
) -> Needs:
    """What an attacker will hold with m shadows of the target's own zoo, before any is trained."""
    each = max(m // 2 - left_out, 0)
    return Needs(each, each, aux, queries, *_kind(x), decay=decay)


def _held(first: Game, queries: int) -> Needs:
    inside = first.shadows.inside
    n_in, n_out = (int(side.sum(0).min()) for side in (inside, ~inside))
    decay = first.recipe.weight_decay > 0
    return Needs(n_in, n_out, len(first.aux), queries, *_kind(first.x), decay=decay)


def _kind(x: Float[Tensor, "n *d"]) -> tuple[bool, bool]:
    """Whether they are images, and whether there is anything between 0 and 1."""
    return x.ndim == 4, bool(((x != 0) & (x != 1)).any())


def able(attacks: dict[str, Attack], held: Needs, *, strict: Container[str]) -> dict[str, str | None]:
    """For each attack what it lacks. Raises ValueError for the first in `strict` that lacks something."""
    lacks = {name: unmet(attack, held) for name, attack in attacks.items()}
    for name, lack in lacks.items():
        if lack and name in strict:
            raise ValueError(f"attack {name} {lack}")
    return lacks


def _known(zoo: Zoo, of: Literal["shadow", "target"]) -> list[dict[str, Any]]:
    right = zoo.signal("correct", of=of)[:, 0].bool()
    test = zoo.signal("correct", of=of, on="test")[:, 0].mean(1)
    gaps = [metrics.gap(r, member) for r, member in zip(right, zoo.member(of), strict=True)]
    train = [float(r[member].double().mean()) for r, member in zip(right, zoo.member(of), strict=True)]
    return [
        {"gap": gap, "gap_test": inside - float(outside)}
        for gap, inside, outside in zip(gaps, train, test, strict=True)
    ]
