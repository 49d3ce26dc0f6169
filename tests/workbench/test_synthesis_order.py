"""The order of methods, on made-up baskets: marginals lowest in precision, sure records lowest in recall."""

import importlib
import json

import pytest
import torch

from glasslab.split import stream
from synthesis.noisy import noisy

order = importlib.import_module("benchmark.synthesis_order")  # no package of ours, so it is not installed

SEEDS = (0, 1)
METHODS = ("real", "marginals", *order.CLIMBS)


@pytest.mark.slow
def test_the_order_of_methods_on_baskets(tmp_path):
    """1: precision of real and model-based records above marginals; 2: recall falls with the confidence."""
    parts = [("basket", seed, method) for seed in SEEDS for method in METHODS]
    rows = order.finished(parts, tmp_path)
    found = order.expected("basket", order.means(rows, "basket"))
    assert [row["holds"] for row in found] == [True, True], found

    for row in rows:
        assert row["target_accuracy_train"] == 1
        assert row["hits"] == round(row["recall"] * 1000)
        assert 0.75 < row["target_accuracy"] < 0.9
    seen = {path.name for path in tmp_path.iterdir()}
    assert seen == {f"basket_{seed}_{method}.json" for seed in SEEDS for method in METHODS}
    assert order.drawn(rows, "test").axes


GOOD = {
    "real": (0.80, 0.95),
    "noisy_0.2": (0.78, 0.97),
    "marginals": (0.70, 0.96),
    "hillclimb_0.2": (0.80, 0.95),
    "hillclimb_0.5": (0.80, 0.90),
    "hillclimb_0.8": (0.81, 0.85),
    "hillclimb_0.95": (0.79, 0.60),
}


def holds(name="location30", **changed):
    means = {method: dict(zip(("precision", "recall"), own, strict=True)) for method, own in GOOD.items()}
    for method, own in changed.items():
        means[method.replace("__", ".")] |= own
    return [row["holds"] for row in order.expected(name, means)]


def test_what_is_expected_can_fail():
    assert holds() == [True, True, True]
    assert holds(real={"precision": 0.719, "recall": 0.95}) == [False, True, False]
    assert holds(hillclimb_0__8={"precision": 0.719}) == [False, True, True]
    assert holds(marginals={"recall": 0.939}) == [True, False, True]
    assert holds(hillclimb_0__95={"recall": 0.81}) == [True, False, True]
    assert holds(hillclimb_0__8={"recall": 0.90}) == [True, False, True]
    assert holds(noisy_0__2={"precision": 0.81}) == [True, True, False]
    assert holds(noisy_0__2={"recall": 0.94}) == [True, True, False]


def test_noise_on_baskets_is_reported_and_not_asked_for():
    means = {method: dict(zip(("precision", "recall"), own, strict=True)) for method, own in GOOD.items()}
    assert [row["asserted"] for row in order.expected("basket", means)] == [True, True, False]
    assert [row["asserted"] for row in order.expected("location30", means)] == [True, True, True]


def test_means_and_their_intervals():
    measures = dict.fromkeys((*order.MEASURES, *order.TOLD), 0.0)
    rows = [measures | {"data": "d", "method": "m", "precision": p} for p in (0.6, 0.7, 0.8)]
    found = order.averaged(rows)[0]
    half = 4.302652729911275 * 0.1 / 3**0.5  # Student's t with 2 degrees of freedom
    assert found["precision"] == pytest.approx(0.7)
    assert found["precision_low"] == pytest.approx(0.7 - half)
    assert found["precision_high"] == pytest.approx(0.7 + half)
    assert order.averaged(rows[:1])[0]["precision_low"] is None


def test_a_kept_part_is_not_run_again(tmp_path):
    (tmp_path / "basket_0_real.json").write_text(json.dumps({"kept": True}))
    assert order.finished([("basket", 0, "real")], tmp_path) == [{"kept": True}]


@pytest.fixture(scope="module")
def small():
    """A world of 200 members, 200 non-members and 400 records of the attacker's, with 4 shadows."""
    settings = {"basket": order.Setting(200, 400, 4, METHODS)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(order, "SETS", settings)
        order.world.cache_clear()
        yield order.world("basket", 3)
        order.world.cache_clear()


def test_nobody_shares_a_record(small):
    """Members, non-members and the attacker's records are other records of one world."""
    assert small.member.sum() == 200
    assert len(small.candidates) == len(small.own) == 400
    rows = {row.numpy().tobytes() for row in torch.cat([small.candidates.x, small.own.x])}
    assert len(rows) > 780  # baskets may be equal by chance, few are


@pytest.mark.parametrize("method", ["real", "noisy_0.1", "marginals", "marginals_by_class", "hillclimb_0.2"])
def test_what_each_method_makes_and_asks(small, method):
    data, about = order.made(small, method)
    assert about["records"] == len(data)
    assert about["wanted"] == 400
    asked = {"marginals": 1.0, "hillclimb_0.2": about["queries_a_record"]}
    assert about["queries_a_record"] == asked.get(method, 0.0)
    assert (data is small.own) == (method == "real")
    if method == "hillclimb_0.2":
        assert about["queries_a_record"] > 1
        assert about["reasons"]["sampled"] == len(data) > 380
        assert abs(about["density"] - 0.5) < 0.05
    else:
        assert len(data) == 400
    if method == "noisy_0.1":
        twin = noisy(small.own, 0.1, generator=stream(3, "basket", method))
        assert torch.equal(data.x, twin.x)
    if method == "marginals":
        with torch.no_grad():
            assert torch.equal(data.y, small.target(data.x).argmax(1))


def test_the_decision_is_above_one_half(small):
    """60 of 200 members and 20 of 200 non-members are flagged; one half itself is not."""
    score = torch.where(small.member, 0.5, 0.1).double()
    score[:60] = score[200:220] = 0.51
    found = order.decided(score, small)
    assert (found["hits"], found["alarms"], found["precision"], found["recall"]) == (60, 20, 0.75, 0.3)
    label = small.candidates.y[60]
    hits, alarms = ((small.candidates.y[rows] == label).sum() for rows in (slice(60), slice(200, 220)))
    members, others = ((small.candidates.y[rows] == label).sum() for rows in (slice(200), slice(200, 400)))
    tpr, fpr = hits / members, alarms / others
    assert found["class_precisions"][label] == pytest.approx(float(tpr / (tpr + fpr)))


def test_a_part_is_a_function_of_its_name(small):
    rows = [order.part("basket", 3, "marginals") for _ in range(2)]
    assert rows[0] == rows[1]
    json.dumps(rows[0], allow_nan=False)
    assert rows[0]["shadow_records"] == 200
    assert rows[0]["shadow_auc"] > 0.6
    assert rows[0]["lira_offline_auc"] > 0.5
    assert rows[0]["shadow_accuracy"] < 0.7  # of records that they did not learn
    flagged = rows[0]["hits"] + rows[0]["alarms"]
    assert rows[0]["precision"] == rows[0]["hits"] / flagged
