import json
import math
import weakref
from dataclasses import dataclass, field

import pytest
import torch
from torch import nn
from zoos import made

from glasslab.cache import cached, content, is_frozen
from glasslab.data import Data
from glasslab.store import Store

ROWS = [torch.arange(6.0).view(2, 3) + 10 * i for i in range(4)]


@dataclass(frozen=True)
class Probe:
    layer: str = "last"
    weight: torch.Tensor | None = None
    records: Data | None = None
    memory: str = field(default="1 GiB", repr=False)
    heavy: torch.Tensor | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Twin(Probe):
    pass


@dataclass
class Loose:
    layer: str = "last"


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path)


def fresh(rows=ROWS):
    """Rows, and how often they were asked for."""
    asked = []

    def give():
        asked.append(1)
        return iter(rows)

    return give, asked


def test_rows_are_written_once_and_read_back(store):
    give, asked = fresh()
    for _ in range(2):
        torch.testing.assert_close(cached(store, {"what": "x"}, 4, give), torch.stack(ROWS))
    assert len(asked) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_dtype_stays(store, dtype):
    got = cached(store, {"what": str(dtype)}, 4, lambda: [row.to(dtype) for row in ROWS])
    assert got.dtype == dtype
    assert got.shape == (4, 2, 3)


def test_rows_that_do_not_lie_in_order_in_memory(store):
    rows = [row.T for row in ROWS]
    torch.testing.assert_close(cached(store, {}, 4, lambda: rows), torch.stack(rows))


def test_writing_to_the_result_changes_nothing_on_disk(store):
    give, _ = fresh()
    cached(store, {"what": "x"}, 4, give).zero_()
    torch.testing.assert_close(cached(store, {"what": "x"}, 4, give), torch.stack(ROWS))
    assert store.folder.joinpath("signals").exists()


def test_one_row_is_held_at_a_time(store):
    given = []

    def give():
        for i in range(6):
            row = torch.full((3,), float(i))
            given.append(weakref.ref(row))
            yield row
            del row
            assert sum(ref() is not None for ref in given) <= 2  # the first stays, for its shape

    assert cached(store, {}, 6, give)[:, 0].tolist() == [0, 1, 2, 3, 4, 5]


def test_another_description_is_another_file(store):
    for what in ("x", "y"):
        give, asked = fresh()
        cached(store, {"what": what}, 4, give)
        assert asked


@pytest.mark.parametrize("suffix", [".npy", ".json"])
@pytest.mark.parametrize("harm", ["cut", "lose"])
def test_a_file_that_is_not_whole_is_made_again(store, suffix, harm):
    give, asked = fresh()
    cached(store, {"what": "x"}, 4, give)
    (path,) = (store.folder / "signals").glob(f"*{suffix}")
    if harm == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        path.unlink()
    torch.testing.assert_close(cached(store, {"what": "x"}, 4, give), torch.stack(ROWS))
    assert len(asked) == 2


def test_rows_of_different_shape_are_refused(store):
    with pytest.raises(ValueError, match=r"one shape for all models, \(2, 3\), got \(3,\)"):
        cached(store, {}, 2, lambda: [ROWS[0], ROWS[1][0]])
    assert not list((store.folder / "signals").iterdir())


def test_a_wrong_number_of_rows_is_refused(store):
    for rows in (ROWS[:3], ROWS + ROWS):
        with pytest.raises(AssertionError):
            cached(store, {}, 4, lambda rows=rows: rows)
    assert not list((store.folder / "signals").iterdir())


def said(value):
    return json.dumps(content(value), allow_nan=False)


def test_equal_content_is_equal():
    for make in (
        lambda: Probe("a", torch.ones(2), made()),
        lambda: [1, "x", None, 1.5, True, math.inf, (), {"a": (1, 2)}],
        lambda: torch.ones(3).bfloat16(),
        lambda: torch.tensor(1.0),
        lambda: nn.Sequential(nn.ReLU(), nn.Flatten()),
    ):
        assert said(make()) == said(make())
    assert said(Probe(memory="1 GiB")) == said(Probe(memory="2 GiB"))  # its repr leaves memory out


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Probe("a"), Probe("b")),
        (Probe(weight=torch.ones(2)), Probe(weight=torch.zeros(2))),
        (
            Probe(weight=torch.ones(2000)),
            Probe(weight=torch.cat([torch.ones(1000), torch.zeros(1), torch.ones(999)])),
        ),
        (Probe(weight=torch.zeros(2)), Probe(weight=torch.zeros(2, 1))),
        (Probe(weight=torch.zeros(2)), Probe(weight=torch.zeros(2, dtype=torch.int32))),
        (Probe(records=made(0)), Probe(records=made(1))),
        (Probe(heavy=torch.zeros(2)), Probe(heavy=torch.ones(2))),
        (Probe(), Twin()),
        (1, 1.0),
        (1, True),
        (0.1, 0.1 + 2**-55),
        ("1", 1),
        ([1, [2]], [[1], 2]),
        (nn.Linear(2, 2), nn.Linear(2, 2)),
        (nn.ReLU(), nn.Tanh()),
    ],
)
def test_other_content_is_other(one, other):
    assert said(one) != said(other)


def test_what_cannot_be_told_by_content_is_refused():
    for value in (Loose(), lambda: 0, object(), Probe, [Probe(), Loose()]):
        with pytest.raises(ValueError, match="give a key="):
            content(value)


def test_is_frozen():
    assert is_frozen(Probe())
    assert not any(map(is_frozen, (Probe, Loose(), 3, lambda: 0)))


def test_a_changed_array_is_made_again_by_the_next_process(tmp_path):
    store, made = Store(tmp_path), []

    def rows():
        made.append(1)
        return iter([torch.ones(3), torch.zeros(3)])

    whole = cached(store, {"what": "test"}, 2, rows).clone()
    path = next((tmp_path / "signals").glob("*.npy"))
    raw = bytearray(path.read_bytes())
    raw[-2] ^= 1
    path.write_bytes(raw)
    assert torch.equal(cached(Store(tmp_path), {"what": "test"}, 2, rows), whole)
    assert len(made) == 2
