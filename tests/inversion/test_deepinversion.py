import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from glasslab.datasets import load
from glasslab.nets import Scale
from glasslab.split import stream
from inversion.deepinversion import deepinversion, statistic, variation, watched

SHAPE = (1, 6, 6)
Y = torch.arange(8) % 3
PLAIN = {"shape": SHAPE, "shift": 0, "flip": False}


def net(seed=0, dtype=torch.float64, classes=3):
    """Two BatchNorm layers, the first of them before anything else, with statistics of their own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.BatchNorm2d(1),
            nn.Conv2d(1, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.Sigmoid(),  # smooth, so that a difference quotient can check the gradient
            nn.Flatten(),
            nn.Linear(144, classes),
        )
        for layer in (model[0], model[2]):
            layer.running_mean.uniform_(-1, 1)
            layer.running_var.uniform_(0.5, 2)
            nn.init.uniform_(layer.weight, 0.5, 2)
            nn.init.uniform_(layer.bias, -1, 1)
    return model.to(dtype).eval()


class Crossed(nn.Module):
    """Names its layers in another order than it calls them, one of them twice."""

    def __init__(self):
        super().__init__()
        self.late, self.early = nn.BatchNorm2d(1), nn.BatchNorm2d(1)
        self.early.running_mean.fill_(3.0)
        self.head = nn.Linear(36, 3)

    def forward(self, x):
        return self.head(self.late(self.late(self.early(x))).flatten(1))


def batch(seed=0, n=8, shape=SHAPE):
    return torch.rand(n, *shape, generator=stream(seed, "batch"), dtype=torch.float64)


def inputs(model, x):
    """What enters each BatchNorm layer of a chain, in order."""
    entered = []
    for layer in model:
        if isinstance(layer, nn.BatchNorm2d):
            entered.append((layer, x.detach()))
        x = layer(x)
    return entered


# The formulas, one channel and one pixel at a time


def textbook_statistic(model, x, first=10.0, wrong=""):
    total = 0.0
    for place, (layer, a) in enumerate(inputs(model, x)):
        a = layer(a).detach() if wrong == "output" else a
        off_mean, off_var = [], []
        for k in range(a.shape[1]):
            v = [float(pixel) for image in a[:, k] for row in image for pixel in row]
            mean = sum(v) / len(v)
            var = sum((p - mean) ** 2 for p in v) / (len(v) - (wrong == "unbiased"))
            off_mean.append(mean - float(layer.running_mean[k]))
            off_var.append(var - float(layer.running_var[k]))
        squares = [sum(d * d for d in off) for off in (off_mean, off_var)]
        term = sum(squares) if wrong == "squared" else sum(math.sqrt(s) for s in squares)
        weight = first if place == (1 if wrong == "last" else 0) else 1.0
        total += weight * term
    return total


def textbook_variation(x, norm):
    sums = []
    for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
        d = [
            float(image[r + down, q + right] - image[r, q])
            for image in x.flatten(0, 1)
            for r in range(x.shape[2] - down)
            for q in range(x.shape[3])
            if 0 <= q + right < x.shape[3]
        ]
        sums.append(math.sqrt(sum(v * v for v in d)) if norm == "l2" else sum(map(abs, d)) / len(d))
    return sum(sums) / 4


def textbook_cost(model, x, y, tv=1e-4, tv_norm="l2", l2=0.0, bn=10.0, first=10.0):
    """By torch's own functions, so that it has a gradient."""
    d = [x[..., 1:] - x[..., :-1], x[..., 1:, :] - x[..., :-1, :]]
    d += [x[..., 1:, 1:] - x[..., :-1, :-1], x[..., 1:, :-1] - x[..., :-1, 1:]]
    total = sum((v.square().sum().sqrt() if tv_norm == "l2" else v.abs().mean()) for v in d) / 4 * tv
    total = total + l2 * sum(image.square().sum().sqrt() for image in x) / len(x)
    a = x
    for layer in model:
        if isinstance(layer, nn.BatchNorm2d):
            m, v = a.mean((0, 2, 3)), a.var((0, 2, 3), correction=0)
            off = (m - layer.running_mean).square().sum().sqrt() + (
                v - layer.running_var
            ).square().sum().sqrt()
            total = total + bn * (first if layer is model[0] else 1.0) * off
        a = layer(a)
    return total + cross_entropy(a, y)


def textbook_adam(model, y, steps, lr, seed=0, **weights):
    """(costs, iterates) with neither shift nor mirror."""
    x = torch.rand((len(y), *SHAPE), generator=stream(seed, "deepinversion")).double()
    m, v, costs, iterates = torch.zeros_like(x), torch.zeros_like(x), [], []
    for t in range(1, steps + 2):
        x.requires_grad_()
        cost = textbook_cost(model, x, y, **weights)
        grad = torch.autograd.grad(cost, x)[0]
        costs.append(cost.item())
        iterates.append(x.detach())
        m, v = 0.9 * m + 0.1 * grad, 0.999 * v + 0.001 * grad**2
        x = x.detach() - lr * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
    return costs, iterates


# The statistic


def test_the_statistic_is_that_of_the_textbook():
    model, x = net(), batch()
    for first in (1.0, 10.0):
        got = statistic(model, x, first=first).item()
        assert got == pytest.approx(textbook_statistic(model, x, first), rel=1e-10)


@pytest.mark.parametrize("wrong", ["output", "unbiased", "squared", "last"])
def test_the_textbook_tells_mistakes_apart(wrong):
    model, x = net(), batch()
    assert abs(textbook_statistic(model, x, wrong=wrong) - statistic(model, x).item()) > 1e-3


def test_the_statistic_is_0_where_the_batch_has_the_running_statistics():
    model, x = net(), batch()
    for place in range(2):  # the second layer's inputs depend on the first one's statistics
        layer, a = inputs(model, x)[place]
        layer.running_mean.copy_(a.mean((0, 2, 3)))
        layer.running_var.copy_(a.var((0, 2, 3), correction=0))
    assert statistic(model, x).item() < 1e-12
    assert statistic(model, x[torch.randperm(8, generator=stream(0))]).item() < 1e-12
    assert textbook_statistic(model, x, wrong="unbiased") > 1e-3
    assert textbook_statistic(model, x, wrong="output") > 1e-1
    # Image by image the statistics are others: the batch has them, none of its images has.
    assert min(statistic(model, image[None]).item() for image in x) > 1e-2


def test_the_statistic_is_that_of_tables_too():
    model = nn.Sequential(nn.BatchNorm1d(5), nn.Linear(5, 2)).eval()
    x = torch.randn(20, 5, generator=stream(0))
    want = 10 * (x.mean(0).norm() + (x.var(0, correction=0) - 1).norm())
    assert statistic(model, x).item() == pytest.approx(want.item(), rel=1e-6)


def test_the_first_layer_is_the_one_called_first():
    model = Crossed().eval()
    x = torch.zeros(8, 1, 6, 6)
    with watched(model) as seen:
        model(x)
    assert [layer is model.early for layer, _ in seen] == [True, False, False]
    off = 10 * (3 + 1)  # the early layer: mean 0 instead of 3, variance 0 instead of 1
    entered = -3 / math.sqrt(1 + 1e-5)
    off += (abs(entered) + 1) + (abs(entered) / math.sqrt(1 + 1e-5) + 1)
    assert statistic(model, x).item() == pytest.approx(off, rel=1e-6)


def test_a_statistic_of_0_has_a_finite_gradient():
    model = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(36, 3)).double().eval()
    x = torch.ones(8, *SHAPE, dtype=torch.float64).requires_grad_()
    model[0].running_mean.fill_(1.0)
    model[0].running_var.fill_(0.0)
    value = statistic(model, x) + variation(x)
    assert value == 0
    assert torch.autograd.grad(value, x)[0].isfinite().all()


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_variation_is_that_of_the_textbook(norm):
    x = batch(shape=(2, 4, 5))
    assert variation(x, norm).item() == pytest.approx(textbook_variation(x, norm), rel=1e-12)
    assert variation(x.flip(-1), norm).item() == pytest.approx(variation(x, norm).item(), rel=1e-12)
    assert variation(torch.ones_like(x), norm) == 0


# The descent


@pytest.mark.parametrize(
    "weights",
    [{}, {"tv": 0.3, "l2": 0.2, "bn": 1.0, "first": 2.0}, {"tv": 0.5, "tv_norm": "l1", "l2": 0.1, "bn": 0.0}],
)
def test_the_batch_moves_as_adam_of_the_textbook_moves_it(weights):
    model = net()
    costs, iterates = textbook_adam(model, Y, 12, 0.05, **weights)
    found = deepinversion(model, Y, steps=12, lr=0.05, **weights, **PLAIN)
    best = min(range(13), key=costs.__getitem__)
    torch.testing.assert_close(found.x, iterates[best], rtol=1e-6, atol=1e-9)
    assert found.cost.tolist() == pytest.approx([costs[best]] * 8, rel=1e-8)
    want = model(found.x).softmax(1).gather(1, Y[:, None])[:, 0]
    torch.testing.assert_close(found.confidence, want.detach())
    assert (found.steps == 12).all()
    assert (found.queries == 0).all()
    assert found.stop_reason == ("max_iter",) * 8


def test_the_best_batch_comes_back_and_not_the_last():
    model = net()
    costs, iterates = textbook_adam(model, Y, 30, 3.0)  # steps so large that the cost rises again
    best = min(range(31), key=costs.__getitem__)
    assert best < 30
    assert costs[30] > 1.2 * costs[best]
    found = deepinversion(model, Y, steps=30, lr=3.0, **PLAIN)
    torch.testing.assert_close(found.x, iterates[best], rtol=1e-5, atol=1e-6)
    own = textbook_cost(model, found.x, Y).item()  # the cost is that of the batch that has it
    assert found.cost[0].item() == pytest.approx(own, rel=1e-8)


def test_start_is_among_the_iterates():
    model = net()
    found = deepinversion(model, Y, steps=0, **PLAIN)
    assert torch.equal(found.x, torch.rand((8, *SHAPE), generator=stream(0, "deepinversion")).double())
    assert (found.steps == 0).all()


def test_views_are_shifted_by_up_to_2_pixels_and_mirrored():
    seen = []

    class Camera(nn.Module):
        def forward(self, x):
            seen.append(x.detach().clone())
            return x

    model = nn.Sequential(Camera(), *net(dtype=torch.float32)).eval()
    deepinversion(model, Y, shape=SHAPE, steps=120, lr=0.0)
    start, views = seen[0], []
    for view in seen[:121]:
        assert torch.equal(view.flatten(1).sort().values, start.flatten(1).sort().values)
    base = seen[-1]  # the image as it is: confidence
    for view in seen[:121]:
        kinds = [
            (down, right, mirror)
            for down in range(-2, 3)
            for right in range(-2, 3)
            for mirror in (False, True)
            if torch.equal(roll(base, down, right, mirror), view)
        ]
        views += kinds[:1]
    # Each of the 50 views is expected 2.4 times; a shift is missing with the chance .8^121 = 2e-12. The
    # share of mirrors is 0.5 with a standard error of 0.045.
    assert len(views) == 121
    assert len(set(views)) > 30
    assert {d for d, _, _ in views} == {r for _, r, _ in views} == {-2, -1, 0, 1, 2}
    assert 0.3 < sum(m for _, _, m in views) / 121 < 0.7


def roll(x, down, right, mirror):
    view = x.roll((down, right), (-2, -1))
    return view.flip(-1) if mirror else view


def test_clip_keeps_pixels_in_range_and_the_seed_decides():
    model = net()
    loose = deepinversion(model, Y, shape=SHAPE, steps=10, lr=0.5)
    tight = deepinversion(model, Y, shape=SHAPE, steps=10, lr=0.5, clip=(0.0, 1.0))
    assert loose.x.max() > 1
    assert tight.x.min() >= 0
    assert tight.x.max() <= 1
    again = deepinversion(model, Y, shape=SHAPE, steps=10, lr=0.5)
    assert torch.equal(again.x, loose.x)
    assert not torch.equal(deepinversion(model, Y, shape=SHAPE, steps=10, lr=0.5, seed=1).x, loose.x)


def test_the_curve_holds_confidence_after_every_watch_steps():
    model = net()
    found = deepinversion(model, Y, steps=7, lr=0.05, watch=3, **PLAIN)
    _, iterates = textbook_adam(model, Y, 7, 0.05)
    want = torch.stack([model(iterates[i]).softmax(1).gather(1, Y[:, None])[:, 0] for i in (3, 6)])
    torch.testing.assert_close(found.curve, want.detach())
    assert deepinversion(model, Y, steps=7, **PLAIN).curve is None


class Breaks(nn.Module):
    """Turns its inputs into NaN, or raises, from call `at` on."""

    def __init__(self, at, error=None):
        super().__init__()
        self.calls, self.at, self.error = 0, at, error

    def forward(self, x):
        self.calls += 1
        if self.error is not None and self.calls == self.at:
            raise self.error
        return x * math.nan if self.calls == self.at else x


def test_a_cost_that_is_not_finite_ends_in_diverged_with_the_best_batch():
    found = deepinversion(nn.Sequential(Breaks(6), *net()).eval(), Y, steps=20, **PLAIN)
    want = deepinversion(net(), Y, steps=4, **PLAIN)
    assert found.stop_reason == ("diverged",) * 8
    assert (found.steps == 5).all()
    assert torch.equal(found.x, want.x)
    assert torch.equal(found.cost, want.cost)


def digest(model):
    rows = {name: t.clone() for name, t in model.state_dict().items()}
    return (
        rows,
        [(p.requires_grad, p.grad) for p in model.parameters()],
        [m.training for m in model.modules()],
    )


def hooks(model):
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules())


@pytest.mark.parametrize("error", [None, RuntimeError("on the way")])
def test_the_target_is_left_as_it_was_also_after_an_exception(error):
    model = nn.Sequential(Breaks(5, error), *net()).eval()
    model[2].bias.requires_grad_(False)
    own = model[1].register_forward_pre_hook(lambda layer, entered: None)
    x, y, state = batch(), Y.clone(), torch.get_rng_state()
    out, (rows, flags, modes) = model(x).detach(), digest(model)
    if error is None:
        deepinversion(model, y, shape=SHAPE, steps=8)
    else:
        with pytest.raises(RuntimeError, match="on the way"):
            deepinversion(model, y, shape=SHAPE, steps=8)
    after, flags_after, modes_after = digest(model)
    assert rows.keys() == after.keys()
    assert all(torch.equal(t, after[name]) for name, t in rows.items())
    assert (flags_after, modes_after) == (flags, modes)
    assert torch.equal(model(x), out)
    assert hooks(model) == 1  # the caller's own
    own.remove()
    assert torch.equal(y, Y)
    assert torch.equal(torch.get_rng_state(), state)


def test_it_runs_where_gradients_are_off():
    with torch.no_grad():
        found = deepinversion(net(), Y, steps=3, **PLAIN)
    assert torch.equal(found.x, deepinversion(net(), Y, steps=3, **PLAIN).x)
    assert not found.x.requires_grad


def test_digits_come_back_with_the_target_s_statistics():
    """A small net, 70 steps: its labels are found, and the prior keeps what enters its layers usual."""
    data = load("digits")
    x = data.x.reshape(-1, 1, 8, 8).float()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        scale = Scale(x.mean()[None], x.std()[None], (1, 8, 8))
        model = nn.Sequential(
            scale,
            *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten()),
            nn.Linear(512, 10),
        )
    adam, g = torch.optim.Adam(model.parameters(), lr=3e-3), stream(0, "rows")
    for _ in range(80):
        rows = torch.randint(len(x), (64,), generator=g)
        adam.zero_grad()
        cross_entropy(model(x[rows]), data.y[rows]).backward()
        adam.step()
    model.eval()
    y = torch.arange(20) % 10
    settings = {"shape": (1, 8, 8), "steps": 70, "shift": 1, "flip": False, "clip": (0.0, 1.0)}
    found, bare = (deepinversion(model, y, **settings, bn=weight) for weight in (0.3, 0.0))
    start = deepinversion(model, y, **settings | {"steps": 0})
    assert (found.confidence > 0.5).float().mean() > 0.9
    assert statistic(model, found.x) < 0.5 * statistic(model, start.x)
    assert statistic(model, found.x) < 0.5 * statistic(model, bare.x)


# What is refused


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"y": Y[:7]}, r"y must hold 8\+ labels, whose batch has statistics, got 7"),
        ({"y": Y + 1}, "y must hold labels from 0 to 2, got 3"),
        ({"y": Y - 1}, "y must hold labels from 0, got -1"),
        ({"model": nn.Sequential(nn.Flatten(), nn.Linear(36, 3)).eval()}, "BatchNorm layers, got none"),
        ({"model": net().train()}, "model must be in eval mode, got training mode"),
        ({"steps": -1}, "steps must be 0 or more, got -1"),
        ({"shift": 6}, "shift must be from 0 to 5 pixels, got 6"),
    ],
)
def test_wrong_arguments_are_refused(change, match):
    with pytest.raises(ValueError, match=match) as caught:
        deepinversion(**{"model": net(), "y": Y, "shape": SHAPE, "steps": 2} | change)
    assert "\n" not in str(caught.value)


def test_batchnorm_without_running_statistics_is_refused():
    model = nn.Sequential(nn.BatchNorm2d(1, track_running_stats=False), nn.Flatten(), nn.Linear(36, 3)).eval()
    for call in (lambda: deepinversion(model, Y, shape=SHAPE), lambda: statistic(model, batch().float())):
        with pytest.raises(ValueError, match="model must keep running statistics, got 1 BatchNorm layers"):
            call()
