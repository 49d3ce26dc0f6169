import pytest
import torch
from scipy.stats import betabinom

from glasslab.metrics import auc, tpr_at_fpr
from glasslab.null_law import ALARM, auc_se, null_breaches, null_hits


def scoreless(worlds, t, n, seed, *, hard=0.0):
    """Scores that know nothing; `hard` is common to a record's targets. The truth is a coin a cell."""
    g = torch.Generator().manual_seed(seed)
    for _ in range(worlds):
        score = torch.randn(t, n, generator=g) + hard * torch.randn(n, generator=g)
        yield score.double(), torch.rand(t, n, generator=g) < 0.5


@pytest.mark.parametrize("fpr", [0.0, 0.05])
def test_flagged_members_follow_the_beta_binomial(fpr):
    member, g = torch.arange(150) < 60, torch.Generator().manual_seed(0)
    hits = torch.tensor(
        [tpr_at_fpr(torch.rand(150, generator=g), member, fpr).hits for _ in range(4000)], dtype=torch.float64
    )
    k = int(90 * fpr)
    law = betabinom(60, k + 1, 90 - k)
    assert hits.mean().item() == pytest.approx(law.mean(), abs=4 * law.std() / 4000**0.5)
    assert hits.std().item() == pytest.approx(law.std(), rel=0.1)
    least, most = null_hits(60, 90, fpr)
    assert ((least <= hits) & (hits <= most)).double().mean() >= 0.945
    assert max((hits < least).double().mean(), (hits > most).double().mean()) <= 0.035
    tight = ((least < hits) & (hits < most)).double().mean()  # one less at each end is too narrow
    assert tight < 0.96


def test_all_flagged_at_a_rate_of_one():
    assert null_hits(7, 9, 1.0) == (7, 7)


@pytest.mark.parametrize("hard", [0.0, 3.0])
def test_pooled_targets_obey_the_same_law(hard):
    data = list(scoreless(800, 4, 40, 1, hard=hard))
    inside = []
    for score, member in data:
        n_pos = int(member.sum())
        least, most = null_hits(n_pos, 160 - n_pos, 0.05)
        inside.append(least <= tpr_at_fpr(score, member, 0.05).hits <= most)
    assert sum(inside) / 800 >= 0.93
    z = torch.tensor([(auc(s, m) - 0.5) / auc_se(int(m.sum()), int((~m).sum())) for s, m in data])
    assert abs(z.mean()) < 4 / 800**0.5
    assert z.std().item() == pytest.approx(1, abs=0.1)


def test_a_suite_of_checks_seldom_raises_a_false_alarm():
    # 20 checks a suite: 50 suites, of which 0.1 % may fail
    failed = [bool(null_breaches(*d, checks=20)) for d in scoreless(1000, 1, 200, 2)]
    assert sum(failed) <= 1


@pytest.mark.parametrize("leak", [1.0, -1.0])
def test_a_leak_is_a_breach(leak):
    for score, member in scoreless(3, 2, 2000, 3):
        lines = null_breaches(score + leak * member, member)
        assert "is not 0.5" in lines[0]
        assert "members at FPR 1pct" in lines[1]


def test_ties_are_held_to_the_upper_limit_only():
    score, member = next(iter(scoreless(1, 1, 4000, 4)))
    assert null_breaches((score > -0.5).double(), member) == []
    assert null_breaches(score.where(score > -0.5, score - 1), member) == []
    tail = score.argsort(descending=True).flatten()[:60]
    hidden = score.clone()
    hidden[0, tail] = torch.where(member[0, tail], -9.0 - torch.arange(60), hidden[0, tail])
    assert len(null_breaches(hidden, member)) == 1  # no member among the highest: too few to be luck
    assert "0 of" in null_breaches(hidden, member)[0]
    hidden[0, -1] = hidden[0, -2]
    assert null_breaches(hidden, member) == []


def test_the_allowance_grows_with_the_number_of_checks():
    assert ALARM == 0.001
    g = torch.Generator().manual_seed(5)
    member = torch.arange(400) < 200
    score = torch.randn(400, generator=g) + 0.45 * member
    z = (auc(score, member) - 0.5) / auc_se(200, 200)
    assert 4.0 < z < 5.0
    assert null_breaches(score, member, rates={})
    assert not null_breaches(score, member, rates={}, checks=100_000)
