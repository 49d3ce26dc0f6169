"""The augmentation attack: does a shifted or turned picture keep its label?

Choquette-Choo et al. 2021, arXiv:2007.14321. The attacker has: labels, and for `rule="mlp"` one shadow model.
b_iq = 1 where the target calls augmentation q of record i by its label y_i, else 0. Score: the mean of b_i,
or P(in | b_i) of an MLP a class that learned from the shadow's b what those of members look like: two hidden
layers of 10 units, leaky ReLU.
"""

import math
import warnings
from collections.abc import Iterator
from typing import Literal

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Generator, Tensor
from torch.nn.functional import affine_grid, grid_sample, leaky_relu, logsigmoid, pad

from blackbox.boundary import labels
from glasslab.checks import Floored
from glasslab.oracle import Oracle

Kind = Literal["translations", "rotations"]

FEW = 20  # pairs a side, below which a class has no MLP of its own
HIDDEN = 10
SLOPE = 0.01  # of the leaky ReLU


def grid(x: Float[Tensor, "n *d"], kind: Kind, *, d: int = 1, r: int = 4) -> Float[Tensor, "q n *d"]:
    """Every version of each image, the image itself first: the same q for target and shadow.

    Translations by whole pixels with |dx| + |dy| = d: 4 d + 1 versions. Rotations by -r .. r whole degrees:
    2 r + 1. What comes in from outside repeats the nearest pixel of the border.
    Raises ValueError on tables, on d or r below 1, and on images that are not larger than d pixels.
    """
    return torch.stack(list(_versions(x, kind, d, r)))


def agreement(
    oracle: Oracle,
    x: Float[Tensor, "n *d"],
    y: Int[Tensor, "n"],
    *,
    kind: Kind = "translations",
    d: int = 1,
    r: int = 4,
) -> Bool[Tensor, "n q"]:
    """b: whether each version of a record is called y. One query a version; errors as in `grid`."""
    y = y.to(x.device)
    return torch.stack([labels(oracle, version) == y for version in _versions(x, kind, d, r)], 1)


def augmentation(
    agree: Bool[Tensor, "n q"],
    y: Int[Tensor, "n"],
    *,
    rule: Literal["share", "mlp"] = "mlp",
    shadow_agree: Bool[Tensor, "r p"] | None = None,
    shadow_y: Int[Tensor, "r"] | None = None,
    shadow_member: Bool[Tensor, "r"] | None = None,
    generator: Generator | None = None,
    steps: int = 200,
    lr: float = 0.01,
) -> Float64[Tensor, "n"]:
    """The share of versions that keep the label, or P(in | b, y) where members are as many as others.

    `mlp` learns from one shadow's `agreement`, its labels and members; a class with fewer than 20 pairs a
    side goes by one MLP for all classes, and is counted in a Floored warning. Most scores are tied: there are
    only so many b.
    Raises ValueError where `mlp` misses an argument or a side, and on another number of versions.
    """
    if rule == "share":
        return agree.double().mean(1)
    if shadow_agree is None or shadow_y is None or shadow_member is None or generator is None:
        names = ("shadow_agree", "shadow_y", "shadow_member", "generator")
        given = (shadow_agree, shadow_y, shadow_member, generator)
        missing = ", ".join(name for name, v in zip(names, given, strict=True) if v is None)
        raise ValueError(f"rule 'mlp' needs a shadow's answers and a generator, got none for {missing}")
    if agree.shape[1] != shadow_agree.shape[1]:
        raise ValueError(f"shadow_agree must hold {agree.shape[1]} versions, got {shadow_agree.shape[1]}")
    if not shadow_member.any() or shadow_member.all():
        found = f"{int(shadow_member.sum())} of {len(shadow_member)} in"
        raise ValueError(f"shadow_member must hold both sides, got {found}")
    b, which = agree.cpu().unique(dim=0, return_inverse=True)
    shadow_b, shadow_which = shadow_agree.cpu().unique(dim=0, return_inverse=True)
    classes = 1 + max(int(y.max()), int(shadow_y.max()))
    cell = (shadow_y.cpu().long() * len(shadow_b) + shadow_which) * 2 + shadow_member.cpu()
    pairs = cell.bincount(minlength=classes * len(shadow_b) * 2).reshape(classes, len(shadow_b), 2)
    share, mlp = _sides(pairs.double())
    z = _forward(_trained(shadow_b.double(), share, generator, steps, lr), b.double())
    return z[mlp[y.cpu().long()], which].sigmoid().to(agree.device)


def _sides(pairs: Float64[Tensor, "c u 2"]) -> tuple[Float64[Tensor, "g u 2"], Int[Tensor, "c"]]:
    """What each MLP learns from, the share of each b outside and inside; and which MLP a class goes by.

    All pairs with the same b are one example with a weight, so that it is no batch but the whole set that an
    MLP sees in a step, and neither their number nor their order matters.
    """
    able = (pairs.sum(1) >= FEW).all(1)
    if poor := int((~able).sum()):
        warnings.warn(f"{poor} of {len(able)} classes go by the one MLP for all", Floored, stacklevel=3)
    kept = torch.cat([pairs[able], pairs.sum(0, keepdim=True)])
    return kept / kept.sum(1, keepdim=True), torch.where(able, able.cumsum(0) - 1, len(kept) - 1)


def _trained(
    b: Float64[Tensor, "u q"],
    share: Float64[Tensor, "g u 2"],
    generator: Generator,
    steps: int,
    lr: float,
) -> list[Tensor]:
    """g MLPs, stacked: weights and biases of three layers, trained on the cross-entropy by Adam."""
    w = []
    for fan_in, out in ((b.shape[1], HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, 1)):
        for rows in (fan_in, 1):
            drawn = torch.rand(len(share), rows, out, generator=generator, dtype=torch.float64)
            w.append(((2 * drawn - 1) / fan_in**0.5).requires_grad_())
    # DIFFERS: every step sees all pairs; the official code takes one by one, once, at the best of four rates.
    optimiser = torch.optim.Adam(w, lr=lr, fused=True)
    for _ in range(steps):
        optimiser.zero_grad()
        z = _forward(w, b)
        gain = share[..., 0] * logsigmoid(-z) + share[..., 1] * logsigmoid(z)
        (-gain.sum()).backward()  # of a sum: each MLP gets its own gradient
        optimiser.step()
    return [v.detach() for v in w]


def _forward(w: list[Tensor], b: Float64[Tensor, "u q"]) -> Float64[Tensor, "g u"]:
    """Log-odds of membership."""
    h = leaky_relu(b @ w[0] + w[1], SLOPE)
    h = leaky_relu(h @ w[2] + w[3], SLOPE)
    return (h @ w[4] + w[5]).squeeze(-1)


def _versions(x: Float[Tensor, "n *d"], kind: Kind, d: int, r: int) -> Iterator[Float[Tensor, "n *d"]]:
    """One after another, for all are many pictures."""
    if x.ndim != 4:
        raise ValueError(f"x must hold images, channels first, got records of shape {[*x.shape[1:]]}")
    if kind == "translations":
        if not 1 <= d < min(x.shape[2:]):
            raise ValueError(
                f"d must be 1 or more, and below the {min(x.shape[2:])} pixels of a side, got {d}"
            )
        yield x  # DIFFERS: the official rotations begin at -r, and for r = 1 are the image alone.
        ring = [(dx, dy) for dx in range(-d, d + 1) for dy in range(-d, d + 1) if abs(dx) + abs(dy) == d]
        yield from (_shifted(x, dx, dy) for dx, dy in ring)
    elif kind == "rotations":
        if r < 1:
            raise ValueError(f"r must be 1 degree or more, got {r}")
        yield x
        yield from (_turned(x, degrees) for degrees in range(-r, r + 1) if degrees)
    else:
        raise ValueError(f"kind must be 'translations' or 'rotations', got {kind!r}")


def _shifted(x: Float[Tensor, "n c h w"], dx: int, dy: int) -> Float[Tensor, "n c h w"]:
    """Right by dx and down by dy pixels: the last two axes, never the channels."""
    h, w = x.shape[2:]
    s = max(abs(dx), abs(dy))
    return pad(x, (s, s, s, s), mode="replicate")[:, :, s - dy : s - dy + h, s - dx : s - dx + w]


def _turned(x: Float[Tensor, "n c h w"], degrees: int) -> Float[Tensor, "n c h w"]:
    """Around the centre; bilinear."""
    h, w = x.shape[2:]
    angle = math.radians(degrees)
    c, s = math.cos(angle), math.sin(angle)
    theta = x.new_tensor([[c, -s * h / w, 0], [s * w / h, c, 0]])  # in halves of the sides
    # DIFFERS: the official code fills with zeros, and interpolates by cubic splines.
    place = affine_grid(theta[None], [1, 1, h, w], align_corners=False).expand(len(x), h, w, 2)
    return grid_sample(x, place, mode="bilinear", padding_mode="border", align_corners=False)
