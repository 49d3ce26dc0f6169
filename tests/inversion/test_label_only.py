import math

import pytest
import torch
from torch import nn

from glasslab.checks import Floored
from glasslab.datasets import load
from glasslab.oracle import Oracle
from glasslab.split import stream
from inversion.label_only import grows, label_only
from inversion.prior import pca

QUICK = {"latent": 4, "radius": 0.8, "patience": 12, "tries": 200}


class Ball(nn.Module):
    """Class 1 is the ball of radius rho around c."""

    def __init__(self, c, rho):
        super().__init__()
        self.c, self.rho = nn.Parameter(c, requires_grad=False), rho

    def forward(self, x):
        room = self.rho**2 - (x - self.c).square().sum(1)
        return torch.stack([torch.zeros_like(room), room], 1)


class Rigged(nn.Module):
    """Class 1 where the image's only pixel is positive."""

    def forward(self, x):
        return torch.cat([torch.zeros_like(x), x], 1)


def linear(w, b=0.0):
    model = nn.Linear(w.shape[1], len(w)).eval()
    with torch.no_grad():
        model.weight.copy_(w)
        model.bias.fill_(0).add_(torch.as_tensor(b))
    return model


def cones(seed=3, classes=8, latent=4, d=9):
    """(oracle, decode): a linear target on images, which are linear in z."""
    g = stream(seed, "cones")
    a = torch.randn(latent, d, generator=g)
    return Oracle(linear(torch.randn(classes, d, generator=g)), reveals="labels"), lambda z: z @ a


# The algorithm, one label, one point and one coordinate at a time


def textbook(classify, label, generator, latent, radius, patience, tries, grow_at=28 / 32, wrong=""):
    """(z, radius of its sphere, steps, queries, reason); `wrong` names a mistake."""
    n, clip = 32, lambda v: max(-1.5, min(1.5, v))

    def draws(rows):
        return torch.randn(rows, latent, generator=generator).double().tolist()

    queries, z = 0, None
    while z is None and queries < tries:
        block = [[clip(v) for v in row] for row in draws(min(n, tries - queries))]
        queries += len(block)
        z = next((row for row in block if classify(row) == label), None)
    if z is None:
        return [0.0] * latent, 0.0, 0, queries, "no_start"
    kept, best, since, steps = z, 0.0, 0, 0
    while since < patience:
        u = [[v / math.sqrt(sum(w * w for w in row)) for v in row] for row in draws(n)]
        inside = [classify([a + radius * b for a, b in zip(z, row, strict=True)]) == label for row in u]
        queries += n + 1
        length, direction = min(radius / 3, 3.0), [0.0] * latent
        for row, ok in zip(u, inside, strict=True):
            sign = (1 if ok else -1) if wrong == "attracts" else (0 if ok else -1)
            direction = [a + sign * b / n for a, b in zip(direction, row, strict=True)]
        new = [a + length * b for a, b in zip(z, direction, strict=True)]
        new = new if wrong == "no clamp" else [clip(v) for v in new]
        count = sum(inside)
        grown = count == n or count > (0.75 if wrong == "three quarters" else grow_at) * n
        if grown:
            kept, best, radius, since = z, radius, radius * 1.3, 0
        if classify(new) != label and wrong != "leaves":
            continue
        z, steps, since = new, steps + 1, since + (not grown)
        if not best:
            kept = z
    return kept, best, steps, queries, "stall"


def twin(oracle, decode, label, seed=0, before=0, wrong="", **settings):
    def classify(z):
        return int(oracle.model(decode(torch.tensor([z]).float())).argmax())

    return textbook(classify, label, stream(seed, "label_only", label, before), wrong=wrong, **settings)


def assert_same(found, i, want, decode):
    z, best, steps, queries, reason = want
    torch.testing.assert_close(found.x[i], decode(torch.tensor([z]))[0], rtol=1e-4, atol=1e-4)
    assert found.cost[i].item() == pytest.approx(-best)
    assert (found.steps[i], found.queries[i], found.stop_reason[i]) == (steps, queries, reason)


@pytest.mark.parametrize("grow_at", [28 / 32, 1.0])
def test_every_label_walks_as_the_textbook_does(grow_at):
    oracle, decode = cones()
    y = torch.tensor([3, 0, 6, 0])  # the cone of label 6 is thin: some moves leave it
    found = label_only(oracle, y, decode=decode, grow_at=grow_at, **QUICK)
    for i, (label, before) in enumerate([(3, 0), (0, 0), (6, 0), (0, 1)]):
        assert_same(found, i, twin(oracle, decode, label, before=before, grow_at=grow_at, **QUICK), decode)
    assert found.queries.sum() == oracle.queries
    assert found.steps.max() > 20
    assert (oracle.model(found.x).argmax(1) == y).all()


@pytest.mark.parametrize("wrong", ["attracts", "no clamp", "three quarters", "leaves"])
def test_the_textbook_tells_mistakes_apart(wrong):
    oracle, decode = cones()
    right, other = (
        [twin(oracle, decode, label, wrong=w, **QUICK) for label in (0, 3, 6)] for w in ("", wrong)
    )
    assert any(a[0] != b[0] for a, b in zip(right, other, strict=True))


def test_a_label_gets_the_same_in_any_company():
    oracle, decode = cones()
    y = torch.tensor([2, 1, 3, 1, 0])
    found = label_only(oracle, y, decode=decode, watch=3, **QUICK)
    for i, label in [(0, 2), (1, 1), (2, 3), (4, 0)]:
        alone = label_only(oracle, torch.tensor([label]), decode=decode, watch=3, **QUICK)
        assert torch.equal(alone.x[0], found.x[i])
        assert (alone.queries[0], alone.cost[0], alone.steps[0]) == (
            found.queries[i],
            found.cost[i],
            found.steps[i],
        )
        assert torch.equal(alone.curve[:, 0], found.curve[: len(alone.curve), i])
    assert not torch.equal(found.x[1], found.x[3])  # the second of two equal labels is another draw
    assert len(found.curve) == found.steps.max() // 3
    other = label_only(oracle, y, decode=decode, seed=1, **QUICK)
    assert not torch.equal(other.x[0], found.x[0])


# The growth of the sphere


def test_the_sphere_grows_at_29_of_32():
    assert [inside for inside in range(33) if grows(inside, 32, 28 / 32)] == [29, 30, 31, 32]
    assert [inside for inside in range(33) if grows(inside, 32, 1.0)] == [32]
    assert not grows(29, 100, 0.29)  # 0.29 * 100 is 28.999... in floating point
    assert grows(30, 100, 0.29)
    assert not grows(25, 32, 28 / 32)  # above three quarters, which the sum of signs is not


def rigged(inside):
    """A decoder: the first `inside` points become images of class 1, and a point that comes alone."""
    return lambda z: (torch.arange(len(z))[:, None] < (inside if len(z) > 1 else 1)).float()


def test_an_attack_grows_at_29_of_32_and_not_at_28():
    oracle = Oracle(Rigged().eval(), reveals="labels")
    still = label_only(oracle, torch.tensor([1]), decode=rigged(28), **QUICK)
    assert (still.cost, still.confidence, still.steps) == (0, 28 / 32, 12)
    assert still.stop_reason == ("stall",)
    grown = label_only(oracle, torch.tensor([1]), decode=rigged(29), **QUICK)
    assert grown.cost < -1e5
    assert grown.stop_reason == ("unbounded",)
    paper = label_only(oracle, torch.tensor([1]), decode=rigged(31), grow_at=1.0, **QUICK)
    assert (paper.cost, paper.stop_reason) == (0, ("stall",))


# Worlds whose answer is known


def test_in_a_ball_the_centre_goes_to_the_middle():
    c, rho = torch.tensor([0.6, -0.4, 0.3, 0.0, 0.5, -0.2]), 1.6
    oracle = Oracle(Ball(c, rho).eval(), reveals="labels")
    y = torch.ones(6, dtype=torch.int64)
    found = label_only(oracle, y, latent=6, decode=lambda z: z, radius=0.3, patience=150)
    room, radius = rho - (found.x - c).norm(dim=1), -found.cost
    starts = torch.stack([start_of(oracle, before) for before in range(6)])
    assert (room > rho - (starts - c).norm(dim=1)).all()
    assert (room > 0.75 * radius).all()
    assert (room > 0.5 * rho).all()
    assert (radius > 0.6 * rho).all()
    # With 28 of 32 inside a sphere may stick out a little.
    assert (radius < 1.3 * rho).all()


def start_of(oracle, before):
    g = stream(0, "label_only", 1, before)
    while True:
        z = torch.randn(32, 6, generator=g).clamp(-1.5, 1.5)
        inside = (oracle.model(z).argmax(1) == 1).nonzero()
        if len(inside):
            return z[inside[0, 0]]


def test_in_a_half_space_the_centre_goes_into_the_far_corner():
    w = torch.tensor([1.0, -2.0, 1.5, 0.7])
    oracle = Oracle(linear(torch.stack([0 * w, w]), torch.tensor([0.0, -1.0])), reveals="labels")
    found = label_only(oracle, torch.tensor([1, 1]), latent=4, decode=lambda z: z, radius=0.5, patience=60)
    depth, most = (found.x @ w - 1) / w.norm(), (1.5 * w.abs().sum() - 1) / w.norm()
    assert (depth > 0.9 * most).all()
    assert (-found.cost > 0.8 * most).all()
    assert (found.confidence > 28 / 32).all()


def test_images_of_a_pca_prior_of_digits():
    data = load("digits")
    x, y = data.x.flatten(1), data.y
    mean = torch.stack([x[y == k].mean(0) for k in range(10)])
    oracle = Oracle(linear(2 * mean, -mean.square().sum(1)), reveals="labels")  # the nearest mean
    prior = pca(x, 10)
    found = label_only(oracle, torch.arange(10), latent=prior.latent, decode=prior, patience=15)
    assert (oracle.model(found.x).argmax(1) == torch.arange(10)).all()
    assert set(found.stop_reason) == {"stall"}


# How it ends


def test_moves_that_leave_the_class_are_counted_and_end():
    oracle = Oracle(Rigged().eval(), reveals="labels")

    def decode(z):
        return (torch.arange(len(z))[:, None] < (20 if len(z) > 1 else 0)).float()

    found = label_only(oracle, torch.tensor([1]), decode=decode, redraws=7, **QUICK)
    assert (found.stop_reason, found.steps) == (("redraws",), 0)
    assert found.queries == 32 + 7 * 33


def test_redraws_are_counted_in_a_row():
    """Every third move stays: seven of ten moves leave, never three in a row."""
    oracle, moves = Oracle(Rigged().eval(), reveals="labels"), iter(range(10**6))

    def decode(z):
        rows = 20 if len(z) > 1 else next(moves) % 3 == 2
        return (torch.arange(len(z))[:, None] < rows).float()

    found = label_only(oracle, torch.tensor([1]), decode=decode, redraws=3, **QUICK)
    assert (found.stop_reason, found.steps) == (("stall",), 12)


def test_labels_without_a_start_are_reported():
    oracle, decode = cones()
    lonely = Oracle(linear(torch.cat([oracle.model.weight, torch.zeros(1, 9)]), [0.0] * 8 + [-99.0]))
    with pytest.warns(Floored, match=r"1 of 2 labels have no start among 50 draws"):
        found = label_only(lonely, torch.tensor([8, 0]), decode=decode, **QUICK | {"tries": 50})
    assert (found.stop_reason[0], found.queries[0], found.steps[0]) == ("no_start", 50, 0)
    assert (found.cost[0], found.confidence[0]) == (torch.inf, 0)
    assert torch.equal(found.x[0], decode(torch.zeros(1, 4))[0])
    assert_same(found, 1, twin(lonely, decode, 0, **QUICK | {"tries": 50}), decode)


def test_a_budget_is_kept_and_the_best_so_far_returned():
    whole, decode = cones()
    y = torch.tensor([3, 0])
    full = label_only(whole, y, decode=decode, **QUICK)
    reached = []
    for budget in (0, 10, 64, 200, 700, 1500):
        oracle = Oracle(whole.model, reveals="labels", budget=budget)
        found = label_only(oracle, y, decode=decode, **QUICK)
        assert oracle.queries <= budget
        assert found.queries.sum() == oracle.queries
        assert "budget" in found.stop_reason
        assert (found.steps <= full.steps).all()
        reached.append(found.cost)
        if budget < 64:
            assert found.cost.isnan().all()
            assert found.confidence.isnan().all()
        else:
            assert (oracle.model(found.x).argmax(1) == y).all()
    assert (torch.stack(reached[2:]).diff(dim=0) <= 0).all()  # a larger budget never gives a smaller sphere
    enough = Oracle(whole.model, reveals="labels", budget=int(full.queries.sum()))
    assert torch.equal(label_only(enough, y, decode=decode, **QUICK).x, full.x)


def test_a_class_without_boundary_ends():
    oracle = Oracle(linear(torch.zeros(2, 9), [0.0, 1.0]), reveals="labels")
    found = label_only(oracle, torch.tensor([1]), decode=cones()[1], **QUICK)
    assert found.stop_reason == ("unbounded",)
    assert found.x.isfinite().all()
    assert found.steps < 60


def test_arguments_and_the_global_generator_are_left_alone():
    oracle, decode = cones()
    y, state = torch.tensor([1, 2]), torch.get_rng_state()
    before = {name: t.clone() for name, t in oracle.model.state_dict().items()}
    first = label_only(oracle, y, decode=decode, **QUICK)
    assert torch.equal(label_only(oracle, y, decode=decode, **QUICK).x, first.x)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(y, torch.tensor([1, 2]))
    assert all(torch.equal(t, before[name]) for name, t in oracle.model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in oracle.model.parameters())
    asked = Oracle(oracle.model)  # probabilities: their largest is the label
    assert torch.equal(label_only(asked, y, decode=decode, **QUICK).x, first.x)


@pytest.mark.parametrize(
    ("setting", "match"),
    [
        ({"latent": 0}, "latent must be 1 or more, got 0"),
        ({"n": 0}, "n must be 1 or more, got 0"),
        ({"patience": 0}, "patience must be 1 or more, got 0"),
        ({"tries": 0}, "tries must be 1 or more, got 0"),
        ({"redraws": 0}, "redraws must be 1 or more, got 0"),
        ({"radius": 0.0}, "radius must be greater than 0, got 0"),
        ({"step": -1.0}, "step must be greater than 0, got -1"),
        ({"clamp": math.nan}, "clamp must be greater than 0, got nan"),
        ({"growth": 1.0}, "growth must be greater than 1, got 1"),
        ({"grow_at": 0.0}, "grow_at must be greater than 0 and at most 1, got 0"),
        ({"grow_at": 29.0}, "grow_at must be greater than 0 and at most 1, got 29"),
        ({"decode": nn.Linear(4, 9)}, "decode must be in eval mode, got training mode"),
        ({"decode": lambda z: z[:1]}, "decode must give one image a latent point, got 1 for 32"),
    ],
)
def test_wrong_settings_are_refused(setting, match):
    oracle, decode = cones()
    with pytest.raises(ValueError, match=match):
        label_only(oracle, torch.tensor([0]), **{"decode": decode, **QUICK} | setting)


def test_a_target_in_training_mode_and_no_labels_are_refused():
    oracle, decode = cones()
    with pytest.raises(ValueError, match="y must hold 1\\+ labels, got none"):
        label_only(oracle, torch.tensor([], dtype=torch.int64), decode=decode, **QUICK)
    oracle.model.train()
    with pytest.raises(ValueError, match="model must be in eval mode"):
        label_only(oracle, torch.tensor([0]), decode=decode, **QUICK)
