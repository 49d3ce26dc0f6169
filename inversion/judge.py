"""The judge E: a classifier that is not the target, whose eyes the quality of inversions is measured with.

Every inversion fools the model it was made on, so the target cannot judge. E learns the target's classes from
images that the target never saw, with other layers and another seed. What the target did not see is divided
once more: 2/3 of each class to E, 1/3 to the comparison set, on which E and target are both tested and the
gap's held-out side lies. E never sees an image of either: training and comparison images stand on the same
footing in its features. It is trained with augmentation: small rotations and shifts, mirror images if legal.
"""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Float, Float32, Int
from torch import Generator, Tensor, nn
from torch.nn.functional import affine_grid, grid_sample

from glasslab import nets
from glasslab.data import Data
from glasslab.layers import Shape, conv
from glasslab.oracle import forward
from glasslab.recipe import Recipe
from glasslab.split import stream, subseed
from glasslab.train import train

Net = Callable[[Shape, int], nn.Sequential]  # (shape, classes) -> a net with a dense last layer
ENOUGH = 0.9  # of the target's accuracy
FEATURES = 64
SHIFT = 0.05  # of a side, either way
RECIPE = Recipe(optimiser="adam", lr=2e-3, batch=32, scale="none", engine="serial", precision="float32")


class Shares(NamedTuple):
    """Record ids, ascending: what E learns, and what E and target are compared on."""

    judge: Int[Tensor, "e"]
    comparison: Int[Tensor, "h"]


@dataclass(frozen=True, eq=False)
class Judge:
    """A trained E. `accuracy` and `target_accuracy` are shares of the comparison set."""

    net: nn.Sequential
    shape: Shape  # that the net takes
    accuracy: float
    target_accuracy: float

    @property
    def warning(self) -> str | None:
        """What a table must say beside E's numbers: its accuracy is under 90 % of the target's."""
        if self.accuracy >= ENOUGH * self.target_accuracy:
            return None
        return (
            f"the judge is right on {self.accuracy:.1%} of the comparison set, the target on "
            f"{self.target_accuracy:.1%}: under {ENOUGH:.0%} of it, so its figures are weak"
        )

    def logits(self, x: Float[Tensor, "n *d"]) -> Float32[Tensor, "n c"]:
        """One logit a class, without gradient."""
        return forward(self.net, x.reshape(len(x), *self.shape))

    def features(self, x: Float[Tensor, "n *d"]) -> Float32[Tensor, "n k"]:
        """What the last layer reads, without gradient."""
        body = self.net[:-1].train(self.net.training)  # a slice of a net is in training mode
        return forward(body, x.reshape(len(x), *self.shape))


def shares(data: Data, trained: Int[Tensor, "t"], *, seed: int) -> Shares:
    """Divides the records that are none of `trained` (ids): 2/3 of each class to E, 1/3 to the comparison.

    Of 5 a class 3 and 2, of 3 a class 2 and 1. A record equal to a trained one counts as seen, and of equal
    records only the first is used. Raises ValueError for a class that leaves fewer than two.
    """
    used, unseen = set(_digests(data.x[trained])), []
    for i, digest in enumerate(_digests(data.x)):
        if digest not in used:
            used.add(digest)
            unseen.append(i)
    left = torch.tensor(unseen, dtype=torch.long)
    labels = data.y.cpu()[left]
    mine: list[Tensor] = []
    others: list[Tensor] = []
    for label in data.y.unique().tolist():
        own = left[labels == label]
        if len(own) < 2:
            raise ValueError(f"trained must leave 2+ records a class, got {len(own)} of class {label}")
        own = own[torch.randperm(len(own), generator=stream(seed, "judge's share", label))]
        cut = round(2 * len(own) / 3)
        mine.append(own[:cut])
        others.append(own[cut:])
    return Shares(torch.cat(mine).sort().values, torch.cat(others).sort().values)


def judge(
    data: Data,
    index: Int[Tensor, "e"],
    trained: Int[Tensor, "t"],
    comparison: Int[Tensor, "h"],
    target: nn.Module,
    *,
    seed: int,
    net: Net | None = None,
    mirror: bool = False,
    degrees: float = 10.0,
    copies: int = 8,
    steps: int = 600,
) -> Judge:
    """E, trained on the records `index` of data; `trained` are the target's own, all three are record ids.

    By default a small convolutional net for images, a dense one for tables; `steps` steps of 32 records. It
    learns each image in `copies` versions, all but one rotated by up to `degrees` and shifted by up to 5 % of
    a side; `mirror` where left and right mean the same (faces, not digits).
    Raises ValueError where index or comparison holds a record of the target's training set, or both share one
    (by what is in them, not by their ids), where index lacks a class, on a net with the target's layers or
    without a dense last layer, on a target in training mode.
    """
    _check(data, index, trained, comparison)
    shape = data.shape if len(data.shape) != 2 else (1, *data.shape)
    x, y = data.x[index].reshape(-1, *shape).float(), data.y[index]
    make = net or (_images if len(shape) == 3 else _tables)
    scale = nets.statistics(x)

    def fresh() -> nn.Sequential:
        return nn.Sequential(nets.Scale(*scale, shape), *make(shape, data.classes))

    with torch.random.fork_rng(devices=[]):
        model = fresh().to(data.x.device).eval()
    _other(model, target)
    recipe, own = RECIPE, subseed(seed, "judge")
    if len(shape) == 3:
        generator = stream(seed, "judge", "turned")
        x = torch.cat([x, *(_turned(x, degrees, generator) for _ in range(copies - 1))])
        y = y.repeat(copies)
        recipe = replace(recipe, augment=("mirror",) if mirror else ())
    epochs = math.ceil(steps / math.ceil(len(x) / 2 / recipe.batch))
    everyone = torch.ones(1, len(x)).bool()
    state = train(fresh, replace(recipe, epochs=epochs), x, y, everyone, [own], device=x.device)
    model.load_state_dict({name: t[0] for name, t in state.items()})
    held = data[comparison.to(data.x.device)]
    return Judge(model, shape, _accuracy(model, held, shape), _accuracy(target, held, data.shape))


def _images(shape: Shape, classes: int) -> nn.Sequential:
    """Convolutions that halve the image down to 8 pixels a side at most, at least one; then 64 features."""
    layers: list[nn.Module] = []
    channels, (h, w), width = shape[0], shape[1:], 16
    if min(h, w) >= 64:  # half the size and the width: 120 faces take seconds, and E is no worse
        layers.append(nn.AvgPool2d(2))
        h, w, width = h // 2, w // 2, 8
    while min(h, w) > 1 and (max(h, w) > 8 or channels == shape[0]):
        layers += conv(channels, width, "batch", pool=True)
        channels, (h, w), width = width, (h // 2, w // 2), min(2 * width, 64)
    dense = [nn.Flatten(), nn.Linear(channels * h * w, FEATURES), nn.GELU(), nn.Linear(FEATURES, classes)]
    return nn.Sequential(*layers, *dense)


def _tables(shape: Shape, classes: int) -> nn.Sequential:
    """Two hidden layers."""
    first = [nn.Flatten(), nn.Linear(math.prod(shape), 128), nn.GELU()]
    return nn.Sequential(*first, nn.Linear(128, FEATURES), nn.GELU(), nn.Linear(FEATURES, classes))


def _turned(
    x: Float[Tensor, "b c h w"], degrees: float, generator: Generator, shift: float = SHIFT
) -> Float[Tensor, "b c h w"]:
    """Each image rotated about its centre and shifted, both at random; what comes in repeats the border."""
    angle = (2 * torch.rand(len(x), generator=generator) - 1) * math.radians(degrees)
    cos, sin = angle.cos(), angle.sin()
    ratio = x.shape[2] / x.shape[3]  # the grid's unit is half a side, so that of height and width differ
    dx, dy = 2 * shift * (2 * torch.rand(2, len(x), generator=generator) - 1)
    rows = [torch.stack(row, 1) for row in ((cos, -sin * ratio, dx), (sin / ratio, cos, dy))]
    grid = affine_grid(torch.stack(rows, 1).to(x), list(x.shape), align_corners=False)
    return grid_sample(x, grid, padding_mode="border", align_corners=False)


def _check(data: Data, index: Tensor, trained: Tensor, comparison: Tensor) -> None:
    for name, rows in (("index", index), ("trained", trained), ("comparison", comparison)):
        if not len(rows):
            raise ValueError(f"{name} must hold one record or more, got none")
    seen, own, held = (set(_digests(data.x[rows])) for rows in (trained, index, comparison))
    for name, part, others, what in (
        ("index", own, seen, "the target's training set"),
        ("index", own, held, "the comparison set"),
        ("comparison", held, seen, "the target's training set"),
    ):
        if common := len(part & others):
            raise ValueError(f"{name} must share no record with {what}, got {common} that are equal")
    every = set(data.y[torch.cat([trained, comparison]).to(data.y.device)].tolist())
    if lacks := sorted(every - set(data.y[index].tolist())):
        raise ValueError(f"index must hold every class to be judged, got none of class {lacks[0]}")


def _other(model: nn.Sequential, target: nn.Module) -> None:
    if not isinstance(model[-1], nn.Linear):
        raise ValueError(f"net must end in a dense layer, got {type(model[-1]).__name__}")
    ours, theirs = ([tuple(w.shape) for w in m.parameters()] for m in (model, target))
    if ours == theirs:
        raise ValueError(f"net must not be the target's: {len(ours)} weights have the same shapes")


def _digests(x: Tensor) -> list[bytes]:
    """One for each record; equal records have equal ones."""
    rows = (x.float() + 0.0).reshape(len(x), -1).cpu().contiguous().numpy()  # so that -0 is 0
    return [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in rows]


def _accuracy(model: nn.Module, data: Data, shape: Shape) -> float:
    return float((forward(model, data.x.reshape(-1, *shape)).argmax(1) == data.y).double().mean())
