"""PROCESS of MI-FACE, what is done to a candidate after a step (Fredrikson, Jha & Ristenpart 2015, CCS).

The attacker holds the candidate; for a denoising autoencoder its decoder too, since the candidate is then a
code h of the first layer:  PROCESS(h) = encode(sharpen(denoise(decode(h)))).
Denoising is by non-local means (Buades, Coll & Morel 2005, CVPR): each pixel becomes the mean of the pixels t
away from it, with weights exp(-d / h^2), d the mean squared difference of the patches around the two.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from threading import Event

import torch
from jaxtyping import Float
from torch import Tensor

from glasslab.cores import side_by_side
from glasslab.nets import Dae
from inversion.result import Inversion

Process = Callable[[Float[Tensor, "b *d"]], Float[Tensor, "b *d"]]
FEW = 10  # images denoised at once on a core


def identity(x: Float[Tensor, "b *d"]) -> Float[Tensor, "b *d"]:
    """The candidate as it is."""
    return x


def denoise(
    x: Float[Tensor, "b *d"], *, h: float = 0.1, patch: int = 7, window: int = 21
) -> Float[Tensor, "b *d"]:
    """Images [b, h, w] or [b, ch, h, w] without their noise, by non-local means; borders mirror the image.

    `h` is in units of the pixels, `patch` and `window` are sides in pixels; channels share their weights.
    Raises ValueError on records that are no images, h of 0 or less, and sides that are not odd.
    """
    _images(x)
    if not h > 0:
        raise ValueError(f"h must be above 0, got {h}")
    for name, side in (("patch", patch), ("window", window)):
        if side < 1 or side % 2 == 0:
            raise ValueError(f"{name} must be odd, 1 or more pixels, got {side}")
    means = partial(_means, h=h, patch=patch, reach=window // 2)
    return _apart(means, x if x.ndim == 4 else x[:, None]).reshape(x.shape)


def sharpen(x: Float[Tensor, "b *d"], *, amount: float = 1.5, sigma: float = 2.0) -> Float[Tensor, "b *d"]:
    """x + amount (x - gauss(x, sigma)) in [0, 1], of images [b, h, w] or [b, ch, h, w]; sigma in pixels.

    The Gaussian ends at 4 sigma; borders mirror the image, the last pixel twice.
    Raises ValueError on records that are no images, and sigma of 0 or less.
    """
    _images(x)
    if not sigma > 0:
        raise ValueError(f"sigma must be above 0, got {sigma}")
    blurred = _apart(partial(_gauss, sigma=sigma), x)
    return (x.detach() + amount * (x.detach() - blurred)).clamp(0, 1)


@dataclass(frozen=True)
class through:
    """The PROCESS of codes: decode, denoise, sharpen, encode. Its repr gives the settings alone.

    Raises ValueError on a net in training mode, and one whose records are no images.
    """

    dae: Dae = field(repr=False)
    h: float = 0.1
    patch: int = 7
    window: int = 21
    amount: float = 1.5
    sigma: float = 2.0

    def __post_init__(self) -> None:
        _settled(self.dae)
        if len(self.dae.decode.shape) not in (2, 3):
            raise ValueError(f"dae must take images, got records of shape {self.dae.decode.shape}")

    @torch.no_grad()
    def __call__(self, h: Float[Tensor, "b k"]) -> Float[Tensor, "b k"]:
        """Codes of the images of h, denoised and sharpened."""
        _settled(self.dae)
        clean = denoise(self.dae.decode(h), h=self.h, patch=self.patch, window=self.window)
        return self.dae.encode(sharpen(clean, amount=self.amount, sigma=self.sigma))


@torch.no_grad()
def encoded(dae: Dae, start: Float[Tensor, "*b_d"]) -> Float[Tensor, "*b k"]:
    """Codes of one image or several: a start of the descent on codes. The start h = 0 is no image's code.

    Raises ValueError on a net in training mode and on records that are not the net's.
    """
    _settled(dae)
    shape = tuple(dae.decode.shape)
    if tuple(start.shape) == shape:
        return dae.encode(start[None])[0]
    if tuple(start.shape[1:]) != shape:
        raise ValueError(f"start must hold records of shape {shape}, got shape {tuple(start.shape)}")
    return dae.encode(start)


@torch.no_grad()
def decoded(dae: Dae, found: Inversion) -> Inversion:
    """The same result with images in the place of codes.

    Raises ValueError on a net in training mode and on codes that are not the net's.
    """
    _settled(dae)
    k = dae.decode.weight.shape[1]
    if tuple(found.x.shape[1:]) != (k,):
        raise ValueError(f"found must hold codes of length {k}, got shape {tuple(found.x.shape)}")
    return replace(found, x=dae.decode(found.x))


def _apart(run: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """`run` of a few images a core: threads that share one small sum wait for each other."""
    few = x.detach().split(FEW if x.device.type == "cpu" else max(len(x), 1))
    return torch.cat(side_by_side(run, few, Event()))


def _means(x: Float[Tensor, "b ch h w"], *, h: float, patch: int, reach: int) -> Float[Tensor, "b ch h w"]:
    half, (height, width) = patch // 2, x.shape[-2:]
    margin = reach + half
    around = _mirrored(x, margin)

    def cut(top: int, left: int, height: int, width: int) -> Tensor:
        """Of the plane around the images, whose corner is at (0, 0)."""
        return around[..., margin + top :, margin + left :][..., :height, :width]

    # The weight of p + t in the mean at p is that of p in the mean at p + t, so half of the shifts will do.
    total, weights = x.clone(), torch.ones_like(x[:, :1])  # no shift has weight 1
    for dy, dx in _shifts(reach):
        corner, area = (-dy, min(-dx, 0)), (height + dy + 2 * half, width + abs(dx) + 2 * half)
        here = cut(corner[0] - half, corner[1] - half, *area)
        there = cut(corner[0] - half + dy, corner[1] - half + dx, *area)
        d = _sums(_sums((here - there).square_().mean(1, keepdim=True), patch, -2), patch, -1)
        w = d.mul_(-1 / (patch * h) ** 2).exp_()
        for side, ahead in ((1, w[..., dy:, max(dx, 0) :]), (-1, w[..., max(-dx, 0) :])):
            near = ahead[..., :height, :width]
            total.addcmul_(near, cut(side * dy, side * dx, height, width))
            weights += near
    return total.div_(weights)


def _settled(dae: Dae) -> None:
    if any(layer.training for layer in dae.modules()):
        raise ValueError("dae must be in eval mode, got training mode")


def _images(x: Tensor) -> None:
    if x.ndim not in (3, 4):
        raise ValueError(f"x must be images [b, h, w] or [b, ch, h, w], got shape {tuple(x.shape)}")


def _gauss(x: Float[Tensor, "b *ch h w"], *, sigma: float) -> Float[Tensor, "b *ch h w"]:
    reach = int(4 * sigma + 0.5)
    bell = [math.exp(-((i / sigma) ** 2) / 2) for i in range(-reach, reach + 1)]
    wide = _mirrored(x, reach, twice=True)
    for dim in (-2, -1):
        parts = [wide.narrow(dim, i, x.shape[dim]) * (g / sum(bell)) for i, g in enumerate(bell)]
        wide = sum(parts[1:], parts[0])
    return wide


def _shifts(reach: int) -> list[tuple[int, int]]:
    """One of t and -t each, without (0, 0)."""
    ahead = range(-reach, reach + 1)
    return [(dy, dx) for dy in range(reach + 1) for dx in ahead if dy or dx > 0]


def _sums(x: Tensor, k: int, dim: int) -> Tensor:
    """Sums of k neighbours by doubling: a third of the time of avg_pool2d on a processor."""
    if k == 1:
        return x
    n, half = x.shape[dim] - k + 1, _sums(x, k // 2, dim)
    pair = half.narrow(dim, 0, n) + half.narrow(dim, k // 2, n)
    return pair if k % 2 == 0 else pair + x.narrow(dim, k - 1, n)


def _mirrored(x: Tensor, margin: int, *, twice: bool = False) -> Tensor:
    """Images with a margin that mirrors them, again and again where it is wider; `twice` repeats the edge."""
    for dim in (-2, -1):
        n = x.shape[dim]
        place = torch.arange(-margin, n + margin, device=x.device) % max(2 * n if twice else 2 * n - 2, 1)
        x = x.index_select(dim, torch.minimum(place, 2 * n - 1 - place if twice else 2 * n - 2 - place))
    return x
