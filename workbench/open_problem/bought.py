"""What W's seconds would have bought: LiRA with as many further shadows as they train."""

import warnings
from dataclasses import replace

from jaxtyping import Float64
from torch import Tensor

from glasslab.likelihood import Rule, fit, ratio
from glasslab.signals import phi
from glasslab.train import estimate, rows_at_once
from glasslab.zoo import Zoo
from workbench.evidence import one_thread
from workbench.open_problem.judged import LIRA, WHITE
from workbench.open_problem.scores import Scored

NAME = "lira-bought"


def with_bought(zoo: Zoo, found: Scored, *, show: bool = True) -> Scored:
    """With one more row of scores. The shadows join the zoo on disk, and are trained once."""
    m, net, recipe = len(zoo.shadow_member), zoo.design.net, zoo.recipe
    rows = rows_at_once(recipe)
    each = estimate(net, recipe, zoo.pool.x, zoo.pool.y, rows, zoo.device) / rows
    q = m + affordable(found.seconds[WHITE], each)
    score = lira(zoo.extend(shadows=q, progress=show), q, found.rule)
    seconds = {NAME: found.seconds[LIRA] + (q - m) * each}
    return replace(
        found,
        scores=found.scores | {NAME: score},
        seconds={**found.seconds, **seconds},
        shadows={**found.shadows, NAME: q},
    )


def affordable(seconds: float, each: float) -> int:
    """Whole pairs of shadows, of `each` so many seconds."""
    return int(seconds / (2 * each)) * 2


def lira(zoo: Zoo, m: int, rule: Rule) -> Float64[Tensor, "t n"]:
    """Online, with the zoo's first m shadows."""
    S, s = (phi(zoo.answers(kind)[:, :, 0], zoo.pool.y) for kind in ("shadow", "target"))
    with one_thread(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ratio(s, fit(S[:m], zoo.shadow_member[:m], variance=rule))
