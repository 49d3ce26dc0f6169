"""noisy: exactly so many features of each record, fresh ones each time, flipped or redrawn."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glasslab.checks import Floored
from glasslab.data import Data
from glasslab.split import stream
from synthesis import noisy as module
from synthesis.features import binary, integer, legal, one_of, pixel, real
from synthesis.noisy import noisy


def bits(n=40, d=30, seed=0):
    x = torch.randint(2, (n, d), generator=stream(seed, "bits")).float()
    return Data(x, torch.arange(n) % 3, 3, "bits")


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 20), d=st.integers(1, 40), rate=st.floats(0.001, 1), seed=st.integers(0, 99))
def test_exactly_so_many_bits_of_each_record_are_flipped(n, d, rate, seed):
    data = Data(bits(n, d, seed).x, torch.zeros(n).long(), 2, "bits")
    if not round(rate * d):
        with pytest.warns(Floored, match=f"0 of {d} features change"):
            made = noisy(data, rate, generator=stream(seed))
    else:
        made = noisy(data, rate, generator=stream(seed))
    assert ((made.x != data.x).sum(1) == round(rate * d)).all()
    assert ((made.x == 0) | (made.x == 1)).all()


def test_the_features_are_fresh_for_each_record_and_all_as_likely():
    """k = 3 of 30 in 20,000 records: frequencies, also of pairs, within 4 standard errors."""
    data = Data(torch.zeros(20_000, 30), torch.arange(20_000) % 2, 2, "zeros")
    changed = noisy(data, 0.1, generator=stream(0), features=[binary()]).x.double()
    p, q = 3 / 30, 3 * 2 / (30 * 29)
    assert ((changed.mean(0) - p).abs() < 4 * (p * (1 - p) / 20_000) ** 0.5).all()
    pairs = (changed.T @ changed / 20_000)[tuple(torch.triu_indices(30, 30, 1))]
    assert ((pairs - q).abs() < 4 * (q * (1 - q) / 20_000) ** 0.5).all()
    assert len(changed.unique(dim=0)) > 3900  # of the 4,060 sets


def textbook(data, k, generator):
    """Ranks of uniforms, a record at a time; the k lowest are flipped."""
    rows = []
    for row, u in zip(data.x.tolist(), torch.rand(data.x.shape, generator=generator).tolist(), strict=True):
        lowest = sorted(range(len(row)), key=u.__getitem__)[:k]
        rows.append([1 - v if j in lowest else v for j, v in enumerate(row)])
    return rows


def test_equals_the_textbook():
    data = bits(20)
    assert noisy(data, 0.2, generator=stream(0)).x.tolist() == textbook(data, 6, stream(0))


def test_several_chunks(monkeypatch):
    monkeypatch.setattr(module, "CELLS", 100)
    made = noisy(bits(), 0.2, generator=stream(0))
    assert ((made.x != bits().x).sum(1) == 6).all()
    assert len(made) == 40
    mixed = Data(torch.rand(40, 5, generator=stream(1)) * 9, torch.arange(40) % 2, 2, "reals")
    assert noisy(mixed, 0.4, generator=stream(0)).x.shape == (40, 5)


def test_labels_order_and_shape_are_kept():
    g = stream(0)
    images = Data(torch.rand(30, 1, 4, 4, generator=g), torch.randint(3, (30,), generator=g), 3, "images")
    made = noisy(images, 0.25, generator=g)
    assert torch.equal(made.y, images.y)
    assert made.shape == (1, 4, 4)
    assert ((made.x != images.x).flatten(1).sum(1) <= 4).all()
    assert ((made.x != images.x).flatten(1).sum(1) >= 2).any()
    assert made.classes == 3
    assert made.name.startswith("synthetic:noisy:")


def test_others_are_redrawn_from_their_marginal():
    """Of the records' own values by default; uniform on the range where features have no marginal."""
    g = stream(0)
    x = torch.stack([torch.randn(4000, generator=g), torch.rand(4000, generator=g) ** 9], 1)
    data = Data(x, torch.arange(4000) % 2, 2, "reals")
    made = noisy(data, 1.0, generator=g)
    assert (made.x != data.x).float().mean() > 0.99
    for j in range(2):
        assert set(made.x[:, j].tolist()) <= set(x[:, j].tolist())
    assert abs(made.x[:, 1].mean() - 0.1) < 0.02
    uniform = noisy(data, 1.0, generator=g, features=[real(-9, 9, [0]), real(0, 1, [1])])
    assert abs(uniform.x[:, 1].mean() - 0.5) < 4 * (1 / 12 / 4000) ** 0.5
    assert abs(uniform.x[:, 0].std() - 18 / 12**0.5) < 0.2
    known = noisy(data, 1.0, generator=g, features=[real(-9, 9, [0]), real(0, 1, [1], torch.tensor([0.25]))])
    assert known.x[:, 1].unique().tolist() == [0.25]


def mixed(n=200):
    g = stream(5)
    group = torch.eye(4)[torch.randint(4, (n,), generator=g)]
    rest = [torch.randint(2, (n, 3), generator=g).float(), torch.randint(9, (n, 2), generator=g).float()]
    return Data(torch.cat([rest[0], group, rest[1]], 1), torch.arange(n) % 2, 2, "mixed")


KINDS = [binary([0, 1, 2]), one_of([3, 4, 5, 6]), integer(0, 8, [7, 8])]


def test_a_group_is_one_feature_and_stays_one_of_its_columns():
    """6 features in 9 columns. At rate 1 every bit is flipped; a group or number may stay what it was."""
    data = mixed()
    for rate in (0.5, 1.0):
        made = noisy(data, rate, generator=stream(0), features=KINDS)
        assert legal(KINDS, made.x).all()
        moved = made.x != data.x
        features = torch.cat([moved[:, :3], moved[:, 3:7].any(1, keepdim=True), moved[:, 7:]], 1)
        assert (features.sum(1) <= round(6 * rate)).all()
        assert (features.sum(1) == round(6 * rate)).float().mean() > 0.4
        if rate == 1:
            assert moved[:, :3].all()


def test_a_flip_is_no_redraw():
    """Redrawn from a marginal, or as fair bits, some would stay: a marginal of ones hides every change."""
    ones = Data(torch.ones(50, 10), torch.arange(50) % 2, 2, "ones")
    made = noisy(ones, 0.3, generator=stream(0), features=[binary(p=1.0)])
    assert made.x.sum(1).tolist() == [7.0] * 50
    assert noisy(ones, 0.3, generator=stream(0)).x.sum(1).tolist() == [7.0] * 50


def test_blocks_of_pixels_move_together():
    images = Data(torch.rand(60, 3, 4, 4, generator=stream(0)) / 2 + 0.25, torch.arange(60) % 2, 2, "images")
    made = noisy(images, 0.25, generator=stream(1), features=[pixel(2, (3, 4, 4))])
    moved = (made.x != images.x).any(1).unflatten(2, (2, 2)).unflatten(1, (2, 2))  # n, i, 2, j, 2
    blocks = moved.float().mean((2, 4)).flatten(1)
    assert set(blocks.unique().tolist()) == {0.0, 1.0}
    assert (blocks.sum(1) == 1).all()


def test_a_rate_of_nothing_changes_nothing():
    data = bits()
    made = noisy(data, 0, generator=stream(0))
    assert torch.equal(made.x, data.x)
    assert made.x.data_ptr() != data.x.data_ptr()
    with pytest.warns(Floored, match="0 of 30 features change at a rate of 0.01"):
        assert torch.equal(noisy(data, 0.01, generator=stream(0)).x, data.x)
    assert torch.equal(noisy(data, 1, generator=stream(0)).x, 1 - data.x)


def test_the_generator_decides_all_and_the_data_is_left_alone():
    data, held = bits(), bits().x.clone()
    before = torch.get_rng_state()
    made = noisy(data, 0.2, generator=stream(0))
    assert made.name == noisy(data, 0.2, generator=stream(0)).name
    assert made.digest == noisy(data, 0.2, generator=stream(0)).digest
    assert made.name != noisy(data, 0.1, generator=stream(0)).name
    other = noisy(data, 0.2, generator=stream(1))
    assert made.name != other.name
    assert not torch.equal(made.x, other.x)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(data.x, held)


def test_refuses():
    for rate in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=rf"rate must lie in \[0, 1\], got {rate:g}"):
            noisy(bits(), rate, generator=stream(0))
    with pytest.raises(ValueError, match="data must hold legal values of its features, got 200 of 200"):
        noisy(Data(mixed().x + 9, mixed().y, 2, "x"), 0.5, generator=stream(0), features=KINDS)
