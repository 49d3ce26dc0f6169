import math

import pytest
import torch

from glasslab.checks import check, told_apart


def world(t, n, leak, seed=0):
    g = torch.Generator().manual_seed(seed)
    member = torch.rand(t, n, generator=g) < 0.5
    return torch.randn(t, n, generator=g) + leak * member, member


def test_a_sound_evaluation_has_no_doubts():
    score, member = world(4, 1000, 1.0)
    assert check(score, member, rates={"1pct": 0.01}, gap=0.2) == []


def test_too_few_non_members_for_the_rate():
    score, member = world(1, 1000, 1.0)
    lines = check(score[0], member[0])
    n_neg = int((~member).sum())
    assert lines == [
        f"{n_neg} non-members cannot resolve FPR 0.1pct, 0.001pct: TPR there is that at FPR 0",
        f"TPR at FPR 1pct rests on fewer than 10 false positives of {n_neg}",
    ]


def test_scores_that_are_no_numbers():
    score, member = world(1, 1000, 1.0)
    score[0, :2] = torch.tensor([math.nan, math.inf])
    assert check(score, member, rates={}) == ["2 of 1000 scores are NaN or infinite: no metric is defined"]


def test_an_empty_side():
    assert check(torch.zeros(3), torch.ones(3).bool()) == [
        "there are 3 members and 0 non-members: no metric is defined"
    ]


def test_equal_scores():
    assert check(torch.ones(2, 30), world(2, 30, 0.0)[1], rates={}) == [
        "all 60 scores are equal: the attack says nothing"
    ]


@pytest.mark.parametrize("t", [1, 6])
def test_a_turned_sign_is_seen_and_luck_is_not(t):
    lines = check(*world(t, 300, -1.0), rates={})
    assert len(lines) == 1
    assert "lies below one half" in lines[0]
    alarms = sum(bool(check(*world(t, 300, 0.0, seed), rates={})) for seed in range(200))
    assert alarms <= 13  # 2.5 % and four standard errors


def test_a_small_gap_excuses_an_auc_of_one_half_only():
    assert "generalisation gap of 0.4%" in check(*world(1, 300, 0.0, 1), rates={}, gap=0.004)[0]
    assert check(*world(1, 300, 0.0, 1), rates={}, gap=0.3) == []
    assert check(*world(1, 300, 2.0), rates={}, gap=0.004) == []  # no gap, and a leak all the same


@pytest.mark.parametrize(("n", "d"), [(600, 5), (300, 800)])
def test_members_from_another_data_set_are_told_apart(n, d):
    g = torch.Generator().manual_seed(2)
    member = torch.rand(3, n, generator=g) < 0.5
    x = torch.randn(n, d, generator=g)
    x[:, -1] = 3.0  # a feature that never changes
    assert told_apart(x, member) == []
    x[:, : d // 2] += 0.8 * member[1][:, None]
    lines = told_apart(x.reshape(n, 1, d), member)
    assert len(lines) == 1
    assert lines[0].startswith("members of target 1 stand out without the model: AUC ")
    score = torch.randn(3, n, generator=g)
    assert check(score, member, rates={}, x=x) == lines


def test_independent_members_are_seldom_told_apart():
    g, alarms = torch.Generator().manual_seed(3), 0
    for _ in range(300):
        x, member = torch.randn(120, 10, generator=g), torch.rand(2, 120, generator=g) < 0.3
        alarms += bool(told_apart(x, member))
    assert alarms <= 3  # 0.1 % of 300, and room for luck


def test_many_records_are_thinned_and_one_sided_targets_left_out():
    x = torch.arange(9000.0).reshape(4500, 2)
    member = torch.stack([torch.arange(4500) < 2000, torch.ones(4500).bool()])
    lines = told_apart(x, member)
    assert [line.split(" stand")[0] for line in lines] == ["members of target 0"]
