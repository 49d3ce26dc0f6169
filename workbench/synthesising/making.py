"""Block after block of wanted records, behind a progress bar; each is on disk before the next begins."""

import sys
from pathlib import Path
from time import perf_counter

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from glasslab.oracle import Oracle
from glasslab.zoo import Zoo
from workbench import steps
from workbench.synthesising import blocks
from workbench.synthesising.blocks import Block
from workbench.synthesising.plan import Plan

PROBE = 100  # chains; from what they take it is said what the rest will take
BLOCK = 1000  # wanted records between two files


def make(plan: Plan, zoo: Zoo, folder: Path, method: str) -> list[Block]:
    """The blocks that are there and those that were lacking.

    Within the budget, in which what the folder's blocks asked counts. Ctrl-C passes through, after what is
    finished is kept.
    """
    held = blocks.held(folder, method)
    oracle = _oracle(plan, zoo, sum(block.queries for block in held))
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    console, shown = Console(stderr=True), sys.stderr.isatty()
    with Progress(*columns, console=console, disable=not shown, transient=True) as bar:
        task = bar.add_task(plan.options.method, total=plan.n)
        told = not plan.asks
        while len(ids := blocks.missing(held, plan.n)) and oracle.left != 0:
            if held and not told:
                line = ahead(held, len(ids), oracle.left)
                bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
                told = True
            ids, done = ids if not plan.asks else ids[: BLOCK if held else PROBE], plan.n - len(ids)
            before = sum(block.queries for block in held)

            def tick(finished: int, queries: int, done: int = done, before: int = before) -> None:
                said = f"{done + finished:,} of {plan.n:,} records, {before + queries:,} queries"
                bar.update(task, completed=done + finished, description=said)

            tick(0, 0)
            begun = perf_counter()
            made = plan.block(oracle, ids, len(held), tick)
            held.append(Block(ids, made, perf_counter() - begun))
            _keep(folder, method, len(held) - 1, held[-1])
            if "interrupted" in made.reason:
                raise KeyboardInterrupt
    return held


def ahead(held: list[Block], rest: int, left: int | None) -> str:
    """What `rest` more records will take, by what the others took; no more than the budget leaves."""
    done, asked = sum(int(block.final.sum()) for block in held), sum(block.queries for block in held)
    seconds = sum(block.seconds for block in held)
    queries = rest * asked / max(done, 1)
    queries = queries if left is None else min(queries, left)
    return (
        f"{done:,} records took {asked:,} queries and {seconds:.1f} s; {rest:,} more: about {queries:,.0f} "
        f"queries and {steps._time(queries * seconds / max(asked, 1))}"
    )


def _oracle(plan: Plan, zoo: Zoo, spent: int) -> Oracle:
    options = plan.options
    return Oracle(
        zoo.target(0),
        reveals=options.reveals,
        mask=steps.masks_of(options.mask),
        budget=None if options.budget is None else max(options.budget - spent, 0),
    )


def _keep(folder: Path, method: str, number: int, block: Block) -> None:
    """Ctrl-C waits until the file is written."""
    try:
        blocks.keep(folder, method, number, block)
    except KeyboardInterrupt:
        blocks.keep(folder, method, number, block)
        raise
