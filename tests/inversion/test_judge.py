import math
import os
from itertools import combinations
from pathlib import Path

import pytest
import torch
from torch import nn

from glasslab.data import Data
from glasslab.datasets import load
from glasslab.split import stream
from inversion import judge as module
from inversion.judge import Judge, judge, shares

FACES = Path(os.environ.get("GLASSLAB_DATA", "~/.cache/glasslab/data")).expanduser() / "olivetti_faces.npz"


def made(n=60, shape=(6,), classes=3, seed=0, noise=0.3):
    """Records around one random centre a class."""
    g = stream(seed, "made")
    y = torch.arange(n) % classes
    centre = torch.rand(classes, *shape, generator=g)
    return Data(centre[y] + noise * torch.randn(n, *shape, generator=g), y, classes, "made")


def linear(data, rows, steps=200, rate=0.5):
    """Softmax regression on these records."""
    layer = nn.Linear(data.x[0].numel(), data.classes)
    for w in layer.parameters():
        nn.init.zeros_(w)
    model = nn.Sequential(nn.Flatten(), layer)
    sgd = torch.optim.SGD(model.parameters(), lr=rate)
    for _ in range(steps):
        sgd.zero_grad()
        nn.functional.cross_entropy(model(data.x[rows]), data.y[rows]).backward()
        sgd.step()
    return model.eval()


def per_class(data, k, seed):
    """Ids of k random records of each class."""
    rows = [(data.y == c).nonzero()[:, 0] for c in range(data.classes)]
    return torch.cat([r[torch.randperm(len(r), generator=stream(seed, int(r[0])))[:k]] for r in rows])


def content(data, rows):
    return {data.x[i].numpy().tobytes() for i in rows}


@pytest.fixture(scope="module")
def world():
    data = made()
    trained = per_class(data, 8, 0)
    parts = shares(data, trained, seed=0)
    return data, trained, parts, linear(data, trained)


# Which images


@pytest.mark.parametrize(("k", "e", "h"), [(5, 3, 2), (7, 2, 1), (8, 1, 1), (4, 4, 2), (1, 6, 3)])
def test_two_thirds_of_each_class_are_the_judges(k, e, h):
    data = made(n=400, classes=40)
    trained = per_class(data, k, 0)
    parts = shares(data, trained, seed=0)
    assert data[parts.judge].counts == [e] * 40
    assert data[parts.comparison].counts == [h] * 40
    everyone = torch.cat([trained, *parts])
    assert sorted(everyone.tolist()) == list(range(400))  # disjoint, and nothing is left out


def test_the_seed_decides_the_shares():
    data = made(n=90)
    trained = per_class(data, 10, 0)
    first, again, other = (shares(data, trained, seed=s) for s in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first.judge, other.judge)
    shuffled = shares(data, trained.flip(0), seed=0)
    assert torch.equal(first.judge, shuffled.judge)


def test_equal_records_count_once_and_a_copy_of_a_trained_one_as_seen():
    """By their ids alone they would be other records: eight of them are then on two sides."""
    data = made(n=60)
    trained = per_class(data, 8, 0)
    unseen = [i for i in range(60) if i not in trained.tolist()]
    x = data.x.clone()
    x[unseen[0]], x[unseen[1]] = x[trained[0]], -0.0 * x[trained[1]]
    x[trained[1]] = 0.0  # equal to -0
    for a, b in zip(unseen[2:8], unseen[20:26], strict=True):
        x[a] = x[b]
    data = Data(x, data.y, 3, "copies")
    parts = shares(data, trained, seed=0)
    sets = [content(data, rows) for rows in (trained, *parts)]
    assert all(a.isdisjoint(b) for a, b in combinations(sets, 2))
    assert len(parts.judge) + len(parts.comparison) == 36 - 2 - 6
    assert {unseen[0], unseen[1]}.isdisjoint(torch.cat([*parts]).tolist())


def test_a_class_that_cannot_be_divided_is_refused():
    data = made(n=30)
    with pytest.raises(ValueError, match=r"trained must leave 2\+ records a class, got 1 of class 0"):
        shares(data, per_class(data, 9, 0), seed=0)


# The judge


def test_the_digests_meet_neither_the_training_set_nor_the_comparison_set(world):
    data, trained, parts, target = world
    sets = [content(data, rows) for rows in (trained, *parts)]
    assert all(a.isdisjoint(b) for a, b in combinations(sets, 2))
    settings = {"target": target, "seed": 0, "steps": 2}
    copy = data.x.clone()
    copy[parts.judge[1]] = copy[trained[2]]  # another id, the same record
    with pytest.raises(ValueError, match="index must share no record with the target's training set, got 1"):
        judge(Data(copy, data.y, 3, "copy"), parts.judge, trained, parts.comparison, **settings)
    copy = data.x.clone()
    copy[parts.judge[1]] = copy[parts.comparison[0]]
    with pytest.raises(ValueError, match="index must share no record with the comparison set, got 1"):
        judge(Data(copy, data.y, 3, "copy"), parts.judge, trained, parts.comparison, **settings)
    copy = data.x.clone()
    copy[trained[2]] = copy[parts.comparison[0]]
    with pytest.raises(ValueError, match="comparison must share no record with the target's training set"):
        judge(Data(copy, data.y, 3, "copy"), parts.judge, trained, parts.comparison, **settings)
    with pytest.raises(ValueError, match="index must share no record with the target's training set, got 24"):
        judge(data, trained, trained, parts.comparison, **settings)


def test_it_learns_the_classes_and_tells_how_well(world):
    data, trained, parts, target = world
    got = judge(data, parts.judge, trained, parts.comparison, target, seed=0, steps=60)
    held = data[parts.comparison]
    assert got.accuracy == float((got.logits(held.x).argmax(1) == held.y).double().mean()) > 0.7
    assert got.target_accuracy == float((target(held.x).argmax(1) == held.y).double().mean())
    assert got.logits(data.x).shape == (60, 3)
    assert got.features(data.x).shape == (60, 64)
    last = got.net[-1]
    torch.testing.assert_close(
        got.features(data.x) @ last.weight.T + last.bias, got.logits(data.x), rtol=1e-4, atol=1e-4
    )
    assert not got.logits(data.x).requires_grad
    assert not any(layer.training for layer in got.net.modules())


def test_the_seed_decides_the_net(world):
    data, trained, parts, target = world
    held, before = [t.clone() for t in target.state_dict().values()], torch.get_rng_state()
    x = data.x.clone()
    first, again, other = (
        judge(data, parts.judge, trained, parts.comparison, target, seed=s, steps=5).logits(data.x)
        for s in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.allclose(first, other, atol=1e-3)
    assert all(torch.equal(a, b) for a, b in zip(held, target.state_dict().values(), strict=True))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(x, data.x)


def test_it_does_not_learn_from_the_comparison_set_nor_from_the_training_set(world):
    data, trained, parts, target = world
    x = data.x.clone()
    for rows in (trained, parts.comparison):
        x[rows] = torch.rand(len(rows), 6, generator=stream(7)) + rows[:, None]
    other = Data(x, data.y, 3, "other")
    a, b = (judge(d, parts.judge, trained, parts.comparison, target, seed=0, steps=5) for d in (data, other))
    assert torch.equal(a.logits(data.x), b.logits(data.x))
    assert a.accuracy != b.accuracy


@pytest.mark.parametrize(("accuracy", "weak"), [(0.9, False), (0.89, True), (1.0, False)])
def test_a_weak_judge_says_so(accuracy, weak):
    got = Judge(nn.Sequential(), (1,), accuracy, 1.0)
    assert (got.warning is not None) == weak
    if weak:
        assert got.warning.startswith(
            "the judge is right on 89.0% of the comparison set, the target on 100.0%"
        )


@pytest.mark.parametrize("shape", [(1, 8, 8), (8, 8), (3, 9, 12)])
def test_images_come_with_and_without_channels(shape):
    data = made(n=30, shape=shape)
    trained = per_class(data, 4, 0)
    parts = shares(data, trained, seed=0)
    got = judge(
        data, parts.judge, trained, parts.comparison, linear(data, trained, 2), seed=0, steps=2, mirror=True
    )
    assert isinstance(got.net[1], nn.Conv2d)
    assert got.features(data.x).shape == (30, 64)
    if shape[0] != 3:
        x = data.x.reshape(30, 8, 8)
        torch.testing.assert_close(got.logits(x), got.logits(x[:, None]))


def test_a_quarter_turn_and_no_turn():
    x = torch.rand(5, 2, 9, 9, generator=stream(0))
    torch.testing.assert_close(module._turned(x, 0.0, stream(0), shift=0.0), x, rtol=0, atol=1e-5)
    turned = module._turned(x, 10.0, stream(0))
    assert (turned != x).flatten(1).any(1).all()
    assert turned.min() >= x.min()
    assert turned.max() <= x.max() + 1e-6
    assert torch.equal(module._turned(x, 10.0, stream(0)), turned)
    assert not torch.equal(module._turned(x, 10.0, stream(1)), turned)


def test_a_turn_keeps_lengths_on_wide_images():
    """The grid counts in half sides: without the ratio a turn of a wide image would shear it."""
    line = torch.zeros(64, 1, 21, 41)
    line[:, :, 10] = 1.0
    turned = module._turned(line, 45.0, stream(0), shift=0.0)
    for image in turned[:, 0]:
        rows, columns = (image > 0.4).nonzero().double().T
        near = (rows - 10).square() + (columns - 20).square() < 64
        slope = torch.linalg.lstsq(columns[near, None] - 20, rows[near, None] - 10).solution.item()
        angle = math.degrees(math.atan(slope))
        assert abs(angle) < 47
    angles = torch.rand(64, generator=stream(0))  # the first numbers drawn are the angles
    steep = int((angles - 0.5).abs().argmax())
    rows, columns = (turned[steep, 0] > 0.4).nonzero().double().T
    reach = ((rows - 10).square() + (columns - 20).square()).sqrt()
    angle = math.radians(90 * abs(float(angles[steep]) - 0.5))
    assert float((rows - 10).abs().max()) == pytest.approx(min(10, 20 * math.sin(angle)), abs=1.5)
    assert float(reach.max()) == pytest.approx(10 / math.sin(angle), rel=0.2)


def test_a_net_of_ones_own_and_what_is_refused(world):
    data, trained, parts, target = world
    sets = (parts.judge, trained, parts.comparison)

    def wide(shape, classes):
        return nn.Sequential(nn.Linear(6, 17), nn.Tanh(), nn.Linear(17, classes))

    got = judge(data, *sets, target, seed=0, net=wide, steps=2)
    assert got.features(data.x).shape == (60, 17)
    with pytest.raises(ValueError, match="net must end in a dense layer, got ReLU"):
        judge(
            data, *sets, target, seed=0, net=lambda s, c: nn.Sequential(nn.Linear(6, 3), nn.ReLU()), steps=2
        )
    with pytest.raises(ValueError, match="net must not be the target's: 2 weights have the same shapes"):
        judge(data, *sets, target, seed=0, net=lambda s, c: nn.Sequential(nn.Linear(6, 3)), steps=2)
    with pytest.raises(ValueError, match="model must be in eval mode"):
        judge(data, *sets, nn.Sequential(nn.Linear(6, 3)).train(), seed=0, steps=2)
    with pytest.raises(ValueError, match="index must hold every class to be judged, got none of class 2"):
        judge(data, parts.judge[data.y[parts.judge] != 2], *sets[1:], target, seed=0, steps=2)
    for i, name in enumerate(("index", "trained", "comparison")):
        empty = [s[:0] if j == i else s for j, s in enumerate(sets)]
        with pytest.raises(ValueError, match=f"{name} must hold one record or more, got none"):
            judge(data, *empty, target, seed=0, steps=2)


def test_digits():
    data = load("digits")
    trained = torch.randperm(len(data), generator=stream(0))[:600]
    parts = shares(data, trained, seed=0)
    got = judge(data, parts.judge, trained, parts.comparison, linear(data, trained), seed=0, steps=60)
    assert got.accuracy > 0.85


@pytest.mark.slow
@pytest.mark.skipif(not FACES.exists(), reason=f"{FACES} is absent")
def test_faces():
    data = load("olivetti", download=False)
    trained = per_class(data, 5, 0)
    parts = shares(data, trained, seed=0)
    assert (len(parts.judge), len(parts.comparison)) == (120, 80)
    target = linear(data, trained, 1000, 0.02)
    got = judge(data, parts.judge, trained, parts.comparison, target, seed=0, mirror=True)
    assert got.accuracy > 0.6
    assert got.features(data.x).shape == (400, 64)
