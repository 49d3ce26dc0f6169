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
