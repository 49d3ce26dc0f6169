"""MI-FACE, inversion by gradient descent on the input (Fredrikson, Jha and Ristenpart 2015, Algorithm 1).

"Model Inversion Attacks that Exploit Confidence Information and Basic Countermeasures", CCS 2015.
The attacker has a label, and the gradient of the label's probability f: from the weights, or estimated from
answers. With c(x) = 1 - f(x) + penalty(x):

    x_i = PROCESS(x_{i-1} - rate grad c(x_{i-1})), i = 1 .. steps
    stop if c(x_i) >= max(c(x_{i-1}), ..., c(x_{i-window})), or if c(x_i) <= gamma
    return the x_i, x_0 among them, of the least c
"""

import warnings
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from glasslab.checks import Floored
from glasslab.data import Data
from glasslab.split import stream
from inversion.descent import REASONS, Rule, descend, over
from inversion.gradient import Gradient
from inversion.penalty import Penalty, none
from inversion.process import Process, identity
from inversion.result import Inversion

Start = Literal["zero", "grey", "public_mean", "noise"]


def miface(
    gradient: Gradient,
    y: Int[Tensor, "c"],
    *,
    shape: tuple[int, ...],
    steps: int = 5000,
    window: int = 100,
    rate: float = 0.1,
    target_confidence: float | None = 0.99,
    literal_gamma: float | None = None,
    start: Start | Float[Tensor, "*any"] = "zero",
    process: Process = identity,
    process_every: int = 1,
    penalty: Penalty = none,
    clip: tuple[float, float] | None = None,
    restarts: int = 1,
    seed: int = 0,
    aux: Data | Float[Tensor, "n *d"] | None = None,
    watch: int = 0,
) -> Inversion:
    """The best image of each label, as if each had been run alone.

    Stops at the confidence `target_confidence`; `literal_gamma` stops as printed, where the cost is at most
    gamma, and wants target_confidence=None. With both None only a stall ends a run early. `process` acts on
    every `process_every`-th step, `clip` after it. `public_mean` is the mean of `aux`; `noise` is uniform in
    [0, 1) and may be drawn `restarts` times, of which the least cost is kept. `watch` > 0 fills `curve`.
    The images have the dtype of the gradient's weights, else of a start given as a tensor, else float32.
    Warns Floored where gradients at the start are 0. Raises ValueError on settings out of their range, both
    stop rules at once, a start without what it needs, and a penalty that is not one value an image.
    """
    _check(y, steps, window, rate, target_confidence, literal_gamma, process_every, clip, restarts, watch)
    given = start.dtype if isinstance(start, Tensor) else torch.float32
    x = _starts(start, y, shape, restarts, seed, aux).to(y.device, getattr(gradient, "dtype", given))
    rule = Rule(gradient, penalty, process, process_every, rate, clip, target_confidence, literal_gamma)
    with torch.no_grad():
        found, curve, flat = descend(rule, x, y.repeat_interleave(restarts), steps, window, watch)
    if flat:
        warnings.warn(_remedy(flat, len(x), start, found.queries), Floored, stacklevel=2)
    cost = torch.where(found.best_f.isnan(), torch.nan, rule.cost(found.best_score))
    tries = cost.nan_to_num(torch.inf).reshape(-1, restarts)
    kept = torch.arange(len(y), device=y.device) * restarts + tries.argmin(1)
    return Inversion(
        x=torch.where(over(found.on_best, x), found.x, found.best_x)[kept],
        y=y.clone(),
        cost=cost[kept],
        confidence=found.best_f[kept],
        steps=found.steps[kept],
        queries=found.queries.reshape(-1, restarts).sum(1),
        stop_reason=tuple(REASONS[r] for r in found.reason[kept].tolist()),
        curve=curve[:, kept] if watch else None,
    )


def _remedy(flat: int, c: int, start: Any, queries: Tensor) -> str:
    said = f"{flat} of {c} gradients are 0"
    if bool(queries.any()):
        return f"{said}: answers are equal on either side, a mask may hide what moves; widen h or sigma"
    if isinstance(start, str) and start == "zero":
        return f"{said} at the zero start, as on nets with ReLU: use start='grey' or start='public_mean'"
    return f"{said} at the start: another start may help"


def _starts(
    start: Start | Tensor,
    y: Int[Tensor, "c"],
    shape: tuple[int, ...],
    restarts: int,
    seed: int,
    aux: Data | Tensor | None,
) -> Float[Tensor, "r *d"]:
    """A fresh start for each label and restart, label by label."""
    wide = len(y) * restarts
    if restarts > 1 and not (isinstance(start, str) and start == "noise"):
        raise ValueError(f"restarts must be 1 unless start is 'noise', got {restarts} with another start")
    if isinstance(start, Tensor):
        if tuple(start.shape) not in (shape, (len(y), *shape)):
            need = f"{[*shape]} or {[len(y), *shape]}"
            raise ValueError(f"start must be of shape {need}, got {[*start.shape]}")
        return start.detach().expand(wide, *shape).clone()
    if start == "zero":
        return torch.zeros(wide, *shape)
    if start == "grey":
        return torch.full((wide, *shape), 0.5)
    if start == "public_mean":
        if aux is None:
            raise ValueError("aux must hold public records for start 'public_mean', got None")
        records = aux.x if isinstance(aux, Data) else aux
        if tuple(records.shape[1:]) != shape:
            raise ValueError(f"aux must hold records of shape {[*shape]}, got {[*records.shape[1:]]}")
        return records.detach().double().mean(0).expand(wide, *shape).clone()
    if start == "noise":
        return torch.stack(_noise(y.tolist(), shape, restarts, seed))
    raise ValueError(f"start must be zero, grey, public_mean, noise or a tensor, got {start!r}")


def _noise(y: list[int], shape: tuple[int, ...], restarts: int, seed: int) -> list[Tensor]:
    """Drawn from (seed, label, how often it came before, restart): the other labels do not matter."""
    before = [y[:i].count(label) for i, label in enumerate(y)]
    draws = [
        stream(seed, "noise", label, k, r)
        for label, k in zip(y, before, strict=True)
        for r in range(restarts)
    ]
    return [torch.rand(shape, generator=g, dtype=torch.float64) for g in draws]


def _check(
    y: Tensor,
    steps: int,
    window: int,
    rate: float,
    target_confidence: float | None,
    literal_gamma: float | None,
    process_every: int,
    clip: tuple[float, float] | None,
    restarts: int,
    watch: int,
) -> None:
    counts = {"steps": steps, "window": window, "process_every": process_every, "restarts": restarts}
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{name} must be 1 or more, got {value}")
    if not len(y) or int(y.min()) < 0:
        raise ValueError(f"y must hold one or more labels from 0 on, got {y.tolist()}")
    if watch < 0:
        raise ValueError(f"watch must be 0 or more steps, got {watch}")
    if not 0 < rate < torch.inf:
        raise ValueError(f"rate must be above 0, got {rate}")
    if target_confidence is not None and literal_gamma is not None:
        raise ValueError(f"literal_gamma must come with target_confidence=None, got {target_confidence}")
    if target_confidence is not None and not 0 < target_confidence <= 1:
        raise ValueError(f"target_confidence must be above 0 and at most 1, got {target_confidence}")
    if clip is not None and not clip[0] < clip[1]:
        raise ValueError(f"clip must be (low, high) with low below high, got {clip}")
