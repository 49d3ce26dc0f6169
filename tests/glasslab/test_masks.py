import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glasslab import masks
from glasslab.masks import _normal_of_rows, noise, round_by, round_to, temperature, top_k
from glasslab.oracle import answer
from glasslab.signals import phi

SOME = [
    temperature(5),
    round_to(3),
    round_to(1),
    round_by(0.05),
    top_k(3),
    top_k(1, renormalise=True),
    noise(0.2),
]
every = pytest.mark.parametrize("mask", SOME, ids=repr)


def rows(n, c, seed=0, spread=3.0):
    z = spread * torch.randn(n, c, generator=torch.Generator().manual_seed(seed))
    return z.double(), z.double().softmax(-1)


@every
def test_a_permuted_batch_is_answered_permuted(mask):
    _, p = rows(60, 5)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    assert torch.equal(mask(p[order]), mask(p)[order])
    assert torch.equal(mask(p[:1]), mask(p)[:1])


@every
def test_arguments_are_left_alone(mask):
    _, p = rows(20, 5)
    before = p.clone()
    mask(p)
    assert torch.equal(p, before)


@pytest.mark.parametrize("t", [0.5, 1, 5, 20])
def test_temperature_divides_the_logits(t):
    z, p = rows(50, 10)
    torch.testing.assert_close(temperature(t)(p), (z / t).softmax(-1), rtol=1e-12, atol=0)
    assert t != 1 or torch.equal(temperature(t)(p), p)


def test_temperature_divides_phi_where_there_are_two_classes():
    z = torch.linspace(-600, 600, 25).double()[:, None] * torch.tensor([1.0, 0.0]).double()
    y = torch.zeros(25, dtype=torch.int64)
    torch.testing.assert_close(
        phi(answer(z, [temperature(5)]).log(), y), phi(z, y) / 5, rtol=1e-13, atol=1e-13
    )


def test_temperature_after_another_mask():
    p = torch.tensor([[0.6, 0.4, 0.0], [0.0, 0.0, 0.0]]).double()
    got = temperature(2)(p)
    share = math.sqrt(0.6) / (math.sqrt(0.6) + math.sqrt(0.4))
    assert got[0].tolist() == pytest.approx([share, 1 - share, 0.0])
    assert got[1].tolist() == pytest.approx([1 / 3] * 3)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 6), st.integers(1, 8), st.integers(2, 7), st.integers(0, 2**31))
def test_rounding_is_half_to_even(d, n, c, seed):
    p = rows(n, c, seed)[1]
    slow = [[round(v * 10**d) / 10**d for v in row] for row in p.tolist()]
    torch.testing.assert_close(round_to(d)(p), torch.tensor(slow, dtype=torch.float64), rtol=0, atol=1e-12)


def test_rounding_by_hand():
    assert round_to(0)(torch.tensor([[0.5, 0.5]]).double()).tolist() == [[0.0, 0.0]]
    assert round_to(2)(torch.tensor([[0.125, 0.875]]).double()).tolist() == [[0.12, 0.88]]


@settings(deadline=None, max_examples=40)
@given(st.sampled_from([1, 0.5, 0.3, 0.15, 0.05, 0.01]), st.integers(1, 8), st.integers(0, 2**31))
def test_rounding_by_a_step_is_to_the_nearest_level(r, n, seed):
    p = rows(n, 5, seed)[1]
    levels = [k * r for k in range(round(1 / r) + 2)]
    got = round_by(r)(p)
    for value, level in zip(p.flatten().tolist(), got.flatten().tolist(), strict=True):
        near = min(levels, key=lambda some: abs(some - value))
        assert level == pytest.approx(min(near, 1), abs=1e-12)
    assert 0 <= float(got.min()) <= float(got.max()) <= 1


@pytest.mark.parametrize("d", [0, 1, 2, 3])
def test_rounding_by_powers_of_ten_is_rounding_to_decimals(d):
    p = rows(300, 4)[1]
    torch.testing.assert_close(round_by(10.0**-d)(p), round_to(d)(p), rtol=0, atol=1e-12)


def test_rounding_by_a_step_by_hand():
    """Wrong versions: 0.05 as one decimal, and as two."""
    p = torch.tensor([[0.024, 0.026, 0.92, 1.0]]).double()
    assert round_by(0.05)(p).tolist()[0] == pytest.approx([0, 0.05, 0.9, 1])
    assert all(not torch.allclose(round_by(0.05)(p), round_to(d)(p)) for d in (1, 2))
    assert round_by(0.25)(torch.tensor([[0.124, 0.876]]).double()).tolist() == [[0, 1]]
    assert round_by(0.6)(torch.tensor([[0.95, 0.05]]).double()).tolist() == [[1, 0]]  # 1.2 is no answer


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 9), st.integers(1, 8), st.integers(2, 7), st.booleans(), st.integers(0, 2**31))
def test_top_k_equals_the_loop_with_ties(k, n, c, renormalise, seed):
    p = torch.randint(1, 4, (n, c), generator=torch.Generator().manual_seed(seed)).double()
    p = p / p.sum(-1, keepdim=True)
    slow = torch.zeros_like(p)
    for i, row in enumerate(p.tolist()):
        best = sorted(range(c), key=lambda j: (-row[j], j))[:k]
        total = sum(row[j] for j in best) if renormalise else 1
        for j in best:
            slow[i, j] = row[j] / total
    torch.testing.assert_close(top_k(k, renormalise)(p), slow, rtol=1e-14, atol=0)


def test_top_k_of_many_equal_classes_keeps_the_lowest():
    kept = top_k(5)(torch.full((3, 1000), 0.001).double())
    assert (kept > 0).nonzero()[:, 1].tolist() == [0, 1, 2, 3, 4] * 3


@pytest.mark.parametrize("sticky", [True, False])
def test_noise_leaves_probabilities(sticky):
    p = rows(2000, 4)[1]
    q = noise(0.5, sticky=sticky)(p)
    torch.testing.assert_close(q.sum(-1), torch.ones(2000).double())
    assert (q >= 0).all()
    assert (q == 0).any()
    assert ((q == 0.25).all(-1)).any()  # clipped to zeros, hence uniform


def test_noise_is_added_before_clipping():
    p = rows(500, 4)[1]
    raw = p + 0.1 * _normal_of_rows(p, 7)
    slow = [[max(v, 0.0) / sum(max(w, 0.0) for w in row) for v in row] for row in raw.tolist()]
    torch.testing.assert_close(noise(0.1, seed=7)(p), torch.tensor(slow, dtype=torch.float64))
    assert torch.equal(noise(0.0)(p), p / p.sum(-1, keepdim=True))


def test_sticky_noise_says_the_same_again():
    p = rows(200, 5)[1].round(decimals=6)
    first = noise(0.2)(p)
    assert torch.equal(noise(0.2)(p), first)
    torch.testing.assert_close(noise(0.2)(p + 1e-8), first, rtol=0, atol=1e-6)
    assert (noise(0.2, seed=1)(p) - first).abs().mean() > 0.05


def test_fresh_noise_differs_and_averages_away():
    p = torch.full((4000, 2), 0.5).double()
    ask = noise(0.05, sticky=False)
    first, second = ask(p), ask(p)
    assert not torch.equal(first, second)
    assert torch.equal(noise(0.05, sticky=False)(p), first)
    assert abs(first[:, 0].mean() - 0.5) < 4 * 0.05 / math.sqrt(2 * 4000)
    assert first[:, 0].std() == pytest.approx(0.05 / math.sqrt(2), rel=0.1)


def test_sticky_noise_is_normal_and_independent():
    p = rows(20_000, 3)[1].round(decimals=4).unique(dim=0)
    e, close, other = (
        _normal_of_rows(p, 0),
        _normal_of_rows(p + torch.tensor([1e-6, 0, 0]), 0),
        _normal_of_rows(p, 1),
    )
    n = len(p)
    assert e.mean(0).abs().max() < 4.5 / math.sqrt(n)
    assert (e.var(0) - 1).abs().max() < 4.5 * math.sqrt(2 / n)
    assert ((e**4).mean(0) - 3).abs().max() < 4.5 * math.sqrt(96 / n)
    for pair in [e[:, :2], torch.stack([e[:, 0], close[:, 0]], 1), torch.stack([e[:, 0], other[:, 0]], 1)]:
        assert torch.corrcoef(pair.T)[0, 1].abs() < 4.5 / math.sqrt(n)
    assert torch.corrcoef(torch.stack([e[1:, 0], e[:-1, 0]]))[0, 1].abs() < 4.5 / math.sqrt(n)


@pytest.mark.parametrize(
    ("mask", "floor"),
    [
        ((), None),
        ((temperature(20),), None),
        ((round_to(3),), 0.0005),
        ((round_to(1), top_k(3)), 0.05),
        ((round_by(0.05), top_k(3)), 0.025),
        ((temperature(5), top_k(3)), 1e-12),
        ((noise(0.2),), 1e-12),
        ((lambda p: p,), 1e-12),
    ],
)
def test_the_floor_is_the_highest(mask, floor):
    assert masks.floor(mask) == (None if floor is None else pytest.approx(floor))


def test_a_mask_is_a_value():
    assert repr(top_k(3)) == "top_k(k=3, renormalise=False)"
    assert repr(noise(0.2)) == "noise(sigma=0.2, sticky=True, seed=0)"
    assert [repr(temperature(5)), repr(round_to(1))] == ["temperature(t=5)", "round_to(d=1)"]
    assert repr(round_by(0.05)) == "round_by(r=0.05)"
    assert noise(0.2) == noise(0.2) != noise(0.2, seed=1)
    assert len({top_k(3), top_k(3), round_to(3)}) == 2


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: temperature(0), "t must be above 0, got 0"),
        (lambda: round_to(-1), "d must be 0 or more, got -1"),
        (lambda: round_by(0), "r must be above 0 and at most 1, got 0"),
        (lambda: round_by(1.5), "r must be above 0 and at most 1, got 1.5"),
        (lambda: round_by(math.nan), "r must be above 0 and at most 1, got nan"),
        (lambda: top_k(0), "k must be 1 or more, got 0"),
        (lambda: noise(-0.1), "sigma must be 0 or more, got -0.1"),
        (lambda: noise(math.nan), "sigma must be 0 or more, got nan"),
    ],
)
def test_refuses_settings_without_meaning(make, text):
    with pytest.raises(ValueError, match=text):
        make()
