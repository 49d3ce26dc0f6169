"""What the models of a zoo say about records, and what of it is kept."""

from dataclasses import dataclass, replace

import pytest
import torch
from zoos import RECIPE, made, tiny

from glasslab import Zoo
from glasslab import zoo as module
from glasslab.answers import logits
from glasslab.augment import queries as grid
from glasslab.masks import floor, noise, round_to, temperature, top_k
from glasslab.oracle import answer, complete
from glasslab.signals import SIGNALS

IMAGES = made(shape=(1, 5, 6))


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    return tiny(tmp_path_factory.mktemp("zoo"), data=IMAGES, shadows=4, targets=3)


@pytest.fixture
def mine(tmp_path):
    """A zoo for one test, with nothing kept yet."""
    return tiny(tmp_path, data=IMAGES, shadows=4, targets=3)


@dataclass(frozen=True)
class Margin:
    """Sum over the classes of a weighted softmax, one column a weight; counts its calls."""

    weight: torch.Tensor
    calls = []

    def __call__(self, model, x, y):
        self.calls.append(1)
        assert not model.training
        return model(x).softmax(-1) @ self.weight


@torch.no_grad()
def slow(zoo, of, records, k=1):
    """[m, n, k, c] by loops over models and queries."""
    models = [zoo.shadow(i) for i in range(4)] if of == "shadow" else [zoo.target(a) for a in range(3)]
    return torch.stack([torch.stack([model(x) for x in grid(records.x, k)], 1) for model in models])


@pytest.mark.parametrize("k", [1, 2, 18])
@pytest.mark.parametrize("of", ["shadow", "target"])
def test_answers_equal_the_loop(zoo, of, k, monkeypatch):
    monkeypatch.setattr("glasslab.answers.AT_ONCE", 64)
    for on, records in (
        ("pool", zoo.pool),
        ("aux", zoo.aux),
        ("test", zoo.test),
        (made(7, shape=(1, 5, 6)),) * 2,
    ):
        z = zoo.answers(of, on=on, queries=k)
        assert z.dtype == torch.float32
        torch.testing.assert_close(z, slow(zoo, of, records, k), rtol=1e-4, atol=1e-5)


def test_answers_do_not_depend_on_how_many_are_asked_at_a_time(zoo, monkeypatch):
    model, whole = zoo.shadow(0), logits(zoo.shadow(0), zoo.pool.x, 18)
    monkeypatch.setattr("glasslab.answers.AT_ONCE", 18 * 7)
    torch.testing.assert_close(logits(model, zoo.pool.x, 18), whole)


@pytest.mark.parametrize(
    "mask", [(temperature(5),), (round_to(1),), (top_k(1), noise(0.2)), (lambda p: p**2,)]
)
def test_masked_answers_are_what_an_attacker_reads(zoo, mask):

    z = zoo.answers("target", queries=2, mask=mask)
    p = complete(answer(zoo.answers("target", queries=2), mask), None)
    assert z.dtype == torch.float64
    assert z.isfinite().all()
    seen = p > (floor(mask) or 0) * 1.01
    torch.testing.assert_close(z.exp()[seen], p[seen])


def test_answers_are_kept_by_content(mine, monkeypatch):
    calls = []
    logits = module.logits
    monkeypatch.setattr(module, "logits", lambda *a: calls.append(1) or logits(*a))

    def asked(zoo, *arguments, **keywords):
        calls.clear()
        zoo.answers(*arguments, **keywords)
        return len(calls)

    again = Zoo.open(mine.folder, replace(IMAGES, name="other"))
    assert asked(mine) == 4
    assert asked(mine) == asked(again) == asked(mine, on=mine.pool) == asked(mine, mask=(round_to(1),)) == 0
    assert asked(mine, "target") == 3
    assert asked(mine, on="aux") == 4
    assert asked(mine, queries=2) == 4
    assert asked(mine, on=replace(mine.pool, y=mine.pool.y.flip(0))) == 4
    few = tiny(mine.folder.parent, data=IMAGES, shadows=2, targets=3)
    assert asked(few) == 2
    assert asked(mine.extend(6, progress=False)) == 6
    assert asked(mine) == 0


def test_other_weights_are_asked_again(mine):
    before = mine.answers("target").clone()
    state = {name: t + 1 for name, t in mine.target(0).state_dict().items()}
    path, name = mine.store.chunk("target-0000"), "target-0000"
    entry = mine.store.manifest()["chunks"][name]
    mine.store.put(name, {k: torch.stack([t] * 16) for k, t in state.items()}, entry)
    assert path.exists()
    assert mine.answers("target").ne(before).any()


@pytest.mark.parametrize("what", SIGNALS)
def test_named_signals_equal_their_functions(zoo, what):
    for k, on, mask in ((1, "pool", ()), (2, "aux", ()), (1, "test", (temperature(3),))):
        records, z = getattr(zoo, on), zoo.answers(on=on, queries=k, mask=mask)
        got = zoo.signal(what, on=on, queries=k, mask=mask)
        assert got.dtype == torch.float64
        for i in range(4):
            for q in range(k):
                assert torch.equal(got[i, q], SIGNALS[what](z[i, :, q], records.y))


def test_a_named_signal_is_read_from_disk_the_second_time(mine, monkeypatch):
    first = mine.signal("phi", of="target")
    monkeypatch.setitem(SIGNALS, "phi", None)
    assert torch.equal(mine.signal("phi", of="target"), first)
    assert first.shape == (3, 1, len(mine.pool))


def test_a_signal_object_equals_the_loop_and_is_kept_by_content(mine):
    Margin.calls.clear()
    one, two = torch.tensor([1.0, 2.0, 4.0]), torch.eye(3)[:, :2]
    for weight, levels in ((one, 1), (two, 2)):
        got = mine.signal(Margin(weight))
        assert got.shape == (4, levels, len(mine.pool))
        assert got.dtype == torch.float64
        for i in range(4):
            want = mine.shadow(i)(mine.pool.x).softmax(-1) @ weight
            torch.testing.assert_close(got[i], want.detach().double().reshape(len(mine.pool), -1).T)
    assert len(Margin.calls) == 8
    mine.signal(Margin(one.clone()))
    assert len(Margin.calls) == 8
    mine.signal(Margin(one + 1))
    mine.signal(Margin(one), on="aux")
    mine.signal(Margin(one), of="target")
    assert len(Margin.calls) == 8 + 4 + 4 + 3


def test_a_plain_function_is_kept_only_under_a_key(mine):
    calls = []

    def first(model, x, y):
        calls.append(1)
        return model(x)[:, 0]

    for _ in range(2):
        got = mine.signal(first)
    assert len(calls) == 8
    for _ in range(2):
        torch.testing.assert_close(mine.signal(first, key="first"), got)
    assert len(calls) == 12
    mine.signal(first, key="second")
    assert len(calls) == 16
    assert not torch.equal(mine.signal("phi"), mine.signal(first, key="phi"))  # a key is no signal's name


def test_signals_that_cannot_be_are_refused(zoo):
    with pytest.raises(ValueError, match="what must be one of loss, .* got 'los'"):
        zoo.signal("los")
    with pytest.raises(ValueError, match="queries and mask must be left out for a function, got 2"):
        zoo.signal(lambda model, x, y: model(x)[:, 0], queries=2)
    with pytest.raises(ValueError, match=r"must give \[n\] or \[n, L\] for n = \d+ records, got \(3,\)"):
        zoo.signal(lambda model, x, y: model(x)[0])
    with pytest.raises(ValueError, match="on must be one of pool, aux, test, or Data, got 'val'"):
        zoo.answers(on="val")
    with pytest.raises(ValueError, match=r"on must be records of \(shape, classes\)"):
        zoo.answers(on=made())


def test_what_is_kept_lies_on_disk_and_is_verified(mine):
    z = mine.answers("target")
    z.zero_()
    assert mine.answers("target").any()  # the map is private
    (path,) = (mine.folder / "signals").glob("*.npy")
    assert mine.verify() == []
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    (line,) = mine.verify()
    assert line.startswith(f"{path}: changed")


def test_no_models_no_answers(mine):
    none = tiny(mine.folder.parent, data=IMAGES, shadows=0, targets=0)
    n = len(mine.pool)
    assert none.answers(queries=2).shape == (0, n, 2, 3)
    assert none.signal("phi", queries=2).shape == (0, 2, n)
    with pytest.raises(ValueError, match="must hold a target to have an accuracy"):
        none.accuracy()


def test_accuracy_equals_the_loop(zoo):
    train, test, outside = [], [], []
    for a in range(3):
        model, member = zoo.target(a), zoo.target_member[a]
        right = model(zoo.pool.x).argmax(1) == zoo.pool.y
        train.append(right[member].double().mean())
        outside.append(right[~member].double().mean())
        test.append((model(zoo.test.x).argmax(1) == zoo.test.y).double().mean())
    mean = {name: float(sum(v) / 3) for name, v in {"train": train, "test": test, "outside": outside}.items()}
    want = {"train": mean["train"], "test": mean["test"]}
    want |= {"gap": mean["train"] - mean["outside"], "gap_test": mean["train"] - mean["test"]}
    assert zoo.accuracy() == pytest.approx(want)
    assert zoo.accuracy("shadow") != pytest.approx(want)


def test_two_zoos_in_one_process_keep_apart(tmp_path):
    one, two = (tiny(tmp_path, replace(RECIPE, epochs=e), data=IMAGES) for e in (1, 6))
    alone = two.signal("phi").clone()
    assert one.signal("phi").ne(alone).any()
    assert torch.equal(two.signal("phi"), alone)
