"""Experiments on tiny zoos: what they share with `compare`, identities, and twins of what they compute."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from zoos import made, tiny

from blackbox.lira import lira
from glasslab import metrics, per_record
from glasslab.likelihood import fit
from glasslab.per_class import normalised_entropy
from glasslab.zoo import Zoo
from workbench import compare
from workbench.experiments.ablations import ablations
from workbench.experiments.entropy import _histogram, entropy
from workbench.experiments.gap import gap, identity_error, lines
from workbench.experiments.metric_attacks import metric_attacks
from workbench.experiments.overfitting import decided, merged, overfitting, precision_recall
from workbench.experiments.precision_cdf import precision_cdf, shares
from workbench.experiments.records import records
from workbench.experiments.runs import KEPT
from workbench.experiments.transfer import dimmed, noisy, transfer_architecture, transfer_data, uneven

PER_CLASS = ("loss-per-class", "modified-entropy-per-class")


@pytest.fixture(scope="module")
def narrow(zoo, tmp_path_factory):
    """Shadows of another architecture for the same records and rows as `zoo`."""
    root = tmp_path_factory.mktemp("narrow")
    return tiny(root, replace(zoo.recipe, hidden=(8,)), data=zoo.data, shadows=16, targets=0, records=300)


@pytest.fixture(scope="module")
def summary(kept):
    return {row["attack"]: row for row in kept[0].attrs["summary"]}


def agrees(row, other):
    """In every number that both have, intervals too."""
    return all(row[name] == other[name] or (pd.isna(row[name]) and other[name] is None) for name in KEPT)


def test_metric_attacks_are_those_of_compare(zoo, foreign, summary):
    both = metric_attacks({"noise": zoo}, attacks=["random", "correctness", "loss", "confidence"])
    rows = both.to_dict("records")
    assert [row["attack"] for row in rows] == ["random", "correctness", "loss", "confidence"]
    assert all(agrees(row, summary[row["attack"]]) for row in rows)
    assert rows[2]["auc"] == rows[3]["auc"]  # one ranking
    assert both.attrs["zoos"]["noise"]["zoo"] == zoo.key
    with pytest.raises(ValueError, match="must hold a target"):
        metric_attacks({"without targets": foreign})


@pytest.fixture(scope="module")
def gaps(zoo, tmp_path_factory):
    root = tmp_path_factory.mktemp("early")
    early = tiny(root, replace(zoo.recipe, epochs=5), data=zoo.data, shadows=16, targets=3)
    return gap({"long": zoo, "short": early}, attacks=["loss"])


def test_correctness_has_half_of_one_and_the_gap(gaps, zoo):
    held = gaps[gaps["attack"] == "correctness"]
    assert len(held) == 8
    assert (held["accuracy"] == [(1 + g) / 2 for g in held["gap"]]).all() or held[
        "identity_error"
    ].max() < 1e-15
    right, member = zoo.signal("correct", of="target")[:, 0], zoo.target_member
    for row, r, inside in zip(held.itertuples(), right, member, strict=False):
        assert row.gap == pytest.approx(float(r[inside].mean() - r[~inside].mean()), abs=1e-12)
    line = gaps.attrs["lines"][0]
    assert line["slope"] == pytest.approx(0.5)
    assert line["intercept"] == pytest.approx(0.5)


def test_a_gap_of_other_records_is_no_identity(gaps):
    """Wrong version: train less test accuracy, which agrees in expectation only."""
    held = gaps[gaps["attack"] == "correctness"]
    for row in held.itertuples():
        with pytest.raises(ArithmeticError, match="must be"):
            identity_error(row.accuracy, row.gap_test)
    with pytest.raises(ArithmeticError):
        identity_error(math.nan, 0.1)


def test_accuracy_is_at_a_threshold_that_the_attacker_knows(gaps, kept):
    """Wrong version: the best threshold, chosen by the truth, is never worse."""
    row = kept[0].query("attack == 'loss'").set_index("target")["balanced_accuracy_transferred"]
    mine = gaps.query("attack == 'loss' and zoo == 'long'").set_index("target")
    assert mine["accuracy"].tolist() == row.tolist()
    assert (mine["accuracy"] <= mine["balanced_accuracy"]).all()
    assert (mine["accuracy"] < mine["balanced_accuracy"]).any()


def test_lines_are_least_squares():
    points = pd.DataFrame({"attack": "a", "gap": [0.0, 0.1, 0.3], "accuracy": [0.5, 0.6, 0.65]})
    same = pd.DataFrame({"attack": "b", "gap": [0.2, 0.2], "accuracy": [0.5, 0.6]})
    held = lines(pd.concat([points, same]))
    slope, intercept = np.polyfit(points["gap"], points["accuracy"], 1)
    assert held["slope"][0] == pytest.approx(slope)
    assert held["intercept"][0] == pytest.approx(intercept)
    assert held["r"][0] == pytest.approx(np.corrcoef(points["gap"], points["accuracy"])[0, 1])
    assert held.loc[1, ["slope", "r"]].isna().all()
    assert held["points"].tolist() == [3, 2]


def test_transfer_at_home_and_abroad_are_those_of_compare(zoo, narrow, foreign, summary):
    held = transfer_architecture(zoo, {"narrow": narrow}, attacks=["loss-per-class", "lira"])
    rows = held.set_index(["shadows", "attack"])
    assert all(agrees(rows.loc["home", name], summary[name]) for name in ("loss-per-class", "lira"))
    abroad = compare(zoo, ["lira"], shadows=narrow, progress=False).attrs["summary"][0]
    assert agrees(rows.loc["narrow", "lira"], abroad)
    home, other = (rows.loc[name, "lira"] for name in ("home", "narrow"))
    assert other["auc_minus_home"] == pytest.approx(other["auc"] - home["auc"])
    assert other["auc_minus_home_low"] <= other["auc_minus_home"] <= other["auc_minus_home_high"]
    assert pd.isna(home["auc_minus_home"])

    held = transfer_data(zoo, {"foreign": foreign}, attacks=["loss-per-class", "lira-offline"])
    rows = held.set_index(["shadows", "attack"])
    assert rows["n_in"].tolist() == [8, 8, 0, 0]
    assert rows["n_out"].tolist() == [8, 8, 16, 16]
    abroad = compare(zoo, ["loss-per-class"], shadows=foreign, progress=False).attrs["summary"][0]
    assert agrees(rows.loc["foreign", "loss-per-class"], abroad)


def test_shadows_that_cannot_serve_are_refused(zoo, foreign):
    with pytest.raises(ValueError, match="must have the target's candidates and seed 0, got zoo foreign"):
        transfer_architecture(zoo, {"foreign": foreign})
    with pytest.raises(ValueError, match="attack lira needs 2"):
        transfer_data(zoo, {"foreign": foreign}, attacks=["lira"])
    with pytest.raises(ValueError, match="must not be named 'home'"):
        transfer_data(zoo, {"home": foreign})


def test_changed_distributions():
    data = made(n=90, classes=3)
    loud = noisy(data, 0)
    assert loud.x.min() >= data.x.min()
    assert loud.x.max() <= data.x.max()
    assert 0.05 < float((loud.x - data.x).std()) < 0.15  # what lies outside the range is cut
    assert torch.equal(dimmed(data).x, 0.6 * data.x)
    kept = uneven(data)
    assert kept.counts[0] == data.counts[0]
    assert kept.counts[1:] == [-(-count // 3) for count in data.counts[1:]]


def test_precision_weighs_members_and_others_of_each_class_alike():
    """Class 0: 8 members to 2 others; class 1: 1 to 3. Wrong version: hits over all that are flagged."""
    y = torch.tensor([0] * 10 + [1] * 4)
    member = torch.tensor([True] * 8 + [False] * 2 + [True] + [False] * 3)
    flagged = torch.tensor([True] * 4 + [False] * 4 + [True, False] + [True] + [True, False, False])
    hits = (10 * 4 / 8 + 4 * 1 / 1) / 14
    alarms = (10 * 1 / 2 + 4 * 1 / 3) / 14
    held = precision_recall(flagged, member, y, 2)
    assert held == pytest.approx({"precision": hits / (hits + alarms), "recall": hits})
    assert held["precision"] < 0.65 < int((flagged & member).sum()) / int(flagged.sum())
    assert math.isnan(precision_recall(torch.zeros(14).bool(), member, y, 2)["precision"])
    one_sided = precision_recall(flagged[8:], member[8:], y[8:], 2)  # no member of class 0: left out
    assert one_sided == pytest.approx({"precision": 1 / (1 + 1 / 3), "recall": 1.0})


def test_classes_that_look_alike_are_merged():
    centre = torch.tensor([0.9, 0.1, 0.2, 0.8, 0.5])
    y = torch.arange(50) % 5
    data = replace(made(n=50), x=centre[y, None] + 0.001 * torch.randn(50, 6), y=y, classes=5)
    two = merged(data, 3, 0)
    assert [int(two.y[y == c].unique()) for c in range(5)] == [0, 1, 1, 0, 2]
    assert (two.classes, len(two)) == (3, 50)
    assert torch.equal(two.x, data.x)
    assert merged(data, 5, 0) is data
    for classes in (1, 6):
        with pytest.raises(ValueError, match=f"classes must lie in 2 .. 5, got {classes}"):
            merged(data, classes, 0)


def test_overfitting_is_read_at_the_attacks_own_decision(zoo):
    (row,) = overfitting({"noise": zoo}, attack="modified-entropy-per-class").to_dict("records")
    flagged, truth = decided(zoo, "modified-entropy-per-class", 0)
    assert row["precision"] == precision_recall(flagged, truth, zoo.pool.y, 3)["precision"]
    assert row["precision"] > 0.6
    assert (row["classes"], row["train_accuracy"]) == (3, zoo.accuracy()["train"])
    each = [precision_recall(f, m, zoo.pool.y, 3)["recall"] for f, m in zip(flagged, truth, strict=True)]
    assert row["recall_sd"] == pytest.approx(np.std(each, ddof=1))
    with pytest.raises(ValueError, match="must have a decision of its own .*got 'loss'"):
        overfitting({"noise": zoo}, attack="loss")


def test_shares_of_classes_at_most_as_precise():
    """Four of six classes have a precision; two of these are equal."""
    value = torch.tensor([0.5, math.nan, 0.9, 0.5, 0.7, math.nan], dtype=torch.float64)
    held = shares(value)
    assert held[~value.isnan()].tolist() == [0.5, 1.0, 0.5, 0.75]
    assert held.isnan().tolist() == value.isnan().tolist()
    assert shares(torch.full((2,), math.nan).double()).isnan().all()


def test_precision_over_classes(zoo):
    frame = precision_cdf(zoo, attacks=PER_CLASS)
    assert len(frame) == 2 * 2 * 3
    flagged, truth = decided(zoo, "loss-per-class", 0)
    for row in frame.query("attack == 'loss-per-class' and measure == 'precision'").to_dict("records"):
        own = zoo.pool.y == row["class"]
        tpr, fpr = (float((flagged & side)[:, own].sum() / side[:, own].sum()) for side in (truth, ~truth))
        assert row["value"] == pytest.approx(tpr / (tpr + fpr))
        assert row["records"] == int(own.sum())
    assert frame.groupby(["attack", "measure"])["share"].max().eq(1).all()


def test_entropy_histograms(zoo):
    """Densities integrate to 1, classes add up, the mean is that of the records."""
    frame = entropy(zoo, bins=7)
    width = frame["high"] - frame["low"]
    area = (frame["density"] * width).groupby([frame["class"], frame["side"]]).sum()
    assert area.tolist() == pytest.approx([1.0] * len(area))
    assert len(area) == 2 * (1 + zoo.data.classes)
    counts = frame.pivot_table("count", "class", ["side", "low"])
    assert counts.loc["all"].tolist() == counts.drop(index="all").sum().tolist()
    h = normalised_entropy(zoo.answers("target")[:, :, 0].softmax(-1))
    chosen = zoo.target_member & (zoo.pool.y == 1)
    row = frame.query("`class` == '1' and side == 'member'").iloc[0]
    assert row["mean"] == pytest.approx(float(h[chosen].mean()), abs=1e-6)
    assert row["records"] == int(chosen.sum())
    with pytest.raises(ValueError, match="bins must be 1 or more, got 0"):
        entropy(zoo, bins=0)


def test_a_uniform_answer_is_counted():
    """Wrong version: rounding puts its entropy above 1, beyond the last bin."""
    value = torch.tensor([[1 + 2**-52, 1.0, 0.0]], dtype=torch.float64)
    held = _histogram(value, torch.ones(1, 3).bool(), 4)
    assert held["count"].tolist() == [1, 0, 0, 2]
    empty = _histogram(value, torch.zeros(1, 3).bool(), 4)
    assert empty[["density", "mean"]].isna().to_numpy().all()


def test_records_by_how_exposed_they_are(zoo):
    frame = records(zoo)
    phi, member = zoo.signal("phi")[:, 0], zoo.shadow_member
    gauss = fit(phi, member)
    risk = per_record.gaussian(gauss.mu_in, gauss.sig_in, gauss.mu_out, gauss.sig_out, 0.01)
    held = frame.query("estimator == 'gaussian' and rate == '1pct'")
    assert held["value"].tolist() == sorted(risk.tolist(), reverse=True)
    by_id = dict(zip(zoo.split.pool.tolist(), risk.tolist(), strict=True))
    assert all(by_id[row.record] == row.value for row in held.itertuples())
    assert held["low"].isna().all()

    found = frame.query("estimator == 'at_pooled_threshold' and rate == '1pct'")
    assert len(found) == int(zoo.target_member.any(0).sum()) < 300  # the rest has no TPR
    assert (found["low"] <= found["value"]).all()
    assert (found["value"] <= found["high"]).all()
    for row in found.iloc[::50].itertuples():
        assert row.share == pytest.approx((found["value"] >= row.value).mean())
    four = frame[frame["kind"] == "phi"]
    assert four["record"].nunique() == 4
    assert len(four) == 4 * (16 + 5)
    assert len(frame[frame["kind"] == "normal"]) == 8


@pytest.fixture(scope="module")
def parts(zoo):
    return ablations(zoo)


def test_the_unchanged_attack_is_that_of_compare(parts, summary):
    base = parts[parts["base"]]
    assert base["ablation"].tolist() == ["shadows", "queries", "variance", "signal"]
    for row in base.to_dict("records"):
        assert agrees(row, summary["lira"])
        assert pd.isna(row["auc_minus_base"])
    pooled = parts.query("ablation == 'variance' and value == 'pooled'").iloc[0]
    assert agrees(pooled, summary["lira-pooled"])


def test_ablations_are_lira_on_fewer_shadows_and_on_other_signals(zoo, parts):
    phi, target = (zoo.signal("phi", of=of)[:, 0] for of in ("shadow", "target"))
    held = parts[parts["ablation"] == "shadows"]
    assert held["shadows"].tolist() == [4, 8, 16]
    for row in held.itertuples():
        m = row.shadows
        assert (zoo.shadow_member[:m].sum(0) == m // 2).all()  # whole pairs: as many in as out
        score = lira(target, phi[:m], zoo.shadow_member[:m])
        assert row.auc == metrics.auc(score, zoo.target_member)
    loss, of_target = (zoo.signal("loss", of=of)[:, 0] for of in ("shadow", "target"))
    row = parts.query("ablation == 'signal' and value == 'loss'").iloc[0]
    auc = metrics.auc(lira(of_target, loss, zoo.shadow_member), zoo.target_member)
    assert row["auc"] == auc
    assert row["auc_minus_base"] == pytest.approx(auc - parts[parts["base"]]["auc"].iloc[0])
    assert auc > 0.7  # in its natural sign lower = member: the ratio does not care


def test_queries_of_images_and_too_few_models(tmp_path, zoo, small, foreign):
    images = tiny(tmp_path, data=made(shape=(1, 4, 4)), shadows=4, targets=1)
    held = ablations(images)
    assert held[held["ablation"] == "queries"]["value"].tolist() == ["1", "2", "18"]
    phi, target = (images.signal("phi", of=of, queries=2) for of in ("shadow", "target"))
    score = lira(target, phi, images.shadow_member)
    row = held.query("ablation == 'queries' and value == '2'").iloc[0]
    assert row["auc"] == metrics.auc(score, images.target_member)
    two = Zoo.train(small.data, small.recipe, shadows=2, targets=1, root=small.folder.parent, progress=False)
    for few, got in ((two, "got 2 and 1"), (foreign, "got 16 and 0")):
        with pytest.raises(ValueError, match=f"4\\+ shadows and a target, {got}"):
            ablations(few)
