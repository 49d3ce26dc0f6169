"""basket: rates, records and what can be learned of them."""

import pytest
import torch
from scipy.stats import beta, kstest, norm

from glasslab.datasets import load
from glasslab.datasets.basket import basket, rates


def test_zeros_and_ones_of_every_class():
    data = basket(1007)
    assert (data.shape, data.classes, data.name) == ((200,), 20, "basket")
    assert set(data.x.unique().tolist()) == {0.0, 1.0}
    assert {min(data.counts), max(data.counts)} == {50, 51}
    assert data.y[:20].unique().numel() < 20  # in no order
    assert 0.12 < float(data.x.mean()) < 0.24


def test_base_rates_are_beta_and_shifts_are_normal():
    """Kolmogorov-Smirnov: a false alarm in 1,000 runs each, and the seed is fixed."""
    base = rates(1, 0.0, 3, 4000)
    assert torch.equal(base[0], base[2])
    assert kstest(base[0].numpy(), beta(0.5, 2.5).cdf).pvalue > 0.001
    moved = rates(1, 0.8, 3, 4000).logit() - base.logit()
    assert kstest(moved.flatten().numpy(), norm(0, 0.8).cdf).pvalue > 0.001
    assert abs(torch.corrcoef(moved)[0, 1]) < 4 / 4000**0.5  # each class has its own


def test_records_follow_the_rates_of_their_class():
    """Standardised counts of 2,000 cells: mean 0 and spread 1, within 4 standard errors."""
    data, p = basket(20_000, seed=3, d=100), rates(3, 0.8, 20, 100)
    count = torch.stack([data.x[data.y == c].double().sum(0) for c in range(20)])
    usual = (1000 * p * (1 - p) > 5).nonzero(as_tuple=True)
    z = ((count - 1000 * p) / (1000 * p * (1 - p)).sqrt())[usual]
    assert abs(z.mean()) < 4 / len(z) ** 0.5
    assert abs(z.square().mean() - 1) < 4 * (2 / len(z)) ** 0.5
    other = ((count.roll(1, 0) - 1000 * p) / (1000 * p * (1 - p)).sqrt())[usual]
    assert other.square().mean() > 10  # which another class's rates are far from


def test_the_seed_decides_all():
    before = torch.get_rng_state()
    assert torch.equal(basket(50).x, basket(50).x)
    assert torch.equal(before, torch.get_rng_state())
    assert not torch.equal(basket(50).x, basket(50, seed=1).x)
    assert not torch.equal(rates(0, 0.8, 20, 200), rates(1, 0.8, 20, 200))
    assert not torch.equal(basket(60).x[:50], basket(50).x)  # other records of the same rates


def test_it_has_a_name():
    data = load("basket")
    assert (len(data), data.digest) == (10_000, basket(10_000).digest)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"n": 19}, "n must be 20 or more, got 19"),
        ({"classes": 1}, "classes must be 2 or more, got 1"),
        ({"d": 0}, "d must be 1 or more, got 0"),
        ({"shift": -0.1}, "shift must be 0 or more, got -0.1"),
        ({"shift": float("nan")}, "shift must be 0 or more, got nan"),
    ],
)
def test_refuses(wrong, said):
    with pytest.raises(ValueError, match=f"^{said}$"):
        basket(**{"n": 50} | wrong)
