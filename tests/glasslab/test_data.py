"""Data: what it refuses, and that its digest is its content."""

import math
from collections.abc import Iterator
from dataclasses import replace

import jaxtyping
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from glasslab.data import Data, all_classes


@pytest.fixture
def _unchecked() -> Iterator[None]:
    """As outside the tests, where no shape is checked at the door."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def small(n=6, d=3, classes=2):
    g = torch.Generator().manual_seed(0)
    return Data(torch.rand(n, d, generator=g), torch.arange(n) % classes, classes, "small")


def bad_features(*values):
    x = small().x.clone()
    x[2, 1], x[4, 0] = values
    return {"x": x}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": torch.zeros(5).long()}, "equally long, got 6 records and 5 labels"),
        ({"x": torch.zeros(0, 3), "y": torch.zeros(0).long()}, "at least one record, got none in 'small'"),
        ({"classes": 1}, "classes must be 2 or more, got 1"),
        (bad_features(math.nan, math.inf), "infinite features in 2 of 6 records, first in record 2"),
        (bad_features(0.0, -math.inf), "infinite features in 1 of 6 records, first in record 4"),
        ({"y": torch.tensor([0, 1, 2, 0, 1, 2])}, r"0 \.\. 1, got labels from 0 to 2"),
        ({"y": torch.tensor([0, 1, -1, 0, 1, 1])}, r"0 \.\. 1, got labels from -1 to 1"),
        ({"x": torch.zeros(6, 3, dtype=torch.uint8)}, "x must hold floats and y integers, got torch.uint8"),
        ({"y": torch.zeros(6)}, "x must hold floats and y integers, got torch.float32 and torch.float32"),
    ],
)
@pytest.mark.usefixtures("_unchecked")
def test_bad_input_gets_one_line(change, message):
    with pytest.raises(ValueError, match=message) as error:
        replace(small(), **change)
    assert "\n" not in str(error.value)


def test_a_class_without_records_is_refused():
    assert all_classes(small()).counts == [3, 3]
    with pytest.raises(ValueError, match=r"every class 0 \.\. 4, got none of 2, 3, 4 in 'small'"):
        all_classes(replace(small(), classes=5))
    many = Data(torch.zeros(40, 1), torch.arange(40) % 2, 20, "many")
    with pytest.raises(ValueError, match="got none of 2, 3, 4, 5, 6 and 13 more"):
        all_classes(many)
    with pytest.raises(ValueError, match="got 6 records"):  # and no array of 10^12 counts
        all_classes(replace(small(), classes=10**12))


def test_counts_shape_and_rows():
    data = small(n=7)
    assert (len(data), data.shape, data.counts) == (7, (3,), [4, 3])
    images = Data(torch.zeros(2, 1, 8, 9), torch.tensor([0, 1]), 4, "images")
    assert (images.shape, images.counts) == ((1, 8, 9), [1, 1, 0, 0])
    by_id, by_mask = data[torch.tensor([4, 1])], data[data.y == 1]
    assert torch.equal(by_id.x, data.x[[4, 1]])
    assert by_id.y.tolist() == [0, 1]
    assert torch.equal(by_mask.x, data.x[[1, 3, 5]])
    assert (by_mask.classes, by_mask.name) == (2, "small")
    with pytest.raises(ValueError, match="at least one record"):
        data[data.y == 9]


def test_digest_is_the_content_and_not_the_name():
    data = small(n=6, d=4)
    same = [replace(data, name="other"), replace(data, x=data.x.clone()), data.to("cpu")]
    same.append(replace(data, x=data.x.t().contiguous().t()))  # other strides, same records
    assert {other.digest for other in same} == {data.digest}
    x, y = data.x, data.y
    turned = x.clone()
    turned.view(torch.int32)[-1, -1] ^= 1  # the last bit of the last feature
    others = [
        replace(data, classes=3),
        replace(data, x=turned),
        replace(data, x=x.reshape(6, 2, 2)),
        replace(data, x=x.double()),
        replace(data, x=x.flip(0)),
        replace(data, y=1 - y),
        replace(data, y=y.int()),
        data[torch.arange(5)],
    ]
    assert len({other.digest for other in others} | {data.digest}) == len(others) + 1


@given(st.lists(st.integers(0, 4), min_size=1, max_size=30))
def test_counts_are_counts(y):
    data = Data(torch.zeros(len(y), 1), torch.tensor(y), 5, "drawn")
    assert data.counts == [y.count(c) for c in range(5)]
