"""The descent that all labels make as one batch, each as if it were alone: Algorithm 1 without its settings.

One pass forward and one back a step: the probability that comes with the gradient of step i + 1 is the cost
of step i. Images that have stopped are frozen in place, and dropped once more than half have stopped.
"""

from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from glasslab.oracle import BudgetExceeded
from inversion.gradient import Gradient
from inversion.penalty import Penalty, none
from inversion.process import Process, identity

REASONS: Final = ("max_iter", "stall", "confidence", "literal_gamma", "diverged", "budget")
RESULT: Final = ("x", "f", "best_x", "best_f", "best_score", "on_best", "steps", "queries", "reason")
PATIENCE: Final = 16  # steps between two looks at what still runs, where a look waits for the device


@dataclass(eq=False)
class Images:
    """The state of a batch. `score` is higher for a lower cost; `ring` holds those of the window."""

    at: Tensor  # places in the whole batch
    y: Tensor
    x: Tensor
    g: Tensor
    f: Tensor
    ring: Tensor
    best_x: Tensor  # where the present x is not the best
    best_f: Tensor
    best_score: Tensor
    on_best: Tensor
    active: Tensor
    steps: Tensor
    queries: Tensor
    reason: Tensor

    def of(self, keep: Tensor) -> "Images":
        return Images(**{name: t[keep] for name, t in vars(self).items()})

    def put(self, some: "Images") -> None:
        for name in RESULT:
            getattr(self, name)[some.at] = getattr(some, name)


@dataclass(frozen=True, eq=False)
class Rule:
    gradient: Gradient
    penalty: Penalty
    process: Process
    process_every: int
    rate: float
    clip: tuple[float, float] | None
    target_confidence: float | None
    literal_gamma: float | None

    @property
    def price(self) -> int:
        return getattr(self.gradient, "price", 0)

    def cost(self, score: Float64[Tensor, "b"]) -> Float64[Tensor, "b"]:
        return 1 - score if self.penalty is none else -score

    def moved(self, x: Float[Tensor, "b *d"], g: Float[Tensor, "b *d"], i: int) -> Float[Tensor, "b *d"]:
        x = x.add(g, alpha=self.rate)
        if self.process is not identity and i % self.process_every == 0:
            x = self.process(x)
        return x if self.clip is None else x.clamp(*self.clip)

    def judged(self, x: Float[Tensor, "b *d"], y: Int[Tensor, "b"]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """f, the score, the direction in which it rises, and whose gradient of f is 0."""
        f, g = self.gradient(x, y)
        f = f.double()
        if self.penalty is none:
            return f, f, g, g  # not 1 - f: in float32 that would not move where f is near 0
        with torch.enable_grad():
            z = x.detach().requires_grad_()
            a = self.penalty(z)
            if a.shape != f.shape:
                raise ValueError(f"penalty must give one value an image, {[*f.shape]}, got {[*a.shape]}")
            pull = torch.autograd.grad(a.sum(), z)[0] if a.requires_grad else torch.zeros_like(z)
        return f, f - 1 - a.detach().double(), g - pull.to(g), g

    def reached(self, f: Tensor, score: Tensor) -> Tensor:
        """Whose goal is reached."""
        if self.literal_gamma is not None:
            return self.cost(score) <= self.literal_gamma
        return f >= (torch.inf if self.target_confidence is None else self.target_confidence)

    def stops(self, f: Tensor, score: Tensor, worst: Tensor) -> Tensor:
        """The place in REASONS, 0 for those that go on. A stall is looked for before the rest."""
        reason = torch.zeros_like(f, dtype=torch.int64)
        reason.masked_fill_(self.reached(f, score), 2 if self.literal_gamma is None else 3)
        return reason.masked_fill_(score <= worst, 1).masked_fill_(~score.isfinite(), 4)


def descend(
    rule: Rule, x: Tensor, y: Tensor, steps: int, window: int, watch: int
) -> tuple[Images, Float64[Tensor, "k c"], int]:
    """The last state of all images, the curve, and how many gradients at the start were 0."""
    whole = live = _fresh(x, y, window)
    curve: list[Tensor] = []
    flat, host = 0, x.device.type == "cpu"
    for i in range(steps + 1):
        if i and (host or rule.price or i % PATIENCE == 0):
            running = int(live.active.sum())
            if not running:
                break
            # Who pays asks for no image that has stopped; else a gather a step costs more than it saves.
            if running < len(live.at) and (rule.price or 2 * running < len(live.at)):
                if live is not whole:
                    whole.put(live)
                live = live.of(live.active)
        try:
            raw = _step(live, rule, i)
        except BudgetExceeded:
            live.reason.masked_fill_(live.active, REASONS.index("budget"))
            break
        flat = flat if i else int(((raw == 0).flatten(1).all(1) & live.active).sum())
        if watch and i and i % watch == 0:
            curve.append(whole.f.index_copy(0, live.at, live.f))
    if live is not whole:
        whole.put(live)
    k = -(-int(whole.steps.max()) // watch) if watch else 0
    curve += [whole.f] * (k - len(curve))
    return whole, torch.stack(curve[:k]) if k else whole.f.new_zeros(0, len(y)), flat


def _fresh(x: Tensor, y: Tensor, window: int) -> Images:
    c = len(x)
    blank = torch.full((c,), torch.nan, dtype=torch.float64, device=x.device)
    count = torch.zeros(c, dtype=torch.int64, device=x.device)
    yes = torch.ones_like(count, dtype=torch.bool)
    return Images(
        at=torch.arange(c, device=x.device),
        y=y,
        x=x,
        g=torch.zeros_like(x),
        f=blank,
        ring=torch.full((c, window), torch.inf, dtype=torch.float64, device=x.device),
        best_x=x.clone(),
        best_f=blank.clone(),
        best_score=torch.full_like(blank, -torch.inf),
        on_best=yes,
        active=yes.clone(),
        steps=count,
        queries=count.clone(),
        reason=count.clone(),
    )


def _step(a: Images, rule: Rule, i: int) -> Tensor:
    """Moves the active images, judges them once, stops some; gives the raw gradient. Step 0 only judges."""
    old, frozen = a.x, not bool(a.active.all()) if a.x.device.type == "cpu" else True
    x = rule.moved(old, a.g, i) if i else old
    if i and frozen:
        x = torch.where(over(a.active, x), x, old)  # a product with the mask would spread NaN
    f, score, a.g, raw = rule.judged(x, a.y)
    a.x = x
    if i and not frozen and bool((score > a.best_score).all()) and not bool(rule.reached(f, score).any()):
        # All run and all rose: none stalls, and each stands on its best. Most steps are of this kind.
        a.f, a.best_f, a.best_score = f.clone(), f.clone(), score.clone()
        a.on_best, a.steps, a.queries = a.active.clone(), a.steps + 1, a.queries + rule.price
        a.ring[:, i % a.ring.shape[1]] = score
        return raw
    better = a.active & (score > a.best_score)
    left = a.active & a.on_best & ~better  # who stood on the best, and climbed down
    if i and (x.device.type != "cpu" or bool(left.any())):
        a.best_x = torch.where(over(left, x), old, a.best_x)
    a.on_best = torch.where(a.active, better, a.on_best) if i else a.on_best
    a.best_f = torch.where(better, f, a.best_f)
    a.best_score = torch.where(better, score, a.best_score)
    a.f = torch.where(a.active & score.isfinite(), f, a.f)
    stop = rule.stops(f, score, a.ring.amin(1)) if i else 4 * (~score.isfinite()).long()
    a.ring[:, i % a.ring.shape[1]] = score
    a.steps = a.steps + a.active if i else a.steps
    a.queries = a.queries + rule.price * a.active
    a.reason = torch.where(a.active, stop, a.reason)
    a.active = a.active & (stop == 0)
    return raw


def over(mask: Tensor, x: Tensor) -> Tensor:
    return mask.reshape(-1, *[1] * (x.ndim - 1))
