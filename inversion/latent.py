"""Descent in the latent space of a prior, batched over labels: what GMI, KEDMI and PLG-MI share.

The attacker holds the target's weights. Every row descends alone: costs are summed over the batch, never
averaged (a mean would divide the rate by the number of labels), and each row draws from a stream of its own.
The identity loss is one of `gan.LOSSES`; with `toward`, LOMMA's term (Nguyen et al. 2023, arXiv:2304.01669)
is added: feature_weight |f(x) - toward|^2, f the target's penultimate features.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor, nn

from glasslab.split import stream
from inversion.gan import LOSSES

Identity = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # images, labels -> loss, logits
Cost = Callable[[Tensor], tuple[Tensor, Tensor]]  # iterates -> cost, confidence; one number a row
Update = Callable[[Tensor, Tensor], Tensor]  # iterates, their slopes -> the next iterates


@dataclass(frozen=True, eq=False)
class Descent:
    """What is kept of each row: iterate, cost, confidence, steps taken, why it ended, confidence watched."""

    w: Float64[Tensor, "r *l"]
    cost: Float64[Tensor, "r"]
    confidence: Float64[Tensor, "r"]
    steps: Int[Tensor, "r"]
    stop_reason: tuple[str, ...]
    curve: Float64[Tensor, "k r"] | None


class Draws:
    """Standard normal numbers, one stream a row: by label, and by how often the label came before."""

    def __init__(self, seed: int, name: str, y: Int[Tensor, "r"]) -> None:
        seen: dict[int, int] = {}
        self.streams, self.device = [], y.device
        for label in y.tolist():
            self.streams.append(stream(seed, name, label, seen.get(label, 0)))
            seen[label] = seen.get(label, 0) + 1

    def __call__(self, latent: int) -> Float64[Tensor, "r {latent}"]:
        rows = [torch.randn(latent, generator=g, dtype=torch.float64) for g in self.streams]
        return torch.stack(rows).to(self.device)


def descend(
    cost: Cost, w: Float64[Tensor, "r *l"], update: Update, *, steps: int, last: bool, watch: int
) -> Descent:
    """`steps` updates of each row; keeps the iterate of least cost, or the `last` one where costs are noisy.

    A row whose cost or slope is not finite ends as `diverged`, with what it had; the others go on.
    """
    w = w.detach().clone()
    kept, least = w.clone(), torch.full((len(w),), torch.inf, dtype=torch.float64, device=w.device)
    sure, shown = torch.zeros_like(least), torch.zeros_like(least)
    active, taken, curve = torch.ones_like(least, dtype=torch.bool), torch.zeros_like(least).long(), []
    for i in range(steps + 1):
        leaf = w.detach().requires_grad_()
        with torch.enable_grad():
            value, p = cost(leaf)
            (slope,) = torch.autograd.grad(value.sum(), leaf)
        value, p = value.detach().double(), p.detach()
        active = active & value.isfinite() & slope.flatten(1).isfinite().all(1)
        better = active & ((value < least) | last)
        kept = torch.where(_as(better, w), w, kept)
        least, sure = torch.where(better, value, least), torch.where(better, p, sure)
        shown = torch.where(active, p, shown)
        if watch and i and i % watch == 0:
            curve.append(shown)
        if i < steps:
            w = update(w, slope).detach()  # a row that diverged goes on, but nothing of it is kept
            taken = taken + active
    reason = tuple("max_iter" if fine else "diverged" for fine in active.tolist())
    return Descent(kept, least, sure, taken, reason, torch.stack(curve) if curve else None)


def look_ahead(rate: float, momentum: float, clip: float | None) -> Update:
    """Momentum with look-ahead: v' = m v - rate g, w' = w - m v + (1 + m) v', then clipped to +-clip."""
    velocity: Tensor | None = None

    def update(w: Tensor, slope: Tensor) -> Tensor:
        nonlocal velocity
        before = torch.zeros_like(w) if velocity is None else velocity
        velocity = momentum * before - rate * slope
        w = w - momentum * before + (1 + momentum) * velocity
        return w if clip is None else w.clamp(-clip, clip)

    return update


def adam(rate: float) -> Update:
    """Adam (Kingma & Ba 2015) with its usual moments .9 and .999; row by row, since it is so by entry."""
    held: list[torch.optim.Adam] = []

    def update(w: Tensor, slope: Tensor) -> Tensor:
        if not held:
            held.append(torch.optim.Adam([w.clone().requires_grad_()], rate))
        (own,) = held[0].param_groups[0]["params"]
        own.grad = slope
        with torch.no_grad():
            own.copy_(w)
        held[0].step()
        return own.detach().clone()

    return update


def identity(
    model: nn.Module, loss: str, toward: Float[Tensor, "f"] | None = None, feature_weight: float = 0.1
) -> Identity:
    """(images, labels) -> loss a row, logits. ValueError on an unknown loss, training mode, bad labels."""
    if loss not in LOSSES:
        raise ValueError(f"loss must be one of {', '.join(LOSSES)}, got {loss!r}")
    if any(layer.training for layer in model.modules()):
        raise ValueError("model must be in eval mode, got training mode")

    def told(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        z, f = (model(x), None) if toward is None else features(model, x)
        if int(y.min()) < 0 or int(y.max()) >= z.shape[1]:
            raise ValueError(f"y must lie in 0 .. {z.shape[1] - 1}, got {int(y.min())} to {int(y.max())}")
        value = LOSSES[loss](z, y).double()
        if f is not None and toward is not None:
            value = value + feature_weight * (f - toward.to(f)).double().square().sum(1)
        return value, z

    return told


def features(model: nn.Module, x: Float[Tensor, "b *d"]) -> tuple[Float[Tensor, "b c"], Float[Tensor, "b f"]]:
    """Logits, and penultimate features: what the last linear layer reads. ValueError without such a layer."""
    linear = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    if not linear:
        raise ValueError("model must have a linear layer to have features, got none")
    seen: list[Tensor] = []
    handle = linear[-1].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    try:
        z = model(x)
    finally:
        handle.remove()
    return z, seen[-1].flatten(1)


@torch.no_grad()
def mean_feature(model: nn.Module, x_public: Float[Tensor, "n *d"]) -> Float[Tensor, "f"]:
    """The mean of the target's features on public images: LOMMA's `toward`. ValueError in training mode."""
    if any(layer.training for layer in model.modules()):
        raise ValueError("model must be in eval mode, got training mode")
    return torch.cat([features(model, rows)[1].double() for rows in x_public.split(128)]).mean(0)


def confidence(z: Float[Tensor, "r c"], y: Int[Tensor, "r"]) -> Float64[Tensor, "r"]:
    """The probability of y, in float64."""
    return z.double().softmax(1).gather(1, y[:, None])[:, 0]


def surest(p: Float64[Tensor, "r"], each: int) -> Int[Tensor, "c"]:
    """The row of highest confidence among the `each` rows of every label; a NaN is never the highest."""
    groups = p.nan_to_num(-1.0).reshape(-1, each)
    return groups.argmax(1) + each * torch.arange(len(groups), device=p.device)


def check_counts(steps: int, each: int, name: str) -> None:
    """ValueError unless steps >= 0 and `each`, the argument of that name, >= 1."""
    if steps < 0 or each < 1:
        raise ValueError(f"steps must be 0 or more and {name} 1 or more, got {steps} and {each}")


def _as(rows: Tensor, w: Tensor) -> Tensor:
    return rows.reshape(-1, *[1] * (w.ndim - 1))
