"""Can this evaluation be trusted? Warns, never hides."""

from collections.abc import Mapping
from typing import Final

import torch
from jaxtyping import Bool, Float
from scipy.stats import norm
from torch import Tensor

from glasslab.intervals import auc_interval
from glasslab.metrics import FEW, RATES, allowed, auc
from glasslab.null_law import auc_se
from glasslab.split import stream

RECORDS: Final = 4000  # that `told_apart` looks at


class Floored(UserWarning):
    """A floor, a clamp or a fallback was used; says how often. It becomes a note of the attack's row."""


def check(
    score: Float[Tensor, "*t n"],
    member: Bool[Tensor, "*t n"],
    *,
    rates: Mapping[str, float] = RATES,
    x: Float[Tensor, "n *d"] | None = None,
    gap: float | None = None,
) -> list[str]:
    """One line for each doubt about an attack's scores; [] if there is none. Never raises on the scores.

    x (the records) lets it look for members that differ from non-members without any model; `gap` is the
    generalisation gap on the candidates, as a share of 1.
    """
    n_pos = int(member.sum())
    n_neg = member.numel() - n_pos
    if not n_pos or not n_neg:
        return [f"there are {n_pos} members and {n_neg} non-members: no metric is defined"]
    out = _too_few(n_neg, rates) + (told_apart(x, member) if x is not None else [])
    bad = int((~score.isfinite()).sum())
    if bad:
        return [*out, f"{bad} of {score.numel()} scores are NaN or infinite: no metric is defined"]
    if bool((score == score.flatten()[0]).all()):
        return [*out, f"all {score.numel()} scores are equal: the attack says nothing"]
    return out + _about_auc(score, member, gap)


def told_apart(x: Float[Tensor, "n *d"], member: Bool[Tensor, "*t n"]) -> list[str]:
    """One line for each target whose members a linear classifier finds from the records alone.

    Ridge regression of the truth on standardised features, learned on half of at most 4,000 records and
    tried on the other. Where it beats chance, attacks may have found a difference between data sets and not
    what the model leaked. Chance of a false alarm: 0.001 in all.
    """
    rows = torch.randperm(len(x), generator=stream("told apart"))[:RECORDS]
    features, truth = x.cpu()[rows].double().flatten(1), torch.atleast_2d(member).cpu()[:, rows]
    half = len(rows) // 2
    centre, spread = features[:half].mean(0), features[:half].std(0, correction=0).clamp(min=1e-12)
    weight = _ridge((features[:half] - centre) / spread, truth[:, :half].double().T - 0.5)
    guess = ((features[half:] - centre) / spread @ weight).T
    limit = float(norm.isf(0.001 / len(truth)))
    out = []
    for a, (s, m) in enumerate(zip(guess, truth[:, half:], strict=True)):
        if m.any() and not m.all():
            area, allowance = auc(s, m), limit * auc_se(int(m.sum()), int((~m).sum()))
            if area > 0.5 + allowance:
                out.append(f"members of target {a} stand out without the model: AUC {area:.3f} from x alone")
    return out


def _too_few(n_neg: int, rates: Mapping[str, float]) -> list[str]:
    none = [name for name, fpr in rates.items() if not allowed(n_neg, fpr)]
    few = [name for name, fpr in rates.items() if 0 < allowed(n_neg, fpr) < FEW]
    lines = {
        f"{n_neg} non-members cannot resolve FPR {', '.join(none)}: TPR there is that at FPR 0": none,
        f"TPR at FPR {', '.join(few)} rests on fewer than {FEW} false positives of {n_neg}": few,
    }
    return [line for line, names in lines.items() if names]


def _about_auc(score: Tensor, member: Tensor, gap: float | None) -> list[str]:
    area, (low, high) = auc(score, member), auc_interval(score, member)
    said = f"AUC {area:.3f} (95 % interval {low:.3f} to {high:.3f})"
    if high < 0.5:
        return [f"{said} lies below one half: the sign may be turned, or the counts of shadows tell"]
    if gap is not None and abs(gap) < 0.01 and low <= 0.5:
        return [f"{said} near 0.5 at a generalisation gap of {gap:.1%}: this model may leave little to find"]
    return []


def _ridge(x: Float[Tensor, "n d"], y: Float[Tensor, "n t"]) -> Float[Tensor, "d t"]:
    """Least squares with penalty n, on the smaller of both Gram matrices."""
    n, d = x.shape
    if d <= n:
        return torch.linalg.solve(x.T @ x + n * torch.eye(d, dtype=x.dtype), x.T @ y)
    return x.T @ torch.linalg.solve(x @ x.T + n * torch.eye(n, dtype=x.dtype), y)
