import copy
import inspect

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import expit
from torch import nn
from torch.nn.functional import cross_entropy
from worlds import ridge

from glasslab import signals
from glasslab.checks import Floored
from glasslab.data import Data
from glasslab.likelihood import fit, ratio
from glasslab.metrics import auc
from glasslab.recipe import Recipe
from glasslab.split import shadow_rows, stream, target_rows
from whitebox.displacement import displaced, displacement, matt, reference_on


def net(seed=0, kind="conv", dtype=torch.float64):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if kind == "linear":
            return nn.Sequential(nn.Flatten(), nn.Linear(32, 4)).to(dtype).eval()
        layers = [nn.Conv2d(2, 3, 3), nn.GroupNorm(1, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 4)]
        return nn.Sequential(*layers).to(dtype).eval()


def records(n=12, seed=0, dtype=torch.float64):
    g = stream(seed, "displacement")
    return torch.randn(n, 2, 4, 4, generator=g).to(dtype), torch.randint(4, (n,), generator=g)


def gradients(model, x, y, of):
    """Of each record: parameter -> tensor, by autograd one after another."""
    model, out = copy.deepcopy(model), []
    for v, c in zip(x, y, strict=True):
        z = model(v[None])
        if of == "phi":
            others = torch.stack([z[0, k] for k in range(z.shape[1]) if k != c])
            value = z[0, c] - others.logsumexp(0)
        else:
            value = cross_entropy(z, c[None])
        grads = torch.autograd.grad(value, list(model.parameters()))
        out.append(dict(zip(dict(model.named_parameters()), grads, strict=True)))
    return out


# MATT


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_matt_is_the_textbook_product_at_the_reference(kind):
    model, reference, (x, y) = net(1, kind), net(0, kind), records()
    moved = {k: (p - dict(reference.named_parameters())[k]).detach() for k, p in model.named_parameters()}

    def textbook(at):
        each = [-sum((moved[k] * g).sum() for k, g in grads.items()) for grads in gradients(at, x, y, "loss")]
        return torch.stack(each)

    got = matt(reference, model, x, y, shared=kind == "conv")
    torch.testing.assert_close(got, textbook(reference), rtol=1e-9, atol=1e-12)
    assert not torch.allclose(got, textbook(model), rtol=0.01)  # of the gradient at theta itself


def test_matt_is_the_first_order_drop_of_the_loss():
    reference, (x, y) = net(0, "linear"), records()
    model = copy.deepcopy(reference)
    for p in model.parameters():
        p.data += 1e-6 * torch.randn(p.shape, generator=stream(1)).double()
    drop = signals.loss(reference(x).detach(), y) - signals.loss(model(x).detach(), y)
    torch.testing.assert_close(matt(reference, model, x, y), drop, rtol=1e-3, atol=1e-10)


def test_no_difference_gives_equal_scores():
    model, (x, y) = net(0, "linear"), records()
    assert matt(copy.deepcopy(model), model, x, y).tolist() == [0.0] * 12
    aux = Data(*records(40, 1), 4, "aux")
    same = displaced(net(), net(), x, y, aux)
    assert same.tolist() == [[0.0] * 3] * 12


def test_sure_records_of_the_reference_are_not_tied_in_float32():
    """phi = 120 and 110 at theta_r, where grad loss is 0 in float32."""
    reference, model = nn.Linear(1, 2, bias=False).eval(), nn.Linear(1, 2, bias=False).eval()
    reference.weight.data, model.weight.data = torch.tensor([[-0.5], [0.5]]), torch.tensor([[-0.6], [0.6]])
    got = matt(reference, model, torch.tensor([[120.0], [110.0]]), torch.tensor([1, 1]))
    assert got.log().tolist() == pytest.approx([np.log(24) - 120, np.log(22) - 110], rel=1e-5)


def logistic(x, t, decay):
    """Ridge logistic regression by Newton-like steps; t are -1 and 1."""

    def f(w):
        m = t * (x @ w)
        return np.logaddexp(0, -m).mean() + decay / 2 * w @ w, -(x.T @ (t * expit(-m))) / len(t) + decay * w

    return minimize(
        f, np.zeros(x.shape[1]), jac=True, method="L-BFGS-B", options={"maxiter": 500, "gtol": 1e-6}
    ).x


def two_logits(w):
    model = nn.Linear(len(w), 2, bias=False).double().eval()
    model.weight.data = torch.tensor(np.stack([-w / 2, w / 2]))
    return model


def difference(draw, d, n, n_aux, decay=0.01, signal=2.0):
    """AUC of MATT less AUC of MALT (the loss): logistic labels, n members and n others."""
    rng = np.random.default_rng([draw, d, n_aux])
    w = rng.normal(size=d) / d**0.5 * signal

    def drawn(k):
        x = rng.normal(size=(k, d))
        return x, np.where(rng.random(k) < expit(x @ w), 1.0, -1.0)

    (x, t), (x_out, t_out), aux = drawn(n), drawn(n), drawn(n_aux)
    model, reference = two_logits(logistic(x, t, decay)), two_logits(logistic(*aux, decay))
    both = torch.tensor(np.concatenate([x, x_out]))
    y = torch.tensor((np.concatenate([t, t_out]) > 0).astype(int))
    member = torch.arange(2 * n) < n
    malt = -signals.loss(model(both).detach(), y)
    return auc(matt(reference, model, both, y), member) - auc(malt, member)


def test_matt_beats_the_loss_with_much_aux_and_loses_with_little():
    """Means over draws, above and below 0 by 3 standard errors."""
    much = np.array([difference(i, 20, 400, 4000) for i in range(40)])
    assert much.mean() > 3 * much.std(ddof=1) / 40**0.5
    little = np.array([difference(i, 200, 400, 400, signal=1.0) for i in range(15)])
    assert little.mean() < -3 * little.std(ddof=1) / 15**0.5


def test_a_small_aux_is_flagged():
    model, reference, (x, y) = net(1, "linear"), net(0, "linear"), records()
    with pytest.warns(Floored, match="reference from 99 of 100 records"):
        matt(reference, model, x, y, n_aux=99, n_train=10)
    matt(reference, model, x, y, n_aux=100, n_train=10)


def test_matt_refuses_weights_without_common_coordinates():
    (x, y), deep = (
        records(),
        "shared must be True unless model is one dense layer .*no common coordinates; see align",
    )
    with pytest.raises(ValueError, match=deep) as caught:
        matt(net(0), net(1), x, y)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="reference must have the parameters of model"):
        matt(net(0, "linear"), net(1), x, y, shared=True)
    for pair in ((net(0, "linear").train(), net(1, "linear")), (net(0, "linear"), net(1, "linear").train())):
        with pytest.raises(ValueError, match="eval|train"):
            matt(*pair, x, y)


def test_matt_refuses_other_scales():
    aux, other = (
        Data(torch.randn(60, 5, generator=stream(s)), torch.arange(60) % 3, 3, "aux") for s in (0, 1)
    )
    recipe = Recipe(net="softmax", epochs=2)
    a, b = (reference_on(data, recipe, stream(0)) for data in (aux, other))
    with pytest.raises(ValueError, match="reference must scale its records as model does"):
        matt(a, b, aux.x, aux.y)


def test_reference_on_learns_aux_with_the_recipe():
    g = stream(0)
    x = torch.randn(200, 5, generator=g)
    aux, recipe = Data(x, (x[:, 0] > 0).long(), 2, "aux"), Recipe(net="softmax", epochs=20)
    before = torch.random.get_rng_state()
    model = reference_on(aux, recipe, stream(1))
    again = reference_on(aux, recipe, stream(1))
    assert torch.equal(before, torch.random.get_rng_state())
    assert not model.training
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert (model(x).argmax(1) == aux.y).double().mean() > 0.95
    init = reference_on(aux, Recipe(net="mlp", epochs=1, lr=1e-9), stream(2))
    held = copy.deepcopy(init.state_dict())
    near = reference_on(aux, Recipe(net="mlp", epochs=1, lr=1e-9), stream(3), init=init)
    for name, t in near.state_dict().items():
        torch.testing.assert_close(t, held[name], rtol=1e-4, atol=1e-6)
    assert all(torch.equal(a, b) for a, b in zip(held.values(), init.state_dict().values(), strict=True))


def test_matt_finds_a_planted_leak_and_nothing_where_nothing_is():
    def score(game, seed):
        reference = ridge(leaks=False, seed=1000 + seed, n=len(game.y), d=game.x.shape[1])[
            0
        ].model  # other records
        return matt(reference, game.model, game.x, game.y)

    game, truth = ridge(leaks=True, seed=0)
    assert auc(score(game, 0), truth) > 0.7
    worlds = [ridge(leaks=False, seed=s, n=200, d=150, m=2) for s in range(20)]
    found = torch.tensor([auc(score(g, s), truth) - 0.5 for s, (g, truth) in enumerate(worlds)])
    assert found.mean().abs() <= 4 * found.std() / 20**0.5  # a false alarm in 16,000


# Displacement


def slow_displaced(model, start, x, y, aux, ridge_=0.05):
    """B^-1 D A^-1 from explicit means over aux, dense layer by dense layer; the norm by its diagonal."""
    theta, other = dict(model.named_parameters()), dict(start.named_parameters())
    moved = {k: (theta[k] - other[k]).detach() for k in theta}
    whole, V = gradients(model, aux.x, aux.y, "loss"), {}
    for k in ("1.weight", "1.bias"):
        square = torch.stack([g[k] ** 2 for g in whole]).mean(0)
        V[k] = moved[k] / (square + ridge_ * square.mean())
    with torch.no_grad():
        h = model[:4](aux.x)
        delta = model(aux.x).softmax(1) - nn.functional.one_hot(aux.y, 4)
    a = torch.cat([h, torch.ones(len(h), 1).double()], 1)
    A, B = (sum(v[:, None] * v for v in rows) / len(rows) for rows in (a, delta))
    A, B = (t + ridge_ * t.trace() / len(t) * torch.eye(len(t)).double() for t in (A, B))
    D = B.inverse() @ torch.cat([moved["4.weight"], moved["4.bias"][:, None]], 1) @ A.inverse()
    V["4.weight"], V["4.bias"] = D[:, :-1], D[:, -1]
    out = [
        [
            sum(float((g[k] * V[k]).sum()) for k in names)
            for names in (("1.weight", "1.bias"), ("4.weight", "4.bias"))
        ]
        for g in gradients(model, x, y, "phi")
    ]
    return torch.tensor(out, dtype=torch.float64)


def test_displaced_is_that_of_the_textbook():
    model, start, (x, y), aux = net(1), net(0), records(), Data(*records(60, 1), 4, "aux")
    got = displaced(model, start, x, y, aux, layers=("1", "4"))
    torch.testing.assert_close(got, slow_displaced(model, start, x, y, aux), rtol=1e-7, atol=1e-9)
    assert torch.equal(displaced(model, start, x, y, aux)[:, 1:], got)


def test_the_mean_of_both_ends():
    model, start, (x, y), aux = net(1), net(0), records(), Data(*records(60, 1), 4, "aux")
    both = displaced(model, start, x, y, aux, linearise="mean")
    assert not torch.allclose(both, displaced(model, start, x, y, aux), rtol=0.01)
    # where J is the same at both ends nothing changes: logits of all classes that shift alike
    shifted = copy.deepcopy(start)
    shifted[4].bias.data += 1.0
    ends = (displaced(shifted, start, x, y, aux, linearise=how) for how in ("mean", "end"))
    torch.testing.assert_close(*ends, rtol=1e-9, atol=1e-9)


def test_merged_adapters_depend_on_their_product_alone():
    """B R and R^-1 A are the same update as B and A; taken apart they would give another score."""
    g = stream(0)
    start, (x, y), aux = net(0), records(), Data(*records(60, 1), 4, "aux")
    B, A, R = (torch.randn(s, generator=g).double() for s in ((4, 2), (2, 12), (2, 2)))

    def merged(B, A):
        model = copy.deepcopy(start)
        model[4].weight.data = start[4].weight.data + B @ A
        return model

    one, other = merged(B, A), merged(B @ R, R.inverse() @ A)
    torch.testing.assert_close(
        displaced(one, start, x, y, aux), displaced(other, start, x, y, aux), rtol=1e-7, atol=1e-9
    )

    def apart(B, A):  # the wrong version: <dphi/dB, B> + <dphi/dA, A> whitened by each factor's own squares
        total = []
        for grads in gradients(merged(B, A), x, y, "phi"):
            gB, gA = grads["4.weight"] @ A.T, B.T @ grads["4.weight"]
            total.append((gB * B).sum() / gB.square().sum() + (gA * A).sum() / gA.square().sum())
        return torch.stack(total)

    assert not torch.allclose(apart(B, A), apart(B @ R, R.inverse() @ A), rtol=0.01)


def test_a_layer_that_aux_does_not_pull_at_counts_zero():
    model, start, (x, y), aux = net(1), net(0), records(), Data(*records(60, 1), 4, "aux")
    model[4].weight.data.zero_()
    got = displaced(model, start, x, y, aux)
    assert got.isfinite().all()
    assert (got[:, :2] == 0).all()
    assert (got[:, 2] != 0).all()


def test_the_ratio_is_that_of_the_sum_over_layers():
    S, member = torch.randn(8, 5, 3, generator=stream(0)), shadow_rows(8, 5, 0)
    s = torch.randn(5, 3, generator=stream(1))
    want = ratio(s.double().sum(1), fit(S.double().sum(2), member))
    torch.testing.assert_close(displacement(s, S, member), want)
    torch.testing.assert_close(
        displacement(s[:, 0], S[..., 0], member), ratio(s[:, 0], fit(S[..., 0], member))
    )
    twice = displacement(torch.cat([s, s], 1), torch.cat([S, S], 2), member)
    torch.testing.assert_close(twice, want)  # a sum of ratios would count a copied signal twice


def trained(start, data, steps=60, lr=0.5):
    model = copy.deepcopy(start)
    optimiser = torch.optim.SGD(model.parameters(), lr)
    for _ in range(steps):
        optimiser.zero_grad()
        cross_entropy(model(data.x), data.y).backward()
        optimiser.step()
    return model.eval()


def mlp(seed, d=20):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(d, 16), nn.ReLU(), nn.Linear(16, 3)).eval()


def world(seed, starts, *, leaks=True, n=60, m=16, d=20):
    """AUC of the displacement over 60 candidates with coin-flip labels; `starts(i)` is theta_0 of model i."""
    g = stream(seed, "init")
    pool, aux, fresh = (
        Data(torch.randn(k, d, generator=g), torch.randint(3, (k,), generator=g), 3, "pool")
        for k in (n, 200, n)
    )
    member, truth = shadow_rows(m, n, seed), target_rows(1, n, seed)[0]
    models = [trained(starts(i), pool[row]) for i, row in enumerate(member)]
    target = trained(starts(m), (pool if leaks else fresh)[truth])
    S = torch.stack([displaced(f, starts(i), pool.x, pool.y, aux) for i, f in enumerate(models)])
    return auc(displacement(displaced(target, starts(m), pool.x, pool.y, aux), S, member), truth)


def test_finds_a_planted_leak():
    assert world(0, lambda i: mlp(0), n=100, m=8) > 0.65


@pytest.mark.slow
def test_a_shared_start_tells_more_than_starts_of_their_own():
    own = [world(s, lambda i, s=s: mlp(1000 * s + i)) for s in range(6)]
    shared = [world(s, lambda i, s=s: mlp(s)) for s in range(6)]
    assert np.mean(own) > 0.6
    assert np.mean(shared) > np.mean(own)


@pytest.mark.slow
def test_displacement_finds_nothing_where_nothing_is():
    areas = [world(s, lambda i, s=s: mlp(s), leaks=False, m=8) for s in range(20)]
    found = torch.tensor(areas) - 0.5
    assert found.mean().abs() <= 4 * found.std() / 20**0.5  # a false alarm in 16,000


# Both


def test_order_and_memory_change_nothing_and_arguments_are_left_alone():
    model, start, (x, y), aux = net(1), net(0), records(30), Data(*records(60, 1), 4, "aux")
    held = [copy.deepcopy(m.state_dict()) for m in (model, start)]
    p = torch.randperm(30, generator=stream(0))
    for score in (
        lambda x, y, memory: matt(start, model, x, y, shared=True, memory=memory),
        lambda x, y, memory: displaced(model, start, x, y, aux, linearise="mean", memory=memory),
    ):
        whole = score(x, y, "512MiB")
        torch.testing.assert_close(score(x[p], y[p], "512MiB"), whole[p], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(score(x, y, "256KiB"), whole, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(score(x[:1], y[:1], "512MiB"), whole[:1], rtol=1e-9, atol=1e-9)
    for before, m in zip(held, (model, start), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(before.values(), m.state_dict().values(), strict=True))
        assert all(q.grad is None and q.requires_grad for q in m.parameters())


def test_displaced_refuses():
    (x, y), aux, raw = records(), Data(*records(60, 1), 4, "aux"), inspect.unwrap(displaced)
    with pytest.raises(ValueError, match="linearise must be 'end' or 'mean', got 'path'"):
        raw(net(1), net(0), x, y, aux, linearise="path")
    with pytest.raises(ValueError, match="ridge must be above 0, got 0.0"):
        displaced(net(1), net(0), x, y, aux, ridge=0.0)
    with pytest.raises(ValueError, match="start must have the parameters of model"):
        displaced(net(1), net(0, "linear"), x, y, aux)
    with pytest.raises(ValueError, match="eval|train"):
        displaced(net(1).train(), net(0), x, y, aux)
