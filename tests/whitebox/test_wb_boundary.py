import copy
import inspect
import warnings
from decimal import Decimal, getcontext

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from worlds import ridge

from glasslab import signals
from glasslab.checks import Floored
from glasslab.metrics import auc
from glasslab.split import stream
from whitebox import boundary as module
from whitebox.boundary import curvature, distance, flatness
from whitebox.gradients import norms

SCORES = pytest.mark.parametrize("attack", [distance, curvature, flatness])


def dense(d=6, c=4, act=nn.ReLU, seed=0, gain=1.0, dtype=torch.float64):
    g = stream(seed, "dense")
    model = nn.Sequential(nn.Linear(d, 9), act(), nn.Linear(9, 9), act(), nn.Linear(9, c))
    for p in model.parameters():
        p.data = gain * torch.randn(p.shape, generator=g) / p.shape[-1] ** 0.5
    return model.to(dtype).eval()


def linear(d=6, c=4, seed=0, dtype=torch.float32):
    g = stream(seed, "linear")
    model = nn.Linear(d, c)
    model.weight.data, model.bias.data = torch.randn(c, d, generator=g), torch.randn(c, generator=g)
    return model.to(dtype).eval()


def called(model, n=40, d=6, seed=0, right=True, dtype=torch.float32):
    """Records, with the labels that the model gives them, or with random ones."""
    g = stream(seed, "records")
    x = torch.randn(n, d, generator=g).to(dtype)
    z = model(x).detach()
    return x, z.argmax(1) if right else torch.randint(z.shape[1], (n,), generator=g)


def slow_deepfool(model, x, y, order, steps=50, overshoot=0.02):
    """One record: DeepFool as in the paper, all classes; the point where the label first differs."""
    walked, p = torch.zeros_like(x), x.clone()
    for _ in range(steps):
        jacobian = torch.autograd.functional.jacobian(lambda v: model(v[None])[0], p)
        z, best = model(p[None])[0].detach(), None
        if int(z.argmax()) != y:
            break
        for c in range(len(z)):
            if c != y:
                w, gap = jacobian[c] - jacobian[y], abs(float(z[c] - z[y]))
                size = float(w.norm() if order == 2 else w.abs().sum())
                if best is None or gap / size < best[0]:
                    best = (gap / size, w / size if order == 2 else w.sign())
        walked = walked + (best[0] + 1e-4) * best[1]
        p = x + (1 + overshoot) * walked
    return p


def slow_distance(model, x, y, norm, tolerance):
    order, out = 2 if norm == 2 else torch.inf, []
    for v, label in zip(x, y.tolist(), strict=True):
        far, low, high = slow_deepfool(model, v, label, order), 0.0, 1.0
        while high - low > tolerance * high and not torch.equal(far, v):
            middle = (low + high) / 2
            other = int(model((v + middle * (far - v))[None]).argmax()) != label
            low, high = (low, middle) if other else (middle, high)
        out.append(high * float((far - v).norm(order)))
    return torch.tensor(out, dtype=torch.float64)


@pytest.mark.parametrize("norm", [2, "inf"])
def test_distance_is_that_of_the_textbook(norm):
    model = dense(gain=2.0)
    x, y = called(model, right=False, dtype=torch.float64)
    got = distance(model, x, y, norm=norm, tolerance=1e-9)
    torch.testing.assert_close(got, slow_distance(model, x, y, norm, 1e-9), rtol=1e-7, atol=0)
    assert (got > 0).any()
    assert ((got == 0) == (model(x).argmax(1) != y)).all()


@pytest.mark.parametrize("norm", [2, "inf"])
def test_distance_to_a_linear_boundary_is_exact(norm):
    model = linear()
    x, y = called(model)
    z, w = model(x).detach().double(), model.weight.detach().double()
    others = torch.stack(
        [
            torch.stack(
                [
                    (z[i, y[i]] - z[i, c]) / (w[y[i]] - w[c]).norm(2 if norm == 2 else 1)
                    for c in range(4)
                    if c != y[i]
                ]
            ).min()
            for i in range(len(x))
        ]
    )
    torch.testing.assert_close(distance(model, x, y, norm=norm), others, rtol=1e-3, atol=0)
    fine = distance(model, x, y, norm=norm, tolerance=1e-6)
    torch.testing.assert_close(fine, others, rtol=1e-5, atol=1e-6)


def test_the_first_order_distance_is_margin_over_gradient():
    model = linear(c=2)
    x, y = called(model)
    want = signals.phi(model(x).detach(), y) / norms(model, x, y).log_input.exp()
    torch.testing.assert_close(distance(model, x, y, tolerance=1e-6), want, rtol=1e-5, atol=1e-6)


def test_distance_is_never_more_than_that_of_a_found_point():
    model = dense(gain=3.0)
    x, y = called(model, dtype=torch.float64)
    far = torch.stack([slow_deepfool(model, v, int(c), 2) for v, c in zip(x, y, strict=True)])
    assert (model(far).argmax(1) != y).all()
    without_search = (far - x).norm(dim=1)
    got = distance(model, x, y)
    assert (got <= without_search * (1 + 1e-9)).all()
    assert (got < without_search / 1.015).any()  # an overshoot of .02 has been taken back


def test_nothing_nearer_than_a_linear_distance_changes_the_label():
    model = linear()
    x, y = called(model)
    u = torch.randn(500, *x.shape, generator=stream(3))
    u = u / u.norm(dim=2, keepdim=True) * 0.999 * distance(model, x, y)[:, None].float()
    assert (model(x + u).argmax(2) == y).all()


def test_an_overshooting_step_is_searched_back():
    """A steep sigmoid far away: the first step lands a long way behind the boundary."""
    model = nn.Sequential(nn.Linear(1, 1), nn.Tanh(), nn.Linear(1, 2)).eval()
    for p, v in zip(model.parameters(), ([[1.0]], [0.0], [[1.0], [-1.0]], [0.0, 0.0]), strict=True):
        p.data = torch.tensor(v)
    x = torch.tensor([[0.5], [2.0], [3.0], [-1.0]])
    got = distance(model, x, torch.tensor([0, 0, 0, 0]))
    torch.testing.assert_close(got, torch.tensor([0.5, 2.0, 3.0, 0.0]).double(), rtol=1e-4, atol=0)


def test_the_box_is_kept():
    """Boundary at x_0 + x_1 = 3/2 in the unit square; x_0 is at its wall, so that the way is along x_1."""
    model = nn.Linear(2, 2).eval()
    model.weight.data, model.bias.data = torch.tensor([[0.0, 0.0], [1.0, 1.0]]), torch.tensor([0.0, -1.5])
    x, y = torch.tensor([[1.0, 0.2], [0.5, 0.5]]), torch.tensor([0, 0])
    want = torch.tensor([0.3, 0.5 / 2**0.5]).double()
    torch.testing.assert_close(distance(model, x, y, box=(0.0, 1.0)), want, rtol=1e-3, atol=0)
    assert distance(model, x, y)[0].item() == pytest.approx(0.3 / 2**0.5, rel=1e-3)


def test_without_another_label_it_is_the_farthest_corner():
    model = nn.Linear(2, 2).eval()
    model.weight.data, model.bias.data = torch.zeros(2, 2), torch.tensor([1.0, 0.0])
    x, y = torch.tensor([[0.2, 0.9], [0.5, 0.5]]), torch.tensor([0, 1])
    for norm, want in ((2, (0.8**2 + 0.9**2) ** 0.5), ("inf", 0.9)):
        with pytest.warns(Floored, match="1 of 2 distances"):
            got = distance(model, x, y, box=(0.0, 1.0), norm=norm)
        assert got.tolist() == pytest.approx([want, 0.0])
    with pytest.warns(Floored):
        assert distance(model, x, y)[0] > 1e11


def test_a_record_on_the_boundary():
    model = nn.Linear(1, 2, bias=False).eval()
    model.weight.data = torch.tensor([[1.0], [-1.0]])
    assert distance(model, torch.zeros(1, 1), torch.tensor([0])) < 2e-4


def test_few_classes_are_the_likeliest_ones():
    """The nearest boundary can be that of an unlikely class."""
    model = linear(d=20, c=30)
    x, y = called(model, d=20)
    few, all_ = distance(model, x, y, classes=1), distance(model, x, y, classes=29)
    assert (few >= all_ * (1 - 1e-3)).all()
    assert (few > all_ * 1.01).any()


# Curvature


def hessian_trace(model, x, y):
    out = []
    for v, c in zip(x, y, strict=True):
        h = torch.autograd.functional.hessian(lambda t, c=c: cross_entropy(model(t[None]), c[None]), v)
        out.append(h.flatten(1).reshape(v.numel(), v.numel()).trace())
    return torch.stack(out)


def gauss_newton_trace(model, x, y):
    out = []
    for v in x:
        jacobian = torch.autograd.functional.jacobian(lambda t: model(t[None])[0], v).reshape(-1, v.numel())
        p = model(v[None])[0].detach().softmax(0)
        out.append((jacobian.T @ (p.diag() - p[:, None] * p) @ jacobian).trace())
    return torch.stack(out)


def naive_trace(model, x, y):
    """The wrong version: sum_c p_c |grad z_c|^2 - |sum_c p_c grad z_c|^2 as it stands."""
    out = []
    for v in x:
        jacobian = torch.autograd.functional.jacobian(lambda t: model(t[None])[0], v)
        p = model(v[None])[0].detach().softmax(0)
        out.append((p * jacobian.square().sum(1)).sum() - (p @ jacobian).square().sum())
    return torch.stack(out)


def test_curvature_is_the_trace_of_the_hessian():
    model = dense()
    x, y = called(model, right=False, dtype=torch.float64)
    phi = signals.phi(model(x).detach(), y)
    x, y = x[phi.abs() < 10], y[phi.abs() < 10]
    assert len(x) > 30
    torch.testing.assert_close((-curvature(model, x, y)).exp(), hessian_trace(model, x, y), rtol=1e-9, atol=0)


def test_curvature_of_images():
    g = stream(0)
    model = (
        nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(27, 3))
        .double()
        .eval()
    )
    for p in model.parameters():
        p.data = torch.randn(p.shape, generator=g).double() / 3
    x, y = torch.randn(5, 2, 5, 5, generator=g).double(), torch.tensor([0, 1, 2, 0, 1])
    torch.testing.assert_close(
        (-curvature(model, x, y)).exp(), gauss_newton_trace(model, x, y), rtol=1e-9, atol=0
    )
    assert distance(model, x, y).isfinite().all()


def test_of_a_smooth_net_it_is_the_gauss_newton_trace():
    model = dense(act=nn.Tanh)
    x, y = called(model, right=False, dtype=torch.float64)
    got = (-curvature(model, x, y)).exp()
    torch.testing.assert_close(got, gauss_newton_trace(model, x, y), rtol=1e-9, atol=0)
    assert ((got - hessian_trace(model, x, y)).abs() > 0.05 * got).any()


def exact_trace(w, b, x, y):
    """-log of the trace for a linear model, in 50 digits."""
    getcontext().prec = 50
    w, b, x = [[Decimal(v) for v in row] for row in w], [Decimal(v) for v in b], [Decimal(v) for v in x]
    z = [sum((a * v for a, v in zip(row, x, strict=True)), c) for row, c in zip(w, b, strict=True)]
    e = [(v - z[y]).exp() for v in z]
    p = [v / sum(e) for v in e]
    second = sum(q * sum(v * v for v in row) for q, row in zip(p, w, strict=True))
    mean = [sum(q * row[j] for q, row in zip(p, w, strict=True)) for j in range(len(x))]
    return float(-(second - sum(v * v for v in mean)).ln())


@pytest.mark.parametrize("phi", [-60, -20, 0, 20, 60])
@pytest.mark.parametrize("c", [2, 4])
def test_sure_records_agree_with_fifty_digits(phi, c):
    model = linear(c=c)
    x, y = called(model)
    with torch.no_grad():  # the first record's logits are moved to this phi
        x, y = x[:1], torch.tensor([1])
        model.bias[1] += phi - signals.phi(model(x), y)[0].float()
    want = exact_trace(model.weight.tolist(), model.bias.tolist(), x[0].tolist(), 1)
    assert curvature(model, x, y).item() == pytest.approx(want, rel=1e-5, abs=3e-5)
    if phi in (20, 60):
        assert naive_trace(model, x, y).log().neg().item() != pytest.approx(want, rel=0.01)


def test_curvature_is_a_black_box_number_and_flatness():
    model = dense()
    x, y = called(model, right=False, dtype=torch.float64)
    more = nn.functional.logsigmoid(-signals.phi(model(x).detach(), y))
    torch.testing.assert_close(curvature(model, x, y) + more, flatness(model, x, y))


class LookUp(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(4, 3)
        self.table.weight.data = torch.eye(4)[:, :3]

    def forward(self, x):
        return self.table(x[:, 0].long())


@SCORES
def test_a_model_without_input_gradients_is_floored(attack):
    x, y = torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([0, 2, 0])
    held = LookUp().eval()
    frozen = copy.deepcopy(held).requires_grad_(False)
    with pytest.warns(Floored, match=" of 3 "):
        score = attack(held, x, y)
    with pytest.warns(Floored):
        assert torch.equal(score, attack(frozen, x, y))
    assert score.isfinite().all()


# Both


@pytest.mark.filterwarnings("ignore::glasslab.checks.Floored")
@SCORES
def test_is_its_own_records_score(attack):
    """In any order, alone or among others, in batches of any size."""
    model = dense(gain=2.0)
    x, y = called(model, n=300, right=False, dtype=torch.float64)
    score, p = attack(model, x, y), torch.randperm(300, generator=stream(0))
    torch.testing.assert_close(attack(model, x[p], y[p]), score[p], rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(attack(model, x[:1], y[:1]), score[:1], rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(attack(model, x, y, batch=7), score, rtol=1e-6, atol=1e-9)


def test_a_walk_that_stalls_goes_straight_on(monkeypatch):
    """Where three classes meet a walk goes to and fro."""
    model = dense(gain=2.0)
    x, y = called(model, n=300, dtype=torch.float64)

    def lost(steps):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Floored)
            return int((distance(model, x, y, steps=steps) > 1e11).sum())

    few, many = lost(3), lost(50)
    monkeypatch.setattr(module, "DOUBLINGS", 0)
    assert few < lost(3) / 3
    assert many < lost(50)


@SCORES
def test_float32_and_float64_agree(attack):
    model = dense(gain=2.0)
    x, y = called(model, right=False, dtype=torch.float64)
    got = attack(copy.deepcopy(model).float(), x.float(), y)
    torch.testing.assert_close(got, attack(model, x, y), rtol=3e-4, atol=1e-5)


@SCORES
def test_leaves_everything_as_it_was(attack):
    model = dense()
    model[0].requires_grad_(False)
    x, y = called(model, dtype=torch.float64)
    held, state = x.clone(), copy.deepcopy(model.state_dict())
    with torch.no_grad():
        score = attack(model, x, y)
    assert torch.equal(score, attack(model, x, y))
    assert torch.equal(x, held)
    assert not x.requires_grad
    assert all(torch.equal(a, b) for a, b in zip(state.values(), model.state_dict().values(), strict=True))
    assert [p.requires_grad for p in model.parameters()] == [False, False, True, True, True, True]
    assert all(p.grad is None for p in model.parameters())
    assert score.dtype == torch.float64


@SCORES
def test_records_that_are_all_misclassified_or_alone(attack):
    model = linear()
    x, y = called(model, n=3)
    assert attack(model, x, (y + 1) % 4).isfinite().all()
    assert attack(model, x[:1], y[:1]).shape == (1,)


def test_the_misclassified_are_nearest():
    model = linear()
    x, y = called(model)
    assert distance(model, x, (y + 1) % 4).tolist() == [0.0] * len(x)


def test_refuses():
    model = linear()
    x, y = called(model)
    raw = inspect.unwrap(distance)
    for settings, match in (
        ({"steps": 0}, "steps must be 1 or more, got 0"),
        ({"classes": 0}, "classes must be 1 or more, got 0"),
        ({"tolerance": 0.0}, "tolerance in .0, 1., got 0.02 and 0.0"),
        ({"overshoot": -1.0}, "overshoot must be 0[+]"),
        ({"box": (0.0, 1.0)}, "box must hold x"),
        ({"norm": 1}, "norm must be 2 or 'inf', got 1"),
    ):
        with pytest.raises(ValueError, match=match):
            raw(model, x, y, **settings)
    for attack in (distance, curvature):
        with pytest.raises(ValueError, match="y must lie in 0 .. 3, got labels from 4 to 4"):
            attack(model, x, torch.full_like(y, 4))
        with pytest.raises(ValueError, match="x must be finite, got 1 NaN"):
            attack(model, x.masked_fill(x == x.max(), torch.nan), y)
        with pytest.raises(ValueError, match="eval|train"):
            attack(nn.Sequential(nn.Dropout(), linear()).train(), x, y)


@pytest.mark.parametrize("attack", [distance, curvature])
def test_finds_a_planted_leak(attack):
    game, truth = ridge(leaks=True, seed=0)
    assert auc(attack(game.model, game.x, game.y), truth) > 0.8


@SCORES
def test_finds_nothing_where_nothing_is(attack):
    worlds = [ridge(leaks=False, seed=s, n=200, d=150, m=2) for s in range(20)]
    found = torch.tensor([auc(attack(g.model, g.x, g.y), truth) - 0.5 for g, truth in worlds])
    assert found.mean().abs() <= 4 * found.std() / 20**0.5  # a false alarm in 16,000
