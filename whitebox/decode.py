"""Decoding: which candidates' gradients do the weights consist of?

Ours. The attacker has: the weights, the recipe (weight decay lambda, n records in training) and the
candidates, all at once; no shadow. At the end of training theta = sum_i m_i g_i J_i + noise, where
J = grad phi is the gradient of record i's margin, m_i is 1 in the training set and 0 outside, and
g_i = sigma(-phi_i) / (n lambda) is known, phi being the model's own margin. So bits are unknown, not numbers,
which is far less than `dual` has to find. All bits at once, after expectation propagation (Minka 2001,
arXiv:1301.2294), with a Gaussian for alpha_i = m_i g_i; p = 1/2 at first:
  prior       mean mu = p g, variance v = p (rho g)^2 + (1 - p) p g^2 + tau^2
  posterior   covariance C = (G / s + diag 1/v)^-1, mean = mu + C (b - G mu) / s;  G = J J', b = J theta
  without i's own prior    1/k = 1/C_ii - 1/v_i,   c = k (mean_i / C_ii - mu_i / v_i)
  log-odds    log N(c; g, k + (rho g)^2 + tau^2) - log N(c; 0, k + tau^2)
and p = their sigmoid for the next round. s is the variance of what such a sum does not explain: in each layer
a share of its mean squared weight. Higher = member.
`decode_shadow` needs no weights of the target: J of an own shadow, b from the target's answers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor, nn

from glasslab.signals import phi
from whitebox.gram import Gram, grams, pooled
from whitebox.gram import foreign as foreign
from whitebox.kronecker import logits

DAMPED: Final = 0.3  # of the last round's log-odds in the next
SURE: Final = 12.0  # nats beyond which a bit is held for known
LEAST: Final = 1e-200  # of a mean g; all g are 0 in float64 where every phi is above 745
ROUNDED: Final = 4e-15  # of a trace: below it, eigenvalues are rounding, and some are negative


@dataclass(frozen=True)
class Law:
    """How far weights depart from theory: `noise` is s as a share of a layer's mean squared weight, `rho` the
    spread of a member's alpha relative to g, `tau` that of every alpha relative to the mean of g.
    """

    noise: float = 0.5
    rho: float = 0.5
    tau: float = 0.1
    rounds: int = 2

    def __post_init__(self) -> None:
        for name in ("noise", "rho", "tau", "rounds"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")


USUAL: Final = Law()


def decode(
    model: nn.Module,
    x: Float[Tensor, "n *d"],
    y: Int[Tensor, "n"],
    *,
    weight_decay: float,
    n_train: int,
    law: Law = USUAL,
    layers: Sequence[str] | str | None = None,
    memory: str = "512MiB",
) -> Float64[Tensor, "n"]:
    """Log-odds of membership in nats. O(n^3) a round: 4,000 candidates take some 15 s on one core.

    Raises ValueError without weight decay, where nothing says how large g is, and as `grams` does.
    """
    g = shares(logits(model, x, y), y, weight_decay, n_train)
    return bits(pooled([found for _, found in grams(model, x, y, layers=layers, memory=memory)]), g, law)


def decode_shadow(
    shadow: nn.Module,
    x: Float[Tensor, "n *d"],
    y: Int[Tensor, "n"],
    z: Float[Tensor, "n c"],
    *,
    weight_decay: float,
    n_train: int,
    law: Law = USUAL,
    layers: Sequence[str] | str | None = None,
    memory: str = "512MiB",
) -> Float64[Tensor, "n"]:
    """The same from the target's answers z (logits, or log-probabilities); errors as in `decode`."""
    g = shares(z, y, weight_decay, n_train)
    found = pooled([found for _, found in grams(shadow, x, y, layers=layers, memory=memory)])
    return bits(foreign(found, z, y), g, law)


def shares(
    z: Float[Tensor, "n c"], y: Int[Tensor, "n"], weight_decay: float, n_train: int
) -> Float64[Tensor, "n"]:
    """g = sigma(-phi) / (n lambda): what a member's gradient holds of stationary weights."""
    if not weight_decay > 0:
        raise ValueError(f"weight_decay must be above 0 to decode, got {weight_decay}")
    if n_train < 1:
        raise ValueError(f"n_train must be 1 or more, got {n_train}")
    return phi(z.double(), y).neg().sigmoid() / (n_train * weight_decay)


def bits(of: Gram, g: Float64[Tensor, "n"], law: Law = USUAL) -> Float64[Tensor, "n"]:
    """Log-odds, for each record, that theta holds g_i J_i."""
    unit = g.mean().clamp(min=LEAST)  # alpha and g are counted in it from here on
    g, of = g / unit, of._replace(b=of.b / unit)
    s = float(law.noise * of.square / of.size / unit.square())
    floor = law.tau**2
    spread = (law.rho * g).square()
    odds = found = torch.zeros_like(g)
    for turn in range(law.rounds):
        p = odds.clamp(-SURE, SURE).sigmoid()
        # DIFFERS: the law of a bit at p. Expectation propagation divides the bit's own posterior by what the
        # others say of it, a quotient whose variance can be negative; on small worlds both rank alike.
        mu, v = p * g, p * spread + floor + p * (1 - p) * g.square()
        mean, C = posterior(of, mu, v, s)
        found = _log_odds((1 / C - 1 / v).clamp(min=0), mean / C - mu / v, g, spread, floor)
        odds = found if turn == 0 else (1 - DAMPED) * found + DAMPED * odds
    return found


def posterior(
    of: Gram, mu: Float64[Tensor, "n"], v: Float64[Tensor, "n"], s: float
) -> tuple[Float64[Tensor, "n"], Float64[Tensor, "n"]]:
    """Mean and variance of each alpha under priors N(mu, v) and white noise of variance s in theta."""
    q = v.sqrt()
    # C = q (I + q G q / s)^-1 q: the eigenvalues inside are 1 and more
    K = (q[:, None] * of.G * q).div_(s)
    K.diagonal().add_(1 + ROUNDED * float(K.diagonal().sum()))
    W = inverse_lower(torch.linalg.cholesky(K))
    mean = mu + q * (W.T @ (W @ (q * (of.b - of.G @ mu)))) / s
    return mean, v * W.square().sum(0)


def inverse_lower(L: Float64[Tensor, "n n"]) -> Float64[Tensor, "n n"]:
    """Inverse of a lower triangle by halves, which is matrix products for the most part."""
    n = len(L)
    if n <= 256:
        return torch.linalg.solve_triangular(L, torch.eye(n, dtype=L.dtype, device=L.device), upper=False)
    h, out = n // 2, torch.zeros_like(L)
    out[:h, :h], out[h:, h:] = inverse_lower(L[:h, :h]), inverse_lower(L[h:, h:])
    out[h:, :h] = -(out[h:, h:] @ (L[h:, :h] @ out[:h, :h]))
    return out


def _log_odds(
    sharp: Float64[Tensor, "n"],
    pull: Float64[Tensor, "n"],
    g: Float64[Tensor, "n"],
    spread: Float64[Tensor, "n"],
    floor: float,
) -> Float64[Tensor, "n"]:
    """log N(c; g, k + spread + floor) - log N(c; 0, k + floor), k = 1 / sharp and c = k pull.

    Written so that it has a value at sharp = 0, where the weights say nothing of a record and k is infinite.
    """
    inside, outside = 1 + (spread + floor) * sharp, 1 + floor * sharp
    square = pull.square() * spread / outside + 2 * pull * g - g.square() * sharp
    return (square / inside - inside.log() + outside.log()) / 2
