import pytest
import torch
from worlds import null

from glasslab import metrics
from glasslab.likelihood import fit
from glasslab.null_law import null_hits
from glasslab.per_record import gaussian
from glasslab.split import stream, target_rows
from workbench.curves import QUANTILES, curves, risks


@pytest.fixture(scope="module")
def world():
    """Three targets, 200 records; one attack with a score for everything, one with ties, one that failed."""
    truth = target_rows(3, 200, 0)
    fine = torch.randn(3, 200, generator=stream(0)).double() + truth
    failed = fine.clone()
    failed[1] = torch.nan
    return {"fine": fine, "tied": fine.round(), "failed": failed}, truth, torch.arange(1000, 1200)


@pytest.mark.parametrize("name", ["fine", "tied"])
def test_the_steps_are_the_whole_curve(world, name):
    """Corners alone, read as steps, give the TPR of every rate; the area between them is the AUC."""
    scores, truth, records = world
    held = curves(scores, truth, records).query("curve == 'roc' and attack == @name")
    x, y = (torch.tensor(held[axis].to_numpy()) for axis in "xy")
    whole = metrics.roc(scores[name], truth)
    assert len(x) < 0.8 * len(whole.fpr) or name == "tied"  # nothing on a straight line is kept
    assert torch.trapezoid(y, x).item() == pytest.approx(metrics.auc(scores[name], truth))
    for fpr in (0.0, 0.001, 0.01, 0.1, 0.5, 1.0):
        at = int(torch.searchsorted(x, fpr + 1e-12, right=True)) - 1
        assert y[at] == metrics.tpr_at_fpr(scores[name], truth, fpr).tpr


def test_a_failed_attack_has_no_curve(world):
    held = curves(*world)
    assert set(held["attack"].dropna()) == {"fine", "tied"}
    assert not curves({}, world[1], world[2])["curve"].eq("roc").any()


def test_records_found_average_to_the_pooled_rate(world):
    """Estimator `at_pooled_threshold`, weighted by how often each record is a member."""
    scores, truth, records = world
    held = curves(*world).query("estimator == 'at_pooled_threshold' and attack == 'fine' and rate == '1pct'")
    assert held["record"].tolist() == records.tolist()
    tpr = torch.tensor(held["y"].to_numpy(dtype=float)).nan_to_num(0.0)
    pooled = (tpr * truth.sum(0)).sum() / truth.sum()
    assert pooled == pytest.approx(metrics.tpr_at_fpr(scores["fine"], truth, 0.01).tpr)


def test_the_null_band(world):
    _, truth, _ = world
    held = curves(*world).query("curve == 'null'")
    n_pos = int(truth.sum())
    n_neg = truth.numel() - n_pos
    for row in held.iloc[::7].itertuples():
        assert round(row.y * n_pos) == null_hits(n_pos, n_neg, row.x)[row.side == "high"]
    assert held["x"].min() == 0
    assert 0.8 < held["x"].max() < 1


def test_four_records_by_rule():
    S, member = null(16, 101)
    S = S + member * torch.linspace(0, 20, 101)  # the later a record, the more its being a member shows
    gauss = fit(S, member)
    truth = target_rows(2, 101, 0)
    held = risks(gauss, S, member, S[:2], truth, torch.arange(500, 601))
    phi = held[held["curve"] == "phi"]
    chosen = {quantile: group["record"].unique().tolist() for quantile, group in phi.groupby("x")}
    assert list(chosen) == list(QUANTILES)
    order = (gauss.mu_in - gauss.mu_out).argsort() + 500
    assert [chosen[q] for q in QUANTILES] == [[int(order[round(100 * q)])] for q in QUANTILES]
    (last,) = chosen[1.0]
    inside = phi[(phi["record"] == last) & (phi["side"] == "in")]["y"]
    assert sorted(inside) == sorted(S[member[:, last - 500], last - 500].tolist())
    assert len(phi[(phi["record"] == last) & phi["side"].str.startswith("target")]) == 2
    normal = held.query("curve == 'normal' and record == @last and side == 'in'").iloc[0]
    assert (normal["x"], normal["y"]) == (gauss.mu_in[last - 500], gauss.sig_in[last - 500])
    risk = held.query("estimator == 'gaussian' and rate == '0.1pct'")["y"].tolist()
    assert risk == gaussian(gauss.mu_in, gauss.sig_in, gauss.mu_out, gauss.sig_out, 0.001).tolist()
