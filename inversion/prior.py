"""What an attacker knows of images before it asks the target: a public split, and priors learned on it.

A prior turns a latent z, drawn from N(0, I), into an image in [0, 1]. It is learned on classes that the
target does not know: the attacker holds no private record. `pca` needs few images (faces); generators, which
need more, are trained in `gan`, `kedmi` and `plg_mi`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from glasslab.data import Data
from inversion.gradient import principal


@runtime_checkable
class Prior(Protocol):
    """From latents to images in [0, 1]; `discriminator` tells real images from others, where there is one.

    `queries` is the number of rows that its training asked of the target.
    """

    @property
    def latent(self) -> int: ...

    @property
    def queries(self) -> int: ...

    @property
    def discriminator(self) -> nn.Module | None: ...

    def __call__(self, z: Float[Tensor, "b l"]) -> Float[Tensor, "b *d"]: ...


@dataclass(frozen=True, eq=False)
class Pca:
    """mean + z basis, clipped to [0, 1]; the rows of basis are as long as the public images spread."""

    mean: Float[Tensor, "*d"]
    basis: Float[Tensor, "l p"]

    @property
    def latent(self) -> int:
        return len(self.basis)

    @property
    def queries(self) -> int:
        return 0

    @property
    def discriminator(self) -> None:
        return None

    def __call__(self, z: Float[Tensor, "b l"]) -> Float[Tensor, "b *d"]:
        x = self.mean.flatten() + z.to(self.basis) @ self.basis
        return x.clamp(0, 1).unflatten(1, self.mean.shape)


def pca(x_public: Float[Tensor, "n *d"], k: int) -> Pca:
    """The prior of k principal components, in which z ~ N(0, I) has the covariance of the images.

    Raises ValueError unless 1 <= k <= min(n - 1, pixels), and on images outside [0, 1].
    """
    check_range(x_public)
    mean, axes = x_public.double().mean(0), principal(x_public, k).double()
    spread = ((x_public.double() - mean).flatten(1) @ axes.T).std(0)
    return Pca(mean.to(x_public), (spread[:, None] * axes).to(x_public))


def public_split(data: Data, private_classes: Sequence[int]) -> tuple[Data, Data]:
    """(private, public): the classes named, relabelled 0 .. k-1 in that order, and all other classes.

    A public record that equals a private one is left out: some images occur under two labels.
    Raises ValueError on a class named twice or that data does not have, and where one side would have fewer
    than two classes, or a class without records.
    """
    private = [int(c) for c in private_classes]
    if len(set(private)) < len(private) or not set(private) <= set(range(data.classes)):
        raise ValueError(f"private_classes must be distinct and in 0 .. {data.classes - 1}, got {private}")
    public = [c for c in range(data.classes) if c not in private]
    if min(len(private), len(public)) < 2:
        raise ValueError(
            f"private_classes must leave 2+ classes on both sides, got {len(private)} and {len(public)}"
        )
    inside = _only(data, private, f"{data.name}, private classes")
    outside = _only(data, public, f"{data.name}, public classes")
    known = set(_bytes(inside.x))
    new = torch.tensor([row not in known for row in _bytes(outside.x)], device=data.x.device)
    if not set(range(len(public))) <= set(outside.y[new].tolist()):
        raise ValueError(f"data must leave a record in each public class, got {int(new.sum())} records")
    return inside, outside[new]


def check_range(x: Float[Tensor, "n *d"]) -> None:
    """ValueError unless all of x lies in [0, 1]."""
    low, high = float(x.min()), float(x.max())
    if not (low >= 0 and high <= 1):
        raise ValueError(f"x_public must lie in [0, 1], got values from {low:g} to {high:g}")


def _only(data: Data, classes: Sequence[int], name: str) -> Data:
    place = torch.full((data.classes,), -1, device=data.y.device)
    place[list(classes)] = torch.arange(len(classes), device=data.y.device)
    y = place[data.y]
    kept = y >= 0
    if len(y[kept].unique()) < len(classes):
        raise ValueError(
            f"data must hold every class of {list(classes)}, got {len(y[kept].unique())} of them"
        )
    return Data(data.x[kept], y[kept].to(data.y.dtype), len(classes), name)


def _bytes(x: Float[Tensor, "n *d"]) -> list[bytes]:
    return [row.tobytes() for row in x.detach().cpu().flatten(1).numpy()]
