import math

import pytest
import torch
from scipy.stats import binom, norm

from glasslab.intervals import auc_interval, clopper_pearson, holm, percentile
from glasslab.metrics import auc


def test_clopper_pearson_by_hand():
    assert clopper_pearson(0, 100).low == 0.0
    assert round(clopper_pearson(0, 100).high, 4) == 0.0362
    assert clopper_pearson(100, 100).high == 1.0
    assert clopper_pearson(5, 5).low == pytest.approx(0.025 ** (1 / 5))
    low, high = clopper_pearson(3, 20)  # either end makes the count a 2.5 % event
    assert binom.sf(2, 20, low) == pytest.approx(0.025)
    assert binom.cdf(3, 20, high) == pytest.approx(0.025)


@pytest.mark.parametrize("n", [1, 20, 300])
@pytest.mark.parametrize("rate", [1e-5, 0.001, 0.05, 0.5, 0.999])
def test_clopper_pearson_covers_every_rate(rate, n):
    covered = [k for k in range(n + 1) for low, high in [clopper_pearson(k, n)] if low <= rate <= high]
    assert binom.pmf(covered, n, rate).sum() >= 0.95


def test_clopper_pearson_is_no_wider_than_it_must():
    low, high = clopper_pearson(3000, 10_000)
    assert high - low == pytest.approx(2 * 1.96 * math.sqrt(0.3 * 0.7 / 10_000), rel=0.02)
    assert high - low == pytest.approx(
        (clopper_pearson(300, 1000).high - clopper_pearson(300, 1000).low) / 10**0.5, rel=0.03
    )


def test_clopper_pearson_refuses_what_is_no_count():
    for hits, n in [(-1, 5), (6, 5), (0, 0)]:
        with pytest.raises(ValueError, match="hits must lie in 0 .. n"):
            clopper_pearson(hits, n)


def test_percentile_takes_the_middle_and_leaves_out_the_undefined():
    draws = torch.cat([torch.arange(101.0), torch.tensor([math.nan])])
    assert percentile(draws) == pytest.approx((2.5, 97.5))
    assert percentile(draws, level=0.5) == pytest.approx((25, 75))
    assert percentile(torch.tensor([math.nan])) is None


def test_auc_interval_of_one_target_is_delong():
    score, member = (
        torch.tensor([3.0, 1.0, 2.0, 2.0, 0.0, 4.0, 1.0]),
        torch.tensor([1, 1, 1, 0, 0, 1, 0]).bool(),
    )
    inside, outside = score[member].tolist(), score[~member].tolist()
    wins = [[(a > b) + (a == b) / 2 for b in outside] for a in inside]
    area = sum(map(sum, wins)) / 12

    def variance(means):
        return sum((v - area) ** 2 for v in means) / (len(means) - 1) / len(means)

    var = variance([sum(row) / 3 for row in wins]) + variance(
        [sum(col) / 4 for col in zip(*wins, strict=True)]
    )
    half = 1.959963984540054 * math.sqrt(var) / (area * (1 - area))
    ends = [1 / (1 + math.exp(-(math.log(area / (1 - area)) + side * half))) for side in (-1, 1)]
    assert auc_interval(score, member) == pytest.approx(ends)


def test_auc_interval_of_several_targets_adds_both_spreads():
    score = torch.tensor([[3.0, 1.0, 2.0], [0.0, 2.0, 5.0], [1.0, 4.0, 0.0]])
    member = torch.tensor([[1, 0, 0], [0, 1, 1], [0, 1, 0]]).bool()
    inside, outside = score[member].tolist(), score[~member].tolist()
    area = auc(score, member)
    share = [[0.0] * 3 for _ in range(3)]
    for a in range(3):
        for i in range(3):
            own, other, sign = (
                score[a, i].item(),
                outside if member[a, i] else inside,
                1 if member[a, i] else -1,
            )
            place = sum((own > s) + (own == s) / 2 for s in other) / len(other)
            side = 9 - len(other)
            share[a][i] = sign * (place - (area if sign == 1 else 1 - area)) / math.sqrt(side * (side - 1))
    columns = sum(sum(row[i] for row in share) ** 2 for i in range(3))
    rows = sum(sum(row) ** 2 for row in share) * 3 / 2
    half = 1.959963984540054 * math.sqrt(rows + columns) / (area * (1 - area))
    ends = [1 / (1 + math.exp(-(math.log(area / (1 - area)) + side * half))) for side in (-1, 1)]
    assert auc_interval(score, member) == pytest.approx(ends)


def world(t, n, leak, hard, g):
    """Scores of t targets that share their records' hardness, members `leak` higher."""
    member = torch.rand(t, n, generator=g) < 0.5
    score = torch.randn(t, n, generator=g) + hard * torch.randn(n, generator=g) + leak * member
    return score, member


@pytest.mark.parametrize(
    ("t", "n", "leak", "hard"), [(1, 60, 0.0, 0.0), (1, 60, 2.5, 0.0), (1, 400, 1.0, 1.0), (6, 100, 1.0, 1.0)]
)
def test_auc_interval_covers(t, n, leak, hard):
    g = torch.Generator().manual_seed(0)
    truth = norm.cdf(leak / math.sqrt(2 * (1 + hard**2)))
    data = [world(t, n, leak, hard, g) for _ in range(300)]
    ends = torch.tensor([auc_interval(*d) for d in data])
    assert ((ends[:, 0] <= truth) & (truth <= ends[:, 1])).double().mean() >= 0.90
    spread = torch.tensor([auc(*d) for d in data]).std().item()
    assert (ends[:, 1] - ends[:, 0]).mean() < 2 * 3.92 * spread


def test_auc_interval_narrows_with_the_root_of_n():
    g = torch.Generator().manual_seed(1)
    width = [
        torch.tensor(
            [high - low for _ in range(20) for low, high in [auc_interval(*world(1, n, 1.0, 0.0, g))]]
        )
        for n in (200, 3200)
    ]
    assert (width[0].mean() / width[1].mean()).item() == pytest.approx(4, rel=0.1)


def test_auc_interval_of_sides_that_do_not_overlap():
    member = torch.arange(10) < 4
    low, high = auc_interval(member.double(), member)
    assert (low, high) == (pytest.approx(0.025 ** (1 / 4)), 1.0)
    assert auc_interval(-member.double(), member) == pytest.approx((1 - high, 1 - low))
    assert auc_interval(torch.zeros(10), member) == (0.5, 0.5)


def test_holm_equals_the_step_down_rule():
    p = [0.01, 0.2, 0.012, 0.04, 0.9]
    corrected = holm(p)
    for level in (0.03, 0.05, 0.1, 0.3):
        left, rejected = sorted(range(5), key=p.__getitem__), set()
        while left and p[left[0]] <= level / len(left):
            rejected.add(left.pop(0))
        assert {i for i in range(5) if corrected[i] <= level} == rejected
    assert holm([0.7, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_errs_in_one_family_of_twenty():
    p = torch.rand(4000, 5, generator=torch.Generator().manual_seed(2))
    wrong = sum(min(holm(row)) < 0.05 for row in p.tolist()) / 4000
    assert wrong == pytest.approx(0.05, abs=0.014)
