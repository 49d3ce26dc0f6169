"""The score test: does the model's pull away from the population point against this record?

Ours, after the asymptotics of M-estimators (van der Vaart 1998, chapter 5). The attacker has the weights and
aux, and shadows for one of the calibrations. Trained weights lie around the population's optimum, and one
record moves their mean by -H^-1 g / n. The best linear test for that looks along G^-1 g, G the covariance of
the gradients with true labels:
T(x) = sum over layers of <J, C^-1 (Gamma + lambda_s Theta)>.
J = grad phi of the record, C = kron(B, A) for G, Gamma = the mean of grad loss over aux, for that over the
population, Theta = the weights: weight decay holds lambda_s Theta against the pull of the members.
Higher = member.
"""

import warnings
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor, nn

from glasslab.checks import Floored
from glasslab.data import Data
from glasslab.likelihood import Variance, fit, ratio
from whitebox.gradients import check_eval
from whitebox.last_layer import last_inputs, last_layer, own_less_wrong
from whitebox.whitened import Curvature, Whitening, lower

GROUPS: Final = 10  # of equal size along the leverage
FEW: Final = 10  # records of aux below which a group has no spread worth the name
ROWS: Final = 256  # gradients that are formed at a time
FLOOR: Final = 1e-3  # of the spread over all of aux


def score_test(
    model: nn.Module,
    x: Float[Tensor, "n *d"],
    y: Int[Tensor, "n"],
    aux: Data,
    *,
    lambda_s: float,
    curvature: Curvature = "kfac",
    ridge: float = 0.05,
    layers: tuple[str, ...] | None = None,
    k: int = 512,
    seed: int = 0,
    memory: str = "512MiB",
) -> Float64[Tensor, "n"]:
    """T(x), which compares models on one record; records with each other only after a calibration.

    `lambda_s` is the recipe's weight decay in theory, for training that has come to rest; more of it after
    short training. The others as in `whitened.Whitening`. The target and all shadows take the same aux: its
    error is then the same for all of them. Raises ValueError on a negative lambda_s, and as `Whitening` does.
    """
    if not lambda_s >= 0:
        raise ValueError(f"lambda_s must be 0 or more, got {lambda_s}")
    signal = Whitening(aux, ridge, curvature, layers, k, seed, memory)
    return signal.product(model, x, y, gamma=1.0, theta=lambda_s).sum(1)


def by_shadows(
    s: Float[Tensor, "n"],
    S: Float[Tensor, "m n"],
    member: Bool[Tensor, "m n"],
    *,
    variance: Variance = "pooled",
) -> Float64[Tensor, "n"]:
    """log N(s | IN) - log N(s | OUT) in nats: s are T of the target, S those of the shadows, on the same aux.

    `variance` as in `glasslab.likelihood.fit`. Raises ValueError where a record has too few shadows.
    """
    return ratio(s, fit(S, member, variance=variance))


def by_aux(
    s: Float[Tensor, "n"],
    y: Int[Tensor, "n"],
    leverage: Float[Tensor, "n"],
    s_aux: Float[Tensor, "a"],
    y_aux: Int[Tensor, "a"],
    leverage_aux: Float[Tensor, "a"],
) -> Float64[Tensor, "n"]:
    """T in standard deviations above its mean over records of aux of the same class and leverage decile.

    All are of one model; `leverage` as in `influence.Leverage`. The records of aux are other ones than those
    that Gamma and C were taken over. A class with fewer than 100 of them has fewer groups, of 10 records, and
    one with fewer than 10 is compared with all classes: a Floored warning counts both.
    Raises ValueError on fewer than 2 records of aux, and where scores, labels and leverages differ in length.
    """
    for name, sizes in (("s", (s, y, leverage)), ("s_aux", (s_aux, y_aux, leverage_aux))):
        if len({len(t) for t in sizes}) > 1 or (name == "s_aux" and len(s_aux) < 2):
            need = "as long as its labels and leverages, s_aux 2 or longer"
            raise ValueError(f"{name} must be {need}, got {', '.join(str(len(t)) for t in sizes)}")
    s, s_aux, leverage, leverage_aux = (t.double() for t in (s, s_aux, leverage, leverage_aux))
    out, coarse, foreign, flat = torch.empty_like(s), 0, 0, 0
    least = FLOOR * (float(s_aux.std(correction=0)) or 1.0)
    for c in y.unique():
        mine, own = y == c, y_aux == c
        count = int(own.sum())
        if count < FEW:
            own, foreign = torch.ones_like(own), foreign + int(mine.sum())
        elif count < FEW * GROUPS:
            coarse += int(mine.sum())
        mean, spread = _moments(leverage[mine], s_aux[own], leverage_aux[own])
        flat += int((spread < least).sum())
        out[mine] = (s[mine] - mean) / spread.clamp(min=least)
    if coarse or foreign:
        text = f"{coarse} of {len(s)} records have fewer than 100 records of aux in their class"
        warnings.warn(f"{text}, {foreign} fewer than 10", Floored, stacklevel=2)
    if flat:
        warnings.warn(f"{flat} of {len(s)} spreads floored at {least:.3g}", Floored, stacklevel=2)
    return out


@dataclass(frozen=True)
class Rho:
    """Signal: how much more than the loss the last layer's weights can say about a record, 1 or more.

    The ratio of squared separations d'^2 of the best linear test on the weights and of the loss, to first
    order: (g' G^-1 g) (g' H^-1 G H^-1 g) / (g' H^-1 g)^2, exact H, and G of true labels. 1 for all records
    where the labels follow the model. `ridge` is added to both, in units of their mean eigenvalue.
    """

    aux: Data
    ridge: float = 0.0
    memory: str = "512MiB"

    def __call__(
        self, model: nn.Module, x: Float[Tensor, "n *d"], y: Int[Tensor, "n"]
    ) -> Float64[Tensor, "n"]:
        """Raises ValueError as `last_layer` does, and where the ridge leaves H or G singular."""
        check_eval(model)
        home = next(model.parameters(), x).device
        found = last_layer(model, self.aux.x.to(home), self.aux.y.to(home), memory=self.memory)
        a, z = last_inputs(model, x.to(home), y.to(home), memory=self.memory)
        slope = own_less_wrong(z, y.to(home)) @ found.P  # g is a multiple of J, and rho of both the same
        G, H = (lower(M, self.ridge) for M in (found.G, found.H))
        parts = zip(slope.split(ROWS), a.split(ROWS), strict=True)
        out = [gain((d[:, :, None] * v[:, None, :]).flatten(1), G, H) for d, v in parts]
        return torch.cat(out).to(x.device)


def gain(
    g: Float64[Tensor, "n q"], G: Float64[Tensor, "q q"], H: Float64[Tensor, "q q"]
) -> Float64[Tensor, "n"]:
    """rho of each row of g, for the lower Cholesky factors of G and H; 1 where g is 0."""
    u = torch.linalg.solve_triangular(G, g.T, upper=False)
    v = G.T @ torch.cholesky_solve(g.T, H)
    # |u|^2 |v|^2 / (u'v)^2, written so that it is exact near 1: what of u is not along v
    both, along = (u * v).sum(0), v.square().sum(0)
    off = (u - v * (both / along)).square().sum(0)
    return torch.where(along > 0, 1 + off * along / both.square(), 1.0)


def _moments(
    leverage: Float64[Tensor, "k"], s_aux: Float64[Tensor, "a"], leverage_aux: Float64[Tensor, "a"]
) -> tuple[Float64[Tensor, "k"], Float64[Tensor, "k"]]:
    """Mean and standard deviation of s_aux in each record's group of leverage; ties share a group."""
    groups = min(GROUPS, max(1, len(s_aux) // FEW))
    ends = torch.stack([part[-1] for part in leverage_aux.sort().values.tensor_split(groups)]).unique()
    of_aux = torch.searchsorted(ends, leverage_aux)
    of_each = torch.searchsorted(ends, leverage).clamp(max=len(ends) - 1)
    parts = [s_aux[of_aux == i] for i in range(len(ends))]
    parts = [part if len(part) >= FEW else s_aux for part in parts]  # ties can leave a group too few
    mean = torch.stack([part.mean() for part in parts])
    return mean[of_each], torch.stack([part.std() for part in parts])[of_each]
