import math
from itertools import pairwise
from statistics import fmean

import pytest
import torch
from scipy import stats
from scipy.integrate import quad
from scipy.special import digamma, polygamma
from worlds import gaussian, null, ridge

from blackbox.bavaria import _fit, bavaria, bavaria_offline
from blackbox.lira import lira, lira_offline
from glasslab.checks import Floored
from glasslab.metrics import auc, tpr_at_fpr
from glasslab.moments import moments
from glasslab.signals import phi as log_odds
from glasslab.split import leave_one_out, shadow_rows, stream, target_rows

FORMS = {
    "t": bavaria,
    "n": lambda *world, **settings: bavaria(*world, form="n", **settings),
    "t offline": bavaria_offline,
    "n offline": lambda *world, **settings: bavaria_offline(*world, form="n", **settings),
}
forms = pytest.mark.parametrize("form", FORMS)


def uneven(m=9, n=20, seed=0, least=1):
    """(phi, S, member): sides that spread differently, counts that differ from record to record."""
    g = stream(seed, "uneven")
    member = torch.rand(m, n, generator=g) < 0.4
    member[: 2 * least] = torch.tensor([[True], [False]]).repeat(least, 1)
    hard = 3 * torch.randn(n, generator=g, dtype=torch.float64)
    wide = torch.where(member, 3.0, 0.5) * torch.rand(n, generator=g, dtype=torch.float64).add(0.2)
    S = hard + member + wide * torch.randn(m, n, generator=g, dtype=torch.float64)
    return hard + 1.5 * torch.randn(n, generator=g, dtype=torch.float64), S, member


def textbook(phi, S, member, form, nu0=4.0, kappa0=0.0):
    """The update of the prior as one reads it, scipy's laws; a loop over records and lists."""
    n, laws = len(phi), {}
    for side, where in (("in", member), ("out", ~member)):
        values = [S[where[:, i], i].tolist() for i in range(n)]
        means = [fmean(v) if v else None for v in values]
        squares = [sum((x - f) ** 2 for x in v) for v, f in zip(values, means, strict=True)]
        s0_2 = sum(squares) / sum(len(v) - 1 for v in values if v)
        mu0 = fmean(f for f in means if f is not None)
        laws[side] = []
        for v, f, q in zip(values, means, squares, strict=True):
            count, f = len(v), mu0 if f is None else f
            kappa, nu = kappa0 + count, nu0 + count
            mu = (kappa0 * mu0 + count * f) / kappa
            s2 = (nu0 * s0_2 + q + kappa0 * count / kappa * (f - mu0) ** 2) / nu
            t = stats.t(nu, mu, math.sqrt(s2 * (1 + 1 / kappa)))
            laws[side].append(t if form.startswith("t") else stats.norm(mu, math.sqrt(s2)))
    x, inside, outside = phi.tolist(), laws["in"], laws["out"]
    if "offline" in form:
        scores = [-law.logsf(v) for law, v in zip(outside, x, strict=True)]
    else:
        scores = [a.logpdf(v) - b.logpdf(v) for a, b, v in zip(inside, outside, x, strict=True)]
    return torch.tensor(scores, dtype=torch.float64)


@forms
@pytest.mark.parametrize("kappa0", [0.0, 0.5, 3.0])
@pytest.mark.parametrize("nu0", [0.5, 4.0, 50.0])
def test_equals_the_textbook_loop(nu0, kappa0, form):
    world = uneven()
    fast = FORMS[form](*world, nu0=nu0, kappa0=kappa0)
    torch.testing.assert_close(fast, textbook(*world, form, nu0, kappa0), rtol=1e-9, atol=1e-9)


@forms
def test_defaults_are_nu0_of_4_and_no_shrinkage(form):
    world = uneven()
    torch.testing.assert_close(FORMS[form](*world), textbook(*world, form, 4.0, 0.0), rtol=1e-9, atol=1e-9)


@forms
def test_a_record_without_models_on_a_side_gets_the_prior(form):
    phi, S, member = uneven()
    member = member.clone()
    member[:, 4], member[:, 11] = True, False
    with pytest.raises(ValueError, match="got 0 for record"):
        FORMS[form](phi, S, member)
    fast = FORMS[form](phi, S, member, kappa0=0.5)
    torch.testing.assert_close(fast, textbook(phi, S, member, form, 4.0, 0.5), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kappa0", [0.0, 0.7])
def test_no_confidence_in_the_pooled_variance_leaves_a_t_of_n_degrees_of_freedom(kappa0):
    phi, S, member = uneven(least=2)
    n_in, n_out = member.sum(0), (~member).sum(0)
    score = bavaria(phi, S, member, nu0=1e-12, kappa0=kappa0)
    torch.testing.assert_close(score, bavaria(phi, S, member, nu0=0.0, kappa0=kappa0), rtol=1e-9, atol=1e-9)
    if kappa0 == 0:
        for i in range(len(phi)):
            laws = []
            for n, v in ((int(n_in[i]), S[member[:, i], i]), (int(n_out[i]), S[~member[:, i], i])):
                spread = float(v.std(correction=0)) * math.sqrt(1 + 1 / n)
                laws.append(stats.t(n, float(v.mean()), spread))
            expected = laws[0].logpdf(phi[i].item()) - laws[1].logpdf(phi[i].item())
            assert score[i].item() == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("nu0", [1e9, math.inf])
def test_full_confidence_in_the_pooled_variance_is_pooled_lira(nu0):
    phi, S, member = uneven()
    phi, S = torch.stack([phi, 2 - phi]), torch.stack([S, 2 * S], 1)  # two queries, one spread a side
    for ours, theirs in ((bavaria, lira), (bavaria_offline, lira_offline)):
        score = ours(phi, S, member, form="n", nu0=nu0)
        pooled = theirs(phi, S, member, variance="pooled", location="mean")
        torch.testing.assert_close(score, pooled, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("attack", [bavaria, bavaria_offline])
def test_form_t_of_full_confidence_is_the_normal_law_of_the_next_value(attack):
    phi, S, member = uneven()
    limit = attack(phi, S, member, nu0=math.inf)
    torch.testing.assert_close(attack(phi, S, member, nu0=1e10), limit, rtol=1e-5, atol=1e-5)
    read = moments(S, {"in": member, "out": ~member}, median=False)
    law = {
        side: stats.norm(r.mean.numpy(), r.pooled(r.mean) * (1 + 1 / r.count.numpy()) ** 0.5)
        for side, r in read.items()
    }
    online, offline = law["in"].logpdf(phi) - law["out"].logpdf(phi), -law["out"].logsf(phi)
    expected = torch.from_numpy(online if attack is bavaria else offline)
    torch.testing.assert_close(limit, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("form", ["t", "n"])
def test_more_models_bring_it_to_the_records_own_spread(form):
    away = []
    for m in (8, 64, 512):
        phi, S, member, _ = gaussian(1.0, m, 200, spread=2.0)
        S = S * torch.linspace(0.5, 2, 200, dtype=torch.float64)
        own = lira(phi, S, member, variance="record", location="mean")
        away.append((bavaria(phi, S, member, form=form) - own).abs().median().item())
    assert away[0] > 3 * away[1] > 9 * away[2]


@forms
def test_one_model_a_side_is_finite_where_some_record_has_two(form):
    phi, S, _ = uneven(m=3)
    member = torch.zeros(3, 20, dtype=torch.bool)
    member[0, ::2], member[:2, 1::2] = True, True  # 1 in and 2 out, or 2 in and 1 out
    score = FORMS[form](phi, S, member)
    assert score.isfinite().all()
    torch.testing.assert_close(score, textbook(phi, S, member, form), rtol=1e-9, atol=1e-9)


@forms
def test_where_nothing_can_be_pooled_only_a_prior_on_the_centre_helps(form):
    phi, S, member, _ = gaussian(1.0, m=2, n=50)
    with pytest.raises(ValueError, match="2[+] models (in|out) of some record to pool, got 1 of each"):
        FORMS[form](phi, S, member)
    with pytest.raises(ValueError, match="2[+] models"):
        FORMS[form](phi, S, member, nu0="fit", kappa0=1.0)
    with pytest.warns(Floored, match="no record has 2 models (in|out): s0.2 is had from the centres"):
        score = FORMS[form](phi, S, member, kappa0=2.0)
    assert score.isfinite().all()


def test_the_variance_had_from_centres_is_unbiased_under_its_prior():
    """Centres N(mu0, sigma^2 / kappa0) and one value each: scores near those of the true variance."""
    g, n, sigma, kappa0 = stream(0), 100_000, 1.7, 0.5
    centre = sigma / math.sqrt(kappa0) * torch.randn(n, generator=g, dtype=torch.float64)
    S = centre + sigma * torch.randn(1, n, generator=g, dtype=torch.float64)
    none_in = torch.zeros(1, n, dtype=torch.bool)
    with pytest.warns(Floored):
        score = bavaria_offline(centre, S, none_in, form="n", nu0=math.inf, kappa0=kappa0)
    truth = -torch.special.log_ndtr(-(centre - S[0] / (1 + kappa0)) / sigma)
    torch.testing.assert_close(score, truth, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("form", ["t", "n"])
@pytest.mark.parametrize("settings", [{}, {"nu0": "fit"}, {"nu0": 0.3, "kappa0": 2.0}])
def test_the_complement_flips_the_sign_exactly(settings, form):
    phi, S, member = uneven(least=2)
    score, flipped = (bavaria(phi, S, w, form=form, **settings) for w in (member, ~member))
    assert torch.equal(flipped, -score)


def test_the_sides_have_their_own_spread():
    """phi midway between both centres: with one spread for both sides the score would be 0."""
    S = torch.tensor([[1.0, 1.0], [3.0, 3.0], [-1.1, -1.1], [-0.9, -0.9]], dtype=torch.float64)
    member = torch.tensor([[True], [True], [False], [False]]).expand(-1, 2)
    phi = torch.full((2,), 0.5, dtype=torch.float64)
    assert (bavaria(phi, S, member) > 5).all()
    assert (bavaria(phi, S, member, form="n") > 50).all()


def scaled_inverse_chi2(nu0, n):
    return nu0 / torch.distributions.Chi2(torch.tensor(nu0, dtype=torch.float64)).expand([n]).sample()


def variances(nu0, s0_2, n, d, seed):
    """Squares around the mean of records whose variances have a scaled inverse chi-square law."""
    torch.manual_seed(seed)
    sigma2 = s0_2 * scaled_inverse_chi2(nu0, n) if nu0 < math.inf else torch.full((n,), s0_2).double()
    chi2 = torch.distributions.Chi2(torch.tensor(float(d), dtype=torch.float64)).expand([n]).sample()
    return sigma2 * chi2


@pytest.mark.parametrize(
    ("nu0", "d", "error"), [(2.5, 1, 0.1), (6.0, 1, 0.3), (2.5, 3, 0.05), (6.0, 3, 0.1), (20.0, 15, 0.1)]
)
def test_fit_finds_the_prior_that_made_the_variances(nu0, d, error):
    n, s0_2 = 200_000, 1.7
    with torch.random.fork_rng():
        square = variances(nu0, s0_2, n, d, 0)
    found, scale = _fit("in", square, torch.full((n,), d / 2), float(square.sum()) / (n * d))
    assert found == pytest.approx(nu0, rel=error)
    assert scale == pytest.approx(s0_2, rel=0.03)


def test_fit_solves_the_two_equations_of_moments():
    square = torch.tensor([0.3, 2.0, 9.0, 0.05, 40.0], dtype=torch.float64)
    half = torch.tensor([0.5, 1.0, 2.5, 1.0, 1.0], dtype=torch.float64)
    nu0, s0_2 = _fit("in", square, half, 3.0)
    logs = [math.log(q / (2 * h)) for q, h in zip(square.tolist(), half.tolist(), strict=True)]
    e = [l - digamma(h) + math.log(h) for l, h in zip(logs, half.tolist(), strict=True)]
    mean = fmean(e)
    variance = sum((x - mean) ** 2 for x in e) / 4
    trigamma = [float(polygamma(1, h)) for h in half.tolist()]
    assert fmean(trigamma) + float(polygamma(1, nu0 / 2)) == pytest.approx(variance)
    assert mean == pytest.approx(math.log(s0_2) - digamma(nu0 / 2) + math.log(nu0 / 2))


def test_fit_of_equal_variances_is_full_confidence_in_the_pooled_one():
    with torch.random.fork_rng():
        square = variances(math.inf, 1.7, 200_000, 15, 0)
    nu0, s0_2 = _fit("in", square, torch.full((200_000,), 7.5), float(square.sum()) / (200_000 * 15))
    assert nu0 > 300
    assert s0_2 == pytest.approx(1.7, rel=0.02)
    same = torch.full((20,), 3.0, dtype=torch.float64)
    assert _fit("in", same, torch.full((20,), 1.5), 1.0) == (math.inf, 1.0)
    assert _fit("in", same[:1], torch.full((1,), 1.5), 1.0) == (math.inf, 1.0)


def test_fit_leaves_zero_variances_out_and_counts_them():
    phi, S, member, _ = gaussian(1.0, m=8, n=40)
    three, rest = torch.where(torch.arange(40) < 3, S[0], S), torch.arange(40) >= 3
    with pytest.warns(Floored, match="3 of 40 variances (in|out) of 0 left out of the fit"):
        score = bavaria(phi, three, member, nu0="fit")
    assert score.isfinite().all()
    square = moments(three, {"in": member}, median=False)["in"].square
    with pytest.warns(Floored):
        found = _fit("in", square, torch.full((40,), 1.5), 1.0)
    assert found == _fit("in", square[rest], torch.full((37,), 1.5), 1.0)


@pytest.mark.parametrize("unequal", [True, False])
@pytest.mark.parametrize("m", [4, 8])
def test_p_values_are_right_where_the_prior_is_true(m, unequal):
    """Offline, non-members: Pr[p < alpha] is alpha. Form n forgets that the centre is a guess."""
    g, n, kappa0 = stream(0, "p"), 40_000, 0.5
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sigma = scaled_inverse_chi2(5.0, n).sqrt() if unequal else torch.ones(n, dtype=torch.float64)
    phi, S, centre = (torch.randn(*size, generator=g, dtype=torch.float64) for size in ((n,), (m, n), (n,)))
    phi, S = (2 + sigma * (centre / math.sqrt(kappa0) + t) for t in (phi, S))
    none_in = torch.zeros(m, n, dtype=torch.bool)
    p, plain = (
        (-bavaria_offline(phi, S, none_in, form=form, nu0="fit", kappa0=kappa0)).exp() for form in ("t", "n")
    )
    for alpha in (0.5, 0.1, 0.01, 0.001):
        share = float((p < alpha).double().mean())
        assert abs(share - alpha) < 4 * math.sqrt(alpha * (1 - alpha) / n) + 0.02 * alpha
    assert float((plain < 0.01).double().mean()) > 0.0125


@forms
@pytest.mark.parametrize("m", [4, 6, 8])
def test_a_null_world_is_calibrated_with_few_models(m, form):
    n, worlds, rates, areas = 1000, 10, [], []
    for seed in range(worlds):
        *world, truth = gaussian(0.0, m, n, seed)
        score = FORMS[form](*world)
        point = tpr_at_fpr(score, truth, 0.1)
        rates.append(point.tpr - point.fpr)
        areas.append(auc(score, truth) - 0.5)
    assert abs(fmean(rates) - 1 / (n / 2)) < 4 * math.sqrt(0.1 * 0.9 * 4 / n / worlds)
    assert abs(fmean(areas)) < 4 * math.sqrt(1 / (3 * n * worlds))


@forms
@pytest.mark.parametrize("m", [6, 8])
@pytest.mark.parametrize("cure", ["first of each side", "without its complement"])
def test_a_shadow_as_target_tells_nothing_at_equal_counts(cure, m, form):
    n = 20_000
    S, member = null(m, n)
    rest = leave_one_out(0, S, member) if cure == "first of each side" else (S[2:], member[2:])
    assert abs(auc(FORMS[form](S[0], *rest), member[0]) - 0.5) < 4 * math.sqrt(1 / (3 * n))


@forms
def test_finds_a_planted_leak_with_the_same_sign(form):
    game, truth = ridge(leaks=True, seed=0)
    S = log_odds(game.shadows.z[:, :, 0], game.y)
    phi = log_odds(game.model(game.x).detach(), game.y)
    assert auc(FORMS[form](phi, S, game.shadows.inside), truth) > 0.65


@forms
@pytest.mark.parametrize("m", [4, 8, 64])
def test_comes_close_to_lira_and_never_beats_the_best_attack(m, form):
    *world, truth = gaussian(1.0, m, n=4000)
    best = (1 + math.erf(0.5)) / 2
    theirs = (lira_offline if "offline" in form else lira)(*world, variance="pooled", location="mean")
    area = auc(FORMS[form](*world), truth)
    assert auc(theirs, truth) - 0.025 < area < best + 0.02


@pytest.mark.parametrize("nu0", [4.0, 1e4, math.inf])
@pytest.mark.parametrize("form", ["t offline", "n offline"])
def test_far_tails_are_ranked_on_both_ends(nu0, form):
    """Where the probability itself is 0 (members) or 1: strictly increasing, no jump between methods."""
    S = torch.tensor([[-1.0], [1.0], [0.0], [0.0]], dtype=torch.float64).expand(-1, 3000)
    none_in = torch.zeros(4, 3000, dtype=torch.bool)
    ladder = torch.linspace(-5, 400, 3000, dtype=torch.float64)
    score = FORMS[form](ladder, S, none_in, nu0=nu0)
    assert score.isfinite().all()
    assert (score.diff() > 0).all()
    bend = score.diff().diff()[100:].abs() / score.diff()[100:-1]
    assert bend.max() < 0.06
    low = FORMS[form](torch.linspace(-25, -5, 3000, dtype=torch.float64), S, none_in, nu0=nu0)
    assert (low.diff() > 0).all()  # the probability is 1 there, and its complement is not 0
    assert score[-1] > (20 if nu0 == 4 and form == "t offline" else 5000)


@pytest.mark.parametrize("nu", [3.0, 8.0, 60.0, 4000.0])
@pytest.mark.parametrize("u", [-30.0, -2.0, 0.0, 0.5, 7.99, 8.01, 40.0, 300.0])
def test_the_t_tail_equals_its_integral(u, nu):
    """Two shadows at +-v: f = 0, Q = 2 v^2 = s0^2; nu s^2 = (nu - 2) Q + Q, scale s sqrt(1 + 1 / 2)."""
    v = 0.7
    S = torch.tensor([[v], [-v]], dtype=torch.float64)
    phi = torch.tensor([u * math.sqrt((nu - 1) / nu * 2 * v**2 * 1.5)], dtype=torch.float64)
    score = bavaria_offline(phi, S, torch.zeros(2, 1, dtype=torch.bool), nu0=nu - 2).item()
    if u <= 0:
        assert score == pytest.approx(-math.log1p(-stats.t(nu).cdf(u)), rel=1e-9)
        return
    step = (nu + u * u) / (nu + 1) / u  # over which the density falls by about e
    ends = [0.0, *(step * 2**i for i in range(-2, 30))]

    def fallen(x):
        return math.exp(-(nu + 1) / 2 * math.log1p((2 * u * x + x * x) / (nu + u * u)))

    total = math.fsum(quad(fallen, a, b, epsabs=0)[0] for a, b in pairwise(ends))
    assert score == pytest.approx(-(stats.t(nu).logpdf(u) + math.log(total)), rel=1e-8)


def test_far_below_the_out_models_is_last_offline():
    phi, S, member, _ = gaussian(1.0, m=8, n=50)
    phi = phi.index_put((torch.tensor(7),), S[:, 7].min() - 50)
    for form in ("t offline", "n offline"):
        assert FORMS[form](phi, S, member).argmin() == 7


@forms
def test_queries_are_averaged_after_the_ratio_and_share_one_prior(form):
    phi, S, member = uneven()
    phi, S = torch.stack([phi, phi + 1]), torch.stack([S, S + 1], 1)  # equal squares: one pooled variance
    both, single = FORMS[form](phi, S, member), FORMS[form](phi[0], S[:, 0], member)
    torch.testing.assert_close(both, single)
    mixed = torch.stack([phi[0], phi[1] + 2])
    expected = (single + FORMS[form](mixed[1], S[:, 1], member)) / 2
    torch.testing.assert_close(FORMS[form](mixed, S, member), expected)


@forms
@pytest.mark.parametrize("settings", [{}, {"nu0": "fit"}, {"kappa0": 1.0}])
def test_copies_of_one_query_change_nothing(settings, form):
    phi, S, member = uneven(least=2)
    thrice = FORMS[form](phi.expand(3, -1), S[:, None].expand(-1, 3, -1), member, **settings)
    rtol = 0.2 if "nu0" in settings else 1e-9  # the variance of 3 n logarithms has other degrees of freedom
    torch.testing.assert_close(thrice, FORMS[form](phi, S, member, **settings), rtol=rtol, atol=rtol)


@forms
def test_all_targets_at_once_are_each_alone(form):
    _, S, member = uneven()
    S = torch.stack([S, 2 * S + 1], 1)
    phi = 3 * torch.randn(2, 3, 2, 20, generator=stream(0))
    together = FORMS[form](phi, S, member)
    assert together.shape == (2, 3, 20)
    for i in range(2):
        for j in range(3):
            torch.testing.assert_close(
                together[i, j], FORMS[form](phi[i, j], S, member), rtol=1e-12, atol=1e-12
            )
    flat = FORMS[form](phi[0, :, 0], S[:, 0], member)  # no axis of queries
    torch.testing.assert_close(flat[1], FORMS[form](phi[0, 1, 0], S[:, 0], member), rtol=1e-12, atol=1e-12)


@forms
def test_chunks_do_not_show(form, monkeypatch):
    world = uneven()
    whole = FORMS[form](*world, kappa0=0.1)
    monkeypatch.setattr("glasslab.moments.VALUES", 3 * 9)
    torch.testing.assert_close(FORMS[form](*world, kappa0=0.1), whole, rtol=1e-12, atol=1e-12)


@forms
@pytest.mark.parametrize("settings", [{}, {"nu0": "fit"}, {"kappa0": 1.0}])
def test_the_order_of_records_and_of_shadows_does_not_matter(settings, form):
    phi, S, member = uneven(least=2)
    g = stream(0)
    rows, models = torch.randperm(20, generator=g), torch.randperm(9, generator=g)
    moved = FORMS[form](phi[rows], S[models][:, rows], member[models][:, rows], **settings)
    torch.testing.assert_close(moved, FORMS[form](phi, S, member, **settings)[rows], rtol=1e-9, atol=1e-9)


@forms
def test_arguments_are_left_alone_and_float32_is_scored_as_its_double(form):
    world = [t.float() if t.is_floating_point() else t for t in uneven()]
    copies = [t.clone() for t in world]
    score = FORMS[form](*world)
    assert all(torch.equal(a, b) for a, b in zip(world, copies, strict=True))
    double = FORMS[form](*[t.double() if t.is_floating_point() else t for t in world])
    torch.testing.assert_close(score, double, rtol=1e-12, atol=1e-12)


@forms
@pytest.mark.parametrize("kappa0", [0.0, 1.0])
def test_a_constant_signal_is_floored_counted_and_gives_equal_scores(kappa0, form):
    S, member = torch.full((6, 20), 700.0), shadow_rows(6, 20, 0)
    with pytest.warns(Floored, match="20 of 20 spreads (in|out) floored at 0.001"):
        score = FORMS[form](torch.full((20,), 700.0), S, member, kappa0=kappa0)
    assert len(score.unique()) == 1


def test_records_that_no_model_tells_apart_get_a_floor_of_their_centres_scale():
    hard = torch.linspace(-3, 3, 20, dtype=torch.float64)
    member = shadow_rows(6, 20, 0)
    with pytest.warns(Floored, match="20 of 20 spreads out floored at 0.00182"):
        score = bavaria_offline(hard, hard.expand(6, -1), member)
    torch.testing.assert_close(score, torch.full((20,), math.log(2), dtype=torch.float64))


def test_a_lone_model_without_prior_is_floored_and_counted():
    phi, S = gaussian(1.0, m=4, n=20)[0], gaussian(1.0, m=4, n=20)[1][:3]
    member = torch.tensor([[True], [False], [True]]).expand(-1, 20).clone()
    member[2, :5] = False  # 5 records of 1 in and 2 out, 15 of 2 in and 1 out
    with (
        pytest.warns(Floored, match="5 of 20 spreads in floored"),
        pytest.warns(Floored, match="15 of 20 spreads out"),
    ):
        assert bavaria(phi, S, member, nu0=0.0).isfinite().all()


@forms
def test_two_targets_in_one_process_are_separate_runs(form):
    first = FORMS[form](*uneven(seed=0))
    FORMS[form](*uneven(12, 30, seed=1))
    assert torch.equal(first, FORMS[form](*uneven(seed=0)))


def test_refuses_what_it_cannot_do_and_names_what_can():
    phi, S, member = uneven()
    none_in = torch.zeros_like(member)
    with pytest.raises(
        ValueError, match="1[+] models in of each record.* got 0 for record 0; bavaria_offline"
    ):
        bavaria(phi, S, none_in)
    with pytest.raises(ValueError, match="1[+] models in .*got 0 for record 0"):
        bavaria(phi, S, none_in, kappa0=1.0)  # a side without a model has no centres to shrink to
    assert bavaria_offline(phi, S, none_in).isfinite().all()
    lone = member.clone()
    lone[:, 7] = True
    with pytest.raises(ValueError, match="1[+] models out .*got 0 for record 7$"):
        bavaria_offline(phi, S, lone)
    with pytest.raises(ValueError, match="got 0 for record 7"):
        bavaria_offline(phi, S, lone, kappa0=1.0, nu0=0.0)


@pytest.mark.parametrize(
    "settings", [{"nu0": -1.0}, {"nu0": math.nan}, {"kappa0": -0.1}, {"kappa0": math.inf}], ids=str
)
@forms
def test_settings_out_of_range_are_refused(form, settings):
    with pytest.raises(ValueError, match=f"{next(iter(settings))} must be 0 or more"):
        FORMS[form](*uneven(), **settings)


@forms
@pytest.mark.parametrize("bad", [float("nan"), math.inf])
def test_nan_and_infinity_are_refused(bad, form):
    phi, S, member = uneven()
    wrong = [t.index_fill(-1, torch.tensor(3), bad) for t in (phi, S)]
    with pytest.raises(ValueError, match="phi must be finite, got 1 "):
        FORMS[form](wrong[0], S, member)
    with pytest.raises(ValueError, match="S must be finite.* record 3"):
        FORMS[form](phi, wrong[1], member)


@forms
def test_shapes_are_checked(form):
    phi, S, member = uneven()
    with pytest.raises(Exception, match="shadow_phi"):
        FORMS[form](phi, S.T, member)
    with pytest.raises(ValueError, match="phi must end in .2, 20. as shadow_phi, got .20."):
        FORMS[form](phi, S[:, None].expand(-1, 2, -1), member)


def test_targets_outside_the_design_are_the_default():
    """Fair coins, not rows of the design: a null target tells nothing even at one model in and one out."""
    n = 20_000
    S, member = null(4, n)
    member = torch.cat([member[:2], target_rows(1, n, 5), member[3:]])  # counts differ from record to record
    member[3] = ~member[2]
    phi = torch.randn(n, generator=stream(9), dtype=torch.float64)
    truth = target_rows(1, n, 6)[0]
    assert abs(auc(bavaria(phi, S, member), truth) - 0.5) < 4 * math.sqrt(1 / (3 * n))
