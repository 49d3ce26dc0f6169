"""GMI, generative model inversion (Zhang et al. 2020, arXiv:1911.07135, equation 2 and the search after it).

The attacker holds the target's weights, and a generator of public images with its critic D (`gan.train_gan`).
For label y: min over z of -D(G(z)) + 100 CE(f(G(z)), y), by momentum with look-ahead, z clamped to +-1, from
5 random starts; the one that the target is surest of is kept.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from inversion.latent import Draws, check_counts, confidence, descend, identity, look_ahead, surest
from inversion.prior import Prior
from inversion.result import Inversion


def gmi(
    model: nn.Module,
    y: Int[Tensor, "c"],
    prior: Prior,
    *,
    steps: int = 1500,
    rate: float = 2e-2,
    momentum: float = 0.9,
    weight: float = 100.0,
    clip: float | None = 1.0,
    restarts: int = 5,
    loss: str = "ce",
    toward: Float[Tensor, "f"] | None = None,
    feature_weight: float = 0.1,
    seed: int = 0,
    watch: int = 0,
) -> Inversion:
    """One image a label, in the prior's range [0, 1]; `cost` is -D(x) + weight * loss, without D for a prior
    that has none.

    LOMMA: `loss="logit"`, with `toward` the target's mean feature on public images (`latent.mean_feature`).
    y's device is that of the search. Raises ValueError on training mode, an unknown loss, labels that the
    model does not have, and a discriminator of more than one output.
    """
    check_counts(steps, restarts, "restarts")
    told, rows = identity(model, loss, toward, feature_weight), y.repeat_interleave(restarts)

    def cost(z: Tensor) -> tuple[Tensor, Tensor]:
        x = prior(z)
        value, logits = told(x, rows)
        return weight * value + unreal(prior.discriminator, x), confidence(logits, rows)

    start = Draws(seed, "gmi", rows)(prior.latent)
    # DIFFERS: the start is clamped like every later z; the authors' code judges it as drawn.
    start = start if clip is None else start.clamp(-clip, clip)
    # DIFFERS: costs are summed over labels, where the authors' mean divides the rate by their number; and the
    # iterate of least cost is kept, not the last.
    found = descend(cost, start, look_ahead(rate, momentum, clip), steps=steps, last=False, watch=watch)
    best = surest(found.confidence, restarts)
    with torch.no_grad():
        x = prior(found.w[best])
    return Inversion(
        x,
        y.clone(),
        found.cost[best],
        found.confidence[best],
        found.steps[best],
        torch.full_like(y, prior.queries),
        tuple(found.stop_reason[i] for i in best.tolist()),
        None if found.curve is None else found.curve[:, best],
    )


def unreal(discriminator: nn.Module | None, x: Float[Tensor, "b *d"]) -> Float[Tensor, "b"]:
    """-D(x), and 0 without D. ValueError where D has more than one output: it is no critic."""
    if discriminator is None:
        return x.new_zeros(len(x))
    score = discriminator(x)
    if score.shape[1:] != (1,):
        raise ValueError(f"prior must have a discriminator of 1 output, got {[*score.shape[1:]]}")
    return -score[:, 0]
