"""How good synthetic records are. For the evaluator only: it reads private data, and no attack is given it.

The evaluator has: what a synthesis made, the target's training records and held-out ones of the same kind.
Held-out records stand for real ones; what lies nearer to the training records than to these has leaked. What
too few records cannot give is None with a reason, never 0.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from glasslab.data import Data
from glasslab.recipe import Recipe
from glasslab.split import stream
from synthesis.closeness import chosen, covered, marginal_distance, nearest, pair_distance, some
from synthesis.learners import RECIPE, Told, TooFew, Transfer, transfer, two_sample
from synthesis.report import Confidence, Covered, Density, Marginal, Nearest, Pairs, Quality
from synthesis.synthetic import Synthetic

LEAST = 20  # records that an item needs of each side
PAIRS = 200  # features, at most, whose correlations are compared
WORST = 5
T = TypeVar("T")


class _Rows(NamedTuple):
    """Flat records and their labels."""

    x: Float[Tensor, "n d"]
    y: Int[Tensor, "n"]


class _Sets(NamedTuple):
    made: _Rows
    train: _Rows
    held: _Rows


def quality(
    synthetic: Synthetic | Data,
    real_train: Data,
    real_held: Data,
    *,
    seed: int = 0,
    records: int = 2000,
    k: int = 5,
    recipe: Recipe = RECIPE,
) -> Quality:
    """The report: print its `lines()`, store its `values()`.

    A Synthetic also tells its confidences and what was wanted; Data does not. At most `records` of each set,
    drawn by seed, go into distances between records, classifiers and nets (of `recipe`); marginals,
    correlations and density are of all. k: whose distance is the radius of coverage. Where real records leave
    [0, 1], distances between records are in standard deviations of each feature.
    Raises ValueError on records of unequal size, unequal numbers of classes, labels that the real data do not
    have, and k or records below 1.
    """
    _check(synthetic, real_train, real_held, records, k)
    place = real_held.x.device
    sets = (synthetic.x, synthetic.y), (real_train.x, real_train.y), (real_held.x, real_held.y)
    whole = _Sets(*(_Rows(x.to(place).float().flatten(1), y.to(place)) for x, y in sets))
    draws = (chosen(len(rows.y), records, stream(seed, "quality", i)) for i, rows in enumerate(whole))
    few = _Sets(*(_Rows(rows.x[at], rows.y[at]) for rows, at in zip(whole, draws, strict=True)))
    near, refused = _scaled(few), dict[str, str]()

    def of(item: str, value: Callable[[], T]) -> T | None:
        try:
            return value()
        except TooFew as reason:
            refused[item] = str(reason)
            return None

    return Quality(
        name=synthetic.method if isinstance(synthetic, Synthetic) else synthetic.name,
        synthetic=len(synthetic.y),
        real_train=len(real_train),
        real_held=len(real_held),
        density=of("density", lambda: _density(whole)),
        marginal=of("marginal", lambda: _marginal(whole, seed)),
        pairs=of("pairs", lambda: _pairs(whole, seed)),
        nearest=of("nearest", lambda: _nearest(near, whole, seed)),
        two_sample=of("two_sample", lambda: _told(few, seed)),
        coverage=tuple(_coverage(near, synthetic, real_held.classes, k)),
        transfer=of("transfer", lambda: _transfer(few, real_held, seed, recipe)),
        confidence=of("confidence", lambda: _confidence(synthetic)),
        refused=refused,
    )


def overlap(statistics: Data, real_train: Data) -> list[str]:
    """One line where the records that a synthesis was fitted on hold records of the target's training set."""
    own = set(_bytes(real_train.x))
    count = sum(row in own for row in _bytes(statistics.x))
    if not count:
        return []
    return [f"{count} of {len(statistics)} records that the synthesis learned from are training records"]


def _density(sets: _Sets) -> Density:
    _need(1, {"synthetic": sets.made.x})
    return Density(float(sets.made.x.double().mean()), float(sets.held.x.double().mean()))


def _marginal(sets: _Sets, seed: int) -> Marginal:
    made, train, held = (rows.x for rows in sets)
    _need(LEAST, {"synthetic": made, "held-out": held})
    value = marginal_distance(made, held)
    order = value.argsort(descending=True, stable=True)[:WORST].tolist()
    real = _alike(train, len(made), seed)
    return Marginal(
        mean=float(value.mean()),
        worst=tuple((j, float(value[j])) for j in order),
        real=None if real is None else float(marginal_distance(real, held).mean()),
    )


def _pairs(sets: _Sets, seed: int) -> Pairs:
    made, train, held = (rows.x for rows in sets)
    _need(LEAST, {"synthetic": made, "held-out": held})
    vary = (held != held[0]).any(0).nonzero()[:, 0]
    if len(vary) < 2:
        raise TooFew(f"needs 2+ features that vary, got {len(vary)}")
    at = vary[chosen(len(vary), PAIRS, stream(seed, "quality", "pairs")).to(vary.device)]
    real = _alike(train, len(made), seed)
    return Pairs(
        value=pair_distance(made[:, at], held[:, at]),
        features=len(at),
        real=None if real is None else pair_distance(real[:, at], held[:, at]),
    )


def _alike(train: Tensor, n: int, seed: int) -> Tensor | None:
    """What real records score: as many training records as synthetic ones, since noise falls with n."""
    return some(train, n, stream(seed, "quality", "alike")) if len(train) >= LEAST else None


def _nearest(near: _Sets, whole: _Sets, seed: int) -> Nearest:
    made, train, held = (rows.x for rows in near)
    _need(LEAST, {"synthetic": made, "training": train, "held-out": held})
    found = nearest(made, train, held, generator=stream(seed, "quality", "nearest"))
    closer = (found.train < found.held).double() + (found.train == found.held).double() / 2
    own = set(_bytes(whole.train.x))
    return Nearest(
        train=float(found.train.quantile(0.5)),
        held=float(found.held.quantile(0.5)),
        nearer=float(closer.mean()),
        each=found.each,
        copies=sum(row in own for row in _bytes(whole.made.x)),
    )


def _told(few: _Sets, seed: int) -> Told:
    _need(LEAST, {"synthetic": few.made.x, "held-out": few.held.x})
    return two_sample(few.made.x, few.held.x, seed=seed)


def _coverage(near: _Sets, synthetic: Synthetic | Data, classes: int, k: int) -> list[Covered]:
    """A row a class; synthetic and real ones of this class alone."""
    made = torch.bincount(synthetic.y, minlength=classes).tolist()
    wanted: list[int | None] = [None] * classes
    if isinstance(synthetic, Synthetic):
        wanted = torch.bincount(synthetic.wanted, minlength=classes).tolist()
    out = []
    for c in range(classes):
        real, own = near.held.x[near.held.y == c], near.made.x[near.made.y == c]
        reason = None if len(real) > k else f"needs {k + 1}+ held-out records of the class, got {len(real)}"
        if wanted[c] == 0:
            reason = "no record of the class was wanted"
        value = None if reason else covered(own, real, k=k)
        out.append(Covered(c, value, reason, len(real), made[c], wanted[c]))
    return out


def _transfer(few: _Sets, real: Data, seed: int, recipe: Recipe) -> Transfer:
    _need(LEAST, {"synthetic": few.made.x, "training": few.train.x, "held-out": few.held.x})
    made, train, held = (
        Data(rows.x.reshape(-1, *real.shape), rows.y, real.classes, "of the quality report") for rows in few
    )
    return transfer(made, train, held, seed=seed, recipe=recipe)


def _confidence(synthetic: Synthetic | Data) -> Confidence:
    if not isinstance(synthetic, Synthetic):
        raise TooFew("needs the target's answers, got records alone")
    p = synthetic.confidence.double()
    p = p[~p.isnan()]
    if not len(p):
        raise TooFew(f"needs the target's answers, got none for {len(synthetic.y)} records")
    lower, median, upper = p.quantile(p.new_tensor([0.25, 0.5, 0.75])).tolist()
    return Confidence(float(p.mean()), lower, median, upper, len(p))


def _scaled(few: _Sets) -> _Sets:
    """In units that distances can be taken in: as they are in [0, 1], else by the spread of real records."""
    real = torch.cat([few.train.x, few.held.x]).double()
    if real.min() >= 0 and real.max() <= 1:
        return few
    spread = torch.where((real == real[0]).all(0), 1.0, real.std(0, correction=0))
    return _Sets(*(_Rows((rows.x - real.mean(0)) / spread, rows.y) for rows in few))


def _need(least: int, sides: Mapping[str, Tensor]) -> None:
    """Raises TooFew."""
    for name, rows in sides.items():
        if len(rows) < least:
            raise TooFew(f"needs {least}+ {name} records, got {len(rows)}")


def _bytes(x: Tensor) -> list[bytes]:
    """One a record, the same for equal ones."""
    rows = (x.float() + 0.0).reshape(len(x), -1).cpu().contiguous().numpy()  # so that -0 is 0
    return [row.tobytes() for row in rows]


def _check(synthetic: Synthetic | Data, real_train: Data, real_held: Data, records: int, k: int) -> None:
    for name, value in (("records", records), ("k", k)):
        if value < 1:
            raise ValueError(f"{name} must be 1 or more, got {value}")
    d, classes = real_held.x[0].numel(), real_held.classes
    if real_train.shape != real_held.shape or synthetic.x.flatten(1).shape[1] != d:
        raise ValueError(
            f"synthetic and real_train must hold records of {d} features like real_held, got shapes "
            f"{[*synthetic.x.shape[1:]]}, {[*real_train.shape]} and {[*real_held.shape]}"
        )
    labels = synthetic.y if not isinstance(synthetic, Synthetic) else synthetic.wanted
    highest = int(labels.max()) if len(labels) else 0
    if real_train.classes != classes or highest >= classes:
        raise ValueError(
            f"real_train must have {classes} classes and synthetic labels below that, got "
            f"{real_train.classes} and a label {highest}"
        )
