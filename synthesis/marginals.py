"""Records drawn feature by feature (Shokri et al. 2017, arXiv:1610.05820, statistics-based synthesis).

The attacker has: the marginal of each feature, from records of its own (aux), published counts or a table,
and one query of the target a record, for its label: x_j ~ marginal of feature j, all independent, and
y = argmax f(x). `by_class` is a much stronger attacker, who knows the marginals of each class and asks
nothing: x_j ~ marginal of feature j in class y.
"""

import warnings
from collections.abc import Mapping

import torch
from jaxtyping import Float, Float64, Int
from torch import Generator, Tensor

from glasslab.checks import Floored
from glasslab.data import Data
from glasslab.oracle import Oracle
from synthesis.features import Features, draw, features_of, with_marginals
from synthesis.synthetic import Synthetic, labels, named


def marginals(
    statistics: Features | Data,
    n: int,
    *,
    generator: Generator,
    oracle: Oracle | None = None,
    by_class: bool = False,
    features: Features | None = None,
    shape: tuple[int, ...] | None = None,
) -> Synthetic:
    """n records of independent features, labelled by the target: one query each.

    `statistics` are features with their marginals, and `shape` that of a record (flat by default); or records
    of the attacker's own, and `features` their kinds (guessed by default). `by_class`, from records only,
    draws as equal a number of each class as may be from that class's marginals, which is then the label; no
    query, so that the confidence is NaN.
    Warns Floored with the number of classes of a single record: they are copied.
    Raises ValueError before anything is asked: on features without a marginal, a budget under n, no oracle
    (or one with `by_class`), a class without records; and where the target answers NaN.
    """
    _check(statistics, n, oracle, by_class, features, shape)
    state = generator.get_state()
    if isinstance(statistics, Data):
        shape = statistics.shape
        kinds = features_of(statistics) if features is None else features
        if by_class:
            return _by_class(statistics, n, kinds, generator)
        held = with_marginals(kinds, statistics)
    else:
        held = list(statistics)
    x = draw(held, n, generator)
    try:
        x = x.reshape(n, *(shape or (-1,)))
    except RuntimeError:
        raise ValueError(f"shape must hold {x.shape[1]} features, got {shape}") from None
    assert oracle is not None
    y, confidence = _told(oracle, x)
    return _made(x, y, confidence, 1, "marginals", {"features": held, "n": n, "generator": state})


def _by_class(data: Data, n: int, kinds: Features, generator: Generator) -> Synthetic:
    single = data.counts.count(1)
    if single:
        text = f"{single} of {data.classes} classes have one record, of which theirs are copies"
        warnings.warn(text, Floored, stacklevel=3)
    settings = {"features": list(kinds), "data": data.digest, "n": n, "generator": generator.get_state()}
    y = labels(n, data.classes)
    drawn = [
        draw(with_marginals(kinds, data[data.y == c]), int((y == c).sum()), generator)
        for c in range(data.classes)
    ]
    x = torch.cat(drawn).reshape(n, *data.shape)
    unasked = torch.full((n,), torch.nan, dtype=torch.float64, device=x.device)
    return _made(x, y.to(x.device), unasked, 0, "marginals-by-class", settings)


def _told(oracle: Oracle, x: Float[Tensor, "n *d"]) -> tuple[Int[Tensor, "n"], Float64[Tensor, "n"]]:
    """The target's label of each record and its probability; 1 where it reveals labels alone."""
    answer = oracle(x)
    if oracle.reveals == "labels":
        return answer, torch.ones(len(x), dtype=torch.float64, device=x.device)
    bad = int(answer.isnan().any(1).sum())
    if bad:
        raise ValueError(f"oracle must answer with numbers, got NaN for {bad} of {len(x)} records")
    y = answer.argmax(1)
    return y, answer.gather(1, y[:, None])[:, 0].double()


def _made(
    x: Tensor, y: Tensor, confidence: Tensor, queries: int, method: str, settings: Mapping[str, object]
) -> Synthetic:
    """Every record that was wanted is there."""
    every = torch.ones_like(y)
    reason, name = ("sampled",) * len(y), named(method, {**settings, "shape": x.shape})
    return Synthetic(x, y, confidence, y, every.bool(), queries * every, reason, name)


def _check(
    statistics: Features | Data,
    n: int,
    oracle: Oracle | None,
    by_class: bool,
    features: Features | None,
    shape: tuple[int, ...] | None,
) -> None:
    if n < 1:
        raise ValueError(f"n must be 1 or more, got {n}")
    if isinstance(statistics, Data):
        if shape is not None:
            raise ValueError(f"shape must be left out where records tell it, got {shape}")
    elif features is not None or by_class:
        given = "by_class" if by_class else "features"
        raise ValueError(f"statistics must be records (Data) for {given}, got {len(statistics)} features")
    elif bare := [type(f).__name__ for f in statistics if not f.known]:
        raise ValueError(f"statistics must give each feature a marginal, got none for {bare[0]}")
    elif not statistics:
        raise ValueError("statistics must hold one feature or more, got none")
    if by_class is not (oracle is None):
        what = "None, as by_class takes the class as label" if by_class else "given, to label the records"
        raise ValueError(f"oracle must be {what}, got {'an oracle' if oracle else None}")
    if oracle is not None and oracle.left is not None and oracle.left < n:
        raise ValueError(f"n must be at most what the budget leaves, {oracle.left} queries, got {n}")
    if by_class and isinstance(statistics, Data):
        empty = [c for c, count in enumerate(statistics.counts) if not count]
        if empty:
            raise ValueError(f"statistics must hold every class with by_class, got none of class {empty[0]}")
