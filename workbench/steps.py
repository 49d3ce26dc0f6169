"""The steps that commands are made of: find the data, announce the work, train, compare, print."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from rich.console import Console

from glasslab import masks
from glasslab.data import Data
from glasslab.datasets import load
from glasslab.design import design
from glasslab.growth import missing
from glasslab.masks import Mask
from glasslab.plan import plan
from glasslab.recipe import Recipe
from glasslab.results import read
from glasslab.store import Store, root_of
from glasslab.train import pick_device
from glasslab.zoo import Zoo
from workbench import plots
from workbench.arena import Evaluate, able, holdings
from workbench.attacks import chosen
from workbench.mock import folds
from workbench.recipes import SIZES, SizeName, changed, named
from workbench.run import NOT_RUN, compare
from workbench.table import table

MASKS = {"temperature": (masks.temperature, float), "round_to": (masks.round_to, int)}
MASKS |= {"top_k": (masks.top_k, int), "noise": (masks.noise, float)}


class Stopped(KeyboardInterrupt):
    """Ctrl-C, with what is kept."""


@dataclass(frozen=True)
class Order:
    """A zoo to be trained, and where."""

    data: Data
    recipe: Recipe
    queries: int
    shadows: int
    targets: int
    records: int | None
    seed: int
    root: Path | None
    device: str


def ordered(
    data: str,
    net: str | None,
    size: SizeName,
    recipe: str,
    *,
    shadows: int | None,
    targets: int | None,
    records: int | None,
    queries: int | None,
    seed: int,
    device: str,
    root: Path | None,
    data_root: Path | None,
) -> Order:
    """What the flags say, with the size's defaults where they say nothing."""
    records_of, usual = load(data, data_root), SIZES[size]
    chosen_recipe, usual_queries = named(records_of, net, size)
    return Order(
        records_of,
        changed(chosen_recipe, recipe),
        usual_queries if queries is None else queries,
        usual.shadows if shadows is None else shadows,
        usual.targets if targets is None else targets,
        usual.records if records is None else records,
        seed,
        root,
        pick_device(device),
    )


def check_attacks(order: Order, attacks: str | Sequence[str], evaluate: Evaluate) -> None:
    """Refuses, before anything is trained, an attack by name that could not run."""
    pool = order.data.x  # aux is a fifth of it
    held = holdings(order.shadows, len(pool) // 5, order.queries, left_out=evaluate == "leave-one-out")
    able(chosen(attacks), held, strict=attacks != "all")


def trained(order: Order) -> Zoo:
    """Says what it will take, then trains what is missing."""
    settings = {
        "shadows": order.shadows,
        "targets": order.targets,
        "seed": order.seed,
        "records": order.records,
        "root": order.root,
        "device": order.device,
    }
