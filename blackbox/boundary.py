"""The boundary attack: how far is it to the nearest input that the model calls something else?

Choquette-Choo et al. 2021, arXiv:2007.14321; Li & Zhang 2021, arXiv:2007.15528. The attacker has: labels, and
records of its own to start from. Training pushes the boundary away from members. Score: the L2 distance from
x to the boundary that HopSkipJump finds (Chen et al. 2020, arXiv:1904.02144), 0 where x is misclassified.
From a point p on the boundary: B_t = B sqrt(t) random unit directions u_b, s_b = 1 where p + delta u_b is
labelled other than y, and -1 where not; v = the mean of (s_b - mean s) u_b, normalised; a step of length
|p - x| / sqrt(t) along v, halved until the label differs; a binary search back to x. All walk at once.
"""

import math
import warnings
from collections.abc import Callable
from itertools import count

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Generator, Tensor

from glasslab.checks import Floored
from glasslab.oracle import Oracle

Box = tuple[float, float]
Differs = Callable[[Tensor, Tensor], Tensor]  # points [b d], labels [b]: is the answer another label?

ROWS = 8192  # points held and asked for at a time
TRIES = 100  # random points of the box, one of which is to be a start
# DIFFERS: 0.01 / sqrt(d) is the share of a distance at which a binary search ends; the authors' is d^-1.5.
TOLERANCE = 0.01


def boundary(
    oracle: Oracle,
    x: Float[Tensor, "n *d"],
    y: Int[Tensor, "n"],
    *,
    generator: Generator,
    budget: int = 2500,
    directions: int = 100,
    start: Float[Tensor, "a ..."] | None = None,
    box: Box | None = None,
) -> Float64[Tensor, "n"]:
    """L2 distance to the boundary, one a record, in units of x; 0 where the answer is not y.

    `budget` is the number of all queries about a record, and is spent to the last one; a misclassified record
    costs one query, and a record without a start what was tried. Start is a random point of the `box` (lowest
    and highest value; by default those of x) with another label, else the nearest record of `start` with one:
    these are asked for once, if needed, beside the budgets. A record that finds neither gets the distance of
    the box's farthest corner. Both are counted in a Floored warning.
    Raises ValueError on tables of zeros and ones, NaN or infinite values, x outside the box, a budget or
    directions below 1, and where a boundary is sought and every answer is the same label.
    """
    low, high = box = _checked(x, start, box, budget, directions)
    y, answer = y.to(x.device), labels(oracle, x)
    right = (answer == y).nonzero().squeeze(1)
    origin, goal = x.flatten(1)[right], y[right]

    def differs(p: Tensor, y: Tensor) -> Tensor:
        parts = p.unflatten(1, x.shape[1:]).split(ROWS)
        return torch.cat([labels(oracle, part) for part in parts]) != y

    far, found, tried = _random_start(differs, origin, goal, min(TRIES, budget // 4), box, generator)
    if start is not None and not found.all():
        far, found = _own_start(origin, goal, far, found, start.to(x).flatten(1), labels(oracle, start))
    if len(right) and not found.any() and bool((answer == answer[0]).all()):
        raise ValueError(f"oracle must know two labels, got only label {int(answer[0])} in every answer")
    if lost := int((~found).sum()):
        warnings.warn(f"{lost} of {len(x)} distances are the farthest corner's: no boundary", Floored, 2)
    # DIFFERS: a library that returns x itself here gives these the distance 0, the mark of an error.
    distance = torch.maximum(origin - low, high - origin).double().norm(dim=1)
    some = found.nonzero().squeeze(1)
    # DIFFERS: neither a start nor a binary search gets more than a quarter of a small budget.
    rounds = min(math.ceil(math.log2(math.sqrt(origin.shape[1]) / TOLERANCE)), budget // 4)
    left = budget - 1 - tried[some]
    held = origin[some], goal[some], far[some], left
    distance[some] = _walk(differs, *held, rounds, directions, box, generator)
    return torch.zeros_like(y, dtype=torch.float64).index_put((right,), distance)


def labels(oracle: Oracle, x: Float[Tensor, "b *d"]) -> Int[Tensor, "b"]:
    """What the oracle calls each row, also where it reveals more than that; one query a row."""
    answer = oracle(x)
    return answer.argmax(-1) if oracle.reveals == "probabilities" else answer


def _walk(
    differs: Differs,
    x: Float[Tensor, "n d"],
    y: Int[Tensor, "n"],
    far: Float[Tensor, "n d"],
    left: Int[Tensor, "n"],
    rounds: int,
    directions: int,
    box: Box,
    generator: Generator,
) -> Float64[Tensor, "n"]:
    """Distances, by HopSkipJump from the points `far` of other labels, until no query is left."""
    first = left.clamp(max=rounds)
    near, far = _search(differs, x, far, y, first)  # always of the label y, and of another one
    left, best = left - first, [near.clone(), far.clone(), _length(far - x)]
    for t in count(1):
        # The last iteration has fewer directions: one step and its binary search are set aside.
        b = (left - rounds - 1).clamp(min=0, max=int(directions * math.sqrt(t)))
        on = b.nonzero().squeeze(1)
        if not len(on):
            break
        b, origin, goal, p = b[on], x[on], y[on], far[on]
        reach = _length(p - origin)
        delta = 0.01 * reach if t > 1 else torch.full_like(reach, 0.1 * (box[1] - box[0]))
        v = _normal(differs, p, goal, b, delta, box, generator)
        tries = (left[on] - b - rounds).clamp(max=rounds)  # halved more often, a step is below the tolerance
        p, moved, asked = _step(differs, p, goal, v, reach / math.sqrt(t), tries, box)
        back = rounds * moved.long()
        inner = torch.where(moved[:, None], origin, near[on])
        inner, p = _search(differs, inner, p, goal, back)
        near[on], far[on] = inner, p
        left[on] -= b + asked + back
        # DIFFERS: the nearest point ever found counts, in the paper the last one.
        length = _length(p - origin)
        nearer = length < best[2][on]
        for kept, new in zip(best, (inner, p, length), strict=True):
            kept[on[nearer]] = new[nearer]
    # DIFFERS: what is less than another iteration needs goes into a finer binary search.
    _, far = _search(differs, best[0], best[1], y, left)
    return _length(far - x)


def _random_start(
    differs: Differs,
    x: Float[Tensor, "n d"],
    y: Int[Tensor, "n"],
    tries: int,
    box: Box,
    generator: Generator,
) -> tuple[Float[Tensor, "n d"], Bool[Tensor, "n"], Int[Tensor, "n"]]:
    """Random points, asked for one after another until the label is another; whether; after how many."""
    far, found, tried = x.clone(), torch.zeros_like(y, dtype=torch.bool), torch.zeros_like(y).long()
    for _ in range(tries):
        if not len(on := (~found).nonzero().squeeze(1)):
            break
        drawn = torch.rand(len(on), x.shape[1], generator=generator).to(x)
        far[on] = box[0] + (box[1] - box[0]) * drawn
        found[on] = differs(far[on], y[on])
        tried[on] += 1
    return far, found, tried


def _own_start(
    x: Float[Tensor, "n d"],
    y: Int[Tensor, "n"],
    far: Float[Tensor, "n d"],
    found: Bool[Tensor, "n"],
    start: Float[Tensor, "a d"],
    label: Int[Tensor, "a"],
) -> tuple[Float[Tensor, "n d"], Bool[Tensor, "n"]]:
    """For those without a start, the nearest of the attacker's own records that has another label."""
    far, without = far.clone(), (~found).nonzero().squeeze(1)
    for on in without.split(max(1, ROWS * 128 // max(len(start), 1))):
        away = torch.cdist(x[on], start).masked_fill(label == y[on, None], torch.inf)
        least, which = away.min(1)
        far[on], found = start[which], found.index_put((on,), least < torch.inf)
    some = f"{int(found[without].sum())} of {len(x)} records start from another record"
    warnings.warn(f"{some}, and {len(start)} were asked for beside the budgets", Floored, 3)
    return far, found


def _normal(
    differs: Differs,
    p: Float[Tensor, "n d"],
    y: Int[Tensor, "n"],
    b: Int[Tensor, "n"],
    delta: Float64[Tensor, "n"],
    box: Box,
    generator: Generator,
) -> Float[Tensor, "n d"]:
    """Unit vectors from p to the other side, each from b answers at the distance delta around p."""
    most, out = int(b.max()), []
    for rows in torch.arange(len(p), device=p.device).split(max(1, ROWS // most)):
        centre, asked = p[rows, None], torch.arange(most, device=p.device) < b[rows, None]
        u = torch.randn(len(rows), most, p.shape[1], generator=generator).to(p)
        u *= (delta[rows, None].to(p) / u.norm(dim=2).clamp(min=torch.finfo(u.dtype).tiny))[..., None]
        probe = (centre + u).clamp_(*box)
        s = torch.zeros_like(probe[..., 0])
        s[asked] = 2 * differs(probe[asked], y[rows, None].expand_as(asked)[asked]).to(p) - 1
        mean = s.sum(1, keepdim=True) / b[rows, None]
        weight = torch.where(mean.abs() == 1, s, (s - mean) * asked)  # all of one sign: that is the direction
        out.append((weight[:, None] @ probe.sub_(centre)).squeeze(1))  # what the box left of u
    v = torch.cat(out)
    return v / v.norm(dim=1, keepdim=True).clamp(min=torch.finfo(v.dtype).tiny)


def _step(
    differs: Differs,
    p: Float[Tensor, "n d"],
    y: Int[Tensor, "n"],
    v: Float[Tensor, "n d"],
    size: Float64[Tensor, "n"],
    tries: Int[Tensor, "n"],
    box: Box,
) -> tuple[Float[Tensor, "n d"], Bool[Tensor, "n"], Int[Tensor, "n"]]:
    """p + size v, halved until the label is another; p where `tries` do not do; whether it moved; queries."""
    q, moved, asked = p.clone(), torch.zeros_like(y, dtype=torch.bool), torch.zeros_like(tries)
    while len(on := (~moved & (asked < tries)).nonzero().squeeze(1)):
        probe = (p[on] + size[on, None].to(p) * v[on]).clamp(*box)
        other = differs(probe, y[on])
        q[on[other]], moved[on] = probe[other], other
        size, asked = size / 2, asked.index_add(0, on, torch.ones_like(on))
    return q, moved, asked


def _search(
    differs: Differs,
    near: Float[Tensor, "n d"],
    far: Float[Tensor, "n d"],
    y: Int[Tensor, "n"],
    rounds: Int[Tensor, "n"],
) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n d"]]:
    """Both ends after so many halvings, each of which costs a query."""
    near, far = near.clone(), far.clone()
    for r in range(int(rounds.max()) if len(rounds) else 0):
        on = (rounds > r).nonzero().squeeze(1)
        middle = (near[on] + far[on]) / 2
        other = differs(middle, y[on])
        far[on[other]], near[on[~other]] = middle[other], middle[~other]
    return near, far


def _length(v: Float[Tensor, "n d"]) -> Float64[Tensor, "n"]:
    return v.double().norm(dim=1)


def _checked(x: Tensor, start: Tensor | None, box: Box | None, budget: int, directions: int) -> Box:
    """The box. Raises ValueError on what cannot be searched."""
    for name, t in (("x", x), ("start", x if start is None else start)):
        if bad := int((~t.isfinite()).sum()):
            raise ValueError(f"{name} must be finite, got {bad} NaN or infinite values")
        if t.shape[1:] != x.shape[1:]:
            raise ValueError(f"{name} must hold records as x does, {[*x.shape[1:]]}, got {[*t.shape[1:]]}")
    for name, value in (("budget", budget), ("directions", directions)):
        if value < 1:
            raise ValueError(f"{name} must be 1 or more, got {value}")
    if x.ndim == 2 and bool(((x == 0) | (x == 1)).all()):
        raise ValueError("x must be continuous, got a table of zeros and ones: noise_robustness is for these")
    low, high = lowest, highest = float(x.min()), float(x.max())
    if box is not None:
        low, high = box
    if not low < high or lowest < low or highest > high:
        raise ValueError(f"box must hold {lowest:g} .. {highest:g} and have width, got {low:g} .. {high:g}")
    return low, high
