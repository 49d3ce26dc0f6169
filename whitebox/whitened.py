"""Gradients against a direction of the weights, both divided by the curvature of the gradients.

Who calls this holds the weights and aux, records in no training set. With C = the second moment of grad loss
over aux, true labels, layer by layer, the signals are <J, C^-1 Gamma> and <J, C^-1 Theta>: J = grad phi of
the record, Gamma = the mean of grad loss over aux, Theta = the layer's [weight | bias]. C is kron(B, A) of
KFAC (Martens & Grosse 2015, arXiv:1503.05671), or one of the forms in `Curvature`. Units that change places
change nothing, but for "sketch".
A last layer that gives the logits has gradients that sum to 0 over the classes; C is inverted in that
subspace alone, and Theta counts as far as it lies there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor, nn

from glasslab.data import Data
from whitebox.functional import signs
from whitebox.gradients import captured, check_eval, chosen, contract, mean_gradient, sketch
from whitebox.hooks import parameters
from whitebox.kronecker import EPS, diagonal, ekfac, factors
from whitebox.last_layer import last_layer, projection
from whitebox.rules import learned, unfolds

Curvature = Literal["kfac", "ekfac", "last", "sketch"]
"""Kronecker factors; these with eigenvalues of their own; the last layer's exact covariance; a random sketch
of the covariance over all layers."""

NIL: Final = 1e-12  # of a matrix's own diagonal: a smaller pivot is rounding


@dataclass(frozen=True)
class Whitening:
    """What the signals share. `ridge` is added to each factor of C, in units of its mean eigenvalue.

    "kfac" and "ekfac" give one column for each of `layers` (names with `*`; None for all), and divide norms,
    embeddings and grouped convolutions by their mean squared gradients; "last" and "sketch" give one column
    in all. `k` and `seed` are of "sketch": its random columns, the same for every model.
    """

    aux: Data
    ridge: float = 0.05
    curvature: Curvature = "kfac"
    layers: tuple[str, ...] | None = None
    k: int = 512
    seed: int = 0
    memory: str = "512MiB"

    def product(
        self, model: nn.Module, x: Float[Tensor, "n *d"], y: Int[Tensor, "n"], *, gamma: float, theta: float
    ) -> Float64[Tensor, "n L"]:
        """<J, C^-1 (gamma Gamma + theta Theta)>, one column a layer.

        Raises ValueError in training mode, on another curvature, a negative ridge or layers with "last", and
        where the ridge leaves C singular; on a last layer that is not dense as `last_layer` does.
        """
        check_eval(model)
        if self.curvature not in ("kfac", "ekfac", "last", "sketch"):
            raise ValueError(f"curvature must be 'kfac', 'ekfac', 'last' or 'sketch', got {self.curvature!r}")
        if not self.ridge >= 0:
            raise ValueError(f"ridge must be 0 or more, got {self.ridge}")
        if self.curvature == "last" and self.layers is not None:
            raise ValueError(f"layers must be None with curvature='last', got {self.layers!r}")
        aux = self.aux.to(next(model.parameters(), x).device)
        names = chosen(model, "last" if self.curvature == "last" else self.layers, aux.x)
        D = _direction(model, aux, names, gamma, theta, self.memory)
        if self.curvature == "sketch":
            return _sketched(model, x, y, D, aux, names, self)
        V = whitened(model, D, aux, names, ridge=self.ridge, curvature=self.curvature, memory=self.memory)
        return contract(model, x, y, V, of="phi", memory=self.memory)


@dataclass(frozen=True)
class WhitenedGamma(Whitening):
    """Signal: <J, C^-1 Gamma>, one column a layer; at ridge 0 it ignores the scale of hidden units, too."""

    def __call__(
        self, model: nn.Module, x: Float[Tensor, "n *d"], y: Int[Tensor, "n"]
    ) -> Float64[Tensor, "n L"]:
        return self.product(model, x, y, gamma=1.0, theta=0.0)


@dataclass(frozen=True)
class WhitenedTheta(Whitening):
    """Signal: <J, C^-1 Theta>, one column a layer: what decaying weights hold of the record."""

    def __call__(
        self, model: nn.Module, x: Float[Tensor, "n *d"], y: Int[Tensor, "n"]
    ) -> Float64[Tensor, "n L"]:
        return self.product(model, x, y, gamma=0.0, theta=1.0)


def whitened(
    model: nn.Module,
    D: Mapping[str, Tensor],
    aux: Data,
    layers: Sequence[str],
    *,
    ridge: float,
    curvature: Literal["kfac", "ekfac", "last"] = "kfac",
    memory: str = "512MiB",
) -> dict[str, Tensor]:
    """C^-1 D by parameter, D a direction in the parameters of these layers; 0 where aux does not pull at all.

    Raises ValueError where the ridge leaves C singular.
    """
    dense = [name for name in layers if unfolds(model.get_submodule(name))]
    V: dict[str, Tensor] = {}
    if curvature == "last":
        found = last_layer(model, aux.x, aux.y, memory=memory)
        M = found.P.T @ _joined(D, layers[0])
        return _parted(D, layers[0], found.P @ _solved(found.G, M.flatten()[:, None], ridge).view_as(M))
    if dense and curvature == "ekfac":
        for layer, e in ekfac(model, aux.x, aux.y, layers=dense, memory=memory).items():
            M = e.U_B.T @ _joined(D, layer) @ e.U_A
            V |= _parted(D, layer, e.U_B @ _over(M, e.value, ridge) @ e.U_A.T)
    elif dense:
        for layer, f in factors(model, aux.x, aux.y, layers=dense, memory=memory).items():
            V |= _parted(D, layer, _divided(_joined(D, layer), f.A, f.B, ridge))
    for name, square in diagonal(model, aux.x, aux.y, layers=list(layers), memory=memory).items():
        V[name] = _over(D[name], square, ridge)
    return V


def lower(M: Float64[Tensor, "q q"], ridge: float, unit: Tensor | None = None) -> Float64[Tensor, "q q"]:
    """Cholesky factor of M + ridge unit. Raises ValueError where that is singular."""
    M = M.clone()
    M.diagonal().add_(ridge * (M.diagonal().mean() if unit is None else unit))
    L, failed = torch.linalg.cholesky_ex(M)
    if failed or bool((L.diagonal().square() < NIL * M.diagonal()).any()):
        raise ValueError(f"ridge must be higher where a layer's curvature is singular, got {ridge:g}")
    return L


def _direction(
    model: nn.Module, aux: Data, layers: Sequence[str], gamma: float, theta: float, memory: str
) -> dict[str, Tensor]:
    """gamma Gamma + theta Theta by parameter."""
    D = {name: theta * p.double() for name, p in parameters(model, layers).items()}
    if gamma:
        pull = mean_gradient(model, aux.x, aux.y, layers=layers, of="loss", memory=memory)
        D = {name: t + gamma * pull[name] for name, t in D.items()}
    return D


def _joined(D: Mapping[str, Tensor], layer: str) -> Float64[Tensor, "o i"]:
    """[weight | bias] of a dense layer or a convolution."""
    weight, bias = _names(layer)
    return torch.cat([D[weight].flatten(1), *([D[bias][:, None]] if bias in D else [])], 1)


def _parted(D: Mapping[str, Tensor], layer: str, M: Float64[Tensor, "o i"]) -> dict[str, Tensor]:
    """The same the other way."""
    weight, bias = _names(layer)
    shape = D[weight].shape
    parts = {weight: M[:, : D[weight][0].numel()].reshape(shape)}
    return parts | ({bias: M[:, -1]} if bias in D else {})


def _names(layer: str) -> tuple[str, str]:
    return (f"{layer}.weight", f"{layer}.bias") if layer else ("weight", "bias")


def _divided(
    D: Float64[Tensor, "o i"], A: Float64[Tensor, "i i"], B: Float64[Tensor, "o o"], ridge: float
) -> Float64[Tensor, "o i"]:
    """B^-1 D A^-1, in the subspace that sums to 0 where all deltas do; 0 if no record of aux pulls."""
    # the mean of all eigenvalues, the 0 of the last layer too: one ridge in and out of the subspace
    unit, P = B.trace() / len(B), torch.eye(len(B), dtype=B.dtype, device=B.device)
    if len(B) > 1 and B.sum(1).abs().amax() <= EPS * B.trace():
        P = projection(B)
    return P @ _solved(P.T @ B @ P, _solved(A, D.T @ P, ridge).T, ridge, unit)


def _solved(
    M: Float64[Tensor, "q q"], D: Float64[Tensor, "q k"], ridge: float, unit: Tensor | None = None
) -> Float64[Tensor, "q k"]:
    """(M + ridge unit)^-1 D, by default with M's mean eigenvalue as unit; 0 where M is 0."""
    if not M.trace() > 0:
        return torch.zeros_like(D)
    return torch.cholesky_solve(D, lower(M, ridge, unit))


def _over(D: Tensor, square: Tensor, ridge: float) -> Tensor:
    """D / (square + ridge mean): a curvature that is diagonal; 0 where it is 0 everywhere."""
    mean = square.mean()
    if not mean > 0:
        return torch.zeros_like(D)
    value = square + ridge * mean
    if value.min() < NIL * value.max():
        raise ValueError(f"ridge must be higher where a layer's curvature is singular, got {ridge:g}")
    return D / value


def _sketched(
    model: nn.Module,
    x: Float[Tensor, "n *d"],
    y: Int[Tensor, "n"],
    D: Mapping[str, Tensor],
    aux: Data,
    layers: Sequence[str],
    how: Whitening,
) -> Float64[Tensor, "n 1"]:
    """J R (R' G R)^-1 R' D for R of k columns of random signs, G the covariance over aux."""
    g = sketch(model, aux.x, aux.y, k=how.k, seed=how.seed, layers=layers, of="loss", memory=how.memory)
    g = g - g.mean(0)
    seen = {
        name: learned(model.get_submodule(name.rpartition(".")[0]), t)
        for name, t in _reached(model, D, aux, layers).items()
    }
    d = torch.stack(
        [
            torch.stack([signs(how.seed, name, j, t) @ t.flatten() for name, t in seen.items()]).sum()
            for j in range(how.k)
        ]
    )
    J = sketch(model, x, y, k=how.k, seed=how.seed, layers=layers, of="phi", memory=how.memory)
    return J @ _solved(g.T @ g / len(g), d[:, None], how.ridge).to(J.device)


def _reached(
    model: nn.Module, D: Mapping[str, Tensor], aux: Data, layers: Sequence[str]
) -> dict[str, Tensor]:
    """D without what shifts all logits alike: no gradient lies there."""
    (last,) = chosen(model, "last", aux.x)
    if last not in layers or not isinstance(model.get_submodule(last), nn.Linear):
        return dict(D)
    delta = next(captured(model, aux.x[:1], aux.y[:1], layers=(last,)))[last].delta
    if delta.sum(-1).abs().amax() > EPS * delta.abs().amax():
        return dict(D)
    return {name: t - t.mean(0) if name in _names(last) else t for name, t in D.items()}
