"""The parts that the nets are chained of: residual sums, pooling, convolutions with their norm, heads."""

import math
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, max_pool2d

Norm = Literal["batch", "group", "none"]
Shape = tuple[int, ...]  # of one record


class Residual(nn.Module):
    """last(body(x) + shortcut(x))"""

    def __init__(
        self, body: nn.Module, shortcut: nn.Module | None = None, last: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.body = body
        self.shortcut = shortcut or nn.Identity()
        self.last = last or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.body(x) + self.shortcut(x))


class GlobalMax(nn.Module):
    """The highest value of each channel, for images of any size."""

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c"]:
        return max_pool2d(x, x.shape[2:]).flatten(1)


class GlobalMean(nn.Module):
    """The mean of each channel, for images of any size. Adaptive pooling would be three times as slow."""

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c"]:
        return avg_pool2d(x, x.shape[2:]).flatten(1)


def conv(
    a: int, b: int, kind: Norm, *, side: int = 3, stride: int = 1, pool: bool = False
) -> list[nn.Module]:
    """Convolution, norm, ReLU; `pool` halves the image before ReLU: cheaper than after it, and the same."""
    return [window(a, b, side, stride, kind), *norm(kind, b), *[nn.MaxPool2d(2)] * pool, nn.ReLU()]


def window(a: int, b: int, side: int, stride: int, kind: Norm) -> nn.Module:
    """A convolution from a to b channels that keeps the image's size at stride 1; a norm brings the bias."""
    return nn.Conv2d(a, b, side, stride, padding=side // 2, bias=kind == "none")


def norm(kind: Norm, channels: int) -> list[nn.Module]:
    """Nothing, BatchNorm, or GroupNorm: up to 16 groups, of 4 channels or more."""
    if kind == "none":
        return []
    if kind == "batch":
        return [nn.BatchNorm2d(channels)]
    groups = math.gcd(channels, 16, max(channels // 4, 1))  # smaller ones: constant on a single pixel
    return [nn.GroupNorm(groups, channels)]


def dropout(share: float) -> list[nn.Module]:
    return [nn.Dropout(share)] if share else []


def head(channels: int, classes: int, share: float) -> list[nn.Module]:
    """Mean over all pixels, dropout of a share, one dense layer."""
    return [GlobalMean(), *dropout(share), nn.Linear(channels, classes)]


def stages(first: int, widths: Shape, blocks: int) -> list[tuple[int, int, int]]:
    """Channels in, channels out and stride of each block; each stage but the first halves the image."""
    wide = [first, *(w for w in widths for _ in range(blocks))]
    halves = [2 if i and i % blocks == 0 else 1 for i in range(len(widths) * blocks)]
    return list(zip(wide, wide[1:], halves, strict=False))


def basic(a: int, b: int, stride: int, kind: Norm) -> nn.Module:
    """He's basic block: two convolutions, ReLU after the sum."""
    body = nn.Sequential(*conv(a, b, kind, stride=stride), *conv(b, b, kind)[:-1])
    shortcut = None if a == b else nn.Sequential(*conv(a, b, kind, side=1, stride=stride)[:-1])
    return Residual(body, shortcut, nn.ReLU())


def wide(a: int, b: int, stride: int, kind: Norm, share: float) -> nn.Module:
    """Pre-activated block, dropout inside; where the channels change, so is its shortcut."""
    before = [*norm(kind, a), nn.ReLU()]
    between = [*norm(kind, b), nn.ReLU(), *dropout(share)]
    body = [window(a, b, 3, stride, kind), *between, window(b, b, 3, 1, kind)]
    if a == b:
        return Residual(nn.Sequential(*before, *body))
    return nn.Sequential(*before, Residual(nn.Sequential(*body), window(a, b, 1, stride, kind)))
