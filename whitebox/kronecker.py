"""Curvature over records: Kronecker factors and their eigenbases (the last layer exactly: `last_layer`).

KFAC: Martens & Grosse 2015 (arXiv:1503.05671), section 3; convolutions: Grosse & Martens 2016
(arXiv:1602.01407). EK-FAC: George et al. 2018 (arXiv:1806.03884), Algorithm 1.
Who calls this holds the weights and some records. A layer's gradient of a record's cross-entropy is the sum
over positions t of delta_t a_t': a = the layer's input, with a 1 appended for a bias, delta = the gradient at
its output. A = mean of a a', B = mean of delta delta', and kron(B, A) stands for the mean of g g'. With true
labels that is G, the second moment of the gradients; with labels drawn from the model it is the Fisher, which
is the Gauss-Newton matrix H. The two differ wherever the model is wrong about its own certainty.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Float64, Int
from torch import Generator, Tensor, nn

from whitebox.gradients import captured, check_eval, chosen, per_example
from whitebox.hooks import placed
from whitebox.last_layer import Last as Last
from whitebox.last_layer import last_layer as last_layer
from whitebox.last_layer import projection
from whitebox.rules import unfolds

Layers = Sequence[str] | str | None
Labels = Literal["true", "sampled"]

ROWS = 256  # a forward pass, where only logits are asked
FORMED = 2**22  # numbers of the gradients that are formed at once
EPS = 1e-5  # relative to the trace: what is smaller in float32 gradients is rounding


class Factors(NamedTuple):
    """A: over inputs (and the bias), B: over outputs; `records` of them."""

    A: Float64[Tensor, "i1 i1"]
    B: Float64[Tensor, "o o"]
    records: int


class Basis(NamedTuple):
    """Mean of g g' = kron(U_B, U_A) diag(value) kron(U_B, U_A)'; r < o where deltas sum to 0 over outputs."""

    U_A: Float64[Tensor, "i1 i1"]
    U_B: Float64[Tensor, "o r"]
    value: Float64[Tensor, "r i1"]
    records: int


def factors(
    model: nn.Module,
    x: Float[Tensor, "n *d"],
    y: Int[Tensor, "n"],
    *,
    layers: Layers = None,
    labels: Labels = "true",
    generator: Generator | None = None,
    memory: str = "512MiB",
) -> dict[str, Factors]:
    """A and B of every dense layer and convolution without groups, uncentred, in squared nats a parameter.

    "sampled" draws one label a record from the model's probabilities. With several positions A is a mean over
    records and positions, and B is scaled until trace(A) trace(B) is the mean squared norm of the gradients.
    Raises ValueError where no chosen layer has factors, in training mode, and on "sampled" without generator.
    """
    y = drawn(model, x, y, labels, generator)
    sums: dict[str, list[Tensor]] = {}
    positions: dict[str, int] = {}
    for part in captured(model, x, y, layers=with_factors(model, layers, x), of="loss", memory=memory):
        for name, (a, delta) in part.items():
            flat, slope = a.double().flatten(0, 1), delta.double().flatten(0, 1)
            new = [flat.T @ flat, slope.T @ slope, _squares(a.double(), delta.double()).sum()]
            sums[name] = (
                [old + add for old, add in zip(sums[name], new, strict=True)] if name in sums else new
            )
            positions[name] = a.shape[1]
    found = {}
    for name, (aa, dd, square) in sums.items():
        A, B = aa / (len(x) * positions[name]), dd / len(x)
        product = A.trace() * B.trace()
        if positions[name] > 1 and product > 0:
            B = B * (square / len(x) / product)
        found[name] = Factors(A, B, len(x))
    return found


def ekfac(
    model: nn.Module,
    x: Float[Tensor, "n *d"],
    y: Int[Tensor, "n"],
    *,
    layers: Layers = None,
    labels: Labels = "true",
    generator: Generator | None = None,
    memory: str = "512MiB",
) -> dict[str, Basis]:
    """Eigenbases of the factors, and mean squared gradients along them, in squared nats a parameter.

    Where every delta sums to 0 over the outputs (a last layer of logits), U_B spans that subspace alone.
    Raises as `factors` does; "sampled" draws once, for both passes over the records.
    """
    y = drawn(model, x, y, labels, generator)
    found = factors(model, x, y, layers=layers, memory=memory)
    bases = {name: _basis(*of) for name, of in found.items()}
    for part in captured(model, x, y, layers=tuple(bases), of="loss", memory=memory):
        for name, (a, delta) in part.items():
            add = _along(a, delta, bases[name]) / len(x)
            bases[name] = bases[name]._replace(value=bases[name].value + add)
    return bases


def energy(
    a: Float[Tensor, "b t i1"],
    delta: Float[Tensor, "b t o"],
    basis: Basis,
    weight: Float64[Tensor, "r i1"],
) -> Float64[Tensor, "b"]:
    """Sum over the eigenbasis of weight (U_B' g U_A)^2, one number a record; 1/value gives g' C^-1 g."""
    a, delta = a.double() @ basis.U_A, delta.double() @ basis.U_B
    if a.shape[1] == 1:
        return ((delta[:, 0].square() @ weight) * a[:, 0].square()).sum(-1)
    rows = max(1, FORMED // weight.numel())
    parts = zip(a.split(rows), delta.split(rows), strict=True)
    return torch.cat([((d.mT @ v).square() * weight).sum((1, 2)) for v, d in parts])


def diagonal(
    model: nn.Module,
    x: Float[Tensor, "n *d"],
    y: Int[Tensor, "n"],
    *,
    layers: Layers = None,
    labels: Labels = "true",
    generator: Generator | None = None,
    memory: str = "512MiB",
) -> dict[str, Tensor]:
    """Mean squared gradient of the parameters without factors: norms, embeddings, grouped convolutions.

    In squared nats a parameter, by name; empty where all chosen layers have factors. Raises as `drawn`.
    """
    y = drawn(model, x, y, labels, generator)
    rest = without_factors(model, layers, x)
    mean: dict[str, Tensor] = {}
    for part in per_example(model, x, y, layers=rest, of="loss", memory=memory) if rest else ():
        for name, g in part.items():
            add = g.double().square().sum(0) / len(x)
            mean[name] = mean[name] + add if name in mean else add
    return mean


def with_factors(model: nn.Module, layers: Layers, x: Float[Tensor, "n *d"]) -> tuple[str, ...]:
    """Names of the chosen layers that have factors; ValueError where none has."""
    names = chosen(model, layers, x)
    dense = tuple(name for name in names if unfolds(model.get_submodule(name)))
    if not dense:
        raise ValueError(f"layers must hold a dense layer or a convolution without groups, got {list(names)}")
    return dense


def without_factors(model: nn.Module, layers: Layers, x: Float[Tensor, "n *d"]) -> tuple[str, ...]:
    """Names of the other chosen layers."""
    return tuple(name for name in chosen(model, layers, x) if not unfolds(model.get_submodule(name)))


def drawn(
    model: nn.Module,
    x: Float[Tensor, "n *d"],
    y: Int[Tensor, "n"],
    labels: Labels,
    generator: Generator | None,
) -> Int[Tensor, "n"]:
    """The labels themselves, or one a record, drawn from the model's probabilities by the generator."""
    check_eval(model)
    if labels == "true":
        return y
    if generator is None:
        raise ValueError("generator must be given to draw labels, got None")
    p = logits(model, x, y).softmax(-1)
    u = torch.rand(len(x), 1, generator=generator, dtype=torch.float64).to(x.device)
    return (u > p.cumsum(-1)).sum(-1).clamp(max=p.shape[1] - 1)


@torch.no_grad()
def logits(model: nn.Module, x: Float[Tensor, "n *d"], y: Int[Tensor, "n"]) -> Float64[Tensor, "n c"]:
    """What a model in any precision answers, on x's device."""
    with torch.autocast(x.device.type, enabled=False):
        parts = [model(placed(model, *rows)[0]) for rows in zip(x.split(ROWS), y.split(ROWS), strict=True)]
    return torch.cat(parts).double().to(x.device)


def _squares(a: Float64[Tensor, "b t i1"], delta: Float64[Tensor, "b t o"]) -> Float64[Tensor, "b"]:
    """Squared norm of sum_t delta_t a_t', by inner products between positions where those are fewer."""
    b, t, _ = a.shape
    if 2 * t * t < a.shape[2] * delta.shape[2]:
        return ((a @ a.mT) * (delta @ delta.mT)).sum((1, 2))
    rows = max(1, FORMED // (a.shape[2] * delta.shape[2]))
    parts = zip(a.split(rows), delta.split(rows), strict=True)
    return torch.cat([(d.mT @ v).square().sum((1, 2)) for v, d in parts])


def _basis(A: Float64[Tensor, "i1 i1"], B: Float64[Tensor, "o o"], records: int) -> Basis:
    """Eigenvectors, and zeros for the values."""
    o = len(B)
    inside = torch.eye(o, dtype=B.dtype, device=B.device)
    if o > 1 and B.sum(1).abs().amax() <= EPS * B.trace():
        inside = projection(B)
    U_B = inside @ torch.linalg.eigh(inside.T @ B @ inside).eigenvectors
    return Basis(
        torch.linalg.eigh(A).eigenvectors.contiguous(), U_B, A.new_zeros(U_B.shape[1], len(A)), records
    )


def _along(
    a: Float[Tensor, "b t i1"], delta: Float[Tensor, "b t o"], basis: Basis
) -> Float64[Tensor, "r i1"]:
    """Sum over the records of (U_B' g U_A)^2."""
    a, delta = a.double() @ basis.U_A, delta.double() @ basis.U_B
    if a.shape[1] == 1:
        return delta[:, 0].square().T @ a[:, 0].square()
    rows = max(1, FORMED // basis.value.numel())
    parts = zip(a.split(rows), delta.split(rows), strict=True)
    return torch.stack([(d.mT @ v).square().sum(0) for v, d in parts]).sum(0)
