import math

import pytest
import torch
from scipy.stats import norm

from glasslab.intervals import clopper_pearson
from glasslab.metrics import balanced, balanced_accuracy, tpr_at_fpr
from glasslab.transfer import best_threshold, ppv, precision, realised, tau


def world(n, g, leak=1.0, shift=0.0, t=1):
    member = torch.rand(t, n, generator=g) < 0.5
    return torch.randn(t, n, generator=g) + leak * member + shift, member


@pytest.mark.parametrize("fpr", [0.0, 0.01, 0.29, 0.999, 1.0])
@pytest.mark.parametrize("levels", [3, 1000])
def test_tau_is_the_threshold_that_the_truth_would_set(fpr, levels):
    g = torch.Generator().manual_seed(0)
    score = torch.randint(levels, (3, 100), generator=g).double()
    member = torch.arange(300).reshape(3, 100) < 50
    assert tau(score[~member], fpr) == tpr_at_fpr(score, member, fpr).threshold


def test_a_threshold_of_its_own_truth_gives_the_usual_numbers():
    score, member = world(500, torch.Generator().manual_seed(1))
    point = realised(score, member, tau(score[~member], 0.05)).point
    assert point == tpr_at_fpr(score, member, 0.05)
    top = realised(score, member, best_threshold(score, member)).point
    assert balanced(top) == balanced_accuracy(score, member)


def test_the_best_threshold_is_less_good_elsewhere():
    g = torch.Generator().manual_seed(2)
    own, moved = [], []
    for _ in range(200):
        mock, target = world(100, g), world(100, g)
        own.append(balanced_accuracy(*target))
        moved.append(balanced(realised(*target, best_threshold(*mock)).point))
    assert all(m <= o for m, o in zip(moved, own, strict=True))
    assert torch.tensor(moved).mean() < norm.cdf(0.5) < torch.tensor(own).mean()  # what can be had: Phi(1/2)


def test_intervals_cover_the_rates_of_the_threshold():
    g, covered = torch.Generator().manual_seed(3), torch.zeros(2)
    for _ in range(300):
        mock, mock_member = world(200, g, t=2)
        cut = tau(mock[~mock_member], 0.05)
        found = realised(*world(150, g), cut)
        covered += torch.tensor(
            [b.low <= norm.sf(cut, leak) <= b.high for leak, b in ((1.0, found.tpr), (0.0, found.fpr))]
        )
    assert (covered >= 0.90 * 300).all()


def test_intervals_are_those_of_the_counts():
    member = torch.arange(50) < 10
    found = realised(torch.arange(50.0) % 8, member, 5.5)
    assert found.point[3:] == (2, 10)  # 6 and 7 of ten; the pairs among 10 .. 49
    assert found.tpr == clopper_pearson(2, 10)
    assert found.fpr == clopper_pearson(10, 40)


def test_a_shifted_target_shows_another_rate():
    g = torch.Generator().manual_seed(4)
    mock, member = world(4000, g)
    cut = tau(mock[~member], 0.01)
    same, moved = realised(*world(4000, g), cut), realised(*world(4000, g, shift=0.5), cut)
    assert same.fpr.low <= 0.01 <= same.fpr.high
    assert moved.fpr.low > 0.01


def test_precision_by_hand_and_by_prior():
    assert precision(0.5, 0.3, 0.1) == pytest.approx(0.3 / 0.4)
    # 100 records, 10 members: 5 flagged of them and 9 of the others
    assert precision(0.1, 0.5, 0.1) == pytest.approx(5 / 14)
    rising = [precision(p, 0.3, 0.1) for p in (0.01, 0.1, 0.5, 0.9)]
    assert rising == sorted(rising)
    assert len(set(rising)) == 4


def test_precision_of_nothing_flagged_is_none():
    member = torch.tensor([True, False, False])
    found = realised(torch.zeros(3), member, 1.0)
    assert ppv(found, 0.5) == (None, None)
    assert found.point[:2] == (0, 0)


def test_no_false_positive_is_one_by_construction_and_less_in_earnest():
    member = torch.arange(40) < 20
    found = realised(member.double(), member, 0.5)
    low, high = clopper_pearson(20, 20).low, clopper_pearson(0, 20).high
    assert ppv(found, 0.5) == (1.0, pytest.approx(low / (low + high)))
    assert ppv(found, 0.01).low == pytest.approx(0.01 * low / (0.01 * low + 0.99 * high))
    assert ppv(realised(1 - member.double(), member, 0.5), 0.5) == (0.0, 0.0)


def test_refuses():
    with pytest.raises(ValueError, match="outside must hold finite scores, got 1 NaN"):
        tau(torch.tensor([math.nan, 1.0]), 0.1)
    with pytest.raises(ValueError, match="outside must hold finite scores, got 0 NaN or infinite of 0"):
        tau(torch.zeros(0), 0.1)
    for prior in (0.0, 1.0):
        with pytest.raises(ValueError, match="prior must lie between 0 and 1"):
            precision(prior, 0.5, 0.5)
