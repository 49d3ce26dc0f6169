"""`glasslab open-problem`: says what it takes, trains what is missing, answers, keeps five files."""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import torch
from rich.console import Console

from glasslab.plan import plan
from glasslab.results import provenance
from glasslab.zoo import Zoo
from workbench import steps
from workbench.evidence import one_thread
from workbench.open_problem import told
from workbench.open_problem.frozen import W
from workbench.open_problem.parts import players
from workbench.open_problem.run import answer, check
from workbench.options import ZooOptions
from workbench.steps import Stopped

USUAL = "weight_decay=0.002"  # of a recipe that the user leaves as it is: without decay nothing is stationary
PROBE = 1000  # candidates of the system that is solved to see how fast this machine is


def open_problem(options: ZooOptions, seeds: Sequence[int], out: Path | None, *, bought: bool) -> int:
    """0. Raises ValueError, before any training, for zoos that the protocol cannot be run on."""
    start = perf_counter()
    options = replace(options, recipe=options.recipe or USUAL)
    options = replace(options, targets=16 if options.targets is None else options.targets)
    orders = [steps.ordered(replace(options, seed=seed)) for seed in seeds or (options.seed,)]
    first = orders[0]
    check(first.recipe, first.settings["shadows"], first.settings["targets"])
    ahead = [plan(order.data, order.recipe, **order.settings) for order in orders]
    if len(orders) > 1:
        models, seconds = sum(a.models_to_train for a in ahead), sum(a.seconds for a in ahead)
        steps.say(f"{len(orders)} zoos: {models} models to train, about {seconds / 60:.1f} min")
    zoos = [steps.trained(order) for order in orders]
    minutes = estimate(zoos[0]) * len(zoos) / 60
    again = ", and as long again to train what LiRA gets for it" if bought else ""
    steps.say(f"signals of {_models(zoos[0])} models a seed, about {minutes:.1f} min{again}")
    folder = out or Path("runs") / f"open-problem-{first.data.name}-{zoos[0].key[:8]}"
    try:
        found = answer(zoos, folder, bought=bought)
    except KeyboardInterrupt:
        raise Stopped(f"finished signals are kept in {folder}; the same command goes on from there") from None
    title = f"{first.data.name}, {first.recipe.net}, seeds {', '.join(str(z.seed) for z in zoos)}"
    Console(width=None if sys.stdout.isatty() else steps.WIDTH).print(told.table(found.rows, title))
    for line in told.lines(found.document):
        steps.say(line)
    command = shlex.join(["glasslab", *sys.argv[1:]])
    manifest = provenance(seed=zoos[0].seed, device=zoos[0].device, command=command)
    document = {"manifest": manifest | {"seconds": perf_counter() - start}} | found.document
    figures = {"roc.png": told.roc(found.scores, found.truth, title)}
    if found.rho is not None:
        w, lira = (told.of_records(found.scores[name], found.truth) for name in ("W", "lira"))
        figures["rho.png"] = told.gains(found.rho, w - lira, title)
    told.keep(folder, document, dict(found.scores) | {"truth": found.truth}, figures)
    steps.say(f"{folder}: open_problem.json, scores.safetensors, {', '.join(figures)}")
    return 0


def estimate(zoo: Zoo) -> float:
    """Seconds that the signals of one zoo take here, by one system of equations that is solved now."""
    n, t, m = len(zoo.pool), len(zoo.target_member), len(zoo.shadow_member)
    size = min(n, PROBE)
    A = torch.eye(size, dtype=torch.float64) * 2
    with one_thread():
        torch.linalg.cholesky(A)
        start = perf_counter()
        torch.linalg.cholesky(A)
        one = (perf_counter() - start) * (n / size) ** 3
    decoded = t + len(players(m, W.players))
    # a factorisation for each of four duals; a round of decoding is worth four
    return one * (4 * (m + t) + 2 * 4 * sum(law.rounds for law in W.laws) * decoded)


def _models(zoo: Zoo) -> int:
    return len(zoo.shadow_member) + len(zoo.target_member)
