"""Mock targets: shadows, whose truth is known, play the target, and thresholds need no truth of the target's.

They leave the design together with their complements: each record keeps as many models in as out, whatever
the mock's truth (pair exclusion, as in ml_privacy_meter). Several leave at once, an eighth of the shadows at
most, so that what is fitted to the others is fitted once for all of them.
"""

from collections.abc import Iterator
from dataclasses import replace

from glasslab.game import Game, Models, Shadows, answered
from glasslab.zoo import Zoo

MOCKS = 16  # or a few more; each record is then out of 8, enough for a mean and a spread of its own


def folds(m: int, mocks: int = MOCKS) -> list[range]:
    """Shadows that play together: whole blocks of two; none where no shadow would be left.

    >>> folds(64), len(folds(16)), folds(2)
    ([range(0, 8), range(8, 16)], 8, [])
    """
    size = max(2, min(m // 8, mocks) // 2 * 2)
    return [range(start, start + size) for start in range(0, min(m, mocks), size)] if m > size else []


def mock_games(zoo: Zoo, game: Game) -> Iterator[tuple[int, Game]]:
    """(j, the game in which shadow j of `zoo`, whose shadows `game` holds, plays the target)."""
    for fold in folds(len(zoo.shadow_member)):
        held = _without(game.shadows, fold)
        for j in fold:
            model = zoo.shadow(j)
            own = model if game.model is not None else None
            oracle = replace(game.oracle, model=model, answered=answered(zoo, "shadow", j))
            known = zoo.shadow_member[j] if game.known is not None else None
            yield j, replace(game, oracle=oracle, model=own, shadows=held, known=known, steps=None)


def _without(held: Shadows, fold: range) -> Shadows:
    rest = [i for i in range(len(held.z)) if i not in fold]
    rows = slice(fold.stop, None) if fold.start == 0 else rest  # a slice copies nothing
    member = held.member[rows]
    return replace(
        held,
        models=Models(held.models.__getitem__, rest),
        member=member,
        inside=member if held.member is held.inside else held.inside[rows],
        z=held.z[rows],
        z_aux=held.z_aux[rows],
    )
