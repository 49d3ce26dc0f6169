"""Heads on features that are given: many at once, each on records of its own; the best one; its law.

For an attack that leaves a net's trunk as it is. A head maps features to logits; features of a dense one end
with a 1 where it has a bias. What is learned is mean cross-entropy + decay |theta|^2 / 2.
"""

import copy
import math
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Float32, Float64, Int
from torch import Generator, Tensor, nn
from torch.func import functional_call
from torch.nn.functional import one_hot

from glasslab.recipe import Recipe
from glasslab.signals import phi
from glasslab.stacked import can_stack
from glasslab.train import train
from whitebox.last_layer import hessian, last_layer, own_less_wrong, projection

Heads = Callable[[Tensor], Tensor]  # features [r *u] -> logits [J r c]

ROWS = 128  # records at a time on a processor: what is made of them stays in the cache
TINY = 1e-20  # probability
NEWTON = 100  # steps, at most
NIL = 1e-12  # of the squared mean gradient: a smaller covariance is rounding


@torch.no_grad()
def dense(
    a: Float[Tensor, "n i"],
    y: Int[Tensor, "n"],
    member: Bool[Tensor, "J n"],
    classes: int,
    *,
    decay: float,
    steps: int,
    lr: float,
) -> Float32[Tensor, "i c J"]:
    """Weights of J dense heads from 0, by Adam on all records of each row of `member`; in float32.

    Heads share their features, so that all of them take two matrix products a step.
    """
    a, J, rows = a.float(), len(member), ROWS if a.device.type == "cpu" else len(a)
    share = (member / member.sum(1, keepdim=True).clamp(min=1)).T[:, None].to(a)  # of the mean, or 0
    own = one_hot(y, classes)[:, :, None].to(a)
    W = a.new_zeros(a.shape[1], classes * J)
    G, mean, square = torch.empty_like(W), torch.zeros_like(W), torch.zeros_like(W)
    buffer, parts = a.new_empty(2, min(rows, len(a)), classes * J), range(0, len(a), rows)
    for step in range(1, steps + 1):
        torch.mul(W, decay, out=G)
        for part in (slice(i, i + rows) for i in parts):
            z, p = (b[: len(a[part])] for b in buffer)
            torch.mm(a[part], W, out=z)
            # classes before heads: a softmax over the last axis is many times slower
            delta = torch.softmax(z.view(-1, classes, J), 1, out=p.view(-1, classes, J))
            torch.threshold_(delta, TINY, 0.0)  # numbers below the normal ones take five times as long
            delta.sub_(own[part]).mul_(share[part])
            G.addmm_(a[part].T, p)
        mean.lerp_(G, 0.1)
        square.mul_(0.999).addcmul_(G, G, value=0.001)
        scale = (square / (1 - 0.999**step)).sqrt_().add_(1e-8)
        W.addcdiv_(mean, scale, value=-lr / (1 - 0.9**step))
    return W.view(-1, classes, J)


def of_weights(W: Float[Tensor, "i c J"]) -> Heads:
    """Logits in float64."""
    flat = W.double().flatten(1)
    return lambda a: (a.double() @ flat).view(len(a), *W.shape[1:]).permute(2, 0, 1)


def deep(
    net: nn.Module,
    z: Float[Tensor, "n *u"],
    y: Int[Tensor, "n"],
    member: Bool[Tensor, "J n"],
    generator: Generator,
    *,
    decay: float,
    steps: int,
    lr: float,
) -> Heads:
    """As many copies of `net`, each from weights that its modules reset; by Adam, half of n in a step.

    BatchNorm learns and then keeps statistics of its own. Raises ValueError on a module without
    `reset_parameters`, and on a row of `member` without a record.
    """
    for name, module in _learning(net).items():
        if not callable(getattr(module, "reset_parameters", None)):
            raise ValueError(f"cut must leave modules with reset_parameters above it, got {name!r} without")

    def made() -> nn.Module:
        fresh = copy.deepcopy(net).float()
        for module in _learning(fresh).values():
            module.reset_parameters()  # type: ignore[operator]
        return fresh

    recipe = Recipe(
        epochs=steps,
        batch=math.ceil(len(z) / 2),  # so that an epoch is one step
        optimiser="adam",
        lr=lr,
        weight_decay=decay,
        schedule="constant",
        scale="none",
        engine="stacked" if can_stack(net) else "serial",
        precision="float32",
    )
    seeds = torch.randint(2**62, (len(member),), generator=generator).tolist()
    stacked = train(made, recipe, z.float(), y, member.cpu(), seeds, device=z.device)
    states = [{name: t[j].to(z.device) for name, t in stacked.items()} for j in range(len(member))]
    whole = copy.deepcopy(net).float().eval()

    def heads(z: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.stack([functional_call(whole, s, (z.float(),)) for s in states]).double()

    return heads


def law(
    layer: nn.Linear,
    a: Float64[Tensor, "n i"],
    y: Int[Tensor, "n"],
    *,
    decay: float,
    ridge: float,
    memory: str = "512MiB",
) -> Float64[Tensor, "n"]:
    """log of how much likelier the layer's weights Theta are with a record than without it, in nats.

    Theta* is the best head for all N candidates; half of them teach the layer. To first order
    Theta = Theta* - (2 / N) H^-1 sum_i (b_i - 1/2) g_i, b_i = 1 for members, else 0, g_i at Theta*, centred.
    So b_x moves the mean by -(2 / N) H^-1 g, evenly about Theta*, and the others leave the covariance
    H^-1 (G - g g' / N) H^-1 / N. That makes -2 g' G^-1 H (Theta - Theta*) / (1 - g' G^-1 g / N).
    Raises ValueError without decay or ridge, and above 8,192 parameters.
    """
    if not ridge > 0:
        raise ValueError(f"ridge must be above 0, got {ridge}")
    inputs, classes = layer.in_features, layer.out_features
    theta = best(a, y, classes, decay=decay)
    kind = {"bias": layer.bias is not None, "dtype": a.dtype, "device": a.device}
    head: nn.Linear = nn.utils.skip_init(nn.Linear, inputs, classes, **kind).eval()
    star = projection(a.new_zeros(1, classes)) @ theta
    head.weight.data = star[:, :inputs]
    if layer.bias is not None:
        head.bias.data = star[:, -1]
    seen = last_layer(head, a[:, :inputs], y, memory=memory)
    z = a @ star.T
    slope = -(-phi(z, y)).sigmoid()[:, None] * (own_less_wrong(z, y) @ seen.P)
    mean, trace = (slope.T @ a / len(a)).flatten(), seen.G.trace()
    if not trace > NIL * mean.square().sum():  # records that pull alike cannot be told apart
        return torch.zeros_like(z[:, 0])
    parts = [layer.weight] if layer.bias is None else [layer.weight, layer.bias[:, None]]
    moved = (seen.P.T @ torch.cat(parts, 1).detach().to(a) - theta).flatten()
    pull, eye = seen.H @ moved + decay * moved, torch.eye(len(moved)).to(a)
    root = torch.linalg.cholesky(seen.G + ridge * trace / len(moved) * eye)
    whitened = torch.linalg.solve_triangular(root, pull[:, None], upper=False)[:, 0]
    out = []
    for d, v in zip(slope.split(ROWS), a.split(ROWS), strict=True):
        g = (d[:, :, None] * v[:, None]).flatten(1) - mean
        g = torch.linalg.solve_triangular(root, g.T, upper=False)
        out.append(-2 * (whitened @ g) / (1 - g.square().sum(0) / len(a)))
    return torch.cat(out)


def _learning(net: nn.Module) -> dict[str, nn.Module]:
    """Modules that own parameters to be learned."""
    every = net.named_modules()
    return {name: m for name, m in every if any(w.requires_grad for w in m.parameters(recurse=False))}


def best(
    a: Float64[Tensor, "n i"], y: Int[Tensor, "n"], classes: int, *, decay: float
) -> Float64[Tensor, "k i"]:
    """The one minimum over all records, by Newton's steps: P' [W | b], in coordinates that sum to 0.

    P is the projection of `last_layer`. Raises ValueError without decay, and as `hessian`.
    """
    if not decay > 0:
        raise ValueError(f"weight_decay must be above 0 where a head is solved, got {decay}")
    own = one_hot(y, classes).to(a)
    P = projection(own)
    eye = decay * torch.eye(P.shape[1] * a.shape[1]).to(a)
    theta = a.new_zeros(P.shape[1], a.shape[1])

    def cost(theta: Tensor) -> tuple[float, Tensor]:
        z = a @ theta.T @ P.T
        return float(-(z.log_softmax(1) * own).sum(1).mean() + decay / 2 * theta.square().sum()), z

    now, z = cost(theta)
    for _ in range(NEWTON):
        slope = ((z.softmax(1) - own) @ P).T @ a / len(a) + decay * theta
        root = torch.linalg.cholesky(hessian(a, z) + eye)
        down = torch.cholesky_solve(slope.view(-1, 1), root).view_as(theta)
        gain = float((slope * down).sum())  # twice what is left to gain, to second order
        step = 1.0
        while (tried := cost(theta - step * down))[0] > now - 0.25 * step * gain and step > 1e-8:
            step /= 2
        theta, (now, z) = theta - step * down, tried
        if gain < 1e-13 * max(1.0, abs(now)) or step <= 1e-8:
            break
    return theta
