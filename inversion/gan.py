"""A small generator of public images, trained here, and losses on a target's logits.

WGAN-GP (Gulrajani et al. 2017, arXiv:1704.00028, Algorithm 1) on images of public classes: the critic D
descends mean D(fake) - mean D(real) + 10 mean (|grad D(between)| - 1)^2, the generator G descends
-mean D(G(z)). Nets: DCGAN (Radford et al. 2016, arXiv:1511.06434) of under a million weights from 16 pixels a
side on, dense below. The attacker holds public images alone.

Losses, one number an image: `ce` and `logit` (-z_y, Nguyen et al. 2023, arXiv:2304.01669), `max_margin`
(Yuan et al. 2023, arXiv:2302.09814), `poincare` (Struppek et al. 2022, arXiv:2201.12179).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int
from torch import Generator, Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from glasslab.split import stream, subseed
from inversion.prior import check_range

LARGEST, DENSE = 32, 16  # pixels a side: the largest image, and from where on nets are convolutional
Shape = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Gan:
    """A trained generator as a prior, with the discriminator it was trained against, both in eval mode.

    `queries` is the number of rows that training asked of the target. Raises ValueError in training mode.
    """

    generator: nn.Module
    discriminator: "Discriminator | None"
    latent: int
    queries: int = 0

    def __call__(self, z: Float[Tensor, "b l"]) -> Float[Tensor, "b *d"]:
        return generated(self.generator, z)


class Discriminator(nn.Module):
    """`outputs` numbers an image, linear in `features(x)`. With `classes` its one output depends on y.

    D(x, y) = w . f(x) + V_y . f(x) (Miyato & Koyama 2018, arXiv:1802.05637).
    """

    def __init__(self, body: nn.Module, width: int, outputs: int = 1, classes: int = 0) -> None:
        super().__init__()
        self.features = body
        self.head = nn.Linear(width, outputs)
        self.projection = nn.Embedding(classes, width) if classes else None

    def forward(self, x: Float[Tensor, "b *d"], y: Int[Tensor, "b"] | None = None) -> Float[Tensor, "b k"]:
        f = self.features(x)
        out = self.head(f)
        return out if y is None or self.projection is None else out + (self.projection(y) * f).sum(1, True)


def train_gan(
    x_public: Float[Tensor, "n *d"],
    *,
    latent: int = 64,
    steps: int = 1000,
    batch: int = 64,
    rate: float = 2e-4,
    critic_steps: int = 5,
    penalty: float = 10.0,
    seed: int = 0,
) -> Gan:
    """The prior that GMI searches: `steps` updates of G, each after `critic_steps` of D (Adam .5, .999).

    Raises ValueError on images outside [0, 1], larger than 32 pixels a side or not square.
    """
    check_range(x_public)
    G, D = nets(x_public, latent, seed)
    g = stream(seed, "wgan-gp")
    for_g, for_d = (torch.optim.Adam(m.parameters(), rate, betas=(0.5, 0.999)) for m in (G, D))
    with torch.enable_grad():
        for _ in range(steps):
            for _ in range(critic_steps):
                real = drawn(x_public, batch, g)
                fake = G(normal(batch, latent, g, x_public)).detach()
                share = torch.rand(batch, *[1] * (real.ndim - 1), generator=g).to(real)
                loss = D(fake).mean() - D(real).mean() + penalty * gradient_penalty(D, real, fake, share)
                step(for_d, loss)
            step(for_g, -D(G(normal(batch, latent, g, x_public))).mean())
    return Gan(G.eval(), D.eval(), latent)


def gradient_penalty(
    D: Callable[[Tensor], Tensor],
    real: Float[Tensor, "b *d"],
    fake: Float[Tensor, "b *d"],
    share: Float[Tensor, "b *one"],
) -> Float[Tensor, ""]:
    """mean (|grad D| - 1)^2 at share real + (1 - share) fake; one share an image."""
    between = (share * real + (1 - share) * fake).detach().requires_grad_()
    (slope,) = torch.autograd.grad(D(between).sum(), between, create_graph=True)
    return (slope.flatten(1).norm(dim=1) - 1).square().mean()


def ce(z: Float[Tensor, "b c"], y: Int[Tensor, "b"]) -> Float[Tensor, "b"]:
    """Cross-entropy in nats."""
    return cross_entropy(z, y, reduction="none")


def logit(z: Float[Tensor, "b c"], y: Int[Tensor, "b"]) -> Float[Tensor, "b"]:
    """-z_y."""
    return -_own(z, y)


def max_margin(z: Float[Tensor, "b c"], y: Int[Tensor, "b"]) -> Float[Tensor, "b"]:
    """max over j != y of z_j, less z_y; the paper's loss is its mean."""
    return z.masked_fill(one_hot(y, z.shape[-1]).bool(), -torch.inf).amax(1) - _own(z, y)


def poincare(z: Float[Tensor, "b c"], y: Int[Tensor, "b"]) -> Float64[Tensor, "b"]:
    """Distance in the Poincare ball of u = z / |z|_1 and v = clip(onehot - 1e-4, 0, 1).

    arccosh(1 + 2 |u - v|^2 / ((1 - |u|^2) (1 - |v|^2))).
    """
    wide = z.double()  # near the border of the ball 1 - |u|^2 has no digit left in float32
    u = wide / wide.abs().sum(1, keepdim=True).clamp(min=1e-12)
    v = (one_hot(y, z.shape[-1]).double() - 1e-4).clamp(0, 1)
    # DIFFERS: 1 - |u|^2 is kept off 0, where the loss of logits with one that is not 0 would be infinite.
    room = (1 - u.square().sum(1)).clamp(min=1e-12) * (1 - v.square().sum(1))
    return torch.acosh(1 + 2 * (u - v).square().sum(1) / room)


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "ce": ce,
    "logit": logit,
    "max_margin": max_margin,
    "poincare": poincare,
}


def nets(
    x: Float[Tensor, "n *d"], latent: int, seed: int, *, outputs: int = 1, classes: int = 0
) -> tuple[nn.Module, Discriminator]:
    """A fresh generator and discriminator for images like x, on its device, in training mode.

    With `classes` the generator reads the one-hot class behind the latent, and D depends on it.
    """
    shape = tuple(x.shape[1:])
    image = len(shape) == 3
    if image and (shape[1] != shape[2] or shape[1] > LARGEST):
        raise ValueError(f"x_public must be square, at most {LARGEST} pixels a side, got shape {shape}")
    fine = image and shape[1] >= DENSE and shape[1] % 4 == 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(subseed(seed, "nets"))
        if fine:
            G, body, width = _dcgan(shape, latent + classes)
        else:
            G, body, width = _dense(shape, latent + classes)
        D = Discriminator(body, width, outputs, classes)
    return G.to(x), D.to(x)


def generated(G: nn.Module, z: Float[Tensor, "b l"]) -> Float[Tensor, "b *d"]:
    """Images of a generator in eval mode, for latents of any precision."""
    if any(layer.training for layer in G.modules()):
        raise ValueError("prior must be in eval mode, got a generator in training mode")
    return G(z.to(next(G.parameters())))


def drawn(x: Float[Tensor, "n *d"], batch: int, g: Generator) -> Float[Tensor, "{batch} *d"]:
    """A batch of records, with replacement."""
    return x[torch.randint(len(x), (batch,), generator=g).to(x.device)]


def normal(batch: int, latent: int, g: Generator, like: Tensor) -> Float[Tensor, "{batch} {latent}"]:
    """Latents from N(0, I), of the device and precision of `like`."""
    return torch.randn(batch, latent, generator=g).to(like)


def step(optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
    """One step down the loss, which fills no gradient but those of the optimiser's own weights."""
    own = optimiser.param_groups[0]["params"]
    for w, slope in zip(own, torch.autograd.grad(loss, own, allow_unused=True), strict=True):
        w.grad = slope
    optimiser.step()


def _dense(shape: Shape, inputs: int) -> tuple[nn.Module, nn.Module, int]:
    w, size = 128, math.prod(shape)
    G = nn.Sequential(
        nn.Linear(inputs, w),
        nn.ReLU(),
        nn.Linear(w, w),
        nn.ReLU(),
        nn.Linear(w, size),
        nn.Sigmoid(),
        nn.Unflatten(1, shape),
    )
    hidden = nn.Sequential(nn.Linear(size, w), nn.LeakyReLU(0.2), nn.Linear(w, w), nn.LeakyReLU(0.2))
    return G, nn.Sequential(nn.Flatten(), *hidden), w


def _dcgan(shape: Shape, inputs: int) -> tuple[nn.Module, nn.Module, int]:
    c, w, s = shape[0], 32, shape[1] // 4
    G = nn.Sequential(
        nn.Linear(inputs, 4 * w * s * s, bias=False),
        nn.Unflatten(1, (4 * w, s, s)),
        nn.BatchNorm2d(4 * w),
        nn.ReLU(),
        nn.ConvTranspose2d(4 * w, 2 * w, 4, 2, 1, bias=False),
        nn.BatchNorm2d(2 * w),
        nn.ReLU(),
        nn.ConvTranspose2d(2 * w, c, 4, 2, 1),
        nn.Sigmoid(),
    )
    # No norm in D: the penalty is on the slope at each image alone.
    body = nn.Sequential(
        nn.Conv2d(c, w, 4, 2, 1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(w, 2 * w, 4, 2, 1),
        nn.LeakyReLU(0.2),
        nn.Flatten(),
    )
    return G, body, 2 * w * s * s


def _own(z: Float[Tensor, "b c"], y: Int[Tensor, "b"]) -> Float[Tensor, "b"]:
    return z.gather(1, y[:, None])[:, 0]
