"""KEDMI, knowledge-enriched distributional inversion (Chen et al. 2021, arXiv:2010.04092).

The attacker holds the target's weights, its probabilities on public images, and nothing private. The
discriminator has one output l_k a class of the target, and L = log sum exp l_k stands for real:
log D = L - softplus(L). It descends CE(softmax l, the target's probabilities)
+ .5 (softplus(L_real) - L_real + softplus(L_fake)); the generator descends the L1 distance of mean features
+ 1e-4 entropy. Search: a Gaussian a label, z = mu + sigma e, down softplus(L) - L + 100 CE(f(G(z)), y) by
Adam; images are then drawn from it.
"""

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor, nn
from torch.nn.functional import softplus

from glasslab.oracle import Oracle
from glasslab.split import stream
from inversion import gan
from inversion.gan import Gan
from inversion.latent import Draws, adam, check_counts, confidence, descend, identity, surest
from inversion.prior import Prior, check_range
from inversion.result import Inversion


def kedmi(
    model: nn.Module,
    y: Int[Tensor, "c"],
    prior: Prior,
    *,
    steps: int = 1500,
    rate: float = 2e-2,
    weight: float = 100.0,
    clip: float | None = None,
    draws: int = 5,
    loss: str = "ce",
    toward: Float[Tensor, "f"] | None = None,
    feature_weight: float = 0.1,
    seed: int = 0,
    watch: int = 0,
) -> Inversion:
    """One image a label: of `draws` from the label's Gaussian the one that the target is surest of.

    `cost` and `confidence` are those of the image, `queries` what the prior asked, once for all labels; the
    curve is that of one random z a step. `clip` bounds z inside the loss as in the images.
    LOMMA: `loss="logit"`, with `toward` the target's mean feature on public images (`latent.mean_feature`).
    Raises ValueError on training mode, an unknown loss, labels that the model does not have, and a
    discriminator of one output.
    """
    check_counts(steps, draws, "draws")
    told, noise = identity(model, loss, toward, feature_weight), Draws(seed, "kedmi", y)

    def cost(z: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        x = prior(z)
        value, logits = told(x, labels)
        return weight * value + unlike(prior.discriminator, x), confidence(logits, labels)

    def of_gaussian(w: Tensor) -> tuple[Tensor, Tensor]:
        return cost(latents(w, noise(prior.latent), clip), y)

    start = torch.stack([torch.zeros(len(y), prior.latent), torch.ones(len(y), prior.latent)], 1)
    start = start.double().to(y.device)  # mu = 0, log variance 1
    found = descend(of_gaussian, start, adam(rate), steps=steps, last=True, watch=watch)
    rows, last = y.repeat_interleave(draws), Draws(seed, "kedmi draws", y.repeat_interleave(draws))
    with torch.no_grad():
        z = latents(found.w.repeat_interleave(draws, 0), last(prior.latent), clip)
        value, p = cost(z, rows)
        best = surest(p, draws)
        x = prior(z[best])
    return Inversion(
        x,
        y.clone(),
        value[best].double(),
        p[best],
        found.steps,
        torch.full_like(y, prior.queries),
        found.stop_reason,
        found.curve,
    )


def latents(
    w: Float64[Tensor, "r 2 l"], e: Float64[Tensor, "r l"], clip: float | None
) -> Float64[Tensor, "r l"]:
    """mu + sigma e, w = (mu, log variance), clamped to +-clip."""
    # DIFFERS: the authors' code clamps z after the step, where neither the loss nor the images see it.
    z = w[:, 0] + (w[:, 1] / 2).exp() * e
    return z if clip is None else z.clamp(-clip, clip)


def train_gan(
    oracle: Oracle,
    x_public: Float[Tensor, "n *d"],
    *,
    latent: int = 64,
    steps: int = 1000,
    batch: int = 64,
    rate: float = 2e-4,
    critic_steps: int = 5,
    entropy_weight: float = 1e-4,
    seed: int = 0,
) -> Gan:
    """The prior that KEDMI searches: `steps` updates of G, one after every `critic_steps` of D (Adam).

    Asks the target once about each public image. Raises ValueError on images outside [0, 1], larger than 32
    pixels a side or not square, and an oracle of labels; BudgetExceeded where the budget is too small.
    """
    check_range(x_public)
    if oracle.reveals != "probabilities":
        raise ValueError(f"oracle must reveal probabilities, got {oracle.reveals}")
    soft = oracle(x_public).to(x_public)
    # DIFFERS: no minibatch discrimination in D, and its nets are small.
    G, D = gan.nets(x_public, latent, seed, outputs=soft.shape[1])
    g = stream(seed, "k + 1 gan")
    for_g, for_d = (torch.optim.Adam(m.parameters(), rate, betas=(0.5, 0.999)) for m in (G, D))
    with torch.enable_grad():
        for i in range(steps * critic_steps):
            rows = torch.randint(len(x_public), (batch,), generator=g).to(x_public.device)
            real, fake = gan.drawn(x_public, batch, g), G(gan.normal(batch, latent, g, x_public))
            told = knowledge(D(x_public[rows]), soft[rows])
            gan.step(for_d, told + real_or_fake(D(real), D(fake.detach())))
            if (i + 1) % critic_steps == 0:
                fake = G(gan.normal(batch, latent, g, x_public))
                met = D.features(gan.drawn(x_public, batch, g))
                # DIFFERS: the entropy is the batch's mean, so that its weight does not grow with the batch.
                gan.step(for_g, matching(met, D.features(fake)) + entropy_weight * entropy(D(fake)))
    return Gan(G.eval(), D.eval(), latent, len(x_public))


def knowledge(l: Float[Tensor, "b k"], soft: Float[Tensor, "b k"]) -> Float[Tensor, ""]:
    """Mean cross-entropy, in nats, to the target's probabilities: not to their argmax."""
    return -(soft * l.log_softmax(1)).sum(1).mean()


def real_or_fake(real: Float[Tensor, "b k"], fake: Float[Tensor, "b k"]) -> Float[Tensor, ""]:
    """.5 (mean -log D(real) + mean -log(1 - D(fake))), with log D = L - softplus(L)."""
    L_real, L_fake = real.logsumexp(1), fake.logsumexp(1)
    return (softplus(L_real).mean() - L_real.mean() + softplus(L_fake).mean()) / 2


def matching(real: Float[Tensor, "b f"], fake: Float[Tensor, "b f"]) -> Float[Tensor, ""]:
    """Mean absolute difference of the mean features."""
    return (real.mean(0) - fake.mean(0)).abs().mean()


def entropy(l: Float[Tensor, "b k"]) -> Float[Tensor, ""]:
    """Mean entropy of softmax(l), in nats."""
    return -(l.softmax(1) * l.log_softmax(1)).sum(1).mean()


def unlike(discriminator: nn.Module | None, x: Float[Tensor, "b *d"]) -> Float[Tensor, "b"]:
    """softplus(L) - L = -log D(x), and 0 without D. ValueError where D has one output: it knows no class."""
    if discriminator is None:
        return x.new_zeros(len(x))
    l = discriminator(x)
    if l.shape[1] < 2:
        raise ValueError(f"prior must have a discriminator of 2+ outputs, got {l.shape[1]}")
    return softplus(-l.logsumexp(1))
