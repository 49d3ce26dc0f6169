"""PLG-MI, pseudo-label-guided inversion (Yuan et al. 2023, arXiv:2302.09814).

The attacker holds the target's weights and its probabilities on public images. For each class of the target
the n = 30 public images that it scores highest become that class's; a conditional GAN learns them, its
generator by the hinge loss + .2 max-margin(f(augmented G(z, y)), y). Search at label y: Adam on z down the
max-margin losses of two random augmentations of G(z, y), summed. It stays within the class given to G, and
its slope does not vanish where the target is sure.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import one_hot, relu

from glasslab.augment import augment
from glasslab.oracle import Oracle
from glasslab.split import stream
from inversion import gan
from inversion.latent import Draws, adam, check_counts, confidence, descend, identity, surest
from inversion.prior import check_range
from inversion.result import Inversion

Change = Literal["mirror", "crop", "cutout"]


@runtime_checkable
class Conditional(Protocol):
    """From latents and labels to images in [0, 1]; `queries` is what its training asked of the target."""

    @property
    def latent(self) -> int: ...

    @property
    def queries(self) -> int: ...

    def __call__(self, z: Float[Tensor, "b l"], y: Int[Tensor, "b"]) -> Float[Tensor, "b *d"]: ...


@dataclass(frozen=True, eq=False)
class Cgan:
    """A trained conditional generator, which reads the one-hot label behind the latent."""

    generator: nn.Module
    classes: int
    latent: int
    queries: int = 0

    def __call__(self, z: Float[Tensor, "b l"], y: Int[Tensor, "b"]) -> Float[Tensor, "b *d"]:
        return gan.generated(self.generator, _with(z, y, self.classes))


def plg_mi(
    model: nn.Module,
    y: Int[Tensor, "c"],
    prior: Conditional,
    *,
    steps: int = 600,
    rate: float = 0.1,
    augmentations: Sequence[Change] = ("crop",),
    versions: int = 2,
    restarts: int = 5,
    loss: str = "max_margin",
    seed: int = 0,
    watch: int = 0,
) -> Inversion:
    """One image a label, in the prior's range [0, 1]: of `restarts` the one that the target is surest of.

    `cost` is the sum of the last losses of `versions` augmented copies, `confidence` that of the image as it
    is, `queries` what the prior asked, once for all labels. Records that are no images are not augmented.
    Raises ValueError on training mode, an unknown loss or augmentation, and labels that the model does not
    have.
    """
    check_counts(steps, min(restarts, versions), "restarts, versions")
    told, rows = identity(model, loss), y.repeat_interleave(restarts)
    g = stream(seed, "plg-mi augmentations")

    def cost(z: Tensor) -> tuple[Tensor, Tensor]:
        x = prior(z, rows)
        seen = [told(_changed(x, augmentations, g), rows) for _ in range(versions)]
        p = torch.stack([confidence(logits, rows) for _, logits in seen]).mean(0)
        return torch.stack([value for value, _ in seen]).sum(0), p

    start = Draws(seed, "plg-mi", rows)(prior.latent)
    found = descend(cost, start, adam(rate), steps=steps, last=True, watch=watch)
    with torch.no_grad():
        x = prior(found.w, rows)
        p = confidence(told(x, rows)[1], rows)
    best = surest(p, restarts)
    return Inversion(
        x[best],
        y.clone(),
        found.cost[best],
        p[best],
        found.steps[best],
        torch.full_like(y, prior.queries),
        tuple(found.stop_reason[i] for i in best.tolist()),
        None if found.curve is None else found.curve[:, best],
    )


def pseudo_labelled(
    oracle: Oracle, x_public: Float[Tensor, "n *d"], n: int = 30
) -> tuple[Float[Tensor, "k *d"], Int[Tensor, "k"]]:
    """(x, y): for each class of the target the n public images of highest probability, equals in their order.

    One query an image; an image may stand for several classes. Raises ValueError where there are fewer than
    n images, and for an oracle of labels; BudgetExceeded where the budget is too small.
    """
    if oracle.reveals != "probabilities":
        raise ValueError(f"oracle must reveal probabilities, got {oracle.reveals}")
    if not 1 <= n <= len(x_public):
        raise ValueError(f"n must lie in 1 .. {len(x_public)}, the public images, got {n}")
    p = oracle(x_public)
    rows = p.sort(dim=0, descending=True, stable=True).indices[:n].T
    y = torch.arange(p.shape[1], device=x_public.device).repeat_interleave(n)
    return x_public[rows.flatten()], y


def train_gan(
    model: nn.Module,
    oracle: Oracle,
    x_public: Float[Tensor, "n *d"],
    *,
    n: int = 30,
    alpha: float = 0.2,
    latent: int = 64,
    steps: int = 1000,
    batch: int = 64,
    rate: float = 2e-4,
    critic_steps: int = 5,
    augmentations: Sequence[Change] = ("crop",),
    seed: int = 0,
) -> Cgan:
    """The prior that PLG-MI searches: `steps` updates of G, each after `critic_steps` of D (Adam 0, .9).

    The oracle picks the images, the model's slope guides G. Raises ValueError as `pseudo_labelled` does, on
    training mode, on images outside [0, 1], larger than 32 pixels a side or not square.
    """
    check_range(x_public)
    told = identity(model, "max_margin")
    x, y = pseudo_labelled(oracle, x_public, n)
    k = int(y.max()) + 1
    # DIFFERS: G reads the label beside the latent, the authors' nets by conditional batch norm; D has no
    # spectral norm.
    G, D = gan.nets(x, latent, seed, classes=k)
    g = stream(seed, "conditional gan")
    for_g, for_d = (torch.optim.Adam(m.parameters(), rate, betas=(0.0, 0.9)) for m in (G, D))

    def fakes() -> tuple[Tensor, Tensor]:
        labels = torch.randint(k, (batch,), generator=g).to(y)
        return G(_with(gan.normal(batch, latent, g, x), labels, k)), labels

    with torch.enable_grad():
        for _ in range(steps):
            for _ in range(critic_steps):
                rows = torch.randint(len(x), (batch,), generator=g).to(y)
                fake, labels = fakes()
                gan.step(for_d, hinge(D(x[rows], y[rows]), D(fake.detach(), labels)))
            fake, labels = fakes()
            margin, _ = told(_changed(fake, augmentations, g), labels)
            gan.step(for_g, -D(fake, labels).mean() + alpha * margin.mean())
    return Cgan(G.eval(), k, latent, len(x_public))


def hinge(real: Float[Tensor, "b 1"], fake: Float[Tensor, "b 1"]) -> Float[Tensor, ""]:
    """mean max(0, 1 - D(real)) + mean max(0, 1 + D(fake))."""
    return relu(1 - real).mean() + relu(1 + fake).mean()


def _with(z: Float[Tensor, "b l"], y: Int[Tensor, "b"], classes: int) -> Float[Tensor, "b m"]:
    return torch.cat([z, one_hot(y.long(), classes).to(z)], 1)


def _changed(x: Tensor, names: Sequence[Change], g: torch.Generator) -> Tensor:
    return augment(x, names, g) if x.ndim == 4 else x
