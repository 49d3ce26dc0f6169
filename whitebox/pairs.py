"""Two heads made linear at the same features, and the net that tells what their difference means.

Leino & Fredrikson 2020, arXiv:1906.11798. At z = h(x) each head's log-probability of y becomes w.z + b, with
w its gradient averaged on the way from 0 to z, and b its value at 0. The displacement net D takes a pair
(w^_j, w~_j) of target and proxy to one number, the same net for each feature j, and for (b^, b~):
m = sum_j D(w^_j, w~_j) z_j + D(b^, b~).
"""

import copy
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Int
from torch import Generator, Tensor, nn

from glasslab.checks import Floored
from whitebox.cut import cut as features_at
from whitebox.fitting import fit, fresh
from whitebox.own_shadows import Shadow
from whitebox.proxy import linearised

HIDDEN = 16
ROWS = 1 << 20  # features that are linearised at a time
KEPT = 1 << 26  # numbers that the displacement net is fitted to


class Pairs(NamedTuple):
    """Both heads linearised at the features z of n records: slopes, and values at z = 0."""

    hat: Float64[Tensor, "n u"]
    tilde: Float64[Tensor, "n u"]
    b_hat: Float64[Tensor, "n"]
    b_tilde: Float64[Tensor, "n"]
    z: Float64[Tensor, "n u"]


class Displacement(nn.Module):
    """D: 2 -> 16 -> ReLU -> 1 on every pair, and m from it. Begins as subtraction.

    `unit` holds the size of slopes and of intercepts, in which D measures them.
    """

    unit: Tensor

    def __init__(self, hidden: int = HIDDEN) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(2, hidden), nn.Linear(hidden, 1)
        with torch.no_grad():
            self.first.weight[:2] = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
            self.first.bias[:2] = 0.0
            self.last.weight.zero_()[:, :2] = torch.tensor([1.0, -1.0])
            self.last.bias.zero_()
        self.register_buffer("unit", torch.ones(2))
        self.double()

    def forward(
        self,
        hat: Float[Tensor, "b u"],
        tilde: Float[Tensor, "b u"],
        b_hat: Float[Tensor, "b"],
        b_tilde: Float[Tensor, "b"],
        z: Float[Tensor, "b u"],
    ) -> Float[Tensor, "b"]:
        slope, intercept = self._of(hat, tilde, self.unit[0]), self._of(b_hat, b_tilde, self.unit[1])
        return (slope * z).sum(1) + intercept

    def _of(self, hat: Float[Tensor, "*b"], tilde: Float[Tensor, "*b"], unit: Tensor) -> Float[Tensor, "*b"]:
        pair = torch.stack([hat, tilde], -1) / unit
        return self.last(self.first(pair).relu()).squeeze(-1) * unit


def displaced(
    displacement: Displacement,
    model: nn.Module,
    heads: Sequence[nn.Module],
    cut: str | None,
    x: Float[Tensor, "n *d"],
    y: Int[Tensor, "n"],
    *,
    n_steps: int = 50,
) -> Float64[Tensor, "n"]:
    """m of every record: the target's head against the mean of the proxy heads, chunk by chunk."""
    net = copy.deepcopy(displacement).to(x.device)
    with torch.no_grad():
        parts = [net(*pairs(model, heads, cut, x[rows], y[rows], n_steps)) for rows in chunks(model, cut, x)]
    return torch.cat(parts)


def learn_displacement(
    drawn: Sequence[Shadow],
    heads: Sequence[Sequence[nn.Module]],
    generator: Generator,
    *,
    cut: str | None,
    n_steps: int,
    epochs: int,
    batch: int,
    lr: float,
) -> Displacement:
    """D of one cut: told by m, as a logit, whether a shadow has learned a record or not."""
    found: list[Pairs] = []
    member: list[Tensor] = []
    for shadow, proxies in zip(drawn, heads, strict=True):
        x, y = shadow.records.x, shadow.records.y
        u = features_at(shadow.model, cut, x[:1]).numel()
        most = max(32, KEPT // (3 * u * len(drawn)))
        kept = torch.randperm(len(x), generator=generator)[:most].to(x.device)
        if len(kept) < len(x):
            text = (
                f"the displacement net learns {len(kept)} of {len(x)} records of a shadow, {u} features each"
            )
            warnings.warn(text, Floored, stacklevel=4)
        for rows in chunks(shadow.model, cut, x[kept]):
            some = kept[rows]
            one = pairs(shadow.model, proxies, cut, x[some], y[some], n_steps)
            found.append(Pairs(*(t.float() for t in one)))
        member.append(shadow.member[kept])
    inputs = Pairs(*(torch.cat(ts) for ts in zip(*found, strict=True)))
    net = fresh(Displacement, generator).to(inputs.z.device)
    slopes = (inputs.hat.square().mean() + inputs.tilde.square().mean()).div(2).sqrt()
    offsets = (inputs.b_hat.square().mean() + inputs.b_tilde.square().mean()).div(2).sqrt()
    # DIFFERS: pairs are measured in their own size; slopes of 1e-3 would meet units that never bend.
    net.unit = torch.stack([slopes, offsets]).clamp(min=torch.finfo(torch.float32).tiny)
    fitted = fit(net.float(), inputs, torch.cat(member), generator, epochs=epochs, batch=batch, lr=lr)
    for w in fitted.double().parameters():
        w.requires_grad_(False)
    return fitted


def pairs(
    model: nn.Module,
    heads: Sequence[nn.Module],
    cut: str | None,
    x: Float[Tensor, "n *d"],
    y: Int[Tensor, "n"],
    n_steps: int,
) -> Pairs:
    """Linearised on the way from 0 to z; the proxies' slopes and intercepts are averaged."""

    def of(net: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
        w, b, z = linearised(net, cut, x, y, form="integrated", n_steps=n_steps, output="log_softmax")
        return w.double().flatten(1), b.double(), z.double().flatten(1)

    hat, b_hat, z = of(model)
    others = [of(head) for head in heads]
    tilde, b_tilde = (torch.stack([other[i] for other in others]).mean(0) for i in (0, 1))
    return Pairs(hat, tilde, b_hat, b_tilde, z)


def chunks(model: nn.Module, cut: str | None, x: Float[Tensor, "n *d"]) -> list[slice]:
    """Rows that hold about ROWS features together."""
    with torch.no_grad():
        size = max(1, ROWS // features_at(model, cut, x[:1]).numel())
    return [slice(i, i + size) for i in range(0, len(x), size)]
