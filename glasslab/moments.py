"""Masked sufficient statistics over models, streamed over records: all that a Gaussian fit needs."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod, sqrt

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int, Shaped
from torch import Tensor

VALUES = 1 << 18  # of a signal held at a time: 2 MiB, which stays in the cache


@dataclass(frozen=True, eq=False)
class Moments:
    """Of the models on one side of each record: how many, their mean, median, and squares around the mean."""

    count: Int[Tensor, "n"]
    mean: Float64[Tensor, "*k n"]
    median: Float64[Tensor, "*k n"]  # the mean of the two middle values
    square: Float64[Tensor, "*k n"]

    def own(self) -> Float64[Tensor, "*k n"]:
        """Standard deviation of each record's values (ddof 0)."""
        return (self.square / self.count).sqrt()

    def pooled(self, centre: Float64[Tensor, "*k n"]) -> float:
        """Root of the squares around each record's centre over the sum of (count - 1); 0 where that is 0."""
        freedom = int((self.count - 1).sum()) * self.queries
        square = self.square + self.count * (self.mean - centre).square()
        return sqrt(float(square.sum()) / freedom) if freedom else 0.0

    def grand(self) -> float:
        """Standard deviation of all values around one mean (ddof 0)."""
        share = self.count.double() / (self.count.sum() * self.queries)
        away = self.mean - self.mean.flatten()[0]  # exactly 0 where all values are equal
        between = (away - (share * away).sum()).square()
        return sqrt(float((share * (self.square / self.count + between)).sum()))

    @property
    def queries(self) -> int:
        """Values of one model about one record."""
        return prod(self.mean.shape[:-1])


def moments(
    S: Float[Tensor, "m *k n"], sides: Mapping[str, Bool[Tensor, "m n"]], *, median: bool = True
) -> dict[str, Moments]:
    """The moments of each side (which must name a model for each record) in one pass over S.

    S may be memory-mapped; 2 MiB of it are held at a time. Without `median`, the mean stands in its place.
    Raises ValueError naming a record whose signal is NaN or infinite.
    """
    parts: dict[str, list[tuple[np.ndarray, ...]]] = {name: [] for name in sides}
    for rows in chunks(S.shape[-1], S[..., :1].numel()):
        x = _models_last(S[..., rows]).astype(np.float64)
        if not np.isfinite(x).all():
            record = rows.start + int(np.argwhere(~np.isfinite(x))[0][-2])
            raise ValueError(f"S must be finite, got NaN or infinity for record {record}")
        for name, where in sides.items():
            parts[name].append(_moments(x, _models_last(where[:, rows]), median))
    joined = {
        name: [np.concatenate(each, -1) for each in zip(*part, strict=True)] for name, part in parts.items()
    }
    return {name: Moments(*[torch.from_numpy(each).to(S.device) for each in joined[name]]) for name in joined}


def a_model_each(models: Bool[Tensor, "m n"], side: str, hint: str = "") -> None:
    """Raises ValueError naming a record that no model of this side is left for."""
    if not models.any(0).all():
        record = int((~models.any(0)).nonzero()[0])
        raise ValueError(
            f"shadow_member must hold 1+ models {side} of each record, got 0 for record {record}{hint}"
        )


def chunks(n: int, values: int) -> list[slice]:
    """Cuts n records of so many values each into slices that stay in the cache."""
    step = max(1, VALUES // max(1, values))
    return [slice(start, min(start + step, n)) for start in range(0, n, step)]


def _models_last(t: Shaped[Tensor, "m *n"]) -> Shaped[np.ndarray, "*n m"]:
    return np.ascontiguousarray(t.movedim(0, -1).cpu().numpy())


def _moments(
    x: Float64[np.ndarray, "*k r m"], where: Bool[np.ndarray, "r m"], median: bool
) -> tuple[np.ndarray, ...]:
    """Count [r], mean, median and square [*k r] of one chunk, the models last."""
    count = where.sum(-1)
    away = x - x[..., :1]  # from the first model: exactly 0 where all are equal, and no digits are lost
    shift = np.where(where, away, 0.0).sum(-1) / count
    square = np.square(np.where(where, away - shift[..., None], 0.0)).sum(-1)
    mean = x[..., 0] + shift
    return count, mean, _median(x, where, count) if median else mean, square


def _median(
    x: Float64[np.ndarray, "*k r m"], where: Bool[np.ndarray, "r m"], count: Int[np.ndarray, "r"]
) -> Float64[np.ndarray, "*k r"]:
    """Sorts the others to the end, and takes the two middle values (the same one twice for an odd count)."""
    ordered = np.sort(np.where(where, x, np.inf), -1)
    middle = np.stack([(count - 1) // 2, count // 2], -1)
    return np.take_along_axis(ordered, np.broadcast_to(middle, (*x.shape[:-1], 2)), -1).mean(-1)
