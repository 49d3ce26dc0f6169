"""What training a zoo would take, before it begins."""

from dataclasses import dataclass
from pathlib import Path

from glasslab.data import Data
from glasslab.design import KINDS, check_asked, design
from glasslab.growth import missing
from glasslab.recipe import Recipe
from glasslab.store import Store, root_of
from glasslab.train import estimate, pick_device, rows_at_once


@dataclass(frozen=True)
class Plan:
    """Models still to be trained, the seconds that takes on this device, the bytes that it puts on disk."""

    models_to_train: int
    seconds: float
    bytes: int


def plan(
    data: Data,
    recipe: Recipe,
    *,
    shadows: int = 64,
    targets: int = 8,
    seed: int = 0,
    records: int | None = None,
    root: str | Path | None = None,
    device: str = "auto",
) -> Plan:
    """What `Zoo.train` with these arguments has yet to do; a few steps are timed. Nothing is written."""
    asked = dict(zip(KINDS, (shadows, targets), strict=True))
    check_asked(asked)
    device = pick_device(device)
    ahead = design(data, recipe, seed=seed, records=records, device=device)
    todo = missing(ahead, Store(root_of(root) / ahead.key[:16]), asked)
    models, at_once = sum(len(chunk.rows) for chunk in todo), rows_at_once(ahead.recipe)
    if not todo:
        return Plan(0, 0.0, 0)
    seconds = estimate(ahead.net, ahead.recipe, ahead.pool.x, ahead.pool.y, at_once, device) * len(todo)
    return Plan(models, seconds, models * ahead.bytes_a_model)
