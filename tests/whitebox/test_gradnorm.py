import copy
import inspect

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, logsigmoid
from worlds import ridge

from glasslab import signals
from glasslab.checks import Floored
from glasslab.metrics import auc
from glasslab.split import stream
from whitebox.gradients import norms
from whitebox.gradnorm import gradnorm

ORDERS = {1: 1, 2: 2, "inf": torch.inf}


def net(seed=0, dtype=torch.float64):
    """Convolution, norm in eval mode, dense layers; a frozen one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Conv2d(2, 3, 3, padding=1),
            nn.BatchNorm2d(3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(48, 5),
            nn.Tanh(),
            nn.Linear(5, 4),
        )
        model[1].running_mean.normal_()
    model[4].weight.requires_grad_(False)
    return model.to(dtype).eval()


def records(n=12, seed=0, dtype=torch.float64):
    g = stream(seed, "gradnorm")
    return torch.randn(n, 2, 4, 4, generator=g).to(dtype), torch.randint(4, (n,), generator=g)


def binary(dtype=torch.float32):
    """Logits +-v x / 2 on one feature: phi = x for label 1."""
    model = nn.Linear(1, 2, bias=False)
    model.weight.data = torch.tensor([[-0.5], [0.5]])
    return model.to(dtype).eval()


def textbook(model, x, y, wanted, order, of):
    """A record after another, with autograd."""
    model, scores = copy.deepcopy(model), []
    for p in model.parameters():
        p.requires_grad_()
    for i in range(len(x)):
        one = x[i : i + 1].clone().requires_grad_()
        z = model(one)
        others = [z[0, c] for c in range(z.shape[1]) if c != y[i]]
        value = (
            cross_entropy(z, y[i : i + 1])
            if of != "margin"
            else z[0, y[i]] - torch.stack(others).logsumexp(0)
        )
        inputs = (
            [one]
            if of == "input"
            else [p for name, p in model.named_parameters() if name.split(".")[0] in wanted]
        )
        flat = torch.cat([g.flatten() for g in torch.autograd.grad(value, inputs)])
        scores.append(-flat.norm(order).log())
    return torch.stack(scores)


@pytest.mark.parametrize("norm", ORDERS)
@pytest.mark.parametrize(
    ("of", "layers", "wanted"),
    [
        ("loss", None, "0146"),
        ("margin", None, "0146"),
        ("loss", "last", "6"),
        ("margin", ("0", "4"), "04"),
        ("input", None, ""),
    ],
)
def test_is_that_of_the_textbook(of, norm, layers, wanted):
    model, (x, y) = net(), records()
    got = gradnorm(model, x, y, layers=layers, norm=norm, of=of)
    torch.testing.assert_close(got, textbook(model, x, y, wanted, ORDERS[norm], of), rtol=1e-9, atol=1e-9)


def accumulated(model, x, y):
    """The wrong version of public code: no zero_grad, so that record i gets the sum of gradients 1 .. i."""
    model, scores = copy.deepcopy(model), []
    for p in model.parameters():
        p.requires_grad_()
    for i in range(len(x)):
        cross_entropy(model(x[i : i + 1]), y[i : i + 1]).backward()
        scores.append(-torch.cat([p.grad.flatten() for p in model.parameters()]).norm().log())
    return torch.stack(scores).detach()


def test_each_record_has_a_gradient_of_its_own():
    model, (x, y) = net(), records()
    p = torch.randperm(len(x), generator=stream(1))
    score = gradnorm(model, x, y)
    torch.testing.assert_close(gradnorm(model, x[p], y[p]), score[p], rtol=1e-9, atol=1e-9)
    assert ((accumulated(model, x, y) - score)[1:].abs() > 0.01).any()
    assert not torch.allclose(accumulated(model, x[p], y[p]), accumulated(model, x, y)[p], atol=0.01)


def test_the_last_layer_is_residual_times_feature():
    """With a softmax before the cross-entropy, as in public code, it is not."""
    model, (x, y) = net(), records()
    with torch.no_grad():
        h = model[:6](x)
        residual = model(x).softmax(1) - nn.functional.one_hot(y, 4)
    want = -(residual.norm(dim=1) * (h.square().sum(1) + 1).sqrt()).log()
    torch.testing.assert_close(gradnorm(model, x, y, layers="last"), want, rtol=1e-9, atol=1e-9)
    twice = textbook(nn.Sequential(*model, nn.Softmax(1)), x, y, "6", 2, "loss")
    assert (twice - want).abs().min() > 1e-3


@pytest.mark.parametrize("norm", ORDERS)
@pytest.mark.parametrize("of", ["loss", "input"])
def test_sure_records_are_not_tied_in_float32(of, norm):
    """The gradient of the loss itself is exactly 0 from some phi on."""
    x, y = torch.tensor([[50.0], [60.0]]), torch.tensor([1, 1])
    score = gradnorm(binary(), x, y, of=of, norm=norm)
    want = 10 - (
        0 if of == "input" else torch.tensor(1.2).log()
    )  # |J| grows with x where it is that of weights
    assert score.isfinite().all()
    assert (score[1] - score[0]).item() == pytest.approx(float(want), rel=1e-5)
    zeros = textbook(binary(), x + 100, y, ["weight"], 2, "loss")
    assert zeros.isinf().all()


def test_ranks_as_phi_where_the_margin_gradient_is_constant():
    g = stream(0)
    model, x = nn.Linear(6, 2).eval(), torch.randn(50, 6, generator=g)
    model.weight.data, model.bias.data = torch.randn(2, 6, generator=g), torch.randn(2, generator=g)
    x, y = x / x.norm(dim=1, keepdim=True), torch.randint(2, (50,), generator=g)
    phi = signals.phi(model(x).detach(), y)
    assert (gradnorm(model, x, y).argsort() == phi.argsort()).all()
    torch.testing.assert_close(
        gradnorm(model, x, y), -logsigmoid(-phi) - torch.tensor(4.0).sqrt().log(), rtol=1e-5, atol=1e-5
    )


def test_loss_is_margin_and_a_black_box_number():
    model, (x, y) = net(), records()
    more = logsigmoid(-signals.phi(model(x).detach(), y))
    for norm in ORDERS:
        got = gradnorm(model, x, y, norm=norm, of="margin") - more
        torch.testing.assert_close(got, gradnorm(model, x, y, norm=norm), rtol=1e-9, atol=1e-9)
    want = -(norms(model, x, y).log_input + more)
    torch.testing.assert_close(gradnorm(model, x, y, of="input"), want, rtol=1e-9, atol=1e-9)


def test_memory_changes_nothing():
    model, (x, y) = net(), records(30)
    for of in ("loss", "input"):
        for norm in ORDERS:
            a, b = (gradnorm(model, x, y, of=of, norm=norm, memory=m) for m in ("64KiB", "1GiB"))
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


class LookUp(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.table = nn.Embedding(n, 3)
        self.table.weight.data = torch.randn(n, 3, generator=stream(2))

    def forward(self, x):
        return self.table(x[:, 0].long())


def test_a_model_without_input_gradients_is_floored():
    model, x = LookUp(4).eval(), torch.tensor([[0.0], [3.0]])
    with pytest.warns(Floored, match="2 of 2 gradients are 0"):
        score = gradnorm(model, x, torch.tensor([0, 1]), of="input")
    assert score.isfinite().all()
    assert (score > 700).all()
    assert gradnorm(model, x, torch.tensor([0, 1])).isfinite().all()


def test_a_layer_that_does_not_matter_is_floored():
    model, (x, y) = net(), records(3)
    model[6].weight.data.zero_()
    for norm in ORDERS:
        with pytest.warns(Floored, match="3 of 3 gradients are 0"):
            score = gradnorm(model, x, y, layers=("0",), norm=norm)
        assert score.isfinite().all()


def test_leaves_the_model_as_it_was():
    model, (x, y) = net(), records()
    state = copy.deepcopy(model.state_dict())
    flags = [p.requires_grad for p in model.parameters()]
    for norm, of in ((2, "loss"), (1, "loss"), (2, "input")):
        with torch.no_grad():
            gradnorm(model, x, y, norm=norm, of=of)
    assert all(torch.equal(a, b) for a, b in zip(state.values(), model.state_dict().values(), strict=True))
    assert flags == [p.requires_grad for p in model.parameters()]
    assert not model.training
    assert all(p.grad is None for p in model.parameters())
    assert x.grad is None
    assert not x.requires_grad
    assert not any(m._forward_hooks for m in model.modules())


def test_one_record():
    model, (x, y) = net(dtype=torch.float32), records(1, dtype=torch.float32)
    assert gradnorm(model, x, y).shape == (1,)
    assert gradnorm(model, x, y).dtype == torch.float64


def test_refuses():
    model, (x, y) = net(), records()
    for settings, match in (
        ({"norm": 3}, "norm must be 1, 2 or 'inf', got 3"),
        ({"of": "phi"}, "of must be 'loss', 'margin' or 'input', got 'phi'"),
        ({"of": "input", "layers": "last"}, "layers must be None with of='input', got 'last'"),
        ({"layers": ("7",)}, "layers"),
    ):
        with pytest.raises((ValueError, TypeError), match=match) as caught:
            inspect.unwrap(gradnorm)(model, x, y, **settings)
        assert "\n" not in str(caught.value) or caught.type is not ValueError
    with pytest.raises(ValueError, match="x must be finite, got 1 NaN"):
        gradnorm(model, x.masked_fill(x == x.max(), torch.nan), y)
    with pytest.raises(ValueError, match="eval|train"):
        gradnorm(net().train(), x, y)


def test_finds_a_planted_leak():
    game, truth = ridge(leaks=True, seed=0)
    for settings in ({}, {"layers": "last"}, {"of": "input"}):
        assert auc(gradnorm(game.model, game.x, game.y, **settings), truth) > 0.9


def test_finds_nothing_where_nothing_is():
    worlds = [ridge(leaks=False, seed=s, n=200, d=150, m=2) for s in range(20)]
    for settings in ({}, {"of": "margin"}, {"of": "input"}):
        areas = [auc(gradnorm(g.model, g.x, g.y, **settings), truth) - 0.5 for g, truth in worlds]
        found = torch.tensor(areas)
        assert found.mean().abs() <= 4 * found.std() / 20**0.5  # a false alarm in 16,000
