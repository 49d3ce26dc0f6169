"""Two attacks of Long et al. that set a record's answer beside those of reference models.

Similarity (Long, Bindschaedler & Gunter 2017, arXiv:1712.09136). The attacker has: the target's probabilities
p, and shadow models in and out of each record, whose mean probabilities are p_in and p_out.
Score: KL(p || p_out) - KL(p || p_in) = sum over classes of p_c (log p_in,c - log p_out,c).

GMIA, the direct generalised attack (Long et al. 2018, arXiv:1802.04889). The attacker has: the target's loss
l on a record, and the losses of models out of it; F is their distribution function, smoothed by monotone
cubics. Score: -F(l). `select` finds the records that it is meant for: those with few neighbours.
"""

import warnings
from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor, nn
from torch.nn.functional import normalize

from glasslab.checks import Floored
from glasslab.moments import a_model_each, chunks
from glasslab.oracle import forward

ROWS = 512  # records whose neighbours are counted at a time


def similarity(
    z: Float[Tensor, "*t n c"], shadow_z: Float[Tensor, "m n c"], shadow_member: Bool[Tensor, "m n"]
) -> Float64[Tensor, "*t n"]:
    """Scores in nats, one a record; above 0 the target is more like the models in than like those out.

    z are logits or log-probabilities (of answers that hide something: completed ones); `shadow_z` may be
    memory-mapped. Raises ValueError on NaN or infinite ones, and naming a record without a model in or out.
    """
    if z.shape[-2:] != shadow_z.shape[1:]:
        raise ValueError(f"z must end in {[*shadow_z.shape[1:]]} as shadow_z, got {[*z.shape]}")
    if not z.isfinite().all():
        raise ValueError(f"z must be finite, got {int((~z.isfinite()).sum())} NaN or infinite values")
    parts = [
        (z[..., rows, :].double().softmax(-1) * ratio).sum(-1)
        for rows, ratio in _log_ratios(shadow_z, shadow_member, z[..., 0, 0].numel())
    ]
    return torch.cat(parts, -1)


def dtp(shadow_z: Float[Tensor, "m n c"], shadow_member: Bool[Tensor, "m n"]) -> Float64[Tensor, "n"]:
    """Differential training privacy of each record in nats, its pointwise form; asks no target.

    max over c of |log p_in,c - log p_out,c|; above 1 the authors would not publish. Errors as `similarity`.
    """
    return torch.cat([ratio.abs().amax(-1) for _, ratio in _log_ratios(shadow_z, shadow_member, 1)])


def gmia(
    loss: Float[Tensor, "*t n"], shadow_loss: Float[Tensor, "m n"], shadow_member: Bool[Tensor, "m n"]
) -> Float64[Tensor, "*t n"]:
    """Minus the p-value F(l), in [-1, 0]: how common so low a loss is among models that never saw the record.

    Losses in nats. A record whose OUT losses are all 0 has F = 1: no loss is evidence. Floored counts them.
    Raises ValueError on negative, NaN or infinite losses, and naming a record without a model out.
    """
    _suits(shadow_loss, shadow_member)
    a_model_each(~shadow_member, "out")
    if loss.shape[-1:] != shadow_loss.shape[-1:]:
        raise ValueError(f"loss must end in {[*shadow_loss.shape[-1:]]} as shadow_loss, got {[*loss.shape]}")
    for name, l in (("loss", loss), ("shadow_loss", shadow_loss)):
        if (bad := ~(l.isfinite() & (l >= 0))).any():
            record = int(bad.nonzero()[0, -1])
            raise ValueError(f"{name} must be finite and 0 or more, got {l[bad][0]:g} for record {record}")
    parts = [
        _cdf(loss[..., rows].double(), shadow_loss[:, rows].double(), ~shadow_member[:, rows])
        for rows in chunks(loss.shape[-1], max(len(shadow_loss), loss[..., :1].numel()))
    ]
    silent = int((shadow_loss.masked_fill(shadow_member, 0.0) == 0).all(0).sum())
    if silent:
        warnings.warn(f"{silent} of {loss.shape[-1]} records have OUT losses of 0 only: F = 1", Floored, 2)
    return -torch.cat(parts, -1)


def decide(
    score: Float[Tensor, "*t n"], shadow_member: Bool[Tensor, "m n"], *, level: float = 0.01
) -> Bool[Tensor, "*t n"]:
    """GMIA's decision on its own scores: member iff the p-value is at most `level`.

    Warns Floored with the number of records that have fewer than 1 / level models out: of them the smoothing
    decides below the smallest of their losses. Raises ValueError unless 0 < level < 1.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}")
    few = int(((~shadow_member).sum(0) * level < 1 - 1e-9).sum())
    if few:
        words = (
            f"records have fewer than {1 / level:.0f} models out: a p-value of {level:g} is the smoothing's"
        )
        warnings.warn(f"{few} of {shadow_member.shape[1]} {words}", Floored, stacklevel=2)
    return score >= -level


def select(
    features: Float[Tensor, "n f"],
    features_aux: Float[Tensor, "a f"],
    *,
    n_target: int,
    alpha: float = 0.5,
    beta: float = 0.1,
) -> Bool[Tensor, "n"]:
    """The vulnerable records: fewer than `beta` neighbours expected among `n_target` training records.

    A neighbour is closer than `alpha` in cosine distance; aux says how many there are. Features of several
    models are concatenated. Features that are all 0 have no direction and no neighbour; Floored counts them.
    Raises ValueError on NaN or infinite features, and unless n_target >= 1 and aux has a record.
    """
    if n_target < 1 or not len(features_aux):
        raise ValueError(f"n_target and aux must be 1 or more, got {n_target} and {len(features_aux)}")
    for name, each in (("features", features), ("features_aux", features_aux)):
        if not each.isfinite().all():
            record = int((~each.isfinite()).any(-1).nonzero()[0])
            raise ValueError(f"{name} must be finite, got NaN or infinity for record {record}")
    none = int((features == 0).all(-1).sum())
    if none:
        warnings.warn(f"{none} of {len(features)} records have features of 0 only", Floored, stacklevel=2)
    aux = normalize(features_aux.double(), dim=-1, eps=1e-300).T
    parts = (normalize(rows.double(), dim=-1, eps=1e-300) @ aux for rows in features.split(ROWS))
    count = torch.cat([(1 - cosine < alpha).sum(-1) for cosine in parts])
    # DIFFERS: a public implementation has this ratio upside down.
    return count.double() * n_target / len(features_aux) < beta


def hidden(model: nn.Module, x: Float[Tensor, "n *d"]) -> Float[Tensor, "n f"]:
    """What goes into the last nn.Linear that the model runs, one row a record: its features.

    Without gradient, in batches of fixed size. Raises ValueError in training mode, and without an nn.Linear.
    """
    batches: list[list[Tensor]] = []  # of each batch, what went into the latest nn.Linear

    def keep(layer: nn.Module, given: tuple[Tensor, ...]) -> None:
        batches[-1][:] = given[:1]

    hooks = [model.register_forward_pre_hook(lambda *_: batches.append([]))]
    hooks += [
        layer.register_forward_pre_hook(keep) for layer in model.modules() if isinstance(layer, nn.Linear)
    ]
    try:
        forward(model, x)
    finally:
        for hook in hooks:
            hook.remove()
    if not all(batches):
        raise ValueError(f"model must run an nn.Linear, got none in {type(model).__name__}")
    return torch.cat([batch[-1].flatten(1) for batch in batches])[: len(x)].to(x.device)


def _log_ratios(
    shadow_z: Float[Tensor, "m n c"], member: Bool[Tensor, "m n"], targets: int
) -> Iterator[tuple[slice, Float64[Tensor, "r c"]]]:
    """log p_in - log p_out of the mean probabilities, for some records at a time."""
    _suits(shadow_z, member)
    a_model_each(member, "in")
    a_model_each(~member, "out")
    m, n, c = shadow_z.shape
    if c < 2:
        raise ValueError(f"z must hold two classes or more, got {c}")
    for rows in chunks(n, max(m, targets) * c):
        z, inside = shadow_z[:, rows], member[:, rows]
        if not z.isfinite().all():
            record = rows.start + int((~z.isfinite()).any(-1).any(0).nonzero()[0])
            raise ValueError(f"shadow_z must be finite, got NaN or infinity for record {record}")
        log_p = _log_p(z)
        # DIFFERS: no floor under p_in and p_out. Log space needs none, and classes below one would be ties.
        p_in, p_out = (
            _log_p(log_p.masked_fill(~side[..., None], -torch.inf).logsumexp(0)) for side in (inside, ~inside)
        )
        yield rows, p_in - p_out


def _log_p(z: Float[Tensor, "*m n c"]) -> Float64[Tensor, "*m n c"]:
    """Log-softmax that keeps the tail at p near 1 too: its largest entry is -log1p(the sum of the others)."""
    top = z.double().max(-1, keepdim=True)
    below = z.double() - top.values
    return below - below.exp().scatter(-1, top.indices, 0.0).sum(-1, keepdim=True).log1p()


def _cdf(
    l: Float64[Tensor, "*t r"], L: Float64[Tensor, "m r"], out: Bool[Tensor, "m r"]
) -> Float64[Tensor, "*t r"]:
    """F(l) of each record: knots at 0 and at its distinct OUT losses, as high as their largest rank / q."""
    x = L.T.masked_fill(~out.T, torch.inf).sort(-1).values  # the others at the end
    rank = torch.arange(1, len(L) + 1, device=L.device)
    last = x != torch.cat([x[:, 1:], x.new_full((len(x), 1), torch.inf)], -1)
    # DIFFERS: a knot at (0, 0), unless 0 is one of the losses: below the smallest loss F goes on falling.
    kept = torch.cat([x[:, :1] != 0, last], -1)
    x, y = (torch.cat([t.new_zeros(len(t), 1), t], -1) for t in (x, rank / out.sum(0)[:, None].double()))
    F, size = torch.ones_like(l), kept.sum(-1)
    for k in size[size > 1].unique().tolist():  # a single knot: all losses are 0
        own = size == k
        X, Y = (t[own][kept[own]].reshape(-1, k) for t in (x, y))
        F[..., own] = _pchip(X, Y, l[..., own])
    return F


def _pchip(
    X: Float64[Tensor, "g k"], Y: Float64[Tensor, "g k"], l: Float64[Tensor, "*t g"]
) -> Float64[Tensor, "*t g"]:
    """Monotone cubics through g sets of k knots (Fritsch & Butland 1984), at l >= X[:, 0]; 1 beyond them."""
    s = l.reshape(-1, len(X)).T.contiguous()
    h, rise = X.diff(), Y.diff()
    start, end = _slopes(h, rise)
    piece = (torch.searchsorted(X, s, right=True) - 1).clamp(max=len(h[0]) - 1)
    x, y, h, rise, start, end = (t.gather(-1, piece) for t in (X, Y, h, rise, start, end))
    t = (s - x) / h
    # the usual four Hermite terms, regrouped: no term is below 0, so that nothing cancels near F = 0
    bend = (3 * rise - end).clamp(min=0) * (1 - t) + rise * t
    F = y + t * (start * (1 - t).square() + t * bend)
    # DIFFERS: 1 beyond the knots, where a public implementation extrapolates out of [0, 1].
    return torch.where(s < X[:, -1:], F.clamp(max=1), 1.0).T.reshape(l.shape)


def _slopes(
    h: Float64[Tensor, "g p"], rise: Float64[Tensor, "g p"]
) -> tuple[Float64[Tensor, "g p"], Float64[Tensor, "g p"]]:
    """Slopes at the start and at the end of each piece, times its length: so they are at most 3 rises.

    Between two pieces the weighted harmonic mean of their slopes; at the first and last knot a three-point
    formula, cut at 0. Written in shares of lengths, so that lengths of 1e-300 neither overflow nor vanish.
    """
    if h.shape[-1] == 1:
        return rise, rise
    a = h[:, :-1] / (h[:, :-1] + h[:, 1:])
    b = h[:, 1:] / (h[:, :-1] + h[:, 1:])
    mean = 3 / ((2 * b + a) * a / rise[:, :-1] + (b + 2 * a) * b / rise[:, 1:])
    first = (1 + a[:, :1]) * rise[:, :1] - a[:, :1] * (h[:, :1] / h[:, 1:2]) * rise[:, 1:2]
    last = (1 + b[:, -1:]) * rise[:, -1:] - b[:, -1:] * (h[:, -1:] / h[:, -2:-1]) * rise[:, -2:-1]
    return torch.cat([first.clamp(min=0), b * mean], -1), torch.cat([a * mean, last.clamp(min=0)], -1)


def _suits(S: Float[Tensor, "m n *c"], member: Bool[Tensor, "m n"]) -> None:
    if S.shape[:2] != member.shape:
        raise ValueError(
            f"shadow_member must be [m n] as the shadows' answers {[*S.shape]}, got {[*member.shape]}"
        )
