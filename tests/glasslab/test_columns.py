import json

import pytest
import torch

from glasslab import metrics
from glasslab.bootstrap import bootstrap
from glasslab.columns import row, summary, transferred
from glasslab.intervals import clopper_pearson
from glasslab.transfer import best_threshold, precision, realised, tau

RATES = ("1pct", "0.1pct", "0.001pct")
BARE = {
    *("auc", "auc_low", "auc_high", "balanced_accuracy", "ba_null", "n_pos", "n_neg", "below_resolution"),
    *(f"tpr_at_{rate}{end}" for rate in RATES for end in ("", "_low", "_high", "_fpr", "_flag")),
    *(f"tpr_null_{rate}" for rate in RATES),
    *(f"ppv_at_{prior}{end}" for prior in ("50pct", "10pct", "1pct") for end in ("", "_low")),
}


def stream(seed):
    return torch.Generator().manual_seed(seed)


def world(t, n, leak=1.0, seed=0):
    g = stream(seed)
    member = torch.rand(t, n, generator=g) < 0.5
    return torch.randn(t, n, generator=g) + leak * member, member


def test_columns_are_those_of_the_tables_and_strict_json():
    score, member = world(6, 100)
    one, all_ = row(score[0], member[0], stream(1)), summary(score, member, stream(1))
    moved = transferred(score[0], member[0], score[1:], member[1:])
    assert set(one) >= BARE
    assert set(all_) >= BARE | {"targets", "auc_mean", "auc_sd", "tpr_at_0.1pct_mean", "balanced_accuracy_sd"}
    assert {
        "balanced_accuracy_transferred",
        "tpr_at_1pct_transferred",
        "ppv_at_10pct_low_transferred",
    } <= set(moved)
    assert all(name.endswith("_transferred") for name in moved)
    for columns in (one, all_, moved):
        assert json.loads(json.dumps(columns, allow_nan=False)) == columns


@pytest.mark.parametrize(("t", "n"), [(1, 2500), (3, 800), (6, 400)])
def test_values_are_the_metrics(t, n):
    score, member = world(t, n)
    got, drawn = summary(score, member, stream(2)), bootstrap(score, member, stream(2))
    n_pos = int(member.sum())
    n_neg = t * n - n_pos
    assert (got["n_pos"], got["n_neg"], got["targets"]) == (n_pos, n_neg, t)
    assert got["auc"] == metrics.auc(score, member)
    assert (got["auc_low"], got["auc_high"]) == drawn["auc"]
    assert got["balanced_accuracy"] == metrics.balanced_accuracy(score, member)
    assert (got["balanced_accuracy_low"], got["balanced_accuracy_high"]) == drawn["balanced_accuracy"]
    assert got["ba_null"] == metrics.ba_null(n_pos, n_neg)
    assert got["below_resolution"] == ["0.001pct"]
    assert [got[f"tpr_at_{rate}_flag"] for rate in RATES] == [None, "few_false_positives", "below_resolution"]
    for rate, fpr in metrics.RATES.items():
        point = metrics.tpr_at_fpr(score, member, fpr)
        assert (got[f"tpr_at_{rate}"], got[f"tpr_at_{rate}_fpr"]) == point[:2]
        ends = drawn[f"tpr_at_{rate}"] if rate == "1pct" else clopper_pearson(point.hits, n_pos)
        assert (got[f"tpr_at_{rate}_low"], got[f"tpr_at_{rate}_high"]) == ends
        assert got[f"tpr_null_{rate}"] == metrics.tpr_null(n_neg, fpr)
    point = metrics.tpr_at_fpr(score, member, 0.01)
    assert got["ppv_at_10pct"] == precision(0.1, point.tpr, point.fpr)
    low, high = clopper_pearson(point.hits, n_pos).low, clopper_pearson(point.alarms, n_neg).high
    assert got["ppv_at_10pct_low"] == precision(0.1, low, high)


def test_a_row_is_a_summary_of_one_target():
    score, member = world(1, 300)
    all_ = summary(score, member, stream(3))
    assert row(score[0], member[0], stream(3)).items() <= all_.items()
    assert all_["auc_sd"] is None
    assert all_["tpr_at_1pct_mean"] is None


def test_spread_is_that_of_the_targets():
    score, member = world(4, 200)
    got = summary(score, member, stream(4))
    each = torch.tensor([metrics.auc(s, m) for s, m in zip(score, member, strict=True)]).double()
    assert got["auc_mean"] == pytest.approx(each.mean().item())
    assert got["auc_sd"] == pytest.approx(each.std().item())
    tpr = [metrics.tpr_at_fpr(s, m, 0.01).tpr for s, m in zip(score, member, strict=True)]
    assert got["tpr_at_1pct_mean"] == pytest.approx(sum(tpr) / 4)


def test_nothing_is_averaged_over_fewer_targets():
    score, member = world(3, 50)
    member[1] = False
    got = summary(score, member, stream(5))
    assert got["auc"] == metrics.auc(score, member)
    assert got["auc_mean"] is None


def test_transferred_thresholds_come_from_the_mock_targets():
    (score, member), (mock, mock_member) = world(1, 400, seed=6), world(6, 400, leak=0.5, seed=7)
    got = transferred(score[0], member[0], mock, mock_member)
    found = realised(score, member, tau(mock[~mock_member], 0.01))
    assert got["tpr_at_1pct_transferred"] == found.point.tpr
    assert got["tpr_at_1pct_fpr_transferred"] == found.point.fpr
    assert (got["tpr_at_1pct_low_transferred"], got["tpr_at_1pct_high_transferred"]) == found.tpr
    assert (got["tpr_at_1pct_fpr_low_transferred"], got["tpr_at_1pct_fpr_high_transferred"]) == found.fpr
    assert got["tpr_at_1pct_flag_transferred"] is None  # of some 1,200 mock non-members, not 200 real ones
    assert got["ppv_at_50pct_transferred"] == precision(0.5, found.point.tpr, found.point.fpr)
    top = realised(score, member, best_threshold(mock, mock_member)).point
    assert got["balanced_accuracy_transferred"] == (1 + top.tpr - top.fpr) / 2
    assert got["balanced_accuracy_transferred"] <= metrics.balanced_accuracy(score, member)


def test_equal_scores_are_defined():
    got = row(torch.zeros(300), torch.arange(300) < 150, stream(8))
    assert (got["auc"], got["auc_low"], got["auc_high"]) == (0.5, 0.5, 0.5)
    assert (got["tpr_at_1pct"], got["tpr_at_1pct_low"], got["tpr_at_1pct_fpr"]) == (0.0, 0.0, 0.0)
    assert got["ppv_at_50pct"] is None
    assert got["ppv_at_50pct_low"] is None


def test_refuses_scores_that_are_no_numbers():
    with pytest.raises(ValueError, match="score must be finite"):
        row(torch.tensor([1.0, float("nan")]), torch.tensor([True, False]), stream(0))
