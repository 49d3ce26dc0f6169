"""RMIA, the robust membership inference attack (Zarifzadeh, Liu & Shokri 2024, arXiv:2312.03262).

The attacker has: the target's probability of the true class, a few shadow models whose training sets it
knows, and aux, records z that no model trained on. With r(x) = p_theta(x) / p(x), the score of x is the share
of z with LR(x, z) = r(x) / r(z) > gamma. p(x) is a trimmed mean over shadows: online over models in and out
in equal number; offline ((1 + a) m_out + (1 - a)) / 2, with m_out over the models out, as p_in is taken to be
a p_out + (1 - a). No model is in for z, so p(z) is always of the second form.

Inputs are log p in nats, from `log_confidence` or `sm_taylor`. All is in log space, so nothing is floored.
"""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from glasslab import signals
from glasslab.metrics import auc
from glasslab.moments import a_model_each, chunks

Queries = Literal["mean", "vote"]

GRID = tuple(step / 10 for step in range(11))


def rmia(
    log_p: Float[Tensor, "... n"],
    log_p_aux: Float[Tensor, "... a"],
    shadow_log_p: Float[Tensor, "m *k n"],
    shadow_log_p_aux: Float[Tensor, "m a"],
    shadow_member: Bool[Tensor, "m n"],
    *,
    gamma: float = 2.0,
    trim: float = 0.2,
    a: float = 0.3,
    queries: Queries = "mean",
) -> Float64[Tensor, "... n"]:
    """Share of z that each record beats: [*t n] for log_p [*t n] with shadows [m n], [*t k n] with [m k n].

    log_p_aux is [*t a], as aux is asked once; k queries give the `mean` of their shares, or `vote` on each z.
    Of c values floor(trim c) are cut off at either end: none below 5 by default. `a` enters p(z) alone.
    Where a record has more models on one side, the first ones in model order are used.
    Raises ValueError where a record has no model in, or none out, and on shapes or values that do not fit.
    """
    a_model_each(shadow_member, "in", "; rmia_offline needs none")
    a_model_each(~shadow_member, "out")
    log_px = _log_mean("shadow_log_p", shadow_log_p, shadow_member, trim, balanced=True)
    log_pz = _mixed(_aux(shadow_log_p_aux, trim), a)
    return _scores(log_p, log_p_aux, log_px, log_pz, gamma, queries)


def rmia_offline(
    log_p: Float[Tensor, "... n"],
    log_p_aux: Float[Tensor, "... a"],
    shadow_log_p: Float[Tensor, "m *k n"],
    shadow_log_p_aux: Float[Tensor, "m a"],
    shadow_member: Bool[Tensor, "m n"],
    *,
    gamma: float = 2.0,
    trim: float = 0.2,
    a: float = 0.3,
    queries: Queries = "mean",
) -> Float64[Tensor, "... n"]:
    """As `rmia`, with p(x) from the models out alone. Here `a` decides the ranking; `tune` finds one."""
    a_model_each(~shadow_member, "out")
    log_px = _mixed(_log_mean("shadow_log_p", shadow_log_p, shadow_member, trim), a)
    log_pz = _mixed(_aux(shadow_log_p_aux, trim), a)
    return _scores(log_p, log_p_aux, log_px, log_pz, gamma, queries)


def tune(
    shadow_log_p: Float[Tensor, "m *k n"],
    shadow_log_p_aux: Float[Tensor, "m a"],
    shadow_member: Bool[Tensor, "m n"],
    *,
    mock: int = 0,
    gamma: float = 2.0,
    trim: float = 0.2,
    grid: Sequence[float] = GRID,
) -> float:
    """The `a` of best AUC for `rmia_offline` with shadow `mock` as target, the first of several.

    Row mock ^ 1 is left out with it where it is the complement, as in a balanced design: else the number of
    models out would tell who is a member. Raises ValueError where too few shadows are left.
    """
    rest = _others(shadow_member, mock)
    S, member = shadow_log_p[rest], shadow_member[rest]
    a_model_each(~member, "out", f" with shadow {mock} and its complement left out")
    log_out, log_z = _log_mean("shadow_log_p", S, member, trim), _aux(shadow_log_p_aux[rest], trim)
    own, truth = (shadow_log_p[mock], shadow_log_p_aux[mock]), shadow_member[mock]
    return max(grid, key=lambda a: auc(_scores(*own, _mixed(log_out, a), _mixed(log_z, a), gamma), truth))


def log_confidence(
    z: Float[Tensor, "*m n c"], y: Int[Tensor, "n"], *, T: float = 2.0
) -> Float64[Tensor, "*m n"]:
    """log of softmax(z / T) at the true class, in nats; z are logits or log-probabilities.

    >>> log_confidence(torch.tensor([[100.0, 0.0]]), torch.tensor([0]))  # p itself rounds to 1
    tensor([-1.9287e-22], dtype=torch.float64)
    """
    return -signals.loss(z.double() / T, y)


def sm_taylor(
    z: Float[Tensor, "*m n c"], y: Int[Tensor, "n"], *, T: float = 2.0, n: int = 4, margin: float = 0.6
) -> Float64[Tensor, "*m n"]:
    """log of the soft-margin Taylor softmax in nats, the paper's signal for images; z must be logits.

    exp is replaced by the first n terms of its series, and z_y / T is lowered by `margin`. The series can be
    negative (n = 4: below z / T = -1.596). Raises ValueError with the number of p that are not positive.
    """
    place = y.long().expand(z.shape[:-1])[..., None]
    x = z.double() / T
    own = _series(x.gather(-1, place) - margin, n).squeeze(-1)
    others = _series(x, n).scatter(-1, place, 0.0).sum(-1)
    bad = int(((own <= 0) | (own + others <= 0)).sum())
    if bad:
        raise ValueError(
            f"z must give positive Taylor probabilities, got {bad} of {own.numel()} that are not"
        )
    return -(others / own).log1p()


def _scores(
    log_p: Float[Tensor, "... n"],
    log_p_aux: Float[Tensor, "... a"],
    log_px: Float64[Tensor, "*k n"],
    log_pz: Float64[Tensor, "a"],
    gamma: float,
    queries: Queries = "mean",
) -> Float64[Tensor, "... n"]:
    """Share of z with LR > gamma for every record and target, without a pair (x, z) being formed."""
    lead = log_p.shape[: log_p.ndim - log_px.ndim]
    if log_p.shape != (*lead, *log_px.shape):
        raise ValueError(f"log_p must end in {[*log_px.shape]} as shadow_log_p, got {[*log_p.shape]}")
    if log_p_aux.shape != (*lead, *log_pz.shape):
        need = [*lead, *log_pz.shape]
        raise ValueError(f"log_p_aux must be {need} as log_p and shadow_log_p_aux, got {[*log_p_aux.shape]}")
    if not 0 < gamma < math.inf:
        raise ValueError(f"gamma must be above 0 and finite, got {gamma}")
    _finite("log_p", log_p)
    _finite("log_p_aux", log_p_aux)
    # DIFFERS: aux is asked once. The authors' code asks it under each of the k augmentations.
    log_rz = (log_p_aux.double() - log_pz).sort(-1).values
    log_rx = log_p.double() - log_px
    if log_px.ndim > 1 and queries == "vote":
        # More than half of the queries beat z where their lower median does: an even split counts as no.
        log_rx = log_rx.median(-2).values
    share = _share_below(log_rz, log_rx - math.log(gamma))
    # DIFFERS: by default the k shares are averaged, which keeps more levels than the authors' vote.
    return share.mean(-2) if log_px.ndim > 1 and queries == "mean" else share


def _share_below(level: Float64[Tensor, "*t a"], value: Float64[Tensor, "..."]) -> Float64[Tensor, "..."]:
    """Share of the sorted levels strictly below each value of the same target."""
    flat = value.reshape(*level.shape[:-1], -1)
    return (torch.searchsorted(level, flat).double() / level.shape[-1]).reshape(value.shape)


def _log_mean(
    name: str, S: Float[Tensor, "m *k n"], member: Bool[Tensor, "m n"], trim: float, *, balanced: bool = False
) -> Float64[Tensor, "*k n"]:
    """log of the trimmed mean of p over the models out, or over equally many in and out, chunk by chunk."""
    if member.shape != (S.shape[0], S.shape[-1]):
        need, got = [S.shape[0], S.shape[-1]], [*member.shape]
        raise ValueError(f"shadow_member must be {need} as {name}, got {got}")
    if not 0 <= trim < 0.5:
        raise ValueError(f"trim must be in [0, 0.5), got {trim}")
    parts = []
    for rows in chunks(S.shape[-1], S[..., :1].numel()):
        x, inside = (t[..., rows].movedim(0, -1).cpu().numpy() for t in (S, member))
        x = np.array(x, dtype=np.float64, order="C")  # models last: sorted and summed along the memory
        if not np.isfinite(x).all():
            record = rows.start + int(np.argwhere(~np.isfinite(x))[0][-2])
            raise ValueError(f"{name} must be finite, got NaN or infinity for record {record}")
        parts.append(_log_trimmed_mean(x, _balanced(inside) if balanced else ~inside, trim))
    return torch.from_numpy(np.concatenate(parts, -1)).to(S.device)


def _aux(S: Float[Tensor, "m a"], trim: float) -> Float64[Tensor, "a"]:
    """The same of aux, for which all models are out."""
    # DIFFERS: public code averages the upper half of them, or all as though some had been trained on z.
    if not S.numel():
        raise ValueError(f"shadow_log_p_aux must hold a model and a record, got {[*S.shape]}")
    return _log_mean("shadow_log_p_aux", S, torch.zeros(S.shape, dtype=torch.bool), trim)


def _balanced(inside: Bool[np.ndarray, "r m"]) -> Bool[np.ndarray, "r m"]:
    """The first min(n_in, n_out) models of each side, in model order."""
    n_in, n_out = inside.cumsum(-1), (~inside).cumsum(-1)
    return np.where(inside, n_in, n_out) <= np.minimum(n_in[:, -1:], n_out[:, -1:])


def _log_trimmed_mean(
    x: Float64[np.ndarray, "*k r m"], kept: Bool[np.ndarray, "r m"], trim: float
) -> Float64[np.ndarray, "*k r"]:
    """Of exp(x), the models last. exp is monotone, so sorting and trimming may be done on x."""
    # DIFFERS: in log space, where public code adds 1e-6 to denominators and ties whatever lies below.
    count = kept.sum(-1, keepdims=True)
    cut = np.floor(trim * count + 1e-9).astype(int)  # 0.29 * 100 is 28.999...
    x = np.sort(np.where(kept, x, np.inf), -1)
    top = np.take_along_axis(x, np.broadcast_to(count - cut - 1, (*x.shape[:-1], 1)), -1)
    place = np.arange(x.shape[-1])
    middle = (cut <= place) & (place < count - cut)
    total = np.exp(np.where(middle, x - top, -np.inf)).sum(-1, keepdims=True)
    return (top + np.log(total / (count - 2 * cut)))[..., 0]


def _mixed(log_m: Float64[Tensor, "*k n"], a: float) -> Float64[Tensor, "*k n"]:
    """log of ((1 + a) m + (1 - a)) / 2, which is the mean of p_out = m and p_in = a m + (1 - a)."""
    if not 0 <= a <= 1:
        raise ValueError(f"a must be in [0, 1], got {a}")
    return torch.logaddexp(log_m + math.log((1 + a) / 2), log_m.new_tensor((1 - a) / 2).log())


def _others(member: Bool[Tensor, "m n"], mock: int) -> list[int]:
    """All models but the mock target and, where it is there, its complement."""
    if not 0 <= mock < len(member):
        raise ValueError(f"mock must be one of {len(member)} shadows, got {mock}")
    pair = mock ^ 1
    complement = pair < len(member) and bool((member[pair] != member[mock]).all())
    return [j for j in range(len(member)) if j != mock and not (complement and j == pair)]


def _series(x: Float64[Tensor, "..."], n: int) -> Float64[Tensor, "..."]:
    """The first n terms of exp(x): 1 + x + ... + x^(n - 1) / (n - 1)!."""
    term = total = torch.ones_like(x)
    for i in range(1, n):
        term = term * x / i
        total = total + term
    return total


def _finite(name: str, t: Float[Tensor, "..."]) -> None:
    if not t.isfinite().all():
        raise ValueError(f"{name} must be finite, got {int((~t.isfinite()).sum())} NaN or infinite values")
