import math
from itertools import product

import numpy as np
import pytest
import torch
from scipy.stats import permutation_test

from glasslab.intervals import clopper_pearson
from glasslab.paired_labels import label_interval, mcnemar, paired_labels, sign_flips
from glasslab.split import stream


def normal(*shape, seed=0, mean=0.0):
    return torch.randn(*shape, generator=stream(seed, "normal"), dtype=torch.float64) + mean


def test_sign_flips_equal_every_pattern_one_by_one():
    for l, seed in ((1, 0), (4, 1), (7, 2), (10, 3)):
        d = normal(l, seed=seed, mean=0.5)
        reached = [
            abs(sum(s * v for s, v in zip(signs, d.tolist(), strict=True)))
            for signs in product((1, -1), repeat=l)
        ]
        want = sum(v >= abs(float(d.sum())) - 1e-12 for v in reached) / 2**l
        assert sign_flips(d, generator=stream(0)) == want


def test_sign_flips_equal_scipys():
    d = normal(12, mean=0.6)
    theirs = permutation_test((d.numpy(),), np.mean, permutation_type="samples", n_resamples=np.inf).pvalue
    assert sign_flips(d, generator=stream(0)) == pytest.approx(theirs)


def test_drawn_patterns_come_near_all_patterns():
    """Standard error of 9,999 draws: below 0.0035; false alarm 6e-5."""
    d = normal(12, mean=0.45)
    exact, drawn = (sign_flips(d, generator=stream(0), draws=n) for n in (9_999, 4_000))
    assert 0.01 < exact < 0.6
    assert abs(exact - drawn) < 4 * math.sqrt(exact * (1 - exact) / 4_000)
    assert sign_flips(d, generator=stream(0), draws=4_000) == drawn
    assert sign_flips(d, generator=stream(1), draws=4_000) != drawn
    assert sign_flips(normal(60, mean=9), generator=stream(0), draws=99) == 0.01  # never 0


def test_sign_flips_on_ties_and_nothing():
    assert sign_flips(torch.zeros(5).double(), generator=stream(0)) == 1.0
    assert (
        sign_flips(torch.tensor([0.1, 0.2, 0.3]).double(), generator=stream(0)) == 0.25
    )  # rounding is no gap
    assert sign_flips(torch.full((40,), 0.1).double(), generator=stream(0)) == 1e-4
    for bad in (torch.tensor([1.0, torch.nan]), torch.zeros(0)):
        with pytest.raises(ValueError, match=r"difference must be finite for 1\+ labels"):
            sign_flips(bad.double(), generator=stream(0))


def test_mcnemar_counts_only_labels_that_differ():
    a = torch.tensor([True] * 30 + [True] * 5 + [False] * 1 + [False] * 4)
    b = torch.tensor([True] * 30 + [False] * 5 + [True] * 1 + [False] * 4)
    assert mcnemar(a, b) == mcnemar(b, a) == pytest.approx(2 * (1 + 6) / 64)
    assert mcnemar(a, a) == 1.0
    assert mcnemar(a[:35], b[:35]) == pytest.approx(2 / 32)


def table(l, seed, distance=0.0, gap=0.0, hit=0.5):
    """Six columns: the attack ahead by so much in distance and gap, and the share of labels it identifies."""
    hits = [torch.rand(l, generator=stream(seed, k)) < share for k, share in enumerate((hit, 0.5))]
    return (
        normal(l, seed=seed),
        normal(l, seed=-seed - 1, mean=distance),
        normal(l, seed=seed + 10_000, mean=gap),
        normal(l, seed=seed + 20_000),
        *hits,
    )


def test_a_difference_is_found_in_its_own_direction():
    alike = table(30, 4)
    assert not paired_labels(*alike).better
    ahead = paired_labels(*table(30, 4, distance=2.0))
    assert ahead.better
    assert ahead.p_distance < 0.05 < min(ahead.p_gap, ahead.p_identification)
    assert ahead.favour[0] == 1
    behind = paired_labels(*table(30, 4, distance=-2.0))
    assert (behind.better, behind.worse, behind.favour[0]) == (False, True, -1)
    by_gap, by_hits = paired_labels(*table(30, 4, gap=2.0)), paired_labels(*table(30, 4, hit=1.0))
    assert by_gap.better
    assert by_gap.favour[1] == 1
    assert by_hits.better
    assert by_hits.p_identification < 0.05
    assert by_hits.favour[2] == 1


def test_one_for_and_one_against_is_not_better():
    mixed = paired_labels(*table(30, 4, distance=2.0, gap=-2.0))
    assert mixed.p_distance < 0.05
    assert mixed.p_gap < 0.05
    assert (mixed.better, mixed.worse) == (False, False)
    turned = table(30, 4, distance=2.0, hit=0.0)
    assert not paired_labels(*turned).better


def test_sign_flips_are_corrected_for_being_two_and_swapping_turns_the_verdict():
    a = table(30, 3, distance=0.55, gap=0.5)
    got = paired_labels(*a)
    raw = [
        sign_flips(d, generator=stream(0, "sign flips", n))
        for d, n in ((a[1] - a[0], "distance"), (a[2] - a[3], "gap"))
    ]
    low, high = sorted(raw)
    assert sorted((got.p_distance, got.p_gap)) == [min(2 * low, 1), min(max(2 * low, high), 1)]
    swapped = paired_labels(a[1], a[0], a[3], a[2], a[5], a[4])
    assert swapped[:3] == got[:3]
    assert swapped.favour == tuple(-f for f in got.favour)
    assert (swapped.better, swapped.worse) == (got.worse, got.better)


def test_few_labels_say_that_they_cannot_reject():
    for l, able in ((5, False), (6, False), (7, True)):
        got = paired_labels(*table(l, 0, distance=99.0))
        assert (got.note is None) == able == (got.p_distance <= 0.05)
    assert got.p_distance == 2 * 2 / 2**7
    assert paired_labels(*table(6, 0)).note == "6 labels: no sign flips can reject at 0.05"


@pytest.mark.parametrize("l", [8, 40])
def test_false_alarms_stay_below_their_level(l):
    """300 tables without a difference: "better" in at most 5 %, each test in at most 5 % (+ 4 errors).

    The values have heavy tails (cubes of normals). False alarm of this test 3e-5 a count.
    """
    n, better, rejected, reached = 300, 0, [0, 0, 0], 0
    for seed in range(n):
        a, b, g, h, *hits = table(l, seed)
        got = paired_labels(a**3, b**3, g**3, h**3, *hits, draws=199)
        better += got.better
        reached += got.better or got.worse
        for i in range(3):
            rejected[i] += got[i] <= 0.05
    limit = 0.05 + 4 * math.sqrt(0.05 * 0.95 / n)
    assert better / n < limit
    assert all(count / n < limit for count in rejected)
    assert reached / n > 0.02  # and it is no test that never rejects


def test_refuses_differences_that_are_not_numbers():
    a = table(8, 0)
    for i, name in ((0, "distance"), (1, "distance"), (2, "gap"), (3, "gap")):
        bad = list(a)
        bad[i] = bad[i].index_fill(0, torch.tensor([2]), torch.inf)
        with pytest.raises(ValueError, match=rf"^{name} must be finite for 1\+ labels, got 1 NaN"):
            paired_labels(*bad)
    with pytest.raises(ValueError, match=r"distance must be finite for 1\+ labels"):
        paired_labels(*(t[:0] for t in a))


def test_arguments_and_the_global_generator_are_left_alone():
    a = table(20, 0)
    held, before = [t.clone() for t in a], torch.get_rng_state()
    assert paired_labels(*a) == paired_labels(*a)
    assert all(torch.equal(s, t) for s, t in zip(a, held, strict=True))
    assert torch.equal(before, torch.get_rng_state())


def test_a_rate_has_clopper_pearsons_interval():
    hit = torch.ones(40).double()
    assert label_interval(hit, rate=True) == clopper_pearson(40, 40)
    assert label_interval(hit, rate=True).low == pytest.approx(0.912, abs=5e-4)
    assert label_interval(hit).low == 1.0  # distances that happen to be equal
    half = hit.clone()
    half[0] = 0.5  # several inversions of this label
    assert label_interval(half, rate=True) != clopper_pearson(40, 40)


def test_the_bootstrap_covers_the_mean_over_labels():
    """Of 30 labels, normal: 92 to 95 % are known of it; false alarm of the lower bound 3e-5."""
    n = 400
    covered = 0
    for seed in range(n):
        low, high = label_interval(normal(30, seed=seed, mean=2.0), seed=seed, draws=500)
        covered += low <= 2 <= high
    assert 0.935 - 4 * math.sqrt(0.935 * 0.065 / n) < covered / n < 0.99


def test_no_interval_where_there_is_none():
    assert label_interval(torch.tensor([3.0]).double()) is None
    assert label_interval(torch.zeros(0).double(), rate=True) is None
    assert label_interval(torch.tensor([3.0, torch.inf]).double()) is None
    assert label_interval(torch.tensor([1.0]).double(), rate=True) == clopper_pearson(1, 1)
