"""A data set is tensors."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Data:
    """n records x with labels y in 0 .. classes - 1; images are channels-first in [0, 1], table rows floats.

    Raises ValueError on features that are no floats or labels that are, unequal lengths, no record at all,
    NaN or infinite features, fewer than two classes, or a label outside 0 .. classes - 1.
    """

    x: Float[Tensor, "n *d"]
    y: Int[Tensor, "n"]
    classes: int
    name: str

    def __post_init__(self) -> None:
        if not self.x.is_floating_point() or self.y.is_floating_point():
            raise ValueError(f"x must hold floats and y integers, got {self.x.dtype} and {self.y.dtype}")
        if len(self.x) != len(self.y):
            raise ValueError(
                f"x and y must be equally long, got {len(self.x)} records and {len(self.y)} labels"
            )
        if not len(self.x):
            raise ValueError(f"x must hold at least one record, got none in {self.name!r}")
        if self.classes < 2:
            raise ValueError(f"classes must be 2 or more, got {self.classes}")
        bad = ~self.x.isfinite().reshape(len(self.x), -1).all(1)
        if bad.any():
            raise ValueError(
                f"x must be finite, got NaN or infinite features in {int(bad.sum())} of {len(bad)} records, "
                f"first in record {int(bad.nonzero()[0])}"
            )
        low, high = int(self.y.min()), int(self.y.max())
        if low < 0 or high >= self.classes:
            raise ValueError(f"y must lie in 0 .. {self.classes - 1}, got labels from {low} to {high}")

    def __len__(self) -> int:
        return len(self.y)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one record."""
        return tuple(self.x.shape[1:])

    @property
    def counts(self) -> list[int]:
        """Records of each class."""
        return torch.bincount(self.y, minlength=self.classes).tolist()

    @cached_property
    def digest(self) -> str:
        """SHA-256 over shapes and bytes of x and y, and classes; not over the name."""
        sha = hashlib.sha256(str(self.classes).encode())
        for t in (self.x, self.y):
            sha.update(f"{t.dtype} {tuple(t.shape)}".encode())
            sha.update(t.cpu().contiguous().view(-1).numpy().data)
        return sha.hexdigest()

    def __getitem__(self, rows: Tensor) -> "Data":
        """The records that `rows` (ids, or a mask) names."""
        return replace(self, x=self.x[rows], y=self.y[rows])

    def to(self, device: torch.device | str) -> "Data":
        return replace(self, x=self.x.to(device), y=self.y.to(device))


def all_classes(data: Data) -> Data:
    """The same data; ValueError where a class has no record, since its models could never learn it."""
    if data.classes > len(data):
        raise ValueError(f"y must hold every class 0 .. {data.classes - 1}, got {len(data)} records")
    empty = [c for c, count in enumerate(data.counts) if not count]
    if empty:
        raise ValueError(
            f"y must hold every class 0 .. {data.classes - 1}, got none of {_few(empty)} in {data.name!r}"
        )
    return data


def _few(values: Sequence[int]) -> str:
    return ", ".join(map(str, values[:5])) + (f" and {len(values) - 5} more" if len(values) > 5 else "")
