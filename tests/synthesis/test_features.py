import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glasslab.data import Data
from glasslab.split import stream
from synthesis.climb import Draws, Moves
from synthesis.features import (
    binary,
    draw,
    features_of,
    flips,
    integer,
    legal,
    one_of,
    pixel,
    plain,
    real,
    resolved,
    units,
    with_marginals,
)
from synthesis.synthetic import Synthetic, labels, named


def within(share, p, n):
    """Within 4 standard errors of a frequency."""
    return (share - p).abs() <= 4 * (p * (1 - p) / n).sqrt() + 1e-12


# Legal values, for every mix of kinds


BLOCKS = st.lists(st.tuples(st.sampled_from("birgo"), st.integers(1, 5)), min_size=1, max_size=5)


def described(blocks, seed, known, lo, wide):
    """(features, width): kinds with or without marginals, on columns in any order."""
    g = stream(seed, "kinds")
    width, hi = sum(size for _, size in blocks), lo + wide
    out, order = [], torch.randperm(width, generator=g)
    for (kind, size), columns in zip(blocks, order.split([size for _, size in blocks]), strict=True):
        values = torch.arange(lo, hi + 1.0)[:, None].expand(-1, size) if known else None
        share = torch.rand(size, generator=g) if known else None
        if kind == "b":
            out.append(binary(columns, share))
        elif kind == "o":
            out.append(one_of(columns, share / share.sum() if known else None))
        elif kind == "i":
            out.append(integer(lo, hi, columns, values))
        else:
            normal = (lo, 3) if known and kind == "g" else None
            out.append(real(lo, hi, columns, None if normal else values, normal))
    return out, width


@settings(max_examples=40, deadline=None)
@given(BLOCKS, st.integers(0, 2**32), st.booleans(), st.integers(-5, 5), st.integers(0, 7), st.booleans())
def test_draws_and_moves_are_legal(blocks, seed, known, lo, wide, flip):
    features, d = described(blocks, seed, known, lo, wide)
    full, n = resolved(features, d), 20
    x = draw(features, n, stream(seed))
    assert legal(features, x).all()
    unit, can = units(full), flips(full)
    u = int(unit.max()) + 1
    draws = Draws(full, full, u, stream(seed, "moves"))
    moves = Moves(unit, can & flip, bool(can.all()))
    k = torch.randint(1, u + 1, (n,), generator=stream(seed, "k"))
    after = moves.propose(x.bool() if moves.bits else x, k, torch.arange(n), draws).float()
    assert legal(features, after).all()
    changed = torch.zeros(n, u, dtype=torch.bool)
    for column in range(d):
        changed[:, unit[column]] |= x[:, column] != after[:, column]
    assert (changed.sum(1) <= k).all()
    if flip and can.all():
        assert torch.equal(changed.sum(1), k)


@pytest.mark.parametrize(
    ("feature", "good", "bad"),
    [
        (binary(), [0, 1, 1], [0, 1, 0.5]),
        (integer(-1, 2), [-1, 0, 2], [0, 1, 1.5]),
        (integer(-1, 2), [2, 2, 2], [0, 0, 3]),
        (real(0, [1, 2, 3]), [0.5, 2, 3], [1.1, 0, 0]),
        (one_of([0, 1, 2]), [0, 1, 0], [0, 1, 1]),
        (one_of([0, 1, 2]), [0, 0, 1], [0, 0, 0]),
        (pixel(), [0, 1, 0.5], [0, 1, -0.1]),
        (pixel(), [0, 1, 0.5], [0, 1, math.nan]),
    ],
)
def test_legal_tells_good_from_bad(feature, good, bad):
    assert legal([feature], torch.tensor([good, bad], dtype=torch.float32)).tolist() == [True, False]


# What is drawn


def test_without_knowledge_every_value_is_equally_likely():
    n = 4000
    x = draw([integer(2, 6, [0]), one_of([1, 2, 3]), binary([4, 5]), real(-1, 3, [6])], n, stream("fair"))
    counts = torch.tensor([(x[:, 0] == v).double().mean() for v in range(2, 7)])
    assert within(counts, torch.tensor(0.2), n).all()
    assert within(x[:, 1:4].double().mean(0), torch.tensor(1 / 3), n).all()
    assert within(x[:, 4:6].double().mean(0), torch.tensor(0.5), n).all()
    assert within(((x[:, 4] == 1) & (x[:, 5] == 1)).double().mean(), torch.tensor(0.25), n)
    quarter = ((x[:, 6:] + 1) / 4 < torch.tensor([0.25, 0.5, 0.75])).double().mean(0)
    assert within(quarter, torch.tensor([0.25, 0.5, 0.75]), n).all()


def test_fair_bits_fill_every_column_independently():
    for c in (1, 7, 8, 9, 17):
        x = draw([binary(range(c))], 4000, stream("bits", c)).double()
        assert within(x.mean(0), torch.tensor(0.5), 4000).all()
        both = (x.T @ x / 4000)[~torch.eye(c).bool()]
        assert within(both, torch.tensor(0.25), 4000).all()


def public(n=300):
    g = stream("public")
    one = torch.eye(3)[torch.multinomial(torch.tensor([0.1, 0.3, 0.6]), n, True, generator=g)]
    bits = (torch.rand(n, 4, generator=g) < torch.tensor([0.05, 0.3, 0.5, 1.0])).float()
    x = torch.cat([one, bits, torch.randint(1, 4, (n, 1), generator=g), torch.rand(n, 1, generator=g)], 1)
    return Data(x, torch.arange(n) % 2, 2, "public")


def test_marginals_are_those_of_the_records():
    data, n = public(), 4000
    blank = [one_of([0, 1, 2]), integer(1, 3, [7]), real(0, 1, [8]), binary()]
    known = with_marginals(blank, data)
    assert not any(f.known for f in blank)
    assert all(f.known for f in known)
    assert not any(f.known for f in plain(known))
    x = draw(known, n, stream("known"))
    assert within(x[:, :7].double().mean(0), data.x[:, :7].double().mean(0), n).all()
    share = (x[:, 7] == 2).double().mean(), (data.x[:, 7] == 2).double().mean()
    assert within(*share, n)
    assert torch.isin(x[:, 8], data.x[:, 8]).all()
    assert abs(x[:, 8].mean() - data.x[:, 8].mean()) < 4 * data.x[:, 8].std() / math.sqrt(n)
    together = (x[:, 4] * x[:, 5]).double().mean()  # independent, whatever they are in the records
    assert within(together, data.x[:, 4].double().mean() * data.x[:, 5].double().mean(), n)
    with pytest.raises(ValueError, match="data must hold legal values"):
        with_marginals([binary()], data)


def test_a_normal_stays_on_its_range():
    x = draw([real(0, 10, [0], normal=(5, 1)), integer(0, 10, [1], None)], 4000, stream("normal"))
    assert abs(x[:, 0].mean() - 5) < 4 / math.sqrt(4000)
    assert abs(x[:, 0].std() - 1) < 0.06
    assert legal([real(0, 1)], draw([real(0, 1, [0], normal=(5, 1))], 50, stream("far"))).all()


def test_a_block_of_pixels_is_one_colour_or_that_of_a_public_image():
    g = stream("blocks")
    one = resolved([pixel(2, (3, 5, 4))], 60)
    x = draw(one, 6, g).reshape(6, 3, 5, 4)
    assert torch.equal(x[:, :, 0::2, 0::2][:, :, :2], x[:, :, 1::2, 1::2])
    assert x[0].unique().numel() == 3 * 6  # 3 x 2 blocks, the lowest half as high, in 3 channels
    assert units(one).unique().numel() == 6
    images = Data(torch.rand(9, 3, 5, 4, generator=g), torch.arange(9) % 2, 2, "images")
    block = draw(with_marginals([pixel(2, (3, 5, 4))], images), 40, g).reshape(40, 3, 5, 4)[:, :, 2:4, 2:4]
    known = {tuple(row) for row in images.x[:, :, 2:4, 2:4].flatten(1).tolist()}
    drawn = {tuple(row) for row in block.flatten(1).tolist()}
    assert drawn <= known
    assert len(drawn) > 4


# Which columns


def test_units_number_the_features():
    full = resolved([one_of([4, 0]), binary([2, 3]), real(0, 1)], 6)
    assert units(full).tolist() == [0, 3, 1, 2, 0, 4]
    assert flips(full).tolist() == [False, False, True, True, False, False]


def test_columns_in_any_order_keep_their_own_marginal():
    x = draw([binary([1, 0], p=[1.0, 0.0])], 5, stream("order"))
    assert torch.equal(x, torch.tensor([[0.0, 1.0]]).expand(5, 2))


def test_features_of_guesses_from_the_records():
    table = public()
    bits = Data(table.x[:, :7], table.y, 2, "bits")
    assert flips(features_of(bits)).all()
    (image,) = features_of(Data(torch.rand(2, 1, 3, 3, generator=stream("i")), table.y[:2], 2, "image"))
    assert image.shape == (1, 3, 3)
    (ranged,) = features_of(table)
    assert torch.equal(ranged.lo, table.x.amin(0))
    assert torch.equal(ranged.hi, table.x.amax(0))
    assert all(not f.known for f in features_of(table))


@pytest.mark.parametrize(
    ("features", "match"),
    [
        ([binary([0, 1])], "each of 3 columns once"),
        ([binary([0, 1, 2]), real(0, 1, [2])], "each of 3 columns once"),
        ([binary([0, 1, 3])], "each of 3 columns once"),
        ([binary(), real(0, 1)], "each of 3 columns once"),
        ([pixel(1, (1, 2, 2))], "shape must hold 3 pixels"),
    ],
)
def test_every_column_must_be_named_once(features, match):
    with pytest.raises(ValueError, match=match):
        resolved(features, 3)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: binary(p=1.1), "p must lie in"),
        (lambda: binary(p=[0.5, math.nan]), "p must lie in"),
        (lambda: binary([-1]), "columns must be"),
        (lambda: binary([]), "columns must be"),
        (lambda: one_of([0, 1], [0.5, 0.4]), "shares that sum to 1"),
        (lambda: one_of([0, 1], [1.0]), "p must hold 2 shares"),
        (lambda: real(2, 1), "hi must be at least lo"),
        (lambda: real(0, 1, normal=(0, -1)), "std of 0 or more"),
        (lambda: real(0, 1, values=torch.tensor([2.0])), "values must lie between"),
        (lambda: integer(0, 1.5), "whole numbers"),
        (lambda: pixel(2), "patch must be 1 or more"),
        (lambda: draw([binary()], 2, stream("none")), "features must name their columns"),
    ],
)
def test_refuses(make, match):
    with pytest.raises(ValueError, match=match):
        make()


# What a synthesis returns


def synthetic(success=(True, False, True, True)):
    made = torch.tensor(success)
    wanted = torch.tensor([0, 1, 1, 2])
    return Synthetic(
        x=torch.arange(4.0)[made][:, None],
        y=wanted[made],
        confidence=torch.tensor([0.9, 0.8, 0.7, 0.6], dtype=torch.float64)[made],
        wanted=wanted,
        success=made,
        queries=torch.tensor([5, 100, 3, 4]),
        reason=tuple("sampled" if ok else "exhausted" for ok in success),
        method=named("hillclimb", {"k": 3}),
    )


def test_the_table_of_classes_counts_failures():
    got = synthetic()
    rows = got.per_class()
    assert rows[1] == {
        "label": 1,
        "wanted": 2,
        "made": 1,
        "success": 0.5,
        "mean_queries": 51.5,
        "queries": 103,
        "confidence": 0.7,
    }
    assert got.hard() == []
    assert got.hard(below=0.6)[0].startswith("class 1: 1 of 2 records made")
    assert got.reasons() == {"exhausted": 1, "sampled": 3}
    data = got.data(3)
    assert data.name == f"synthetic:{got.method}"
    assert data.y.tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="x must hold a record a success"):
        Synthetic(
            got.x[:2], got.y[:2], got.confidence[:2], got.wanted, got.success, got.queries, got.reason, "m"
        )


def test_a_name_depends_on_every_setting():
    features = [binary(p=0.5), binary(p=0.25), binary(), one_of([0, 1])]
    values = [1, 2, "1", torch.tensor([1]), torch.tensor([1.0]), torch.tensor([[1]]), *features, features]
    assert len({named("m", {"a": v}) for v in values}) == len(values)
    assert named("m", {"a": 1, "b": 2}) == named("m", {"b": 2, "a": 1})
    assert named("m", {"a": binary(p=0.5)}) == named("m", {"a": binary(p=0.5)})


def test_labels_are_shared_out():
    assert labels(7, 3).tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert labels(10, 3, prior=[0.16, 0.0, 0.84]).tolist() == [0] * 2 + [2] * 8
    assert labels(3, 4, prior=[1, 1, 1, 7]).bincount(minlength=4).sum() == 3
    for prior in ([0.5, 0.5], [0.0, 0.0, 0.0], [-1.0, 1.0, 1.0]):
        with pytest.raises(ValueError, match="prior must hold 3 shares"):
            labels(5, 3, prior=prior)
