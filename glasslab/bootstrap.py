"""Intervals by resampling, and attack against attack on the same resampled targets and records.

Scores are sorted once; a draw is a vector of whole-number weights, whose cumulated sums give the curve.
Rows (targets) and columns (records) of [t, n] are drawn independently and their weights multiplied (the
pigeonhole bootstrap, Owen 2007, arXiv:0712.1111): it counts both as random, and errs on the wide side.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Generator, Tensor

from glasslab.intervals import Interval, percentile
from glasslab.metrics import RATES, auc, balanced_accuracy, flag, pool, tpr_at_fpr

Over = Literal["records", "targets and records"]
DRAWS = 2000
CELLS = 2**17  # scores of one chunk of draws: what the processor's cache holds
RISE = "rise"  # a column of draws: the most by which the curve TPR - FPR rises anywhere


class Difference(NamedTuple):
    """Attack A minus attack B. p is two-sided and never below 1 / draws; `flag` says why a TPR is weak."""

    value: float
    low: float | None
    high: float | None
    p: float | None
    flag: str | None


class _Order(NamedTuple):
    """Scores, sorted once, and their curve without (0, 0)."""

    places: Int64[Tensor, "p"]
    outside: Float64[Tensor, "p"]
    ends: Int64[Tensor, "v"] | None  # of the groups of equal scores; None where all scores differ
    distance: Float64[Tensor, "v"]  # TPR - FPR
    best: int


def bootstrap(
    score: Float[Tensor, "*t n"],
    member: Bool[Tensor, "*t n"],
    generator: Generator,
    *,
    rates: Mapping[str, float] = RATES,
    over: Over | None = None,
    draws: int = DRAWS,
) -> dict[str, Interval | None]:
    """95 % intervals of `auc`, `balanced_accuracy` and `tpr_at_NAME` for each rate; None where undefined.

    One target: members and non-members are resampled apart. Several: `over` says whether only the records
    or the targets too, which is the default from 5 targets on. The threshold of a rate is found anew in
    each draw. Where fewer than 10 false positives are allowed, such an interval is not to be trusted.
    """
    drawn = _bootstrap([score], member, generator, rates, over, draws)[0]
    between = {name: percentile(column) for name, column in drawn.items() if name != RISE}
    between["balanced_accuracy"] = _under_a_maximum(balanced_accuracy(score, member), drawn)
    return between


def paired(
    a: Float[Tensor, "*t n"],
    b: Float[Tensor, "*t n"],
    member: Bool[Tensor, "*t n"],
    generator: Generator,
    *,
    rates: Mapping[str, float] = RATES,
    over: Over | None = None,
    draws: int = DRAWS,
) -> dict[str, Difference]:
    """Is A better than B? Both see the draws of `bootstrap`; balanced accuracy keeps each one's threshold.

    More than one comparison: `against`, and correct their p by `intervals.holm`.
    """
    return against(b, [a], member, generator, rates=rates, over=over, draws=draws)[0]


def against(
    rival: Float[Tensor, "*t n"],
    attacks: Sequence[Float[Tensor, "*t n"]],
    member: Bool[Tensor, "*t n"],
    generator: Generator,
    *,
    rates: Mapping[str, float] = RATES,
    over: Over | None = None,
    draws: int = DRAWS,
) -> list[dict[str, Difference]]:
    """`paired` of each attack with one rival: drawn once for all of them."""
    drawn, *others = _bootstrap([rival, *attacks], member, generator, rates, over, draws)
    value, n_neg = _values(rival, member, rates), int((~member).sum())
    flags = {f"tpr_at_{name}": flag(n_neg, fpr) for name, fpr in rates.items()}
    return [
        {
            name: _difference(its[name] - value[name], other[name] - drawn[name], flags.get(name))
            for name in value
        }
        for other, its in zip(others, (_values(attack, member, rates) for attack in attacks), strict=True)
    ]


def drawn(
    scores: Sequence[Float[Tensor, "*t n"]],
    member: Bool[Tensor, "*t n"],
    generator: Generator,
    fpr: float,
    *,
    over: Over | None = None,
    draws: int = DRAWS,
) -> Float64[Tensor, "s b"]:
    """The TPR at one FPR of each score in each draw; all scores see the same draws."""
    columns = _bootstrap(list(scores), member, generator, {"one": fpr}, over, draws)
    return torch.stack([column["tpr_at_one"] for column in columns])


def _under_a_maximum(value: float, drawn: Mapping[str, Tensor]) -> Interval | None:
    """The interval of a balanced accuracy, the height of the curve's top, which luck alone raises."""
    # DIFFERS: percentiles of each draw's own maximum add that luck twice and cover a null attack in 1 % of
    # cases. So: below, what noise can raise anywhere on the curve; above, the best threshold, held fixed.
    held, rise = percentile(drawn["balanced_accuracy"]), percentile(drawn[RISE])
    return held and rise and Interval(max(0.5, value - rise.high / 2), max(value, held.high))


def _difference(value: float, draws: Float64[Tensor, "b"], why: str | None) -> Difference:
    between, defined = percentile(draws), draws[~draws.isnan()]
    if between is None:
        return Difference(value, None, None, None, why)
    least = min(int((defined <= 0).sum()), int((defined >= 0).sum()))
    p = min(1.0, max(2 * least, 1) / len(defined))
    return Difference(value, between.low, between.high, p, why)


def _values(score: Tensor, member: Tensor, rates: Mapping[str, float]) -> dict[str, float]:
    tpr = {f"tpr_at_{name}": tpr_at_fpr(score, member, fpr).tpr for name, fpr in rates.items()}
    return {"auc": auc(score, member), "balanced_accuracy": balanced_accuracy(score, member), **tpr}


def _bootstrap(
    scores: list[Tensor],
    member: Tensor,
    generator: Generator,
    rates: Mapping[str, float],
    over: Over | None,
    draws: int,
) -> list[dict[str, Tensor]]:
    """One table of draws a score, all under the same weights. A draw that lost one side is NaN."""
    orders = [_order(score, member) for score in scores]
    chunks = [
        [_read(order, weight, list(rates.values())) for order in orders]
        for weight in _weights(torch.atleast_2d(member).cpu(), generator, over, draws)
    ]
    names = ["auc", "balanced_accuracy", RISE, *(f"tpr_at_{name}" for name in rates)]
    return [dict(zip(names, torch.cat(of_score, 1), strict=True)) for of_score in zip(*chunks, strict=True)]


def _weights(
    member: Bool[Tensor, "t n"], generator: Generator, over: Over | None, draws: int
) -> Iterator[Float64[Tensor, "b p"]]:
    """How often each score is drawn, in chunks."""
    t, n = member.shape
    over = over or ("targets and records" if t >= 5 else "records")
    chunk = max(1, CELLS // member.numel())
    for start in range(0, draws, chunk):
        b = min(chunk, draws - start)
        if t == 1:
            weight = torch.zeros(b, n, dtype=torch.float64)
            for side in (member[0], ~member[0]):
                weight[:, side] = _counts(int(side.sum()), b, generator)
            yield weight
        else:
            rows = torch.ones(b, t) if over == "records" else _counts(t, b, generator)
            yield (rows[:, :, None] * _counts(n, b, generator)[:, None]).flatten(1)


def _counts(n: int, b: int, generator: Generator) -> Float64[Tensor, "{b} {n}"]:
    """How often each of n things is met in n draws with replacement, b times."""
    drawn = torch.randint(n, (b, n), generator=generator)
    one = torch.ones((), dtype=torch.float64).expand(b, n)
    return torch.zeros(b, n, dtype=torch.float64).scatter_add_(1, drawn, one)


def _order(score: Tensor, member: Tensor) -> _Order:
    pooled, truth = pool(score, member)
    pooled, index = pooled.sort(descending=True)
    last = torch.cat([pooled[1:] != pooled[:-1], pooled.new_ones(1).bool()])
    tpr, fpr = (side[index].cumsum(0)[last] / side.sum() for side in (truth.double(), (~truth).double()))
    distance = tpr - fpr
    ends = None if last.all() else last.nonzero()[:, 0]
    return _Order(index, (~truth)[index].double(), ends, distance, int(distance.argmax()))


def _read(order: _Order, weight: Float64[Tensor, "b p"], rates: list[float]) -> Float64[Tensor, "s b"]:
    """AUC, balanced accuracy at the best threshold, rise, TPR at each rate; whole numbers until divided."""
    sorted_ = weight[:, order.places]
    alarms = (sorted_ * order.outside).cumsum(1)
    hits = sorted_.cumsum(1).sub_(alarms)
    if order.ends is not None:
        alarms, hits = alarms[:, order.ends], hits[:, order.ends]
    n_pos, n_neg = hits[:, -1:], alarms[:, -1:]
    area = torch.trapezoid(hits, alarms) + hits[:, 0] * alarms[:, 0] / 2  # the curve starts at (0, 0)
    k = (n_neg * torch.tensor(rates, dtype=torch.float64) + 1e-9).floor()
    at = torch.searchsorted(alarms, k, right=True)  # vertices with at most k alarms
    caught = hits.gather(1, (at - 1).clamp(min=0)).where(at > 0, 0.0) / n_pos
    caught = caught.where(n_neg > 0, torch.nan)
    distance = (hits / n_pos).sub_(alarms / n_neg)
    held = distance[:, order.best]
    rise = (distance - order.distance).amax(1)  # at (1, 1) it is 0
    return torch.stack([area / (n_pos * n_neg)[:, 0], (1 + held) / 2, rise, *caught.T])
