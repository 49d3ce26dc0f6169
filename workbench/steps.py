"""The steps that commands are made of: find the data, announce the work, train, compare, print."""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from glasslab import masks
from glasslab.augment import queries as grid
from glasslab.data import Data
from glasslab.datasets import load
from glasslab.design import Asked, design
from glasslab.growth import missing
from glasslab.masks import Mask
from glasslab.plan import plan
from glasslab.recipe import Recipe
from glasslab.results import read
from glasslab.store import Store, root_of
from glasslab.train import pick_device
from glasslab.zoo import Zoo
from workbench import plots
from workbench.arena import able, holdings
from workbench.attack import unmet
from workbench.attacks import chosen, demanded
from workbench.forecast import forecast
from workbench.options import AttackOptions, Evaluate, ZooOptions
from workbench.play import SEARCH, check_search
from workbench.recipes import SIZES, changed, named
from workbench.run import NOT_RUN, compare
from workbench.table import table

MASKS: dict[str, Any] = {
    "temperature": (masks.temperature, float),
    "round_to": (masks.round_to, int),
    "round_by": (masks.round_by, float),
    "top_k": (masks.top_k, int),
    "noise": (masks.noise, float),
}
WIDTH = 100  # where the output is no terminal


class Stopped(KeyboardInterrupt):
    """Ctrl-C, with a line that says what is kept."""


@dataclass(frozen=True)
class Order:
    """A zoo to be trained: `settings` are the keyword arguments of `Zoo.train`."""

    data: Data
    recipe: Recipe
    queries: int
    settings: dict[str, Any]


def ordered(options: ZooOptions) -> Order:
    """What the flags say, and the size where they say nothing. Raises ValueError for what cannot be."""
    data, usual = load(options.data, options.data_root), SIZES[options.size]
    recipe, queries = named(data, options.net, options.size)
    settings = {
        "shadows": usual.shadows if options.shadows is None else options.shadows,
        "targets": usual.targets if options.targets is None else options.targets,
        "records": usual.records if options.records is None else options.records,
        "seed": options.seed,
        "root": options.root,
        "device": pick_device(options.device),
    }
    return Order(data, changed(recipe, options.recipe), queries, settings)


def refuse_early(
    order: Order,
    attacks: str | Sequence[str],
    queries: int,
    search: int,
    mask: Sequence[str],
    evaluate: Evaluate,
    *,
    inside: bool = True,
) -> None:
    """Raises ValueError, before anything is trained, for a wrong mask or search, and for an attack asked by
    name that could not run; with `inside` False no shadow has learned a candidate.
    """
    masks_of(mask)
    check_search(search)
    if queries > 1:
        grid(order.data.x[:1], queries)
    aux = round(0.2 * len(order.data))
    left_out = evaluate == "leave-one-out"
    decay = order.recipe.weight_decay > 0
    held = holdings(order.settings["shadows"], aux, queries, order.data.x, left_out=left_out, decay=decay)
    held = held if inside else replace(held, n_in=0)
    able(chosen(attacks), held, strict=demanded(attacks))


def trained(order: Order) -> Zoo:
    """Says what it takes, then trains what is missing. Ctrl-C says what is kept."""
    ahead = plan(order.data, order.recipe, **order.settings)
    folder = _folder(order)
    if ahead.models_to_train:
        todo = (
            f"{ahead.models_to_train} models to train, about {_time(ahead.seconds)} and {_size(ahead.bytes)}"
        )
    else:
        todo = "all models are there"
    say(f"{order.data.name}, {order.recipe.net}: {todo}; zoo in {folder}")
    try:
        return Zoo.train(order.data, order.recipe, **order.settings, progress=_shown())
    except KeyboardInterrupt:
        raise Stopped(f"{_kept(order)} in {folder}; the same command goes on from there") from None


def compared(
    zoo: Zoo,
    attacks: str | Sequence[str],
    options: AttackOptions,
    *,
    queries: int = 1,
    search: int = SEARCH,
    shadows: Zoo | Sequence[Zoo] | None = None,
) -> int:
    """Says what it takes, runs the attacks, prints the table and where the files lie.

    1 where an attack raised, else 0.
    """
    held_by = shadows[0] if isinstance(shadows, Sequence) else shadows or zoo
    announce(zoo, attacks, queries, search, options.evaluate, len(held_by.shadow_member))
    net = str(zoo.recipe.key()["net"]).rsplit(".", 1)[-1]
    data = zoo.data.name.split(":")[0]
    out = options.out or Path("runs") / f"{datetime.now():%Y%m%d-%H%M%S}-{data}-{net}"
    try:
        frame = compare(
            zoo,
            attacks,
            shadows=shadows,
            queries=queries,
            mask=masks_of(options.mask),
            evaluate=options.evaluate,
            search=search,
            seed=zoo.seed,
            out=out,
            command=shlex.join(["glasslab", *sys.argv[1:]]),
            progress=_shown(),
        )
    except KeyboardInterrupt:
        kept = f"{out} keeps what was finished, " if (out / "results.json").exists() else ""
        raise Stopped(f"{kept}all models are kept in {zoo.folder}; the same command attacks anew") from None
    held = read(out)
    Console(width=None if sys.stdout.isatty() else WIDTH).print(table(held.summary, held.manifest))
    pictures = plots.save(held, out)
    say(f"{out}: results.json, results.parquet, scores.safetensors, curves.parquet, {_names(pictures)}")
    failed = frame["error"].notna() & ~frame["error"].fillna("").str.startswith(NOT_RUN)
    return int(failed.any())


def announce(
    zoo: Zoo, attacks: str | Sequence[str], queries: int, search: int, evaluate: Evaluate, shadows: int
) -> None:
    """One line: how many attacks, on how many targets, about how long.

    White-box attacks are not timed: they train nets of their own.
    """
    rows, left_out = chosen(attacks), evaluate == "leave-one-out"
    targets = len(zoo.shadow_member if left_out else zoo.target_member)
    decay = zoo.recipe.weight_decay > 0
    held = holdings(shadows, len(zoo.aux), queries, zoo.pool.x, left_out=left_out, decay=decay)
    able_ones = {name: row for name, row in rows.items() if not unmet(row, held)}
    ahead = forecast(able_ones, zoo.design, held, targets, search, zoo.device)
    asks = f", {ahead.queries:,} queries beyond the plain ones" if ahead.queries else ""
    white = sum(row.family == "whitebox" for row in able_ones.values())
    more = (
        f"; what {white} white-box ones learn comes on top: seconds a target, minutes for conv nets"
        if white
        else ""
    )
    say(f"{len(rows)} attacks on {targets} targets: about {_time(ahead.seconds)}{asks}{more}")


def opened(folder: Path, data_root: Path | None, device: str) -> Zoo:
    """A zoo from its folder, its data from `data_root`."""
    name = Store(folder).manifest()["data"]["name"]
    return Zoo.open(folder, load(name, data_root), device=device)


def masks_of(words: Sequence[str]) -> list[Mask]:
    """Masks from words such as round_to:3. Raises ValueError for one that is not known or not well set."""
    made = []
    for word in words:
        name, _, value = word.partition(":")
        try:
            kind, number = MASKS[name]
            made.append(kind(number(value)))
        except (KeyError, ValueError) as error:
            known = ", ".join(f"{name}:VALUE" for name in MASKS)
            why = "" if isinstance(error, KeyError) else f" ({error})"
            raise ValueError(f"mask must be one of {known}, got {word!r}{why}") from None
    return made


def say(line: str) -> None:
    """One line to the terminal, without mark-up; pipes get it on stderr, beside the progress."""
    Console(stderr=True, soft_wrap=True).print(line, markup=False, highlight=False)


def _shown() -> bool:
    return sys.stderr.isatty()


def _folder(order: Order) -> Path:
    return root_of(order.settings["root"]) / _design(order).key[:16]


def _design(order: Order) -> Any:
    wanted = {name: order.settings[name] for name in ("seed", "records", "device")}
    return design(order.data, order.recipe, **wanted)


def _kept(order: Order) -> str:
    ahead = _design(order)
    asked: Asked = {"shadow": order.settings["shadows"], "target": order.settings["targets"]}
    every = sum(len(chunk.rows) for kind, models in asked.items() for chunk in ahead.chunks(kind, models))
    left = sum(len(chunk.rows) for chunk in missing(ahead, Store(_folder(order)), asked))
    return f"{every - left} of {every} models are kept"


def _time(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    minutes, rest = divmod(rest, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _names(paths: Sequence[Path]) -> str:
    return ", ".join(path.name for path in paths) or "no picture"
