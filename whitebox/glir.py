"""GLiR, the gradient likelihood ratio attack (Leemann, Pawelczyk & Kasneci 2023, arXiv:2306.07273).

The attacker has: at every step the weights theta_t and m, the mean gradient of a batch of n (perhaps with
noise of spread tau on each coordinate), and aux, records in no batch, whose gradients at theta_t have mean mu
and covariance Sigma on the d coordinates kept. g is the gradient of the record at theta_t.

    K = (g - mu)' Sigma^-1 (g - mu);   S = n (m - g)' Sigma^-1 (m - g), with Sigma + n tau^2 I in both
    p_t = F(S; noncentral chi-square, d degrees of freedom, n K);   score = -sum over t of max(log p_t, -250)

A record that is not in the batch has S of exactly that law, if gradients are Gaussian: p_t is uniform. The
mean of its own batch lies nearer to g. Higher = member.
"""

import copy
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from scipy.special import log_ndtr
from scipy.stats import ncx2
from sklearn.covariance import oas
from torch import Generator, Tensor, nn

from glasslab.checks import Floored
from glasslab.data import Data
from whitebox.gradients import check_eval, mean_gradient, per_example

FLOOR = -250.0  # of log p, so that one step cannot outweigh all others
ENOUGH = 10  # background records a coordinate, below which the covariance is shrunk
DEEP = 1e-100  # p below which the distribution function is no longer summed
NULL = 1e-12  # a pivot of this share of the variance is rounding


@dataclass(frozen=True, eq=False)
class Step:
    """An update as it is seen: theta_t in `model`, in eval mode; m by parameter name; batch size n; tau."""

    model: nn.Module
    m: Mapping[str, Tensor]
    n: int
    noise: float = 0.0


def glir(
    steps: Sequence[Step],
    x: Float[Tensor, "n *d"],
    y: Int[Tensor, "n"],
    aux: Data,
    *,
    d: int = 650,
    min_variance: float = 1e-10,
    published: bool = False,
    noise: float = 0.0,
    memory: str = "512MiB",
) -> Float64[Tensor, "n"]:
    """Minus the sum over the steps of log p_t, in nats, each p_t floored at exp(-250).

    Of all parameters that m names, every (D // d)-th coordinate is kept, d at most, but for those whose
    variance over aux is below `min_variance` times the largest one. `noise` is a spread on m beyond what the
    steps state. With aux of fewer than 10 d records Sigma is shrunk (OAS); else, where it is singular,
    only the directions in which gradients vary count, and a Floored warning says how many.

    `published` has n - 1 for n in S, as the authors' code does. Steps are correlated: the sum ranks records,
    it is no p-value. glir([step], ...) scores one. Raises ValueError on no step, a model in training mode,
    names or shapes in m that are not the model's, settings out of range, gradients that do not vary over aux.
    """
    _settings(steps, aux, d, min_variance, noise)
    total = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    for step in steps:
        net = copy.deepcopy(step.model).double()  # S is a difference of two like gradients
        kept = _kept(step, d)
        g, background = (_gradients(net, a, b, kept, memory) for a, b in ((x, y), (aux.x, aux.y)))
        m = torch.cat([step.m[name].detach().double().flatten()[rows] for name, rows in kept.items()])
        spread = np.hypot(step.noise, noise)
        K, S, size = _distances(g, m.to(g.device), background, step.n, float(spread), min_variance)
        scale = (step.n - 1) / step.n if published else 1.0
        # DIFFERS: with n - 1 in S, as in the authors' code, p_t of a record outside the batch is not uniform.
        total += _log_p(S * scale, size, step.n * K).clamp(min=FLOOR).to(x.device)
    return -total


def record_steps(
    model: nn.Module,
    data: Data,
    *,
    lr: float,
    batch: int,
    steps: int,
    generator: Generator,
    noise: float = 0.0,
) -> list[Step]:
    """What an observer sees of plain SGD from `model` on: theta_t and the (noisy) mean gradient of each step.

    Each batch is drawn from `data` without replacement. Gradients are those of eval mode. The model itself
    stays as it is. Raises ValueError on a model in training mode, batches larger than data, negative noise.
    """
    check_eval(model)
    if not 1 <= batch <= len(data):
        raise ValueError(f"batch must lie in 1 .. {len(data)}, the records of data, got {batch}")
    if steps < 1 or not noise >= 0:
        raise ValueError(f"steps must be 1 or more and noise 0 or more, got {steps} and {noise}")
    seen, now = [], copy.deepcopy(model)
    for _ in range(steps):
        rows = torch.randperm(len(data), generator=generator)[:batch].to(data.x.device)
        m = mean_gradient(now, data.x[rows], data.y[rows])
        if noise:
            m = {k: g + noise * torch.randn(g.shape, generator=generator).to(g) for k, g in m.items()}
        seen.append(Step(now, m, batch, noise))
        now = copy.deepcopy(now)
        with torch.no_grad():
            for name, p in now.named_parameters():
                if name in m:
                    p.sub_(lr * m[name].to(p))
    return seen


def separation(K: Float64[Tensor, "n"], *, d: int, n: int) -> Float64[Tensor, "n"]:
    """mu of one step alone: TPR = 1 - Phi(Phi^-1(1 - FPR) - mu) at large d."""
    return (d + (2 * n - 1) * K) / (n * (2 * d + 4 * n * K).sqrt())


def _kept(step: Step, d: int) -> dict[str, Int[Tensor, "_"]]:
    """Which coordinates of each parameter count: every (D // d)-th of all, in the model's order."""
    check_eval(step.model)
    held = dict(step.model.named_parameters())
    for name, g in step.m.items():
        if name not in held:
            raise ValueError(
                f"m must name parameters of the model, such as {next(iter(held))!r}, got {name!r}"
            )
        if g.shape != held[name].shape:
            raise ValueError(f"m of {name!r} must have shape {tuple(held[name].shape)}, got {tuple(g.shape)}")
    names = [name for name in held if name in step.m]
    sizes = [held[name].numel() for name in names]
    total = sum(sizes)
    if not total:
        raise ValueError("m must name a parameter or more, got none")
    every = torch.arange(0, total, max(1, total // d))[:d]
    ends = torch.tensor(sizes).cumsum(0).tolist()
    parts = zip(names, [0, *ends], ends, strict=False)
    return {name: every[(every >= a) & (every < b)] - a for name, a, b in parts}


def _gradients(
    net: nn.Module, x: Tensor, y: Tensor, kept: Mapping[str, Tensor], memory: str
) -> Float64[Tensor, "r k"]:
    chunks = per_example(net, x.double(), y, of="loss", memory=memory)
    return torch.cat(
        [torch.cat([c[name].flatten(1)[:, rows] for name, rows in kept.items()], 1) for c in chunks]
    )


def _distances(
    g: Float64[Tensor, "n k"],
    m: Float64[Tensor, "k"],
    background: Float64[Tensor, "a k"],
    n: int,
    noise: float,
    min_variance: float,
) -> tuple[Float64[Tensor, "n"], Float64[Tensor, "n"], int]:
    """K and S of each record, and the number of coordinates that they are taken over."""
    variance = background.var(0, correction=0)
    if not variance.max() > 0:
        raise ValueError(f"aux must have gradients that vary, got none in {len(variance)} coordinates")
    kept = variance >= min_variance * variance.max()
    kept &= variance > 0
    g, m, background = g[:, kept], m[kept], background[:, kept]
    a, d = background.shape
    if a < ENOUGH * d:
        sigma = torch.from_numpy(np.asarray(oas(background.cpu().numpy())[0])).to(g)
    else:
        sigma = torch.atleast_2d(background.T.cov())
    sigma = sigma + n * noise**2 * torch.eye(d, dtype=g.dtype, device=g.device)
    factor, failed = torch.linalg.cholesky_ex(sigma)
    both = torch.cat([g - background.mean(0), m - g]).T
    if failed or (factor.diagonal().square() < NULL * sigma.diagonal()).any():
        values, q = torch.linalg.eigh(sigma)
        real = values > NULL * values[-1]
        text = f"gradients vary in {int(real.sum())} of {d} directions, the others were left out"
        warnings.warn(text, Floored, stacklevel=3)
        white, d = (q[:, real] / values[real].sqrt()).T @ both, int(real.sum())
    else:
        white = torch.linalg.solve_triangular(factor, both, upper=False)
    K, S = white.square().sum(0).chunk(2)
    return K, n * S, d


def _log_p(S: Float64[Tensor, "n"], d: int, nc: Float64[Tensor, "n"]) -> Float64[Tensor, "n"]:
    """log F(S) of the noncentral chi-square law; far out, where scipy's sum ends in 0, by its saddle point.

    That in the form of Barndorff-Nielsen 1986, which is within 0.02 nats from 5 degrees of freedom on.
    """
    s, c = S.cpu().numpy().clip(1e-100), nc.cpu().numpy()
    with np.errstate(all="ignore"):
        p = np.asarray(ncx2.cdf(s, d, c))
        # q = 1 / (1 - 2 t) solves c q^2 + d q = s, without the difference of two like numbers
        q = 2 * s / (d + np.sqrt(d * d + 4 * c * s))
        t = (1 - 1 / q) / 2
        w = np.sign(t) * np.sqrt(np.maximum(2 * (t * s - d / 2 * np.log(q) - c * t * q), 0.0))
        v = t * np.sqrt(2 * d * q**2 + 4 * c * q**3)
        far = log_ndtr(w + np.log(v / w) / w)
        out = np.where((p > DEEP) & (p <= 1), np.log(p), far)
    ends = np.where(s < d + c, 2 * FLOOR, 0.0)  # beyond what either can tell
    return torch.from_numpy(np.where(np.isfinite(out), out, ends)).to(S)


def _settings(steps: Sequence[Step], aux: Data, d: int, min_variance: float, noise: float) -> None:
    if not steps or any(step.n < 1 for step in steps):
        raise ValueError(f"steps must hold one or more, of batches of 1+, got {[step.n for step in steps]}")
    if d < 1 or len(aux) < 2:
        raise ValueError(f"need d of 1+ and aux of 2+ records, got {d} and {len(aux)}")
    if not 0 <= min_variance < 1:
        raise ValueError(f"min_variance must lie in [0, 1), got {min_variance}")
    if not noise >= 0:
        raise ValueError(f"noise must be 0 or more, got {noise}")
