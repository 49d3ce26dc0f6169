from statistics import fmean, median

import pytest
import torch
from scipy.stats import rankdata
from worlds import gaussian, ridge

from blackbox.difficulty import sablayrolles, watson
from blackbox.lira import lira_offline
from glasslab.metrics import auc
from glasslab.signals import loss as cross_entropy
from glasslab.signals import phi as log_odds
from glasslab.split import stream

CENTRES = {"median": median, "mean": fmean}
both = pytest.mark.parametrize("attack", [sablayrolles, watson])


def world(n=20, m=9, seed=0, leak=1.0):
    """(s, S, shadow_member): skewed, so that mean and median differ; unequal counts, 1 a side at least."""
    g = stream(seed, "signals")
    member = torch.rand(m, n, generator=g) < 0.4
    member[0], member[1] = True, False
    S = leak * member + torch.randn(m, n, generator=g, dtype=torch.float64).exp()
    return torch.randn(n, generator=g, dtype=torch.float64), S, member


def textbook(s, S, member, location, attack):
    centre, scores = CENTRES[location], []
    for i in range(len(s)):
        inside, outside = (
            [S[j, i].item() for j in range(len(S)) if member[j, i] == side] for side in (True, False)
        )
        middle = centre(outside) if attack is watson else (centre(inside) + centre(outside)) / 2
        scores.append(s[i].item() - middle)
    return torch.tensor(scores, dtype=torch.float64)


@both
@pytest.mark.parametrize("location", CENTRES)
def test_equals_the_textbook_loop(attack, location):
    expected = textbook(*world(), location, attack)
    torch.testing.assert_close(attack(*world(), location=location), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("attack", "location"), [(sablayrolles, "median"), (watson, "mean")])
def test_the_location_is_the_one_of_its_paper(attack, location):
    assert torch.equal(attack(*world()), attack(*world(), location=location))


def test_three_reference_models_are_the_mean_of_three_single_ones():
    s, S, _ = world(m=3)
    out = torch.zeros(3, 20).bool()
    single = [watson(s, S[j : j + 1], out[:1]) for j in range(3)]
    torch.testing.assert_close(watson(s, S, out), sum(single) / 3)
    torch.testing.assert_close(single[0], s - S[0])  # one model out is enough

    pair = torch.tensor([True, False])[:, None].expand(2, 20)
    single = [sablayrolles(s, S[[2, j]], pair) for j in range(2)]
    three = torch.tensor([False, False, True])[:, None].expand(3, 20)
    torch.testing.assert_close(sablayrolles(s, S, three), sum(single) / 2)


@both
def test_of_two_equal_losses_the_one_on_the_harder_record_is_more_telling(attack):
    S = torch.tensor([[-0.1, -2.0], [-0.3, -4.0], [-0.1, -1.0], [-0.2, -3.0]])
    member = torch.tensor([[True, True], [False, False], [True, True], [False, False]])
    easy, hard = attack(torch.tensor([-0.2, -0.2]), S, member)
    assert hard > easy


@both
def test_what_one_record_has_in_all_models_is_taken_off(attack):
    s, S, member = world()
    offset = torch.zeros(20).double().index_fill(0, torch.tensor(4), 17.0)
    torch.testing.assert_close(attack(s + offset, S + offset, member), attack(s, S, member))


@both
@pytest.mark.parametrize("location", CENTRES)
def test_queries_are_averaged_after_each_is_calibrated(attack, location):
    worlds = [world(seed=seed)[:2] for seed in range(3)]
    member = world()[2]
    s, S = (torch.stack([w[part] for w in worlds], -2) for part in (0, 1))
    single = [attack(*w, member, location=location) for w in worlds]
    torch.testing.assert_close(attack(s, S, member, location=location), sum(single) / 3)
    thrice = attack(s[:1].expand(3, -1), S[:, :1].expand(-1, 3, -1), member, location=location)
    torch.testing.assert_close(thrice, single[0])


@both
def test_all_targets_at_once_are_each_alone(attack):
    _, S, member = world()
    S = torch.stack([S, 2 * S + 1], 1)
    s = torch.randn(3, 2, 20, generator=stream(0))
    together = attack(s, S, member)
    assert together.shape == (3, 20)
    for a in range(3):
        torch.testing.assert_close(together[a], attack(s[a], S, member))
    torch.testing.assert_close(attack(s[:, 0], S[:, 0], member)[1], attack(s[1, 0], S[:, 0], member))


def test_watson_ranks_as_the_pooled_offline_likelihood_ratio():
    phi, S, member, _ = gaussian(1.0, m=10, n=200)
    pooled = lira_offline(phi, S, member, variance="pooled", location="mean")
    assert rankdata(watson(phi, S, member)).tolist() == rankdata(pooled).tolist()


@pytest.mark.parametrize("location", CENTRES)
def test_the_complement_changes_nothing_for_sablayrolles(location):
    s, S, member = world()
    plain = sablayrolles(s, S, member, location=location)
    assert torch.equal(sablayrolles(s, S, ~member, location=location), plain)


def test_watson_never_looks_at_the_models_in():
    s, S, member = world()
    torch.testing.assert_close(watson(s, torch.where(member, 1e3, S), member), watson(s, S, member))
    assert watson(s, S, torch.zeros_like(member)).isfinite().all()


@both
@pytest.mark.parametrize("signal", ["loss", "phi"])
def test_finds_a_planted_leak(attack, signal):
    game, truth = ridge(leaks=True, seed=0)
    read = log_odds if signal == "phi" else lambda z, y: -cross_entropy(z, y)
    S, s = (read(z, game.y) for z in (game.shadows.z[:, :, 0], game.model(game.x).detach()))
    assert auc(attack(s, S, game.shadows.inside), truth) > 0.65


@both
@pytest.mark.parametrize("location", CENTRES)
def test_order_and_copies_do_not_matter(attack, location):
    s, S, member = world()
    g = stream(0)
    rows, models = torch.randperm(20, generator=g), torch.randperm(9, generator=g)
    plain = attack(s, S, member, location=location)
    moved = attack(s[rows], S[models][:, rows], member[models][:, rows], location=location)
    torch.testing.assert_close(moved, plain[rows], rtol=1e-12, atol=1e-12)
    twice = attack(s, S.repeat(2, 1), member.repeat(2, 1), location=location)
    torch.testing.assert_close(twice, plain, rtol=1e-12, atol=1e-12)


@both
def test_a_constant_signal_gives_equal_scores(attack):
    member = world()[2]
    assert attack(torch.full((20,), 3.0), torch.full((9, 20), 3.0), member).unique().numel() == 1


@both
def test_arguments_are_left_alone(attack):
    given = world()
    before = [t.clone() for t in given]
    assert torch.equal(attack(*given), attack(*given))
    assert all(torch.equal(a, b) for a, b in zip(given, before, strict=True))


@both
def test_refuses_what_it_cannot_do(attack):
    s, S, member = world()
    three = torch.tensor(3)
    with pytest.raises(ValueError, match="1[+] models out of each record, got 0 for record 3"):
        attack(s, S, member.index_fill(1, three, True))
    with pytest.raises(ValueError, match="S must be finite, got NaN or infinity for record 3"):
        attack(s, S.index_fill(1, three, torch.nan), member)
    with pytest.raises(ValueError, match="s must be finite, got NaN or infinity for record 3"):
        attack(s.index_fill(0, three, torch.inf), S, member)
    with pytest.raises(ValueError, match=r"s must end in \[2, 20\] as S, got \[20\]"):
        attack(s, torch.stack([S, S], 1), member)


def test_only_sablayrolles_needs_models_in():
    s, S, member = world()
    lone = member.index_fill(1, torch.tensor(3), False)
    assert watson(s, S, lone).isfinite().all()
    with pytest.raises(ValueError, match="1[+] models in of each record, got 0 for record 3"):
        sablayrolles(s, S, lone)
