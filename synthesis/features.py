"""What a record is made of: for each column what is legal, how it is drawn, and which columns move together.

A record is taken flat, [d]; each description covers some of its columns. What one draw sets is a feature: a
column, or a one-hot group, or a block of an image. Without knowledge a feature is uniform on its range; with
a marginal (p, values, or mean and std) it is drawn from that, independently of all others.
"""

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor

from glasslab.data import Data
from synthesis.kinds import Binary, Feature, OneOf, Pixel, Ranged

Features = Sequence[Feature]
Numbers = float | int | Sequence[float | int] | Tensor
Columns = Sequence[int] | Tensor | None


def binary(columns: Columns = None, p: Numbers | None = None) -> Binary:
    """Columns of zeros and ones; p: the share of ones, of each or of all. None: all that no other names."""
    share = None if p is None else _row(p)
    if share is not None and not bool(((share >= 0) & (share <= 1)).all()):
        raise ValueError(f"p must lie in [0, 1], got {float(share.min()):g} to {float(share.max()):g}")
    return Binary(_ids(columns), share)


def integer(lo: Numbers, hi: Numbers, columns: Columns = None, values: Tensor | None = None) -> Ranged:
    """Whole numbers from lo to hi, both included; marginal: values [v] or [v, c], drawn column by column."""
    return _ranged(lo, hi, columns, values, None, whole=True)


def real(
    lo: Numbers,
    hi: Numbers,
    columns: Columns = None,
    values: Tensor | None = None,
    normal: tuple[Numbers, Numbers] | None = None,
) -> Ranged:
    """Reals from lo to hi; marginal: values as for `integer`, or a normal (mean, std), clamped to lo, hi."""
    return _ranged(lo, hi, columns, values, normal, whole=False)


def one_of(columns: Sequence[int] | Tensor, p: Numbers | None = None) -> OneOf:
    """A one-hot group, one feature; p: the shares of its columns, which must sum to 1."""
    ids = _ids(columns)
    assert ids is not None
    share = None if p is None else _row(p)
    if share is not None and (
        len(share) != len(ids) or bool((share < 0).any()) or abs(share.sum() - 1) > 1e-4
    ):
        raise ValueError(f"p must hold {len(ids)} shares that sum to 1, got {share.tolist()}")
    return OneOf(ids, share)


def pixel(patch: int = 1, shape: tuple[int, int, int] | None = None) -> Pixel:
    """All columns as pixels in [0, 1]; shape (channels, rows, columns): blocks patch x patch are features."""
    if patch < 1 or (patch > 1 and shape is None):
        raise ValueError(f"patch must be 1 or more, and needs a shape above 1, got {patch} and {shape}")
    return Pixel(None, patch, shape)


def resolved(features: Features, d: int, device: torch.device | str = "cpu") -> list[Feature]:
    """The features on `device`, None replaced by the columns of 0 .. d - 1 that are named nowhere.

    Raises ValueError unless every column is named once.
    """
    named = [f.columns for f in features if f.columns is not None]
    count = torch.bincount(torch.cat(named).cpu(), minlength=d) if named else torch.zeros(d).long()
    rest = (count == 0).nonzero().squeeze(1)
    full = [replace(f, columns=rest) if f.columns is None else f for f in features]
    twice = bool((count > 1).any()) or len(full) - len(named) > 1
    if len(count) > d or twice or (len(full) == len(named) and len(rest)):
        raise ValueError(
            f"features must name each of {d} columns once, got {[_size(f) for f in features]} columns"
        )
    for f in full:
        if isinstance(f, Pixel) and f.shape is not None and f.shape[0] * f.shape[1] * f.shape[2] != _size(f):
            raise ValueError(f"shape must hold {_size(f)} pixels, got {f.shape}")
    return [_placed(f, device) for f in full]


def features_of(data: Data) -> list[Feature]:
    """A guess, without marginals: all 0 and 1: binary; images: pixels; else reals on each column's range."""
    d = data.x[0].numel()
    x = data.x.reshape(len(data), d).float()
    if bool(((x == 0) | (x == 1)).all()):
        return resolved([binary()], d)
    if len(data.shape) == 3 and bool(((x >= 0) & (x <= 1)).all()):
        return resolved([pixel(shape=(data.shape[0], data.shape[1], data.shape[2]))], d)
    return resolved([real(x.amin(0), x.amax(0))], d)


def with_marginals(features: Features, data: Data) -> list[Feature]:
    """The features with marginals from the records of `data`: shares of ones, or the values themselves.

    Raises ValueError where a record of data is not legal.
    """
    d = data.x[0].numel()
    x = data.x.reshape(len(data), d).float()
    full = resolved(features, d, x.device)
    check_legal(full, x, "data")
    return [f.fitted(x[:, _columns(f)]) for f in full]


def plain(features: Features) -> list[Feature]:
    """The same features without marginals."""
    return [f.plain() for f in features]


def draw(features: Features, n: int, generator: Generator, d: int | None = None) -> Float[Tensor, "{n} d"]:
    """n records of independent features, on the generator's device; d: needed where a feature is `None`."""
    wide = _breadth(features) if d is None else d
    return joined(resolved(features, wide, generator.device), n, generator)


def joined(full: Features, n: int, generator: Generator) -> Float[Tensor, "{n} d"]:
    """`draw` without checks, for features that `resolved` gave, on the generator's device."""
    wide = sum(len(_columns(f)) for f in full)
    if len(full) == 1 and torch.equal(_columns(full[0]), torch.arange(wide, device=generator.device)):
        return full[0].draw(n, generator)
    x = torch.empty(n, wide, device=generator.device)
    for f in full:
        x[:, _columns(f)] = f.draw(n, generator)
    return x


def units(features: Features) -> Int[Tensor, "d"]:
    """Of each column the number of its feature, 0 .. u - 1; a one-hot group or a block of pixels has one."""
    wide, first = _breadth(features), 0
    unit = torch.empty(wide, dtype=torch.long)
    for f in resolved(features, wide):
        own = f.units()
        unit[_columns(f)] = first + own
        first += int(own.max()) + 1 if len(own) else 0
    return unit


def flips(features: Features) -> Bool[Tensor, "d"]:
    """Which columns are binary: these can be flipped, all others only redrawn."""
    wide = _breadth(features)
    can = torch.zeros(wide, dtype=torch.bool)
    for f in resolved(features, wide):
        can[_columns(f)] = isinstance(f, Binary)
    return can


def legal(features: Features, x: Float[Tensor, "n d"]) -> Bool[Tensor, "n"]:
    """Whether each record holds legal values only."""
    good = torch.ones(len(x), dtype=torch.bool, device=x.device)
    for f in resolved(features, x.shape[1], x.device):
        good &= f.legal(x[:, _columns(f)])
    return good


def check_legal(features: Features, x: Float[Tensor, "n d"], name: str) -> None:
    """ValueError, which says `name`, where a record holds a value that its feature cannot have."""
    bad = (~legal(features, x)).nonzero().squeeze(1)
    if len(bad):
        raise ValueError(
            f"{name} must hold legal values of its features, got {len(bad)} of {len(x)} records that do not, "
            f"first record {int(bad[0])}"
        )


def _ranged(
    lo: Numbers,
    hi: Numbers,
    columns: Columns,
    values: Tensor | None,
    normal: tuple[Numbers, Numbers] | None,
    *,
    whole: bool,
) -> Ranged:
    low, high = _row(lo), _row(hi)
    if not bool((low <= high).all()):
        raise ValueError(f"hi must be at least lo, got lo {low.tolist()} and hi {high.tolist()}")
    known = None if values is None else values.float().reshape(len(values), -1)
    if known is not None and not bool(((known >= low) & (known <= high)).all()):
        raise ValueError(
            f"values must lie between lo and hi, got {float(known.min()):g} to {float(known.max()):g}"
        )
    mean, std = (None, None) if normal is None else (_row(normal[0]), _row(normal[1]))
    if std is not None and not bool((std >= 0).all()):
        raise ValueError(f"normal must hold a std of 0 or more, got {std.tolist()}")
    if whole and not bool(((low == low.round()) & (high == high.round())).all()):
        raise ValueError(f"lo and hi must be whole numbers, got {low.tolist()} and {high.tolist()}")
    return Ranged(_ids(columns), low, high, whole, known, mean, std)


def _row(numbers: Numbers) -> Float[Tensor, "c"]:
    return torch.as_tensor(numbers, dtype=torch.float32).reshape(-1)


def _ids(columns: Columns) -> Tensor | None:
    if columns is None:
        return None
    ids = torch.as_tensor(columns, dtype=torch.long).reshape(-1)
    if not len(ids) or int(ids.min()) < 0:
        raise ValueError(f"columns must be one or more numbers from 0, got {ids.tolist()}")
    return ids


def _columns(f: Feature) -> Int[Tensor, "c"]:
    assert f.columns is not None
    return f.columns


def _size(f: Feature) -> int | str:
    return "all other" if f.columns is None else len(f.columns)


def _breadth(features: Features) -> int:
    """How many columns the features name."""
    if any(f.columns is None for f in features):
        raise ValueError("features must name their columns, got None: call `resolved(features, d)`")
    return sum(len(_columns(f)) for f in features)


def _placed(f: Feature, device: torch.device | str) -> Feature:
    held = {a.name: getattr(f, a.name) for a in fields(f)}
    here: dict[str, Any] = {name: v.to(device) for name, v in held.items() if isinstance(v, Tensor)}
    return replace(f, **here)
