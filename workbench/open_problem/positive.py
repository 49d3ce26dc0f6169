"""The positive control: a simulated world in which weights say more of one record than its loss does.

Least squares on records of two kinds, each with half of the features. Where one kind's noise is louder, the
Fisher matrix H is not the covariance G of gradients, and rho(x) > 1; where both are as loud, rho = 1 and no
test on theta may read more than LiRA's. The same table as for the zoos tells them apart.
"""

from collections.abc import Mapping
from functools import cache
from types import MappingProxyType
from typing import Any, Final

import torch
from jaxtyping import Bool, Float64
from torch import Generator, Tensor

from glasslab.bootstrap import DRAWS
from glasslab.likelihood import fit, ratio
from glasslab.split import stream
from whitebox.score_test import gain
from workbench.open_problem.judged import BLACK, LIRA, WHITE, table

SEEDS: Final = tuple(range(8))
LOUD: Final = 1.8  # standard deviation of the second kind's noise, of the first kind's 1
D, TRAIN, RECORDS, FAR = 20, 200, 8, 3.0  # features, members, records under attack, size of their noise
SHADOWS, TARGETS = 128, 2400


@cache
def positive(loud: float = LOUD, *, draws: int = DRAWS) -> Mapping[str, Any]:
    """The best linear test on theta against LiRA, both as likelihood ratios; and the mean rho."""
    worlds = [world(seed, loud) for seed in SEEDS]
    scores = [{LIRA: s["lira"], BLACK: s["lira"], WHITE: s["best"]} for s, *_ in worlds]
    rows = table(scores, [truth for _, truth, _ in worlds], SEEDS, draws=draws)
    best, lira = (
        next(row for row in rows if (row["attack"], row["seed"]) == (name, "all")) for name in (WHITE, LIRA)
    )
    rho = float(torch.stack([rho for *_, rho in worlds]).mean())
    kept = ("tpr_at_0.1pct", "auc", "ratio_to_lira", "low", "high", "ratio_to_lira_seeds")
    found = {"loud": loud, "rho": rho} | {k: best[k] for k in kept} | {"lira": lira["tpr_at_0.1pct"]}
    return MappingProxyType(found)


def world(seed: int, loud: float) -> tuple[dict[str, Tensor], Bool[Tensor, "t 8"], Float64[Tensor, "8"]]:
    """Scores and truth of models that differ in noise and members, and rho of the records."""
    g = stream(seed, "positive")
    x = torch.randn(RECORDS, D, generator=g, dtype=torch.float64)
    sign = torch.where(torch.rand(RECORDS, generator=g) < 0.5, 1.0, -1.0).double()
    (S, S_member), (theta, member) = (trained(k, x, FAR * sign, loud, g) for k in (SHADOWS, TARGETS))
    G = torch.where(torch.arange(D) >= D // 2, loud**2, 1.0).double() / 2
    H = torch.eye(D, dtype=torch.float64) / 2
    # theta moves by H^-1 g for a member and spreads as H^-1 G H^-1: the best direction is G^-1 g, up to scale
    best = [(w / G) @ (x * sign[:, None]).T for w in (theta, S)]
    loss = [(w @ x.T - FAR * sign) * sign for w in (theta, S)]
    scores = {
        name: ratio(s, fit(of_shadows, S_member, variance="shrunk"))
        for name, (s, of_shadows) in (("lira", loss), ("best", best))
    }
    return scores, member, gain(x, G.sqrt().diag(), H.sqrt())


def trained(
    k: int, x: Float64[Tensor, "8 d"], noise: Float64[Tensor, "8"], loud: float, g: Generator
) -> tuple[Float64[Tensor, "{k} d"], Bool[Tensor, "{k} 8"]]:
    """k least-squares fits, each with half of the eight records, and which. The optimum is 0."""
    member = torch.stack([torch.randperm(k, generator=g) for _ in x], 1) < k // 2
    kind = (torch.rand(k, TRAIN, 1, generator=g) < 0.5).double()
    second = torch.arange(D) >= D // 2
    z = torch.randn(k, TRAIN, D, generator=g, dtype=torch.float64) * torch.where(second, kind, 1 - kind)
    e = (1 + (loud - 1) * kind[..., 0]) * torch.randn(k, TRAIN, generator=g, dtype=torch.float64)
    H = z.mT @ z + torch.einsum("kr,rd,re->kde", member.double(), x, x)
    return torch.linalg.solve(H, (z.mT @ e[..., None])[..., 0] + (member * noise) @ x), member
