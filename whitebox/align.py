"""Unit permutations that carry one net onto another: the symmetry of weight space removed.

Ainsworth, Hayase & Srinivasa 2023 (Git Re-Basin, arXiv:2209.04836) match weights layer by layer, by linear
assignment, until no layer gains; Cretu et al. 2024 (arXiv:2306.05093) go through the layers once, from the
input or from the output, or compare what units do on the same records. The attacker has: both nets' weights,
and records for the two methods that compare activations. Nothing is trained; the net stays the same function.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from scipy.optimize import linear_sum_assignment
from torch import Generator, Tensor, nn

from whitebox.symmetry import Symmetry, check_shapes, permuted, reordered, symmetry, trace
from whitebox.tracing import Place, Used

Method = Literal["weights", "bottom_up", "top_down", "activations", "correlation", "sort"]
Permutations = dict[str, Int64[Tensor, "_"]]
Tensors = dict[str, Float64[Tensor, "..."]]

SWEEPS: Final = 100
RECORDS: Final = 500
BATCH: Final = 32
SIDE: Final = 32  # pixels a side of a made-up image


def align(
    model: nn.Module,
    reference: nn.Module,
    x: Float[Tensor, "n *d"] | None = None,
    *,
    method: Method = "weights",
    generator: Generator,
) -> nn.Module:
    """A copy of `model`, the same function, whose hidden units stand in the order of the reference's.

    weights: the highest inner product of all weights, each permutation in turn, in random order, until none
    gains. bottom_up, top_down: one pass, least distance of the weights that lead to a unit, or away from it.
    activations, correlation: least distance, or highest correlation, of what layers read on the first 500
    records of x. sort: by the sum of a unit's incoming weights, a control that does not help.
    Without x, an image of 32 x 32, or a row, finds the permutations. ValueError in training mode, on nets of
    other shapes, and as `symmetry` does.
    """
    try:
        spec = _agreed(model, reference, _records(model, x))
    except RuntimeError as e:
        if x is not None:
            raise
        raise ValueError("x must be given, got None: no record could be made up for the model") from e
    return permuted(model, matched(model, reference, x, spec, method=method, generator=generator), spec)


def matched(
    model: nn.Module,
    reference: nn.Module,
    x: Float[Tensor, "n *d"] | None,
    spec: Symmetry,
    *,
    method: Method = "weights",
    generator: Generator,
) -> Permutations:
    """The permutations that `align` applies: unit i of the reference is most like the model's unit p[i]."""
    if method not in get_args(Method):
        raise ValueError(f"method must be one of {', '.join(get_args(Method))}, got {method!r}")
    if method in ("activations", "correlation"):
        if x is None or not len(x):
            raise ValueError(f"x must hold records for method {method!r}, got none")
        gains = _alike(model, reference, x[:RECORDS], spec, method == "correlation")
        return {name: assigned(gain, spec.groups[name]) for name, gain in gains.items()}
    a, b = (_levelled(dict(net.named_parameters()), spec) for net in (reference, model))
    if method == "weights":
        return _descent(a, b, spec, generator)
    if method == "sort":
        return _sorted(a, b, spec)
    return _greedy(a, b, spec, method == "top_down")


def assigned(gain: Float64[Tensor, "u u"], groups: int = 1) -> Int64[Tensor, "u"]:
    """The bijection p of the highest sum of gain[i, p[i]]; units of one group stay together."""
    side = len(gain) // groups
    cells = gain.cpu().reshape(groups, side, groups, side).transpose(1, 2)
    pairs = cells.flatten(0, 1).numpy()  # of any two groups
    found = np.stack([linear_sum_assignment(cell, maximize=True)[1] for cell in pairs]).astype(np.int64)
    within = torch.from_numpy(found).reshape(groups, groups, side)
    if groups == 1:
        return within[0, 0]
    other = assigned(cells.gather(-1, within[..., None])[..., 0].sum(-1))
    return (other[:, None] * side + within[torch.arange(groups), other]).flatten()


def _descent(a: Tensors, b: Tensors, spec: Symmetry, generator: Generator) -> Permutations:
    """Coordinate descent over the permutations; the inner product of all weights never falls."""
    found, names = {name: torch.arange(size) for name, size in spec.sizes.items()}, list(spec.sizes)
    held = {name: [place for place in spec.places if place.name == name] for name in a}
    for _ in range(SWEEPS):
        moved = False
        for k in torch.randperm(len(names), generator=generator).tolist():
            mine = [p for p in spec.places if p.permutation == names[k] and p.name in a]
            new = found | {names[k]: assigned(_products(a, b, mine, held, found), spec.groups[names[k]])}
            over = {place.name for place in mine}
            # A weight that carries the permutation on both axes is not linear in it: the sum itself decides
            now, then = (
                sum(float((a[n] * _moved(b[n], held[n], p)).sum()) for n in over) for p in (new, found)
            )
            if now - then > 1e-12 * max(1.0, abs(then)):
                found, moved = new, True
        if not moved:
            break
    return found


def _greedy(a: Tensors, b: Tensors, spec: Symmetry, down: bool) -> Permutations:
    """One pass; a layer's other permutations count as far as they are found already."""
    found: Permutations = {}
    waiting = [*reversed(spec.sizes)] if down else [*spec.sizes]
    held = {name: [place for place in spec.places if place.name == name] for name in a}
    while waiting:
        ready = {name: _known(name, a, held, found, down) for name in waiting}
        name = next((n for n in waiting if any(a[p.name].ndim > 1 for p in ready[n])), waiting[0])
        places = ready[name] or [p for p in spec.places if p.permutation == name and p.name in a]
        cost = -2 * _products(a, b, places, held, found)
        cost += _squares(a, places)[:, None]
        cost += _squares({n: _moved(b[n], held[n], found) for n in a}, places)
        found[name] = assigned(-cost, spec.groups[name])
        waiting.remove(name)
    return found


def _known(
    name: str, a: Tensors, held: Mapping[str, Sequence[Place]], found: Permutations, down: bool
) -> list[Place]:
    """Where weights lead to these units (`down`: away from them), their other axes in order already."""
    own = [p for n in a for p in held[n] if p.permutation == name and (p.axis > 0) == down]
    return [p for p in own if all(q is p or q.permutation in found for q in held[p.name])]


def _sorted(a: Tensors, b: Tensors, spec: Symmetry) -> Permutations:
    """Units by the sum of their incoming weights: the highest sum of products is that of both in order."""
    out = {}
    for name, groups in spec.groups.items():
        own = [p for p in spec.places if p.permutation == name and p.name in a and not p.axis]
        own = [p for p in own if a[p.name].ndim > 1] or own
        ours, theirs = (torch.stack([_units(t[p.name], p).sum(1) for p in own]).sum(0) for t in (a, b))
        out[name] = assigned(ours[:, None] * theirs, groups)
    return out


def _products(
    a: Tensors, b: Tensors, places: Sequence[Place], held: Mapping[str, Sequence[Place]], found: Permutations
) -> Float64[Tensor, "u u"]:
    """Inner products of the reference's units with the model's, whose other axes are in the order found."""
    return torch.stack(
        [
            _units(a[p.name], p)
            @ _units(_moved(b[p.name], [q for q in held[p.name] if q is not p], found), p).T
            for p in places
        ]
    ).sum(0)


def _squares(t: Tensors, places: Sequence[Place]) -> Float64[Tensor, "u"]:
    return torch.stack([_units(t[p.name], p).square().sum(1) for p in places]).sum(0)


def _moved(t: Tensor, places: Sequence[Place], found: Permutations) -> Tensor:
    for place in places:
        if place.permutation in found:
            t = reordered(t, place, found[place.permutation])
    return t


def _units(t: Tensor, place: Place) -> Float64[Tensor, "u _"]:
    """One row a unit."""
    return t.movedim(place.axis, 0).reshape(t.shape[place.axis] // place.block, -1)


def _levelled(parameters: Mapping[str, Tensor], spec: Symmetry) -> Tensors:
    """Weights in float64; behind ReLU each unit's incoming length is pushed into the next layer.

    Nets of other activations or with norm layers have no such freedom, and stay as they are.
    """
    t = {name: p.detach().double().cpu() for name, p in parameters.items()}
    for name in (name for name in spec.sizes if name in spec.scalable):
        places = [place for place in spec.places if place.permutation == name]
        length = _squares(t, [p for p in places if not p.axis]).sqrt()
        length = torch.where(length > 0, length, 1.0)  # dead units
        for p in places:
            factor = length.repeat_interleave(p.block)
            shape = [-1 if axis == p.axis else 1 for axis in range(t[p.name].ndim)]
            t[p.name] = t[p.name] * (factor if p.axis else 1 / factor).reshape(shape)
    return t


def _alike(
    model: nn.Module, reference: nn.Module, x: Tensor, spec: Symmetry, correlation: bool
) -> dict[str, Float64[Tensor, "u u"]]:
    """How alike the units of both are on the records, summed over the layers that read them."""
    sums: list[tuple[str, list[Tensor]]] = []
    for batch in x.split(BATCH):
        pairs = list(_read(reference, model, batch))
        sums = sums or [(name, [torch.zeros(())] * 6) for name, _, _ in pairs]
        for (_, total), (_, u, v) in zip(sums, pairs, strict=True):
            n = torch.tensor(float(u.shape[1]))
            parts = (u @ v.T, u.sum(1), v.sum(1), u.square().sum(1), v.square().sum(1), n)
            total[:] = [t + part.cpu() for t, part in zip(total, parts, strict=True)]
    out = {name: torch.zeros(size, size, dtype=torch.float64) for name, size in spec.sizes.items()}
    for name, (uv, su, sv, uu, vv, n) in sums:
        if correlation:
            spread = [(ss - s.square() / n).clamp(min=0) for ss, s in ((uu, su), (vv, sv))]
            dead = [v <= 1e-12 * ss for v, ss in zip(spread, (uu, vv), strict=True)]
            scale = [torch.where(d, 0.0, v.rsqrt()) for d, v in zip(dead, spread, strict=True)]
            out[name] += (uv - su[:, None] * sv / n) * scale[0][:, None] * scale[1]
        else:
            out[name] += 2 * uv - uu[:, None] - vv
    return out


def _read(reference: nn.Module, model: nn.Module, x: Tensor) -> Iterator[tuple[str, Tensor, Tensor]]:
    """What each layer reads of the units in either net: name, and a row a unit."""

    def rows(use: Used, size: int) -> Float64[Tensor, "u _"]:
        return use.tensor.movedim(use.axis, 0).reshape(size, -1).double()

    (spec, ours), (_, theirs) = trace(reference, x), trace(model, x)
    for a, b in zip(ours, theirs, strict=True):
        yield a.permutation, rows(a, spec.sizes[a.permutation]), rows(b, spec.sizes[a.permutation])


def _agreed(model: nn.Module, reference: nn.Module, x: Tensor) -> Symmetry:
    check_shapes(model, reference, "model")
    spec = symmetry(model, x)
    if symmetry(reference, x) != spec:
        raise ValueError("model must be wired as the reference is, got units in other places")
    return spec


def _records(model: nn.Module, x: Tensor | None) -> Tensor:
    """Records that find the permutations; without any, zeros of the shape that the first weight reads."""
    if x is not None:
        return x
    weights = [p for p in model.parameters() if p.ndim > 1]
    if not weights:
        raise ValueError("x must be given for a net without dense or convolutional layers, got None")
    return torch.zeros(2, weights[0].shape[1], *[SIDE] * (weights[0].ndim - 2))
