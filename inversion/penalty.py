"""AUXTERM of MI-FACE: what else the attacker knows of the image (Fredrikson, Jha & Ristenpart 2015, CCS).

The attacker holds a public mean, a blurred image, or no more than what images look like. MI-FACE's cost is
c(x) = 1 - f_y(x) + AUXTERM(x). A term gives one value an image, from that image alone, so that labels
inverted together do not disturb each other; the cost of a batch is the sum.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import conv2d, pad

Penalty = Callable[[Float[Tensor, "b *d"]], Float[Tensor, "b"]]


def none(x: Float[Tensor, "b *d"]) -> Float[Tensor, "b"]:
    """0 an image."""
    return x.new_zeros(len(x))


@dataclass(frozen=True, eq=False)
class l2:
    """weight ||x - to||^2, summed over the pixels; `to` is one image, such as the public mean.

    Raises ValueError on images of another shape.
    """

    to: Float[Tensor, "*d"] = field(repr=False)
    weight: float

    def __post_init__(self) -> None:
        _weighed(self.weight)

    def __call__(self, x: Float[Tensor, "b *d"]) -> Float[Tensor, "b"]:
        """One value an image."""
        _alike("to", self.to, x)
        return self.weight * _sum((x - self.to.to(x)).square())


@dataclass(frozen=True)
class total_variation:
    """weight (mean |x - its right neighbour| + mean |x - the one below|).

    Images are [b, h, w] or [b, ch, h, w]. Raises ValueError on records that are no images.
    """

    weight: float

    def __post_init__(self) -> None:
        _weighed(self.weight)

    def __call__(self, x: Float[Tensor, "b *d"]) -> Float[Tensor, "b"]:
        """One value an image."""
        _images(x)
        right, down = x.diff(dim=-1).abs(), x.diff(dim=-2).abs()
        pairs = [d.flatten(1).mean(1) for d in (right, down) if d.numel()]  # a line has no neighbour below
        return self.weight * sum(pairs, x.new_zeros(len(x)))


@dataclass(frozen=True)
class box:
    """weight times the squared distance to the box [0, 1], summed over the pixels."""

    weight: float

    def __post_init__(self) -> None:
        _weighed(self.weight)

    def __call__(self, x: Float[Tensor, "b *d"]) -> Float[Tensor, "b"]:
        """One value an image."""
        return self.weight * _sum((x - x.clamp(0, 1)).square())


@dataclass(frozen=True, eq=False)
class blurred:
    """weight ||kernel * x - x0||^2: x0 [h, w] or [ch, h, w] is the image at hand, blurred by `kernel`.

    Raises ValueError on a kernel of even sides, and on images of another shape than x0's.
    """

    x0: Float[Tensor, "*d"] = field(repr=False)
    kernel: Float[Tensor, "kh kw"] = field(repr=False)
    weight: float

    def __post_init__(self) -> None:
        _weighed(self.weight)
        if self.kernel.ndim != 2 or any(side % 2 == 0 for side in self.kernel.shape):
            raise ValueError(f"kernel must have two odd sides, got shape {tuple(self.kernel.shape)}")

    def __call__(self, x: Float[Tensor, "b *d"]) -> Float[Tensor, "b"]:
        """One value an image."""
        _alike("x0", self.x0, x)
        _images(x)
        return self.weight * _sum((blur(x, self.kernel) - self.x0.to(x)).square())


def blur(x: Float[Tensor, "b *d"], kernel: Float[Tensor, "kh kw"]) -> Float[Tensor, "b *d"]:
    """Images [b, h, w] or [b, ch, h, w], convolved with a centred kernel of odd sides, as `blurred` does it.

    Each channel is blurred alone; beyond its edge an image repeats the last pixel.
    """
    planes = x.reshape(-1, 1, *x.shape[-2:])
    height, width = kernel.shape
    wide = pad(planes, (width // 2, width // 2, height // 2, height // 2), mode="replicate")
    return conv2d(wide, kernel.to(x).flip(0, 1)[None, None]).reshape(x.shape)


def _sum(values: Tensor) -> Tensor:
    return values.flatten(1).sum(1)


def _weighed(weight: float) -> None:
    if not 0 <= weight < float("inf"):
        raise ValueError(f"weight must be 0 or more, and finite, got {weight}")


def _alike(name: str, one: Tensor, x: Tensor) -> None:
    """Rows of a batch come and go as labels end, so that a term cannot hold an image a label."""
    if one.shape != x.shape[1:]:
        shape = tuple(x.shape[1:])
        raise ValueError(f"{name} must be one image of shape {shape}, got shape {tuple(one.shape)}")


def _images(x: Tensor) -> None:
    if x.ndim not in (3, 4):
        raise ValueError(f"x must be images [b, h, w] or [b, ch, h, w], got shape {tuple(x.shape)}")
