"""`glasslab synthesize`: makes records by asking a target, or from aux, and says how good they are.

In the folder: synthetic.safetensors (x, y, confidence), synthesize.json (manifest, a row a class, reasons,
quality), and the blocks, from which a second run of the same command goes on. A hundred records are a probe
of what the rest will take; they count, and stay.
"""

import json
import os
import shlex
import sys
from datetime import datetime
from pathlib import Path
from time import perf_counter
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from safetensors.torch import save_file

from glasslab.oracle import Oracle
from glasslab.results import provenance, strict
from glasslab.zoo import Zoo
from synthesis.quality import overlap, quality
from synthesis.report import Quality
from synthesis.synthetic import Synthetic
from workbench import steps
from workbench.experiments.runs import net
from workbench.options import SynthesizeOptions
from workbench.play import floored
from workbench.steps import Stopped
from workbench.synthesising import blocks, printed
from workbench.synthesising.blocks import Block
from workbench.synthesising.plan import Plan, planned

PROBE = 100  # chains
BLOCK = 1000  # wanted records between two files
FILES = ("synthetic.safetensors", "synthesize.json")


def synthesize(options: SynthesizeOptions) -> int:
    """Runs it; 0. Raises ValueError, before any training, for what cannot be."""
    start, plan = perf_counter(), planned(options)
    zoo = steps.trained(plan.order)
    method = plan.named(zoo.key)
    when = f"{datetime.now():%Y%m%d-%H%M%S}"
    folder = options.out or Path("runs") / f"{when}-synthesize-{options.data.split(':')[0]}-{net(zoo)}"
    folder.mkdir(parents=True, exist_ok=True)
    notes: list[str] = []
    try:
        with floored(notes):
            held = _all(plan, zoo, folder, method)
        made = blocks.merged(held, plan.labels(_ids(plan)), plan.aux.shape, method)
        _save_records(folder, made, zoo)
        member = zoo.target_member[0]
        with floored(notes):  # for the evaluator alone: no method is told of these records
            found = quality(made, zoo.pool[member], zoo.pool[~member], seed=options.seed)
    except KeyboardInterrupt:
        left = len(blocks.missing(blocks.held(folder, method), plan.n))
        kept = f"{plan.n - left:,} of {plan.n:,} records are finished and kept in {folder}"
        raise Stopped(f"{kept}; with --out {folder} the same command goes on") from None
    manifest = _manifest(plan, zoo, made, notes, sum(block.seconds for block in held))
    manifest["seconds"] = perf_counter() - start
    _save_document(folder, made, manifest, found)
    console = Console(width=None if sys.stdout.isatty() else steps.WIDTH)
    console.print(printed.table(made, manifest))
    console.print(printed.report(found), soft_wrap=True)
    steps.say(f"{folder}: {', '.join(FILES)}")
    return 0


def _ids(plan: Plan) -> Any:
    return blocks.missing([], plan.n)


def _all(plan: Plan, zoo: Zoo, folder: Path, method: str) -> list[Block]:
    """The blocks that are there and those that are lacking. Ctrl-C passes, after what is finished is kept."""
    held = blocks.held(folder, method)
    spent = sum(block.queries for block in held)
    budget = plan.options.budget
    oracle = Oracle(
        zoo.target(0),
        reveals=plan.options.reveals,
        mask=steps.masks_of(plan.options.mask),
        budget=None if budget is None else max(budget - spent, 0),
    )
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    console, shown = Console(stderr=True), sys.stderr.isatty()
    with Progress(*columns, console=console, disable=not shown, transient=True) as bar:
        task = bar.add_task(plan.options.method, total=plan.n)
        told = False
        while len(ids := blocks.missing(held, plan.n)) and oracle.left != 0:
            if held and not told:
                line = _ahead(held, len(ids), oracle.left)
                bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
            told = bool(held)
            ids = ids if not plan.asks else ids[: BLOCK if held else PROBE]
            done = plan.n - len(blocks.missing(held, plan.n))
            before = sum(block.queries for block in held)

            def tick(finished: int, queries: int, done: int = done, before: int = before) -> None:
                bar.update(task, completed=done + finished, description=f"{before + queries:,} queries")

            begun = perf_counter()
            made = plan.block(oracle, ids, len(held), tick)
            block = Block(ids, made, perf_counter() - begun)
            _keep(folder, method, len(held), block)
            held.append(block)
            tick(int(block.final.sum()), block.queries)
            if "interrupted" in made.reason:
                raise KeyboardInterrupt
    return held


def _keep(folder: Path, method: str, number: int, block: Block) -> None:
    """Ctrl-C while the file is written waits for it."""
    try:
        blocks.keep(folder, method, number, block)
    except KeyboardInterrupt:
        blocks.keep(folder, method, number, block)
        raise


def _ahead(held: list[Block], rest: int, left: int | None) -> str:
    """What the rest will take, by what the first records took."""
    done, asked = sum(int(block.final.sum()) for block in held), sum(block.queries for block in held)
    seconds = sum(block.seconds for block in held) / max(asked, 1)
    each = asked / max(done, 1)
    queries = min(rest * each, rest * each if left is None else left)
    return (
        f"{done:,} records took {asked:,} queries, {each:.1f} each; {rest:,} more: about {queries:,.0f} queries "
        f"and {steps._time(queries * seconds)}"
    )


def _manifest(plan: Plan, zoo: Zoo, made: Synthetic, notes: list[str], seconds: float) -> dict[str, Any]:
    options, asked = plan.options, int(made.queries.sum())
    train = zoo.pool[zoo.target_member[0]]
    own = plan.aux
    checks = [] if options.method == "hillclimb" and isinstance(plan.start, str) and plan.start == "random" else overlap(own, train)
    command = shlex.join(["glasslab", *sys.argv[1:]])
    return provenance(seed=options.seed, device=zoo.device, command=command) | {
        "method": made.method,
    }
