import hashlib
import math

import pytest
import torch
from torch import nn

from glasslab import masks, nets
from glasslab.oracle import BudgetExceeded, Oracle
from glasslab.recipe import Recipe
from glasslab.split import stream
from inversion.gradient import adapted, autograd, cosine, difference, nes, principal

SHAPE = (2, 3, 4)
D = math.prod(SHAPE)


class Precise(Oracle):
    """An oracle that computes in the model's float64, and keeps what it was asked."""

    def __call__(self, x):
        if self.left is not None and len(x) > self.left:
            raise BudgetExceeded("too many")
        self.queries += len(x)
        self.__dict__.setdefault("asked", []).append(x.clone())
        return self.model(x).softmax(-1).detach()


def smooth(seed=0, classes=5):
    """A small net of sigmoids in float64, and a batch for it."""
    g = stream(seed, "smooth")
    net = nn.Sequential(nn.Flatten(), nn.Linear(D, 8), nn.Sigmoid(), nn.Linear(8, classes)).double().eval()
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=g, dtype=torch.float64))
    x = torch.rand(3, *SHAPE, generator=g, dtype=torch.float64)
    return net, x, torch.tensor([4, 0, 2])


def digest(model):
    """Weights, buffers, gradients, flags, modes and hooks of a model."""
    known = hashlib.sha256()
    for name, t in [*model.named_parameters(), *model.named_buffers()]:
        grad = None if t.grad is None else t.grad.numpy().tobytes()
        known.update(repr((name, t.requires_grad, t.detach().numpy().tobytes(), grad)).encode())
    for m in model.modules():
        known.update(repr((m.training, len(m._forward_hooks), len(m._backward_hooks))).encode())
    return known.hexdigest()


# The white box


def test_autograd_is_the_closed_form_of_softmax_regression():
    g = stream(1)
    W = torch.randn(5, D, generator=g, dtype=torch.float64)
    net = nets.softmax(Recipe(), SHAPE, 5).double().eval()
    with torch.no_grad():
        net[1].weight.copy_(W)
        net[1].bias.zero_()
    x, y = torch.randn(4, *SHAPE, generator=g, dtype=torch.float64), torch.tensor([0, 3, 3, 1])
    f, slope = autograd(net)(x, y)
    for i, label in enumerate(y.tolist()):
        e = [math.exp(float(w @ x[i].flatten())) for w in W]
        p = torch.tensor([v / sum(e) for v in e], dtype=torch.float64)
        torch.testing.assert_close(f[i], p[label], rtol=1e-10, atol=0)
        torch.testing.assert_close(slope[i].flatten(), p[label] * (W[label] - p @ W), rtol=1e-9, atol=1e-12)


def test_autograd_sums_over_the_batch():
    net, x, y = smooth()
    f, g = autograd(net)(x, y)
    for i in range(3):
        one, alone = autograd(net)(x[i : i + 1], y[i : i + 1])
        torch.testing.assert_close(f[i : i + 1], one)
        torch.testing.assert_close(g[i : i + 1], alone)
    mean = torch.autograd.grad(net(x.requires_grad_()).softmax(-1)[range(3), y].mean(), x)[0]
    assert not torch.allclose(g, mean)  # the wrong version, three times too small


def test_a_confidence_near_one_is_still_told_apart():
    """Its float32 softmax is 1, and a step there changes nothing."""
    net = nets.softmax(Recipe(), (1,), 2).eval()
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([[1.0], [0.0]]))
        net[1].bias.zero_()
    x = torch.tensor([[20.0], [21.0]])
    f, g = autograd(net)(x, torch.zeros(2, dtype=torch.int64))
    assert f[0] < f[1] < 1
    assert (g > 0).all()
    assert net(x).softmax(-1)[0, 0] == 1


@pytest.mark.parametrize("grad", [True, False])
def test_the_white_box_leaves_the_model_alone(grad):
    net, x, y = smooth()
    net.requires_grad_(grad)
    net[1].weight.grad = torch.ones_like(net[1].weight) if grad else None
    before, kept = digest(net), x.clone()
    with torch.no_grad():
        autograd(net)(x, y)
    assert digest(net) == before
    assert torch.equal(x, kept)
    assert not x.requires_grad
    with pytest.raises(RuntimeError):
        autograd(net)(x[:, :1], y)
    assert digest(net) == before


def test_training_mode_is_refused():
    net, x, y = smooth()
    known = autograd(net)
    net[2].train()
    with pytest.raises(ValueError, match="eval mode"):
        known(x, y)
    with pytest.raises(ValueError, match="eval mode"):
        autograd(net)


# The black box


def test_differences_agree_with_the_true_gradient():
    net, x, y = smooth()
    f, g = autograd(net)(x, y)
    oracle = Precise(net)
    asked = difference(oracle, 1e-4)
    assert asked.price == 0
    f_hat, g_hat = asked(x, y)
    torch.testing.assert_close(g_hat, g, rtol=0, atol=1e-5)
    torch.testing.assert_close(f_hat, f, rtol=0, atol=1e-6)
    assert oracle.queries == 3 * 2 * D
    assert asked.price == 2 * D


def test_differences_are_exact_up_to_the_square_of_h():
    net, x, y = smooth()
    g = autograd(net)(x, y)[1]
    off = [(difference(Precise(net), h)(x, y)[1] - g).abs().max() for h in (0.02, 0.01)]
    assert off[0] / off[1] == pytest.approx(4, rel=0.05)


def test_blocks_do_not_change_the_answer():
    net, x, y = smooth()
    basis = cosine(7, SHAPE)
    for make in (
        lambda o, m: difference(o, 0.01, memory=m),
        lambda o, m: difference(o, 0.01, memory=m, basis=basis),
        lambda o, m: nes(o, 11, 0.1, memory=m),
    ):
        oracle, whole = Precise(net), Precise(net)
        for got, want in zip(make(oracle, 8 * D * 14)(x, y), make(whole, 2**26)(x, y), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)
        assert oracle.queries == whole.queries
        assert len(whole.asked) == 1
        assert len(oracle.asked) > 3
        assert max(len(a) for a in oracle.asked) <= 14


def test_a_basis_gives_the_gradient_within_its_span():
    net, x, y = smooth()
    basis = cosine(7, SHAPE).double()
    oracle = Precise(net)
    got = difference(oracle, 1e-4, basis=basis)(x, y)[1].flatten(1)
    want = autograd(net)(x, y)[1].flatten(1) @ basis.T @ basis
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)
    assert oracle.queries == 3 * 2 * 7
    some = nes(Precise(net), 20, 0.01, basis=basis)(x, y)[1].flatten(1)
    torch.testing.assert_close(some @ basis.T @ basis, some, rtol=0, atol=1e-6)


def test_nes_is_the_formula():
    net, x, y = smooth()
    n, sigma = 6, 0.3
    oracle = Precise(net)
    f, g = nes(oracle, n, sigma, seed=3)(x, y)
    u = torch.randn(n, D, generator=stream(3, "nes", 0), dtype=torch.float64).reshape(n, *SHAPE)
    for i in range(3):
        total, mean = torch.zeros(SHAPE).double(), 0.0
        for v in u:
            up, down = (net((x[i] + s * v)[None]).softmax(-1)[0, y[i]].item() for s in (sigma, -sigma))
            total += (up - down) * v
            mean += (up + down) / (2 * n)
        torch.testing.assert_close(g[i], total / (2 * n * sigma), rtol=1e-9, atol=1e-12)
        assert f[i].item() == pytest.approx(mean, rel=1e-9)
    assert oracle.queries == 3 * 2 * n


def test_nes_is_unbiased():
    """2,000 draws along the gradient and along a fixed direction: a false alarm in 1 of 190 seeds."""
    net, x, y = smooth()
    g = autograd(net)(x[:1], y[:1])[1].flatten()
    ways = torch.stack([g / g.norm(), nn.functional.normalize(torch.randn(D, generator=stream(8)), dim=0)])
    ask = nes(Precise(net), 1, 1e-3)
    draws = torch.stack([ask(x[:1], y[:1])[1].flatten() for _ in range(2000)]) @ ways.T
    error = draws.std(0) / 2000**0.5
    assert ((draws.mean(0) - ways @ g).abs() < 3 * error).all()
    assert ask.calls == 2000


def test_directions_depend_on_seed_and_call_alone():
    net, x, y = smooth()
    many, one = nes(Precise(net), 5, 0.1), nes(Precise(net), 5, 0.1)
    for _ in range(2):
        torch.testing.assert_close(many(x, y)[1][1:2], one(x[1:2], y[1:2])[1], rtol=1e-10, atol=0)
    first, second = nes(Precise(net), 5, 0.1), nes(Precise(net), 5, 0.1, seed=1)
    g = first(x, y)[1]
    assert not torch.allclose(g, first(x, y)[1])
    assert not torch.allclose(g, second(x, y)[1])


@pytest.mark.parametrize("make", [lambda o: difference(o, 0.1), lambda o: nes(o, 7, 0.1)])
def test_a_budget_is_never_exceeded(make):
    net, x, y = smooth()
    oracle = Precise(net, budget=1)
    ask = make(oracle)
    with pytest.raises(BudgetExceeded, match="1 left"):
        ask(x, y)
    assert oracle.queries == 0
    oracle = Precise(net, budget=3 * 2 * D)
    ask = make(oracle)
    for _ in range(50):
        try:
            ask(x, y)
        except BudgetExceeded:
            break
    else:
        raise AssertionError("the budget paid for 50 calls")
    assert 3 * 2 * D - 3 * ask.price < oracle.queries <= 3 * 2 * D
    assert oracle.queries % (3 * ask.price) == 0


def test_the_real_oracle_is_asked_in_float32_and_left_alone():
    net, x, y = smooth()
    net.float()
    oracle, before = Oracle(net), digest(net)
    for ask in (difference(oracle, 0.01), nes(oracle, 5, 0.1)):
        f, g = ask(x.float(), y)
        assert (f.dtype, g.dtype) == (torch.float64, torch.float32)
    assert digest(net) == before
    g = difference(oracle, 0.01)(x.float(), y)[1]
    torch.testing.assert_close(g, autograd(net)(x.float(), y)[1], rtol=0, atol=1e-3)


def test_labels_alone_have_no_gradient():
    oracle = Oracle(smooth()[0], reveals="labels")
    for make in (lambda: difference(oracle, 0.1), lambda: nes(oracle, 5, 0.1)):
        with pytest.raises(ValueError, match="label_only"):
            make()


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda o: difference(o, 0.0), "h must be above 0, got 0"),
        (lambda o: nes(o, 5, -1.0), "sigma must be above 0, got -1"),
        (lambda o: nes(o, 0, 0.1), "n must be 1 or more directions, got 0"),
        (lambda o: difference(o, 0.1, basis=torch.ones(2, D)), "basis must have orthonormal rows"),
        (lambda o: principal(torch.rand(5, D), 5), "k must be 1 to min"),
        (lambda o: cosine(D + 1, SHAPE), "k must be 1 to D = 24, got 25"),
    ],
)
def test_wrong_settings_are_refused(make, match):
    with pytest.raises(ValueError, match=match):
        make(Oracle(smooth()[0]))


# Bases


def test_principal_components_find_the_planted_plane():
    g = stream(5)
    plane = torch.linalg.qr(torch.randn(D, 2, generator=g)).Q.T
    x = (torch.randn(50, 2, generator=g) * torch.tensor([3.0, 2.0])) @ plane + 5  # the mean is no component
    x = x + 1e-3 * torch.randn(50, D, generator=g)
    found = principal(x.reshape(50, *SHAPE), 2)
    torch.testing.assert_close(found.T @ found, plane.T @ plane, rtol=0, atol=1e-2)
    assert found.shape == (2, D)


@pytest.mark.parametrize("shape", [(6,), (4, 5), SHAPE])
def test_cosines_are_orthonormal_and_low_ones_come_first(shape):
    d, channels = math.prod(shape), math.prod(shape[:-2])
    full = cosine(d, shape)
    torch.testing.assert_close(full @ full.T, torch.eye(d), rtol=0, atol=1e-5)
    assert torch.equal(cosine(3, shape), full[:3])
    flat = full[:channels].abs().sum(0)  # the constants, one a channel
    torch.testing.assert_close(flat, flat[:1].expand(d), rtol=1e-5, atol=0)
    signs = [int((row.reshape(shape).diff(dim=-1).sign() != 0).sum()) for row in (full[0], full[-1])]
    assert signs[0] < signs[1]


# Against a mask


def test_the_width_grows_with_the_mask():
    net, x, y = smooth()
    net.float()
    with torch.no_grad():
        net[3].weight *= 0.3  # no confidence near 0 or 1
    x = x.float()
    fine, shares = adapted(lambda h: difference(Oracle(net), h), net, x, y)
    assert fine < 0.5
    assert shares[1] > 0.999
    coarse, shares = adapted(lambda h: difference(Oracle(net, mask=[masks.round_to(1)]), h), net, x, y)
    assert coarse == 0.5
    assert shares[0] == 0
