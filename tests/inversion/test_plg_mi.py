import pytest
import torch
from torch import nn

from glasslab.augment import augment
from glasslab.datasets import load
from glasslab.masks import round_to
from glasslab.oracle import BudgetExceeded, Oracle
from glasslab.split import stream
from inversion import gan
from inversion.plg_mi import Cgan, Conditional, hinge, plg_mi, pseudo_labelled, train_gan
from inversion.prior import Pca, public_split

Y = torch.tensor([3, 0, 4])
TINY = {"latent": 8, "steps": 25, "batch": 16, "rate": 2e-3, "critic_steps": 2}


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


class Same:
    """A prior that does not read the label; `shift` moves its images by class."""

    queries = 0

    def __init__(self, prior, shift=0.0):
        self.prior, self.latent, self.shift = prior, prior.latent, shift

    def __call__(self, z, y):
        x = self.prior(z)
        return (x + self.shift * y.to(x)[:, None]).clamp(0, 1)


def linear(seed=0, c=2, d=6):
    """A linear target on a table, and a prior whose images never touch 0 or 1 for |z| <= 1."""
    g = stream(seed, "linear")
    model = nn.Sequential(nn.Flatten(), nn.Linear(d, c)).double().eval()
    with torch.no_grad():
        model[1].weight.copy_(torch.randn(c, d, generator=g))
        model[1].bias.copy_(torch.randn(c, generator=g))
    basis = torch.randn(3, d, generator=g, dtype=torch.float64)
    prior = Pca(torch.full((d,), 0.5, dtype=torch.float64), 0.4 * basis / basis.abs().sum(0))
    return model, Same(prior)


# Pseudo-labels


def test_each_class_gets_the_images_that_the_target_scores_highest(digits):
    model, x_public = digits
    oracle = Oracle(model)
    x, y = pseudo_labelled(oracle, x_public, n=7)
    assert oracle.queries == len(x_public)
    p = model(x_public).double().softmax(1)
    for c in range(5):
        order = sorted(range(len(x_public)), key=lambda i, c=c: (-p[i, c].item(), i))
        assert x[y == c].equal(x_public[order[:7]])
    assert y.bincount().tolist() == [7] * 5


def test_equal_scores_keep_their_order():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).eval()
    x_public = torch.rand(9, 4, generator=stream(0))
    x, _ = pseudo_labelled(Oracle(model, mask=[round_to(0)]), torch.cat([x_public[:1]] * 9), n=2)
    assert x.equal(torch.cat([x_public[:1]] * 6))
    flat = Oracle(model, mask=[lambda p: torch.full_like(p, 1 / 3)])
    x, y = pseudo_labelled(flat, x_public, n=2)
    assert x.equal(torch.cat([x_public[:2]] * 3))
    assert y.tolist() == [0, 0, 1, 1, 2, 2]


def test_pseudo_labels_that_cannot_be(digits):
    model, x_public = digits
    with pytest.raises(ValueError, match="oracle must reveal probabilities, got labels"):
        pseudo_labelled(Oracle(model, reveals="labels"), x_public)
    with pytest.raises(ValueError, match="n must lie in 1 .. 3, the public images, got 30"):
        pseudo_labelled(Oracle(model), x_public[:3])
    oracle = Oracle(model, budget=10)
    with pytest.raises(BudgetExceeded):
        pseudo_labelled(oracle, x_public)
    assert oracle.queries == 0


# Losses and search


def test_hinge_by_hand():
    real, fake = torch.tensor([[0.5], [2.0]]), torch.tensor([[-3.0], [0.25]])
    assert hinge(real, fake).item() == pytest.approx((0.5 + 0) / 2 + (0 + 1.25) / 2)


def test_the_search_is_the_textbook():
    """Adam on z down twice the margin; the slope of a linear target's margin is a difference of weights."""
    model, prior = linear(c=3)
    label, steps, rate = 2, 5, 0.02
    W, B = model[1].weight.tolist(), model[1].bias.tolist()
    mean, basis = prior.prior.mean.tolist(), prior.prior.basis.tolist()
    z = torch.randn(3, generator=stream(4, "plg-mi", label, 0), dtype=torch.float64).mul(1).tolist()
    m, v = [0.0] * 3, [0.0] * 3

    def logits(z):
        x = [min(max(mean[j] + sum(z[i] * basis[i][j] for i in range(3)), 0), 1) for j in range(6)]
        return x, [B[k] + sum(W[k][j] * x[j] for j in range(6)) for k in range(3)]

    for t in range(1, steps + 1):
        x, out = logits(z)
        rival = max((0, 1), key=lambda k: out[k])
        free = [0 < q < 1 for q in x]
        for i in range(3):
            g = 2 * sum((W[rival][j] - W[label][j]) * basis[i][j] * free[j] for j in range(6))
            m[i], v[i] = 0.9 * m[i] + 0.1 * g, 0.999 * v[i] + 0.001 * g * g
            z[i] -= rate * (m[i] / (1 - 0.9**t)) / ((v[i] / (1 - 0.999**t)) ** 0.5 + 1e-8)
    x, out = logits(z)
    found = plg_mi(model, torch.tensor([label]), prior, steps=steps, rate=rate, restarts=1, seed=4)
    assert found.x[0].tolist() == pytest.approx(x, abs=1e-9)
    assert found.cost.item() == pytest.approx(2 * (max(out[:2]) - out[2]), rel=1e-9)
    assert found.confidence.item() == pytest.approx(torch.tensor(out).double().softmax(0)[2].item(), rel=1e-6)


def test_planted_optimum():
    """One pixel a component, linear, two classes: each pixel ends at the end that is its label's."""
    model, _ = linear(d=3)
    prior = Same(Pca(torch.full((3,), 0.5).double(), torch.eye(3).double() / 4))
    found = plg_mi(model, torch.tensor([1, 0]), prior, steps=80)
    w = model[1].weight.detach()
    assert found.x[0].equal((w[1] > w[0]).double())
    assert found.x[1].equal((w[0] > w[1]).double())
    assert found.stop_reason == ("max_iter", "max_iter")


def test_the_prior_is_asked_for_the_label():
    model, prior = linear(c=3)
    given = Same(prior.prior, shift=0.05)
    y = torch.tensor([2, 0])
    found = plg_mi(model, y, given, steps=0, restarts=1)
    z = [torch.randn(3, generator=stream(0, "plg-mi", c, 0), dtype=torch.float64) for c in (2, 0)]
    assert found.x.equal(given(torch.stack(z), y))


def test_a_trained_prior_and_the_search_end_to_end(digits):
    model, x_public = digits
    oracle, before = Oracle(model), digest(model)
    prior = train_gan(model, oracle, x_public, **TINY)
    assert digest(model) == before
    assert isinstance(prior, Conditional)
    assert oracle.queries == prior.queries == len(x_public)
    state = digest(prior.generator), torch.get_rng_state()
    found = plg_mi(model, Y, prior, steps=30, restarts=2, watch=10)
    start = plg_mi(model, Y, prior, steps=0, restarts=2)
    assert oracle.queries == len(x_public)  # the search is a white box's
    assert (found.confidence > start.confidence).all()
    assert found.x.shape == (3, 1, 8, 8)
    assert 0 <= found.x.min() <= found.x.max() <= 1
    p = model(found.x).double().softmax(1)[torch.arange(3), Y]
    torch.testing.assert_close(found.confidence, p.detach(), atol=1e-6, rtol=0)
    assert found.queries.tolist() == [len(x_public)] * 3
    assert found.curve.shape == (3, 3)
    assert digest(model) == before
    assert digest(prior.generator) == state[0]
    assert torch.get_rng_state().equal(state[1])


def test_the_generator_reads_the_label_and_the_target_guides_it(digits):
    model, x_public = digits
    z, rows = torch.randn(40, 8, generator=stream(0)), torch.arange(40) % 5
    scores = []
    for alpha in (0.0, 20.0):
        prior = train_gan(model, Oracle(model), x_public, **TINY, alpha=alpha)
        x = prior(z, rows)
        scores.append(model(x).softmax(1).gather(1, rows[:, None]).mean().item())
    assert scores[1] > scores[0] + 0.05
    assert not prior(z, rows).equal(prior(z, (rows + 1) % 5))


def test_the_two_versions_are_changed_apart(digits):
    """The cost at step 0 is that of two augmented copies, drawn one after the other."""
    model, x_public = digits
    G = gan.nets(x_public, 4, 0, classes=5)[0].eval()
    prior, y = Cgan(G, 5, 4), torch.tensor([1, 3])
    found = plg_mi(model, y, prior, steps=0, restarts=1, seed=2)
    z = torch.stack(
        [torch.randn(4, generator=stream(2, "plg-mi", c, 0), dtype=torch.float64) for c in (1, 3)]
    )
    x, g = prior(z, y), stream(2, "plg-mi augmentations")
    parts = [gan.max_margin(model(augment(x, ["crop"], g)), y) for _ in range(2)]
    torch.testing.assert_close(found.cost, sum(parts).detach().double(), atol=1e-6, rtol=0)
    assert not parts[0].equal(parts[1])
    plain = plg_mi(model, y, prior, steps=0, restarts=1, seed=2, augmentations=(), versions=1)
    torch.testing.assert_close(plain.cost, gan.max_margin(model(x), y).detach().double(), atol=1e-6, rtol=0)
    assert plain.x.equal(found.x)  # what comes back is not augmented


def test_the_seed_decides(digits):
    model, x_public = digits
    few = {"latent": 4, "steps": 2, "batch": 8, "critic_steps": 1}
    priors = [train_gan(model, Oracle(model), x_public, **few, seed=s) for s in (0, 0, 1)]
    z, rows = torch.randn(3, 4, generator=stream(0)), torch.arange(3)
    assert priors[0](z, rows).equal(priors[1](z, rows))
    assert not priors[0](z, rows).equal(priors[2](z, rows))
    found = [plg_mi(model, Y, priors[0], steps=3, restarts=2, seed=s).x for s in (0, 0, 1)]
    assert found[0].equal(found[1])
    assert not found[0].equal(found[2])


@pytest.mark.parametrize("loss", ["ce", "poincare"])
def test_other_losses_raise_the_probability_too(digits, loss):
    model, x_public = digits
    prior = Cgan(gan.nets(x_public, 4, 0, classes=5)[0].eval(), 5, 4)
    start, found = (plg_mi(model, Y, prior, steps=s, loss=loss, restarts=1) for s in (0, 30))
    assert found.confidence.mean() > start.confidence.mean()


def test_what_is_refused(digits):
    model, x_public = digits
    G = gan.nets(x_public, 4, 0, classes=5)[0]
    prior = Cgan(G.eval(), 5, 4)
    with pytest.raises(ValueError, match="loss must be one of"):
        plg_mi(model, Y, prior, loss="hinge")
    with pytest.raises(ValueError, match="y must lie in 0 .. 4, got 5 to 5"):
        plg_mi(model, torch.tensor([5]), Cgan(gan.nets(x_public, 4, 0, classes=6)[0].eval(), 6, 4))
    with pytest.raises(ValueError, match="restarts, versions 1 or more"):
        plg_mi(model, Y, prior, versions=0)
    training = nn.Sequential(nn.Flatten(), nn.Linear(64, 5))
    with pytest.raises(ValueError, match="model must be in eval mode, got training mode"):
        plg_mi(training, Y, prior)
    with pytest.raises(ValueError, match="model must be in eval mode, got training mode"):
        train_gan(training, Oracle(model), x_public)
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        train_gan(model, Oracle(model), x_public - 1)
    with pytest.raises(ValueError, match="prior must be in eval mode"):
        plg_mi(model, Y, Cgan(G.train(), 5, 4))
