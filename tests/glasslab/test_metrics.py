import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glasslab import metrics
from glasslab.metrics import auc, balanced_accuracy, roc, tpr_at_fpr

CASE = torch.tensor([0.9, 0.5, 0.5, 0.1]), torch.tensor([True, True, False, False])


@st.composite
def scored(draw):
    """Scores with many ties or few, and a truth with both sides."""
    n = draw(st.integers(2, 30))
    levels = draw(st.sampled_from([1, 2, 3, 11, 1000]))
    score = draw(st.lists(st.integers(0, levels - 1), min_size=n, max_size=n))
    member = draw(st.lists(st.booleans(), min_size=n, max_size=n).filter(lambda m: 0 < sum(m) < n))
    return torch.tensor(score, dtype=torch.float64), torch.tensor(member)


many = settings(max_examples=60, deadline=None)


def vertices(score, member):
    """(FPR, TPR, hits, alarms) of every threshold, by loops."""
    inside, outside = score[member].tolist(), score[~member].tolist()
    out = []
    for cut in [math.inf, *sorted(set(score.tolist()), reverse=True)]:
        hits, alarms = sum(s >= cut for s in inside), sum(s >= cut for s in outside)
        out.append((alarms / len(outside), hits / len(inside), hits, alarms))
    return out


@many
@given(scored())
def test_roc_has_one_vertex_a_group_of_equals(data):
    curve, expected = roc(*data), vertices(*data)
    assert list(zip(curve.fpr.tolist(), curve.tpr.tolist(), strict=True)) == [v[:2] for v in expected]
    assert expected[0][:2] == (0, 0)
    assert expected[-1][:2] == (1, 1)


@many
@given(scored())
def test_roc_thresholds_flag_what_they_say(data):
    for threshold, hits, alarms in zip(*roc(*data), strict=True):
        assert metrics.above(*data, float(threshold))[3:] == (hits, alarms)


@many
@given(scored())
def test_auc_equals_all_pairs(data):
    score, member = data
    pairs = [(a > b) + (a == b) / 2 for a in score[member].tolist() for b in score[~member].tolist()]
    assert auc(score, member) == pytest.approx(sum(pairs) / len(pairs), abs=1e-15)


@many
@given(scored())
def test_auc_of_turned_scores_is_the_exact_rest(data):
    score, member = data
    assert auc(-score, member) == 1 - auc(score, member)
    assert auc(score, member) == 1 - auc(-score, member)


@many
@given(scored(), st.sampled_from([0.0, 0.001, 0.01, 0.1, 0.29, 0.5, 0.9, 1.0]))
def test_tpr_is_the_best_vertex_at_most_at_the_rate(data, fpr):
    point = tpr_at_fpr(*data, fpr)
    n_neg = int((~data[1]).sum())
    fits = [v for v in vertices(*data) if v[3] <= math.floor(n_neg * fpr + 1e-9)]
    assert point.tpr == max(v[1] for v in fits)
    assert (point.fpr, point.tpr, point.hits, point.alarms) in fits
    assert point == metrics.above(*data, point.threshold)


@many
@given(scored(), st.sampled_from([0.0, 0.01, 0.1, 0.5]))
def test_the_threshold_is_the_first_non_member_too_many(data, fpr):
    score, member = data
    outside = sorted(score[~member].tolist(), reverse=True)
    assert tpr_at_fpr(*data, fpr).threshold == outside[math.floor(len(outside) * fpr + 1e-9)]


@many
@given(scored())
def test_balanced_accuracy_is_the_best_of_all_thresholds(data):
    best = max((tpr + 1 - fpr) / 2 for fpr, tpr, *_ in vertices(*data))
    assert balanced_accuracy(*data) == pytest.approx(best, abs=1e-15)
    assert metrics.advantage(*data) == pytest.approx(2 * best - 1, abs=1e-15)


@many
@given(scored(), st.sampled_from([lambda s: s.exp(), lambda s: s**3 - 7, lambda s: 1e-3 * s.float()]))
def test_increasing_maps_change_nothing(data, f):
    score, member = data
    mapped = f(score / 30)
    assert auc(mapped, member) == auc(score, member)
    assert balanced_accuracy(mapped, member) == balanced_accuracy(score, member)
    for fpr in (0.0, 0.1, 0.5):
        assert tpr_at_fpr(mapped, member, fpr)[:2] == tpr_at_fpr(score, member, fpr)[:2]


@many
@given(scored())
def test_targets_are_pooled_and_arguments_left_alone(data):
    score, member = data
    held = score.clone(), member.clone()
    two = torch.stack([score, score.flip(0)]), torch.stack([member, member.flip(0)])
    assert auc(*two) == pytest.approx(auc(score, member), abs=1e-15)
    assert roc(*two).hits.tolist() == (2 * roc(score, member).hits).tolist()
    assert torch.equal(score, held[0])
    assert torch.equal(member, held[1])


def test_a_hand_case():
    assert auc(*CASE) == 0.875
    assert balanced_accuracy(*CASE) == 0.75
    assert tpr_at_fpr(*CASE, 0.49)[:2] == (0.5, 0.0)
    assert tpr_at_fpr(*CASE, 0.5)[:2] == (1.0, 0.5)


def test_29_percent_of_100_is_29():
    score, member = torch.cat([torch.arange(100.0), torch.tensor([70.5])]), torch.arange(101) == 100
    assert tpr_at_fpr(score, member, 0.29)[:2] == (1.0, 0.29)
    assert tpr_at_fpr(score, member, 0.28).tpr == 0.0


def test_a_coin_flip_score_is_worth_a_half():
    g = torch.Generator().manual_seed(0)
    score, member = (torch.rand(2000, generator=g) < 0.5).double(), torch.arange(2000) < 1000
    assert abs(auc(score, member) - 0.5) < 4 * math.sqrt(2001 / 12e6)


def test_equal_scores_tell_nothing():
    score, member = torch.full((2, 10), 3.0), torch.arange(20).reshape(2, 10) % 3 == 0
    assert auc(score, member) == 0.5
    assert balanced_accuracy(score, member) == 0.5
    assert [tpr_at_fpr(score, member, a).tpr for a in (0.0, 0.01, 0.99, 1.0)] == [0, 0, 0, 1]


def test_one_record_a_side():
    assert auc(torch.tensor([2.0, 1.0]), torch.tensor([True, False])) == 1.0
    assert auc(torch.tensor([1.0, 2.0]), torch.tensor([True, False])) == 0.0
    assert balanced_accuracy(torch.tensor([1.0, 2.0]), torch.tensor([True, False])) == 0.5


@pytest.mark.parametrize("fpr", [0.0, 0.05, 0.29])
def test_a_scoreless_attack_gets_what_luck_gives(fpr):
    g = torch.Generator().manual_seed(2)
    member = torch.arange(120) < 60
    got = torch.tensor([tpr_at_fpr(torch.rand(120, generator=g), member, fpr).tpr for _ in range(1500)])
    assert got.mean().item() == pytest.approx(metrics.tpr_null(60, fpr), abs=4 * got.std().item() / 1500**0.5)


def test_luck_at_rates_of_nothing_and_all():
    assert metrics.tpr_null(1000, 0.001) == pytest.approx(2 / 1001)
    assert metrics.tpr_null(1000, 1e-5) == pytest.approx(1 / 1001)
    assert metrics.tpr_null(1000, 1.0) == 1.0


def test_ba_null_is_what_luck_gives():
    g = torch.Generator().manual_seed(3)
    member = torch.arange(1000) < 500
    got = torch.tensor([balanced_accuracy(torch.rand(1000, generator=g), member) for _ in range(1500)])
    # the law of large sides: at 500 a side it is 2e-4 above the mean and about 1 % off the tail
    assert got.mean().item() == pytest.approx(metrics.ba_null(500, 500), abs=0.0015)
    above = (got > metrics.ba_null(500, 500, high=True)).double().mean().item()
    assert above == pytest.approx(0.05, abs=0.025)
    assert round(metrics.ba_null(500, 500), 3) == 0.520
    assert round(metrics.ba_null(500, 500, high=True), 3) == 0.539


def test_what_cannot_be_resolved_is_named():
    assert metrics.below_resolution(500) == ["0.1pct", "0.001pct"]
    assert metrics.below_resolution(1000) == ["0.001pct"]
    assert metrics.below_resolution(100_000) == []
    assert [metrics.flag(n, 0.01) for n in (99, 100, 999, 1000)] == [
        "below_resolution",
        "few_false_positives",
        "few_false_positives",
        None,
    ]


@many
@given(scored(), st.integers(0, 2**30))
def test_correctness_has_the_gap_as_its_advantage(data, seed):
    member = data[1]
    correct = torch.rand(len(member), generator=torch.Generator().manual_seed(seed)) < 0.7
    g = metrics.gap(correct, member)
    accuracy = [sum(correct[side].tolist()) / int(side.sum()) for side in (member, ~member)]
    assert g == pytest.approx(accuracy[0] - accuracy[1], abs=1e-15)
    decision = metrics.balanced(metrics.above(correct.double(), member, 0.5))
    assert decision == pytest.approx((1 + g) / 2, abs=1e-15)
    assert balanced_accuracy(correct.double(), member) == pytest.approx((1 + max(g, 0)) / 2, abs=1e-15)


def test_the_gap_law_of_a_bounded_loss():
    loss, member = torch.tensor([0.0, 0.2, 0.6, 1.0]), torch.tensor([True, True, False, False])
    tpr, fpr = (1 - loss[member]).mean(), (1 - loss[~member]).mean()
    assert (tpr - fpr).item() == pytest.approx((loss[~member].mean() - loss[member].mean()).item())
    assert metrics.loss_ratio(loss, member) == pytest.approx(8.0)
    assert metrics.loss_ratio(loss * ~member, member) is None


def test_refuses_what_has_no_answer():
    member = torch.tensor([True, False])
    for bad in (math.nan, math.inf, -math.inf):
        with pytest.raises(ValueError, match="score must be finite, got 1 NaN or infinite of 2"):
            auc(torch.tensor([bad, 1.0]), member)
    for side in (torch.ones(2).bool(), torch.zeros(2).bool()):
        with pytest.raises(ValueError, match="must name members and non-members"):
            tpr_at_fpr(torch.ones(2), side, 0.1)
    for fpr in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="fpr must lie in"):
            tpr_at_fpr(torch.tensor([1.0, 2.0]), member, fpr)
