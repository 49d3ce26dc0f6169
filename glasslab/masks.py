"""Output masks: what an interface hides of its probabilities.

Shokri et al. 2017, arXiv:1610.05820, section on mitigation: temperature (t = 5, 20), rounding (d = 3, 1),
top k (k = 3, 1). Anything that maps probabilities [b, c] to [b, c] is a mask; these are applied from left to
right. `floor` is the least probability that an attacker may read into a masked answer; None: nothing hidden.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

Mask = Callable[[Tensor], Tensor]
HIDDEN = 1e-12  # what a zero may hide


def floor(mask: Sequence[Mask]) -> float | None:
    """The floor of masks one after another: the highest. A mask that names none is taken to hide some."""
    floors: list[float | None] = [getattr(m, "floor", HIDDEN) for m in mask]
    return max((f for f in floors if f is not None), default=None)


@dataclass(frozen=True)
class temperature:
    """softmax(log p / t), which equals softmax(z / t). ValueError unless t > 0."""

    t: float | int
    floor: None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.t > 0:
            raise ValueError(f"t must be above 0, got {self.t}")

    def __call__(self, p: Float[Tensor, "b c"]) -> Float[Tensor, "b c"]:
        if self.t == 1:
            return p
        seen = p.sum(-1, keepdim=True) > 0  # a row that was rounded to zeros becomes uniform
        return torch.where(seen, (p.log() / self.t).softmax(-1), 1 / p.shape[-1])


@dataclass(frozen=True)
class round_to:
    """d decimals, half to even; rows need not sum to 1 any more. ValueError unless d >= 0."""

    d: int

    def __post_init__(self) -> None:
        if self.d < 0:
            raise ValueError(f"d must be 0 or more, got {self.d}")

    @property
    def floor(self) -> float:
        """Half a unit of the last digit."""
        return 0.5 * 10.0**-self.d

    def __call__(self, p: Float[Tensor, "b c"]) -> Float[Tensor, "b c"]:
        return p.round(decimals=self.d)


@dataclass(frozen=True)
class round_by:
    """The nearest multiple of r, and 1 at most; rows need not sum to 1 any more.

    ValueError unless 0 < r <= 1.
    """

    r: float | int

    def __post_init__(self) -> None:
        if not 0 < self.r <= 1:
            raise ValueError(f"r must be above 0 and at most 1, got {self.r}")

    @property
    def floor(self) -> float:
        """Half a step."""
        return 0.5 * self.r

    def __call__(self, p: Float[Tensor, "b c"]) -> Float[Tensor, "b c"]:
        return ((p / self.r).round() * self.r).clamp(max=1)  # 1 may round up where r does not divide it


@dataclass(frozen=True)
class top_k:
    """Keeps the k largest and zeroes the rest; of equal ones the lowest classes. ValueError unless k >= 1."""

    k: int
    renormalise: bool = False
    floor: float = field(default=HIDDEN, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"k must be 1 or more, got {self.k}")

    def __call__(self, p: Float[Tensor, "b c"]) -> Float[Tensor, "b c"]:
        kept = p.sort(stable=True, dim=-1, descending=True).indices[:, : self.k]
        q = torch.zeros_like(p).scatter(-1, kept, p.gather(-1, kept))
        return q / q.sum(-1, keepdim=True).clamp(min=1e-300) if self.renormalise else q


@dataclass(frozen=True)
class noise:
    """p + N(0, sigma^2), clipped at 0, divided by the sum; a row clipped to zeros becomes uniform.

    `sticky` noise is a function of the seed and of the row itself, rounded to 6 decimals: who asks again gets
    the same answer. Fresh noise (sticky=False) is averaged away by asking often.
    ValueError unless sigma >= 0.
    """

    sigma: float | int
    sticky: bool = True
    seed: int = 0
    floor: float = field(default=HIDDEN, init=False, repr=False)
    _fresh: torch.Generator = field(default_factory=torch.Generator, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.sigma >= 0:
            raise ValueError(f"sigma must be 0 or more, got {self.sigma}")
        self._fresh.manual_seed(self.seed)

    def __call__(self, p: Float[Tensor, "b c"]) -> Float[Tensor, "b c"]:
        drawn = _normal_of_rows(p, self.seed) if self.sticky else torch.randn(p.shape, generator=self._fresh)
        q = (p + self.sigma * drawn.to(p)).clamp(min=0)
        total = q.sum(-1, keepdim=True)
        return torch.where(total > 0, q / total, 1 / p.shape[-1])


def _normal_of_rows(p: Float[Tensor, "b c"], seed: int) -> Float[Tensor, "b c"]:
    """Standard normal numbers that depend on the seed and on the row alone, not on its place in the batch."""
    column = torch.arange(1, p.shape[-1] + 1, device=p.device)
    weight = _mix(column + _mix(torch.tensor(seed, device=p.device))) | 1
    row = _mix(((p.double() * 1e6).round().long() * weight).sum(-1, keepdim=True))  # a multilinear hash
    bits = _mix(row + column * -0x61C8864680B583EB) >> 11 & (1 << 53) - 1
    return torch.special.ndtri((bits + 0.5) / (1 << 53))


def _mix(h: Int[Tensor, "*s"]) -> Int[Tensor, "*s"]:
    """The finaliser of SplitMix64 (Steele, Lea & Flood 2014): each bit in moves half of the bits out."""
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15), (31, 1)):
        h = (h ^ (h >> shift & (1 << 64 - shift) - 1)) * factor
    return h
