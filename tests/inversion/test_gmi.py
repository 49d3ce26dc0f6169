import math

import pytest
import torch
from torch import nn

from glasslab.datasets import load
from glasslab.split import stream
from inversion.gan import Gan, nets, train_gan
from inversion.gmi import gmi
from inversion.latent import adam, descend, features, look_ahead, mean_feature, surest
from inversion.prior import Pca, pca, public_split

Y = torch.tensor([3, 0, 4])


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


# The formulas, one label, one start and one number at a time


def textbook_gmi(model, prior, start, y, steps, rate, m, weight, clip):
    """(best cost, its z) of one start; slopes by central differences."""
    w, b = model[1].weight.tolist(), model[1].bias.tolist()
    mean, basis = prior.mean.tolist(), prior.basis.tolist()

    def cost(z):
        x = [mean[j] + sum(z[i] * basis[i][j] for i in range(len(z))) for j in range(len(mean))]
        out = [b[k] + sum(w[k][j] * x[j] for j in range(len(x))) for k in range(len(b))]
        return weight * (math.log(sum(math.exp(v) for v in out)) - out[y])

    def clamp(z):
        return [min(max(v, -clip), clip) for v in z]

    z, v = clamp(start), [0.0] * len(start)
    best = (cost(z), z)
    for _ in range(steps):
        slope = []
        for i in range(len(z)):
            up, down = ([q + (h if i == j else 0) for j, q in enumerate(z)] for h in (1e-5, -1e-5))
            slope.append((cost(up) - cost(down)) / 2e-5)
        before, v = v, [m * a - rate * s for a, s in zip(v, slope, strict=True)]
        z = clamp([q - m * a + (1 + m) * n for q, a, n in zip(z, before, v, strict=True)])
        best = min(best, (cost(z), z))
    return best


def test_the_search_is_the_textbook():
    model, prior = linear(c=3)
    y = torch.tensor([2, 0])
    found = gmi(model, y, prior, steps=7, rate=2e-3, restarts=1, seed=5)
    for row, label in enumerate(y.tolist()):
        start = torch.randn(3, generator=stream(5, "gmi", label, 0), dtype=torch.float64).tolist()
        cost, z = textbook_gmi(model, prior, start, label, 7, 2e-3, 0.9, 100.0, 1.0)
        assert found.cost[row].item() == pytest.approx(cost, rel=1e-6)
        torch.testing.assert_close(found.x[row], prior(torch.tensor([z]))[0], atol=1e-6, rtol=0)


def test_planted_optimum():
    """Two classes, linear: the cost falls along (w_y - w_other) of the basis, so z ends in a corner."""
    model, prior = linear()
    found = gmi(model, torch.tensor([1, 0]), prior, steps=60)
    for row, label in enumerate((1, 0)):
        w = model[1].weight.detach()
        corner = (prior.basis @ (w[label] - w[1 - label])).sign()
        torch.testing.assert_close(found.x[row], prior(corner[None])[0])
        p = model(prior(corner[None])).softmax(1)[0, label]
        assert found.confidence[row].item() == pytest.approx(p.item(), rel=1e-9)
        assert found.cost[row].item() == pytest.approx(-100 * math.log(p.item()), rel=1e-9)
    assert found.steps.tolist() == [60, 60]
    assert found.stop_reason == ("max_iter", "max_iter")
    assert found.queries.tolist() == [0, 0]


def test_a_trained_prior_and_the_search_end_to_end(digits):
    model, x_public = digits
    prior = train_gan(x_public, latent=8, steps=20, batch=32, rate=2e-3)
    before = digest(model), digest(prior.generator), digest(prior.discriminator), torch.get_rng_state()
    found = gmi(model, Y, prior, steps=40, restarts=2, watch=20)
    start = gmi(model, Y, prior, steps=0, restarts=2)
    assert (found.confidence > start.confidence).all()
    assert found.confidence.mean() > start.confidence.mean() + 0.03
    assert found.x.shape == (3, 1, 8, 8)
    assert 0 <= found.x.min() <= found.x.max() <= 1
    p = model(found.x).double().softmax(1)
    torch.testing.assert_close(found.confidence, p[torch.arange(3), Y].detach(), atol=1e-6, rtol=0)
    cost = -100 * p[torch.arange(3), Y].log() - prior.discriminator(found.x)[:, 0]
    torch.testing.assert_close(found.cost, cost.detach(), atol=1e-3, rtol=1e-4)
    assert found.curve.shape == (2, 3)
    assert not found.x.requires_grad
    after = digest(model), digest(prior.generator), digest(prior.discriminator), torch.get_rng_state()
    assert after[:3] == before[:3]
    assert after[3].equal(before[3])


def test_the_discriminator_pulls_towards_what_it_takes_for_real(digits):
    model, x_public = digits
    prior = train_gan(x_public, latent=8, steps=5, batch=32)
    alone = gmi(model, Y, prior, steps=60, weight=0.0, restarts=1)
    start = gmi(model, Y, prior, steps=0, weight=0.0, restarts=1)
    assert (prior.discriminator(alone.x) > prior.discriminator(start.x)).all()


def test_the_seed_decides_and_labels_do_not_meet():
    model, prior = linear(c=3)
    y, settings = torch.tensor([2, 0, 1]), {"steps": 15, "rate": 2e-3, "restarts": 2}
    found, again, other = (gmi(model, y, prior, **settings, seed=s) for s in (1, 1, 2))
    assert found.x.equal(again.x)
    assert not found.x.equal(other.x)
    for row in range(3):
        alone = gmi(model, y[row : row + 1], prior, **settings, seed=1)
        torch.testing.assert_close(alone.x[0], found.x[row], atol=1e-12, rtol=0)
    twice = gmi(model, torch.tensor([1, 1]), prior, steps=0, restarts=1)
    assert not twice.x[0].equal(twice.x[1])


def test_a_label_is_scored_as_itself_wherever_its_row_is():
    """The public code reads score[i, i], which is the label's only where label i sits at row i."""
    p = torch.tensor([[[0.1, 0.9], [0.8, 0.2]], [[0.3, 0.7], [0.6, 0.4]]]).double()  # label, restart, class
    y = torch.tensor([1, 0])
    own = torch.stack([p[i, :, c] for i, c in enumerate(y)]).flatten()
    diagonal = torch.stack([p[i, :, i] for i in range(2)]).flatten()
    assert surest(own, 2).tolist() == [0, 3]
    assert surest(diagonal, 2).tolist() == [1, 2]
    assert surest(torch.tensor([torch.nan, 0.0, 0.2, torch.nan]).double(), 2).tolist() == [1, 2]
    model, prior = linear(c=3)
    for y in (torch.tensor([2, 0]), torch.tensor([0, 2])):
        rows = y.repeat_interleave(4)
        starts = [
            torch.randn(3, generator=stream(0, "gmi", int(c), i % 4), dtype=torch.float64)
            for i, c in enumerate(rows)
        ]
        sure = (
            model(prior(torch.stack(starts).clamp(-1, 1))).softmax(1).gather(1, rows[:, None]).reshape(2, 4)
        )
        found = gmi(model, y, prior, steps=0, restarts=4)
        torch.testing.assert_close(found.confidence, sure.amax(1).detach())


def test_the_best_iterate_comes_back():
    """A rate that overshoots: of 1, -.8, .64, ... for cost (w - .9)^2 the first is the best."""
    start = torch.tensor([[1.0], [0.0]]).double()

    def cost(w):
        return (w[:, 0] - torch.tensor([0.9, 0.5])).square(), w[:, 0].detach()

    settings = {"steps": 5, "watch": 0}
    best = descend(cost, start, look_ahead(1.1, 0.0, None), last=False, **settings)
    last = descend(cost, start, look_ahead(1.1, 0.0, None), last=True, **settings)
    assert best.w.equal(start)
    assert (last.cost > best.cost).all()
    assert best.confidence.equal(start[:, 0])
    assert best.steps.tolist() == [5, 5]


def test_a_diverging_row_ends_alone():
    def cost(w):
        broken = torch.where((w[:, 0] > 0.5), torch.nan, 1.0)
        return (w.square().sum(1) - 3 * w[:, 0]) * broken, w[:, 0].detach()

    start = torch.tensor([[0.0, 1.0], [-9.0, 1.0]]).double()
    for update in (lambda: look_ahead(0.1, 0.0, None), lambda: adam(0.3)):
        found = descend(cost, start, update(), steps=4, last=True, watch=1)
        alone = descend(cost, start[1:], update(), steps=4, last=True, watch=1)
        assert found.stop_reason == ("diverged", "max_iter")
        assert found.w.isfinite().all()
        assert found.cost.isfinite().all()
        assert found.steps.tolist() == [2, 4]
        assert found.w[0, 0] <= 0.5
        assert found.curve.isfinite().all()
        assert found.w[1].equal(alone.w[0])
    nowhere = descend(
        lambda w: (w.sum(1) * torch.nan, w[:, 0].detach()), start, adam(0.1), steps=1, last=False, watch=0
    )
    assert nowhere.w.equal(start)
    assert nowhere.stop_reason == ("diverged", "diverged")


def test_adam_is_the_textbook():
    slopes = [torch.tensor([[1.0, -2.0]]).double(), torch.tensor([[0.5, 3.0]]).double()]
    update, w = adam(0.1), torch.zeros(1, 2).double()
    m, v, want = [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]
    for t, slope in enumerate(slopes, 1):
        w = update(w, slope)
        for i, g in enumerate(slope[0].tolist()):
            m[i], v[i] = 0.9 * m[i] + 0.1 * g, 0.999 * v[i] + 0.001 * g * g
            want[i] -= 0.1 * (m[i] / (1 - 0.9**t)) / ((v[i] / (1 - 0.999**t)) ** 0.5 + 1e-8)
    assert w[0].tolist() == pytest.approx(want, rel=1e-9)


def test_lomma_pulls_features_to_the_public_mean(digits):
    model, x_public = digits
    toward = mean_feature(model, x_public)
    torch.testing.assert_close(toward, x_public.flatten(1).double().mean(0))  # a linear model reads pixels
    prior, settings = pca(x_public, 10), {"steps": 80, "rate": 1e-3, "restarts": 1, "loss": "logit"}
    before = digest(model)
    free = gmi(model, Y, prior, **settings)
    held = gmi(model, Y, prior, **settings, toward=toward, feature_weight=5.0)
    assert digest(model) == before

    def far(found):
        return (found.x.flatten(1) - toward).square().sum(1)

    assert (far(held) < far(free)).all()
    own = -model(held.x).gather(1, Y[:, None])[:, 0] + 5 * far(held)
    torch.testing.assert_close(held.cost, 100 * own.double().detach(), atol=1e-3, rtol=1e-4)


def test_features_leave_no_hook_behind():
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).eval()
    x = torch.rand(5, 4)
    z, f = features(net, x)
    assert z.equal(net(x))
    assert f.equal(net[:3](x))
    before = digest(net)
    with pytest.raises(RuntimeError):
        features(net, torch.rand(5, 7))
    assert digest(net) == before
    with pytest.raises(ValueError, match="linear layer"):
        features(nn.Flatten(), x)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"loss": "mse"}, "loss must be one of ce, logit, max_margin, poincare, got 'mse'"),
        ({"y": torch.tensor([2])}, "y must lie in 0 .. 1, got 2 to 2"),
        ({"restarts": 0}, "restarts 1 or more, got 1500 and 0"),
        ({"steps": -1}, "steps must be 0 or more"),
    ],
)
def test_arguments_that_are_refused(change, match):
    model, prior = linear()
    y = change.pop("y", torch.tensor([0]))
    before = digest(model)
    with pytest.raises(ValueError, match=match):
        gmi(model, y, prior, **change)
    assert digest(model) == before


def test_modes_and_discriminators_that_are_refused():
    model, prior = linear()
    with pytest.raises(ValueError, match="model must be in eval mode, got training mode"):
        gmi(model.train(), torch.tensor([0]), prior)
    with pytest.raises(ValueError, match="model must be in eval mode"):
        mean_feature(model, torch.rand(2, 6).double())
    G, D = nets(torch.rand(2, 6), 3, 0, outputs=4)
    with pytest.raises(ValueError, match=r"discriminator of 1 output, got \[4\]"):
        gmi(model.float().eval(), torch.tensor([0]), Gan(G.eval(), D.eval(), 3))
