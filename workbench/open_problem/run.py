"""The protocol on zoos of one recipe, one a seed: signals, scores, ratios, controls, costs; resumable."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Bool, Float64
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from glasslab.bootstrap import DRAWS
from glasslab.recipe import Recipe
from glasslab.zoo import Zoo
from whitebox.score_test import Rho
from workbench.open_problem import judged
from workbench.open_problem.bought import with_bought
from workbench.open_problem.frozen import TRIED, Config
from workbench.open_problem.frozen import W as FROZEN
from workbench.open_problem.parts import LEAST, parts
from workbench.open_problem.positive import positive
from workbench.open_problem.scores import Scored, scored


@dataclass(frozen=True, eq=False)
class Answer:
    """What the protocol found; `document` is what goes to disk, `scores` the first seed's."""

    document: dict[str, Any]
    rows: list[judged.Row]
    scores: Mapping[str, Float64[Tensor, "t n"]]
    truth: Bool[Tensor, "t n"]
    rho: Float64[Tensor, "n"] | None


def check(recipe: Recipe, m: int, t: int) -> None:
    """Refuses, in one line, zoos that the protocol cannot be run on."""
    if m < LEAST or m % 4:
        raise ValueError(f"shadows must be {LEAST} or more and a multiple of 4 for open-problem, got {m}")
    if t < 2:
        raise ValueError(f"targets must be 2 or more for open-problem, got {t}")
    if not recipe.weight_decay > 0:
        raise ValueError("recipe must have a weight_decay above 0 for open-problem, got 0")


def answer(
    zoos: Sequence[Zoo],
    folder: str | Path,
    config: Config = FROZEN,
    *,
    draws: int = DRAWS,
    bought: bool = False,
    show: bool = True,
) -> Answer:
    """Runs it on zoos that differ in their seed alone. Signals that lie in `folder` are read, not remade.

    `bought` trains further shadows for as long as W's signals took, and adds LiRA with them. Raises
    ValueError as `check` does.
    """
    for zoo in zoos:
        check(zoo.recipe, len(zoo.shadow_member), len(zoo.target_member))
    found = [_scored(zoo, config, Path(folder), show) for zoo in zoos]
    if bought:
        found = [with_bought(zoo, one, show=show) for zoo, one in zip(zoos, found, strict=True)]
    truth = [zoo.target_member for zoo in zoos]
    seeds = [zoo.seed for zoo in zoos]
    rows = judged.table([f.scores for f in found], truth, seeds, draws=draws)
    seconds = {name: sum(f.seconds[name] for f in found) / len(found) for name in found[0].seconds}
    for row in rows:
        row["seconds"] = seconds.get(row["attack"])
        row["shadows"] = max(f.shadows[row["attack"]] for f in found)
    null = judged.table(
        [{k: f.scores[k] for k in ("lira", "B", "W")} for f in found],
        [judged.permuted(m, z.seed) for m, z in zip(truth, zoos, strict=True)],
        seeds,
        draws=draws,
    )
    n_neg = sum(int((~m).sum()) for m in truth) / len(truth)
    document = {
        "config": asdict(config),
        "configurations_tried": TRIED,
        "frozen": config == FROZEN,
        "verdict": judged.verdict(rows),
        "resolved": n_neg * 1e-3 >= 20,
        "n_neg": n_neg,
        "accuracy": [zoo.accuracy() for zoo in zoos],
        "seeds": seeds,
        "zoos": [zoo.key for zoo in zoos],
        "spread_rule_of_lira": [f.rule for f in found],
        "differences": [
            judged.differences(f.scores, m, z.seed, draws=draws)
            for f, m, z in zip(found, truth, zoos, strict=True)
        ],
        "rows": rows,
        "permuted_truth": null,
        "positive_control": dict(positive(draws=draws // 4)),  # 150,000 scores a draw
    }
    return Answer(document, rows, found[0].scores, truth[0], _rho(zoos[0]))


def _scored(zoo: Zoo, config: Config, folder: Path, show: bool) -> Scored:
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    total = len(zoo.shadow_member) + len(zoo.target_member)
    with Progress(*columns, console=Console(stderr=True), disable=not show, transient=True) as progress:
        task = progress.add_task(f"seed {zoo.seed}", total=total)

        def tick(what: str, left: int) -> None:
            progress.update(task, completed=total - left, description=f"seed {zoo.seed}: {what}")

        of_shadows, of_targets = parts(zoo, config, folder, tick)
    return scored(zoo, config, of_shadows, of_targets)


def _rho(zoo: Zoo) -> Float64[Tensor, "n"] | None:
    """rho(x) by the first target's last layer; None where that layer is too large for exact curvature."""
    try:
        x, y = zoo.pool.x.to(zoo.device), zoo.pool.y.to(zoo.device)
        return Rho(zoo.aux.to(zoo.device), ridge=0.05)(zoo.target(0), x, y).cpu()
    except ValueError:
        return None
