"""Frozen trunk: the target's own features, and many heads of the attacker's on them. An attack of ours.

The attacker has: the target's weights, its weight decay, and the candidates; no shadow model. The last layer
is a function of features h = h^(x) that the target shares with any head put on them. So J heads learn h of
the candidates, each on a random half, and show how log-odds phi look with and without a record:
score = log N(phi | IN heads) - log N(phi | OUT heads) at the target's phi, as in LiRA.
`matt`: -(Theta - Theta_r)' grad loss(Theta_r, h), Theta_r the mean of the OUT heads (Sablayrolles et al.
2019, arXiv:1908.11229). `exact`: no heads; the law of Theta itself, from H and G at the best head for all
candidates. A trunk that knows its members by heart makes them easy for every head; `with_trunks` adds what
that says, from trunks of shadow models. Higher = member.
"""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Generator, Tensor, nn

from glasslab.checks import Floored
from glasslab.likelihood import fit, ratio
from glasslab.signals import phi
from whitebox import cut as slices
from whitebox.frozen_heads import Heads, deep, dense, law, of_weights
from whitebox.gradients import check_eval, chosen
from whitebox.last_layer import last_inputs, own_less_wrong

Statistic = Literal["ratio", "matt"]

ENOUGH = 48  # heads, from which on the tail of the scores can be read
BATCH = 128  # records at a time
WIDER = 1e-3  # added to each spread, in nats


def frozen_trunk(
    model: nn.Module,
    x: Float[Tensor, "n *d"],
    y: Int[Tensor, "n"],
    generator: Generator,
    *,
    weight_decay: float,
    heads: int = 96,
    cut: str | None = None,
    statistic: Statistic = "ratio",
    exact: bool = False,
    steps: int = 200,
    lr: float = 0.05,
    ridge: float = 0.05,
    memory: str = "512MiB",
) -> Float64[Tensor, "n"]:
    """Log-likelihood ratio of membership in nats, from `heads` heads on the target's features of x.

    `weight_decay` is the target's. `cut` names the module whose output is the features (None: the input of
    the last layer, which must be dense). "matt" gives the drop of the loss, to first order, from the OUT
    heads to the target. `exact` takes the law of the last layer's weights instead; `ridge` is added to its G,
    in units of the mean eigenvalue. Scores depend on the other candidates. Warns Floored below 48 heads.
    Raises ValueError in training mode; on fewer candidates than features with weight_decay 0; where a record
    has fewer than 2 heads a side; with `exact` or "matt" and a deeper cut; with `exact` and weight_decay 0.
    """
    _check(model, x, y, weight_decay, heads, statistic, exact)
    if cut is not None and (exact or statistic == "matt"):
        raise ValueError(f"cut must be None with exact or statistic 'matt', got {cut!r}")
    if exact:
        if statistic != "ratio":
            raise ValueError(f"statistic must be 'ratio' with exact, got {statistic!r}")
        return _exact(model, x, y, weight_decay, ridge, memory).to(x.device)
    member = _halves(heads, len(x), generator)
    z, own, made = _heads(model, x, y, member, generator, cut, weight_decay, steps, lr, memory)
    return _scores(z, own, y.to(z.device), made, member, statistic).to(x.device)


def with_trunks(
    model: nn.Module,
    x: Float[Tensor, "n *d"],
    y: Int[Tensor, "n"],
    shadows: Sequence[nn.Module],
    member: Bool[Tensor, "m n"],
    generator: Generator,
    *,
    weight_decay: float,
    heads: int = 96,
    trunks: int = 8,
    trunk_heads: int = 24,
    cut: str | None = None,
    steps: int = 200,
    lr: float = 0.05,
    memory: str = "512MiB",
) -> Float64[Tensor, "n"]:
    """The score of `frozen_trunk` plus what the trunk itself says, in nats, from the first `trunks` shadows.

    member[i, j]: record j is in shadow i. The same `trunk_heads` halves of the candidates teach heads on each
    trunk. The target's mean phi over OUT heads, less that of the trunks that never saw the record, is what
    its trunk remembers; how much it speaks for membership is told by how far it rises in the shadows.
    Raises ValueError as `frozen_trunk`, and unless each record is out of 1+ trunks, some of 2, some in.
    """
    _check(model, x, y, weight_decay, heads, "ratio")
    known = member[:trunks].to(x.device)
    _check_trunks(known, shadows, len(x))
    halves = _halves(heads, len(x), generator)
    few, easy = halves[:trunk_heads], list[Tensor]()
    if not (~few).any(0).all():
        raise ValueError(f"trunk_heads must leave a head out of each record, got {len(few)}")
    for net in (shadows[i] for i in range(len(known))):
        z, _, made = _heads(net, x, y, few, generator, cut, weight_decay, steps, lr, memory)
        easy.append(_means(z, y.to(z.device), made, few).to(x.device))
    z, own, made = _heads(model, x, y, halves, generator, cut, weight_decay, steps, lr, memory)
    score = _scores(z, own, y.to(z.device), made, halves, "ratio").to(x.device)
    own_easy = _means(z, y.to(z.device), lambda rows: made(rows)[:trunk_heads], few).to(x.device)
    return score + excess(own_easy, torch.stack(easy), known)


def excess(
    easy: Float64[Tensor, "n"], trunks: Float64[Tensor, "m n"], member: Bool[Tensor, "m n"]
) -> Float64[Tensor, "n"]:
    """log N(e | rise, tau^2) - log N(e | 0, tau^2) in nats, e = easy - mean of the record's OUT trunks.

    One rise for all records, the mean over them of IN less OUT trunks; tau^2 is the spread of the OUT
    trunks around their record's mean, pooled, and that of this mean itself.
    """
    inside, outside = (side.double().sum(0) for side in (member, ~member))
    mean = (trunks * ~member).sum(0) / outside
    both = inside > 0
    rise = ((trunks * member).sum(0)[both] / inside[both] - mean[both]).mean()
    square = ((trunks - mean).square() * ~member).sum() / (outside - 1).sum()
    tau2 = square.clamp(min=WIDER**2) * (1 + 1 / outside)
    return rise / tau2 * (easy - mean - rise / 2)


def _heads(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    member: Bool[Tensor, "J n"],
    generator: Generator,
    cut: str | None,
    decay: float,
    steps: int,
    lr: float,
    memory: str,
) -> tuple[Tensor, Float64[Tensor, "n c"], Heads]:
    """Features of the candidates, the target's logits, and heads that have learned the halves."""
    net = None
    if cut is None:
        z, own = last_inputs(model, x, y, memory=memory)
        u = _last(model, x).in_features
    else:
        like = next(model.parameters(), x)
        net, _ = slices.head(model, cut, x[: slices.PROBES].to(like))
        with torch.no_grad():
            z = torch.cat([slices.cut(model, cut, rows.to(like)) for rows in x.split(BATCH)])
            own = torch.cat([net(rows) for rows in z.split(BATCH)]).double()
        u = z[0].numel()
    y, member = y.to(z.device), member.to(z.device)
    if not decay > 0 and len(z) < u:
        raise ValueError(
            f"weight_decay must be above 0 for fewer candidates than features, got {len(z)} for {u}"
        )
    if net is None:
        W = dense(z, y, member, own.shape[1], decay=decay, steps=steps, lr=lr)
        return z, own, of_weights(W)
    return z, own, deep(net, z, y, member, generator, decay=decay, steps=steps, lr=lr)


def _scores(
    z: Tensor,
    own: Float64[Tensor, "n c"],
    y: Int[Tensor, "n"],
    heads: Heads,
    member: Bool[Tensor, "J n"],
    statistic: Statistic,
) -> Float64[Tensor, "n"]:
    member = member.to(z.device)
    if statistic == "ratio":
        S = torch.cat([phi(heads(z[rows]), y[rows]) for rows in _parts(z)], 1)
        held = fit(S, member, variance="record")
        assert held.sig_in is not None, "both sides were fitted"
        held = replace(held, sig_in=held.sig_in + WIDER, sig_out=held.sig_out + WIDER)
        return ratio(phi(own, y), held)
    out = []
    for rows in _parts(z):  # a dense head is linear in Theta: the mean head has the mean logits
        share = (~member[:, rows]).double()[:, :, None]
        mean = (heads(z[rows]) * share).sum(0) / share.sum(0)
        slope = (own_less_wrong(mean, y[rows]) * (own[rows] - mean)).sum(1)
        out.append((-phi(mean, y[rows])).sigmoid() * slope)
    return torch.cat(out)


def _means(z: Tensor, y: Int[Tensor, "n"], heads: Heads, member: Bool[Tensor, "J n"]) -> Float64[Tensor, "n"]:
    """Mean phi over the OUT heads of each record."""
    out = (~member).to(z.device)
    S = torch.cat([phi(heads(z[rows]), y[rows]) for rows in _parts(z)], 1)
    return (S * out).sum(0) / out.sum(0)


def _exact(
    model: nn.Module, x: Tensor, y: Tensor, decay: float, ridge: float, memory: str
) -> Float64[Tensor, "n"]:
    a, _ = last_inputs(model, x, y, memory=memory)
    return law(_last(model, x), a, y.to(a.device), decay=decay, ridge=ridge, memory=memory)


def _last(model: nn.Module, x: Tensor) -> nn.Linear:
    (name,) = chosen(model, "last", x)
    layer = model.get_submodule(name)
    assert isinstance(layer, nn.Linear), "last_inputs refuses others"
    return layer


def _halves(heads: int, n: int, generator: Generator) -> Bool[Tensor, "{heads} {n}"]:
    """Coins for each head and record; ValueError where a record has fewer than two heads a side."""
    member = torch.rand(heads, n, generator=generator) < 0.5
    least = torch.minimum(member.sum(0), (~member).sum(0))
    if (least < 2).any():
        worst = int(least.argmin())
        raise ValueError(
            f"heads must leave 2+ in and out of each record, got {least[worst]} for record {worst} of {heads}"
        )
    return member


def _check(
    model: nn.Module, x: Tensor, y: Tensor, decay: float, heads: int, statistic: str, exact: bool = False
) -> None:
    check_eval(model)
    if not len(x) or len(x) != len(y):
        raise ValueError(f"x and y must hold as many records, 1 or more, got {len(x)} and {len(y)}")
    if not decay >= 0:
        raise ValueError(f"weight_decay must be 0 or more, got {decay}")
    if statistic not in get_args(Statistic):
        raise ValueError(f"statistic must be one of {', '.join(get_args(Statistic))}, got {statistic!r}")
    if heads < ENOUGH and not exact:
        text = f"{heads} of {ENOUGH} heads wanted: the highest scores are uncertain"
        warnings.warn(text, Floored, stacklevel=3)


def _check_trunks(known: Bool[Tensor, "m n"], shadows: Sequence[nn.Module], n: int) -> None:
    if len(known) > len(shadows) or known.shape[1] != n:
        raise ValueError(f"member must be a row a shadow, [{len(shadows)} {n}], got {[*known.shape]}")
    out, some = (~known).sum(0), known.any()
    if not (out >= 1).all() or not (out >= 2).any() or not some:
        raise ValueError(
            "trunks must leave 1+ out of each record, 2+ of some, and some in, "
            f"got {int(out.min())} to {int(out.max())} out and {int(known.sum())} in"
        )


def _parts(z: Tensor) -> list[slice]:
    return [slice(i, i + BATCH) for i in range(0, len(z), BATCH)]
