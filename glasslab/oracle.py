"""What a black-box attacker may ask, what it is answered, and how often it asked."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor, nn

from glasslab import masks
from glasslab.checks import Floored


class BudgetExceeded(RuntimeError):
    """More rows asked than the budget leaves. Nothing was answered or counted."""


@dataclass(frozen=True, eq=False)
class Answered:
    """Logits that the model has given about records x already; who asks for rows of x needs no model."""

    x: Float[Tensor, "n *d"]
    z: Float[Tensor, "n c"]
    version: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "version", self.x._version)

    def __call__(self, rows: Float[Tensor, "b *d"]) -> Float[Tensor, "b c"] | None:
        """Their logits, where `rows` are some of x's own rows in memory, one after another; else None."""
        x = self.x
        same = rows.untyped_storage().data_ptr() == x.untyped_storage().data_ptr() and rows.dtype == x.dtype
        if not same or rows.stride() != x.stride() or rows.shape[1:] != x.shape[1:]:
            return None
        start, rest = divmod(int(rows.storage_offset() - x.storage_offset()), max(x.stride(0), 1))
        if rest or start < 0 or start + len(rows) > len(x) or x._version != self.version:
            return None
        return self.z[start : start + len(rows)]


@dataclass(eq=False)
class Oracle:
    """Answers with probabilities (float64, after the masks) or with labels (the argmax before any mask).

    One row is one query, repeats and augmentations included; `queries` is their sum. `floor` says what a zero
    in an answer may hide, None where nothing is hidden (see `complete`). What stands in `answered` is counted
    and masked as if the model were asked anew.
    Raises BudgetExceeded before it answers or counts, and ValueError in training mode.
    """

    model: nn.Module
    reveals: Literal["probabilities", "labels"] = field(default="probabilities", kw_only=True)
    mask: Sequence[masks.Mask] = field(default=(), kw_only=True)
    budget: int | None = field(default=None, kw_only=True)
    batch: int = field(default=128, kw_only=True)
    answered: Sequence[Answered] = field(default=(), kw_only=True, repr=False)
    queries: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if self.reveals not in ("probabilities", "labels"):
            raise ValueError(f"reveals must be 'probabilities' or 'labels', got {self.reveals!r}")

    @property
    def floor(self) -> float | None:
        return masks.floor(self.mask)

    @property
    def left(self) -> int | None:
        """Queries that the budget leaves; None without a budget."""
        return None if self.budget is None else self.budget - self.queries

    def __call__(self, x: Float[Tensor, "b *d"]) -> Tensor:
        """Probabilities [b, c], or labels [b]."""
        if self.left is not None and len(x) > self.left:
            raise BudgetExceeded(f"{len(x)} queries asked, {self.left} left of a budget of {self.budget}")
        known = (seen(x) for seen in self.answered)
        z = next((z for z in known if z is not None), None)
        z = forward(self.model, x, self.batch) if z is None else z.to(x.device)
        self.queries += len(x)
        return z.argmax(-1) if self.reveals == "labels" else answer(z, self.mask)


@torch.no_grad()
def forward(model: nn.Module, x: Float[Tensor, "n *d"], batch: int = 128) -> Float32[Tensor, "n c"]:
    """Logits, without gradient and without autocast, on x's device.

    Every batch is filled up to one fixed size, so that an answer depends neither on the number of rows asked
    nor on the row's batch mates. Raises ValueError where the model, or a layer of it, is in training mode.
    """
    if any(layer.training for layer in model.modules()):
        raise ValueError("model must be in eval mode, got training mode")
    device = next(model.parameters(), x).device
    with torch.autocast(device.type, enabled=False):
        z = [model(_laid(_filled(rows, batch).to(device, torch.float32))) for rows in x.split(batch)]
    return torch.cat(z)[: len(x)].float().to(x.device)


def _laid(x: Float[Tensor, "b *d"]) -> Float[Tensor, "b *d"]:
    """Images on a processor with their channels last in memory: convolutions are half as fast again."""
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 and x.device.type == "cpu" else x


def _filled(x: Float[Tensor, "r *d"], batch: int) -> Float[Tensor, "{batch} *d"]:
    """The rows, and below them zeros up to `batch` rows."""
    return torch.cat([x, x.new_zeros(batch - len(x), *x.shape[1:])]) if len(x) < batch else x


def answer(z: Float[Tensor, "*n c"], mask: Sequence[masks.Mask] = ()) -> Float64[Tensor, "*n c"]:
    """Probabilities of logits: softmax in float64, then the masks from left to right."""
    p = z.double().softmax(-1).flatten(0, -2)  # float32 would have 1 - p = 0 from log-odds of 17 on
    for m in mask:
        p = m(p)
    return p.reshape(z.shape)


def complete(p: Float64[Tensor, "*n c"], floor: float | None) -> Float64[Tensor, "*n c"]:
    """What an attacker reads into masked answers: the hidden mass, spread evenly over the zeroed classes.

    Then nothing is below `floor`, without renormalising, so that log p is finite. Warns `Floored` with the
    number of answers that sit on the floor: they are ties. Unmasked answers (None) are left as they are.
    """
    if floor is None:
        return p
    zero = p == 0
    hidden = (1 - p.sum(-1, keepdim=True)).clamp(min=0)
    full = p + zero * hidden / zero.sum(-1, keepdim=True).clamp(min=1)
    low = (full < floor).any(-1)
    if low.any():
        warnings.warn(f"{int(low.sum())} of {low.numel()} answers sit on the floor {floor:g}", Floored, 2)
    return full.clamp(min=floor)


def log_answer(p: Float64[Tensor, "*n c"], floor: float | None) -> Float64[Tensor, "*n c"]:
    """Log-probabilities of answers after `complete`; finite even where an unmasked softmax underflowed."""
    return complete(p, floor).clamp(min=torch.finfo(torch.float64).tiny).log()
