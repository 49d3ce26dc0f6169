from dataclasses import replace

import numpy as np
import pytest
import torch
import worlds
from scipy.optimize import minimize
from scipy.special import log_softmax, logsumexp
from scipy.stats import norm as gauss
from torch import nn

from glasslab.data import Data
from glasslab.metrics import auc
from glasslab.recipe import Recipe
from glasslab.split import stream
from glasslab.train import train
from whitebox import proxy as module
from whitebox.cut import cut
from whitebox.proxy import bayes_wb, linearised, train_heads

QUICK = Recipe(epochs=2, lr=0.05)


def clusters(n, seed, d=6, c=3, dtype=torch.float32):
    g = stream(seed, "clusters")
    y = torch.randint(c, (n,), generator=g)
    x = 0.5 * torch.eye(c, d)[y] + torch.randn(n, d, generator=g)
    return Data(x.to(dtype), y, c, "clusters")


def net(kind, *arguments, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return kind(*arguments).eval()


def mlp(d=6, c=3, deep=7):
    return nn.Sequential(nn.Linear(d, 8), nn.Tanh(), nn.Linear(8, deep), nn.ReLU(), nn.Linear(deep, c))


def fixed(monkeypatch, *changes):
    """In place of training: the states of heads after each of `changes`, functions of a fresh head."""

    def trained(fresh, recipe, x, y, member, seeds, *, val, device):
        states = []
        for change in changes:
            head = fresh()
            with torch.no_grad():
                change(head)
            states.append(head.state_dict())
        return {k: torch.stack([s[k] for s in states]) for k in states[0]}

    monkeypatch.setattr(module, "train", trained)


# Slow twins: one record at a time, in numpy


def by_hand(state, z):
    """Logits of Linear, ReLU, Linear, and their slopes in z, [c] and [c u]."""
    w1, b1, w2, b2 = (t.double().numpy() for t in state)
    before = w1 @ z + b1
    return w2 @ np.maximum(before, 0) + b2, w2 @ (w1 * (before > 0)[:, None])


def linear_form(state, z, y):
    """(w, b) of log p_y at z by the point gradient."""
    logits, slope = by_hand(state, z)
    log_p = log_softmax(logits)
    w = slope[y] - np.exp(log_p) @ slope
    return w, log_p[y] - w @ z


@pytest.mark.parametrize("form", ["difference", "point"])
def test_the_score_is_that_of_heads_linearised_by_hand(form):
    model, aux, data = (
        net(mlp).double(),
        clusters(60, 0, dtype=torch.float64),
        clusters(20, 1, dtype=torch.float64),
    )
    settings = {"cut": "1", "proxies": 3}
    got = bayes_wb(model, data.x, data.y, aux, QUICK, stream(0), form=form, **settings)
    heads = train_heads(model, "1", aux, QUICK, stream(0), proxies=3)
    z = model[1](model[0](data.x)).detach().numpy()
    want = []
    for row, y in zip(z, data.y.tolist(), strict=True):
        (w, b), *others = (
            linear_form([*m[2].parameters(), *m[4].parameters()], row, y) for m in detached(model, *heads)
        )
        want.append(sum((w - v) @ row + b - a for v, a in others) / 3)
    torch.testing.assert_close(got, torch.tensor(want, dtype=torch.float64), rtol=1e-9, atol=1e-9)


def detached(*models):
    return [m.requires_grad_(False) for m in models]


def test_probabilities_in_place_of_their_logarithms_are_another_score():
    """The wrong version: what is attributed is the output after the softmax."""
    model, aux, data = (
        net(mlp).double(),
        clusters(60, 0, dtype=torch.float64),
        clusters(20, 1, dtype=torch.float64),
    )
    model[4].weight.data *= 5
    got = bayes_wb(model, data.x, data.y, aux, QUICK, stream(0), proxies=1)
    (proxy,) = train_heads(model, None, aux, QUICK, stream(0))
    right, wrong = (
        (f(model(data.x)) - f(proxy(data.x))).gather(1, data.y[:, None])[:, 0]
        for f in (lambda z: z.log_softmax(1), lambda z: z.softmax(1))
    )
    torch.testing.assert_close(got, right.detach(), rtol=1e-9, atol=1e-9)
    assert not torch.equal(wrong.argsort(), right.argsort())


def test_proxies_are_the_best_heads_that_aux_can_give():
    """Full batches come to the one minimum of cross-entropy + decay |theta|^2 / 2, found by other means."""
    model, aux, data = (
        net(mlp).double(),
        clusters(60, 0, dtype=torch.float64),
        clusters(20, 1, dtype=torch.float64),
    )
    recipe = Recipe(epochs=1500, batch=60, lr=0.3, weight_decay=0.02, schedule="constant")
    got = bayes_wb(model, data.x, data.y, aux, recipe, stream(0), proxies=2)
    z_aux, z = (cut(model, None, x).detach().numpy() for x in (aux.x, data.x))

    def cost(theta):
        w, b = theta[:-3].reshape(3, -1), theta[-3:]
        logits = z_aux @ w.T + b
        loss = logsumexp(logits, 1) - logits[np.arange(60), aux.y.numpy()]
        return loss.mean() + 0.01 * (theta**2).sum()

    best = minimize(cost, np.zeros(3 * z.shape[1] + 3), options={"gtol": 1e-7}).x
    proxy = log_softmax(z @ best[:-3].reshape(3, -1).T + best[-3:], 1)
    own = log_softmax(model(data.x).detach().numpy(), 1)
    want = torch.from_numpy((own - proxy)[np.arange(20), data.y.numpy()])
    torch.testing.assert_close(got, want, rtol=0, atol=1e-4)


# Linear forms


@pytest.mark.parametrize("place", ["1", None])
def test_integrated_gradients_are_complete_and_get_better_with_steps(place):
    model, data = net(mlp, 6, 3, 16), clusters(100, 3)
    for layer in model[2:]:
        if isinstance(layer, nn.Linear):
            layer.weight.data *= 3
    model.double()
    data = Data(data.x.double(), data.y, 3, "double")
    own = model(data.x).log_softmax(1).gather(1, data.y[:, None])[:, 0].detach()
    worst = []
    for steps in (50, 500):
        w, b, z = linearised(model, place, data.x, data.y, n_steps=steps)
        assert w.shape == z.shape == cut(model, place, data.x).shape
        worst.append(float(((w * z).sum(1) + b - own).abs().max()))
    assert worst[0] < 3e-2
    assert worst[1] < max(worst[0] / 5, 1e-8)  # a smooth head is exact at once


def test_integrated_gradients_are_the_mean_slope_from_zero():
    """A midpoint sum, a record at a time; b is the output at 0."""
    model, data = net(mlp).double(), clusters(6, 3, dtype=torch.float64)
    w, b, z = linearised(model, "1", data.x, data.y, n_steps=300)
    state = [t.detach() for t in (*model[2].parameters(), *model[4].parameters())]
    for i, y in enumerate(data.y.tolist()):
        slopes = [linear_form(state, z[i].numpy() * (k + 0.5) / 3000, y)[0] for k in range(3000)]
        np.testing.assert_allclose(w[i].numpy(), np.mean(slopes, 0), atol=3e-3)
        assert b[i].item() == pytest.approx(log_softmax(by_hand(state, 0 * z[i].numpy())[0])[y], abs=1e-12)


def test_one_linear_layer_on_raw_logits_is_its_own_linear_form():
    model, data = net(mlp), clusters(10, 3)
    for form in ("point", "integrated"):
        w, b, z = linearised(model, None, data.x, data.y, form=form, n_steps=5, output="logits")
        torch.testing.assert_close(w, model[4].weight[data.y].detach())
        torch.testing.assert_close(b, model[4].bias[data.y].detach().double(), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(z, cut(model, None, data.x).detach())


def test_many_rows_are_cut_into_pieces(monkeypatch):
    model, data = net(mlp), clusters(300, 3)
    whole = linearised(model, "1", data.x, data.y)
    calls, inner = [], module._value
    monkeypatch.setattr(module, "AT_ONCE", 8 * 50 * 10)  # ten rows of eight features
    monkeypatch.setattr(module, "_value", lambda net, z, y, o: (calls.append(len(z)), inner(net, z, y, o))[1])
    parts = linearised(model, "1", data.x, data.y)
    assert max(calls) == 500
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_the_three_forms_agree_and_features_may_be_images():
    model = net(
        lambda: nn.Sequential(
            nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 2, 2), nn.Flatten(), nn.Linear(18, 3)
        )
    ).double()
    g = stream(0, "images")
    x, y = torch.rand(40, 1, 6, 6, generator=g).double(), torch.arange(40) % 3
    aux = Data(x[20:], y[20:], 3, "images")
    a, b, c = (
        bayes_wb(model, x[:20], y[:20], aux, QUICK, stream(0), cut="1", proxies=2, form=form, n_steps=200)
        for form in ("difference", "point", "integrated")
    )
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(a, c, rtol=0, atol=1e-2)
    assert linearised(model, "1", x, y, form="point")[0].shape == (40, 3, 4, 4)


# Gauge and posterior


def test_one_vector_added_to_all_classes_of_the_proxy_changes_nothing(monkeypatch):
    model, aux, data = net(mlp), clusters(60, 0), clusters(20, 1)
    v = torch.randn(7, generator=stream(5))

    def set_(shift):
        def change(head):
            head[0].weight.copy_(torch.ones_like(head[0].weight).cumsum(0) / 9 + shift)
            head[0].bias.copy_(torch.arange(3.0) + shift.sum())

        return change

    def scores(shift, **settings):
        fixed(monkeypatch, set_(shift))
        return bayes_wb(model, data.x, data.y, aux, QUICK, stream(0), proxies=1, **settings)

    for form in ("difference", "point", "integrated"):
        torch.testing.assert_close(scores(0 * v, form=form), scores(v, form=form), rtol=1e-4, atol=1e-4)
        raw, moved = (scores(u, form=form, output="logits") for u in (0 * v, v))
        assert (raw - moved).abs().max() > 0.1  # the wrong version


def test_on_raw_logits_it_is_the_posterior_of_gaussian_naive_bayes(monkeypatch):
    """Plug-in weights mu / S and -mu^2 / (2 S), of the training set's means and of the true ones."""
    g, d, c = stream(0, "bayes"), 5, 4
    S = torch.rand(d, generator=g).double() + 0.5
    true = torch.randn(c, d, generator=g).double()
    own = true + 0.3 * torch.randn(c, d, generator=g).double()
    x, y = torch.randn(30, d, generator=g).double(), torch.arange(30) % c

    def plug(mu):
        def change(head):
            (layer,) = (m for m in head.modules() if isinstance(m, nn.Linear))
            layer.weight.copy_(mu / S)
            layer.bias.copy_(-(mu**2 / S).sum(1) / 2)

        return change

    model = nn.Linear(d, c).double().eval()
    with torch.no_grad():
        plug(own)(model)
    fixed(monkeypatch, plug(true))
    aux = Data(x, y, c, "bayes")

    def scores(labels, output):
        return bayes_wb(model, x, labels, aux, QUICK, stream(0), proxies=1, output=output)

    spread = S.sqrt().numpy()
    want = [
        sum(gauss.logpdf(row, m, spread) - gauss.logpdf(row, t, spread)).sum()
        for row, m, t in zip(x.numpy(), own[y].numpy(), true[y].numpy(), strict=True)
    ]
    torch.testing.assert_close(scores(y, "logits"), torch.tensor(want).double(), rtol=1e-9, atol=1e-9)
    rest = torch.stack([scores((y + k) % c, "logits") - scores((y + k) % c, "log_softmax") for k in range(c)])
    torch.testing.assert_close(rest, rest[:1].expand(c, -1), rtol=1e-9, atol=1e-9)
    assert rest[0].std() > 0.01


def test_log_probabilities_are_averaged_not_weights(monkeypatch):
    model, aux, data = net(mlp), clusters(60, 0), clusters(20, 1)
    changes = [lambda head, k=k: [w.mul_(3**k) for w in head.parameters()] for k in range(3)]

    def scores(*some):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            fixed(
                monkeypatch,
                *(
                    lambda head, f=f: (torch.manual_seed(7), head[0].reset_parameters(), f(head))
                    for f in some
                ),
            )
            return bayes_wb(model, data.x, data.y, aux, QUICK, stream(0), proxies=len(some))

    each = torch.stack([scores(change) for change in changes])
    torch.testing.assert_close(scores(*changes), each.mean(0))
    assert (
        scores(lambda head: [w.mul_(13 / 3) for w in head.parameters()]) - each.mean(0)
    ).abs().max() > 0.01


# What it finds


def test_finds_what_a_linear_model_knows_by_heart_and_nothing_where_nothing_is():
    game, truth = worlds.ridge(leaks=True, seed=0)
    assert auc(bayes_wb(game.model, game.x, game.y, game.aux, QUICK, stream(0), proxies=2), truth) > 0.7
    areas = []
    for seed in range(20):
        game, truth = worlds.ridge(leaks=False, seed=seed)
        score = bayes_wb(game.model, game.x, game.y, game.aux, QUICK, stream(seed), proxies=2)
        areas.append(auc(score, truth) - 0.5)
    found = torch.tensor(areas)
    assert found.mean().abs() < 4 * found.std() / 20**0.5  # a false alarm in 16,000


def test_a_proxy_of_the_training_data_itself_explains_all():
    """Target and one proxy are then drawn alike, and no order of theirs can tell members: AUC is a half."""
    recipe = Recipe(
        net="softmax", epochs=20, batch=16, lr=0.1, scale="none", engine="stacked", precision="float32"
    )
    areas = {"itself": [], "other": []}
    for seed in range(8):
        members, others = clusters(60, 10 + seed, d=30), clusters(60, 40 + seed, d=30)
        x, y = torch.cat([members.x, others.x]), torch.cat([members.y, others.y])
        truth = torch.arange(120) < 60
        state = train(
            lambda: nn.Linear(30, 3), recipe, members.x, members.y, torch.ones(1, 60).bool(), [seed]
        )
        model = nn.Linear(30, 3).eval()
        model.load_state_dict({k: t[0] for k, t in state.items()})
        for name, aux in (("itself", members), ("other", clusters(60, 70 + seed, d=30))):
            score = bayes_wb(model, x, y, aux, replace(recipe, epochs=10), stream(seed), proxies=1)
            areas[name].append(auc(score, truth))
    itself, other = (torch.tensor(areas[name]) for name in ("itself", "other"))
    assert other.mean() > 0.6
    assert (itself.mean() - 0.5).abs() < 0.1


class Zero(nn.Linear):
    """Starts from 0."""

    def reset_parameters(self):
        with torch.no_grad():
            self.weight.zero_()
            self.bias.zero_()


def test_permuting_the_units_of_the_trunk_changes_nothing():
    model = net(lambda: nn.Sequential(nn.Linear(6, 8), nn.Tanh(), Zero(8, 3))).double()
    aux, data = clusters(60, 0, dtype=torch.float64), clusters(20, 1, dtype=torch.float64)
    model[2].weight.data = torch.randn(3, 8, generator=stream(1)).double()
    before = bayes_wb(model, data.x, data.y, aux, QUICK, stream(0))
    p = torch.randperm(8, generator=stream(2))
    with torch.no_grad():
        for w, order in ((model[0].weight, p), (model[0].bias, p)):
            w.copy_(w[order].clone())
        model[2].weight.copy_(model[2].weight[:, p].clone())
    after = bayes_wb(model, data.x, data.y, aux, QUICK, stream(0))
    torch.testing.assert_close(before, after, rtol=1e-9, atol=1e-9)


# What heads are trained on and how


def test_heads_learn_aux_alone_by_the_recipe(monkeypatch):
    seen = {}

    def watched(fresh, recipe, x, y, member, seeds, **settings):
        seen.update(recipe=recipe, x=x, y=y, member=member, seeds=seeds, **settings)
        return train(fresh, recipe, x, y, member, seeds, **settings)

    monkeypatch.setattr(module, "train", watched)
    model, aux, data = net(mlp), clusters(200, 0), clusters(20, 1)
    recipe = Recipe(
        net="cnn", epochs=3, batch=7, optimiser="adamw", lr=0.01, weight_decay=0.1, schedule="step",
        label_smoothing=0.1, augment=("mirror",), engine="serial", precision="bfloat16",
    )  # fmt: skip
    bayes_wb(model, data.x, data.y, aux, recipe, stream(0), proxies=4)
    torch.testing.assert_close(seen["x"], cut(model, None, aux.x).detach())
    assert torch.equal(seen["y"], aux.y)
    assert seen["member"].shape == (4, 200)
    assert seen["member"].all()
    assert len(set(seen["seeds"])) == 4
    want = replace(recipe, epochs=6, augment=(), scale="none", engine="stacked", precision="float32")
    assert seen["recipe"] == want  # an epoch of the trainer takes half of the records it is given
    assert seen["val"] is None
    bayes_wb(model, data.x, data.y, aux, Recipe(epochs=3, patience=2), stream(0), proxies=4)
    held = ~seen["member"][0]
    assert held.sum() == 20
    assert torch.equal(seen["val"].x, seen["x"][held])
    assert torch.equal(seen["val"].y, aux.y[held])
    assert seen["recipe"].patience == 4


def test_heads_see_each_record_as_often_as_there_are_epochs():
    """Counted in the head's first layer, which need not be a torch layer."""
    rows = []

    class Counted(nn.Linear):
        def forward(self, x):
            rows.append(len(x) if self.training else 0)
            return super().forward(x)

    model = net(lambda: nn.Sequential(nn.Linear(6, 8), Counted(8, 3)))
    train_heads(model, None, clusters(64, 0), Recipe(epochs=3, batch=8), stream(0))
    assert sum(rows) == 3 * 64


def test_trained_models_have_the_trunk_of_the_target_and_heads_of_their_own():
    def make():
        return nn.Sequential(
            nn.Linear(6, 8),
            nn.BatchNorm1d(8),
            nn.ReLU(inplace=True),
            nn.Linear(8, 5),
            nn.BatchNorm1d(5),
            nn.Linear(5, 3),
        )

    model, aux = net(make), clusters(64, 0)
    kept = {k: t.clone() for k, t in model.state_dict().items()}
    heads = train_heads(model, "2", aux, QUICK, stream(0), proxies=2)
    for head in heads:
        state = head.state_dict()
        assert not any(m.training for m in head.modules())
        assert {k for k in kept if torch.equal(kept[k], state[k])} == {k for k in kept if k[0] in "01"}
        assert not torch.equal(state["4.running_mean"], kept["4.running_mean"])  # the head's own one learns
    assert not torch.equal(heads[0][3].weight, heads[1][3].weight)
    assert all(torch.equal(kept[k], t) for k, t in model.state_dict().items())


class Functional(nn.Module):
    """The same net as `mlp`, but its ReLU is a function, and so it is no chain."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 7), nn.Linear(7, 3)

    def forward(self, x):
        return self.c(torch.relu(self.b(torch.tanh(self.a(x)))))


def test_a_net_that_is_no_chain_has_the_same_proxies():
    model, other, aux, data = net(mlp), Functional().eval(), clusters(60, 0), clusters(20, 1)
    other.load_state_dict(dict(zip(other.state_dict(), model.state_dict().values(), strict=True)))
    recipe = replace(QUICK, epochs=5)
    for place, same in ((None, None), ("2", "b")):
        a = bayes_wb(model, data.x, data.y, aux, recipe, stream(0), cut=place, proxies=2)
        b = bayes_wb(other, data.x, data.y, aux, recipe, stream(0), cut=same, proxies=2)
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    (head,) = train_heads(other, "b", aux, recipe, stream(0))
    assert torch.equal(head.a.weight, other.a.weight)
    assert torch.equal(head.b.weight, other.b.weight)
    assert not torch.equal(head.c.weight, other.c.weight)


# Extremes, purity, errors


def test_a_score_depends_on_its_own_record_alone():
    model, aux, data = net(mlp), clusters(60, 0), clusters(300, 1)
    for form in ("difference", "point", "integrated"):
        settings = {"proxies": 2, "form": form, "n_steps": 5}
        full = bayes_wb(model, data.x, data.y, aux, QUICK, stream(0), **settings)
        for rows in (slice(0, 1), slice(250, 300)):
            part = bayes_wb(model, data.x[rows], data.y[rows], aux, QUICK, stream(0), **settings)
            assert torch.equal(part, full[rows])
        again = bayes_wb(model, data.x, data.y, aux, QUICK, stream(0), **settings)
        assert torch.equal(again, full)
        assert not torch.equal(bayes_wb(model, data.x, data.y, aux, QUICK, stream(1), **settings), full)
        assert full.dtype == torch.float64


def test_confident_models_give_finite_scores():
    model, aux, data = net(mlp), clusters(60, 0), clusters(20, 1)
    model[4].weight.data *= 1e4
    for form in ("difference", "point", "integrated"):
        score = bayes_wb(model, data.x, data.y, aux, QUICK, stream(0), proxies=2, form=form)
        assert score.isfinite().all()
    assert bayes_wb(model, data.x, data.y, aux, QUICK, stream(0), proxies=2).min() < -100


def test_arguments_are_left_alone_after_an_error_too():
    model, aux, data = net(mlp), clusters(60, 0), clusters(20, 1)
    model[2].weight.requires_grad_(False)
    tensors = [aux.x, aux.y, data.x, data.y, *model.state_dict().values()]
    before, rng = [t.clone() for t in tensors], torch.get_rng_state()
    flags = [w.requires_grad for w in model.parameters()]
    for form in ("difference", "point", "integrated"):
        bayes_wb(model, data.x, data.y, aux, QUICK, stream(0), proxies=2, form=form, n_steps=3)
    with pytest.raises(ValueError, match="n_steps|steps|zero"):
        bayes_wb(model, data.x, data.y, aux, QUICK, stream(0), proxies=2, cut="nowhere; zero")
    assert all(torch.equal(a, b) for a, b in zip(before, tensors, strict=True))
    assert torch.equal(rng, torch.get_rng_state())
    assert flags == [w.requires_grad for w in model.parameters()]
    assert all(w.grad is None for w in model.parameters())
    assert not any(m.training or m._forward_hooks or m._forward_pre_hooks for m in model.modules())


class Bare(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x):
        return x * self.scale


class Skip(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.b(self.a(x) + x)


def test_what_it_refuses():
    model, aux, data = net(mlp), clusters(60, 0), clusters(20, 1)

    def attack(model=model, x=data.x, y=data.y, aux=aux, **settings):
        return bayes_wb(model, x, y, aux, QUICK, stream(0), **settings)

    with pytest.raises(ValueError, match="aux must hold every class of y, got no record of class 1"):
        attack(aux=aux[aux.y != 1])
    assert len(attack(aux=aux[aux.y != 1], x=data.x[data.y != 1], y=data.y[data.y != 1], proxies=1))
    with pytest.raises(ValueError, match="reset_parameters above it, got `1` without"):
        attack(nn.Sequential(nn.Linear(6, 3), Bare()).eval(), cut="0")
    with pytest.raises(ValueError, match="cut must leave a head with parameters, got one without"):
        attack(cut="4")
    with pytest.raises(ValueError, match="information flows around `a`"):
        attack(Skip().eval(), cut="a")
    with pytest.raises(ValueError, match="eval mode"):
        attack(mlp())
    with pytest.raises(ValueError, match="eval mode"):
        train_heads(mlp(), None, aux, QUICK, stream(0))
    with pytest.raises(ValueError, match="eval mode"):
        linearised(mlp(), None, data.x, data.y)
    with pytest.raises(ValueError, match="proxies must be 1 or more, got 0"):
        attack(proxies=0)
    with pytest.raises(ValueError, match=r"aux must hold records of shape \[6\], got \[5\]"):
        attack(aux=clusters(60, 0, d=5))
    with pytest.raises(ValueError, match="1 record or more, got 0 and 0"):
        attack(x=data.x[:0], y=data.y[:0])
    tied = net(lambda: nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3)))
    tied[2].weight = tied[0].weight
    with pytest.raises(
        ValueError, match="cut must part no shared parameter, but 0.weight is used on both sides"
    ):
        attack(tied, cut="1")


def test_the_integral_sees_no_more_rows_at_once_for_10_000_records(monkeypatch):
    """captum raises `internal_batch_size` to the number of rows it is given: relying on it takes memory."""
    seen = []
    forward = nn.Linear.forward

    def counted(self, a):
        seen.append(len(a))
        return forward(self, a)

    model, most = net(mlp), []
    for n in (1_000, 10_000):
        data = clusters(n, seed=5)
        seen.clear()
        monkeypatch.setattr(nn.Linear, "forward", counted)
        w, b, z = linearised(model, None, data.x, data.y, n_steps=4)
        monkeypatch.undo()
        assert len(w) == len(b) == len(z) == n
        most.append(max(seen))
    assert most[0] == most[1] < 4 * 1_000
