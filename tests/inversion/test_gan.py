import math

import pytest
import torch
from torch import nn

from glasslab.data import Data
from glasslab.datasets import load
from glasslab.split import stream
from inversion import gan
from inversion.gan import ce, gradient_penalty, logit, max_margin, poincare, train_gan
from inversion.prior import Pca, Prior, pca, public_split

TINY = {"latent": 4, "steps": 2, "batch": 8}


def digest(module):
    """Weights, buffers, modes, flags, gradients and hooks."""
    state = [(name, t.dtype, t.numpy().tobytes()) for name, t in module.state_dict().items()]
    flags = [(w.requires_grad, w.grad is None) for w in module.parameters()]
    modes = [(m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in module.modules()]
    return state, flags, modes


def records(data):
    return {(row.numpy().tobytes()) for row in data.x}


# Public split and PCA


def test_a_public_split_shares_no_record_and_no_class():
    data = load("digits")
    private, public = public_split(data, [7, 1, 4])
    assert not records(private) & records(public)
    assert (private.classes, public.classes) == (3, 7)
    known = {row.numpy().tobytes(): int(y) for row, y in zip(data.x, data.y, strict=True)}
    back = [{known[row.numpy().tobytes()] for row in private.x[private.y == c]} for c in range(3)]
    assert back == [{7}, {1}, {4}]  # labels in the order named
    assert {known[row.numpy().tobytes()] for row in public.x} == {0, 2, 3, 5, 6, 8, 9}
    assert sorted(public.y.unique().tolist()) == list(range(7))
    assert len(private) + len(public) == len(data)
    assert private.digest != public.digest


def test_a_record_under_a_private_and_a_public_label_is_private():
    x = torch.rand(8, 3)
    x[5] = x[0]
    data = Data(x, torch.arange(8) % 4, 4, "twice")  # record 0 of class 0, record 5 of class 1
    private, public = public_split(data, [0, 2])
    by_class_alone = data[(data.y == 1) | (data.y == 3)]
    assert records(private) & records(by_class_alone)  # the wrong version leaks it
    assert not records(private) & records(public)
    assert len(public) == 3


@pytest.mark.parametrize(
    ("classes", "match"),
    [
        ([1, 1], "distinct"),
        ([0, 9], "in 0 .. 3"),
        ([0], "2\\+ classes on both sides, got 1 and 3"),
        ([0, 1, 2], "3 and 1"),
    ],
)
def test_splits_that_cannot_be(classes, match):
    data = Data(torch.rand(8, 3), torch.arange(8) % 4, 4, "four")
    with pytest.raises(ValueError, match=match):
        public_split(data, classes)


def test_a_split_needs_records_of_every_class():
    data = Data(torch.rand(8, 3), torch.arange(8) % 3, 4, "three of four")
    with pytest.raises(ValueError, match="every class"):
        public_split(data, [0, 3])
    x = torch.rand(4, 3)
    x[1] = x[0]
    with pytest.raises(ValueError, match="in each public class"):
        public_split(Data(x, torch.arange(4), 4, "hidden"), [0, 2])


def test_pca_has_the_mean_and_the_covariance_of_the_images():
    x = 0.5 + 0.02 * torch.randn(300, 1, 2, 3, generator=stream(0), dtype=torch.float64)
    prior = pca(x, 6)
    assert isinstance(prior, Prior)
    assert prior.latent == 6
    torch.testing.assert_close(prior.mean, x.mean(0))
    torch.testing.assert_close(prior.basis.T @ prior.basis, torch.cov(x.flatten(1).T))
    assert prior(torch.zeros(1, 6)).equal(prior.mean[None])


def test_images_of_a_prior_lie_in_range():
    prior = pca(load("digits").x, 10)
    x = prior(30 * torch.randn(20, 10, generator=stream(0)))
    assert x.shape == (20, 1, 8, 8)
    assert x.min() == 0
    assert x.max() == 1
    with pytest.raises(ValueError, match="k must be 1 to"):
        pca(torch.rand(5, 3), 4)
    with pytest.raises(ValueError, match=r"in \[0, 1\], got values from"):
        pca(2 * torch.rand(50, 3, generator=stream(0)), 2)


# Losses, by hand and one image at a time


def textbook_poincare(z, y):
    l1 = sum(abs(v) for v in z)
    u = [v / l1 for v in z]
    v = [min(max((j == y) - 1e-4, 0), 1) for j in range(len(z))]
    gap = sum((a - b) ** 2 for a, b in zip(u, v, strict=True))
    room = (1 - sum(a * a for a in u)) * (1 - sum(b * b for b in v))
    return math.acosh(1 + 2 * gap / room)


def test_losses_by_hand():
    z, y = torch.tensor([[1.0, 4.0, 2.0], [3.0, 1.0, -5.0]]), torch.tensor([1, 2])
    assert logit(z, y).tolist() == [-4, 5]
    assert max_margin(z, y).tolist() == [2 - 4, 3 + 5]
    assert max_margin(z, y).mean() == -z.gather(1, y[:, None]).mean() + (2 + 3) / 2
    want = [math.log(sum(map(math.exp, row))) - row[c] for row, c in zip(z.tolist(), (1, 2), strict=True)]
    assert ce(z, y).tolist() == pytest.approx(want)
    # u = (.5, .5), v = (.9999, 0)
    u, v = torch.tensor([[2.0, 2.0]]), 0.9999
    want = math.acosh(1 + 2 * ((0.5 - v) ** 2 + 0.25) / (0.5 * (1 - v * v)))
    assert poincare(u, torch.tensor([0])).item() == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_poincare_is_the_textbook_in_float64(dtype):
    g = stream(1)
    z = 5 * torch.randn(50, 10, generator=g).to(dtype)
    z[0, 1:] *= 1e-6  # at the border of the ball
    y = torch.randint(10, (50,), generator=g)
    y[0] = 0
    want = [textbook_poincare(row, c) for row, c in zip(z.double().tolist(), y.tolist(), strict=True)]
    assert poincare(z, y).tolist() == pytest.approx(want, rel=1e-10)


@pytest.mark.parametrize("loss", gan.LOSSES.values())
def test_losses_fall_towards_the_label_and_stay_finite(loss):
    y = torch.tensor([0, 0, 0, 0])
    z = torch.tensor([[0.0, 0, 0], [1e4, 0, 0], [0, 1e4, 0], [3.0, 1, 1]]).requires_grad_()
    before = z.detach().clone()
    value = loss(z, y)
    (slope,) = torch.autograd.grad(value.sum(), z)
    assert value.isfinite().all()
    assert slope.isfinite().all()
    assert value[2] > value[3]
    assert z.equal(before)


# WGAN-GP


def test_gradient_penalty_by_hand():
    g = stream(2)
    real, fake = torch.rand(6, 2, generator=g), torch.rand(6, 2, generator=g)
    share = torch.rand(6, 1, generator=g)
    weight = torch.tensor([3.0, 4.0])
    assert gradient_penalty(lambda x: x @ weight[:, None], real, fake, share).item() == pytest.approx(16.0)
    # D = |x|^2 / 2 has the slope x itself, so the penalty shows where it was taken.
    between = [
        math.hypot(*(s * a + (1 - s) * b for a, b in zip(r, f, strict=True)))
        for s, r, f in zip(share[:, 0].tolist(), real.tolist(), fake.tolist(), strict=True)
    ]
    got = gradient_penalty(lambda x: x.square().sum(1, True) / 2, real, fake, share)
    assert got.item() == pytest.approx(sum((n - 1) ** 2 for n in between) / 6, rel=1e-5)


def test_the_penalty_reaches_the_weights():
    D = gan.nets(torch.rand(2, 1, 4, 4), 3, 0)[1]
    x = torch.rand(5, 1, 4, 4)
    gradient_penalty(D, x, 1 - x, torch.full((5, 1, 1, 1), 0.5)).backward()
    assert D.head.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (1, 8, 8), (5,)])
def test_nets_are_small_and_fit(shape):
    G, D = gan.nets(torch.rand(2, *shape), 64, 0)
    assert sum(w.numel() for net in (G, D) for w in net.parameters()) < 1_000_000
    x = G(torch.randn(3, 64))
    assert x.shape == (3, *shape)
    assert 0 <= x.min() <= x.max() <= 1
    assert D(x).shape == (3, 1)


def test_a_discriminator_of_classes_depends_on_the_class_linearly():
    D = gan.nets(torch.rand(2, 1, 8, 8), 4, 0, classes=3)[1]
    x, y = torch.rand(4, 1, 8, 8), torch.tensor([0, 2, 2, 1])
    want = [
        D.head.weight[0] @ f + D.head.bias[0] + D.projection.weight[c] @ f
        for f, c in zip(D.features(x), y, strict=True)
    ]
    torch.testing.assert_close(D(x, y)[:, 0], torch.stack(want))


def test_training_is_a_function_of_the_seed():
    x = load("digits").x[:50].clone()
    before, state = x.clone(), torch.get_rng_state()
    z = torch.randn(3, 4, generator=stream(0))
    first, again, other = (train_gan(x, **TINY, seed=seed) for seed in (0, 0, 1))
    assert first(z).equal(again(z))
    assert not first(z).equal(other(z))
    assert x.equal(before)
    assert torch.get_rng_state().equal(state)
    assert isinstance(first, Prior)
    assert not any(m.training for net in (first.generator, first.discriminator) for m in net.modules())
    assert all(w.isfinite().all() for w in first.generator.parameters())


def test_training_brings_the_generator_near_the_images():
    """Two grey levels a pixel: an untrained generator gives .5 everywhere."""
    g = stream(3)
    x = (torch.tensor([0.9, 0.1, 0.9, 0.1]) + 0.05 * torch.randn(200, 4, generator=g)).clamp(0, 1)
    prior = train_gan(x, latent=2, steps=60, batch=32, rate=5e-3, critic_steps=3, seed=0)
    start = gan.nets(x, 2, 0)[0](torch.randn(100, 2, generator=g))
    made = prior(torch.randn(100, 2, generator=g))
    assert (start.mean(0) - x.mean(0)).abs().max() > 0.3
    assert (made.mean(0) - x.mean(0)).abs().max() < 0.2
    real, fake = prior.discriminator(x).mean(), prior.discriminator(1 - x).mean()
    assert real > fake  # high is real


def test_convolutional_training_runs():
    prior = train_gan(
        torch.rand(8, 1, 16, 16, generator=stream(0)), latent=3, steps=1, batch=4, critic_steps=1
    )
    assert prior(torch.zeros(2, 3)).shape == (2, 1, 16, 16)
    prior.generator.train()
    with pytest.raises(ValueError, match="prior must be in eval mode, got a generator in training mode"):
        prior(torch.zeros(2, 3))


@pytest.mark.parametrize(
    ("x", "match"),
    [
        (torch.rand(4, 1, 64, 64), "at most 32 pixels a side, got shape"),
        (torch.rand(4, 1, 8, 9), "square"),
        (torch.rand(4, 1, 8, 8) - 1, "in \\[0, 1\\]"),
        (torch.full((4, 3), torch.nan), "in \\[0, 1\\], got values from nan"),
    ],
)
def test_images_that_training_refuses(x, match):
    with pytest.raises(ValueError, match=match):
        train_gan(x, **TINY)


def test_a_step_fills_no_gradient_but_its_own():
    a, b = nn.Linear(2, 2), nn.Linear(2, 1)
    before = digest(b)
    optimiser = torch.optim.SGD(a.parameters(), 0.1)
    gan.step(optimiser, b(a(torch.rand(3, 2))).sum())
    assert digest(b) == before
    assert Pca(torch.rand(2), torch.rand(1, 2)).queries == 0
