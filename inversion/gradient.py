"""Where the gradient of an inversion comes from: the weights, or answers alone.

Fredrikson, Jha and Ristenpart 2015 (CCS, "Model Inversion Attacks that Exploit Confidence Information and
Basic Countermeasures") descend on the probability f_y(x); with answers alone they estimate its gradient.

`autograd` holds the weights. The others hold an Oracle and pay for each point, with u a direction:
`difference`: g = sum_u (f(x + h u) - f(x - h u)) / (2 h) u, over the unit vectors or a basis;
`nes` (Wierstra et al. 2014; Ilyas et al. 2018, arXiv:1804.08598): the mean over u ~ N(0, I) in antithetic
pairs, g = 1 / (2 n sigma) sum_i (f(x + sigma u_i) - f(x - sigma u_i)) u_i.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import product
from typing import Final

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from glasslab.oracle import BudgetExceeded, Oracle
from glasslab.split import stream

# (x, y) -> the probability of y at x, and its gradient. One that asks an oracle has a `price`: queries a row.
Gradient = Callable[
    [Float[Tensor, "b *d"], Int[Tensor, "b"]], tuple[Float[Tensor, "b"], Float[Tensor, "b *d"]]
]

WIDTHS: Final = (0.001, 0.01, 0.1, 0.5)
MEMORY: Final = 2**26  # bytes


@dataclass(eq=False)
class autograd:
    """The white box: f_y(x) in float64 and its exact gradient, in one pass forward and one back.

    The model is used where it lies and left as it is. Raises ValueError where a layer is in training mode.
    """

    model: nn.Module
    price: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        _in_eval(self.model)

    @property
    def dtype(self) -> torch.dtype:
        """That of the weights: records are made in it."""
        return next((p.dtype for p in self.model.parameters()), torch.float32)

    def __call__(
        self, x: Float[Tensor, "b *d"], y: Int[Tensor, "b"]
    ) -> tuple[Float[Tensor, "b"], Float[Tensor, "b *d"]]:
        _in_eval(self.model)
        with torch.enable_grad():
            z = self.model(x := x.detach().requires_grad_())
        p, own = z.detach().double().softmax(-1), y[:, None].long()  # float32: f = 1 from log-odds of 17 on
        f = p.gather(1, own)
        slope = (-f * p).scatter_add_(1, own, f)  # f (e_y - p): autograd would take longer
        (g,) = torch.autograd.grad(z, x, slope.to(z.dtype))
        return f[:, 0], g


@dataclass(eq=False)
class difference:
    """Central differences: 2 D queries a row, or 2 k along the k orthonormal rows of `basis`.

    The probability is the mean of the answers, that of x up to h^2, so that no query goes to x itself.
    `memory` bounds the probes held at a time, in bytes. `price` is 0 until the records' size is known.
    Raises ValueError for an oracle of labels, for h <= 0 and a basis of rows that are not orthonormal;
    BudgetExceeded before a query where the budget does not pay for all rows.
    """

    oracle: Oracle
    h: float
    basis: Float[Tensor, "k D"] | None = field(default=None, kw_only=True)
    memory: int = field(default=MEMORY, kw_only=True)
    price: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        _check("h", self.h, self.oracle, self.basis)
        self.price = 0 if self.basis is None else 2 * len(self.basis)

    def __call__(
        self, x: Float[Tensor, "b *d"], y: Int[Tensor, "b"]
    ) -> tuple[Float[Tensor, "b"], Float[Tensor, "b *d"]]:
        size = x[0].numel()
        k = size if self.basis is None else len(self.basis)
        self.price = 2 * k
        _payable(self.oracle, self.price * len(x))
        total, slope = x.new_zeros(len(x), dtype=torch.float64), []
        for rows in _blocks(k, x, self.memory):
            u = _units(rows, size).to(x) if self.basis is None else self.basis[rows.start : rows.stop].to(x)
            up, down = _either_side(self.oracle, x, y, self.h * u)
            total += (up + down).sum(1)
            slope.append((up - down) / (2 * self.h))
        g = torch.cat(slope, 1)
        if self.basis is not None:
            g = g @ self.basis.to(g)
        return total / self.price, g.to(x.dtype).reshape(x.shape)


@dataclass(eq=False)
class nes:
    """n antithetic pairs of normal directions of spread sigma, or normal in the span of `basis`: 2 n queries.

    The directions are drawn from (seed, number of the call) and shared by all rows, so that a row's gradient
    does not depend on the others; a second run wants a fresh `nes`. The probability is the mean of the
    answers: f smoothed over N(0, sigma^2). Its cosine with the true gradient is about sqrt(n / D).
    Raises ValueError for an oracle of labels, for sigma <= 0, n < 1 and a basis of rows that are not
    orthonormal; BudgetExceeded before a query where the budget does not pay for all rows.
    """

    oracle: Oracle
    n: int
    sigma: float
    seed: int = field(default=0, kw_only=True)
    basis: Float[Tensor, "k D"] | None = field(default=None, kw_only=True)
    memory: int = field(default=MEMORY, kw_only=True)
    calls: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        _check("sigma", self.sigma, self.oracle, self.basis)
        if self.n < 1:
            raise ValueError(f"n must be 1 or more directions, got {self.n}")

    @property
    def price(self) -> int:
        return 2 * self.n

    def __call__(
        self, x: Float[Tensor, "b *d"], y: Int[Tensor, "b"]
    ) -> tuple[Float[Tensor, "b"], Float[Tensor, "b *d"]]:
        _payable(self.oracle, self.price * len(x))
        generator = stream(self.seed, "nes", self.calls)
        self.calls += 1
        size = x[0].numel() if self.basis is None else len(self.basis)
        u = torch.randn(self.n, size, generator=generator, dtype=torch.float64).to(x.device)
        u = u if self.basis is None else u @ self.basis.to(u)
        f = x.new_zeros(len(x), dtype=torch.float64)
        g = x.new_zeros(len(x), u.shape[1], dtype=torch.float64)
        for rows in _blocks(self.n, x, self.memory):
            some = u[rows.start : rows.stop]
            up, down = _either_side(self.oracle, x, y, (self.sigma * some).to(x.dtype))
            f += (up + down).sum(1) / self.price
            g += (up - down) @ some / (self.price * self.sigma)
        return f, g.to(x.dtype).reshape(x.shape)


def adapted(
    make: Callable[[float], Gradient],
    model: nn.Module,
    x: Float[Tensor, "b *d"],
    y: Int[Tensor, "b"],
    *,
    widths: tuple[float, ...] = WIDTHS,
) -> tuple[float, Float64[Tensor, "w"]]:
    """The width (h or sigma) to use against a mask, and the mean cosine of each width's gradients.

    `make(width)` asks an oracle over a shadow model behind the target's mask; `model` is that shadow, whose
    true gradients the attacker has. A gradient of 0 counts as a cosine of 0; of equal widths the first.
    """
    g = autograd(model)(x, y)[1].flatten(1).double()
    cosine = [cosine_similarity(make(w)(x, y)[1].flatten(1).double(), g, eps=1e-300).mean() for w in widths]
    return widths[int(torch.stack(cosine).argmax())], torch.stack(cosine).cpu()


def principal(x_public: Float[Tensor, "n *d"], k: int) -> Float[Tensor, "k D"]:
    """The k first principal components, as orthonormal rows. ValueError unless k is 1 to min(n - 1, D)."""
    rows = x_public.flatten(1).double()
    if not 1 <= k <= min(len(rows) - 1, rows.shape[1]):
        raise ValueError(f"k must be 1 to min(n - 1, D) of {[*rows.shape]} records, got {k}")
    return torch.linalg.svd(rows - rows.mean(0), full_matrices=False).Vh[:k].to(x_public.dtype)


def cosine(k: int, shape: tuple[int, ...]) -> Float[Tensor, "k D"]:
    """The k lowest frequencies of the cosine transform (DCT-II), as orthonormal rows in float32.

    Of the last two dimensions, each channel for itself. Raises ValueError unless k is 1 to D.
    """
    if not 1 <= k <= math.prod(shape):
        raise ValueError(f"k must be 1 to D = {math.prod(shape)}, got {k}")
    channels = max(len(shape) - 2, 0)
    tables = [torch.eye(n).double() if i < channels else _dct(n) for i, n in enumerate(shape)]

    def pitch(at: tuple[int, ...]) -> float:
        return sum((j / n) ** 2 for j, n in list(zip(at, shape, strict=True))[channels:])

    def wave(at: tuple[int, ...]) -> Tensor:
        row = torch.ones(1, dtype=torch.float64)
        for j, table in zip(at, tables, strict=True):
            row = torch.outer(row, table[j]).flatten()
        return row

    return torch.stack([wave(at) for at in sorted(product(*map(range, shape)), key=pitch)[:k]]).float()


def _dct(n: int) -> Float64[Tensor, "{n} {n}"]:
    i = torch.arange(n, dtype=torch.float64)
    waves = (math.pi / n * (i + 0.5) * i[:, None]).cos() * (2 / n) ** 0.5
    waves[0] /= 2**0.5
    return waves


def _units(rows: range, size: int) -> Float[Tensor, "m {size}"]:
    u = torch.zeros(len(rows), size)
    u[torch.arange(len(rows)), torch.arange(rows.start, rows.stop)] = 1
    return u


def _blocks(k: int, x: Tensor, memory: int) -> Iterator[range]:
    """Directions 0 to k, so many at a time that the probes of all rows fit into `memory` bytes."""
    block = max(1, memory // (2 * x.numel() * x.element_size()))
    return (range(start, min(start + block, k)) for start in range(0, k, block))


def _either_side(
    oracle: Oracle, x: Float[Tensor, "b *d"], y: Int[Tensor, "b"], v: Float[Tensor, "m D"]
) -> tuple[Float64[Tensor, "b m"], Float64[Tensor, "b m"]]:
    """f_y(x + v) and f_y(x - v), for each row of x and each of v."""
    v = v.reshape(-1, *x.shape[1:])
    probes = torch.cat([x[:, None] + v, x[:, None] - v], 1).flatten(0, 1)
    p = oracle(probes).reshape(len(x), 2 * len(v), -1)
    f = p.gather(2, y.long()[:, None, None].expand(-1, p.shape[1], 1))[:, :, 0].double()
    return f[:, : len(v)], f[:, len(v) :]


def _payable(oracle: Oracle, queries: int) -> None:
    if oracle.left is not None and queries > oracle.left:
        raise BudgetExceeded(f"{queries} queries asked, {oracle.left} left of a budget of {oracle.budget}")


def _check(name: str, width: float, oracle: Oracle, basis: Tensor | None) -> None:
    if oracle.reveals == "labels":
        raise ValueError("oracle must reveal probabilities, got labels: see inversion.label_only")
    if not 0 < width < math.inf:
        raise ValueError(f"{name} must be above 0, got {width}")
    if basis is not None:
        off = float((basis.double() @ basis.double().T - torch.eye(len(basis)).to(basis.device)).abs().max())
        if not off < 1e-3:
            raise ValueError(f"basis must have orthonormal rows, got products up to {off:.3g} away from that")


def _in_eval(model: nn.Module) -> None:
    if any(layer.training for layer in model.modules()):
        raise ValueError("model must be in eval mode, got training mode")
