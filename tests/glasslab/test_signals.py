import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glasslab.checks import Floored
from glasslab.signals import SIGNALS, bounded, confidence, correct, entropy, loss, modified_entropy, phi

every = pytest.mark.parametrize("name", SIGNALS)


def textbook(name, z, y):
    """One record, the formulas as one reads them: z a list of mild logits, y its label."""
    p = [math.exp(v) / sum(math.exp(w) for w in z) for v in z]
    rest = [i for i in range(len(z)) if i != y]
    return {
        "loss": lambda: -math.log(p[y]),
        "confidence": lambda: p[y],
        "confidence_max": lambda: max(p),
        "phi": lambda: math.log(p[y] / sum(p[i] for i in rest)),
        "hinge": lambda: math.log(p[y]) - math.log(max(p[i] for i in rest)),
        "entropy": lambda: -sum(v * math.log(v) for v in p),
        "modified_entropy": lambda: (
            -(1 - p[y]) * math.log(p[y]) - sum(p[i] * math.log(1 - p[i]) for i in rest)
        ),
        "correct": lambda: float(p.index(max(p)) == y),
    }[name]()


@every
@settings(deadline=None, max_examples=25)
@given(st.integers(1, 3), st.integers(1, 2), st.integers(1, 5), st.integers(2, 6), st.integers(0, 2**31))
def test_equals_the_textbook(name, m, k, n, c, seed):
    g = torch.Generator().manual_seed(seed)
    z, y = 3 * torch.randn(m, k, n, c, generator=g), torch.randint(c, (n,), generator=g)
    slow = [
        [[textbook(name, z[a, q, i].tolist(), int(y[i])) for i in range(n)] for q in range(k)]
        for a in range(m)
    ]
    got = SIGNALS[name](z, y)
    assert got.dtype == torch.float64
    torch.testing.assert_close(got, torch.tensor(slow, dtype=torch.float64), rtol=1e-9, atol=1e-12)


@every
def test_logits_are_log_probabilities_up_to_a_constant(name):
    g = torch.Generator().manual_seed(0)
    z, y = 5 * torch.randn(50, 4, generator=g).double(), torch.randint(4, (50,), generator=g)
    torch.testing.assert_close(SIGNALS[name](z, y), SIGNALS[name](z.log_softmax(-1) + 7, y))


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_arguments_are_left_alone(name, dtype):
    g = torch.Generator().manual_seed(1)
    z, y = torch.randn(3, 20, 4, generator=g, dtype=dtype), torch.randint(4, (20,), generator=g).int()
    before = z.clone(), y.clone()
    first = SIGNALS[name](z, y)
    assert torch.equal(SIGNALS[name](z, y), first)
    assert torch.equal(z, before[0])
    assert torch.equal(y, before[1])


@every
@pytest.mark.parametrize("size", [1e2, 1e4, -1e4])
@pytest.mark.parametrize("c", [2, 10])
def test_finite_wherever_the_logits_are(name, size, c):
    z = torch.zeros(c, c).fill_diagonal_(size)
    for y in (torch.arange(c), torch.arange(c).roll(1)):
        assert SIGNALS[name](z, y).isfinite().all()


def confident(values, c=10):
    """Records whose true class 0 has these logits, and all others 0."""
    return torch.zeros(len(values), c, dtype=torch.float64).index_copy(1, torch.tensor([0]), values[:, None])


def test_phi_keeps_its_tail():
    values = torch.cat([torch.tensor([5.0, 20.0, 60.0, 200.0]), torch.linspace(200, 1e4, 5000)[1:]]).double()
    y = torch.zeros(len(values), dtype=torch.int64)
    got = phi(confident(values), y)
    torch.testing.assert_close(got, values - math.log(9), rtol=1e-15, atol=1e-12)
    assert (got.diff() > 0).all()
    assert (phi(confident(values).float(), y).diff() > 0).all()
    assert (phi(confident(-values), y).diff() < 0).all()


def test_loss_and_phi_are_one_number():
    g = torch.Generator().manual_seed(2)
    z, y = 20 * torch.randn(500, 5, generator=g).double(), torch.randint(5, (500,), generator=g)
    l, odds = loss(z, y), phi(z, y)
    softplus = (-odds).clamp(min=0) + (-odds.abs()).exp().log1p()
    torch.testing.assert_close(l, softplus, rtol=1e-12, atol=0)
    torch.testing.assert_close(-(l + (-(-l).expm1()).log()), odds, rtol=1e-11, atol=1e-11)


def test_loss_keeps_the_tail_at_p_near_one():
    values = torch.tensor([50.0, 200.0, 600.0]).double()
    got = loss(confident(values), torch.zeros(3, dtype=torch.int64))
    torch.testing.assert_close(got, 9 * (-values).exp(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("c", [2, 10])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_modified_entropy_falls_as_the_true_logit_rises(c, dtype):
    values = torch.linspace(-300, 300, 1201).double()
    got = modified_entropy(confident(values, c).to(dtype), torch.zeros(1201, dtype=torch.int64))
    assert (got.diff() < 0).all()
    assert (got > 0).all()


def test_modified_entropy_of_a_confident_wrong_class():
    z = torch.tensor([[0.0, 300.0, 0.0]])
    # the wrong class brings 1 * -log(1 - p) = 300 - ln 2, the true one -log p = 300, the third nothing
    expected = torch.tensor([600 - math.log(2)], dtype=torch.float64)
    torch.testing.assert_close(modified_entropy(z, torch.tensor([0])), expected)


def test_zero_probabilities_are_allowed():
    z, y = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]]).log(), torch.tensor([0, 0])
    assert entropy(z, y).tolist() == pytest.approx([0.0, math.log(2)])
    assert modified_entropy(z, y).tolist() == pytest.approx([0.0, math.log(2)])
    assert confidence(z, torch.tensor([2, 2])).tolist() == [0.0, 0.0]
    assert phi(z, y).tolist() == [math.inf, 0.0]


@every
def test_a_nan_stays_a_nan(name):
    if name != "correct":
        assert SIGNALS[name](torch.tensor([[math.nan, 0.0]]), torch.tensor([0])).isnan().all()


def test_of_equal_logits_the_lowest_class_counts():
    z = torch.tensor([[1.0, 1.0, 0.0]]).expand(2, 3)
    assert correct(z, torch.tensor([0, 1])).tolist() == [1.0, 0.0]


def test_bounded_counts_what_it_cuts():
    odds = torch.tensor([-math.inf, -700.5, -700.0, 3.0, 701.0], dtype=torch.float64)
    with pytest.warns(Floored, match="3 of 5 log-odds"):
        assert bounded(odds).tolist() == [-700.0, -700.0, -700.0, 3.0, 700.0]
    assert bounded(odds[2:4]).tolist() == [-700.0, 3.0]
