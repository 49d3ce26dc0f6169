"""`glasslab experiment NAME`: says what it takes, trains what is missing, prints, and keeps three files.

NAME.parquet holds the frame, NAME.json the same rows with their manifest, NAME.png is drawn from these two.
"""

import json
import os
import shlex
import sys
import tempfile
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table

from glasslab.plan import plan
from glasslab.results import provenance, strict
from glasslab.zoo import Zoo
from workbench import steps
from workbench.experiments.catalogue import Experiment, chosen
from workbench.options import ZooOptions
from workbench.steps import Order, Stopped


def experiment(name: str, options: ZooOptions, also: str | None, out: Path | None) -> int:
    """Runs it; 0. Raises ValueError, before any training, for an unknown name and for data sets too many."""
    row = chosen(name)
    start, orders = perf_counter(), row.orders(options, _also(name, row, also))
    zoos = _trained(orders)
    try:
        frame = row.run(zoos, options.seed)
    except KeyboardInterrupt:
        raise Stopped("all models are kept; the same command computes anew") from None
    command = shlex.join(["glasslab", *sys.argv[1:]])
    device = next(iter(zoos.values())).device
    manifest = {"experiment": name} | provenance(seed=options.seed, device=device, command=command)
    manifest |= {"seconds": perf_counter() - start, "zoos": frame.attrs["zoos"]}
    folder = out or Path("runs") / f"{datetime.now():%Y%m%d-%H%M%S}-{name}"
    save(folder, name, frame, manifest)
    Console(width=None if sys.stdout.isatty() else steps.WIDTH).print(table(row.short(frame), name))
    steps.say(f"{folder}: {name}.parquet, {name}.json, {name}.png")
    return 0


def save(folder: Path, name: str, frame: pd.DataFrame, manifest: Mapping[str, Any]) -> None:
    """Each file whole or not at all; the picture comes last, from what the other two say."""
    folder.mkdir(parents=True, exist_ok=True)
    extra = {key: value for key, value in frame.attrs.items() if key != "zoos"}
    rows = frame.astype(object).where(frame.notna(), None).to_dict("records")
    document = strict({"manifest": manifest, **extra, "rows": rows})
    with tempfile.TemporaryDirectory(dir=folder, prefix=".writing-") as scratch:
        parts = [Path(scratch) / f"{name}.{kind}" for kind in ("parquet", "json", "png")]
        frame.to_parquet(parts[0], index=False)
        parts[1].write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")
        held = pd.read_parquet(parts[0])
        figure = chosen(name).draw(held, json.loads(parts[1].read_text())["manifest"])
        figure.savefig(parts[2], dpi=150)
        for part in parts:
            os.replace(part, folder / part.name)


def table(frame: pd.DataFrame, title: str) -> Table:
    """Numbers at three digits; "-" where undefined."""
    drawn = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title=title, title_justify="left")
    for name in frame.columns:
        words = frame[name].dtype.kind not in "fiu" and not pd.api.types.is_numeric_dtype(frame[name])
        side: Literal["left", "right"] = "left" if words else "right"
        # words are folded where room is short; a number that loses digits would be another number
        drawn.add_column(str(name).replace("_", " "), justify=side, no_wrap=not words, overflow="fold")
    for row in frame.itertuples(index=False):
        drawn.add_row(*map(_cell, row))
    return drawn


def _cell(value: Any) -> str:
    if value is None or value is pd.NA or value != value:
        return "-"
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) >= 5e-4 or value == 0 else f"{value:.0e}"
    return str(value)


def _also(name: str, row: Experiment, also: str | None) -> list[str]:
    if also is not None and row.also is None:
        raise ValueError(f"also must be left out for {name}, which takes one data set, got {also!r}")
    return (
        list(row.also or ()) if also is None else [word.strip() for word in also.split(",") if word.strip()]
    )


def _trained(orders: Mapping[str, Order]) -> dict[str, Zoo]:
    """One estimate for all of them first, where there are several."""
    if len(orders) > 1:
        ahead = [plan(order.data, order.recipe, **order.settings) for order in orders.values()]
        models, seconds = sum(a.models_to_train for a in ahead), sum(a.seconds for a in ahead)
        took = f"{models} models to train, about {seconds / 60:.1f} min" if models else "all models are there"
        steps.say(f"{len(orders)} zoos ({'; '.join(orders)}): {took}")
    return {name: steps.trained(order) for name, order in orders.items()}
