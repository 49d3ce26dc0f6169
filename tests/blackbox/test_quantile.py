import math

import pytest
import torch
from scipy.stats import norm
from torch import nn

from blackbox import quantile as module
from blackbox.quantile import quantile, realised, threshold
from glasslab.checks import Floored
from glasslab.metrics import auc
from glasslab.split import stream

KINDS = [("net", "gaussian"), ("net", "pinball"), ("boosting", "gaussian")]
kinds = pytest.mark.parametrize(("regressor", "form"), KINDS)
QUICK = {"epochs": 4, "iterations": 10, "alpha": 0.1}


def world(n, seed, d=2, leak=0.0):
    """(s, x, truth, u): s = 2 x_0 + e^(0.7 x_1) u with u ~ N(0, 1), and for members N(leak, 1)."""
    g = stream(seed, "quantile")
    x, u = torch.randn(n, d, generator=g), torch.randn(n, generator=g).double()
    truth = torch.rand(n, generator=g) < 0.5
    u = u + leak * truth
    return 2 * x[:, 0] + (0.7 * x[:, 1]).exp() * u, x, truth, u


def groups(n, seed):
    """(s, x) in four groups, each with a mean and a spread of its own."""
    g = stream(seed, "groups")
    x = torch.randint(2, (n, 2), generator=g).float()
    u = torch.randn(n, generator=g, dtype=torch.float64)
    return 3 * x[:, 0] + torch.where(x[:, 1] > 0, 3.0, 0.3) * u, x


# The formulas, one record and one head at a time


def textbook_pinball(z, u):
    levels = [10 ** (-j / 10) for j in range(41)]
    loss = [
        max((1 - alpha) * (v - q), -alpha * (v - q))
        for row, v in zip(z.tolist(), u.tolist(), strict=True)
        for alpha, q in zip(levels, row, strict=True)
    ]
    return sum(loss) / len(loss)


def textbook_level(u, heads):
    """Between the heads alone."""
    levels = [j * math.log(10) / 10 for j in range(41)]
    scores = []
    for v, row in zip(u.tolist(), heads.tolist(), strict=True):
        q = sorted(row)
        j = max(j for j in range(40) if q[j] < v or j == 0)
        scores.append(levels[j] + (v - q[j]) / (q[j + 1] - q[j]) * (levels[j + 1] - levels[j]))
    return torch.tensor(scores, dtype=torch.float64)


def test_losses_are_those_of_the_textbook():
    g = stream(0)
    z, u = torch.randn(20, 41, generator=g).double(), torch.randn(20, generator=g).double()
    assert module._pinball_loss(z, u).item() == pytest.approx(textbook_pinball(z, u), rel=1e-9)
    z = z[:, :2]
    want = [-norm(mu, math.exp(s)).logpdf(v) for (mu, s), v in zip(z.tolist(), u.tolist(), strict=True)]
    got = module._gaussian_loss(z, u).item()
    assert got == pytest.approx(sum(want) / 20 - math.log(2 * math.pi) / 2, rel=1e-9)


def test_the_score_of_a_gaussian_is_its_standing():
    u = torch.tensor([1.0, 3.0, -2.0, 2.0]).double()
    heads = torch.tensor([[0.0, 0.0], [1.0, math.log(2)], [0.0, 100.0], [1.0, -100.0]]).double()
    want = [1.0, 1.0, -2 * math.exp(-7), math.exp(7)]
    torch.testing.assert_close(module._standing(u, heads), torch.tensor(want).double())


def test_log_sigma_is_bounded_in_the_loss_too():
    u = torch.tensor([0.5, -0.5]).double()
    for far, bound in ((100.0, 7.0), (-400.0, -7.0)):
        z = torch.tensor([[0.0, far], [0.2, far]]).double()
        at = torch.tensor([[0.0, bound], [0.2, bound]]).double()
        assert module._gaussian_loss(z, u) == module._gaussian_loss(at, u)


def test_the_level_is_where_the_signal_crosses_the_sorted_heads():
    g = stream(0)
    heads = torch.randn(20, 41, generator=g).double()  # they cross each other
    low, high = heads.min(1).values, heads.max(1).values
    u = low + (high - low) * torch.rand(20, generator=g).double()
    torch.testing.assert_close(module._level(u, heads), textbook_level(u, heads), rtol=1e-9, atol=1e-9)


def test_the_level_goes_on_beyond_the_heads_and_never_falls():
    grid = torch.linspace(-9, 9, 2001).double()
    for row in (torch.randn(41, generator=stream(1)).double(), torch.zeros(41), torch.arange(41) // 9):
        score = module._level(grid, row.double().expand(2001, 41))
        assert score.isfinite().all()
        assert (score.diff() >= 0).all()
        assert (score[grid > row.max()].diff() > 0).all()
        assert (score[grid < row.min()].diff() > 0).all()
        assert score[grid > row.max()].min() >= threshold(1e-4, "pinball")


def test_thresholds_are_nominal_rates():
    assert threshold(0.01) == pytest.approx(2.3263, abs=1e-4)
    assert threshold(0.01, "pinball") == pytest.approx(math.log(100))
    score = torch.tensor([0.0, 1.0, 2.0, 3.0]).double()
    assert realised(score, 0.01) == 0.25
    assert realised(score, 0.1, "pinball") == 0.25
    heads = torch.tensor(norm.isf([max(10 ** (-j / 10), 1e-9) for j in range(1, 41)])).expand(9, 40)
    exact = module._level(heads[0, 4:40:4], torch.cat([torch.full((9, 1), -9.0).double(), heads], 1))
    torch.testing.assert_close(
        exact, torch.arange(5, 41, 4).double() * math.log(10) / 10
    )  # at a head its own level


# What it finds


@kinds
def test_non_members_exceed_the_threshold_as_often_as_promised(regressor, form):
    """Also at 1 %. They are none of aux."""
    (s_aux, x_aux), (s, x) = groups(1500, 1), groups(20_000, 2)
    score = quantile(s, x, s_aux, x_aux, generator=stream(0), regressor=regressor, form=form)
    for alpha in (0.1, 0.01):
        error = (alpha * (1 - alpha) * (1 / 20_000 + 1 / 1200)) ** 0.5  # of the candidates, and of aux
        assert abs(realised(score, alpha, form) - alpha) < 4 * error


@kinds
def test_what_it_was_fitted_to_tells_nothing_of_the_rate_and_is_counted(regressor, form):
    """On noise the rows of aux keep what fresh ones do not: the fit has seen them."""
    s_aux, x_aux, *_ = world(200, 1, d=30)
    s, x, *_ = world(4000, 2, d=30)
    settings = {"regressor": regressor, "form": form, "alpha": 0.1, "patience": 0, "lr": 0.01}
    fresh = quantile(s, x, s_aux, x_aux, generator=stream(0), **settings)
    with pytest.warns(Floored, match="200 of 200 candidates are records of aux"):
        fitted = quantile(s_aux, x_aux, s_aux, x_aux, generator=stream(0), **settings)
    assert realised(fresh, 0.1, form) > 1.5 * realised(fitted, 0.1, form)
    with pytest.warns(Floored, match="3 of 7 candidates are records of aux"):
        quantile(
            torch.cat([s[:4], s_aux[:3]]),
            torch.cat([x[:4], x_aux[:3]]),
            s_aux,
            x_aux,
            generator=stream(0),
            **QUICK | {"regressor": regressor, "form": form},
        )


def test_boosting_takes_sigma_from_records_out_of_their_fold():
    """Residuals within it are too small: fresh records would then stand twice as far off."""
    g = stream(0)
    x = torch.randn(4300, 10, generator=g)
    s = 2 * x.sum(1) + torch.randn(4300, generator=g) / 2
    settings = {"generator": g, "regressor": "boosting", "alpha": 0.1}
    assert quantile(s[300:], x[300:], s[:300], x[:300], **settings).std() == pytest.approx(1, abs=0.3)


@kinds
def test_finds_a_leak_that_the_signal_alone_hides(regressor, form):
    s_aux, x_aux, *_ = world(1000, 1)
    s, x, truth, u = world(4000, 2, leak=1.5)
    best = auc(u, truth)
    assert best == pytest.approx(norm.cdf(1.5 / 2**0.5), abs=0.03)
    score = quantile(s, x, s_aux, x_aux, generator=stream(0), regressor=regressor, form=form)
    assert auc(s, truth) + 0.05 < best - 0.04 < auc(score, truth) < best + 0.01


@kinds
def test_a_shift_by_a_function_of_x_leaves_the_roc(regressor, form):
    s_aux, x_aux, *_ = world(1000, 1)
    s, x, truth, _ = world(4000, 2, leak=1.5)
    areas = [
        auc(
            quantile(
                s + k * x[:, 1],
                x,
                s_aux + k * x_aux[:, 1],
                x_aux,
                generator=stream(0),
                regressor=regressor,
                form=form,
                epochs=15,
            ),
            truth,
        )
        for k in (0, 3)
    ]
    assert abs(areas[0] - areas[1]) < 0.03
    assert abs(auc(s, truth) - auc(s + 3 * x[:, 1], truth)) > 0.05  # which the bare signal does not


@kinds
def test_the_unit_of_the_signal_does_not_matter(regressor, form):
    """Small signals are not cut to whole numbers."""
    s_aux, x_aux, *_ = world(200, 1)
    s, x, *_ = world(100, 2)
    settings = {"regressor": regressor, "form": form, **QUICK}
    plain, small = (
        quantile(k * s + b, x, k * s_aux + b, x_aux, generator=stream(0), **settings)
        for k, b in ((1.0, 0.0), (1e-3, 0.5))
    )
    torch.testing.assert_close(plain, small, rtol=1e-3, atol=1e-3)


@kinds
def test_a_higher_signal_never_has_a_lower_score(regressor, form):
    s_aux, x_aux, *_ = world(200, 1)
    s, x = torch.linspace(-20, 20, 401), torch.tensor([[0.3, -0.2]]).expand(401, -1)
    score = quantile(
        s, x, s_aux, x_aux, generator=stream(0), regressor=regressor, form=form, **QUICK | {"epochs": 1}
    )
    assert (score.diff() >= 0).all()
    assert (score[s > 8].diff() > 0).all()  # beyond all of aux it goes on


@kinds
def test_records_are_scored_each_alone_and_in_their_order(regressor, form):
    """Several batches of them."""
    s_aux, x_aux, *_ = world(200, 1)
    s, x, *_ = world(300, 2)
    rows = torch.randperm(300, generator=stream(0))
    held = [t.clone() for t in (s, x, s_aux, x_aux)]
    before = torch.get_rng_state()

    def score(rows, seed=0):
        settings = {"regressor": regressor, "form": form, **QUICK}
        return quantile(s[rows], x[rows], s_aux, x_aux, generator=stream(seed), **settings)

    whole = score(slice(None))
    assert whole.dtype == torch.float64
    torch.testing.assert_close(score(rows), whole[rows], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(score([7]), whole[7:8], rtol=1e-6, atol=1e-6)
    assert torch.equal(score(slice(None)), whole)
    assert not torch.equal(score(slice(None), seed=1), whole)
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(held, (s, x, s_aux, x_aux), strict=True))


@pytest.mark.parametrize("form", ["gaussian", "pinball"])
def test_a_net_of_ones_own_sees_standardised_images(form):
    g = stream(0)
    asked, seen = [], []

    class Watch(nn.Module):
        def forward(self, x):
            if len(x) == 128:  # the answers, filled up to a batch
                seen.append(x[:30])
            return x

    def net(outputs):
        asked.append(outputs)
        return nn.Sequential(Watch(), nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, outputs))

    x, s = torch.rand(90, 3, 4, 4, generator=g) * 9 + 100, torch.randn(90, generator=g)
    score = quantile(
        s[:30], x[:30], s[30:], x[30:], generator=g, form=form, net=net, **QUICK | {"alpha": 0.5}
    )
    assert score.isfinite().all()
    assert set(asked) == {2 if form == "gaussian" else 41}
    assert seen[-1].mean((0, 2, 3)).abs().max() < 0.3
    assert (seen[-1].std((0, 2, 3)) - 1).abs().max() < 0.2


@kinds
def test_equal_signals_have_equal_scores(regressor, form):
    _, x, *_ = world(50, 2)
    _, x_aux, *_ = world(200, 1)
    settings = {"regressor": regressor, "form": form, **QUICK}
    with pytest.warns(Floored, match="200 of 200 signals on aux are equal"):
        score = quantile(
            torch.full((50,), 0.1), x, torch.full((200,), 0.1), x_aux, generator=stream(0), **settings
        )
    assert score.unique().tolist() == [0.0]
    with pytest.warns(Floored, match="equal"):
        score = quantile(
            torch.arange(50.0), x, torch.full((200,), 3.0), x_aux, generator=stream(0), **settings
        )
    assert (score.diff() > 0).all()
    assert score[3] == 0


def test_too_few_records_for_a_rate_are_told():
    s_aux, x_aux, *_ = world(200, 1)
    s, x, *_ = world(50, 2)
    with pytest.warns(Floored, match="200 of 1000 records of aux that a rate of 0.01 asks for"):
        quantile(s, x, s_aux, x_aux, generator=stream(0), epochs=1)
    quantile(s, x, s_aux, x_aux, generator=stream(0), epochs=1, alpha=0.05)


def test_refuses_what_it_cannot_do():
    s_aux, x_aux, *_ = world(200, 1)
    s, x, *_ = world(50, 2)
    first = torch.tensor([0])
    for i, name in enumerate(("s", "x", "s_aux", "x_aux")):
        given = [s, x, s_aux, x_aux]
        given[i] = given[i].index_fill(0, first, torch.nan)
        with pytest.raises(ValueError, match=rf"^{name} must be finite, got [12] NaN"):
            quantile(*given, generator=stream(0), **QUICK)
    with pytest.raises(ValueError, match=r"s_aux must hold 20\+ records, got 19"):
        quantile(s, x, s_aux[:19], x_aux[:19], generator=stream(0), alpha=0.9)
    with pytest.raises(ValueError, match="form must be 'gaussian' with regressor 'boosting', got 'pinball'"):
        quantile(s, x, s_aux, x_aux, generator=stream(0), regressor="boosting", form="pinball", **QUICK)
    with pytest.raises(ValueError, match=r"net must give 2 numbers a record, got shape \(3,\)"):
        quantile(s, x, s_aux, x_aux, generator=stream(0), net=lambda outputs: nn.Linear(2, 3), **QUICK)
