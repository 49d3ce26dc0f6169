import math
from collections import Counter

import pytest
import torch
from torch import nn
from torch.nn.functional import logsigmoid

from blackbox import augmentation as module
from blackbox.augmentation import agreement, augmentation, grid
from glasslab.checks import Floored
from glasslab.metrics import auc
from glasslab.oracle import BudgetExceeded, Oracle
from glasslab.split import stream


def pictures(n=5, c=3, h=6, w=9):
    return torch.rand(n, c, h, w, generator=stream("pictures"))


def net(x, classes=3, seed=0):
    """A linear classifier of pictures with weights drawn by seed."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(x[0].numel(), classes)).eval()
    model[1].weight.data = torch.randn(model[1].weight.shape, generator=stream(seed, "net"))
    return model


def asked(model, **settings):
    return Oracle(model, reveals="labels", **settings)


def clamped(v, top):
    return min(max(v, 0), top)


def shifted(picture, dx, dy):
    """Pixel by pixel: what stood at (i - dy, j - dx), the border's pixel where that lies outside."""
    c, h, w = picture.shape
    out = torch.empty_like(picture)
    for k in range(c):
        for i in range(h):
            for j in range(w):
                out[k, i, j] = picture[k, clamped(i - dy, h - 1), clamped(j - dx, w - 1)]
    return out


def turned(picture, degrees):
    """Pixel by pixel: bilinear between the four neighbours of the place turned back around the centre."""
    c, h, w = picture.shape
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    out = torch.empty_like(picture)
    for i in range(h):
        for j in range(w):
            u, v = j - (w - 1) / 2, i - (h - 1) / 2
            x = clamped(cos * u - sin * v + (w - 1) / 2, w - 1)
            y = clamped(sin * u + cos * v + (h - 1) / 2, h - 1)
            x0, y0 = int(x), int(y)
            x1, y1 = min(x0 + 1, w - 1), min(y0 + 1, h - 1)
            for k in range(c):
                top = (1 - x + x0) * picture[k, y0, x0] + (x - x0) * picture[k, y0, x1]
                low = (1 - x + x0) * picture[k, y1, x0] + (x - x0) * picture[k, y1, x1]
                out[k, i, j] = (1 - y + y0) * top + (y - y0) * low
    return out


@pytest.mark.parametrize("d", [1, 2, 3])
def test_translations_are_the_ring_and_the_picture_itself(d):
    x = pictures()
    versions = grid(x, "translations", d=d)
    ring = [(dx, dy) for dx in range(-d, d + 1) for dy in range(-d, d + 1) if abs(dx) + abs(dy) == d]
    assert len(ring) == len(set(ring)) == 4 * d
    assert versions.shape == (4 * d + 1, *x.shape)
    assert torch.equal(versions[0], x)
    made = [torch.stack([shifted(picture, dx, dy) for picture in x]) for dx, dy in ring]
    found = [[torch.equal(version, slow) for slow in made].index(True) for version in versions[1:]]
    assert sorted(found) == list(range(4 * d))


@pytest.mark.parametrize("shape", [(6, 9), (8, 8), (7, 4)])
def test_rotations_are_whole_degrees_and_the_picture_itself(shape):
    x = pictures(n=2, h=shape[0], w=shape[1])
    versions = grid(x, "rotations", r=4)
    assert versions.shape == (9, *x.shape)
    assert torch.equal(versions[0], x)
    slow = [torch.stack([turned(picture, a) for picture in x]) for a in (-4, -3, -2, -1, 1, 2, 3, 4)]
    torch.testing.assert_close(versions[1:], torch.stack(slow), rtol=1e-4, atol=1e-5)


def test_a_quarter_turn_is_exact():
    x = pictures(h=7, w=7)
    torch.testing.assert_close(module._turned(x, 90), torch.rot90(x, 1, (2, 3)), rtol=1e-4, atol=1e-5)


def test_one_degree_is_three_versions():
    """Not the picture alone, as in the official code."""
    versions = grid(pictures(), "rotations", r=1)
    assert len(versions) == 3
    assert not torch.equal(versions[1], versions[0])


@pytest.mark.parametrize("kind", ["translations", "rotations"])
def test_pixels_move_and_channels_stay(kind):
    """Each channel holds a number of its own: nothing can come from another one."""
    x = torch.arange(3.0)[None, :, None, None].expand(2, 3, 6, 6) + 1
    versions = grid(x, kind, d=2)
    torch.testing.assert_close(versions, x.expand_as(versions))
    dots = torch.zeros(1, 3, 6, 6)
    dots[0, 1, 3, 3] = 1.0
    assert (grid(dots, kind, d=2)[:, 0, [0, 2]] == 0).all()
    assert all(v[1].sum() > 0 for v in grid(dots, kind, d=2)[:, 0])


@pytest.mark.parametrize(("kind", "q"), [("translations", 5), ("rotations", 9)])
def test_agreement_asks_for_each_version_once(kind, q):
    x = pictures(n=12)
    model = net(x)
    y = torch.where(torch.arange(12) % 3 > 0, model(x).argmax(1), 1)
    oracle = asked(model)
    b = agreement(oracle, x, y, kind=kind)
    slow = [[int(model(v[i : i + 1]).argmax()) == int(y[i]) for v in grid(x, kind)] for i in range(12)]
    assert torch.equal(b, torch.tensor(slow))
    assert 0 < b.sum() < b.numel()
    assert oracle.queries == 12 * q
    assert torch.equal(b, agreement(Oracle(model), x, y, kind=kind))  # probabilities are read as labels


@pytest.mark.parametrize("budget", [11, 12, 59])
def test_an_oracle_that_runs_dry_raises(budget):
    x = pictures(n=12)
    oracle = asked(net(x), budget=budget)
    with pytest.raises(BudgetExceeded):
        agreement(oracle, x, torch.zeros(12).long())
    assert oracle.queries == budget // 12 * 12


@pytest.mark.parametrize(
    ("x", "settings", "message"),
    [
        (torch.rand(4, 6), {}, r"x must hold images, channels first, got records of shape \[6\]"),
        (pictures(), {"d": 0}, "d must be 1 or more, and below the 6 pixels of a side, got 0"),
        (pictures(), {"d": 6}, "d must be 1 or more, and below the 6 pixels of a side, got 6"),
        (pictures(), {"kind": "rotations", "r": 0}, "r must be 1 degree or more, got 0"),
    ],
)
def test_refuses_what_cannot_be_moved(x, settings, message):
    with pytest.raises(ValueError, match=message):
        grid(x, **{"kind": "translations", **settings})


def test_the_share_is_the_mean_and_one_for_a_class_that_is_always_named():
    x = pictures(n=8)
    model = net(x)
    model[1].weight.data.zero_()
    model[1].bias.data = torch.tensor([0.0, 1.0, 0.0])
    y = torch.arange(8) % 3
    share = augmentation(agreement(asked(model), x, y), y, rule="share")
    assert torch.equal(share, (y == 1).double())
    b = torch.tensor([[True, True, False, True], [False, False, False, True]])
    assert augmentation(b, y[:2], rule="share").tolist() == [0.75, 0.25]  # and no threshold


def world(n, classes=3, q=5, seed=0):
    """(b, y, member): members' versions keep their label more often, in class 1 more seldom."""
    g = stream(seed, "b")
    member = torch.rand(n, generator=g) < 0.5
    y = torch.randint(classes, (n,), generator=g)
    keeps = torch.where(member == (y != 1), 0.9, 0.6)[:, None]
    return torch.rand(n, q, generator=g) < keeps, y, member


def by_mlp(b, y, shadow_b, shadow_y, shadow_member, seed=0, **settings):
    return augmentation(
        b,
        y,
        shadow_agree=shadow_b,
        shadow_y=shadow_y,
        shadow_member=shadow_member,
        generator=stream(seed),
        **settings,
    )


def test_the_mlps_learn_the_odds_of_each_class():
    b, y, member = world(2000, seed=1)
    score = by_mlp(b, y, *world(4000))
    kept = b.double().sum(1)
    odds = (0.9 / 0.6) ** kept * (0.1 / 0.4) ** (5 - kept)
    odds = torch.where(y == 1, 1 / odds, odds)
    assert (score - odds / (1 + odds)).abs().mean() < 0.06
    best = auc(odds, member)
    assert best - 0.01 < auc(score, member) < best + 0.005
    assert auc(b.double().mean(1), member) < best - 0.1  # the share does not know of class 1


def test_equals_one_net_after_another():
    """Pair by pair, with torch's layers; members weigh as much as the others, in each class."""
    b, y, member = world(400)
    drawn = module._trained(torch.zeros(1, 5).double(), torch.ones(4, 1, 2).double(), stream(0), 0, 0.01)
    score = by_mlp(b, y, b, y, member, steps=30)
    for k in range(3):
        model = nn.Sequential(
            *(nn.Linear(5, 10), nn.LeakyReLU(0.01), nn.Linear(10, 10), nn.LeakyReLU(0.01), nn.Linear(10, 1))
        ).double()
        for parameter, value in zip(model.parameters(), drawn, strict=True):
            parameter.data = (value[k].T if value.shape[1] > 1 else value[k, 0]).clone()
        optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
        own = [(b[i].double(), bool(member[i])) for i in range(400) if y[i] == k]
        sides = Counter(side for _, side in own)
        for _ in range(30):
            optimiser.zero_grad()
            z = model(torch.stack([x for x, _ in own])).squeeze(1)
            loss = sum(-logsigmoid(v if t else -v) / sides[t] for v, (_, t) in zip(z, own, strict=True))
            loss.backward()
            optimiser.step()
        rows = y == k
        torch.testing.assert_close(score[rows], model(b[rows].double()).squeeze(1).sigmoid())


def test_a_class_with_few_pairs_goes_by_all_classes_and_is_counted():
    b, y, member = world(900)
    few = (y == 2).nonzero().squeeze(1)
    kept = torch.cat([(y != 2).nonzero().squeeze(1), few[member[few]][:19], few[~member[few]][:40]])
    every = torch.arange(2**5)[:, None] // 2 ** torch.arange(5) % 2 == 1
    with pytest.warns(Floored, match="1 of 3 classes go by the one MLP for all"):
        second = by_mlp(every, torch.full((32,), 2), b[kept], y[kept], member[kept])
    with pytest.warns(Floored, match="3 of 3 classes go by the one MLP for all"):
        pooled = by_mlp(every, torch.full((32,), 2), b[:30], y[:30], member[:30])
    kept_all = torch.cat([kept, few[member[few]][19:20]])  # twenty a side are enough
    own = by_mlp(every, torch.full((32,), 2), b[kept_all], y[kept_all], member[kept_all])
    assert len({tuple(v.tolist()) for v in (second, pooled, own)}) == 3


@pytest.mark.filterwarnings("ignore::glasslab.checks.Floored")
def test_a_class_that_the_shadow_never_saw_goes_by_all_classes():
    b, y, member = world(600)
    score = by_mlp(b, torch.full_like(y, 7), b, y, member)
    assert score.isfinite().all()
    assert len(score.unique()) == len(b.unique(dim=0))


def test_the_order_of_records_and_of_pairs_does_not_matter():
    b, y, _ = world(50, seed=1)
    shadow = world(500)
    score = by_mlp(b, y, *shadow)
    p, q = torch.randperm(50, generator=stream(0)), torch.randperm(500, generator=stream(1))
    moved = by_mlp(b[p], y[p], *(v[q] for v in shadow))
    torch.testing.assert_close(moved, score[p], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(by_mlp(b[:1], y[:1], *shadow), score[:1])


def test_finds_nothing_where_nothing_is():
    b, y, _ = world(4000, seed=1)
    member = torch.rand(4000, generator=stream("coins")) < 0.5
    shadow_b, shadow_y, _ = world(4000)
    score = by_mlp(b, y, shadow_b, shadow_y, torch.rand(4000, generator=stream("other")) < 0.5)
    assert abs(auc(score, member) - 0.5) < 4 * 0.0091  # of 2,000 a side


def test_equal_answers_give_equal_scores():
    b, y, member = world(400)
    ones = torch.ones_like(b)
    assert len(by_mlp(ones, torch.zeros_like(y), ones, torch.zeros_like(y), member).unique()) == 1


def test_arguments_and_the_global_generator_are_left_alone():
    given = (*world(60, seed=1)[:2], *world(300))
    before, state = [t.clone() for t in given], torch.get_rng_state()
    one, two, other = (by_mlp(*given, seed=s) for s in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(before, given, strict=True))
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert not one.requires_grad


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shadow_agree": None, "generator": None}, "got none for shadow_agree, generator"),
        ({"shadow_y": None}, "got none for shadow_y"),
        ({"shadow_member": torch.ones(60).bool()}, "must hold both sides, got 60 of 60 in"),
        ({"shadow_member": torch.zeros(60).bool()}, "must hold both sides, got 0 of 60 in"),
        ({"shadow_agree": torch.ones(60, 9).bool()}, "shadow_agree must hold 5 versions, got 9"),
    ],
)
def test_refuses_to_learn_from_what_is_missing(change, message):
    b, y, member = world(60)
    given = {"shadow_agree": b, "shadow_y": y, "shadow_member": member, "generator": stream(0), **change}
    with pytest.raises(ValueError, match=message):
        augmentation(b, y, **given)
