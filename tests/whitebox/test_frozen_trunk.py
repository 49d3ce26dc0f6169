import copy
import inspect

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from scipy.stats import norm, spearmanr
from torch import nn
from torch.nn.functional import cross_entropy, one_hot
from worlds import ridge

from blackbox.lira import lira
from glasslab.checks import Floored
from glasslab.metrics import auc, tpr_at_fpr
from glasslab.signals import phi
from glasslab.split import shadow_rows, stream, target_rows
from whitebox.frozen_heads import best, deep, dense, law, of_weights
from whitebox.frozen_trunk import excess, frozen_trunk, with_trunks

QUICK = {"weight_decay": 1e-3, "heads": 48, "steps": 60}


def net(*sizes, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = [m for a, b in zip(sizes, sizes[1:], strict=False) for m in (nn.Linear(a, b), nn.ReLU())]
        return nn.Sequential(*layers[:-1]).eval()


def records(n=40, d=6, c=3, seed=0, dtype=torch.float32):
    g = stream(seed, "frozen")
    return torch.randn(n, d, generator=g).to(dtype), torch.randint(c, (n,), generator=g)


def uneven(member, n=40):
    """Records of which no half has a class at its even share: the bias's first gradient is rounding there,
    and Adam's first step has a length of lr all the same."""
    for seed in range(100):
        x, y = records(n, seed=seed)
        count = member.double() @ one_hot(y, 3).double()
        if not (3 * count == count.sum(1, keepdim=True)).any():
            return x, y
    raise AssertionError


def trained(model, x, y, steps=100, lr=0.5, decay=1e-3):
    model = copy.deepcopy(model).train()
    optimiser = torch.optim.SGD(model.parameters(), lr, weight_decay=decay)
    for _ in range(steps):
        optimiser.zero_grad()
        cross_entropy(model(x), y).backward()
        optimiser.step()
    return model.eval()


def halves(heads, n, seed=0):
    return torch.rand(heads, n, generator=stream(seed)) < 0.5


def unchecked(function):
    while hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    return function


# Slow twins: one head at a time, by torch.optim in float64; one record at a time, in numpy


def slow_head(h, y, row, c, *, decay, steps, lr=0.05):
    """A dense head with bias from 0, on the records of one half."""
    head = nn.Linear(h.shape[1], c).double()
    for p in head.parameters():
        nn.init.zeros_(p)
    optimiser = torch.optim.Adam(head.parameters(), lr, weight_decay=decay)
    for _ in range(steps):
        optimiser.zero_grad()
        cross_entropy(head(h[row]), y[row]).backward()
        optimiser.step()
    return head.requires_grad_(False)


def slow_phi(z, y):
    out = []
    for row, c in zip(z.double().numpy(), y.tolist(), strict=True):
        others = np.delete(row, c)
        out.append(row[c] - np.log(np.exp(others - others.max()).sum()) - others.max())
    return np.array(out)


def slow_ratio(own, S, member):
    out = []
    for i in range(len(own)):
        inside, outside = S[member[:, i].numpy(), i], S[~member[:, i].numpy(), i]
        logs = [norm.logpdf(own[i], np.median(s), s.std() + 1e-3) for s in (inside, outside)]
        out.append(logs[0] - logs[1])
    return np.array(out)


def slow(model, x, y, member, *, decay, steps):
    with torch.no_grad():
        h, z = model[:-1](x).double(), model(x)
    heads = [slow_head(h, y, row, z.shape[1], decay=decay, steps=steps) for row in member]
    return slow_phi(z, y), np.stack([slow_phi(head(h), y) for head in heads]), heads, h


def test_the_score_is_that_of_heads_trained_one_by_one():
    model, member = net(6, 8, 3), halves(20, 40)
    x, y = uneven(member)
    for decay in (0.0, 0.1):
        own, S, _, _ = slow(model, x, y, member, decay=decay, steps=30)
        want = slow_ratio(own, S, member)
        with pytest.warns(Floored, match="20 of 48 heads"):
            got = frozen_trunk(model, x, y, stream(0), weight_decay=decay, heads=20, steps=30)
        np.testing.assert_allclose(got.numpy(), want, rtol=1e-3, atol=1e-3)


def test_matt_is_the_product_of_weights_with_the_gradient_at_the_mean_out_head():
    model, member = net(6, 8, 3), halves(20, 40)
    x, y = uneven(member)
    with pytest.warns(Floored, match="20 of 48 heads"):
        got = frozen_trunk(model, x, y, stream(0), weight_decay=0.01, heads=20, steps=30, statistic="matt")
    _, _, heads, h = slow(model, x, y, member, decay=0.01, steps=30)
    target = [p.detach().double() for p in model[-1].parameters()]
    for i in range(40):
        out = [head for head, row in zip(heads, member, strict=True) if not row[i]]
        mean = [
            torch.stack(t).mean(0).requires_grad_() for t in zip(*map(nn.Module.parameters, out), strict=True)
        ]
        loss = cross_entropy((mean[0] @ h[i] + mean[1])[None], y[i : i + 1])
        grads = torch.autograd.grad(loss, mean)
        want = -sum(float(((a - b.detach()) * g).sum()) for a, b, g in zip(target, mean, grads, strict=True))
        assert float(got[i]) == pytest.approx(want, rel=1e-3, abs=1e-4)


def softmax_regressions(x, y, rows, steps=400, lr=0.5, decay=1e-3):
    """[m d c]: gradient descent from small random weights, all rows side by side."""
    W = 0.1 * torch.randn(len(rows), x.shape[1], 3, generator=stream(7, "start"))
    share = (rows / rows.sum(1, keepdim=True))[:, :, None]
    for _ in range(steps):
        W = W - lr * (x.T @ ((x @ W).softmax(2) - one_hot(y, 3)).mul(share) + decay * W)
    return W


def test_without_a_trunk_it_is_lira_with_retrained_models():
    """Both from 64 models, so both with noise: they agree as two halves of a zoo do."""
    (x, y), rows = records(100, 20, 3), shadow_rows(128, 100, 5)
    member = target_rows(1, 100, 0)[0]
    W = softmax_regressions(x, y, torch.cat([rows, member[None]]))
    model = nn.Linear(20, 3, bias=False).eval()
    model.weight.data = W[-1].T.contiguous()
    got, out, S = frozen_trunk(model, x, y, stream(0), weight_decay=1e-3, heads=64), [], phi(x @ W[:-1], y)
    for part in (slice(0, 64), slice(64, 128)):
        out.append(lira(phi(model(x).detach(), y), S[part], rows[part], variance="record"))
    assert spearmanr(got, out[0]).statistic > spearmanr(*out).statistic - 0.05 > 0.8
    assert abs(auc(got, member) - np.mean([auc(s, member) for s in out])) < 0.05


# What a head may see


def test_a_head_sees_its_half_alone():
    """Others' labels and features leave its weights as they are, to the bit where products are alone."""
    x, y = records(40, 6, 3)
    member = halves(20, 40)
    settings = {"decay": 0.01, "steps": 40, "lr": 0.05}
    W, own = dense(x, y, member, 3, **settings), y.clone()
    for i in (0, 17, 39):
        own[i] = (y[i] + 1) % 3
        changed = x.clone()
        changed[i] *= -3
        V = dense(changed, own, member, 3, **settings)
        out = ~member[:, i]
        torch.testing.assert_close(V[..., out], W[..., out], rtol=0, atol=1e-5)
        assert ((V - W)[..., ~out].abs().amax((0, 1)) > 1e-3).all()
        own[i] = y[i]


def test_deeper_heads_see_their_half_alone():
    x, y = records(24, 6, 3)
    member = halves(6, 24)
    settings = {"decay": 0.01, "steps": 10, "lr": 0.05}
    z = deep(net(6, 5, 3), x, y, member, stream(1), **settings)(x)
    other = y.clone()
    other[3] = (y[3] + 1) % 3
    moved = deep(net(6, 5, 3), x, other, member, stream(1), **settings)(x)
    out = ~member[:, 3]
    assert torch.equal(z[out], moved[out])
    assert not torch.isclose(z[~out], moved[~out]).all()


def test_candidates_in_pieces_and_heads_in_company_learn_the_same():
    x, y = records(300, 6, 3)
    member = halves(20, 300)
    settings = {"decay": 0.01, "steps": 40, "lr": 0.05}
    W = dense(x, y, member, 3, **settings)
    torch.testing.assert_close(dense(x, y, member[4:5], 3, **settings)[..., 0], W[..., 4], rtol=0, atol=1e-4)
    p = torch.randperm(300, generator=stream(1))
    torch.testing.assert_close(dense(x[p], y[p], member[:, p], 3, **settings), W, rtol=0, atol=1e-4)
    assert of_weights(W)(x[:7]).shape == (20, 7, 3)


# The exact law


def test_the_best_head_is_that_of_another_solver():
    (x, y), n, c, d = records(50, 4, 3, dtype=torch.float64), 50, 3, 4
    a = torch.cat([x, torch.ones(n, 1).double()], 1)
    theta = best(a, y, c, decay=0.05)

    def cost(w):
        w = w.reshape(c, d + 1)
        loss = -log_softmax(a.numpy() @ w.T, 1)[np.arange(n), y.numpy()].mean()
        return loss + 0.025 * (w**2).sum()

    want = minimize(cost, np.zeros(c * (d + 1)), options={"gtol": 1e-9}).x.reshape(c, d + 1)
    P = basis(c)
    np.testing.assert_allclose(theta.numpy(), P.T @ want, atol=1e-6)
    with pytest.raises(ValueError, match="weight_decay must be above 0 where a head is solved, got 0"):
        best(a, y, c, decay=0.0)


def basis(c):
    """Helmert's."""
    columns = []
    for k in range(1, c):
        v = np.zeros(c)
        v[:k], v[k] = 1, -k
        columns.append(v / np.linalg.norm(v))
    return np.stack(columns, 1)


def test_the_law_is_that_of_explicit_matrices():
    """Gradients, H and G record by record; the covariance of the others is formed, not corrected for."""
    n, c, d, decay, small = 30, 3, 3, 0.05, 1e-4
    x, y = records(n, d, c, dtype=torch.float64)
    a = torch.cat([x, torch.ones(n, 1).double()], 1)
    layer = nn.Linear(d, c).double()
    got = law(layer, a, y, decay=decay, ridge=small)
    P, star = basis(c), best(a, y, c, decay=decay).numpy()
    theta = P.T @ torch.cat([layer.weight, layer.bias[:, None]], 1).detach().numpy()
    gs, H = [], np.zeros((2 * (d + 1), 2 * (d + 1)))
    for v, k in zip(a.numpy(), y.tolist(), strict=True):
        p = softmax(P @ star @ v)
        gs.append(np.kron(P.T @ (p - np.eye(c)[k]), v))
        H += np.kron(P.T @ (np.diag(p) - np.outer(p, p)) @ P, np.outer(v, v)) / n
    gs = np.stack(gs) - np.mean(gs, 0)
    H += decay * np.eye(len(H))
    G = gs.T @ gs / n
    G += small * np.trace(G) / len(G) * np.eye(len(G))
    for i, g in enumerate(gs):
        others = np.linalg.inv(H) @ (G - np.outer(g, g) / n) @ np.linalg.inv(H) / n
        delta = -2 / n * np.linalg.inv(H) @ g
        want = delta @ np.linalg.inv(others) @ (theta - star).flatten()
        assert float(got[i]) == pytest.approx(want, rel=1e-5)


def test_the_law_is_a_log_likelihood_ratio():
    """Of solved heads: IN less OUT mean is the variance within each side, as for any two such Gaussians."""
    n, c, d = 200, 3, 3
    x, y = records(n, d, c, dtype=torch.float64)
    a = torch.cat([x, torch.ones(n, 1).double()], 1)
    layer, rows, out = nn.Linear(d, c).double(), halves(100, n, 3), []
    for row in rows:
        theta = torch.tensor(basis(c)) @ best(a[row], y[row], c, decay=0.05)
        layer.weight.data, layer.bias.data = theta[:, :d], theta[:, d]
        out.append(law(layer, a, y, decay=0.05, ridge=1e-6))
    s, inside = torch.stack(out), rows.double()
    mean = [(s * w).sum(0) / w.sum(0) for w in (inside, 1 - inside)]
    within = ((s - torch.where(rows, *mean)).square()).mean(0)
    assert (mean[0] - mean[1]).mean() / within.mean() == pytest.approx(1, abs=0.1)
    assert ((mean[0] + mean[1]) / 2).abs().mean() < 0.15 * within.mean().sqrt()
    areas = [auc(s[:, i], rows[:, i]) for i in range(n)]
    want = norm.cdf((within / 2).sqrt()).mean()
    assert np.mean(areas) == pytest.approx(want, abs=0.01)


# The trunk's memory


class Memory(nn.Module):
    """Random features of a record; those of members are moved, by as much as their label says."""

    def __init__(self, pool, y, member, seed, strength, c=3, u=12):
        super().__init__()
        g = stream(seed, "memory")
        self.R = torch.randn(pool.shape[1], u, generator=g) / pool.shape[1] ** 0.5
        self.mark = torch.randn(c, u, generator=stream("mark"))
        self.pool, self.y, self.member, self.strength = pool, y, member, strength
        self.last = nn.Linear(u, c)

    def features(self, x):
        same = (x[:, None] == self.pool).all(2).float()  # [b n]
        return (x @ self.R).relu() + self.strength * (same * self.member) @ self.mark[self.y]

    def forward(self, x):
        return self.last(self.features(x))


def memory(seed, strength, m=8, n=120):
    """(target, x, y, shadows, rows, truth)."""
    x, y = records(n, 10, 3, seed=seed)
    rows, truth = shadow_rows(m, n, seed), target_rows(1, n, seed)[0]

    def fitted(member, s):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(s)
            model = Memory(x, y, member, s, strength)
        with torch.no_grad():
            h = model.features(x)
        head = trained(model.last, h[member], y[member], steps=60)
        model.last = head
        return model.eval()

    return fitted(truth, 999), x, y, [fitted(row, s) for s, row in enumerate(rows)], rows, truth


def both(seed, strength):
    model, x, y, shadows, rows, truth = memory(seed, strength)
    plain = frozen_trunk(model, x, y, stream(0), **QUICK)
    more = with_trunks(model, x, y, shadows, rows, stream(0), **QUICK)
    return plain, more, truth


def test_what_the_trunk_remembers_is_found_through_other_trunks():
    areas = np.array([[auc(s, truth) for s in scores] for *scores, truth in (both(s, 0.5) for s in range(3))])
    assert (areas[:, 1] > areas[:, 0] + 0.1).all()
    assert areas[:, 1].mean() > 0.75


def test_random_trunks_say_nothing():
    """The wrong version corrects each record by its own excess, whatever trunks do with members elsewhere."""
    game, truth = ridge(leaks=True, seed=0, n=200, d=20, hidden=120)
    f, x, y, member = game.model, game.x, game.y, game.shadows.inside
    plain = frozen_trunk(f, x, y, stream(0), **QUICK)
    more = with_trunks(f, x, y, game.shadows.models, member, stream(0), **QUICK)
    assert not torch.equal(plain, more)
    assert spearmanr(plain, more).statistic > 0.99
    assert abs(auc(plain, truth) - auc(more, truth)) < 0.01
    weight = {"decay": 1e-3, "steps": 60, "lr": 0.05}
    rows, means = halves(48, 200), []
    for model in (*game.shadows.models[:8], f):
        with torch.no_grad():
            S = phi(of_weights(dense(model[:-1](x), y, rows, 5, **weight))(model[:-1](x)), y)
        means.append((S * ~rows).sum(0) / (~rows).sum(0))
    out = ~member[:8]
    expected = (torch.stack(means[:-1]) * out).sum(0) / out.sum(0)
    from whitebox import frozen_trunk as module

    wrong = unchecked(module._scores)
    with torch.no_grad():
        h, z = f[:-1](x), f(x).double()
    shifted = z + one_hot(y, 5) * (means[-1] - expected)[:, None]  # phi + e
    heads = of_weights(dense(h, y, rows, 5, **weight))
    assert spearmanr(plain, wrong(h, shifted, y, heads, rows, "ratio")).statistic < 0.95


def test_the_excess_by_hand():
    """Two records and four trunks; the second record is in one of them."""
    trunks = torch.tensor([[1.0, 4.0], [3.0, 6.0], [6.0, 1.0], [8.0, 2.0]]).double()
    member = torch.tensor([[False, False], [False, True], [True, False], [True, False]])
    easy = torch.tensor([5.0, 4.0]).double()
    mean = [2.0, 7 / 3]
    rise = ((7 - 2) + (6 - 7 / 3)) / 2
    square = (1 + 1 + (5 / 3) ** 2 + (4 / 3) ** 2 + (1 / 3) ** 2) / (1 + 2)
    want = []
    for e, k in ((5 - mean[0], 2), (4 - mean[1], 3)):
        tau = (square * (1 + 1 / k)) ** 0.5
        want.append(norm.logpdf(e, rise, tau) - norm.logpdf(e, 0, tau))
    np.testing.assert_allclose(excess(easy, trunks, member).numpy(), want, rtol=1e-12)


def test_one_layer_has_no_trunk_to_correct_for():
    game, _ = ridge(leaks=True, seed=0, n=100, d=30)
    plain = frozen_trunk(game.model, game.x, game.y, stream(0), **QUICK)
    more = with_trunks(
        game.model, game.x, game.y, game.shadows.models, game.shadows.inside, stream(0), **QUICK
    )
    torch.testing.assert_close(plain, more, rtol=1e-6, atol=1e-6)


# What it finds


SETTINGS = ({}, {"statistic": "matt"}, {"exact": True})


@pytest.mark.parametrize("settings", [*SETTINGS, {"cut": "1"}], ids=str)
def test_finds_what_a_last_layer_knows_by_heart(settings):
    game, truth = ridge(leaks=True, seed=0, n=200, d=20, hidden=60)
    score = frozen_trunk(game.model, game.x, game.y, stream(0), **QUICK, **settings)
    assert auc(score, truth) > 0.7


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_finds_nothing_where_nothing_is(settings):
    """A false alarm in 16,000."""
    areas = []
    for seed in range(20):
        game, truth = ridge(leaks=False, seed=seed, n=120, d=10, hidden=20, m=2)
        score = frozen_trunk(game.model, game.x, game.y, stream(seed), **QUICK, **settings)
        areas.append(auc(score, truth) - 0.5)
    found = torch.tensor(areas)
    assert found.mean().abs() <= 4 * found.std() / 20**0.5


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::glasslab.checks.Floored")  # few heads
def test_a_deeper_cut_finds_nothing_where_nothing_is():
    """A false alarm in 16,000."""
    areas = []
    for seed in range(20):
        game, truth = ridge(leaks=False, seed=seed, n=120, d=10, hidden=20, m=2)
        settings = QUICK | {"heads": 24, "cut": "0"}
        areas.append(auc(frozen_trunk(game.model, game.x, game.y, stream(seed), **settings), truth) - 0.5)
    found = torch.tensor(areas)
    assert found.mean().abs() <= 4 * found.std() / 20**0.5


def test_the_correction_finds_nothing_where_nothing_is():
    """A false alarm in 16,000."""
    areas = []
    for seed in range(20):
        game, truth = ridge(leaks=False, seed=seed, n=120, d=10, hidden=20, m=4)
        held = game.shadows
        score = with_trunks(
            game.model, game.x, game.y, held.models, held.inside, stream(seed), **QUICK, trunks=4
        )
        areas.append(auc(score, truth) - 0.5)
    found = torch.tensor(areas)
    assert found.mean().abs() <= 4 * found.std() / 20**0.5


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::glasslab.checks.Floored")  # few heads
def test_more_heads_tell_more_in_the_tail_and_hardly_in_the_whole():
    rates, areas = [], []
    for seed in range(12):
        game, truth = ridge(leaks=True, seed=seed, n=400, d=20, hidden=40, m=2)
        few, many = (
            frozen_trunk(game.model, game.x, game.y, stream(seed), weight_decay=1e-2, heads=J)
            for J in (24, 96)
        )
        rates.append([tpr_at_fpr(s, truth, 0.01).tpr for s in (few, many)])
        areas.append([auc(s, truth) for s in (few, many)])
    gain = np.diff(rates, axis=1)
    assert gain.mean() > 2 * gain.std(ddof=1) / 12**0.5
    assert abs(np.diff(areas, axis=1).mean()) < 0.03


# Extremes and laws


def test_units_of_the_trunk_in_another_order_change_nothing_but_rounding():
    model, (x, y) = net(6, 8, 3), records()
    moved, p = copy.deepcopy(model), torch.randperm(8, generator=stream(1))
    moved[0].weight.data, moved[0].bias.data = model[0].weight.data[p], model[0].bias.data[p]
    moved[2].weight.data = model[2].weight.data[:, p]
    for settings in ({}, {"statistic": "matt"}, {"exact": True}):
        one, other = (frozen_trunk(f, x, y, stream(0), **QUICK, **settings) for f in (model, moved))
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


@pytest.mark.filterwarnings("ignore::glasslab.checks.Floored")  # spreads of 0
@pytest.mark.parametrize("settings", [{}, {"statistic": "matt"}, {"exact": True}], ids=str)
def test_one_record_one_class_and_equal_records_are_scored(settings):
    model, (x, y) = net(6, 8, 3), records()
    for rows, labels in ((x[:1], y[:1]), (x, 0 * y), (x[:1].repeat(20, 1), y[:1].repeat(20))):
        score = frozen_trunk(model, rows, labels, stream(0), **QUICK, **settings)
        assert score.dtype == torch.float64
        assert score.shape == (len(rows),)
        assert score.isfinite().all()


def test_sure_records_are_not_tied_in_float32():
    """phi = 60 and 50, where 1 - p is 0 in float32."""
    model = nn.Sequential(nn.Identity(), nn.Linear(2, 2, bias=False)).eval()
    model[1].weight.data = torch.tensor([[-0.5, 0.0], [0.5, 0.0]])
    x = torch.cat([torch.tensor([[60.0, 0.0], [50.0, 0.0]]), torch.randn(20, 2, generator=stream(0))])
    y = torch.cat([torch.tensor([1, 1]), torch.arange(20) % 2])
    for settings in ({}, {"statistic": "matt"}, {"exact": True}):
        score = frozen_trunk(model, x, y, stream(0), **QUICK, **settings)
        assert score.isfinite().all()
        assert score[0] != score[1]


def test_the_same_seed_gives_the_same_score_and_arguments_are_left_alone():
    model, (x, y) = net(6, 8, 5, 3), records()
    for p in model[0].parameters():
        p.requires_grad_(False)
    before, rng = copy.deepcopy(model.state_dict()), torch.random.get_rng_state()
    rows, held = (x.clone(), y.clone()), shadow_rows(4, 40, 0)
    shadows = [net(6, 8, 5, 3, seed=s) for s in range(4)]
    for run in (
        lambda seed: frozen_trunk(model, x, y, stream(seed), **QUICK),
        lambda seed: frozen_trunk(model, x, y, stream(seed), **QUICK, exact=True),
        lambda seed: frozen_trunk(model, x, y, stream(seed), **QUICK, cut="1"),
        lambda seed: with_trunks(model, x, y, shadows, held, stream(seed), **QUICK, trunks=4),
    ):
        assert torch.equal(run(0), run(0))
    assert not torch.equal(
        frozen_trunk(model, x, y, stream(0), **QUICK), frozen_trunk(model, x, y, stream(1), **QUICK)
    )
    assert torch.equal(rng, torch.random.get_rng_state())
    assert torch.equal(x, rows[0])
    assert torch.equal(y, rows[1])
    assert all(torch.equal(before[k], t) for k, t in model.state_dict().items())
    assert [p.requires_grad for p in model.parameters()] == [False] * 2 + [True] * 4
    assert all(p.grad is None for p in model.parameters())
    assert not any(m.training or m._forward_hooks or m._forward_pre_hooks for m in model.modules())


class Skip(nn.Module):
    """A head that is no chain, with BatchNorm."""

    def __init__(self):
        super().__init__()
        self.first, self.a, self.norm, self.b = (
            nn.Linear(6, 5),
            nn.Linear(5, 5),
            nn.BatchNorm1d(5),
            nn.Linear(5, 3),
        )

    def forward(self, x):
        h = self.first(x).relu()
        return self.b(self.norm(self.a(h)).relu() + h)


def test_a_deeper_cut_takes_heads_that_are_no_chain_and_stay_themselves():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Skip().eval()
    x, y = records()
    before = copy.deepcopy(model.state_dict())
    score = frozen_trunk(model, x, y, stream(0), weight_decay=1e-3, heads=48, steps=5, cut="first")
    assert score.isfinite().all()
    assert all(torch.equal(before[k], t) for k, t in model.state_dict().items())


class Bare(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x):
        return x * self.scale


def test_refuses():
    model, (x, y) = net(6, 8, 3), records()
    attack = unchecked(frozen_trunk)

    def run(model=model, x=x, y=y, **settings):
        return attack(model, x, y, stream(0), **(QUICK | settings))

    for settings, text in (
        ({"statistic": "loss"}, "statistic must be one of ratio, matt, got 'loss'"),
        ({"weight_decay": -1.0}, "weight_decay must be 0 or more, got -1.0"),
        ({"exact": True, "statistic": "matt"}, "statistic must be 'ratio' with exact, got 'matt'"),
        ({"cut": "1", "exact": True}, "cut must be None with exact or statistic 'matt', got '1'"),
        ({"cut": "1", "statistic": "matt"}, "cut must be None with exact or statistic 'matt', got '1'"),
        (
            {"exact": True, "weight_decay": 0.0},
            "weight_decay must be above 0 where a head",
        ),
        ({"exact": True, "ridge": 0.0}, "ridge must be above 0, got 0.0"),
        ({"x": x[:0], "y": y[:0]}, "1 or more, got 0 and 0"),
        ({"x": x[:5], "y": y[:5], "weight_decay": 0.0}, "for fewer candidates than features, got 5 for 8"),
        ({"model": net(6, 8, 3).train()}, "model must be in eval mode"),
        (
            {"model": nn.Sequential(nn.Linear(6, 3), Bare()).eval(), "cut": "0"},
            "with reset_parameters above it",
        ),
        ({"model": nn.Sequential(nn.Linear(6, 3), Bare()).eval()}, "the last layer must be dense"),
    ):
        with pytest.raises(ValueError, match=text) as caught:
            run(**settings)
        assert "\n" not in str(caught.value)
    assert len(run(x=x[:8], y=y[:8], weight_decay=0.0)) == 8
    with pytest.warns(Floored, match="20 of 48 heads wanted"):
        run(heads=20)
    with (
        pytest.warns(Floored, match="4 of 48 heads"),
        pytest.raises(ValueError, match=r"heads must leave 2\+ in and out of each record, got \d for"),
    ):
        run(heads=4)


def test_the_correction_refuses():
    model, (x, y), rows = net(6, 8, 3), records(), shadow_rows(4, 40, 0)
    shadows, attack = [net(6, 8, 3, seed=s) for s in range(4)], unchecked(with_trunks)

    def run(shadows=shadows, rows=rows, **settings):
        return attack(model, x, y, shadows, rows, stream(0), **(QUICK | settings))

    for settings, text in (
        ({"trunks": 1}, r"trunks must leave 1\+ out of each record, 2\+ of some, and some in, got 0"),
        ({"trunks": 2}, "got 1 to 1 out"),
        ({"rows": torch.zeros(4, 40).bool()}, "and 0 in"),
        ({"rows": rows[:, :30]}, r"member must be a row a shadow, \[4 40\], got \[4, 30\]"),
        ({"shadows": shadows[:2]}, r"member must be a row a shadow, \[2 40\], got \[4, 40\]"),
        ({"trunk_heads": 1}, "trunk_heads must leave a head out of each record, got 1"),
        ({"shadows": [f.train() for f in copy.deepcopy(shadows)]}, "model must be in eval mode"),
    ):
        with pytest.raises(ValueError, match=text):
            run(**settings)


def test_no_argument_tells_the_truth():
    for f in (frozen_trunk, with_trunks):
        assert not {"truth", "target_member"} & inspect.signature(f).parameters.keys()
