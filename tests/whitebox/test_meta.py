import copy

import pytest
import torch
from torch import nn
from worlds import ridge

from glasslab.checks import Floored
from glasslab.data import Data
from glasslab.metrics import auc
from glasslab.null_law import auc_se
from glasslab.recipe import Recipe
from glasslab.split import shadow_rows, stream
from whitebox import meta as module
from whitebox import own_shadows
from whitebox.calibration import conformal, decide, precision_target
from whitebox.meta import apply, learn, meta, meta_shadows, rehearse
from whitebox.meta_classifier import fit_classifier
from whitebox.meta_features import described, features
from whitebox.own_shadows import calibration_rows
from whitebox.pairs import Displacement, displaced
from whitebox.proxy import train_heads

RECIPE = Recipe(net="softmax", epochs=3, scale="none")
QUICK = {"fits": 2, "epochs": 6, "lr": 0.01}
MLP = Recipe(net="mlp", hidden=(24,), epochs=4, batch=16, lr=0.05, scale="none")
BRIEF = {"fits": 1, "epochs": 1}


def noise(n, seed, classes=3):
    g = stream(seed, "noise")
    return Data(torch.randn(n, 6, generator=g), torch.arange(n) % classes, classes, "noise")


def net(seed=0, bias=True):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(6, 24, bias), nn.ReLU(), nn.Linear(24, 3, bias)).eval()


# The features, one record at a time


def textbook_features(model, heads, x, y):
    """Of one cut, the input of the last layer (index 3)."""
    rows = []
    for one, label in zip(x, y.tolist(), strict=True):
        x_1 = one[None].clone().requires_grad_()
        model.zero_grad()
        z = model(x_1)[0]
        rest = torch.stack([z[k] for k in range(3) if k != label]).exp().sum().log()
        phi = z[label] - rest
        grads = torch.autograd.grad(phi, [*model.parameters(), x_1])
        own = torch.log(z.exp()[label] / z.exp().sum())
        proxies = [torch.log(p(x_1)[0].exp()[label] / p(x_1)[0].exp().sum()) for p in heads]
        length = [
            sum(float((g**2).sum()) for g in part) ** 0.5 for part in (grads[:2], grads[2:4], grads[4:])
        ]
        h = model[:3](x_1)[0]
        rows.append(
            [
                own - sum(proxies) / len(proxies),
                (h**2).sum().sqrt().log(),
                phi,
                1 / (1 + phi.exp()),
                *torch.tensor([length[2], length[0], length[1]]).log(),
            ]
        )
    return torch.stack([torch.stack([v.detach() for v in row]) for row in rows]).double()


def test_features_are_those_of_the_textbook():
    aux, data, model = noise(60, 1), noise(12, 2), net()
    found = features(model, data.x, data.y, aux, MLP, stream(3), proxies=2)
    heads = train_heads(model, None, aux, MLP, stream(3), proxies=2)
    names = ("m | last", "log|h| | last", "phi", "sigma(-phi)", "log|grad_x phi|", "log|J| | 1", "log|J| | 3")
    assert found.names == names
    want = textbook_features(copy.deepcopy(model), heads, data.x, data.y)
    torch.testing.assert_close(found.values, want, rtol=1e-4, atol=1e-4)


def test_features_of_several_cuts_and_without_gradients():
    aux, data, model = noise(60, 1), noise(12, 2), net()
    found = features(model, data.x, data.y, aux, MLP, stream(3), ("1", None), gradients=False)
    names = ("m | 1", "log|h| | 1", "m | last", "log|h| | last", "phi", "sigma(-phi)")
    assert found.names == names
    assert found.values[:, 1].allclose(model[1](data.x).norm(dim=1).log().double())
    heads = [train_heads(model, at, aux, MLP, stream(3)) for at in ("1", None)]
    nets = [Displacement(), Displacement()]
    nets[1].last.bias.data += 1
    told = described(
        model, heads, data.x, data.y, ("1", None), displacements=nets, gradients=False, n_steps=8
    )
    plain = described(model, heads, data.x, data.y, ("1", None), gradients=False)
    assert told.values[:, 0].allclose(plain.values[:, 0], atol=0.1)
    assert torch.equal(
        told.values[:, 2], displaced(nets[1], model, heads[1], None, data.x, data.y, n_steps=8)
    )
    assert not told.values[:, 2].allclose(plain.values[:, 2], atol=0.5)


def test_logarithms_of_zero_are_floored_and_told():
    """A record that no hidden unit answers to: |h| = 0, no gradient reaches the first layer or x."""
    aux, model = noise(60, 1), net(bias=False)
    x = torch.cat([aux.x[:2], torch.zeros(1, 6)])
    with pytest.warns(Floored, match=r"4 of 21 features are logarithms of zero, taken for -100"):
        found = features(model, x, torch.tensor([0, 1, 2]), aux, MLP, stream(0))
    assert found.values[2].tolist().count(-100) == 4
    assert found.values.isfinite().all()


# The classifier


def test_features_are_standardised_by_non_members():
    """Members are elsewhere, and spread otherwise: all rows together would give other units."""
    g = stream(4)
    member = torch.arange(300) % 3 == 0
    rows = torch.randn(300, 3, generator=g).double() * (1 + 4 * member)[:, None] + 5 * member[:, None]
    rows[:, 2] = 7 + 1e-14 * rows[:, 0]  # a constant, but for rounding
    found = fit_classifier(rows, member, stream(0), epochs=2)
    outside = [
        [row[k] for row, m in zip(rows.tolist(), member.tolist(), strict=True) if not m] for k in (0, 1)
    ]
    for k, column in enumerate(outside):
        mean = sum(column) / 200
        spread = (sum((v - mean) ** 2 for v in column) / 200) ** 0.5
        assert found.mean[k].item() == pytest.approx(mean)
        assert found.std[k].item() == pytest.approx(spread)
        assert abs(rows[:, k].std() - spread) > 1
    assert found.std[2] == 1
    moved = 100 + 50 * rows  # units do not matter
    torch.testing.assert_close(
        fit_classifier(moved[:, :2], member, stream(0), epochs=2)(moved[:, :2]),
        fit_classifier(rows[:, :2], member, stream(0), epochs=2)(rows[:, :2]),
    )
    hidden = ((rows - found.mean) / found.std) @ found.net[0].weight.T + found.net[0].bias
    want = hidden.clamp(min=0) @ found.net[2].weight[0] + found.net[2].bias
    torch.testing.assert_close(found(rows), want)


def zoo_features(leak, seed, m=8, n=200):
    g, member = stream(seed, "zoo"), shadow_rows(m, n, seed)
    truth = torch.rand(n, generator=g) < 0.5
    centre = torch.tensor([3.0, -2.0, 0.0])

    def seen(inside):
        drawn = torch.randn(*inside.shape, 3, generator=g).double()
        drawn[..., 1] += leak * inside
        return 4 * drawn + centre

    return seen(truth), seen(member), member, truth


def test_the_zoos_shadows_teach_it_too():
    target, shadow, member, truth = zoo_features(2.0, 0)
    score = meta_shadows(target, shadow, member, stream(0), epochs=10, lr=0.01)
    best = auc(target[:, 1], truth)
    assert best - 0.03 < auc(score, truth) < best + 0.02
    pooled = fit_classifier(shadow.flatten(0, 1), member.flatten(), stream(0), epochs=10, lr=0.01)
    assert torch.equal(score, pooled(target))


def test_the_zoos_shadows_teach_nothing_where_nothing_is():
    """Mean of 10 worlds within 4 standard errors: a false alarm in 16,000."""
    areas = []
    for seed in range(10):
        target, shadow, member, truth = zoo_features(0.0, seed)
        areas.append(auc(meta_shadows(target, shadow, member, stream(seed), epochs=3), truth))
    assert abs(sum(areas) / 10 - 0.5) < 4 * auc_se(100, 100) / 10**0.5


# What it finds


@pytest.mark.parametrize("displacement", ["subtract", "learned"])
def test_finds_a_planted_leak(displacement):
    more = {"displacement": displacement, "n_steps": 4}
    game, truth = ridge(leaks=True, seed=0)
    score = meta(game.model, game.x, game.y, game.aux, RECIPE, stream(0), **QUICK, **more)
    assert auc(score, truth) > 0.9


def test_finds_nothing_where_nothing_is():
    """Mean of 4 worlds within 4 standard errors: a false alarm in 16,000."""
    areas = []
    for seed in range(4):
        game, truth = ridge(leaks=False, seed=seed, n=300, d=40)
        score = meta(game.model, game.x, game.y, game.aux, RECIPE, stream(seed), **QUICK)
        areas.append(auc(score, truth))
    assert abs(sum(areas) / 4 - 0.5) < 4 * auc_se(150, 150) / 4**0.5


def test_claims_keep_to_their_rate():
    """6 targets that know no candidate, alpha = 0.2: mean rate within 4 standard errors of it. A target that
    leaks gives its members away at the same rate."""
    rates = []
    for seed in range(6):
        game, _ = ridge(leaks=False, seed=seed, n=300, d=40)
        claimed, _ = claims(game, seed)
        rates.append(claimed.double().mean())
    mean, error = torch.stack(rates).mean(), torch.stack(rates).std() / 6**0.5
    assert abs(mean - 0.2) < 4 * error
    game, truth = ridge(leaks=True, seed=0)
    claimed, score = claims(game, 0)
    assert (claimed & truth).sum() > 0.9 * truth.sum()
    assert (claimed & ~truth).sum() / (~truth).sum() < 0.35


def claims(game, seed):
    g = stream(seed)
    learned = learn(game.aux, RECIPE, g, **QUICK)
    held = game.aux[learned.calibration]
    x, y = torch.cat([game.x, held.x]), torch.cat([game.y, held.y])
    score = apply(learned, game.model, x, y, game.aux, RECIPE, g)
    n = len(game.y)
    tau, _ = conformal(score[n:], held.y, alpha=0.2, classes=game.classes)
    return decide(score[:n], game.y, tau), score[:n]


def test_fresh_shadows_give_the_threshold_of_a_precision():
    game, truth = ridge(leaks=True, seed=0)
    g = stream(0)
    learned = learn(game.aux, RECIPE, g, **QUICK)
    score, member = rehearse(learned, game.aux, RECIPE, g, fits=2)
    assert len(score) == len(member)
    assert auc(score, member) > 0.6
    tau = precision_target(score, member, target=0.5, prior=0.5)
    assert score.min() <= tau < score.max()


# How it behaves


def rows_of(data, within):
    return {int((within.x == one).flatten(1).all(1).nonzero()[0]) for one in data.x}


def test_calibration_records_are_none_of_the_others(monkeypatch):
    aux, model, seen = noise(120, 8), net(), []
    train, heads, describe = own_shadows.train, module.train_heads, module.described

    def trained(make, recipe, x, y, member, seeds, **rest):
        seen.extend(set(row.nonzero().squeeze(1).tolist()) for row in member)
        return train(make, recipe, x, y, member, seeds, **rest)

    def proxies(model, place, data, *rest, **more):
        seen.append(rows_of(data, aux))
        return heads(model, place, data, *rest, **more)

    def told(model, heads, x, y, *rest, **more):
        seen.append(rows_of(Data(x, y, 3, ""), aux))
        return describe(model, heads, x, y, *rest, **more)

    monkeypatch.setattr(own_shadows, "train", trained)
    monkeypatch.setattr(module, "train_heads", proxies)
    monkeypatch.setattr("whitebox.meta_features.train_heads", proxies)
    monkeypatch.setattr(module, "described", told)
    g = stream(3)
    learned = learn(aux, MLP, g, fits=2, epochs=1)
    apply(learned, model, aux.x[:5], aux.y[:5], aux, MLP, g)
    rehearse(learned, aux, MLP, g, fits=1)
    assert len(seen) == 6 + 1 + 2
    calibration = set(learned.calibration.tolist())
    assert calibration == set(calibration_rows(aux, stream(3)).tolist())
    assert len(calibration) == 20
    assert not any(calibration & rows for rows in seen)
    for proxy, rows in zip(seen[2:4], seen[4:6], strict=True):
        assert not proxy & rows


def test_records_are_scored_each_alone_and_in_their_order():
    aux, model = noise(120, 13), net()
    x, y = noise(150, 14).x, noise(150, 14).y
    held = [t.clone() for t in (x, y, aux.x, aux.y, *model.state_dict().values())]
    before = torch.get_rng_state()

    def score(rows, seed=0):
        return meta(model, x[rows], y[rows], aux, MLP, stream(seed), cuts=(None, "1"), **BRIEF)

    whole, rows = score(slice(None)), torch.randperm(150, generator=stream(0))
    assert whole.dtype == torch.float64
    torch.testing.assert_close(score(rows), whole[rows], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(score([7]), whole[7:8], rtol=1e-5, atol=1e-5)
    assert torch.equal(score(slice(None)), whole)
    assert not torch.equal(score(slice(None), seed=1), whole)
    assert torch.equal(before, torch.get_rng_state())
    now = (x, y, aux.x, aux.y, *model.state_dict().values())
    assert all(torch.equal(a, b) for a, b in zip(held, now, strict=True))
    assert all(w.grad is None and w.requires_grad for w in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks or m.training for m in model.modules())


def test_learned_once_serves_several_targets():
    aux, g = noise(120, 11), stream(2)
    data = noise(30, 12)
    learned = learn(aux, MLP, g, **BRIEF)
    state = g.get_state()
    held = copy.deepcopy(learned.classifier.net.state_dict())
    first = apply(learned, net(1), data.x, data.y, aux, MLP, g)
    apply(learned, net(2), data.x, data.y, aux, MLP, g)
    now = learned.classifier.net.state_dict()
    assert all(torch.equal(t, now[name]) for name, t in held.items())
    assert torch.equal(first, apply(learned, net(1), data.x, data.y, aux, MLP, g.set_state(state)))
    assert torch.equal(first, meta(net(1), data.x, data.y, aux, MLP, stream(2), **BRIEF))


def test_sure_records_have_finite_scores_that_differ():
    """Margins of about 60 and more in float32, where the loss is 0."""
    aux, model = noise(120, 13), net()
    model[3].weight.data *= 300
    score = meta(model, aux.x, model(aux.x).argmax(1), aux, MLP, stream(0), **BRIEF)
    assert score.isfinite().all()
    assert len(score.unique()) == len(score)


def test_refuses_what_it_cannot_do():
    aux, model = noise(120, 16), net()
    x, y = aux.x[:5], aux.y[:5]
    with pytest.raises(ValueError, match="model must be in eval mode"):
        meta(net().train(), x, y, aux, MLP, stream(0), **BRIEF)
    with pytest.raises(ValueError, match="cuts must name 1 or more, got 0"):
        meta(model, x, y, aux, MLP, stream(0), cuts=(), **BRIEF)
    with pytest.raises(ValueError, match=r"have the layers of recipe's net, 7 features, got 6"):
        meta(nn.Sequential(nn.Linear(6, 3)).eval(), x, y, aux, MLP, stream(0), **BRIEF)
    with pytest.raises(ValueError, match="aux must hold 3"):
        meta(model, x, y, aux[aux.y != 2], MLP, stream(0), **BRIEF)
    target, shadow, member, _ = zoo_features(1.0, 0, m=2, n=20)
    with pytest.raises(ValueError, match="features must be finite, got 1 NaN or infinite values"):
        meta_shadows(torch.where(target == target.max(), torch.nan, target), shadow, member, stream(0))
    with pytest.raises(ValueError, match="with both sides; got 0 NaN or infinite values, 0 in and 40 out"):
        meta_shadows(target, shadow, torch.zeros_like(member), stream(0))
