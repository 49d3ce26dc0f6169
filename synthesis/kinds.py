"""The kinds of feature a record may have: what is legal, how a value is drawn, which columns move as one.

`synthesis.features` makes them and puts them together to a record. `units` numbers the features among the
columns of a kind: two columns of one number are drawn, and moved, together.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor


@dataclass(frozen=True, eq=False)
class Binary:
    """Columns of zeros and ones; p is the share of ones of each, None for fair bits."""

    columns: Int[Tensor, "c"] | None
    p: Float[Tensor, "#c"] | None = None

    @property
    def known(self) -> bool:
        return self.p is not None

    def units(self) -> Int[Tensor, "c"]:
        return _each(self.columns)

    def draw(self, n: int, generator: Generator) -> Float[Tensor, "n c"]:
        shape, device = (n, _width(self.columns)), generator.device
        if self.p is None:
            return _bits(shape, generator)
        return (torch.rand(shape, generator=generator, device=device) < self.p).float()

    def legal(self, x: Float[Tensor, "n c"]) -> Bool[Tensor, "n"]:
        return ((x == 0) | (x == 1)).all(1)

    def fitted(self, x: Float[Tensor, "n c"]) -> "Binary":
        return replace(self, p=x.double().mean(0).float())

    def plain(self) -> "Binary":
        return replace(self, p=None)


@dataclass(frozen=True, eq=False)
class Ranged:
    """Columns of numbers from lo to hi, both included; whole numbers where `whole`.

    Marginal: `values`, one column each, drawn with replacement, or a normal, cut off at lo and hi.
    """

    columns: Int[Tensor, "c"] | None
    lo: Float[Tensor, "#c"]
    hi: Float[Tensor, "#c"]
    whole: bool
    values: Float[Tensor, "v #c"] | None = None
    mean: Float[Tensor, "#c"] | None = None
    std: Float[Tensor, "#c"] | None = None

    @property
    def known(self) -> bool:
        return self.values is not None or self.mean is not None

    def units(self) -> Int[Tensor, "c"]:
        return _each(self.columns)

    def draw(self, n: int, generator: Generator) -> Float[Tensor, "n c"]:
        shape, device = (n, _width(self.columns)), generator.device
        if self.values is not None:
            rows = torch.randint(len(self.values), shape, generator=generator, device=device)
            return self.values.expand(-1, shape[1]).gather(0, rows)
        if self.mean is not None and self.std is not None:
            x = self.mean + self.std * torch.randn(shape, generator=generator, device=device)
            x = x.round() if self.whole else x
        else:
            u = torch.rand(shape, generator=generator, device=device)
            wide = self.hi - self.lo
            x = self.lo + ((u * (wide + 1)).floor() if self.whole else u * wide)
        return x.clamp(self.lo, self.hi)  # rounding may step over hi

    def legal(self, x: Float[Tensor, "n c"]) -> Bool[Tensor, "n"]:
        inside = (x >= self.lo) & (x <= self.hi)
        return (inside & (x == x.round()) if self.whole else inside).all(1)

    def fitted(self, x: Float[Tensor, "n c"]) -> "Ranged":
        return replace(self, values=x.float(), mean=None, std=None)

    def plain(self) -> "Ranged":
        return replace(self, values=None, mean=None, std=None)


@dataclass(frozen=True, eq=False)
class OneOf:
    """A one-hot group: one feature; p are the shares of its columns, None for equal ones."""

    columns: Int[Tensor, "c"]
    p: Float[Tensor, "c"] | None = None

    @property
    def known(self) -> bool:
        return self.p is not None

    def units(self) -> Int[Tensor, "c"]:
        return torch.zeros_like(self.columns)

    def draw(self, n: int, generator: Generator) -> Float[Tensor, "n c"]:
        c = len(self.columns)
        if self.p is None:
            which = torch.randint(c, (n,), generator=generator, device=generator.device)
        else:
            which = torch.multinomial(self.p, n, replacement=True, generator=generator)
        return torch.eye(c, device=generator.device)[which]

    def legal(self, x: Float[Tensor, "n c"]) -> Bool[Tensor, "n"]:
        return ((x == 0) | (x == 1)).all(1) & (x.sum(1) == 1)

    def fitted(self, x: Float[Tensor, "n c"]) -> "OneOf":
        return replace(self, p=x.double().mean(0).float())

    def plain(self) -> "OneOf":
        return replace(self, p=None)


@dataclass(frozen=True, eq=False)
class Pixel:
    """Pixels in [0, 1]. With a shape, a block of patch x patch pixels in all channels is one feature.

    A block is one grey or colour; with a marginal, the same block of a public image (`values`, flat).
    """

    columns: Int[Tensor, "d"] | None
    patch: int = 1
    shape: tuple[int, int, int] | None = None
    values: Float[Tensor, "v d"] | None = None

    @property
    def known(self) -> bool:
        return self.values is not None

    def units(self) -> Int[Tensor, "d"]:
        if self.shape is None:
            return _each(self.columns)
        channels, high, wide = self.shape
        row, column = (torch.arange(side) // self.patch for side in (high, wide))
        block = row[:, None] * (-(-wide // self.patch)) + column
        return block.expand(channels, -1, -1).flatten().to(_each(self.columns).device)

    def draw(self, n: int, generator: Generator) -> Float[Tensor, "n d"]:
        unit, device = self.units(), generator.device
        blocks, channels = int(unit.max()) + 1, 1 if self.shape is None else self.shape[0]
        if self.values is not None:
            rows = torch.randint(len(self.values), (n, blocks), generator=generator, device=device)
            return self.values.gather(0, rows[:, unit])
        channel = torch.arange(len(unit), device=device) // (len(unit) // channels)
        return torch.rand(n, channels * blocks, generator=generator, device=device)[
            :, channel * blocks + unit
        ]

    def legal(self, x: Float[Tensor, "n d"]) -> Bool[Tensor, "n"]:
        return ((x >= 0) & (x <= 1)).all(1)

    def fitted(self, x: Float[Tensor, "n d"]) -> "Pixel":
        return replace(self, values=x.float())

    def plain(self) -> "Pixel":
        return replace(self, values=None)


Feature = Binary | Ranged | OneOf | Pixel


def _bits(shape: tuple[int, int], generator: Generator) -> Float[Tensor, "n c"]:
    """Fair bits, one of each random byte: a sixth of the price of a random number a bit."""
    n, c = shape
    words = torch.empty(n, -(-c // 8), dtype=torch.int64, device=generator.device)
    return (words.random_(-(2**63), None, generator=generator).view(torch.uint8)[:, :c] & 1).float()


def _width(columns: Tensor | None) -> int:
    return len(_each(columns))


def _each(columns: Tensor | None) -> Int[Tensor, "c"]:
    """0 .. c - 1: every column is a feature of its own."""
    if columns is None:
        raise ValueError("columns must be known before a draw, got None: call `resolved(features, d)`")
    return torch.arange(len(columns), device=columns.device)
