"""`glasslab compare --shadow-data`: the attacker's shadows learn what it makes, one zoo of them a target.

Hill climbing and the marginals' labels ask the target, so each target has its own records; noisy records of
aux are the same for all. A zoo of shadows lies on disk like any other, and is found again.
"""

import math
from dataclasses import dataclass
from typing import Any, get_args

from glasslab.game import game
from glasslab.split import stream
from glasslab.zoo import Zoo
from workbench import steps
from workbench.synthetic_shadows import Method, accuracy, made

POOL = 0.6  # of a zoo's records are its pool
USUAL = 16  # shadows a target, where no flag says otherwise
PLAYED = ("loss", "shadow", "lira-offline", "rmia-offline")  # what shadows of other records can serve


@dataclass(frozen=True)
class Scarcity:
    """How the attacker comes by records. `rate`: of noise."""

    method: Method
    rate: float = 0.1


def scarcity(words: str) -> Scarcity | None:
    """From hillclimb, marginals, noisy:RATE or real (None). Raises ValueError for anything else."""
    if words == "real":
        return None
    method, _, value = words.partition(":")
    if method in get_args(Method) and (method == "noisy") == bool(value):
        try:
            rate = float(value or 0.1)
        except ValueError:
            rate = -1.0
        if 0 <= rate <= 1:
            return Scarcity(method, rate)  # type: ignore[arg-type]
    raise ValueError(f"shadow-data must be real, hillclimb, marginals or noisy:RATE, got {words!r}")


def shadow_zoos(zoo: Zoo, how: Scarcity, m: int, settings: dict[str, Any]) -> list[Zoo]:
    """m shadows for each target; says what was asked, and how well the shadows do on the target's data."""
    held: list[Zoo] = []
    asked, n = 0, math.ceil(len(zoo.pool) / POOL)
    where = {name: settings[name] for name in ("root", "device")}
    for a in range(len(zoo.target_member)):
        one = game(zoo, a)
        draw = stream(zoo.seed, "shadow data", how.method, 0 if how.method == "noisy" else a)
        data = made(one, how.method, draw, rate=how.rate, records=n)
        asked += one.oracle.queries
        absent = sorted(set(range(data.classes)) - set(data.y.tolist()))
        if absent:
            raise ValueError(
                f"shadow-data {how.method} must make a record of every class, got none of class {absent[0]} "
                f"for target {a}: another way may, such as noisy:0.1"
            )
        if not a:
            steps.say(f"shadow data: {how.method}, {len(data):,} records for {m} shadows a target")
        held.append(Zoo.train(data, zoo.recipe, shadows=m, targets=0, seed=zoo.seed, **where, progress=False))
    test = zoo.test
    right = accuracy(held[0].shadow, m, test.x, test.y)
    target = zoo.accuracy("target")["test"]
    steps.say(
        f"shadow data: {asked:,} queries to {len(held)} targets; shadows are right on {right:.1%} of the "
        f"target's test records, the target on {target:.1%}"
    )
    return held
