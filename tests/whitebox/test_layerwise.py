import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from worlds import ridge

from glasslab.checks import Floored
from glasslab.data import Data
from glasslab.metrics import auc
from glasslab.null_law import auc_se
from glasslab.recipe import Recipe
from glasslab.split import stream
from whitebox import layerwise, own_shadows
from whitebox import pairs as pairs_file
from whitebox.fitting import fresh
from whitebox.layerwise import apply, explain, general_wb, learn
from whitebox.meta_features import subtracted
from whitebox.own_shadows import calibration_rows, cut_aux, shadows
from whitebox.pairs import Displacement, displaced, pairs
from whitebox.proxy import bayes_wb, linearised, train_heads

RECIPE = Recipe(net="softmax", epochs=3, scale="none")
QUICK = {"fits": 2, "epochs": 1, "n_steps": 4}
MLP = Recipe(net="mlp", hidden=(8,), epochs=4, batch=16, lr=0.05, scale="none")


def noise(n, seed, shape=(6,), classes=3):
    g = stream(seed, "noise")
    return Data(torch.randn(n, *shape, generator=g), torch.arange(n) % classes, classes, "noise")


def net(seed=0, *, d=6, hidden=8, classes=3):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = nn.Sequential(nn.Linear(d, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU())
        return nn.Sequential(*layers, nn.Linear(hidden, classes)).eval()


def conv_net(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        trunk = [nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten()]
        trunk[0].bias.data.fill_(0.3)  # so that records of zeros have features
        return nn.Sequential(*trunk, nn.Linear(12, 3)).eval()


def rough(seed=0):
    """A displacement net that does not subtract, with units of its own."""
    g = stream(seed, "rough")
    d = fresh(Displacement, g)
    for w in d.parameters():
        w.requires_grad_(False).add_(torch.randn(w.shape, generator=g, dtype=torch.float64) / 2)
    d.unit = torch.tensor([0.3, 2.0]).double()
    return d


# The formulas, one record, one step and one feature at a time


def textbook_linear(head, z, y, n_steps, start=0.0):
    """Mean gradient of log p_y on the way from `start` to z (Gauss-Legendre), and the value at 0."""
    nodes, weights = np.polynomial.legendre.leggauss(n_steps)
    w = torch.zeros_like(z)
    for node, weight in zip(nodes, weights, strict=True):
        at = (start + (node + 1) / 2 * (z - start)).detach().requires_grad_()
        (slope,) = torch.autograd.grad(head(at[None]).log_softmax(-1)[0, y], at)
        w += weight / 2 * slope
    return w, head(torch.zeros_like(z)[None]).log_softmax(-1)[0, y].item()


def textbook_d(d, a, b, unit):
    first, last = d.first.weight.tolist(), d.last.weight.tolist()[0]
    total = d.last.bias.item()
    for (p, q), bias, out in zip(first, d.first.bias.tolist(), last, strict=True):
        total += out * max(0.0, p * a / unit + q * b / unit + bias)
    return total * unit


def textbook_m(d, hat, tilde, z):
    (w, b), (v, c) = hat, tilde
    slope, intercept = d.unit.tolist()
    terms = zip(w.flatten().tolist(), v.flatten().tolist(), z.flatten().tolist(), strict=True)
    return sum(textbook_d(d, i, j, slope) * k for i, j, k in terms) + textbook_d(d, b, c, intercept)


@pytest.mark.parametrize("kind", ["dense", "convolution"])
def test_m_is_that_of_the_textbook(kind):
    """With a convolutional cut the features are [c, h, w]. Integrating along the input is another object."""
    model, at, above = (net(), "1", slice(2, 9)) if kind == "dense" else (conv_net(), "1", slice(2, 9))
    shape = (6,) if kind == "dense" else (1, 4, 4)
    x, y = noise(5, 1, shape).x, noise(5, 1, shape).y
    heads = [copy.deepcopy(model), copy.deepcopy(model)]
    for i, head in enumerate(heads):
        with torch.no_grad():
            for w in head[above].parameters():
                w += torch.randn(w.shape, generator=stream(i)) / 4
    d = rough()
    want, wrong = [], []
    for one, label in zip(x, y.tolist(), strict=True):
        z, z_0 = (model.double()[:2](v[None].double())[0].detach() for v in (one, torch.zeros_like(one)))
        for into, start in ((want, torch.zeros_like(z)), (wrong, z_0)):
            (w, b), *rest = (
                textbook_linear(copy.deepcopy(f).double()[above], z, label, 7, start) for f in (model, *heads)
            )
            tilde = (sum(v for v, _ in rest) / 2, sum(c for _, c in rest) / 2)
            into.append(textbook_m(d, (w, b), tilde, z))
    got = displaced(d, model.float(), heads, at, x, y, n_steps=7)
    torch.testing.assert_close(got, torch.tensor(want).double(), rtol=1e-4, atol=1e-4)
    assert (got - torch.tensor(wrong)).abs().max() > 0.01


@pytest.mark.parametrize("proxies", [1, 3])
def test_a_fresh_displacement_net_subtracts(proxies):
    aux, model = noise(60, 2), net()
    x, y = noise(20, 3).x, noise(20, 3).y
    for at in (None, "1"):
        heads = train_heads(model, at, aux, MLP, stream(5), proxies=proxies)
        plain, exact = (
            bayes_wb(model, x, y, aux, MLP, stream(5), cut=at, proxies=proxies, form=form)
            for form in ("integrated", "difference")
        )
        got = displaced(Displacement(), model, heads, at, x, y)
        torch.testing.assert_close(got, plain, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(got, exact, rtol=0, atol=3e-2)
        torch.testing.assert_close(subtracted(model, heads, x, y), exact, rtol=1e-5, atol=1e-5)


def test_linear_forms_are_complete():
    """|w.z + b - log p_y| below 3e-2 at 50 steps, and at 500 at most a fifth of that."""
    model, data = net(d=20, hidden=32).double(), noise(20, 4, (20,))
    x, y = 3 * data.x.double(), data.y
    exact = model(x).detach().log_softmax(-1).gather(1, y[:, None]).squeeze(1)
    worst = []
    for n_steps in (50, 500):
        hat, _, b, _, z = pairs(model, [model], "1", x, y, n_steps)
        worst.append(((hat * z).sum(1) + b - exact).abs().max().item())
    assert worst[0] < 3e-2
    assert worst[1] < worst[0] / 5


def test_units_are_of_no_account():
    """Slopes that are a thousand times smaller give an m as much smaller, in the same shape."""
    d, g = rough(), stream(6)
    hat, tilde, z = (torch.randn(4, 5, generator=g).double() for _ in range(3))
    b = torch.randn(2, 4, generator=g).double()
    m = d(hat, tilde, *b, z)
    d.unit = d.unit / 1000
    torch.testing.assert_close(d(hat / 1000, tilde / 1000, *b / 1000, z), m / 1000)


def test_a_vector_added_to_all_classes_changes_nothing():
    """Softmax weights are known up to such a vector. Raw logits are not safe from it."""
    aux, model = noise(30, 2), net()
    head = copy.deepcopy(model)
    head[4].weight.data += torch.randn(8, generator=stream(7))
    one, two = (displaced(rough(), model, [h], None, aux.x, aux.y, n_steps=6) for h in (model, head))
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)
    raw = [linearised(h, None, aux.x, aux.y, n_steps=6, output="logits")[0] for h in (model, head)]
    assert (raw[0] - raw[1]).abs().max() > 0.1


def test_the_displacement_net_bends():
    """Layers without a ReLU would be one linear map."""
    d, g = rough(), stream(8)
    a, b = (torch.randn(2, 50, generator=g).double() for _ in range(2))
    bent = d._of(*(a + b), d.unit[0]) - d._of(*a, d.unit[0]) - d._of(*b, d.unit[0])
    assert bent.std() > 0.05


# Who learns from which records


def rows_of(data, within):
    """Rows of `within` that these records are."""
    return {int((within.x == one).flatten(1).all(1).nonzero()[0]) for one in data.x}


def test_the_parts_of_aux_are_disjoint_and_of_their_shares():
    aux = noise(360, 7)
    calibration = calibration_rows(aux, stream(0))
    draws = [cut_aux(aux, calibration, g) for g in (stream(1), stream(2))]
    for parts in draws:
        assert [len(p) for p in (calibration, *parts)] == [60, 120, 120, 60]
        assert torch.cat([calibration, *parts]).sort().values.equal(torch.arange(360))
        assert all(set(np.bincount(aux.y[p], minlength=3)) <= {20, 40} for p in (calibration, *parts))
    assert not draws[0].proxy.equal(draws[1].proxy)
    assert len(cut_aux(aux, calibration, stream(1), n_train=50).inside) == 50


def test_calibration_is_cut_by_the_seed_alone():
    aux, g = noise(60, 7), stream(0)
    first = calibration_rows(aux, g)
    torch.rand(9, generator=g)
    assert calibration_rows(aux, g).equal(first)
    assert not calibration_rows(aux, stream(1)).equal(first)


def test_nobody_learns_what_it_must_not(monkeypatch):
    """Shadows: S_in alone. Proxies: neither S_in nor S_out. Nobody: calibration. At attack time as well."""
    aux, model, seen = noise(120, 8), net(d=6), {"shadow": [], "proxy": [], "told": []}
    told, heads, displacement = own_shadows.train, layerwise.train_heads, layerwise.learn_displacement

    def train(make, recipe, x, y, member, seeds, **rest):
        seen["shadow"] += [set(row.nonzero().squeeze(1).tolist()) for row in member]
        return told(make, recipe, x, y, member, seeds, **rest)

    def proxies(model, place, data, *rest, **more):
        seen["proxy"].append(rows_of(data, aux))
        return heads(model, place, data, *rest, **more)

    def learned(drawn, *rest, **more):
        for s in drawn:
            inside, outside = (rows_of(s.records[side], aux) for side in (s.member, ~s.member))
            seen["told"].append((inside, outside))
        return displacement(drawn, *rest, **more)

    monkeypatch.setattr(own_shadows, "train", train)
    monkeypatch.setattr(layerwise, "train_heads", proxies)
    monkeypatch.setattr(layerwise, "learn_displacement", learned)
    general_wb(model, aux.x[:9], aux.y[:9], aux, MLP, stream(3), fits=3, epochs=1, n_steps=2)
    calibration = set(calibration_rows(aux, stream(3)).tolist())
    assert len(seen["proxy"]) == 4
    for inside, proxy, (told_in, told_out) in zip(
        seen["shadow"], seen["proxy"][:3], seen["told"], strict=True
    ):
        assert inside == told_in
        roles = (calibration, inside, proxy, told_out)
        assert [len(role) for role in roles] == [20, 40, 40, 20]
        assert len(set.union(*roles)) == 120
    assert not seen["proxy"][3] & calibration
    assert len(seen["proxy"][3]) == 40  # as many as the shadows' proxies had
    two_way = seen["told"][0][1] | seen["proxy"][0]  # the wrong version: non-members the proxy has learned
    assert two_way & seen["proxy"][0]


def test_shadows_see_their_records_as_often_as_the_target_its_own(monkeypatch):
    """The trainer's epoch is half of aux, S_in a third."""
    aux, epochs = noise(120, 8), []
    told = own_shadows.train

    def train(make, recipe, *rest, **more):
        epochs.append(recipe.epochs)
        return told(make, recipe, *rest, **more)

    monkeypatch.setattr(own_shadows, "train", train)
    recipe = Recipe(net="softmax", epochs=30, batch=8, scale="none")
    drawn = shadows(aux, calibration_rows(aux, stream(0)), recipe, stream(0), fits=2)
    assert epochs == [20]
    for s in drawn:
        inside = s.records[s.member]
        assert cross_entropy(s.model(inside.x), inside.y) < math.log(3)
        assert not s.model.training
    patient = Recipe(net="softmax", epochs=6, patience=2, scale="none")
    assert len(shadows(aux, calibration_rows(aux, stream(0)), patient, stream(0), fits=2)) == 2
    scaled = Recipe(net="softmax", epochs=1, scale="standard")
    (s,) = shadows(aux, calibration_rows(aux, stream(0)), scaled, stream(0), fits=1)
    torch.testing.assert_close(s.model[0].mean, aux.x.mean(0))


def test_shadows_smaller_than_the_target_are_told():
    with pytest.warns(Floored, match=r"a shadow learns 40 records, 0.50 of the target's 80"):
        learn(noise(120, 8), RECIPE, stream(0), n_train=80, **QUICK)
    learn(noise(120, 8), RECIPE, stream(0), n_train=40, **QUICK)


def test_rows_that_do_not_fit_are_left_out_and_told(monkeypatch):
    monkeypatch.setattr(pairs_file, "KEPT", 1)
    with pytest.warns(Floored, match="learns 32 of 60 records of a shadow, 6 features each"):
        learn(noise(120, 8), RECIPE, stream(0), **QUICK)


# What it finds


def test_finds_a_planted_leak():
    for seed in range(2):
        game, truth = ridge(leaks=True, seed=seed)
        score = general_wb(game.model, game.x, game.y, game.aux, RECIPE, stream(seed), **QUICK)
        assert auc(score, truth) > 0.7


def test_finds_nothing_where_nothing_is():
    """Mean of 4 worlds within 4 standard errors: a false alarm in 16,000."""
    areas = []
    for seed in range(4):
        game, truth = ridge(leaks=False, seed=seed, n=300, d=40)
        score = general_wb(game.model, game.x, game.y, game.aux, RECIPE, stream(seed), **QUICK)
        areas.append(auc(score, truth))
    assert abs(sum(areas) / 4 - 0.5) < 4 * auc_se(150, 150) / 4**0.5


def pink(seed):
    """Records of class 0 in training have pixel 7 up; those of other classes, and other records, do not."""
    g = stream(seed, "pink")

    def draw(n, planted):
        y = torch.arange(n) % 3
        x = torch.randn(n, 25, generator=g) / 2
        x[:, :3] += 2 * nn.functional.one_hot(y, 3)
        if planted:
            x[y == 0, 7] += 3
        return Data(x, y, 3, "pink")

    return draw(150, True), draw(300, False)


@pytest.mark.parametrize("kind", ["input", "trunk"])
def test_the_planted_pixel_has_the_largest_influence(kind):
    recipe = Recipe(net="softmax", epochs=20, scale="none")
    for seed in range(3):
        inside, aux = pink(seed)
        model = nn.Sequential(nn.Linear(25, 3)) if kind == "input" else net(seed, d=25, hidden=32)
        optimiser = torch.optim.Adam(model.parameters(), 0.01)
        for _ in range(150):
            optimiser.zero_grad()
            cross_entropy(model(inside.x), inside.y).backward()
            optimiser.step()
        held = inside[inside.y == 0]
        influence = explain(model.eval(), held.x, held.y, aux, recipe, stream(seed))
        assert influence.shape == held.x.shape
        assert (influence * (held.x - aux.x.mean(0))).mean(0).abs().argmax() == 7


def test_the_influence_at_the_input_is_what_slopes_differ_in():
    """And behind a trunk the gradient of (w^ - w~).h(x) with both held."""
    aux, model = noise(120, 9, (2, 3)), nn.Sequential(nn.Flatten(), net())
    got = explain(model.eval(), aux.x[:7], aux.y[:7], aux, MLP, stream(1), cut="1.1", n_steps=9)
    g = stream(1)
    proxy = aux[cut_aux(aux, calibration_rows(aux, g), g).proxy]
    heads = train_heads(model, "1.1", proxy, MLP, g)
    both = pairs(model, heads, "1.1", aux.x[:7], aux.y[:7], 9)
    for i in range(7):
        x = aux.x[i : i + 1].clone().requires_grad_()
        (both.hat[i] - both.tilde[i]).float().dot(model[1][:2](model[0](x))[0]).backward()
        torch.testing.assert_close(got[i], x.grad[0].double(), rtol=1e-4, atol=1e-6)


# How it behaves


@pytest.mark.slow
def test_permuted_hidden_units_change_nothing():
    """But for the first weights of the proxy heads: with 12 of them scores agree."""
    aux, model = noise(240, 10), net(3, hidden=12)
    other, order = copy.deepcopy(model), torch.randperm(12, generator=stream(4))
    other[2].weight.data, other[2].bias.data = model[2].weight[order].data, model[2].bias[order].data
    other[4].weight.data = model[4].weight[:, order].data
    torch.testing.assert_close(other(aux.x), model(aux.x))
    learned = learn(aux, MLP, stream(0), fits=1, epochs=1, proxies=12, n_steps=4)
    one, two = (apply(learned, m, aux.x[:50], aux.y[:50], aux, MLP, stream(1)) for m in (model, other))
    assert torch.corrcoef(torch.stack([one, two]))[0, 1] > 0.98


def test_learned_once_serves_several_targets():
    aux, g = noise(120, 11), stream(2)
    x, y = noise(30, 12).x, noise(30, 12).y
    learned = learn(aux, MLP, g, **QUICK)
    state = g.get_state()
    held = copy.deepcopy(learned.displacement.state_dict())
    first = apply(learned, net(1), x, y, aux, MLP, g)
    apply(learned, net(2), x, y, aux, MLP, g)
    now = learned.displacement.state_dict()
    assert all(torch.equal(t, now[name]) for name, t in held.items())
    assert torch.equal(first, apply(learned, net(1), x, y, aux, MLP, g.set_state(state)))
    assert torch.equal(first, general_wb(net(1), x, y, aux, MLP, stream(2), **QUICK))


def test_records_are_scored_each_alone_and_in_their_order():
    aux, model = noise(120, 13), net()
    x, y = noise(150, 14).x, noise(150, 14).y
    held = [t.clone() for t in (x, y, aux.x, aux.y, *model.state_dict().values())]
    before = torch.get_rng_state()

    def score(rows, seed=0):
        return general_wb(model, x[rows], y[rows], aux, MLP, stream(seed), **QUICK)

    whole, rows = score(slice(None)), torch.randperm(150, generator=stream(0))
    assert whole.dtype == torch.float64
    torch.testing.assert_close(score(rows), whole[rows], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(score([7]), whole[7:8], rtol=1e-6, atol=1e-6)
    assert torch.equal(score(slice(None)), whole)
    assert not torch.equal(score(slice(None), seed=1), whole)
    explain(model, x, y, aux, MLP, stream(0), cut="1")
    assert torch.equal(before, torch.get_rng_state())
    now = (x, y, aux.x, aux.y, *model.state_dict().values())
    assert all(torch.equal(a, b) for a, b in zip(held, now, strict=True))
    assert all(w.grad is None and w.requires_grad for w in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks or m.training for m in model.modules())


def test_a_convolutional_cut_and_sure_records():
    """Margins of about 60 in float32."""
    aux = noise(60, 15, (1, 4, 4))
    images = Recipe(net=factory, epochs=2, scale="none")
    model = conv_net()
    score = general_wb(model, aux.x[:1], aux.y[:1], aux, images, stream(0), cut="1", **QUICK)
    assert score.shape == (1,)
    model[5].weight.data *= 1000
    score = general_wb(model, aux.x, aux.y, aux, images, stream(0), cut="1", **QUICK)
    assert score.isfinite().all()


def factory(shape, classes):
    return conv_net().train()


def test_refuses_what_it_cannot_do():
    aux, model = noise(120, 16), net()
    x, y = aux.x[:5], aux.y[:5]
    with pytest.raises(ValueError, match="model must be in eval mode"):
        general_wb(net().train(), x, y, aux, MLP, stream(0), **QUICK)
    with pytest.raises(ValueError, match="must hold as many records, 1 or more, got 0 and 0"):
        general_wb(model, x[:0], y[:0], aux, MLP, stream(0), **QUICK)
    with pytest.raises(ValueError, match="place must be a module's name"):
        general_wb(model, x, y, aux, MLP, stream(0), cut="layer9", **QUICK)
    with pytest.raises(ValueError, match="fits must be 1 or more, got 0"):
        general_wb(model, x, y, aux, MLP, stream(0), fits=0)
    with pytest.raises(ValueError, match="aux must hold 12 records or more, got 11"):
        general_wb(model, x, y, aux[torch.arange(11)], MLP, stream(0), **QUICK)
    lacking = aux[aux.y != 2]
    with pytest.raises(ValueError, match=r"aux must hold 3\+ records of every class of y, got too few of"):
        general_wb(model, x, y, lacking, MLP, stream(0), **QUICK)
