import copy
import math

import numpy as np
import pytest
import torch
from scipy.special import gammainc, gammaln, logsumexp
from scipy.stats import kstest, ncx2, norm
from torch import nn
from torch.nn.functional import cross_entropy

from glasslab.checks import Floored
from glasslab.data import Data
from glasslab.metrics import auc
from glasslab.null_law import auc_se
from glasslab.split import stream
from whitebox import glir as module
from whitebox.glir import Step, glir, record_steps, separation


def world(n, seed, d=8, c=3):
    g = stream(seed, "glir")
    return Data(torch.randn(n, d, generator=g), torch.randint(c, (n,), generator=g), c, "world")


def linear(d=8, c=3):
    model = nn.Linear(d, c).eval()
    for p in model.parameters():
        p.data = 0.3 * torch.randn(p.shape, generator=stream(7))
    return model


def gaussians(d, n, trials, seed=0, noise=0.0):
    """(g, means of batches without g, of batches with it, background), all with one covariance and a mean."""
    g = stream(seed, "gaussians")
    root = torch.randn(d, d, generator=g, dtype=torch.float64) / d**0.5 + torch.eye(d, dtype=torch.float64)

    def draw(k, share=1.0):
        return 0.5 + share**0.5 * torch.randn(k, d, generator=g, dtype=torch.float64) @ root.T

    record, others, rest = draw(trials), draw(trials, 1 / n), draw(trials, 1 / (n - 1))
    own = (record + (n - 1) * rest) / n
    spoilt = [m + noise * torch.randn(trials, d, generator=g, dtype=torch.float64) for m in (others, own)]
    return record, *spoilt, draw(400 * d)


def p_values(d, n, trials=1000, *, member=False, share=1.0, noise=0.0, told=None):
    """p of each record against a batch of its own trial."""
    record, others, own, background = gaussians(d, n, trials, noise=noise)
    told = noise if told is None else told
    out = []
    for g, m in zip(record, own if member else others, strict=True):
        K, S, size = distances(g[None], m, background, n, told)
        out.append(module._log_p(S * share, size, n * K))
    return torch.cat(out).exp().numpy()


def distances(g, m, background, n, noise=0.0):
    """`_distances` with the factor of the covariance found once, since it is the same in every trial."""
    key = (id(background), n, noise)
    if key not in SEEN:
        sigma = background.T.cov() + n * noise**2 * torch.eye(background.shape[1], dtype=torch.float64)
        SEEN.clear()
        SEEN[key] = torch.linalg.inv(sigma), background.mean(0), background
    inverse, mu, _ = SEEN[key]
    K, S = (((v @ inverse) * v).sum(1) for v in (g - mu, m - g))
    return K, n * S, g.shape[1]


SEEN = {}


# One record at a time


def textbook(steps, x, y, aux, d, *, published=False, noise=0.0):
    """Softmax regression: gradients by hand, the inverse by numpy, F one at a time. OAS: Chen et al. 2010."""
    score = np.zeros(len(x))
    for step in steps:
        weight, bias = (p.detach().double().numpy() for p in step.model.parameters())

        def slope(row, label, weight=weight, bias=bias):
            z = weight @ row + bias
            e = np.exp(z - z.max()) / np.exp(z - z.max()).sum() - np.eye(len(z))[label]
            return np.concatenate([np.outer(e, row).ravel(), e])

        m = np.concatenate([step.m["weight"].numpy().ravel(), step.m["bias"].numpy()])
        kept = list(range(0, len(m), max(1, len(m) // d)))[:d]
        rows = [slope(r, l)[kept] for r, l in zip(aux.x.double().numpy(), aux.y.numpy(), strict=True)]
        mu = sum(rows) / len(rows)
        if len(rows) < 10 * d:
            sigma = sum(np.outer(r - mu, r - mu) for r in rows) / len(rows)
            p, alpha, mean = len(sigma), (sigma**2).mean(), np.trace(sigma) / len(sigma)
            top, bottom = alpha + mean**2, (len(rows) + 1) * (alpha - mean**2 / p)
            rho = min(top / bottom, 1)
            sigma = (1 - rho) * sigma + rho * mean * np.eye(p)
        else:
            sigma = sum(np.outer(r - mu, r - mu) for r in rows) / (len(rows) - 1)
        sigma = sigma + step.n * (step.noise**2 + noise**2) * np.eye(len(sigma))
        inverse = np.linalg.inv(sigma)
        for i in range(len(x)):
            g = slope(x[i].double().numpy(), int(y[i]))[kept]
            K = (g - mu) @ inverse @ (g - mu)
            S = (step.n - published) * (m[kept] - g) @ inverse @ (m[kept] - g)
            with np.errstate(divide="ignore"):
                score[i] -= max(float(ncx2.logcdf(S, len(kept), step.n * K)), -250.0)
    return torch.from_numpy(score)


@pytest.mark.parametrize("r", [30, 150])  # records of aux, below and above 10 d
@pytest.mark.parametrize("settings", [{}, {"published": True}, {"noise": 0.05}])
def test_equals_the_textbook(r, settings):
    members, aux, model = world(40, 1), world(r, 2), linear()
    seen = record_steps(model, members, lr=0.5, batch=7, steps=3, generator=stream(0), noise=0.02)
    x, y = torch.cat([members.x[:12], aux.x[:3]]), torch.cat([members.y[:12], aux.y[:3]])
    want = textbook(seen, x, y, aux, 12, **settings)
    torch.testing.assert_close(glir(seen, x, y, aux, d=12, **settings), want, rtol=1e-6, atol=1e-6)
    parts = sum(glir([step], x, y, aux, d=12, **settings) for step in seen)
    torch.testing.assert_close(parts, want, rtol=1e-6, atol=1e-6)


def test_the_distances_of_the_tests_are_those_of_the_module():
    record, others, _, background = gaussians(20, 10, 5)
    for noise in (0.0, 0.3):
        K, S, size = module._distances(record, others[0], background, 10, noise, 1e-10)
        want = distances(record, others[0], background, 10, noise)
        torch.testing.assert_close((K, S), want[:2], rtol=1e-9, atol=1e-9)
        assert size == want[2] == 20


# Laws of S


@pytest.mark.parametrize(("d", "n", "published_mean"), [(20, 10, 0.29), (50, 100, 0.40)])
def test_p_is_uniform_for_records_outside_the_batch(d, n, published_mean):
    """False alarm of the test: 1 in 1,000. With n - 1 in S the mean is far below one half."""
    assert kstest(p_values(d, n), "uniform").pvalue > 1e-3
    wrong = p_values(d, n, share=(n - 1) / n)
    assert kstest(wrong, "uniform").pvalue < 1e-9
    assert wrong.mean() == pytest.approx(published_mean, abs=0.03)


def test_p_is_uniform_under_noise_that_is_told():
    assert kstest(p_values(20, 10, noise=0.4), "uniform").pvalue > 1e-3
    assert kstest(p_values(20, 10, noise=0.4, told=0.0), "uniform").pvalue < 1e-9


def test_noise_counts_in_both_distances():
    """By its one formula: K with the clean covariance is another number."""
    record, others, _, background = gaussians(20, 10, 5)
    K = module._distances(record, others[0], background, 10, 0.4, 1e-10)[0]
    clean = module._distances(record, others[0], background, 10, 0.0, 1e-10)[0]
    assert (K / clean).max() < 0.9


def test_the_law_for_members():
    """n^2 / (n - 1) (m - g)' Sigma^-1 (m - g) has noncentrality (n - 1) K. False alarm: 1 in 1,000."""
    d, n = 20, 10
    record, _, own, background = gaussians(d, n, 1000)
    u = []
    for g, m in zip(record, own, strict=True):
        K, S, _ = distances(g[None], m, background, n)
        u.append(module._log_p(S * n / (n - 1), d, (n - 1) * K))
    assert kstest(torch.cat(u).exp().numpy(), "uniform").pvalue > 1e-3
    assert p_values(d, n, member=True).mean() < 0.2


def test_the_unit_of_the_gradients_does_not_matter():
    """Sigma -> c Sigma with gradients -> sqrt(c) gradients. Inverting Sigma as if it were a factor fails."""
    record, others, _, background = gaussians(20, 10, 5)
    for rows in (background, background[:100]):
        a, b = (
            module._distances(f * record, f * others[0], f * rows, 10, f * 0.1, 1e-10) for f in (1.0, 1e-4)
        )
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)

    def wrong(f):
        inverse = torch.cholesky_inverse((f * background).T.cov())
        return ((f * record) @ inverse * (f * record)).sum(1)

    right = module._distances(record, others[0], background, 10, 0.0, 1e-10)[0]
    assert (wrong(1.0) / right - 1).abs().max() > 0.1
    assert (wrong(2.0) / wrong(1.0) - 1).abs().min() > 0.5


def test_power_of_one_step_is_that_of_the_gaussian_trade_off():
    """At FPR 10 % and d = 100, within 0.03 of the limit; 4,000 trials have a standard error below 0.008."""
    d, n = 100, 200
    g = stream(0, "power")
    K = torch.full((4000,), 100.0, dtype=torch.float64)
    record = torch.zeros(4000, d, dtype=torch.float64)
    record[:, 0] = 10.0
    noise = torch.randn(2, 4000, d, generator=g, dtype=torch.float64)
    out, own = noise[0] / n**0.5, (record + (n - 1) ** 0.5 * noise[1]) / n
    p = [module._log_p(n * (m - record).square().sum(1), d, n * K).exp() for m in (out, own)]
    mu = float(separation(K[:1], d=d, n=n))
    assert mu == pytest.approx((d + 399 * 100) / (200 * math.sqrt(200 + 800 * 100)))
    assert float((p[0] < 0.1).double().mean()) == pytest.approx(0.1, abs=0.02)
    assert float((p[1] < 0.1).double().mean()) == pytest.approx(norm.sf(norm.isf(0.1) - mu), abs=0.03)


# log F


def series(s, d, c):
    """log of the Poisson mixture of central laws, term by term."""
    j = np.arange(int(c) + 400)
    with np.errstate(divide="ignore"):
        terms = -c / 2 + j * math.log(c / 2) - gammaln(j + 1) + np.log(gammainc(d / 2 + j, s / 2))
    return logsumexp(terms)


@pytest.mark.parametrize(("d", "c"), [(5, 50.0), (20, 200.0), (50, 1500.0), (650, 3000.0)])
def test_log_p_is_that_of_the_series(d, c, monkeypatch):
    """As it is, and where the saddle point stands in below p = 1e-8."""
    s = (d + c) * torch.tensor([0.2, 0.3, 0.5, 0.7, 0.9, 1.0, 1.2], dtype=torch.float64)
    want = torch.tensor([series(float(v), d, c) for v in s])
    nc = torch.full_like(s, c)
    near = want > -220
    torch.testing.assert_close(module._log_p(s, d, nc)[near], want[near], rtol=1e-7, atol=1e-7)
    monkeypatch.setattr(module, "DEEP", 1e-8)
    torch.testing.assert_close(module._log_p(s, d, nc)[near], want[near], rtol=1e-6, atol=0.02)


def test_log_p_falls_and_is_finite_at_the_extremes():
    s = torch.tensor([0.0, 1e-300, 1e-9, 1.0, 1e3, 3e5, 3.3e5, 1e9], dtype=torch.float64)
    for nc in (0.0, 1e-12, 3.0, 3.25e5):
        p = module._log_p(s, 650, torch.full_like(s, nc))
        assert p.isfinite().all()
        assert (p.clamp(min=-250).diff() >= 0).all()
        assert p[0] <= -250
        assert p[-1] == 0


def test_each_step_is_floored():
    """The record that *is* the batch: m = g, S = 0."""
    model, aux = linear(40), world(500, 2, d=40)
    batch = world(1, 3, d=40)
    step = record_steps(model, batch, lr=0.1, batch=1, steps=1, generator=stream(0))[0]
    score = glir([step, step], batch.x, batch.y, aux, d=41)
    torch.testing.assert_close(score, torch.tensor([500.0], dtype=torch.float64))


# On models


def areas(seeds, *, outside):
    """Mean AUC of two steps of 20 out of 40 members, against 40 others; outside: a batch of neither."""
    found = []
    for seed in seeds:
        members, others, aux = world(40, f"m{seed}"), world(40, f"o{seed}"), world(150, f"a{seed}")
        data = world(40, f"x{seed}") if outside else members
        seen = record_steps(linear(), data, lr=0.1, batch=20, steps=2, generator=stream(seed))
        x, y = torch.cat([members.x, others.x]), torch.cat([members.y, others.y])
        found.append(auc(glir(seen, x, y, aux, d=14), torch.arange(80) < 40))
    return sum(found) / len(found)


def test_null_law_and_a_leak():
    """10 worlds, 4 standard errors: a false alarm in 16,000."""
    se = auc_se(40, 40) / 10**0.5
    assert abs(areas(range(10), outside=True) - 0.5) < 4 * se
    assert areas(range(10), outside=False) > 0.5 + 4 * se


def test_a_batch_is_told_from_the_rest_at_its_step():
    members, aux = world(200, 1, d=40), world(2000, 2, d=40)
    step = record_steps(linear(40), members, lr=0.1, batch=10, steps=1, generator=stream(0))[0]
    drawn = torch.randperm(200, generator=stream(0))[:10]
    inside = torch.zeros(200, dtype=torch.bool).index_fill(0, drawn, True)
    assert auc(glir([step], members.x, members.y, aux, d=41), inside) > 0.8


def test_record_steps_are_those_of_sgd():
    data, model = world(30, 1), linear()
    before = copy.deepcopy(model.state_dict())
    seen = record_steps(model, data, lr=0.3, batch=8, steps=4, generator=stream(0))
    own, g = copy.deepcopy(model), stream(0)
    optimiser = torch.optim.SGD(own.parameters(), lr=0.3)
    for step in seen:
        assert step.n == 8
        assert not step.model.training
        torch.testing.assert_close(step.model.state_dict(), own.state_dict())
        rows = torch.randperm(30, generator=g)[:8]
        optimiser.zero_grad()
        cross_entropy(own(data.x[rows]), data.y[rows]).backward()
        grads = {name: p.grad.double() for name, p in own.named_parameters()}
        torch.testing.assert_close(dict(step.m), grads, rtol=1e-5, atol=1e-6)
        optimiser.step()
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert len({id(step.model) for step in seen}) == 4


def test_noise_is_recorded_and_enters_the_weights():
    data = world(2000, 1)
    plain, noisy = (
        record_steps(linear(), data, lr=0.3, batch=2000, steps=2, generator=stream(0), noise=tau)
        for tau in (0.0, 0.5)
    )
    gap = torch.cat([(noisy[0].m[k] - plain[0].m[k]).flatten() for k in ("weight", "bias")])
    assert float(gap.std()) == pytest.approx(0.5, rel=0.45)
    assert noisy[0].noise == 0.5
    moved = plain[1].model.weight - noisy[1].model.weight
    torch.testing.assert_close(moved, (0.3 * (noisy[0].m["weight"] - plain[0].m["weight"])).float())


def test_directions_without_variance_are_left_out_and_counted():
    """All 27 coordinates of a softmax: over the classes they sum to 0, so that 18 directions remain."""
    members, aux, model = world(40, 1), world(400, 2), linear()
    step = record_steps(model, members, lr=0.5, batch=7, steps=1, generator=stream(0))[0]
    with pytest.warns(Floored, match="18 of 27 directions"):
        score = glir([step], members.x, members.y, aux, d=27)
    torch.testing.assert_close(score, reduced_score(step, members, aux), rtol=1e-6, atol=1e-6)


def reduced_score(step, members, aux):
    """The last class left out: any 18 coordinates that span the rest give the same distances."""
    kept = torch.cat([torch.arange(16), torch.arange(24, 26)])
    where = {"weight": kept[:16], "bias": kept[16:] - 24}
    g, background = (module._gradients(step.model.double(), a.x, a.y, where, "1MiB") for a in (members, aux))
    step.model.float()
    m = torch.cat([step.m["weight"].flatten()[:16], step.m["bias"][:2]])
    K, S, size = module._distances(g, m, background, 7, 0.0, 1e-10)
    return -module._log_p(S, size, 7 * K).clamp(min=-250)


def test_flat_coordinates_are_dropped():
    g = stream(0)
    background = torch.randn(300, 6, generator=g, dtype=torch.float64)
    background[:, 2] *= 1e-6
    background[:, 4] = 1.0
    record = torch.randn(3, 6, generator=g, dtype=torch.float64)
    for least, size in ((1e-10, 4), (1e-14, 5)):
        assert module._distances(record, record[0], background, 5, 0.0, least)[2] == size


def test_leaves_everything_alone():
    members, aux, model = world(40, 1), world(50, 2), linear()
    model.weight.requires_grad_(False)
    model.bias.grad = torch.ones(3)
    seen = record_steps(model, members, lr=0.5, batch=7, steps=2, generator=stream(0))
    held = copy.deepcopy([(s.model.state_dict(), dict(s.m)) for s in seen])
    glir(seen, members.x, members.y, aux, d=12)
    for step, (state, m) in zip(seen, held, strict=True):
        assert all(torch.equal(state[k], v) for k, v in step.model.state_dict().items())
        assert all(torch.equal(m[k], v) for k, v in step.m.items())
        assert step.model.weight.dtype == torch.float32
        assert not step.model.training
    assert not model.weight.requires_grad
    assert (model.bias.grad == 1).all()


def test_order_and_company_of_records_do_not_matter():
    members, aux = world(40, 1), world(60, 2)
    seen = record_steps(linear(), members, lr=0.5, batch=7, steps=2, generator=stream(0))
    score = glir(seen, members.x, members.y, aux, d=12)
    rows = torch.randperm(40, generator=stream(1))
    torch.testing.assert_close(glir(seen, members.x[rows], members.y[rows], aux, d=12), score[rows])
    torch.testing.assert_close(glir(seen, members.x[:1], members.y[:1], aux, d=12), score[:1])
    torch.testing.assert_close(glir(seen, members.x, members.y, aux, d=12, memory="64KiB"), score)


def test_sure_records_do_not_tie():
    """Log-odds of 60, 30 and 20: with 1 - p formed in float32 all gradients would be 0."""
    model = nn.Linear(1, 2, bias=False).eval()
    model.weight.data = torch.tensor([[0.0], [1.0]])
    aux = Data(torch.randn(40, 1, generator=stream(0)), torch.arange(40) % 2, 2, "aux")
    step = Step(model, {"weight": torch.tensor([[1e-3], [-1e-3]])}, 30)
    x = torch.tensor([[60.0], [30.0], [20.0]])
    score = glir([step], x, torch.tensor([1, 1, 1]), aux, d=1)
    assert score.isfinite().all()
    assert score[1] != score[2]


def test_refuses():
    members, aux, model = world(10, 1), world(20, 2), linear()
    step = record_steps(model, members, lr=0.5, batch=5, steps=1, generator=stream(0))[0]
    cases = [
        ([], {}, "steps must hold one or more"),
        ([Step(model, step.m, 0)], {}, "of batches of 1\\+, got \\[0\\]"),
        ([step], {"d": 0}, "d of 1\\+"),
        ([step], {"min_variance": 1.0}, "min_variance must lie in"),
        ([step], {"noise": -1.0}, "noise must be 0 or more, got -1"),
        ([Step(model, {"wrong": step.m["bias"]}, 5)], {}, "m must name parameters .*'weight', got 'wrong'"),
        ([Step(model, {"bias": torch.zeros(2)}, 5)], {}, "shape \\(3,\\), got \\(2,\\)"),
        ([Step(model, {}, 5)], {}, "m must name a parameter or more"),
        ([Step(nn.Sequential(nn.Linear(8, 3), nn.Dropout()).train(), step.m, 5)], {}, "train"),
    ]
    for steps, settings, text in cases:
        with pytest.raises(ValueError, match=text):
            glir(steps, members.x, members.y, aux, **settings)
    same = Data(aux.x[:1].repeat(5, 1), aux.y[:1].repeat(5), 3, "same")
    with pytest.raises(ValueError, match="aux must have gradients that vary"):
        glir([step], members.x, members.y, same)
    for settings, text in (
        ({"batch": 11}, "batch must lie in 1 .. 10"),
        ({"steps": 0}, "steps must be 1 or more"),
        ({"noise": -1.0}, "noise 0 or more"),
    ):
        with pytest.raises(ValueError, match=text):
            record_steps(
                model, members, **{"lr": 0.1, "batch": 2, "steps": 1, **settings}, generator=stream(0)
            )
