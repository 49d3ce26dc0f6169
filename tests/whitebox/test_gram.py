"""Inner products of margin gradients against gradients formed record by record."""

import copy
import warnings

import pytest
import torch
from torch import nn

from glasslab import signals
from glasslab.checks import Floored
from glasslab.split import stream
from whitebox import gram as module
from whitebox.gram import FREE, Gram, answered, foreign, grams, normed, pooled, weights

EXACT = {"rtol": 1e-9, "atol": 1e-10}


def drawn(model, seed=0, scale=0.5):
    g = stream(seed, "weights")
    for w in model.double().parameters():
        w.data = torch.randn(w.shape, generator=g, dtype=torch.float64) * scale
    return model.eval()


def records(n, *shape, c=3, seed=0):
    g = stream(seed, "records")
    return torch.randn(n, *shape, generator=g, dtype=torch.float64), torch.randint(c, (n,), generator=g)


class Mean(nn.Module):
    def forward(self, x):
        return x.mean(1)


class Residual(nn.Module):
    """Two convolutions around a way past them; the norm reads their sum, or the second one alone."""

    def __init__(self, *, before):
        super().__init__()
        self.one, self.two = nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1, bias=False)
        self.norm, self.last, self.before = nn.BatchNorm2d(2), nn.Linear(32, 3), before

    def forward(self, x):
        h = self.two(torch.relu(self.one(x)))
        h = self.norm(h) + x if self.before else self.norm(h + x)
        return self.last(torch.relu(h).flatten(1))


def dense(bias=True):
    return nn.Sequential(nn.Linear(5, 7, bias), nn.ReLU(), nn.Linear(7, 3, bias))


def convolutions(bias=True):
    first, second = nn.Conv2d(2, 3, 3, stride=2, padding=1, bias=bias), nn.Conv2d(3, 4, 2, bias=bias)
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Flatten(), nn.Linear(16, 3, bias))


NETS = {
    "dense": (dense, (5,)),
    "dense, no biases": (lambda: dense(False), (5,)),
    "convolutions": (convolutions, (2, 6, 6)),
    "convolutions, no biases": (lambda: convolutions(False), (2, 6, 6)),
    "positions": (lambda: nn.Sequential(nn.Linear(5, 4), nn.Tanh(), Mean(), nn.Linear(4, 3)), (6, 5)),
    "one layer": (lambda: nn.Linear(5, 3), (5,)),
}
every = pytest.mark.parametrize("name", NETS)


def world(name, n=11):
    make, shape = NETS[name]
    return drawn(make()), *records(n, *shape)


# The slow twin: one record at a time


def twin(model, x, y):
    """Layer -> gradients of the margins [n, size], and the weights [size], as [weight | bias] rows."""
    held = {}
    for name, m in model.named_modules():
        if not isinstance(m, nn.Linear | nn.Conv2d):
            continue
        own = [m.weight] + ([] if m.bias is None else [m.bias])
        rows = []
        for i in range(len(x)):
            z = model(x[i : i + 1])
            margin = z[0, y[i]] - torch.cat([z[0, : y[i]], z[0, y[i] + 1 :]]).exp().sum().log()
            grads = torch.autograd.grad(margin, own)
            rows.append(torch.cat([g.reshape(len(m.weight), -1) for g in grads], 1).flatten())
        theta = torch.cat([p.detach().reshape(len(m.weight), -1) for p in own], 1).flatten()
        held[name] = torch.stack(rows), theta
    return held


@every
def test_each_layer_is_what_gradients_give(name):
    model, x, y = world(name)
    found, held = dict(grams(model, x, y)), twin(model, x, y)
    assert list(found) == list(held)
    for layer, (J, theta) in held.items():
        got = found[layer]
        torch.testing.assert_close(got.G, J @ J.T, **EXACT)
        torch.testing.assert_close(got.b, J @ theta, **EXACT)
        torch.testing.assert_close(weights(model, layer).flatten(), theta, rtol=0, atol=0)
        assert got.square == pytest.approx(float(theta @ theta), rel=1e-12)
        assert got.size == len(theta)


@every
def test_all_layers_as_one_are_gradients_in_units_of_the_weights(name):
    model, x, y = world(name)
    got = pooled([g for _, g in grams(model, x, y)])
    parts = [(J / theta.square().mean().sqrt(), theta) for J, theta in twin(model, x, y).values()]
    J = torch.cat([J for J, _ in parts], 1)
    theta = torch.cat([theta / theta.square().mean().sqrt() for _, theta in parts])
    torch.testing.assert_close(got.G, J @ J.T, **EXACT)
    torch.testing.assert_close(got.b, J @ theta, **EXACT)
    assert got.size == len(theta)
    assert got.square == pytest.approx(float(theta @ theta), rel=1e-12)


@every
def test_the_last_layers_product_is_an_answer(name):
    model, x, y = world(name)
    found = list(grams(model, x, y))
    z = model(x).detach()
    torch.testing.assert_close(answered(z, y), found[-1][1].b, **EXACT)
    others = [torch.allclose(g.b, answered(z, y), rtol=1e-6) for _, g in found[:-1]]
    assert all(others) == ("no biases" in name or name == "one layer")  # Euler: without biases in every layer
    torch.testing.assert_close(answered(z.log_softmax(-1), y), answered(z, y), **EXACT)


def test_answers_far_out_are_finite():
    z = torch.tensor([[60.0, 0.0, -3.0], [1e4, -1e4, 0.0]])
    got = answered(z, torch.tensor([0, 0]))
    assert got.dtype == torch.float64
    assert got[0] == pytest.approx(60 - (0 * 1 - 3 * 2.718281828459045**-3) / (1 + 2.718281828459045**-3))
    assert got[1] == pytest.approx(1e4)


def test_chunks_change_nothing(monkeypatch):
    model, x, y = world("convolutions", n=40)
    whole = dict(grams(model, x, y))
    monkeypatch.setattr(module, "FORMED", 60)
    for layer, got in grams(model, x, y, memory="16KiB"):
        torch.testing.assert_close(got.G, whole[layer].G, **EXACT)
        torch.testing.assert_close(got.b, whole[layer].b, **EXACT)


def test_layers_are_chosen_by_name_in_the_models_order():
    model, x, y = world("convolutions")
    assert [name for name, _ in grams(model, x, y, layers=("5", "0"))] == ["0", "5"]
    ((name, got),) = grams(model, x, y, layers="last")
    assert name == "5"
    torch.testing.assert_close(got.G, dict(grams(model, x, y))["5"].G, rtol=0, atol=0)


def test_order_of_records_and_single_precision():
    model, x, y = world("convolutions")
    turn = torch.randperm(len(x), generator=stream(0, "turn"))
    (_, got), (_, moved) = (list(grams(model, *rows))[1] for rows in ((x, y), (x[turn], y[turn])))
    torch.testing.assert_close(moved.G, got.G[turn][:, turn], **EXACT)
    torch.testing.assert_close(moved.b, got.b[turn], **EXACT)
    _, single = list(grams(copy.deepcopy(model).float(), x.float(), y))[1]
    torch.testing.assert_close(single.G, got.G, rtol=1e-4, atol=1e-4)
    assert single.G.dtype == single.b.dtype == torch.float64


def test_one_record_and_a_sure_one():
    model, x, y = world("dense")
    _, got = next(grams(model, x[:1], y[:1]))
    torch.testing.assert_close(got.G[0, 0], next(grams(model, x, y))[1].G[0, 0], **EXACT)
    sure = copy.deepcopy(model).float()
    sure[2].bias.data = torch.tensor([60.0, 0, 0])
    y = torch.zeros_like(y)
    assert signals.phi(sure(x.float()).detach(), y).min() > 50
    for _, found in grams(sure, x.float(), y):
        assert (found.G.diagonal() > 0).all()
        assert found.b.isfinite().all()


# Layers whose scale is of no account


def batch_normed(norm, layer=None):
    layer = layer or nn.Conv2d(2, 4, 3)
    return nn.Sequential(layer, norm, nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))


def left_out(model, x, y):
    """(names that are left, those that a warning names)."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        names = [name for name, _ in grams(model, x, y)]
    assert all(w.category is Floored for w in seen)
    return names, [str(w.message).split("'")[1] for w in seen]


@pytest.mark.parametrize(
    "norm",
    [
        nn.BatchNorm2d(4),
        nn.GroupNorm(2, 4),
        nn.InstanceNorm2d(4),
        nn.Sequential(nn.Identity(), nn.BatchNorm2d(4)),
    ],
    ids=["batch", "group", "instance", "behind an identity"],
)
def test_a_layer_before_a_norm_is_left_out(norm):
    x, y = records(12, 2, 6, 6)
    assert left_out(drawn(batch_normed(norm)), x, y) == (["4"], ["0"])


def test_a_batchnorms_layer_does_not_show_it_in_eval_mode():
    """The wrong version, by the product alone, keeps it: gradients in eval mode are not those of training."""
    model, (x, y) = drawn(batch_normed(nn.BatchNorm2d(4))), records(12, 2, 6, 6)
    with torch.no_grad():
        model[1].running_mean += model[0](x).mean((0, 2, 3))
        model[1].running_var *= model[0](x).var((0, 2, 3))
    J, theta = twin(model, x, y)["0"]
    cosine = (J @ theta).abs() / J.norm(dim=1) / theta.norm()
    assert float(cosine.max()) > 100 * FREE
    learned = copy.deepcopy(model).train()
    g = torch.autograd.grad(signals.phi(learned(x), y).sum(), list(learned[0].parameters()))
    flat = torch.cat([t.flatten(1) if t.ndim > 1 else t[:, None] for t in g], 1).flatten()
    assert float(flat @ theta).__abs__() < 1e-3 * float(flat.norm() * theta.norm())


def test_a_norm_behind_a_sum_leaves_its_layers():
    x, y = records(6, 2, 4, 4)
    assert left_out(drawn(Residual(before=False)), x, y) == (["one", "two", "last"], [])
    assert left_out(drawn(Residual(before=True)), x, y) == (["one", "last"], ["two"])
    assert normed(drawn(Residual(before=True)), x, y) == {"two"}


def test_a_layer_that_does_nothing_is_left_out():
    model, x, y = world("dense")
    model[2].weight.data.zero_()
    model[2].bias.data = torch.tensor([1.0, 0, 0]).double()
    assert left_out(model, x, y) == (["2"], ["0"])  # no gradient reaches it


def test_a_scale_that_a_norm_far_behind_takes_away():
    norm = nn.Sequential(nn.AvgPool2d(1), nn.GroupNorm(1, 4))
    model, (x, y) = drawn(batch_normed(norm), scale=2.0), records(12, 2, 6, 6)
    assert normed(model, x, y) == {"1.0"}
    assert left_out(model, x, y) == (["4"], ["0"])


def test_nothing_left_is_an_error():
    x, y = records(6, 5)
    model = drawn(nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3)))
    with (
        pytest.warns(Floored, match="layer '0' left out: its scale changes no answer"),
        pytest.raises(ValueError, match=r"layers must hold one whose scale matters, got \['0'\]"),
    ):
        list(grams(model, x, y))


# A shadow's gradients with a target's answers


def test_a_shadow_that_is_the_target_has_its_own_products():
    model, x, y = world("dense, no biases")
    whole = pooled([g for _, g in grams(model, x, y)])
    got = foreign(whole, model(x).detach(), y)
    torch.testing.assert_close(got.b, whole.b, **EXACT)
    assert got.G is whole.G
    again = foreign(whole, 7 * model(x).detach(), y)  # the units are the shadow's
    assert again.b.square().mean().sqrt() == pytest.approx(float(whole.b.square().mean().sqrt()), rel=1e-12)


def test_answers_of_zero_are_no_division_by_zero():
    whole = Gram(torch.eye(3).double(), torch.ones(3).double(), 1.0, 1)
    assert foreign(whole, torch.zeros(3, 2), torch.zeros(3).long()).b.tolist() == [0.0, 0.0, 0.0]


# Errors, and what stays as it was


def test_errors():
    model, x, y = world("dense")
    with pytest.raises(ValueError, match="model must be in eval mode, got training mode"):
        next(grams(copy.deepcopy(model).train(), x, y))
    with pytest.raises(ValueError, match="layers must name modules with parameters"):
        next(grams(model, x, y, layers="fc"))
    norm = drawn(nn.Sequential(nn.Flatten(), nn.LayerNorm(5)))
    with pytest.raises(ValueError, match="layers must hold a dense layer or a convolution without groups"):
        next(grams(norm, x, y))
    with pytest.raises(ValueError, match="x and y must hold as many records"):
        next(grams(nn.Linear(5, 3).double().eval(), x[:0], y[:0]))


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_stays_as_it_was(fails):
    model, (x, y) = drawn(batch_normed(nn.BatchNorm2d(4))), records(5, 2, 6, 6)
    model[0].weight.requires_grad_(False)
    before = copy.deepcopy(model.state_dict()), x.clone(), y.clone()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Floored)
        if fails:
            with pytest.raises(ValueError, match="y must lie in 0 to 2"):
                list(grams(model, x, y + 3))
        else:
            list(grams(model, x, y))
    assert all(torch.equal(a, model.state_dict()[k]) for k, a in before[0].items())
    assert torch.equal(x, before[1])
    assert fails or torch.equal(y, before[2])
    assert [p.requires_grad for p in model.parameters()] == [False] + 5 * [True]
    assert all(p.grad is None for p in model.parameters())
    assert not any(m.training or m._forward_hooks or m._forward_pre_hooks for m in model.modules())
