"""How long attacks are likely to take, before they begin: a few forward passes and steps are timed."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from time import perf_counter

from glasslab.design import Design
from glasslab.oracle import forward
from glasslab.train import estimate
from workbench.attack import Attack, Needs, asked
from workbench.blackbox_search import DISTILLED

TIMED = 1024  # rows
SYNTHETIC = 4  # shadows of records that an attacker makes
SCORED = 30e-6  # seconds a record, target and attack: scores of targets and mock targets, intervals


@dataclass(frozen=True)
class Forecast:
    """Seconds on this device, and the queries to targets that need a forward pass."""

    seconds: float
    queries: int


def forecast(
    attacks: Mapping[str, Attack], design: Design, held: Needs, targets: int, search: int, device: str
) -> Forecast:
    """What these attacks take on so many targets; the answers about candidates as they are have been kept."""
    n = len(design.pool)
    again = [(row, asked(row, held, search)) for row in attacks.values()]
    queries = targets * n * sum(each for row, each in again if each > 1)
    seconds = queries * _a_query(design, device) if queries else 0.0
    made = [row for row in attacks.values() if row.family == "synthesis"]
    if made:
        pool, recipe = design.pool, replace(design.recipe, patience=0)
        each = estimate(design.net, recipe, pool.x, pool.y, SYNTHETIC, device)
        seconds += targets * len(made) * each
    if "ye-d" in attacks:
        recipe, aux = replace(design.recipe, patience=0), design.aux
        seconds += targets * estimate(design.net, recipe, aux.x, aux.y, DISTILLED, device)
    return Forecast(seconds + SCORED * len(attacks) * targets * n, queries)


def _a_query(design: Design, device: str) -> float:
    """Seconds of one row's forward pass."""
    model = design.net().eval().to(device)
    rows = design.pool.x[:TIMED].to(device)
    forward(model, rows[:256])
    start = perf_counter()
    forward(model, rows)
    return (perf_counter() - start) / len(rows)
