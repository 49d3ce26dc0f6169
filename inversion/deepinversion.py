"""DeepInversion (Yin et al. 2020, arXiv:1912.08795): BatchNorm's running statistics as a prior for images.

The attacker has: the target itself, which must have BatchNorm layers, and no image. All images are found at
once, by Adam from noise, each step on a view of the batch, shifted and mirrored at random. Minimised is
    CE + tv TV + l2 mean_i ||x_i||_2 + bn sum_l w_l (||mu_l(x) - m_l||_2 + ||var_l(x) - v_l||_2),
mu_l, var_l: mean and biased variance of what enters layer l, over batch and space; m_l, v_l: its running
statistics; w_l = `first` for the layer that is called first, 1 for the others; no norm is squared.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from jaxtyping import Float, Float64, Int
from torch import Generator, Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.modules.batchnorm import _BatchNorm

from glasslab.split import stream
from inversion.result import Inversion

Norm = Literal["l2", "l1"]
Seen = list[tuple[_BatchNorm, Tensor]]  # layers with their inputs, in the order of their calls

FEWEST = 8  # images of a batch, below which its statistics mean nothing


def deepinversion(
    model: nn.Module,
    y: Int[Tensor, "c"],
    *,
    shape: tuple[int, int, int],
    steps: int = 2000,
    lr: float = 0.1,
    tv: float = 1e-4,
    tv_norm: Norm = "l2",
    l2: float = 0.0,
    bn: float = 10.0,
    first: float = 10.0,
    shift: int = 2,
    flip: bool = True,
    clip: tuple[float, float] | None = None,
    seed: int = 0,
    watch: int = 0,
) -> Inversion:
    """One image a label of y, from channels, height and width; y may repeat labels, and should mix them.

    The images depend on each other through the statistics of the batch: what comes back is the whole batch
    of lowest cost over all steps, each with that cost; confidence is that of the image as it is, in the curve
    that of the view. A cost that is not finite ends the batch as `diverged`. No query: the weights are known.
    Start is uniform noise in [0, 1]; `clip` keeps pixels in a range after every step.
    Raises ValueError on a model in training mode or without running statistics of BatchNorm, on fewer than
    8 labels, labels that the model does not have, and on shapes other than [channels, height, width].
    """
    _check(model, y, shape, steps, shift)
    like, generator = next(model.parameters()), stream(seed, "deepinversion")
    x = torch.rand((len(y), *shape), generator=generator).to(like).requires_grad_()
    goal, adam, curve = y.to(x.device).long(), torch.optim.Adam([x], lr=lr), []
    best, lowest, reason, made = x.detach().clone(), torch.inf, "max_iter", 0
    with torch.enable_grad(), torch.autocast(x.device.type, enabled=False), watched(model) as seen:
        for made in range(steps + 1):
            view = _view(x, shift, flip, generator)
            seen.clear()
            z = _logits(model, view, goal)
            prior = l2 * view.flatten(1).norm(dim=1).double().mean() + tv * variation(view, tv_norm)
            cost = cross_entropy(z, goal) + prior + bn * _gap(seen, first)
            if not cost.isfinite():
                reason = "diverged"
                break
            if cost.item() < lowest:  # of the x that has this cost, not of the one after the step
                lowest, best = cost.item(), x.detach().clone()
            if watch and made and made % watch == 0:
                curve.append(_own(z, goal))
            if made == steps:
                break
            x.grad = torch.autograd.grad(cost, x)[0]  # of x alone: the weights keep their gradients
            adam.step()
            if clip is not None:
                x.data.clamp_(*clip)
    return _result(model, best, y, lowest, made, reason, curve)


def _result(
    model: nn.Module,
    x: Float[Tensor, "c h w k"],
    y: Int[Tensor, "c"],
    cost: float,
    steps: int,
    reason: str,
    curve: list[Tensor],
) -> Inversion:
    """The batch with what it has in common: cost, steps, the reason to stop."""
    goal = y.to(x.device).long()
    with torch.no_grad():
        confidence = _own(_logits(model, x, goal), goal)
    count = torch.full((len(y),), steps, device=y.device)
    return Inversion(
        x=x.to(y.device),
        y=y,
        cost=torch.full((len(y),), cost, dtype=torch.float64, device=y.device),
        confidence=confidence.to(y.device),
        steps=count,
        queries=torch.zeros_like(count),
        stop_reason=(reason,) * len(y),
        curve=torch.stack(curve).to(y.device) if curve else None,
    )


def statistic(model: nn.Module, x: Float[Tensor, "b *d"], *, first: float = 10.0) -> Float64[Tensor, ""]:
    """How far the batch's statistics are from the running ones, summed over BatchNorm layers; 0 where equal.

    Differentiable in x. Raises ValueError as `deepinversion` does on models.
    """
    _layers(model)
    with watched(model) as seen:
        model(x)
    return _gap(seen, first)


def variation(x: Float[Tensor, "b c h w"], norm: Norm = "l2") -> Float64[Tensor, ""]:
    """Differences right, down and along both diagonals, mean of the four: L2 norms over the whole batch, or
    means of absolute values."""
    right, down = x[..., :, 1:] - x[..., :, :-1], x[..., 1:, :] - x[..., :-1, :]
    falling, rising = x[..., 1:, 1:] - x[..., :-1, :-1], x[..., 1:, :-1] - x[..., :-1, 1:]
    size = torch.linalg.vector_norm if norm == "l2" else lambda d: d.abs().mean()
    return torch.stack([size(d.double()) for d in (right, down, falling, rising)]).mean()


@contextmanager
def watched(model: nn.Module) -> Iterator[Seen]:
    """A list that fills with what enters each BatchNorm layer; its hooks go when the block ends, or fails."""
    seen: Seen = []

    def keep(layer: nn.Module, entered: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, _BatchNorm)
        seen.append((layer, entered[0]))

    hooks = [layer.register_forward_pre_hook(keep) for layer in _layers(model)]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _gap(seen: Seen, first: float) -> Float64[Tensor, ""]:
    """Sum over calls; the first layer is the one called first, wherever the model names it."""
    total = torch.zeros((), dtype=torch.float64, device=seen[0][1].device)
    for i, (layer, a) in enumerate(seen):
        assert layer.running_mean is not None
        assert layer.running_var is not None
        rows = a.transpose(0, 1).flatten(1).double()  # [channels, batch and space]
        mean = rows.mean(1) - layer.running_mean.double()
        var = rows.var(1, correction=0) - layer.running_var.double()
        total = total + (first if i == 0 else 1.0) * (_length(mean) + _length(var))
    return total


def _length(d: Float64[Tensor, "k"]) -> Float64[Tensor, ""]:
    return torch.linalg.vector_norm(d)  # its gradient at 0 is 0, where that of a root of squares is NaN


def _view(x: Tensor, shift: int, flip: bool, generator: Generator) -> Tensor:
    """The batch rolled by up to `shift` pixels each way and, every other time, mirrored: all images alike."""
    down, right = torch.randint(-shift, shift + 1, (2,), generator=generator).tolist()
    mirror = bool(torch.rand(1, generator=generator) < 0.5) and flip
    view = x.roll((down, right), (-2, -1))
    return view.flip(-1) if mirror else view


def _logits(model: nn.Module, x: Tensor, y: Tensor) -> Float64[Tensor, "c k"]:
    z = model(x).double()
    if int(y.max()) >= z.shape[1]:
        raise ValueError(f"y must hold labels from 0 to {z.shape[1] - 1}, got {int(y.max())}")
    return z


def _own(z: Float64[Tensor, "c k"], y: Tensor) -> Float64[Tensor, "c"]:
    """The probability of each image's label."""
    return z.detach().softmax(1).gather(1, y[:, None])[:, 0]


def _layers(model: nn.Module) -> list[_BatchNorm]:
    if any(layer.training for layer in model.modules()):
        raise ValueError("model must be in eval mode, got training mode")
    found = [layer for layer in model.modules() if isinstance(layer, _BatchNorm)]
    if not found:
        raise ValueError("model must have BatchNorm layers, got none")
    if bare := sum(layer.running_mean is None or layer.running_var is None for layer in found):
        raise ValueError(f"model must keep running statistics, got {bare} BatchNorm layers without")
    return found


def _check(model: nn.Module, y: Tensor, shape: tuple[int, ...], steps: int, shift: int) -> None:
    _layers(model)
    if len(y) < FEWEST:
        raise ValueError(f"y must hold {FEWEST}+ labels, whose batch has statistics, got {len(y)}")
    if int(y.min()) < 0:
        raise ValueError(f"y must hold labels from 0, got {int(y.min())}")
    if len(shape) != 3:
        raise ValueError(f"shape must be channels, height and width, got {[*shape]}")
    if steps < 0:
        raise ValueError(f"steps must be 0 or more, got {steps}")
    if not 0 <= shift < min(shape[1:]):
        raise ValueError(f"shift must be from 0 to {min(shape[1:]) - 1} pixels, got {shift}")
