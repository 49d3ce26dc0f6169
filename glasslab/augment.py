"""Random augmentation of a batch for training, and the fixed grid of queries for attacks.

Mirror and reflect-padded crop are those of the CIFAR literature; cutout is DeVries & Taylor 2017,
arXiv:1708.04552; the grid of queries is that of Carlini et al. 2022, arXiv:2112.03570. Offsets act on the
last two axes: a shift moves pixels, not channels. Nothing loops over records.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor
from torch.nn.functional import pad

QUERIES = {1: None, 2: 0, 18: 1, 50: 2, 162: 4}  # k -> largest shift in pixels; 2 (2s + 1)^2 = k


def augment(
    x: Float[Tensor, "b c h w"], names: Sequence[Literal["mirror", "crop", "cutout"]], generator: Generator
) -> Float[Tensor, "b c h w"]:
    """A new batch, each record changed on its own; what is drawn comes from a generator on the CPU.

    Raises ValueError on an unknown name.
    """
    known = {"mirror": _mirror, "crop": _crop, "cutout": _cutout}
    for name in names:
        if name not in known:
            raise ValueError(f"augment must name some of {', '.join(known)}, got {name!r}")
        x = known[name](x, generator)
    return x


def queries(x: Float[Tensor, "n *d"], k: int) -> Float[Tensor, "{k} n *d"]:
    """The k versions of each record that target and shadows are asked for: the same pixels for every model.

    1: as it is. 2: and its mirror image. 18, 50, 162: both, shifted by up to s = 1, 2, 4 pixels each way over
    reflected borders. The first is always the record itself. Raises ValueError on another k, on tables with
    k > 1, and on images that are not larger than s.
    """
    if k not in QUERIES:
        raise ValueError(f"queries must be one of {', '.join(map(str, QUERIES))}, got {k}")
    s = QUERIES[k]
    if s is None:
        return x[None]
    if x.ndim != 4:
        raise ValueError(f"queries must be 1 for tables, got {k} for records of shape {tuple(x.shape[1:])}")
    h, w = x.shape[2:]
    if min(h, w) <= s:
        raise ValueError(f"queries={k} needs images larger than {s} pixels, got {h} x {w}")
    # DIFFERS: the authors' grid begins at the shift (-s, -s); here the identity comes first.
    grid = [(dx, dy) for dx in range(-s, s + 1) for dy in range(-s, s + 1)]
    shifts = [(0, 0), *(shift for shift in grid if shift != (0, 0))]
    padded = pad(x, (s, s, s, s), mode="reflect")
    sides = (padded, padded.flip(3))
    return torch.stack([v[:, :, s + dy :, s + dx :][:, :, :h, :w] for v in sides for dx, dy in shifts])


def _mirror(x: Float[Tensor, "b c h w"], generator: Generator) -> Float[Tensor, "b c h w"]:
    """Left and right change places in half of the records."""
    h, w = x.shape[2:]
    flip = torch.rand(len(x), 1, generator=generator) < 0.5
    column = torch.arange(w).expand(len(x), w)
    return _pixels(x, torch.arange(h).expand(len(x), h), torch.where(flip, w - 1 - column, column))


def _crop(x: Float[Tensor, "b c h w"], generator: Generator) -> Float[Tensor, "b c h w"]:
    """Shifted by up to an eighth of the side each way (4 of 32 pixels), over reflected borders."""
    h, w = x.shape[2:]
    return _pixels(x, _shifted(len(x), h, generator), _shifted(len(x), w, generator))


def _cutout(x: Float[Tensor, "b c h w"], generator: Generator) -> Float[Tensor, "b c h w"]:
    """A square of half the side around a random pixel, cut at the borders, is painted over.

    DIFFERS: with the record's own mean colour; the paper paints 0 on inputs of mean 0, ours lie in [0, 1].
    """
    h, w = x.shape[2:]
    inside = [_window(len(x), side, generator).to(x.device) for side in (h, w)]
    hole = (inside[0][:, :, None] & inside[1][:, None, :])[:, None]
    return torch.where(hole, x.mean((2, 3), keepdim=True), x)


def _pixels(
    x: Float[Tensor, "b c h w"], row: Int[Tensor, "b h"], column: Int[Tensor, "b w"]
) -> Float[Tensor, "b c h w"]:
    """Pixel (i, j) of a record comes from its pixel (row[i], column[j])."""
    h, w = x.shape[2:]
    source = (row[:, :, None] * w + column[:, None, :]).flatten(1).to(x.device)
    return x.flatten(2).gather(2, source[:, None].expand(-1, x.shape[1], -1)).unflatten(2, (h, w))


def _shifted(b: int, side: int, generator: Generator) -> Int[Tensor, "{b} {side}"]:
    """0 .. side - 1, moved by one random shift a record and reflected at both ends."""
    s = max(side // 8, 1)
    place = torch.arange(side) + torch.randint(-s, s + 1, (b, 1), generator=generator)
    return (side - 1) - ((side - 1) - place.abs()).abs()


def _window(b: int, side: int, generator: Generator) -> Tensor:
    """Where on an axis the square lies: half of the side, centred at one random pixel a record."""
    start = torch.randint(side, (b, 1), generator=generator) - side // 4
    place = torch.arange(side)
    return (place >= start) & (place < start + side // 2)
