"""Every attack against every target, one row each. Here, and nowhere below, the truth meets the scores."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from pathlib import Path
from time import perf_counter
from typing import Any

import pandas as pd

from glasslab import results
from glasslab.checks import told_apart
from glasslab.likelihood import fit
from glasslab.masks import Mask
from glasslab.results import Results
from glasslab.zoo import Zoo
from workbench.arena import Arena, Evaluate, able, arena
from workbench.attack import Attack
from workbench.attacks import chosen, demanded
from workbench.curves import curves, joined, risks
from workbench.evidence import one_thread
from workbench.play import SEARCH, Played, check_search, drawn, floored, play
from workbench.rivals import differences
from workbench.rows import Row, Runs, rows, summary

NOT_RUN = "not run: "  # begins the error of an attack that lacks something, and no other error
STOPPED = Played(error="stopped before this target")
Tick = Callable[[str], None]  # hears what comes next


def compare(
    zoo: Zoo,
    attacks: str | Sequence[str] = "default",
    *,
    shadows: Zoo | Sequence[Zoo] | None = None,
    queries: int = 1,
    mask: Sequence[Mask] = (),
    evaluate: Evaluate = "targets",
    search: int = SEARCH,
    seed: int = 0,
    out: str | Path | None = None,
    command: str | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """One row an (attack, target). `.attrs` holds "summary" (a row an attack, targets pooled) and "manifest".

    `attacks` are names, or "default", "standard" (all but the costly ones), "all", or a family's. `shadows`:
    those of another zoo attack this zoo's targets, or those of one zoo a target. `search`: queries that an
    attack may spend around a candidate. Columns `*_transferred` take their thresholds from mock targets.
    `out`: the folder where the run is kept, also when Ctrl-C stops it; `command` stands in its manifest.

    An attack that raises gives rows with an `error`; so does, in a set, one that lacks something. Raises
    ValueError for an unknown attack, for one asked for by name that lacks something, and for search below 2.
    """
    start, table = perf_counter(), chosen(attacks)
    check_search(search)
    ring = arena(zoo, shadows=shadows, queries=queries, mask=mask, evaluate=evaluate)
    lacks = able(table, ring.held, strict=demanded(attacks))
    manifest = results.provenance(seed=seed, device=zoo.device, command=command) | _about(zoo, ring, shadows)
    manifest |= {"queries": queries, "mask": [repr(m) for m in mask], "evaluate": evaluate}
    manifest |= {"search": search}
    ready = [row for name, row in table.items() if not lacks[name]]
    steps = sum(1 + len(ring.truth) + (0 if row.costly else len(ring.mock_truth)) for row in ready)
    with _bar(steps, progress) as tick:
        runs, stopped = _played(table, lacks, ring, seed, search, tick)
        manifest |= {"attacks": [*table], "stopped": stopped, "seconds": perf_counter() - start}
        held = _unmeasured(zoo, ring, runs, manifest)
        if out is not None:
            results.save(out, held)  # what was played is on disk before it is measured
        with one_thread():
            every, pooled = _measured(runs, tick)
        held = replace(held, rows=every, summary=pooled, curves=_curves(zoo, ring, held, mask))
    held.manifest["checks"] = _said_of_all(held.summary) + told_apart(zoo.pool.x, ring.truth)
    held.manifest["seconds"] = perf_counter() - start
    if out is not None:
        results.save(out, held)
    if stopped:
        raise KeyboardInterrupt
    return framed(held)


def framed(held: Results) -> pd.DataFrame:
    """The rows as a frame. Its `.attrs` are plain values, which survive a copy, a join, and parquet."""
    frame = pd.DataFrame(held.rows)
    frame.attrs = results.strict({"summary": held.summary, "manifest": held.manifest})
    return frame


def _played(
    table: Mapping[str, Attack],
    lacks: Mapping[str, str | None],
    ring: Arena,
    seed: int,
    search: int,
    tick: Tick,
) -> tuple[list[Runs], bool]:
    """Runs of every attack, and whether Ctrl-C cut them short."""
    played: dict[str, list[Played]] = {name: [] for name in table}
    mocked: dict[str, list[Played]] = {name: [] for name in table}
    stopped = False
    try:
        _play(table, lacks, ring, seed, search, tick, played, mocked)
    except KeyboardInterrupt:
        stopped = True
    for name, lack in lacks.items():
        absent = Played(error=f"{NOT_RUN}{lack}") if lack else STOPPED
        played[name] += [absent] * (len(ring.truth) - len(played[name]))
    runs = [Runs(name, attack, ring, seed, played[name], mocked[name]) for name, attack in table.items()]
    return runs, stopped


def _play(
    table: Mapping[str, Attack],
    lacks: Mapping[str, str | None],
    ring: Arena,
    seed: int,
    search: int,
    tick: Tick,
    played: dict[str, list[Played]],
    mocked: dict[str, list[Played]],
) -> None:
    """Fills both: attack by attack, or target by target where each one has shadows of its own."""
    ready = [name for name in table if not lacks[name]]
    targets = range(len(ring.truth))
    order = ((name, a) for a in targets for name in ready) if ring.left_out else product(ready, targets)
    for name, a in order:
        tick(name)
        row = table[name]
        played[name].append(play(row, ring.game(a), drawn(row, name, seed, a), search=search))
    for j, game in ring.mocks():
        for name in (name for name in ready if not table[name].costly):
            tick(f"{name}, thresholds")
            row, settings = table[name], table[name].settle(ring.game(0).shadows)
            draw = drawn(row, name, seed, -1 - j)
            mocked[name].append(play(row, game, draw, settings, search=search))


def _unmeasured(zoo: Zoo, ring: Arena, runs: Sequence[Runs], manifest: dict[str, Any]) -> Results:
    scores = {run.name: run.score for run in runs}
    held = {name: score for name, score in scores.items() if not score.isnan().all()}
    return Results(manifest, [], [], held, ring.truth, zoo.split.pool, joined([]))


def _measured(runs: Sequence[Runs], tick: Tick) -> tuple[list[Row], list[Row]]:
    """Rows and summary, each with the same columns in every row: None where a number is undefined."""
    every: list[Row] = []
    pooled: list[Row] = []
    for run in runs:
        tick(f"{run.name}, intervals")
        of_targets = rows(run)
        every += of_targets
        pooled.append(summary(run, of_targets))
    against = differences(runs)
    pooled = [row | against[row["attack"]] for row in pooled]
    return _even(every), _even(pooled)


def _said_of_all(table: Sequence[Row]) -> list[str]:
    """Doubts that are the same for every attack; the rows keep their own."""
    said = [row["checks"] for row in table if row["checks"] is not None]
    common = [line for line in said[0] if all(line in lines for lines in said)] if said else []
    for lines in said:
        lines[:] = [line for line in lines if line not in common]
    return common


def _even(table: Sequence[Row]) -> list[Row]:
    names = dict.fromkeys(name for row in table for name in row)
    return [dict(names) | row for row in table]


def _curves(zoo: Zoo, ring: Arena, held: Results, mask: Sequence[Mask]) -> pd.DataFrame:
    drawn = [curves(held.scores, ring.truth, held.records)]
    if min(ring.held.n_in, ring.held.n_out) >= 2:
        phi = zoo.signal("phi", mask=mask)[:, 0]
        targets = range(0) if ring.left_out else range(len(ring.truth))
        of_target = zoo.signal("phi", of="target", mask=mask)[:, 0] if targets else phi[:0]
        with floored([]):
            gauss = fit(phi, zoo.shadow_member)
        truth = ring.truth[: len(targets)]
        drawn.append(risks(gauss, phi, zoo.shadow_member, of_target, truth, held.records))
    return joined(drawn)


def _about(zoo: Zoo, ring: Arena, shadows: Zoo | Sequence[Zoo] | None) -> dict[str, Any]:
    """Which models, on which records."""
    data, parts = zoo.data, zoo.split
    about = {
        "zoo": zoo.key,
        "data": {"name": data.name, "digest": data.digest, "records": len(data), "classes": data.classes},
        "pool": len(parts.pool),
        "aux": len(parts.aux),
        "test": len(parts.test),
        "duplicates": parts.duplicates,
        "recipe": zoo.recipe.key(),
        "zoo_seed": zoo.seed,
        "accuracy": zoo.accuracy("shadow" if ring.left_out else "target"),
        "shadows": ring.shadows,
        "targets": len(ring.truth),
        "mock_targets": len(ring.mock_truth),
    }
    if shadows is None:
        return about
    if isinstance(shadows, Zoo):
        return about | {"shadow_zoo": shadows.key}
    return about | {"shadow_zoos": [each.key for each in shadows], "shadow_data": shadows[0].data.name}


@contextmanager
def _bar(steps: int, show: bool) -> Iterator[Tick]:
    """A bar on stderr with what is at work and the time left."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        "attacking",
        BarColumn(),
        TimeElapsedColumn(),
        "left",
        TimeRemainingColumn(),
        "{task.description}",
    )
    with Progress(*columns, console=Console(stderr=True), disable=not show, transient=True) as progress:
        task = progress.add_task("", total=steps)

        def tick(what: str) -> None:
            progress.update(task, description=what, advance=1)

        yield tick
