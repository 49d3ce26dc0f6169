"""One attack against one target: fresh oracle, the access that the attack's row names, what it cost."""

import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

from jaxtyping import Float64
from torch import Generator, Tensor

from glasslab.checks import Floored
from glasslab.game import Game, Reveals, without
from glasslab.split import stream
from workbench.attack import KNOWN, Attack, Needs, asked


@dataclass(frozen=True, eq=False)
class Played:
    """What came out: a score, or the error in its way; wall seconds, rows asked, what was floored."""

    score: Float64[Tensor, "n"] | None = None
    seconds: float | None = None
    queries: int | None = None
    notes: str | None = None
    error: str | None = None


SEARCH = 250  # queries a candidate, for attacks that search around it


def granted(game: Game, attack: Attack, search: int = SEARCH) -> Game:
    """The game with a fresh oracle that reveals what the attack may see, and nothing else.

    It answers as often as the row says that the attack asks; without a need for shadows there are none.
    Raises ValueError where its label grants what the game has not.
    """
    grants = _grants(attack)
    for name in grants:
        if getattr(game, name) is None:
            raise ValueError(f"game must hold the {name} for an attack that holds {attack.holds}, got None")
    reveals: Reveals = "labels" if attack.access == "labels" else "probabilities"
    most = price(attack, game, search)
    budget = most if game.oracle.budget is None else min(most, game.oracle.budget)
    oracle = replace(game.oracle, reveals=reveals, budget=budget)
    held = game.shadows if attack.needs.n_in + attack.needs.n_out else without(game.shadows)
    return replace(
        game,
        oracle=oracle,
        shadows=held,
        model=game.model if "model" in grants else None,
        known=game.known if "known" in grants else None,
        steps=game.steps if "steps" in grants else None,
        init=game.init if "init" in grants else None,
        checkpoints=None,
    )


def _grants(attack: Attack) -> list[str]:
    """What its label grants, of what a game holds beyond an oracle, shadows and aux."""
    grants = {
        "model": attack.access == "weights",
        "known": attack.holds in KNOWN,
        "steps": attack.holds == "steps",
        "init": attack.holds.endswith("+init"),
    }
    return [name for name, granted_ in grants.items() if granted_]


def check_search(search: int) -> None:
    """Raises ValueError for too few queries a candidate to ask around it."""
    if search < 2:
        raise ValueError(f"search must be 2 or more queries a record, got {search}")


def price(attack: Attack, game: Game, search: int) -> int:
    """Queries in all, at most."""
    if attack.access in ("nothing", "weights"):
        return 0
    each = asked(attack, Needs(queries=game.shadows.z.shape[2]), search)
    return len(game.y) * (each + attack.asks_made) + len(game.aux) * attack.asks_aux


def play(
    attack: Attack,
    game: Game,
    generator: Generator,
    settings: Mapping[str, Any] | None = None,
    *,
    search: int = SEARCH,
) -> Played:
    """Runs it. An exception becomes the error, whatever it is; Ctrl-C passes through."""
    start = perf_counter()
    spend = {"budget": search} if attack.asks is None else {}
    try:
        own, notes = granted(game, attack, search), list[str]()
        with floored(notes):
            score = attack.run(own, generator, **spend, **(settings or {}))
        _check(score, len(game.y))
    except Exception as error:
        return Played(seconds=perf_counter() - start, error=_line(error))
    seconds = perf_counter() - start
    return Played(score.detach().cpu().double(), seconds, own.oracle.queries, "; ".join(notes) or None)


def drawn(attack: Attack, name: str, seed: int, a: int) -> Generator:
    """One draw for all targets, so that what is learned from the shadows is learned once.

    Who asks nothing has nothing else by which targets could differ, and gets a draw for each.
    """
    return stream(seed, name, a) if attack.access == "nothing" else stream(seed, name)


@contextmanager
def floored(notes: list[str]) -> Iterator[None]:
    """Collects what was floored, each line once; other warnings go where they would have gone."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", Floored)
        yield
    for warning in caught:
        if not issubclass(warning.category, Floored):
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
        elif str(warning.message) not in notes:
            notes.append(str(warning.message))


def _check(score: Tensor, n: int) -> None:
    if tuple(score.shape) != (n,):
        raise ValueError(f"an attack must give one score a record, [{n}], got {list(score.shape)}")
    if not score.isfinite().all():
        raise ValueError(f"scores must be finite, got {int((~score.isfinite()).sum())} NaN or infinite")


def _line(error: Exception) -> str:
    """Kind and text of an error in one line, and where it arose."""
    frames = traceback.extract_tb(error.__traceback__)
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text} ({Path(frames[-1].filename).name}:{frames[-1].lineno})"
