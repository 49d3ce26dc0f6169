"""How far is the nearest other class, and how much does the loss bend? Both read off input gradients.

Distance: Del Grosso et al. 2022, arXiv:2203.09566, found by DeepFool (Moosavi-Dezfooli et al. 2016,
arXiv:1511.04599). Curvature: Ravikumar et al. 2024, arXiv:2407.02747. The attacker has the weights.
distance: |delta| of the smallest perturbation that changes the label, 0 where x is misclassified.
curvature: -log tr Hess_x loss. With d_c = grad_x (z_c - z_y), q = softmax of the wrong logits and
m = sum_c q_c d_c, the trace is sigma(-phi) (sum_c q_c |d_c - m|^2 + sigma(phi) |m|^2), which cancels nowhere;
of a net that is not piecewise linear it is the trace of the Gauss-Newton matrix. Higher = member.
"""

import warnings
from collections.abc import Iterator
from typing import Final, Literal

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from glasslab.checks import Floored
from whitebox.gradients import check_eval

Norm = Literal[2, "inf"]

OPEN: Final = (-1e12, 1e12)  # the box of who gives none
NUDGE: Final = 1e-4  # of every step, as in the authors' code: a step of length 0 would stay on the boundary
DOUBLINGS: Final = 10
HALVINGS: Final = 60
LEAST: Final = torch.finfo(torch.float64).tiny  # of the trace without its sigma(-phi)


def distance(
    model: nn.Module,
    x: Float[Tensor, "n *d"],
    y: Int[Tensor, "n"],
    *,
    steps: int = 50,
    overshoot: float = 0.02,
    norm: Norm = 2,
    box: tuple[float, float] | None = None,
    tolerance: float = 1e-4,
    classes: int = 10,
    batch: int = 128,
) -> Float64[Tensor, "n"]:
    """Length of the smallest perturbation found that changes the label, in units of x; 0 where it is not y.

    At most `steps` of DeepFool towards the nearest of the `classes` wrong ones of the highest logits (one
    that has not arrived goes straight on, up to 2^10 times as far), then a binary search on the line back,
    to a share `tolerance`. `box` is the lowest and the highest value of a feature (default: no limit). Where
    no other label is found it is the distance of the box's farthest corner (1e12 a feature without a box); a
    Floored warning counts these. Costs up to `classes` input gradients a step.
    Raises ValueError on a model in training mode, labels that it does not know, NaN or infinite values, x
    outside the box, and settings that are out of range.
    """
    for name, value in (("steps", steps), ("classes", classes), ("batch", batch)):
        if value < 1:
            raise ValueError(f"{name} must be 1 or more, got {value}")
    if overshoot < 0 or not 0 < tolerance < 1:
        raise ValueError(f"overshoot must be 0+ and tolerance in (0, 1), got {overshoot} and {tolerance}")
    if norm not in (2, "inf"):
        raise ValueError(f"norm must be 2 or 'inf', got {norm!r}")
    low, high = box = OPEN if box is None else box
    label = _logits(model, x, y, batch).argmax(1)
    if not low < high or bool((x < low).any()) or bool((x > high).any()):
        held = f"{float(x.min()):g} .. {float(x.max()):g}"
        raise ValueError(f"box must hold x, {held}, and have width, got {low:g} .. {high:g}")
    out = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    right = (label == y).nonzero().squeeze(1)
    x, y = x[right], y[right]
    far, found = _deepfool(model, x, y, steps, overshoot, norm, box, classes, batch)
    line = (far - x).double().flatten(1)
    share = _search(model, x, line, y, found, tolerance, batch)
    corner = torch.maximum(x - low, high - x).double().flatten(1)
    if lost := int((~found).sum()):
        warnings.warn(f"{lost} of {len(out)} distances are the farthest corner's: no boundary", Floored, 2)
    order = 2 if norm == 2 else torch.inf
    out[right] = torch.where(found, share * line.norm(order, 1), corner.norm(order, 1))
    return out


def curvature(
    model: nn.Module, x: Float[Tensor, "n *d"], y: Int[Tensor, "n"], *, batch: int = 128
) -> Float64[Tensor, "n"]:
    """Minus the log of the trace of the loss's Hessian in x: flat is high. Nats, x in its own units.

    Costs one input gradient a wrong class. A record whose gradients are all 0 has no finite one: it gets the
    floor of `flatness`, and is counted in a Floored warning.
    Raises ValueError on a model in training mode, labels that it does not know, NaN or infinite values.
    """
    phi, bent = _bent(model, x, y, batch)
    return -(logsigmoid(-phi) + _floored_log(bent))


def flatness(
    model: nn.Module, x: Float[Tensor, "n *d"], y: Int[Tensor, "n"], *, batch: int = 128
) -> Float64[Tensor, "n"]:
    """What of `curvature` takes weights: -log of the trace without sigma(-phi), which logits tell.

    Where all gradients are 0 it is -log of the smallest normal float64, 708.4. Raises as `curvature` does.
    """
    return -_floored_log(_bent(model, x, y, batch)[1])


def _bent(
    model: nn.Module, x: Float[Tensor, "n *d"], y: Int[Tensor, "n"], batch: int
) -> tuple[Float64[Tensor, "n"], Float64[Tensor, "n"]]:
    """phi, and sum_c q_c |d_c - m|^2 + sigma(phi) |m|^2, in one pass over the classes."""
    z = _logits(model, x, y, batch)
    gaps = z.scatter(1, y[:, None].long(), -torch.inf) - z.gather(1, y[:, None].long())
    phi, out = -gaps.logsumexp(1), []
    for rows, goal, at in zip(x.split(batch), y.split(batch), phi.split(batch), strict=True):
        m = torch.zeros_like(rows, dtype=torch.float64).flatten(1)
        total, spread = torch.zeros_like(at), torch.zeros_like(at)
        for gap, d in _towards(model, rows, goal, z.shape[1], batch):
            q, before = (gap + at).exp(), total
            total = before + q
            d = d - m
            m = m + (q / total)[:, None] * d
            # A running variance: the mean of squares less the square of the mean cancels to 0 at phi = 20.
            spread = spread + q * (before / total) * d.square().sum(1)
        out.append(spread + at.sigmoid() * m.square().sum(1))
    return phi, torch.cat(out)


def _floored_log(bent: Float64[Tensor, "n"]) -> Float64[Tensor, "n"]:
    if flat := int((bent < LEAST).sum()):
        warnings.warn(f"{flat} of {len(bent)} records have no input gradient: flatness floored", Floored, 3)
    return bent.clamp(min=LEAST).log()


def _deepfool(
    model: nn.Module,
    x: Float[Tensor, "n *d"],
    y: Int[Tensor, "n"],
    steps: int,
    overshoot: float,
    norm: Norm,
    box: tuple[float, float],
    classes: int,
    batch: int,
) -> tuple[Float[Tensor, "n *d"], Bool[Tensor, "n"]]:
    """The last point of each record, and whether it has another label there."""
    far, walked = x.clone(), torch.zeros_like(x, dtype=torch.float64)
    found = torch.zeros_like(y, dtype=torch.bool)
    moving = ~found
    for i in range(steps + DOUBLINGS):
        # DIFFERS: a walk that stalls, as between three classes, goes straight on; the authors' code gives up.
        moving = ~found if i == steps else moving
        if not len(on := moving.nonzero().squeeze(1)):
            continue
        step = walked[on] if i >= steps else _step(model, far[on], y[on], norm, classes, batch)
        walked[on] += step
        far[on] = (x[on] + (1 + overshoot) * walked[on]).clamp(*box).to(x)
        found[on] = _outputs(model, far[on], batch).argmax(1) != y[on]
        moving[on] = ~found[on] & (step != 0).flatten(1).any(1)
    return far, found


def _step(
    model: nn.Module,
    p: Float[Tensor, "b *d"],
    y: Int[Tensor, "b"],
    norm: Norm,
    classes: int,
    batch: int,
) -> Float64[Tensor, "b *d"]:
    """To the nearest boundary of the net made linear at p; 0 where no logit changes with the input."""
    if len(p) > batch:
        parts = zip(p.split(batch), y.split(batch), strict=True)
        return torch.cat([_step(model, *part, norm, classes, batch) for part in parts])
    step, best = torch.zeros_like(p, dtype=torch.float64).flatten(1), p.new_full(y.shape, torch.inf).double()
    for gap, w in _towards(model, p, y, classes, batch):
        size = w.norm(dim=1) if norm == 2 else w.abs().sum(1)
        reach = torch.where(size > 0, gap.abs() / size, torch.inf)
        nearer = reach < best
        along = w / size.clamp(min=LEAST)[:, None] if norm == 2 else w.sign()
        step[nearer] = (reach + NUDGE)[nearer, None] * along[nearer]
        best = torch.where(nearer, reach, best)
    return step.view(p.shape)


def _search(
    model: nn.Module,
    x: Float[Tensor, "n *d"],
    line: Float64[Tensor, "n e"],
    y: Int[Tensor, "n"],
    found: Bool[Tensor, "n"],
    tolerance: float,
    batch: int,
) -> Float64[Tensor, "n"]:
    """The smallest share of its line found at which a record has another label."""
    low = torch.zeros_like(y, dtype=torch.float64)
    high = torch.ones_like(low)
    for _ in range(HALVINGS):
        if not len(on := (found & (high - low > tolerance * high)).nonzero().squeeze(1)):
            break
        middle = (low[on] + high[on]) / 2
        at = x[on].double() + (middle[:, None] * line[on]).view(x[on].shape)
        other = _outputs(model, at.to(x), batch).argmax(1) != y[on]
        high[on[other]], low[on[~other]] = middle[other], middle[~other]
    return high


def _towards(
    model: nn.Module, x: Float[Tensor, "b *d"], y: Int[Tensor, "b"], classes: int, batch: int
) -> Iterator[tuple[Float64[Tensor, "b"], Float64[Tensor, "b e"]]]:
    """z_c - z_y and its gradient in x, one wrong class c a record at a time, highest logit first."""
    with torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
        rows = _filled(model, x, batch).detach().requires_grad_()
        z = model(rows.clone())[: len(x)]  # a copy: a net may begin with a layer in place
    own = y[:, None].long().to(z.device)
    wrong = z.detach().double().scatter(1, own, -torch.inf)
    top, ranked = wrong.topk(min(classes, z.shape[1] - 1), dim=1)
    gaps = (top - z.detach().double().gather(1, own)).to(x.device)
    for gap, c in zip(gaps.T, ranked.T, strict=True):
        weight = torch.zeros_like(z).scatter(1, c[:, None], 1.0).scatter(1, own, -1.0)
        w = None
        if z.requires_grad:
            (w,) = torch.autograd.grad(z, rows, weight, retain_graph=True, allow_unused=True)
        w = torch.zeros_like(rows) if w is None else w
        yield gap, w[: len(x)].flatten(1).double().to(x.device)


@torch.no_grad()
def _outputs(model: nn.Module, x: Float[Tensor, "b *d"], batch: int) -> Float64[Tensor, "b c"]:
    with torch.autocast(x.device.type, enabled=False):
        z = [model(_filled(model, rows, batch))[: len(rows)] for rows in x.split(batch)]
    return torch.cat(z).double().to(x.device)


def _filled(model: nn.Module, x: Float[Tensor, "b *d"], batch: int) -> Float[Tensor, "{batch} *d"]:
    """Always `batch` rows, so that a record's answer does not depend on how many others are still moving."""
    held = next(model.parameters(), x)
    return torch.cat([x, x.new_zeros(batch - len(x), *x.shape[1:])]).to(held.device, held.dtype)


def _logits(model: nn.Module, x: Float[Tensor, "n *d"], y: Int[Tensor, "n"], batch: int) -> Tensor:
    """Raises ValueError where model, x or y will not do."""
    check_eval(model)
    if bad := int((~x.isfinite()).sum()):
        raise ValueError(f"x must be finite, got {bad} NaN or infinite values")
    z = _outputs(model, x, batch)
    c = z.shape[1]
    if c < 2 or int(y.min()) < 0 or int(y.max()) >= c:
        raise ValueError(f"y must lie in 0 .. {c - 1}, got labels from {int(y.min())} to {int(y.max())}")
    return z
