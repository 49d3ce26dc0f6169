import math

import pytest
import torch

from glasslab.per_class import cdf, class_means, normalised_entropy, per_class


def test_precision_and_recall_weigh_both_sides_the_same():
    # class 0: 2 of 4 members, 1 of 2 non-members; class 1: 1 of 1 and 0 of 3; class 2: none flagged
    y = torch.tensor([0] * 6 + [1] * 4 + [2] * 2)
    member = torch.tensor([1, 1, 1, 1, 0, 0, 1, 0, 0, 0, 1, 0]).bool()
    flagged = torch.tensor([1, 1, 0, 0, 1, 0, 1, 0, 0, 0, 0, 0]).bool()
    got = per_class(flagged, member, y, 4)
    assert got.precision[:2].tolist() == [0.5, 1.0]
    assert got.recall[:3].tolist() == [0.5, 1.0, 0.0]
    assert got.precision.isnan().tolist() == [False, False, True, True]
    assert got.recall.isnan().tolist() == [False, False, False, True]


def test_a_coin_has_precision_one_half_whatever_the_design():
    g = torch.Generator().manual_seed(0)
    y, member = torch.randint(3, (30_000,), generator=g), torch.rand(30_000, generator=g) < 0.1
    got = per_class(torch.rand(30_000, generator=g) < 0.3, member, y, 3)
    assert (got.precision - 0.5).abs().max() < 4 * 0.25 * math.sqrt(0.7 / 0.3 * (1 / 1000 + 1 / 9000))
    assert (got.recall - 0.3).abs().max() < 4 * math.sqrt(0.21 / 900)


def test_targets_are_pooled():
    g = torch.Generator().manual_seed(1)
    y = torch.randint(2, (50,), generator=g)
    flagged, member = torch.rand(3, 50, generator=g) < 0.5, torch.rand(3, 50, generator=g) < 0.5
    got = per_class(flagged, member, y, 2)
    flat = per_class(flagged.flatten(), member.flatten(), y.repeat(3), 2)
    assert torch.equal(got.precision, flat.precision)
    assert torch.equal(got.recall, flat.recall)


def test_small_classes_are_marked():
    y = torch.tensor([0] * 19 + [1] * 20)
    member = torch.arange(39) % 2 == 0
    assert per_class(member, member, y, 3).few.tolist() == [True, False, True]


def test_cdf_leaves_out_and_counts_the_undefined():
    value = torch.tensor([0.9, math.nan, 0.5, 0.5])
    x, share, undefined = cdf(value)
    assert x.tolist() == pytest.approx([0.5, 0.5, 0.9])
    assert share.tolist() == pytest.approx([1 / 3, 2 / 3, 1])
    assert undefined == 1
    assert cdf(torch.tensor([math.nan]))[2] == 1


def test_class_means_by_loops():
    g = torch.Generator().manual_seed(2)
    value, member, y = (
        torch.rand(2, 40, generator=g),
        torch.rand(2, 40, generator=g) < 0.5,
        torch.arange(40) % 4,
    )
    got = class_means(value, member, y, 4)
    for c in range(4):
        for side, means in ((member, got.inside), (~member, got.outside)):
            own = [value[a, i].item() for a in range(2) for i in range(40) if y[i] == c and side[a, i]]
            assert means[c].item() == pytest.approx(sum(own) / len(own))


def test_entropy_by_hand():
    p = torch.tensor([[0.7, 0.2, 0.1], [1 / 3, 1 / 3, 1 / 3], [0.0, 1.0, 0.0]])
    got = normalised_entropy(p)
    assert got.tolist() == pytest.approx([0.730, 1.0, 0.0], abs=5e-4)
    assert got[0].item() == pytest.approx(-sum(v * math.log(v) for v in (0.7, 0.2, 0.1)) / math.log(3))
    assert normalised_entropy(p[None]).shape == (1, 3)


def test_refuses():
    for p in ([0.7, 0.2], [1.2, -0.2], [math.nan, 1.0]):
        with pytest.raises(ValueError, match="p must hold distributions"):
            normalised_entropy(torch.tensor(p))
    member = torch.tensor([True, False])
    with pytest.raises(ValueError, match="y must lie in 0 .. 1, got labels from 0 to 2"):
        per_class(member, member, torch.tensor([0, 2]), 2)
