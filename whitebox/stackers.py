"""What `stacked` weighs its features with: linear weights, trees or small nets. Log-odds, in nats."""

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, sqrt
from threading import Event
from typing import Final

import torch
from jaxtyping import Bool, Float32, Float64
from sklearn.ensemble import HistGradientBoostingClassifier
from threadpoolctl import threadpool_limits
from torch import Generator, Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

from glasslab.cores import side_by_side
from whitebox.fitting import fresh

Stacker = Callable[[Float64[Tensor, "r f"]], Float64[Tensor, "r"]]

ROWS: Final = 1 << 16  # held in float64 at a time
CONSTANT: Final = 1e-9  # spread of a column, as a share of its size, that is none
BACKTRACK: Final = 1e-3  # nats that a step promises; below, rounding decides whether the loss has fallen
ENOUGH: Final = 1e-14  # nats below which a step is the last


@dataclass(frozen=True, eq=False)
class Linear:
    """weight . features + bias."""

    weight: Float64[Tensor, "f"]
    bias: float

    def __call__(self, X: Float64[Tensor, "r f"]) -> Float64[Tensor, "r"]:
        return X @ self.weight + self.bias


@dataclass(frozen=True, eq=False)
class Boosted:
    """Gradient-boosted trees; they run on the processor."""

    trees: HistGradientBoostingClassifier

    def __call__(self, X: Float64[Tensor, "r f"]) -> Float64[Tensor, "r"]:
        with threadpool_limits(1):
            return torch.from_numpy(self.trees.decision_function(X.cpu().numpy())).to(X)


@dataclass(frozen=True, eq=False)
class Nets:
    """The mean logit of several nets that read standardised features."""

    mean: Float64[Tensor, "f"]
    std: Float64[Tensor, "f"]
    nets: tuple[nn.Module, ...]

    @torch.no_grad()
    def __call__(self, X: Float64[Tensor, "r f"]) -> Float64[Tensor, "r"]:
        parts = [(part - self.mean) / self.std for part in X.split(ROWS)]
        logits = [torch.cat([net(part).squeeze(1) for part in parts]) for net in self.nets]
        return torch.stack(logits).mean(0)


def logistic(X: Float32[Tensor, "r f"], member: Bool[Tensor, "r"], *, C: float = 0.1) -> Linear:
    """Logistic regression on standardised features: the least sum of losses + |weights|^2 / (2 C).

    By Newton's method in float64, to the last digits: neither the order of rows nor a seed shows in it.
    """
    mean, std = _standard(X)
    penalty = torch.full((X.shape[1] + 1,), 1 / C).to(mean)
    penalty[-1] = 0.0  # the bias
    w = torch.zeros_like(penalty)
    loss, slope, curve = _loss(X, member, mean, std, w, penalty)
    for _ in range(100):
        step = torch.linalg.solve(curve, slope)
        promised = float(slope @ step)
        if promised < BACKTRACK:
            w = w - step
            loss, slope, curve = _loss(X, member, mean, std, w, penalty)
        else:
            before, scale = loss, 1.0
            while scale > 1e-9:
                loss, slope, curve = _loss(X, member, mean, std, w - scale * step, penalty)
                if loss < before:
                    break
                scale /= 2
            w = w - scale * step
        if promised < ENOUGH:
            break
    weight = w[:-1] / std
    return Linear(weight, float(w[-1] - weight @ mean))


def boosted(
    X: Float32[Tensor, "r f"],
    member: Bool[Tensor, "r"],
    generator: Generator,
    *,
    rounds: int = 80,
    leaves: int = 15,
    rate: float = 0.08,
) -> Boosted:
    """Histogram gradient boosting for a fixed number of rounds."""
    trees = HistGradientBoostingClassifier(
        max_iter=rounds,
        max_leaf_nodes=leaves,
        learning_rate=rate,
        early_stopping=False,
        random_state=_seed(generator),
    )
    with threadpool_limits(1):  # so that the last digits do not depend on the number of cores
        return Boosted(trees.fit(X.cpu().numpy(), member.cpu().numpy()))


def nets(
    X: Float32[Tensor, "r f"],
    member: Bool[Tensor, "r"],
    generator: Generator,
    *,
    count: int = 3,
    width: int = 32,
    epochs: int = 6,
    batch: int = 1024,
    lr: float = 3e-3,
) -> Nets:
    """Nets of two hidden layers, GELU, AdamW, one cycle of the rate; each on a thread of its own."""
    mean, std = _standard(X)

    def make() -> nn.Module:
        hidden = (nn.Linear(X.shape[1], width), nn.GELU(), nn.Linear(width, width), nn.GELU())
        return nn.Sequential(*hidden, nn.Linear(width, 1))

    def run(job: tuple[nn.Module, int]) -> nn.Module:
        net, order = job[0], torch.Generator().manual_seed(job[1])
        optimiser = torch.optim.AdamW(net.parameters(), lr)
        steps = epochs * ceil(len(X) / batch)
        cycle = torch.optim.lr_scheduler.OneCycleLR(optimiser, lr, total_steps=steps)
        for _ in range(epochs):
            for rows in torch.randperm(len(X), generator=order).to(X.device).split(batch):
                z = net(((X[rows] - mean) / std).float()).squeeze(1)
                optimiser.zero_grad()
                binary_cross_entropy_with_logits(z, member[rows].float()).backward()
                optimiser.step()
                cycle.step()
        return net.double().eval().requires_grad_(False)

    jobs = [(fresh(make, generator).to(X.device), _seed(generator)) for _ in range(count)]
    return Nets(mean, std, tuple(side_by_side(run, jobs, Event())))


def _standard(X: Float32[Tensor, "r f"]) -> tuple[Float64[Tensor, "f"], Float64[Tensor, "f"]]:
    """Mean and standard deviation of each column; 1 where it is constant."""
    total = torch.stack([part.double().sum(0) for part in X.split(ROWS)])
    mean = total.sum(0) / len(X)
    square = torch.stack([(part.double() - mean).square().sum(0) for part in X.split(ROWS)])
    std = square.sum(0).sqrt() / sqrt(len(X))
    return mean, torch.where(std > CONSTANT * (1 + mean.abs()), std, 1.0)


def _loss(
    X: Float32[Tensor, "r f"],
    member: Bool[Tensor, "r"],
    mean: Float64[Tensor, "f"],
    std: Float64[Tensor, "f"],
    w: Float64[Tensor, "f+1"],
    penalty: Float64[Tensor, "f+1"],
) -> tuple[float, Float64[Tensor, "f+1"], Float64[Tensor, "f+1 f+1"]]:
    """The penalised loss at w, its gradient and its Hessian."""
    loss, slope, curve = float((penalty * w * w).sum()) / 2, penalty * w, penalty.diag()
    for part, inside in zip(X.split(ROWS), member.split(ROWS), strict=True):
        A = torch.cat([(part.double() - mean) / std, torch.ones_like(part[:, :1]).double()], 1)
        eta, t = A @ w, inside.double()
        p = eta.sigmoid()
        loss += float((softplus(eta) - t * eta).sum())
        slope = slope + A.T @ (p - t)
        curve = curve + A.T @ (A * (p * (1 - p))[:, None])
    return loss, slope, curve


def _seed(generator: Generator) -> int:
    return int(torch.randint(2**31 - 1, (1,), generator=generator))
