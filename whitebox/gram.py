"""Inner products of the margin gradients of all candidates, layer by layer, and theirs with the weights.

Who calls this holds the weights. J_i = grad phi_i of record i's margin. At a stationary point of training
with weight decay lambda on n records, theta = sum_i alpha_i J_i with alpha_i = sigma(-phi_i) / (n lambda) on
the records of the training set and 0 elsewhere, in every layer: G = J J' and b = J theta are all that is
needed to solve for alpha.
"""

import warnings
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor, nn

from glasslab.checks import Floored
from whitebox.gradients import captured, check_eval
from whitebox.hooks import placed
from whitebox.kronecker import with_factors
from whitebox.last_layer import own_less_wrong
from whitebox.rules import Batch, Instance

FORMED: Final = 2**22  # numbers of the gradients of a convolution that are formed at once
FREE: Final = 1e-4  # cosine of gradient and weights, below which a layer's scale does not matter to its net
NORMS: Final = (*Batch, *Instance, nn.GroupNorm, nn.LayerNorm)


class Gram(NamedTuple):
    """G = J_l J_l' and b = J_l theta_l of one layer; `square` = |theta_l|^2, `size` its number of weights."""

    G: Float64[Tensor, "n n"]
    b: Float64[Tensor, "n"]
    square: float
    size: int


def grams(
    model: nn.Module,
    x: Float[Tensor, "n *d"],
    y: Int[Tensor, "n"],
    *,
    layers: Sequence[str] | str | None = None,
    memory: str = "512MiB",
) -> Iterator[tuple[str, Gram]]:
    """Layer after layer, in model order: dense ones and convolutions without groups.

    A dense layer's gradients are not formed: G = (A A') * (D D') for its inputs A and deltas D. A layer whose
    scale cannot change an answer has <J, theta> = 0 at any weights. So has one before a BatchNorm in
    training, whose statistics follow it; in eval mode they stay, and b would not show it. Such a layer is
    left out, and a Floored warning names it. Raises ValueError as `captured` does, and where none is left.
    """
    check_eval(model)
    names = with_factors(model, layers, x)
    free = normed(model, x, y)
    left = 0
    for name in names:
        if name in free:
            _left_out(name)
            continue
        parts = [part[name] for part in captured(model, x, y, layers=(name,), of="phi", memory=memory)]
        a, delta = (torch.cat([part[i] for part in parts]) for i in (0, 1))
        found = _gram(a, delta, weights(model, name))
        cosine = found.b.abs() / (found.G.diagonal() * found.square).sqrt().clamp(min=1e-300)
        if float(cosine.max()) < FREE:
            _left_out(name)
            continue
        left += 1
        yield name, found
    if not left:
        raise ValueError(f"layers must hold one whose scale matters, got {list(names)}")


@torch.no_grad()
def normed(model: nn.Module, x: Float[Tensor, "n *d"], y: Int[Tensor, "n"]) -> set[str]:
    """Names of the modules whose outputs go straight into a norm, seen on one record."""
    made: dict[int, tuple[Tensor, list[str]]] = {}  # outputs are held, so that no other tensor takes an id
    found = set[str]()

    def leaves(name: str) -> Any:
        def note(_: nn.Module, __: Any, out: Any) -> None:
            if isinstance(out, Tensor):
                made.setdefault(id(out), (out, []))[1].append(name)  # one that passes through has two names

        return note

    def enters(_: nn.Module, args: tuple[Any, ...]) -> None:
        if args and id(args[0]) in made:
            found.update(made[id(args[0])][1])

    inner = [(name, m) for name, m in model.named_modules() if not any(m.children())]
    handles = [m.register_forward_hook(leaves(name)) for name, m in inner]
    handles += [m.register_forward_pre_hook(enters) for _, m in inner if isinstance(m, NORMS)]
    try:
        model(placed(model, x[:1], y[:1])[0])
    finally:
        for handle in handles:
            handle.remove()
    return found


def pooled(found: Sequence[Gram]) -> Gram:
    """All layers as one, each counted in units of its mean squared weight: |theta|^2 becomes their number."""
    unit = [g.square / g.size for g in found]
    G = torch.stack([g.G / u for g, u in zip(found, unit, strict=True)]).sum(0)
    b = torch.stack([g.b / u for g, u in zip(found, unit, strict=True)]).sum(0)
    size = sum(g.size for g in found)
    return Gram(G, b, float(size), size)


def answered(z: Float[Tensor, "n c"], y: Int[Tensor, "n"]) -> Float64[Tensor, "n"]:
    """<J, theta> of the last layer, from answers alone: sum_c (d phi / d z_c) z_c (Euler).

    Without biases it is that of every other layer too.
    """
    z = z.double()
    return (own_less_wrong(z, y) * z).sum(1)


def foreign(of: Gram, z: Float[Tensor, "n c"], y: Int[Tensor, "n"]) -> Gram:
    """The Gram of a shadow with b of a target that answers z, in the units of the shadow's own b."""
    b = answered(z, y)
    return of._replace(b=b * (of.b.square().mean() / b.square().mean().clamp(min=1e-300)).sqrt())


def weights(model: nn.Module, name: str) -> Float[Tensor, "o i1"]:
    """[W | b] of a layer, windows flattened."""
    layer = model.get_submodule(name)
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, Tensor)
    both = [weight.flatten(1)] + ([bias[:, None]] if isinstance(bias, Tensor) else [])
    return torch.cat(both, 1).detach()


def _left_out(name: str) -> None:
    text = f"layer {name!r} left out: its scale changes no answer, so its weights hold no such sum"
    warnings.warn(text, Floored, stacklevel=3)


def _gram(a: Float[Tensor, "n t i1"], delta: Float[Tensor, "n t o"], theta: Float[Tensor, "o i1"]) -> Gram:
    a, delta, theta = a.double(), delta.double(), theta.double()
    square, size = float(theta.square().sum()), theta.numel()
    if a.shape[1] == 1:
        a, delta = a[:, 0], delta[:, 0]
        return Gram((a @ a.T) * (delta @ delta.T), ((a @ theta.T) * delta).sum(1), square, size)
    G, b = theta.new_zeros(len(a), len(a)), theta.new_zeros(len(a))
    channels = max(1, FORMED // (len(a) * theta.shape[1]))
    for d, own in zip(delta.split(channels, 2), theta.split(channels), strict=True):
        J = (d.mT @ a).flatten(1)
        G.addmm_(J, J.T)
        b += J @ own.flatten()
    return Gram(G, b, square, size)
