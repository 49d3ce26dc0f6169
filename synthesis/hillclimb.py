"""Model-based synthesis (Shokri et al. 2017, arXiv:1610.05820, Algorithm 1): records the target is sure of.

The attacker has: the target's answers, and what values a feature may have. From a random record on, k
features are changed at random; the new record is kept where the target's probability y_c of the wanted class
did not fall. Once y_c > conf_min and c is the most probable class, it is returned with probability y_c.
"""

import math
from typing import Literal, TypedDict

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from glasslab.oracle import Oracle
from glasslab.split import subseed
from synthesis.climb import SAMPLED, Climb, Draws, Moves, Rule, Tick
from synthesis.features import Features, check_legal, flips, plain, resolved, units
from synthesis.synthetic import REASONS, Synthetic, named


class Preset(TypedDict):
    k_max: int
    k_min: int
    rej_max: int
    conf_min: float
    iter_max: int


PRESETS: dict[str, Preset] = {
    "shokri2017_purchase": {"k_max": 128, "k_min": 4, "rej_max": 10, "conf_min": 0.2, "iter_max": 1000},
}
NOTES: dict[str, str] = {  # for a command's help
    "shokri2017_purchase": "for 600 binary features, after Shokri et al. 2017, from memory and not checked "
    "against the paper; iter_max is ours",
}


def hillclimb(
    oracle: Oracle,
    labels: Int[Tensor, "w"],
    features: Features,
    *,
    shape: tuple[int, ...],
    k_max: int | None = None,
    k_min: int | None = None,
    rej_max: int = 10,
    conf_min: float | int = 0.2,
    iter_max: int = 1000,
    change: Literal["flip", "resample"] = "flip",
    start: Literal["random", "marginals"] | Float[Tensor, "r *d"] = "random",
    seed: int = 0,
    batch: int = 1000,
    tick: Tick | None = None,
) -> Synthetic:
    """One record of `shape` a wanted label, or the reason why there is none; one query a chain a round.

    k_max is a quarter of the features and k_min one in 128 of them where None. `flip` turns binary features
    and redraws the others, `resample` redraws all. start: uniform records, or draws from the features'
    marginals, or given records (chain i begins at record i, and round again). Redrawn values come from the
    marginals too, unless start is "random".

    reason: sampled, exhausted (iter_max queries), budget (of the oracle, never exceeded), invalid (the answer
    is NaN or outside [0, 1]), interrupted (Ctrl-C, which is caught: what is finished is returned, and whoever
    wants to stop looks for this reason). A label-only answer counts as y_c = 1 or 0.
    `batch` chains run at a time, on the device of `labels`; `tick` is told of every round.
    Raises ValueError on settings out of range, and on an invalid answer before any chain has finished.
    """
    d, device = math.prod(shape), labels.device
    full = resolved(features, d, device)
    unit = units(full).to(device)
    u = int(unit.max()) + 1
    k_max = math.ceil(u / 4) if k_max is None else k_max
    k_min = min(max(1, u // 128), k_max) if k_min is None else k_min
    rule = Rule(k_max, k_min, rej_max, conf_min, iter_max)
    _check(rule, labels, u, batch, change)
    if isinstance(start, str) and start not in ("random", "marginals"):
        raise ValueError(f"start must be 'random', 'marginals' or records, got {start!r}")
    if isinstance(start, str) and start == "marginals" and not all(f.known for f in full):
        raise ValueError("start must be 'random' or records where a feature has no marginal, got 'marginals'")
    records = None if isinstance(start, str) else _records(full, start, shape, device)
    turned = flips(full).to(device)
    bits = bool(turned.all())
    turned = turned if change == "flip" else torch.zeros_like(turned)
    drawn = plain(full) if isinstance(start, str) and start == "random" else full
    generator = Generator(device).manual_seed(subseed(seed, "hillclimb"))
    draws = Draws(drawn, drawn, u, generator, records)
    climb = Climb(oracle, labels, shape, rule, Moves(unit, turned, bits), draws, batch)
    climb.run(tick)
    settings = {"labels": labels, "features": full, "rule": rule, "change": change, "start": start}
    return _synthetic(climb, named("hillclimb", {**settings, "seed": seed, "batch": batch}))


def _records(
    full: Features, start: Tensor, shape: tuple[int, ...], device: torch.device
) -> Float[Tensor, "r d"]:
    if tuple(start.shape[1:]) != shape or not len(start):
        raise ValueError(f"start must hold records of shape {[*shape]}, got {[*start.shape]}")
    flat = start.to(device, torch.float32).reshape(len(start), -1)
    check_legal(full, flat, "start")
    return flat


def _synthetic(climb: Climb, method: str) -> Synthetic:
    labels, device = climb.labels, climb.labels.device
    empty = torch.zeros(0, math.prod(climb.shape), device=device)
    ids = torch.cat([labels[:0], *(ids for ids, _, _ in climb.made)])
    x = torch.cat([empty, *(x.float() for _, x, _ in climb.made)])
    y = torch.cat([empty[:, :0].sum(1).double(), *(y for _, _, y in climb.made)])
    order = ids.argsort()
    return Synthetic(
        x=x[order].reshape(-1, *climb.shape),
        y=labels[ids[order]],
        confidence=y[order],
        wanted=labels,
        success=climb.reason == SAMPLED,
        queries=climb.queries,
        reason=tuple(REASONS[r] for r in climb.reason.tolist()),
        method=method,
    )


def _check(rule: Rule, labels: Tensor, u: int, batch: int, change: str) -> None:
    if not len(labels) or labels.is_floating_point() or int(labels.min()) < 0:
        raise ValueError(f"labels must be one or more class numbers from 0, got {labels.tolist()[:5]}")
    if not 1 <= rule.k_min <= rule.k_max <= u:
        raise ValueError(
            f"k must have 1 <= k_min <= k_max <= {u} features, got {rule.k_min} and {rule.k_max}"
        )
    if rule.rej_max < 0 or rule.iter_max < 1 or batch < 1:
        raise ValueError(
            f"rej_max must be 0 or more, iter_max and batch 1 or more, got {rule.rej_max}, {rule.iter_max} "
            f"and {batch}"
        )
    if not 0 <= rule.conf_min <= 1:
        raise ValueError(f"conf_min must lie in [0, 1], got {rule.conf_min}")
    if change not in ("flip", "resample"):
        raise ValueError(f"change must be 'flip' or 'resample', got {change!r}")
