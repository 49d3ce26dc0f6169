"""The quality report: textbook twins of its measures, sets against themselves, and what it refuses."""

import json
import math
from dataclasses import asdict

import pytest
import torch
from scipy.stats import binom

from glasslab.data import Data
from glasslab.intervals import clopper_pearson
from glasslab.recipe import Recipe
from glasslab.split import stream
from synthesis import closeness, learners
from synthesis.quality import overlap, quality
from synthesis.report import Confidence, Covered, Nearest
from synthesis.synthetic import Synthetic

QUICK = Recipe(net="softmax", epochs=5, batch=32, optimiser="adam", lr=0.05)


@pytest.fixture(autouse=True)
def _few_trees(monkeypatch, request):
    """Five grow in a tenth of the time; tests of what trees find keep them all."""
    if "trees" not in request.node.name:
        monkeypatch.setattr(learners, "TREES", 5)


def bits(n, seed=0, d=12, classes=3, shift=0.0):
    """Records in which columns of a class lean together, so that they are correlated."""
    g = stream(seed, "bits")
    y = torch.arange(n) % classes
    p = torch.rand(classes, d, generator=stream("bits' rates")) * (1 - shift) + shift
    return Data((torch.rand(n, d, generator=g) < p[y]).float(), y, classes, "bits")


def reals(n, seed=0, d=4, classes=2):
    g = stream(seed, "reals")
    x = torch.randn(n, d, generator=g) * 3 + 5
    x[:, 1] += x[:, 0]
    return Data(x, torch.arange(n) % classes, classes, "reals")


def shuffled(data, seed=0):
    g = stream(seed, "shuffled")
    x = torch.stack([column[torch.randperm(len(data), generator=g)] for column in data.x.T], 1)
    return Data(x, data.y, data.classes, "shuffled")


def synthetic(data, confidence=0.9, failed=()):
    """As if the records had been climbed to, and one more wanted of each label in `failed`."""
    lost = torch.tensor(failed, dtype=torch.long)
    wanted = torch.cat([data.y, lost])
    return Synthetic(
        x=data.x,
        y=data.y,
        confidence=torch.full((len(data),), confidence, dtype=torch.float64),
        wanted=wanted,
        success=torch.arange(len(wanted)) < len(data),
        queries=torch.full((len(wanted),), 7),
        reason=("sampled",) * len(data) + ("exhausted",) * len(lost),
        method="hillclimb:0123456789",
    )


# Textbook twins


def textbook_variation(a, b, bins=20):
    """Values if there are few; else cut at quantiles by hand, a repeated cut being a bin of its own."""
    values = sorted(b)
    if len(set(values)) <= bins:
        cuts = sorted(set(values))
    else:
        cuts = set()
        for j in range(1, bins):
            at = (len(values) - 1) * j / bins
            low, share = math.floor(at), at - math.floor(at)
            high = min(low + 1, len(values) - 1)
            cuts.add(values[low] + share * (values[high] - values[low]))
        cuts = sorted(cuts)

    def cell(v):
        return sum(v > c for c in cuts) + sum(v >= c for c in cuts)

    cells = [[cell(v) for v in side] for side in (a, b)]
    every = set(cells[0]) | set(cells[1])
    return sum(abs(cells[0].count(c) / len(a) - cells[1].count(c) / len(b)) for c in every) / 2


@pytest.mark.parametrize("kind", ["bits", "reals", "whole", "atoms"])
def test_marginal_distance_is_that_of_the_textbook(kind):
    g = stream(0, kind)
    x, real = torch.randn(60, 5, generator=g), torch.randn(83, 5, generator=g) + 0.3
    if kind == "bits":
        x, real = (x > 0).float(), (real > 0).float()
    elif kind == "whole":
        x, real = (2 * x).round(), (2 * real).round()
    elif kind == "atoms":  # half of the values are 0, others continuous
        real = real.where(torch.rand(83, 5, generator=g) < 0.5, 0.0)
    want = [
        textbook_variation(a, b) for a, b in zip(x.double().T.tolist(), real.double().T.tolist(), strict=True)
    ]
    got = closeness.marginal_distance(x, real)
    assert got.tolist() == pytest.approx(want, abs=1e-12)
    if kind == "bits":
        assert got.tolist() == pytest.approx((x.mean(0) - real.mean(0)).abs().tolist(), abs=1e-6)


def test_grey_is_neither_zero_nor_one():
    """Bins between quantiles alone would put it with the zeros."""
    real = (torch.arange(100) < 20).float()[:, None]
    assert closeness.marginal_distance(torch.full((50, 1), 0.5), real).tolist() == [1.0]
    many = torch.cat([real, torch.linspace(2, 3, 30)[:, None]])  # more values than bins
    assert closeness.marginal_distance(torch.full((50, 1), 0.5), many).item() == pytest.approx(1.0)


def test_equal_bins_hold_equal_numbers_of_real_records():
    real = torch.rand(2000, 1, generator=stream(0)) ** 5  # most of them small
    low = real[real[:, 0] < real.quantile(0.05)]
    assert closeness.marginal_distance(low, real).item() == pytest.approx(0.95, abs=1e-3)


def test_pair_distance_is_that_of_the_textbook():
    x, real = reals(40).x, reals(50, seed=1).x + torch.tensor([0.0, 0.0, 3.0, 0.0])

    def correlation(rows, i, j):
        a, b = rows[:, i].double(), rows[:, j].double()
        a, b = a - a.mean(), b - b.mean()
        return float((a * b).sum() / (a.square().sum() * b.square().sum()).sqrt())

    pairs = [(i, j) for i in range(4) for j in range(i)]
    want = [abs(correlation(x, *ij) - correlation(real, *ij)) for ij in pairs]
    assert closeness.pair_distance(x, real) == pytest.approx(sum(want) / 6, abs=1e-9)


def test_a_constant_feature_is_correlated_with_nothing():
    """Its computed spread may be 1e-17, by which a difference of 1e-17 would be a correlation of 1."""
    x = torch.randn(30, 2, generator=stream(0)).double()
    real = torch.stack([x[:, 0], x[:, 0]], 1)
    flat = torch.stack([x[:, 0], torch.full((30,), 0.1).double()], 1)
    assert closeness.pair_distance(flat, real) == pytest.approx(1.0)
    assert closeness.pair_distance(flat, flat) == 0


def textbook_covered(x, real, k):
    hits = 0
    for i, r in enumerate(real.tolist()):
        others = sorted(math.dist(r, o) for j, o in enumerate(real.tolist()) if j != i)
        hits += any(math.dist(r, s) <= others[k - 1] + 1e-9 for s in x.tolist())
    return hits / len(real)


@pytest.mark.parametrize("data", [bits, reals])
def test_coverage_and_nearest_are_those_of_the_textbook(data, monkeypatch):
    monkeypatch.setattr(closeness, "ROWS", 16)
    x, real, held = data(23, 1).x, data(41, 2).x, data(41, 3).x
    for k in (1, 5):
        assert closeness.covered(x, real, k=k) == textbook_covered(x, real, k)
    found = closeness.nearest(x, real, held, generator=stream(0))
    for got, side in ((found.train, real), (found.held, held)):
        want = [min(math.dist(s, r) for r in side.tolist()) for s in x.tolist()]
        assert got.tolist() == pytest.approx(want, rel=1e-6)


def test_as_far_off_as_the_kth_neighbour_is_covered():
    real = torch.eye(7)  # all as far from each other
    assert closeness.covered(torch.eye(7)[:1], real, k=5) == 1.0
    assert closeness.covered(torch.zeros(1, 7), real, k=5) == 1.0  # nearer
    assert closeness.covered(torch.full((1, 7), -1.0), real, k=5) == 0.0
    assert closeness.covered(torch.zeros(0, 7), real, k=5) == 0.0


def test_the_record_itself_is_none_of_its_neighbours():
    real = torch.tensor([[0.0], [1.0], [10.0]])
    assert closeness.covered(torch.tensor([[1.5]]), real, k=1) == pytest.approx(1 / 3 + 1 / 3)  # 1 and 10


def test_of_more_records_the_nearest_is_not_nearer():
    """Ten times as many training records of the same kind: without the cut, all would be nearer to these."""
    x, train, held = (torch.randn(n, 3, generator=stream(s)) for s, n in ((1, 500), (2, 3000), (3, 300)))
    found = closeness.nearest(x, train, held, generator=stream(0))
    assert found.each == 300
    assert float(found.train.mean() / found.held.mean()) == pytest.approx(1, abs=0.1)
    uncut = torch.cdist(x, train).amin(1)
    assert float(uncut.mean() / found.held.mean()) < 0.6


# Classifiers


def test_a_set_is_not_told_from_itself():
    """Copies in other folds, with the other label, would put a classifier below one half."""
    for data in (bits(300, d=30), reals(300)):
        told = learners.two_sample(data.x, data.x, seed=0)
        for share in (told.logistic, told.boosting):
            assert share.value == 0.5
            assert share.low < 0.5 < share.high
    rows = torch.cat([data.x, data.x]).double().numpy()
    fake = (torch.arange(600) < 300).numpy()
    torn = torch.randperm(600, generator=stream(0)).numpy() % 5
    wrong = learners._told(
        lambda: learners.HistGradientBoostingClassifier(early_stopping=False), rows, fake, torn
    )
    assert wrong.high < 0.5


def test_folds_keep_copies_together_and_sides_even():
    x = bits(400, d=5).x  # 32 different records at most
    rows = torch.cat([x, torch.rand(100, 5, generator=stream(1))]).double().numpy()
    fake = (torch.arange(500) >= 400).numpy()
    fold = learners._folds(rows, fake, 0)
    held = {}
    for row, k in zip(rows.tolist(), fold.tolist(), strict=True):
        assert held.setdefault(tuple(row), k) == k
    assert sorted((fold == k)[fake].sum() for k in range(5)) == [20] * 5
    assert set(fold[~fake].tolist()) == set(range(5))


def test_trees_tell_what_features_do_together():
    """Shuffled columns: a linear classifier has nothing to go by."""
    z = torch.randint(2, (400, 1), generator=stream(0))
    x = torch.where(torch.rand(400, 6, generator=stream(1)) < 0.9, z, 1 - z).float()
    told = learners.two_sample(shuffled(Data(x, z[:, 0], 2, "x")).x, x, seed=0)
    assert told.boosting.low > 0.6
    assert told.logistic.high < 0.6
    assert told.best == told.boosting


def test_a_shift_is_told_by_both_and_only_from_records_not_learned():
    told = learners.two_sample(bits(200, 1, d=30, shift=0.4).x, bits(300, 2, d=30).x, seed=0)
    assert told.each == 200
    assert told.logistic.low > 0.7
    assert told.boosting.low > 0.6
    for share in (told.logistic, told.boosting):
        assert (share.low, share.high) == tuple(clopper_pearson(round(178 * share.value), 178))  # 400 / 2.25
    g = stream(0)
    told = learners.two_sample(torch.rand(200, 90, generator=g), torch.rand(200, 90, generator=g), seed=0)
    assert told.best.value < 0.6  # on what it learned from, it would be 1


def test_the_interval_counts_what_folds_share():
    share = learners.share(180, 300, wider=learners.WIDER)
    assert (share.value, share.n) == (0.6, 300)
    assert (share.low, share.high) == tuple(clopper_pearson(80, 133))
    assert tuple(clopper_pearson(180, 300)) == (learners.share(180, 300).low, learners.share(180, 300).high)


@pytest.mark.slow
def test_like_sets_are_told_from_each_other_as_often_as_promised():
    """One half outside of the interval in 5 % of 60 pairs of sets at most: 9 or more by chance 1 in 300."""
    assert binom.sf(8, 60, 0.05) < 1 / 300
    outside = torch.zeros(2)
    for seed in range(60):
        x, real = (torch.rand(300, 20, generator=stream(seed, side)).round() for side in "ab")
        told = learners.two_sample(x, real, seed=seed)
        shares = (told.logistic, told.boosting)
        outside += torch.tensor([not share.low <= 0.5 <= share.high for share in shares])
    assert outside.max() <= 8


def test_transfer_learns_from_equal_numbers_and_tests_on_others():
    """Labels that are coins: only what was learned by heart is right, and no tested record was."""
    g = stream(0)
    x, y = torch.rand(600, 40, generator=g), torch.randint(2, (600,), generator=g)
    data = Data(x, y, 2, "coins")
    heart = Recipe(hidden=(128,), epochs=60, batch=32, optimiser="adam", lr=1e-2)
    made, train, held = (data[torch.arange(a, b)] for a, b in ((0, 200), (200, 500), (500, 600)))
    found = learners.transfer(made, train, held, seed=0, recipe=heart)
    assert found.trained_on == 100
    shares = [found.synthetic_on_real, found.synthetic_on_synthetic, found.real_on_synthetic]
    shares += [found.real_on_real]
    assert [share.n for share in shares] == [100, 100, 200, 100]
    for share in shares:
        assert abs(share.value - 0.5) < 4 * 0.5 / share.n**0.5
    again = learners.transfer(made, made, held, seed=0, recipe=heart)
    assert again.real_on_synthetic.value > 0.65  # half of these were learned by heart


def test_transfer_of_good_and_of_useless_records():
    made, train, held = bits(300, 1), bits(300, 2), bits(200, 3)
    found = learners.transfer(made, train, held, seed=0, recipe=QUICK)
    assert found.synthetic_on_real.low > 0.6
    assert found.real_on_synthetic.low > 0.6
    useless = Data(made.x, (made.y + 1) % 3, 3, "wrong labels")
    found = learners.transfer(useless, train, held, seed=0, recipe=QUICK)
    assert found.synthetic_on_real.high < 0.3
    assert found.real_on_synthetic.high < 0.3
    assert found.synthetic_on_synthetic.low > 0.6
    assert found.real_on_real.low > 0.6


# The report


def test_a_set_against_itself():
    for data in (bits(150), reals(150)):
        report = quality(data, data, data, recipe=QUICK)
        assert report.marginal.mean == report.pairs.value == 0
        assert report.marginal.real == report.pairs.real == 0
        assert report.density.synthetic == report.density.real
        assert report.two_sample.logistic.low < 0.5 < report.two_sample.logistic.high
        assert report.two_sample.boosting.low < 0.5 < report.two_sample.boosting.high
        assert [c.share for c in report.coverage] == [1.0] * data.classes
        assert report.nearest.nearer == pytest.approx(0.5)
        assert report.nearest.train == report.nearest.held == pytest.approx(0, abs=1e-5)
        assert report.nearest.copies == 150


def test_a_set_against_its_columns_shuffled():
    for data in (bits(150), reals(150)):
        report = quality(shuffled(data), data, data, recipe=QUICK)
        assert report.marginal.mean == 0
        assert report.marginal.worst == tuple((j, 0.0) for j in range(min(5, data.x.shape[1])))
        assert report.pairs.value > 0.05
        assert report.density.synthetic == pytest.approx(report.density.real)


def test_training_records_are_found_nearer():
    train, held, other = bits(200, 1, d=60), bits(200, 2, d=60), bits(200, 3, d=60)
    leaky = Data(train.x.clone(), train.y, 3, "leaky")
    leaky.x[:, 0] = 1 - leaky.x[:, 0]
    report = quality(leaky, train, held, recipe=QUICK)
    assert report.nearest.nearer > 0.95
    assert report.nearest.train == 1.0
    assert any("the synthesis leaks by itself" in doubt for doubt in report.doubts())
    fair = quality(other, train, held, recipe=QUICK)
    assert not any("leaks" in doubt for doubt in fair.doubts())
    assert quality(leaky, held, train, recipe=QUICK).nearest.nearer < 0.05


def test_copies_and_overlap_are_counted():
    train, held = reals(80, 1), reals(80, 2)
    some = Data(torch.cat([train.x[:7], held.x[:30]]), torch.arange(37) % 2, 2, "some")
    report = quality(some, train, held, recipe=QUICK)
    assert report.nearest.copies == 7
    assert "7 of 37 are training records" in report.doubts()
    assert overlap(some, train) == ["7 of 37 records that the synthesis learned from are training records"]
    assert overlap(held, train) == []


def test_the_units_of_a_table_do_not_matter():
    made, train, held = reals(60, 1), reals(60, 2), reals(60, 3)
    unit = torch.tensor([1.0, 100.0, 0.01, 1.0])
    plain, other = (
        quality(*(Data(d.x * u, d.y, 2, "t") for d in (made, train, held)), recipe=QUICK)
        for u in (torch.ones(4), unit)
    )
    assert plain.nearest.train == pytest.approx(other.nearest.train, rel=1e-4)
    assert [c.share for c in plain.coverage] == [c.share for c in other.coverage]
    assert plain.marginal.mean == pytest.approx(other.marginal.mean, abs=0.01)


def test_it_counts_what_was_wanted_and_how_sure_the_target_was():
    made = synthetic(bits(90), failed=(2,) * 31 + (1,))
    made.confidence[0] = torch.nan
    made.confidence[1:46] = 0.5
    report = quality(made, bits(90, 2), bits(90, 3), recipe=QUICK)
    assert [(c.made, c.wanted, c.real) for c in report.coverage] == [(30, 30, 30), (30, 31, 30), (30, 61, 30)]
    mean = (45 * 0.5 + 44 * 0.9) / 89
    assert asdict(report.confidence) == asdict(Confidence(0.0, 0.5, 0.5, 0.9, 89)) | {
        "mean": pytest.approx(mean)
    }
    assert report.name == "hillclimb:0123456789"
    hard = [doubt for doubt in report.doubts() if "class" in doubt]
    assert hard == ["class 2: 30 of 61 records made: lower conf_min, or start from marginals"]


def test_coverage_is_of_the_class_alone():
    """Synthetic records of other classes cover nothing."""
    data = bits(90)
    one = data[data.y == 1]
    report = quality(Data(one.x, one.y, 3, "one class"), bits(90, 2), data, recipe=QUICK)
    assert [c.share for c in report.coverage] == [0.0, 1.0, 0.0]
    few = data[torch.arange(16)]  # 6, 5 and 5
    report = quality(bits(30, 1), bits(30, 2), few, recipe=QUICK)
    assert [c.share is None for c in report.coverage] == [False, True, True]
    assert report.coverage[1] == Covered(
        1, None, "needs 6+ held-out records of the class, got 5", 5, 10, None
    )
    asked = synthetic(bits(30, classes=2))
    report = quality(asked, bits(30, 2), data, recipe=QUICK)
    assert report.coverage[2].reason == "no record of the class was wanted"


ITEMS = {"density", "marginal", "pairs", "nearest", "two_sample", "transfer", "confidence"}


def test_what_too_few_records_cannot_give_is_none_with_a_reason():
    real = bits(60)
    for n in (1, 19):
        report = quality(bits(n), real, bits(60, 2))
        none = {item for item in ITEMS if getattr(report, item) is None}
        assert none == report.refused.keys() == ITEMS - {"density"}
        assert report.refused["marginal"] == f"needs 20+ synthetic records, got {n}"
    report = quality(bits(60, 1), bits(19), bits(60, 2))
    assert report.refused.keys() == {"nearest", "transfer", "confidence"}
    assert (report.marginal.real, report.pairs.real) == (None, None)
    assert report.refused["nearest"] == "needs 20+ training records, got 19"
    report = quality(bits(60, 1), real, bits(19))
    assert report.refused.keys() == ITEMS - {"density"}
    assert report.refused["pairs"] == "needs 20+ held-out records, got 19"


def test_nothing_made_at_all():
    nothing = synthetic(bits(3), failed=(0, 1, 2))
    nothing = Synthetic(
        nothing.x[:0],
        nothing.y[:0],
        nothing.confidence[:0],
        nothing.wanted,
        torch.zeros(6).bool(),
        nothing.queries,
        ("exhausted",) * 6,
        "hillclimb:0",
    )
    report = quality(nothing, bits(60), bits(60, 2))
    assert report.refused.keys() == ITEMS
    assert [(c.share, c.made, c.wanted) for c in report.coverage] == [(0.0, 0, 2)] * 3
    assert "0 of 6 records made" in "\n".join(report.lines())


def test_one_record_over_and_over_is_refused_by_the_classifiers():
    same = Data(bits(1).x.expand(100, -1), torch.arange(100) % 3, 3, "same")
    report = quality(same, bits(60), bits(60, 2), recipe=QUICK)
    assert report.refused["two_sample"] == "needs 5+ different records on each side, got 1"
    flat = Data(torch.ones(60, 4), torch.arange(60) % 2, 2, "flat")
    report = quality(flat, flat, flat, recipe=QUICK)
    assert report.refused["pairs"] == "needs 2+ features that vary, got 0"


def test_the_report_is_plain_and_printable():
    report = quality(synthetic(bits(60, 1)), bits(60, 2), bits(60, 3), recipe=QUICK)
    values = report.values()
    back = json.loads(json.dumps(values, allow_nan=False))
    assert back["evaluator_only"] is True
    assert back["two_sample"]["logistic"]["value"] == report.two_sample.logistic.value
    assert back["coverage"][2]["made"] == 20
    lines = report.lines()
    assert len(lines) == 9 + len(report.doubts())
    assert "for the evaluator only" in lines[0]
    assert all("\n" not in line and "nan" not in line for line in lines)
    for item in ("density", "marginal distance", "pair distance", "nearest real record", "two-sample"):
        assert sum(line.startswith(item) for line in lines) == 1
    refused = quality(bits(3), bits(60), bits(60, 2)).lines()
    assert "marginal distance    None: needs 20+ synthetic records, got 3" in refused
    with pytest.raises(AttributeError):
        report.name = "other"


def test_confident_and_off_the_manifold_is_told():
    real, held = bits(100, 2, d=40), bits(100, 3, d=40)
    fair = Data(torch.randint(2, (90, 40), generator=stream(0)).float() * 0.5, torch.arange(90) % 3, 3, "odd")
    sure, unsure = (quality(synthetic(fair, p), real, held, recipe=QUICK) for p in (0.9, 0.3))
    assert sum("off-manifold: confident (0.90)" in doubt for doubt in sure.doubts()) == 1
    assert sum("off-manifold: told from real" in doubt for doubt in unsure.doubts()) == 1
    good = quality(synthetic(bits(90, 1, d=40), 0.9), real, held, recipe=QUICK)
    assert not good.doubts()


def test_shadows_too_good_and_too_bad_are_told():
    train, held = bits(200, 2), bits(200, 3)
    pure = torch.nn.functional.one_hot(torch.arange(200) % 3, 12).float()
    easy = Data(pure, torch.arange(200) % 3, 3, "easy")
    hard = Data(torch.rand(200, 12, generator=stream(0)).round(), torch.arange(200) % 3, 3, "hard")
    for data, said in ((easy, "too good"), (hard, "too bad"), (bits(200, 1), None)):
        doubts = [d for d in quality(data, train, held, recipe=QUICK).doubts() if d.startswith("shadows")]
        assert [said in d for d in doubts] == ([True] if said else [])
    assert "membership precision will be low" in quality(hard, train, held, recipe=QUICK).doubts()[-1]


def test_the_seed_decides_all_and_arguments_are_left_alone():
    given = synthetic(bits(90, 1, d=30)), bits(90, 2, d=30), bits(90, 3, d=30)
    held = [(g.x.clone(), g.y.clone()) for g in given]
    before = torch.get_rng_state()

    def report(seed):
        return quality(*given, seed=seed, records=50, recipe=QUICK)

    first = report(0)
    assert first == report(0)
    assert first.two_sample != report(1).two_sample
    assert first.two_sample.each == first.nearest.each == 50
    assert first.transfer.trained_on == 25
    assert torch.equal(before, torch.get_rng_state())
    for g, (x, y) in zip(given, held, strict=True):
        assert torch.equal(g.x, x)
        assert torch.equal(g.y, y)


def of_images(shape, classes):
    assert shape == (1, 4, 4)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, classes))


def test_images_of_another_layout_are_compared_by_pixel():
    g = stream(0)
    y = torch.arange(60) % 2
    train, held = (Data(torch.rand(60, 1, 4, 4, generator=g), y, 2, "images") for _ in range(2))
    flat = Data(torch.rand(60, 16, generator=g), y, 2, "flat")
    report = quality(flat, train, held, recipe=Recipe(net=of_images, epochs=1, batch=32))
    assert report.transfer.trained_on == 30
    assert isinstance(report.nearest, Nearest)


def test_refuses_what_it_cannot_compare():
    made, train, held = bits(60, 1), bits(60, 2), bits(60, 3)
    with pytest.raises(
        ValueError, match=r"records of 12 features like real_held, got shapes \[5\], \[12\] and"
    ):
        quality(bits(60, d=5), train, held)
    with pytest.raises(ValueError, match="real_train must have 3 classes and .* got 2 and a label 2"):
        quality(made, bits(60, classes=2), held)
    with pytest.raises(ValueError, match="got 3 and a label 3"):
        quality(bits(60, classes=4), train, held)
    with pytest.raises(ValueError, match="k must be 1 or more, got 0"):
        quality(made, train, held, k=0)
    with pytest.raises(ValueError, match="records must be 1 or more, got 0"):
        quality(made, train, held, records=0)
