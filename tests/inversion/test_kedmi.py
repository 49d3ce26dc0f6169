import math

import pytest
import torch
from torch import nn

from glasslab.datasets import load
from glasslab.oracle import BudgetExceeded, Oracle
from glasslab.split import stream
from inversion import gan
from inversion.gan import Gan
from inversion.kedmi import entropy, kedmi, knowledge, latents, matching, real_or_fake, train_gan, unlike
from inversion.latent import Draws, mean_feature
from inversion.prior import Pca, pca, public_split

Y = torch.tensor([3, 0, 4])
TINY = {"latent": 8, "steps": 20, "batch": 16, "rate": 2e-3, "critic_steps": 2}


def digest(module):
    """Weights, buffers, modes, flags, gradients and hooks."""
    state = [(name, t.dtype, t.numpy().tobytes()) for name, t in module.state_dict().items()]
    flags = [(w.requires_grad, w.grad is None) for w in module.parameters()]
    modes = [(m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in module.modules()]
    return state, flags, modes


@pytest.fixture(scope="module")
def digits():
    """(target of the private classes 0 to 4, public images)."""
    private, public = public_split(load("digits"), range(5))
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 5))
    nn.init.zeros_(model[1].weight)
    nn.init.zeros_(model[1].bias)
    optimiser = torch.optim.Adam(model.parameters(), 0.05)
    for _ in range(60):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(private.x), private.y).backward()
        optimiser.step()
    model.zero_grad()
    return model.eval(), public.x


def linear(seed=0, c=2, d=6):
    """A linear target, and a prior whose images never touch 0 or 1 for |z| <= 1."""
    g = stream(seed, "linear")
    model = nn.Sequential(nn.Flatten(), nn.Linear(d, c)).double().eval()
    with torch.no_grad():
        model[1].weight.copy_(torch.randn(c, d, generator=g))
        model[1].bias.copy_(torch.randn(c, generator=g))
    basis = torch.randn(3, d, generator=g, dtype=torch.float64)
    return model, Pca(torch.full((d,), 0.5, dtype=torch.float64), 0.4 * basis / basis.abs().sum(0))


def softplus(v):
    return math.log(1 + math.exp(v))


def lse(row):
    return math.log(sum(math.exp(v) for v in row))


# Losses, one image at a time


def test_losses_are_those_of_the_textbook():
    g = stream(0)
    real, fake = (3 * torch.randn(6, 4, generator=g).double() for _ in range(2))
    soft = torch.randn(6, 4, generator=g).double().softmax(1)
    R, F, S = real.tolist(), fake.tolist(), soft.tolist()
    want = sum(-p * (v - lse(r)) for r, s in zip(R, S, strict=True) for v, p in zip(r, s, strict=True)) / 6
    assert knowledge(real, soft).item() == pytest.approx(want, rel=1e-9)
    hard = nn.functional.cross_entropy(real, soft.argmax(1)).item()
    assert abs(hard - want) > 0.05  # labels instead of probabilities would be told apart
    want = 0.5 * sum(softplus(lse(r)) - lse(r) + softplus(lse(f)) for r, f in zip(R, F, strict=True)) / 6
    assert real_or_fake(real, fake).item() == pytest.approx(want, rel=1e-9)
    # log D and log(1 - D) with D = lse' / (1 + lse'), lse' = the sum of exponentials
    D = [[math.exp(lse(r)) / (1 + math.exp(lse(r))) for r in rows] for rows in (R, F)]
    want = sum(-math.log(a) - math.log(1 - b) for a, b in zip(*D, strict=True)) / 12
    assert real_or_fake(real, fake).item() == pytest.approx(want, rel=1e-9)
    want = sum(abs(sum(r[j] for r in R) - sum(f[j] for f in F)) / 6 for j in range(4)) / 4
    assert matching(real, fake).item() == pytest.approx(want, rel=1e-9)
    assert unlike(nn.Identity(), real).tolist() == pytest.approx([-math.log(d) for d in D[0]], rel=1e-9)
    uniform = torch.zeros(3, 4).double()
    assert entropy(uniform).item() == pytest.approx(math.log(4))
    assert entropy(torch.tensor([[50.0, 0, 0]])).item() < 1e-15


def test_losses_are_finite_at_the_extremes():
    l = torch.tensor([[1e4, -1e4], [-1e4, -1e4]])
    assert real_or_fake(l, l).isfinite()
    assert entropy(l).isfinite()
    assert unlike(nn.Identity(), l).isfinite().all()


# Search


def test_the_search_is_the_textbook():
    """Adam on (mu, log variance), slopes by central differences at the same draws."""
    model, prior = linear(c=3)
    label, steps, rate = 2, 4, 0.05
    w, b = model[1].weight.tolist(), model[1].bias.tolist()
    mean, basis = prior.mean.tolist(), prior.basis.tolist()

    def cost(p, e):
        z = [p[i] + math.exp(p[3 + i] / 2) * e[i] for i in range(3)]
        x = [min(max(mean[j] + sum(z[i] * basis[i][j] for i in range(3)), 0), 1) for j in range(6)]
        out = [b[k] + sum(w[k][j] * x[j] for j in range(6)) for k in range(3)]
        return 100 * (lse(out) - out[label])

    noise = Draws(7, "kedmi", torch.tensor([label]))
    p, m, v = [0.0] * 3 + [1.0] * 3, [0.0] * 6, [0.0] * 6
    for t in range(1, steps + 1):
        e = noise(3)[0].tolist()
        slope = []
        for i in range(6):
            up, down = ([q + (h if i == j else 0) for j, q in enumerate(p)] for h in (1e-6, -1e-6))
            slope.append((cost(up, e) - cost(down, e)) / 2e-6)
        for i, g in enumerate(slope):
            m[i], v[i] = 0.9 * m[i] + 0.1 * g, 0.999 * v[i] + 0.001 * g * g
            p[i] -= rate * (m[i] / (1 - 0.9**t)) / ((v[i] / (1 - 0.999**t)) ** 0.5 + 1e-8)
    last = Draws(7, "kedmi draws", torch.tensor([label]))(3)
    want = prior(latents(torch.tensor([[p[:3], p[3:]]]).double(), last, None))
    found = kedmi(model, torch.tensor([label]), prior, steps=steps, rate=rate, draws=1, seed=7)
    torch.testing.assert_close(found.x, want, atol=1e-5, rtol=0)


def test_planted_optimum():
    """Two classes, linear, z clamped to +-1: every draw ends near the corner that is best."""
    model, prior = linear()
    found = kedmi(model, torch.tensor([1, 0]), prior, steps=150, rate=0.1, clip=1.0)
    for row, label in enumerate((1, 0)):
        w = model[1].weight.detach()
        corner = (prior.basis @ (w[label] - w[1 - label])).sign()
        p = model(prior(corner[None])).softmax(1)[0, label].item()
        assert found.confidence[row].item() == pytest.approx(p, abs=0.01)
        assert found.confidence[row].item() <= p + 1e-9
    assert found.stop_reason == ("max_iter", "max_iter")


def test_the_clamp_is_part_of_the_loss():
    """Public code clamps z after the step: the loss and the images go on with what lies outside."""
    w, e = torch.tensor([[[3.0, -0.5], [0.0, 0.0]]]).double(), torch.zeros(1, 2).double()

    def wrong(w, e, clip):
        z = w[:, 0] + (w[:, 1] / 2).exp() * e
        z.detach().clamp(-clip, clip)  # and nobody reads it
        return z

    assert latents(w, e, 1.0).tolist() == [[1.0, -0.5]]
    assert wrong(w, e, 1.0).tolist() == [[3.0, -0.5]]
    assert latents(w, e, None).tolist() == [[3.0, -0.5]]
    leaf = w.clone().requires_grad_()
    (slope,) = torch.autograd.grad(latents(leaf, e, 1.0).sum(), leaf)
    assert slope[0, 0].tolist() == [0.0, 1.0]
    model, prior = linear()
    y, settings = torch.tensor([1]), {"steps": 60, "rate": 0.1}
    inside, free = (kedmi(model, y, prior, **settings, clip=clip) for clip in (1.0, None))
    reach = prior.basis.abs().sum(0) + 1e-9  # how far from the mean |z| <= 1 can go
    assert ((inside.x - prior.mean).abs() <= reach).all()
    assert ((free.x - prior.mean).abs() > reach).any()
    # The cost is that of the image itself.
    for found in (inside, free):
        own = -100 * model(found.x).log_softmax(1)[0, 1]
        assert found.cost.item() == pytest.approx(own.item(), rel=1e-9)


def test_a_trained_prior_and_the_search_end_to_end(digits):
    model, x_public = digits
    oracle = Oracle(model)
    prior = train_gan(oracle, x_public, **TINY)
    assert oracle.queries == prior.queries == len(x_public)
    assert prior.discriminator(x_public[:2]).shape == (2, 5)
    before = digest(model), digest(prior.generator), digest(prior.discriminator), torch.get_rng_state()
    found = kedmi(model, Y, prior, steps=60, watch=30)
    start = kedmi(model, Y, prior, steps=0)
    assert (found.confidence > start.confidence).all()
    assert found.x.shape == (3, 1, 8, 8)
    assert 0 <= found.x.min() <= found.x.max() <= 1
    p = model(found.x).double().softmax(1)[torch.arange(3), Y]
    torch.testing.assert_close(found.confidence, p.detach(), atol=1e-6, rtol=0)
    cost = -100 * p.log() + unlike(prior.discriminator, found.x)
    torch.testing.assert_close(found.cost, cost.detach(), atol=1e-3, rtol=1e-4)
    assert found.queries.tolist() == [len(x_public)] * 3
    assert found.steps.tolist() == [60] * 3
    assert found.curve.shape == (2, 3)
    after = digest(model), digest(prior.generator), digest(prior.discriminator), torch.get_rng_state()
    assert after[:3] == before[:3]
    assert after[3].equal(before[3])


def test_the_discriminator_learns_what_the_target_says(digits):
    model, x_public = digits
    prior = train_gan(Oracle(model), x_public, **TINY)
    fresh = gan.nets(x_public, 8, 0, outputs=5)[1]
    soft = model(x_public).softmax(1)
    assert knowledge(prior.discriminator(x_public), soft) < 0.8 * knowledge(fresh(x_public), soft)
    made = prior(torch.randn(100, 8, generator=stream(1)))
    D = prior.discriminator
    assert unlike(D, x_public).mean() < unlike(D, torch.rand(100, 1, 8, 8, generator=stream(2))).mean()
    start = gan.nets(x_public, 8, 0, outputs=5)[0](torch.randn(100, 8, generator=stream(1)))
    off = [(x.mean(0) - x_public.mean(0)).abs().mean() for x in (made, start)]
    assert off[0] < off[1]


def test_more_draws_are_never_less_sure():
    model, prior = linear(c=3)
    found = [kedmi(model, torch.tensor([1, 2]), prior, steps=2, draws=n).confidence for n in (1, 4, 16)]
    assert (found[0] <= found[1]).all()
    assert (found[1] <= found[2]).all()
    assert (found[0] < found[2]).any()


def test_the_seed_decides_and_labels_do_not_meet(digits):
    model, prior = linear(c=3)
    y, settings = torch.tensor([2, 0, 1]), {"steps": 10, "draws": 2}
    found, again, other = (kedmi(model, y, prior, **settings, seed=s) for s in (1, 1, 2))
    assert found.x.equal(again.x)
    assert not found.x.equal(other.x)
    for row in range(3):
        alone = kedmi(model, y[row : row + 1], prior, **settings, seed=1)
        torch.testing.assert_close(alone.x[0], found.x[row], atol=1e-12, rtol=0)
    target, x_public = digits
    z = torch.randn(3, 4, generator=stream(0))
    few = {"latent": 4, "steps": 2, "batch": 8}
    made = [train_gan(Oracle(target), x_public, **few, seed=s)(z) for s in (0, 0, 1)]
    assert made[0].equal(made[1])
    assert not made[0].equal(made[2])


def test_lomma_pulls_features_to_the_public_mean(digits):
    model, x_public = digits
    toward, prior = mean_feature(model, x_public), pca(x_public, 10)
    settings = {"steps": 60, "rate": 0.1, "loss": "logit", "draws": 1}
    free = kedmi(model, Y, prior, **settings)
    held = kedmi(model, Y, prior, **settings, toward=toward, feature_weight=5.0)
    far = [(found.x.flatten(1) - toward).square().sum(1) for found in (held, free)]
    assert (far[0] < far[1]).all()


def test_what_is_refused(digits):
    model, x_public = digits
    with pytest.raises(ValueError, match="oracle must reveal probabilities, got labels"):
        train_gan(Oracle(model, reveals="labels"), x_public)
    oracle = Oracle(model, budget=10)
    with pytest.raises(BudgetExceeded):
        train_gan(oracle, x_public)
    assert oracle.queries == 0
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        train_gan(Oracle(model), x_public + 1)
    G, D = gan.nets(x_public, 3, 0)
    with pytest.raises(ValueError, match=r"discriminator of 2\+ outputs, got 1"):
        kedmi(model, Y, Gan(G.eval(), D.eval(), 3))
    with pytest.raises(ValueError, match="draws 1 or more, got 1500 and 0"):
        kedmi(model, Y, pca(x_public, 3), draws=0)
    with pytest.raises(ValueError, match="loss must be one of"):
        kedmi(model, Y, pca(x_public, 3), loss="entropy")
    with pytest.raises(ValueError, match="y must lie in 0 .. 4, got 5 to 5"):
        kedmi(model, torch.tensor([5]), pca(x_public, 3))
    training = nn.Sequential(nn.Flatten(), nn.Linear(64, 5))
    with pytest.raises(ValueError, match="model must be in eval mode, got training mode"):
        kedmi(training, Y, pca(x_public, 3))
    with pytest.raises(ValueError, match="model must be in eval mode, got training mode"):
        train_gan(Oracle(training), x_public)
