"""SIF (Cohen & Giryes 2024, arXiv:2205.13680), as the authors' code has it. Holds: the weights.

I = -<g, r>, g = the gradient of a record's loss, r = a short recursion towards H^-1 g. The code takes for H
the Hessian of the loss at the record itself and, by default, one step of the recursion:
I = -(1.99 |g|^2 - g' H g / 25) / 25, a gradient norm less a curvature term, and no self-influence. Members
have I near 0. Score -log |I|. Higher = member.
With g = -s J, J = grad phi, s = sigma(-phi): H v = s (1 - s) J <J, v> - s (Hessian of phi) v, so that nothing
is lost where the model is sure.
"""

import math
from collections.abc import Callable, Iterator

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Generator, Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.functional import logsigmoid, pad

from glasslab import signals
from whitebox.gradients import check_eval
from whitebox.hooks import chunks

FAR = 1000.0  # nats: beyond the spread of log |I| among records that the model gets right
TINY = torch.finfo(torch.float64).tiny

Rows = dict[str, Tensor]  # parameter name -> [b, *shape]


def sif(
    model: nn.Module,
    x: Float[Tensor, "n *d"],
    y: Int[Tensor, "n"],
    *,
    adaptive: bool = False,
    depth: int | None = None,
    repeats: int | None = None,
    copies: int = 128,
    mistakes_out: bool = True,
    damping: float = 0.01,
    scale: float = 25.0,
    generator: Generator | None = None,
    memory: str = "512MiB",
) -> Float64[Tensor, "n"]:
    """-log |I| of the authors' self-influence I, in nats, and 1000 less where the model is wrong.

    r is g after `depth` steps of r <- g + (1 - damping) r - H r / scale, over `scale`; H is the Hessian of
    the loss at the record alone. With `adaptive` (images) every H is taken at a random crop and flip, r is
    the mean of `repeats` runs, and the g beside it the mean over `copies` crops and flips, which `generator`
    draws. Depth and repeats are 1 and 1, with `adaptive` 8 and 8. With `mistakes_out` misclassified records
    come below all others, as the authors have it. Raises ValueError in training mode, and where `adaptive`
    gets no images or no generator.
    """
    check_eval(model)
    if adaptive and (x.ndim != 4 or generator is None):
        raise ValueError(f"x must hold images, and generator be given, to be adaptive, got {[*x.shape[1:]]}")
    depth, repeats = depth or (8 if adaptive else 1), (repeats or 8) if adaptive else 1
    steps, draws = depth * repeats, None
    if adaptive:  # drawn for all records at once, so that chunks change nothing
        reach = torch.tensor([2 * (x.shape[2] // 8) + 1, 2 * (x.shape[3] // 8) + 1, 2])
        u = torch.rand(len(x), steps + copies, 3, generator=generator, dtype=torch.float64)
        draws = (u * reach).long().to(x.device)
    d, out, at = sum(p.numel() for p in model.parameters()), [], 0
    for rows, labels in chunks(model, x, y, memory, 64 * d):
        own, J, right = _slope(model, rows, labels)
        views = _views(rows, None if draws is None else draws[at : at + len(rows)], steps + copies)
        r = {name: torch.zeros_like(g) for name, g in J.items()}
        for _ in range(repeats):
            run = J
            for _ in range(depth):
                pulled = _pulled(model, next(views), labels, run)
                run = {n: J[n] + (1 - damping) * run[n] - pulled[n] / scale for n in J}
            r = {n: r[n] + run[n] / repeats for n in r}
        # DIFFERS: the authors fit an interval of I on known members; here it grows around 0, which they have.
        sides = [(own, J)]
        if adaptive:
            sides = [_slope(model, next(views), labels)[:2] for _ in range(copies)]
        most = torch.stack([share for share, _ in sides]).amax(0)
        beside = torch.stack([(share - most).exp() * _dot(g, r) for share, g in sides]).mean(0)
        size = own + most + beside.abs().clamp(min=TINY).log() - math.log(scale)
        out.append(-size - FAR * (~right).double() * mistakes_out)
        at += len(rows)
    return torch.cat(out).to(x.device)


def _slope(
    model: nn.Module, x: Float[Tensor, "b *d"], y: Int[Tensor, "b"]
) -> tuple[Float64[Tensor, "b"], Rows, Bool[Tensor, "b"]]:
    """log sigma(-phi), J in float64, and whether the model is right."""

    def one(held: Rows, x: Tensor, y: Tensor) -> tuple[Rows, Tensor]:
        return grad(_margin(model, x, y), has_aux=True)(held)

    J, z = vmap(one, (None, 0, 0))(_held(model), x, y)
    J = {name: g.double() for name, g in J.items()}
    return logsigmoid(-signals.phi(z, y)), J, signals.correct(z, y) > 0


def _pulled(model: nn.Module, x: Float[Tensor, "b *d"], y: Int[Tensor, "b"], v: Rows) -> Rows:
    """H v, with the Hessian of each record's loss."""

    def one(held: Rows, x: Tensor, y: Tensor, v: Rows) -> tuple[Rows, tuple[Rows, Tensor]]:
        def along(held: Rows) -> tuple[Tensor, tuple[Rows, Tensor]]:
            J, z = grad(_margin(model, x, y), has_aux=True)(held)
            return torch.stack([(J[name] * v[name]).sum() for name in J]).sum(), (J, z)

        return grad(along, has_aux=True)(held)

    held = _held(model)
    length = _dot(v, v).sqrt().clamp(min=TINY)  # float32 holds unit vectors only
    unit = {name: _times(1 / length, w).to(held[name]) for name, w in v.items()}
    bend, (J, z) = vmap(one, (None, 0, 0, 0))(held, x, y, unit)
    phi = signals.phi(z, y)
    s, along = (-phi).sigmoid(), _dot(J, unit)
    return {
        name: _times(length * s * phi.sigmoid() * along, J[name]) - _times(length * s, bend[name])
        for name in J
    }


def _margin(
    model: nn.Module, x: Float[Tensor, "*d"], y: Int[Tensor, ""]
) -> Callable[[Rows], tuple[Tensor, Tensor]]:
    """phi as a function of the parameters, and the logits beside it."""

    def phi(held: Rows) -> tuple[Tensor, Tensor]:
        z = functional_call(model, held, (x[None],))[0]
        own = torch.arange(len(z), device=z.device) == y
        return z.where(own, 0).sum() - z.masked_fill(own, -torch.inf).logsumexp(0), z

    return phi


def _held(model: nn.Module) -> Rows:
    return {name: p.detach() for name, p in model.named_parameters()}


def _dot(u: Rows, v: Rows) -> Float64[Tensor, "b"]:
    return torch.stack([(u[name].double() * v[name].double()).flatten(1).sum(1) for name in u]).sum(0)


def _times(k: Float64[Tensor, "b"], v: Tensor) -> Tensor:
    """Each record's rows times its own number, in float64."""
    return k.reshape(-1, *[1] * (v.ndim - 1)) * v.double()


def _views(x: Tensor, draws: Int[Tensor, "b v 3"] | None, count: int) -> Iterator[Tensor]:
    """The records `count` times: as they are, or cropped out of a zero border of an eighth, and mirrored."""
    if draws is None:
        yield from [x] * count
        return
    h, w = x.shape[2:]
    wide = pad(x, [w // 8, w // 8, h // 8, h // 8])
    for down, right, mirrored in draws.to(x.device).permute(1, 2, 0):
        column = torch.arange(w, device=x.device)
        column = torch.where(mirrored[:, None] > 0, column.flip(0), column) + right[:, None]
        row = torch.arange(h, device=x.device) + down[:, None]
        record, channel = (torch.arange(n, device=x.device) for n in x.shape[:2])
        at = (
            record[:, None, None, None],
            channel[:, None, None],
            row[:, None, :, None],
            column[:, None, None, :],
        )
        yield wide[at]
