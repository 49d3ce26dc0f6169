"""Self-influence: how much a record weighs in its own loss, through the curvature of all records' loss.

Holds: the weights, and for `influence` also aux, records in no training set.
influence (Koh & Liang 2017, arXiv:1703.04730; EK-FAC: Grosse et al. 2023, arXiv:2308.03296): I = g' H^-1 g,
g = the gradient of a record's loss, H = the curvature of the mean loss over aux. With g = -sigma(-phi) J and
J = grad phi: -log I = -2 log sigma(-phi) - log leverage, leverage = J' H^-1 J. The first part any black box
knows; the leverage says who is easily remembered.
tracin (Pruthi et al. 2020, arXiv:2002.08484, a record's influence on itself): -log of the sum over
checkpoints of eta_t |g_t|^2. `sif` stands in a file of its own. Higher = member.
"""

import copy
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Float64, Int
from torch import Generator, Tensor, nn
from torch.nn.functional import logsigmoid
from torch.utils.data import TensorDataset

from glasslab import signals
from glasslab.checks import Floored
from glasslab.data import Data
from glasslab.split import stream
from whitebox.gradients import captured, check_eval, norms, per_example
from whitebox.hooks import chunks
from whitebox.kronecker import diagonal, drawn, ekfac, energy, logits, without_factors
from whitebox.last_layer import hessian, last_inputs, own_less_wrong, projection
from whitebox.sif import sif as sif

Method = Literal["last", "ekfac", "identity"]
ROWS = 256  # right-hand sides at a time
NIL = 1e-12  # of the largest curvature: less is rounding


def influence(
    model: nn.Module,
    x: Float[Tensor, "n *d"],
    y: Int[Tensor, "n"],
    aux_x: Float[Tensor, "a *d"],
    aux_y: Int[Tensor, "a"],
    *,
    method: Method = "last",
    ridge: float = 0.05,
    generator: Generator | None = None,
    memory: str = "512MiB",
) -> Float64[Tensor, "n"]:
    """-log of the self-influence, in nats: -2 log sigma(-phi) - log leverage.

    "last" takes the last layer alone, with its exact H; "ekfac" all layers, with the Fisher of labels that
    `generator` draws; "identity" all layers and H = 1. `ridge` is added to H, in units of its mean eigenvalue
    (of each layer). Warns Floored where H is 0 on all of aux, and where a record has no gradient.
    Raises ValueError in training mode, on a last layer that is not dense or has more than 8,192 parameters
    with "last", without a generator with "ekfac", and where ridge 0 leaves H singular.
    """
    check_eval(model)
    aux = aux_x, aux_y
    leverage, phi = _leverage(model, x, y, aux, method, ridge, generator, memory)
    return -2 * logsigmoid(-phi) - leverage


@dataclass(frozen=True)
class Leverage:
    """Signal: log J' H^-1 J, in nats. It says who is easily remembered, not who was; settings of `influence`.

    `seed` draws the labels of "ekfac", the same ones for every model.
    """

    aux: Data
    method: Method = "last"
    ridge: float = 0.05
    seed: int = 0
    memory: str = "512MiB"

    def __call__(
        self, model: nn.Module, x: Float[Tensor, "n *d"], y: Int[Tensor, "n"]
    ) -> Float64[Tensor, "n"]:
        check_eval(model)
        aux = self.aux.x.to(x.device), self.aux.y.to(x.device)
        generator = stream(self.seed, "leverage")
        return _leverage(model, x, y, aux, self.method, self.ridge, generator, self.memory)[0]


def tracin(
    checkpoints: Sequence[nn.Module],
    rates: Sequence[float],
    x: Float[Tensor, "n *d"],
    y: Int[Tensor, "n"],
    *,
    through: Literal["norms", "captum"] = "norms",
    memory: str = "512MiB",
) -> Float64[Tensor, "n"]:
    """-log of the sum over checkpoints of learning rate times squared gradient norm, in nats.

    `captum` asks captum's TracInCP, one record's gradient at a time: slower, and 0 where float32 ends.
    Warns Floored below two checkpoints: one ranks as the gradient norm does. Raises ValueError in training
    mode, on no checkpoint, and unless there is one positive rate for each.
    """
    if not checkpoints or len(rates) != len(checkpoints) or not all(rate > 0 for rate in rates):
        text = f"one positive rate for each of 1+ checkpoints ({len(checkpoints)})"
        raise ValueError(f"rates must hold {text}, got {list(rates)}")
    for model in checkpoints:
        check_eval(model)
    if len(checkpoints) < 2:
        warnings.warn("1 of 2 checkpoints: the ranking is the gradient norm's", Floored, stacklevel=2)
    if through == "captum":
        return -_log(_through_captum(checkpoints, rates, x, y, memory))
    each = []
    for model, rate in zip(checkpoints, rates, strict=True):
        length = norms(model, x, y, of="loss", memory=memory).log_layer
        each.append((2 * length).logsumexp(1) + math.log(rate))
    return -_floored(torch.stack(each).logsumexp(0))


def _leverage(
    model: nn.Module,
    x: Float[Tensor, "n *d"],
    y: Int[Tensor, "n"],
    aux: tuple[Tensor, Tensor],
    method: Method,
    ridge: float,
    generator: Generator | None,
    memory: str,
) -> tuple[Float64[Tensor, "n"], Float64[Tensor, "n"]]:
    """log J' H^-1 J, and phi."""
    if method == "last":
        a, z = last_inputs(model, x, y, memory=memory)
        H = hessian(*last_inputs(model, *aux, memory=memory))
        return _solved(H, own_less_wrong(z, y) @ projection(z), a, ridge), signals.phi(z, y)
    phi = signals.phi(logits(model, x, y), y)
    if method == "identity":
        return _floored((2 * norms(model, x, y, memory=memory).log_layer).logsumexp(1)), phi
    return _log(_through_ekfac(model, x, y, aux, ridge, generator, memory)), phi


def _solved(
    H: Float64[Tensor, "q q"], slope: Float64[Tensor, "n k"], a: Float64[Tensor, "n i1"], ridge: float
) -> Float64[Tensor, "n"]:
    """log J' (H / mean + ridge)^-1 J / mean, J = kron(slope, a); H is overwritten."""
    mean = H.diagonal().mean()
    if mean == 0:
        warnings.warn("curvature of 1 of 1 layers is 0 on aux: the identity stands for it", Floored, 4)
        return _log(slope.square().sum(1) * a.square().sum(1))
    H.div_(mean).diagonal().add_(ridge)
    lower, failed = torch.linalg.cholesky_ex(H)
    if failed or lower.diagonal().square().min() < NIL:
        raise ValueError(f"ridge must be higher where the last layer's curvature is singular, got {ridge:g}")
    out = []
    for d, v in zip(slope.split(ROWS), a.split(ROWS), strict=True):
        J = (d[:, :, None] * v[:, None, :]).flatten(1)
        out.append(torch.linalg.solve_triangular(lower, J.T, upper=False).square().sum(0))
    return _log(torch.cat(out)) - mean.log()


def _through_ekfac(
    model: nn.Module,
    x: Float[Tensor, "n *d"],
    y: Int[Tensor, "n"],
    aux: tuple[Tensor, Tensor],
    ridge: float,
    generator: Generator | None,
    memory: str,
) -> Float64[Tensor, "n"]:
    """J' H^-1 J, a sum over the layers; parameters without Kronecker factors by the diagonal of H."""
    labels = drawn(model, *aux, "sampled", generator)
    bases = ekfac(model, aux[0], labels, memory=memory)
    inverse = {name: _inverse(basis.value, ridge) for name, basis in bases.items()}
    out = [
        torch.stack([energy(*part[name], bases[name], inverse[name]) for name in bases]).sum(0)
        for part in captured(model, x, y, layers=tuple(bases), memory=memory)
    ]
    total = torch.cat(out).to(x.device)
    if rest := without_factors(model, None, x):
        mean = diagonal(model, aux[0], labels, memory=memory)
        inverse = {name: _inverse(value, ridge) for name, value in mean.items()}
        more = [
            torch.stack([(g.double().square() * inverse[name]).flatten(1).sum(1) for name, g in part.items()])
            for part in per_example(model, x, y, layers=rest, memory=memory)
        ]
        total = total + torch.cat(more, 1).sum(0).to(x.device)
    return total


def _inverse(value: Float64[Tensor, "*s"], ridge: float) -> Float64[Tensor, "*s"]:
    """1 / (value + ridge times the mean)."""
    if not value.any():
        warnings.warn("curvature of 1 layer is 0 on aux: the identity stands for it", Floored, 5)
        return torch.ones_like(value)
    value = value + ridge * value.mean()
    if value.min() < NIL * value.max():
        raise ValueError(f"ridge must be higher where a layer's curvature is singular, got {ridge:g}")
    return 1 / value


def _through_captum(
    checkpoints: Sequence[nn.Module],
    rates: Sequence[float],
    x: Float[Tensor, "n *d"],
    y: Int[Tensor, "n"],
    memory: str,
) -> Float64[Tensor, "n"]:
    """Sum over checkpoints of rate times squared gradient norm, for any model."""
    from captum.influence import TracInCP  # type: ignore[import-untyped]  # a second to import; few ask it

    def load(model: nn.Module, i: int) -> float:
        model.load_state_dict(checkpoints[i].state_dict())
        return rates[i]

    model = copy.deepcopy(checkpoints[0])
    for w in model.parameters():
        w.requires_grad_()
    loss = nn.CrossEntropyLoss(reduction="none")
    out = []
    with torch.random.fork_rng(devices=[]):  # data loaders draw seeds from torch's global generator
        found = TracInCP(model, TensorDataset(x, y), range(len(checkpoints)), load, loss_fn=loss)
        for rows in chunks(model, x, y, memory, 8 * sum(w.numel() for w in model.parameters())):
            out.append(found.self_influence(rows).double())
    return torch.cat(out).to(x.device)


def _log(v: Float64[Tensor, "n"]) -> Float64[Tensor, "n"]:
    return _floored(v.log())


def _floored(log: Float64[Tensor, "n"]) -> Float64[Tensor, "n"]:
    """Lifted to the smallest normal float64; Floored says for how many records."""
    least = math.log(torch.finfo(torch.float64).tiny)
    if low := int((log == -torch.inf).sum()):
        warnings.warn(f"{low} of {len(log)} records have no gradient", Floored, stacklevel=5)
    return log.where(log > -torch.inf, least)
