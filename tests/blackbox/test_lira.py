import math
from statistics import fmean, median, pstdev

import pytest
import torch
from scipy.stats import norm
from worlds import gaussian, ridge

from blackbox.lira import lira, lira_offline
from glasslab.likelihood import fit, ratio
from glasslab.metrics import auc
from glasslab.signals import phi as log_odds
from glasslab.split import stream

RULES = ["record", "pooled", "grand", "grand_in"]
CENTRES = {"median": median, "mean": fmean}


def spread(rule, side, i, centre):
    if rule == "record":
        return pstdev(side[i])
    if rule == "pooled":
        squares = sum((v - centre(x)) ** 2 for x in side for v in x)
        return (squares / sum(len(x) - 1 for x in side)) ** 0.5
    return pstdev([v for x in side for v in x])


def textbook(phi, S, member, rule, location, form):
    """Algorithm 1 as one reads it: a loop over records, lists, scipy's normal law."""
    n, centre = len(phi), CENTRES[location]
    inside, outside = ([S[w[:, i], i].tolist() for i in range(n)] for w in (member, ~member))
    scores = []
    for i in range(n):
        sig_in = spread(rule, inside, i, centre)
        sig_out = sig_in if rule == "grand_in" else spread(rule, outside, i, centre)
        law_in, law_out = norm(centre(inside[i]), sig_in), norm(centre(outside[i]), sig_out)
        x = phi[i].item()
        scores.append(
            {
                "online": law_in.logpdf(x) - law_out.logpdf(x),
                "one-sided": -law_out.logsf(x),
                "two-sided": -law_out.logpdf(x),
            }[form]
        )
    return torch.tensor(scores, dtype=torch.float64)


def attack(form):
    return {
        "online": lira,
        "one-sided": lira_offline,
        "two-sided": lambda *world, **settings: lira_offline(*world, two_sided=True, **settings),
    }[form]


forms = pytest.mark.parametrize("form", ["online", "one-sided", "two-sided"])


@forms
@pytest.mark.parametrize("location", CENTRES)
@pytest.mark.parametrize("rule", RULES)
def test_equals_the_textbook_loop(rule, location, form):
    *world, _ = gaussian(1.0, m=10, n=20, spread=3.0)  # the sides spread differently: mixed sigmas show
    fast = attack(form)(*world, variance=rule, location=location)
    torch.testing.assert_close(fast, textbook(*world, rule, location, form), rtol=1e-9, atol=1e-9)


@forms
def test_queries_are_averaged_after_the_ratio(form):
    worlds = [gaussian(1.0, m=10, n=20, spread=s) for s in (1.0, 3.0)]
    member = worlds[0][2]
    phi, S = (torch.stack([w[part] for w in worlds], -2) for part in (0, 1))
    single = [attack(form)(w[0], w[1], member, variance="record") for w in worlds]
    both = attack(form)(phi, S, member, variance="record")
    torch.testing.assert_close(both, (single[0] + single[1]) / 2)


@forms
@pytest.mark.parametrize("rule", RULES)
def test_copies_of_one_query_change_nothing(rule, form):
    phi, S, member, _ = gaussian(1.0, m=10, n=20)
    thrice = attack(form)(phi.expand(3, -1), S[:, None].expand(-1, 3, -1), member, variance=rule)
    torch.testing.assert_close(thrice, attack(form)(phi, S, member, variance=rule))


@forms
def test_all_targets_at_once_are_each_alone(form):
    _, S, member, _ = gaussian(1.0, m=10, n=20)
    S = torch.stack([S, 2 * S + 1], 1)
    phi = torch.randn(3, 2, 20, generator=stream(0))
    together = attack(form)(phi, S, member)
    assert together.shape == (3, 20)
    for a in range(3):
        torch.testing.assert_close(together[a], attack(form)(phi[a], S, member))
    flat = attack(form)(phi[:, 0], S[:, 0], member)  # no axis of queries
    assert flat.shape == (3, 20)
    torch.testing.assert_close(flat[1], attack(form)(phi[1, 0], S[:, 0], member))


def test_two_targets_in_one_process_are_separate_runs():
    one, two = gaussian(1.0, m=10, n=20, seed=0)[:3], gaussian(1.0, m=12, n=30, seed=1)[:3]
    first = lira(*one)
    lira(*two)
    assert torch.equal(first, lira(*one))


@pytest.mark.parametrize("rule", ["auto", "pooled"])
@pytest.mark.parametrize("leak", [0.5, 1.0, 2.0])
def test_comes_close_to_the_best_attack_there_is(leak, rule):
    *world, truth = gaussian(leak, m=128, n=4000)
    best = (1 + math.erf(leak / 2)) / 2
    assert best - 0.03 < auc(lira(*world, variance=rule), truth) < best + 0.02
    assert best - 0.03 < auc(lira_offline(*world, variance=rule), truth) < best + 0.02  # one gap for all


@forms
def test_finds_a_planted_leak_with_the_same_sign(form):
    game, truth = ridge(leaks=True, seed=0)
    S = log_odds(game.shadows.z[:, :, 0], game.y)
    phi = log_odds(game.model(game.x).detach(), game.y)
    assert auc(attack(form)(phi, S, game.shadows.inside), truth) > 0.65


def test_far_below_the_out_models_is_last_offline_unless_two_sided():
    phi, S, member, _ = gaussian(1.0, m=64, n=50)
    phi = phi.index_put((torch.tensor(7),), S[:, 7].min() - 20)
    assert lira_offline(phi, S, member).argmin() == 7
    assert lira_offline(phi, S, member, two_sided=True).argmax() == 7


def test_grand_in_differs_exactly_when_the_sides_spread_differently():
    phi, _, member, _ = gaussian(0.0, m=8, n=30)
    v = torch.randn(4, 30, generator=stream(0), dtype=torch.float64)  # the same four values in and out
    places = [(w.cumsum(0) - 1).clamp(min=0) for w in (member, ~member)]
    for width, same in ((1.0, True), (3.0, False)):
        S = torch.where(member, v.gather(0, places[0]), width * v.gather(0, places[1]))
        scores = [lira(phi, S, member, variance=rule) for rule in ("grand", "grand_in")]
        assert torch.allclose(*scores, rtol=1e-9, atol=1e-9) == same


def test_grand_in_is_affine_in_phi_with_the_slope_of_its_formula():
    _, S, member, _ = gaussian(1.0, m=8, n=30, spread=3.0)
    f = fit(S, member, variance="grand_in")
    slope = (f.mu_in - f.mu_out) / f.sig_in.square()
    at = [lira(torch.full((30,), x), S, member, variance="grand_in") for x in (0.0, 1.0, -7.5)]
    torch.testing.assert_close(at[1] - at[0], slope)
    torch.testing.assert_close(at[2] - at[0], -7.5 * slope)


@pytest.mark.parametrize("rule", RULES)
def test_the_complement_flips_the_sign_but_not_with_grand_in(rule):
    phi, S, member, _ = gaussian(1.0, m=8, n=30, spread=3.0)
    score, flipped = (lira(phi, S, w, variance=rule) for w in (member, ~member))
    assert torch.equal(flipped, -score) == (rule != "grand_in")


@forms
@pytest.mark.parametrize("rule", ["record", "pooled"])
def test_a_temperature_changes_nothing_with_two_classes(rule, form):
    game, _ = ridge(leaks=True, seed=0, c=2)
    z, own = game.shadows.z[:, :, 0], game.model(game.x).detach()

    def score(t):
        S, phi = (log_odds((logits.double() / t).log_softmax(-1), game.y) for logits in (z, own))
        return attack(form)(phi, S, game.shadows.inside, variance=rule)

    plain, hot = score(1.0), score(5.0)
    offset = math.log(5.0) if form == "two-sided" else 0.0  # a density has units, a ratio has none
    torch.testing.assert_close(hot, plain - offset, rtol=1e-6, atol=1e-6)


@forms
@pytest.mark.parametrize("rule", RULES)
def test_the_order_of_records_and_of_shadows_does_not_matter(rule, form):
    phi, S, member, _ = gaussian(1.0, m=8, n=30, spread=3.0)
    g = stream(0)
    rows, models = torch.randperm(30, generator=g), torch.randperm(8, generator=g)
    plain = attack(form)(phi, S, member, variance=rule)
    moved = attack(form)(phi[rows], S[models][:, rows], member[models][:, rows], variance=rule)
    torch.testing.assert_close(moved, plain[rows], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("location", CENTRES)
def test_doubled_shadows_move_no_location(location):
    _, S, member, _ = gaussian(1.0, m=10, n=30)
    one, two = (fit(S.repeat(r, 1), member.repeat(r, 1), location=location) for r in (1, 2))
    torch.testing.assert_close(one.mu_in, two.mu_in, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(one.mu_out, two.mu_out, rtol=1e-14, atol=1e-14)


def test_one_fit_serves_as_the_attack_does():
    phi, S, member, _ = gaussian(1.0, m=8, n=30)
    assert torch.equal(ratio(phi, fit(S, member)), lira(phi, S, member))


def test_refuses_what_it_cannot_do_and_names_what_can():
    phi, S, member, _ = gaussian(1.0, m=8, n=20)
    with pytest.raises(ValueError, match="got 0 for record 0; lira_offline needs none"):
        lira(phi, S, torch.zeros_like(member))
    assert lira_offline(phi, S, torch.zeros_like(member)).isfinite().all()
    lone = member.clone()
    lone[:, 3] = torch.arange(8) == 2
    with pytest.raises(ValueError, match="2[+] models in .*'pooled' needs 1.* got 1 for record 3"):
        lira(phi, S, lone, variance="record")
    with pytest.raises(ValueError, match="1[+] models out .* got 0 for record 3"):
        lira_offline(phi, S, lone.index_fill(1, torch.tensor(3), True))


def test_shapes_are_checked():
    phi, S, member, _ = gaussian(1.0, m=8, n=20)
    with pytest.raises(Exception, match="shadow_phi"):
        lira(phi, S.T, member)
