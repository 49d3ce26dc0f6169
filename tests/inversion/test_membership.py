import math
import os
from dataclasses import replace
from pathlib import Path
from statistics import correlation

import pytest
import torch
from torch import nn
from torch.nn.functional import one_hot
from worlds import ridge
from zoos import RECIPE, made, tiny

from glasslab.data import Data
from glasslab.datasets import load
from glasslab.game import game, without
from glasslab.metrics import auc
from glasslab.null_law import null_breaches
from glasslab.split import shadow_rows, stream
from inversion.gradient import autograd
from inversion.membership import calibrated, membership
from inversion.miface import miface
from inversion.result import Inversion
from workbench import inversions
from workbench.attacks import ATTACKS, chosen
from workbench.inversions import inverted, stacked
from workbench.play import granted

FACES = Path(os.environ.get("GLASSLAB_DATA", Path.home() / ".cache/glasslab/data")) / "olivetti_faces.npz"
ROWS = ("inversion-raw", "inversion-calibrated")
METHODS = ("correlation", "pixels", "features")


def rebuilt(x, y):
    """An inversion that consists of these images."""
    c = len(y)
    zeros, none = torch.zeros(c, dtype=torch.float64), torch.zeros(c).long()
    return Inversion(x, y, zeros, zeros, none, none, ("stall",) * c)


def some(n=20, c=3, shape=(2, 3), seed=0):
    """(inversion, x, y); its labels stand in another order than 0, 1, ..."""
    g = stream(seed, "some")
    y = torch.randint(c, (n,), generator=g)
    found = rebuilt(torch.randn(c, *shape, generator=g), torch.arange(c).flip(0))
    return found, torch.randn(n, *shape, generator=g) + 2, y


class Squares(nn.Module):
    """Features that are no pixels: two sums of squares."""

    def __init__(self, size=6):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, size, generator=stream(3)))

    def forward(self, x):
        return x.flatten(1).square() @ self.weight.T


def settings(distance):
    return {"distance": distance, "features": Squares().eval() if distance == "features" else None}


# The formulas, one record and one inversion at a time


def textbook_distance(a, b, distance):
    if distance == "features":
        a, b = (Squares()(t[None].float())[0].detach() for t in (a, b))
        return sum((u - v) ** 2 for u, v in zip(a.tolist(), b.tolist(), strict=True))
    a, b = a.flatten().tolist(), b.flatten().tolist()
    return 1 - correlation(a, b) if distance == "correlation" else math.dist(a, b)


def textbook(several, x, y, distance):
    scores = []
    for record, label in zip(x, y.tolist(), strict=True):
        own = [
            image
            for found in several
            for image, c in zip(found.x, found.y.tolist(), strict=True)
            if c == label
        ]
        scores.append(-min(textbook_distance(record, image, distance) for image in own))
    return torch.tensor(scores, dtype=torch.float64)


def textbook_calibrated(score, shadow, inside=None):
    out = []
    for i, own in enumerate(score.tolist()):
        others = [float(row[i]) for j, row in enumerate(shadow) if inside is None or not inside[j, i]]
        out.append(own - sum(others) / len(others))
    return torch.tensor(out, dtype=torch.float64)


def uncentred(several, x, y, distance):
    """Wrong: the cosine."""
    found = several[0]
    own = found.x[torch.stack([(found.y == c).nonzero()[0, 0] for c in y])]
    return nn.functional.cosine_similarity(x.flatten(1).double(), own.flatten(1).double()) - 1


def by_place(several, x, y, distance):
    """Wrong: label y's inversion is looked for in row y."""
    return textbook([rebuilt(found.x, torch.arange(len(found.y))) for found in several], x, y, distance)


def mean_of_all(several, x, y, distance):
    """Wrong: the mean over several inversions, where the nearest counts."""
    return torch.stack([textbook([found], x, y, distance) for found in several]).mean(0)


@pytest.mark.parametrize("distance", METHODS)
def test_the_score_is_that_of_the_textbook(distance):
    found, x, y = some()
    torch.testing.assert_close(
        membership(found, x, y, **settings(distance)), textbook([found], x, y, distance), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("distance", METHODS)
def test_of_several_inversions_the_nearest_counts(distance):
    """Whether they come as several results, or as one that holds a label more than once."""
    (a, x, y), (b, *_) = some(), some(seed=1)
    joined = rebuilt(torch.cat([a.x, b.x]), torch.cat([a.y, b.y]))
    want = textbook([a, b], x, y, distance)
    for found in ([a, b], (b, a), joined):
        torch.testing.assert_close(membership(found, x, y, **settings(distance)), want, rtol=1e-5, atol=1e-6)
    alone = torch.stack([membership(each, x, y, **settings(distance)) for each in (a, b)])
    assert (alone.argmax(0).bincount() > 0).all()  # each is the nearest somewhere


@pytest.mark.parametrize("wrong", [uncentred, by_place, mean_of_all])
def test_the_twin_tells_wrong_scores_apart(wrong):
    (a, x, y), (b, *_) = some(), some(seed=1)
    several = [a, b] if wrong is mean_of_all else [a]
    right = membership(several, x, y)
    assert (right - wrong(several, x, y, "correlation")).abs().max() > 0.1


def test_correlation_knows_no_brightness_and_no_contrast():
    found, x, y = some()
    score = membership(found, x, y)
    torch.testing.assert_close(membership(found, 3 * x - 7, y), score, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(membership(found, -x, y), -2 - score, rtol=1e-5, atol=1e-5)
    assert membership(found, found.x, found.y).abs().max() < 1e-12
    assert (membership(found, 3 * x, y, distance="pixels") - score).abs().max() > 1


@pytest.mark.parametrize("value", [0.0, 0.1, 1 / 3, 255.0])
def test_a_constant_record_or_inversion_is_uncorrelated(value):
    """Also where rounding leaves something of it: 0.1 has no exact mean."""
    found, x, y = some(shape=(50,))
    x = x.double()
    found, flat = rebuilt(found.x.double(), found.y), torch.full_like(x, value)
    assert value in (0, 255) or (flat - flat.mean(-1, keepdim=True)).abs().max() > 0
    assert torch.equal(membership(found, flat, y), -torch.ones(20).double())
    assert torch.equal(membership(rebuilt(flat[:3], found.y), x, y), -torch.ones(20).double())
    assert torch.equal(membership(rebuilt(flat[:3], found.y), flat, y), -torch.ones(20).double())


def test_a_small_contrast_on_a_bright_record_is_seen():
    found, x, y = some(shape=(50,))
    bright = 100 + 1e-4 * x.double()
    exact = membership(rebuilt(found.x.double(), found.y), bright, y)
    torch.testing.assert_close(exact, membership(found, x, y), rtol=1e-4, atol=1e-4)


def test_features_of_a_module_and_of_a_function_are_the_same():
    found, x, y = some(n=300)
    net = Squares().eval()
    before = net.weight.detach().clone()
    score = membership(found, x, y, distance="features", features=net)
    assert not score.requires_grad
    torch.testing.assert_close(score, membership(found, x, y, distance="features", features=lambda t: net(t)))
    assert torch.equal(net.weight, before)
    assert net.weight.grad is None
    with pytest.raises(ValueError, match="model must be in eval mode, got training mode"):
        membership(found, x, y, distance="features", features=Squares())


@pytest.mark.parametrize("held_out", [False, True])
def test_calibrated_is_that_of_the_textbook(held_out):
    g = stream(0)
    score, shadow = torch.randn(20, generator=g), 3 * torch.randn(6, 20, generator=g) + 5
    inside = shadow_rows(6, 20, 0) if held_out else None
    got = calibrated(score, shadow, inside=inside)
    torch.testing.assert_close(got, textbook_calibrated(score, shadow, inside), rtol=1e-6, atol=1e-6)
    assert got.dtype == torch.float64
    if inside is not None:  # the other half is the wrong one
        assert (got - textbook_calibrated(score, shadow, ~inside)).abs().max() > 0.1


def test_what_a_shadow_inside_says_does_not_count():
    g = stream(0)
    score, shadow, inside = torch.randn(9, generator=g), torch.randn(4, 9, generator=g), shadow_rows(4, 9, 0)
    odd = shadow.masked_fill(inside, torch.nan)
    assert torch.equal(calibrated(score, odd, inside=inside), calibrated(score, shadow, inside=inside))


def test_records_are_scored_each_alone_and_nothing_is_touched():
    found, x, y = some(n=300)
    net, p = Squares().eval(), torch.randperm(300, generator=stream(0))
    held = [t.clone() for t in (found.x, found.y, x, y)]
    before = torch.get_rng_state()
    for distance in METHODS:
        own = {"distance": distance, "features": net if distance == "features" else None}
        whole = membership(found, x, y, **own)
        assert whole.shape == (300,)
        assert whole.dtype == torch.float64
        torch.testing.assert_close(membership(found, x[p], y[p], **own), whole[p], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(membership(found, x[7:8], y[7:8], **own), whole[7:8], rtol=1e-5, atol=1e-9)
    assert all(torch.equal(a, b) for a, b in zip(held, (found.x, found.y, x, y), strict=True))
    assert torch.equal(before, torch.get_rng_state())


def test_refuses_what_it_cannot_do():
    found, x, y = some()
    one = torch.tensor([0])
    with pytest.raises(ValueError, match="found must hold an inversion of each label, got none of 7"):
        membership(found, x, y.index_fill(0, one, 7))
    with pytest.raises(ValueError, match=r"found must hold 1\+ inversions, got none"):
        membership([], x, y)
    with pytest.raises(ValueError, match=r"x must be of the inversions' shape \[2, 3\], got \[6\]"):
        membership(found, x.flatten(1), y)
    with pytest.raises(ValueError, match="x must be finite, got 6 NaN"):
        membership(found, x.index_fill(0, one, torch.nan), y)
    with pytest.raises(ValueError, match="found must be finite, got 6 NaN"):
        membership(replace(found, x=found.x.index_fill(0, one, torch.inf)), x, y)
    with pytest.raises(ValueError, match="features must be given with distance 'features' alone, got None"):
        membership(found, x, y, distance="features")
    with pytest.raises(ValueError, match="got a network with 'pixels'"):
        membership(found, x, y, distance="pixels", features=Squares().eval())
    with pytest.raises(ValueError, match=r"shadow_scores must hold 1\+ shadows of each record, got 0"):
        calibrated(torch.zeros(3), torch.zeros(0, 3))
    inside = torch.tensor([[False, True, False], [True, True, False]])
    with pytest.raises(
        ValueError, match=r"inside must leave 1\+ shadows out of each record, got 0 for record 1"
    ):
        calibrated(torch.zeros(3), torch.zeros(2, 3), inside=inside)


# What it finds


def judged(world, features):
    """Score of the target's inversions in that network's features."""
    found = miface(autograd(world.model), torch.arange(5), shape=world.aux.shape, steps=30)
    return membership(found, world.x, world.y, distance="features", features=features)


def taught(data):
    """Ridge regression on these records."""
    x = data.x.double()
    w = torch.linalg.solve(x.T @ x + torch.eye(x.shape[1]), x.T @ one_hot(data.y, data.classes).double())
    model = nn.Linear(x.shape[1], data.classes, bias=False)
    model.weight.data = w.T.float()
    return model.eval()


def test_a_network_that_saw_the_non_members_tells_the_truth_and_one_of_aux_does_not():
    """In a world without a leak. 4 standard errors of the mean of 4 AUCs: a false alarm in 16,000."""
    judge, public = [], []
    for seed in range(4):
        world, truth = ridge(leaks=False, seed=seed, n=400, d=100)
        pool = Data(world.x, world.y, world.classes, "pool")
        judge.append(auc(judged(world, taught(pool[~truth])), truth))
        public.append(auc(judged(world, taught(world.aux)), truth))
    assert abs(sum(judge) / 4 - 0.5) > 0.2
    assert abs(sum(public) / 4 - 0.5) < 4 * 0.029 / 2


@pytest.mark.parametrize("name", ROWS)
def test_a_model_of_other_records_tells_nothing(name):
    """Level 0.001 / 4 each check: a false alarm in 1,000 seeds."""
    scores, truths = [], []
    for seed in range(6):
        world, truth = ridge(leaks=False, seed=seed + 50, n=200, d=60, m=6)
        scores.append(ATTACKS[name].run(granted(world, ATTACKS[name]), stream(0), steps=20))
        truths.append(truth)
    assert null_breaches(torch.stack(scores), torch.stack(truths), checks=4) == []
    leaks, truth = ridge(leaks=True, seed=0, n=200, d=60, m=6)
    assert auc(ATTACKS[name].run(granted(leaks, ATTACKS[name]), stream(0), steps=20), truth) > 0.6


def regressions(x, y, member, classes, steps, rate):
    """Softmax regressions from zero by gradient descent on the mean loss, one a row of `member`.

    In coefficients of the training records: the weights never leave their span.
    """
    own = torch.stack([row.nonzero()[:, 0] for row in member])
    gram = (x @ x.T + 1)[own[:, :, None], own[:, None, :]]
    target, a = one_hot(y[own], classes).float(), torch.zeros(*own.shape, classes)
    for _ in range(steps):
        a += rate / own.shape[1] * (target - (gram @ a).softmax(-1))
    models = []
    for rows, coefficients in zip(own, a, strict=True):
        linear = nn.Linear(x.shape[1], classes)
        linear.weight.data, linear.bias.data = coefficients.T @ x[rows], coefficients.sum(0)
        models.append(nn.Sequential(nn.Flatten(), linear).eval())
    return models


@pytest.mark.skipif(not FACES.exists(), reason=f"needs the Olivetti faces at {FACES}")
def test_faces_are_told_by_one_step():
    """Softmax regression on 5 of 10 images a person: 8 targets, 16 shadows."""
    faces = load("olivetti", FACES.parent, download=False)
    draw = torch.rand(24, 40, 10, generator=stream(0, "faces")).argsort(-1) < 5
    order = faces.y.argsort(stable=True)
    x, y, member = faces.x[order], faces.y[order], draw.flatten(1)
    models = regressions(x.flatten(1), y, member, 40, 300, 0.02)
    found = [miface(autograd(f), torch.arange(40), shape=faces.shape, steps=1) for f in models]
    scores = torch.stack([membership(each, x, y) for each in found])
    targets, shadows, inside = scores[:8], scores[8:], member[8:]

    def area(score):
        return sum(auc(score(s), row) for s, row in zip(targets, member, strict=False)) / 8

    assert 0.6 < area(lambda s: s) < 0.8
    assert area(lambda s: calibrated(s, shadows)) > 0.8
    assert area(lambda s: calibrated(s, shadows, inside=inside)) > 0.8


# Rows of the attack table


def nets(shape=(6,), classes=3, m=4, conv=False):
    """m nets of one kind, in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if not conv:
            return [
                nn.Sequential(nn.Linear(*shape, 8), nn.ReLU(), nn.Linear(8, classes)).eval() for _ in range(m)
            ]
        models = []
        for _ in range(m):
            net = nn.Sequential(
                nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, classes)
            )
            net(torch.randn(9, *shape))  # its running statistics
            models.append(net.eval())
        return models


@pytest.mark.parametrize(("shape", "conv"), [((6,), False), ((1, 4, 4), True)])
def test_several_models_as_one_have_the_gradient_of_each(shape, conv):
    """Also where only some of the pairs are asked, in any order, as when images have stopped."""
    models = nets(shape, conv=conv)
    before = [t.clone() for model in models for t in model.state_dict().values()]
    gradient = stacked(models, 3)
    y = torch.tensor([7, 0, 10, 5, 11])
    x = torch.randn(5, *shape, generator=stream(0))
    f, g = gradient(x, y)
    for i, pair in enumerate(y.tolist()):
        own, slope = autograd(models[pair // 3])(x[i : i + 1], torch.tensor([pair % 3]))
        torch.testing.assert_close(f[i : i + 1].double(), own.double(), rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(g[i : i + 1], slope, rtol=1e-4, atol=1e-6)
    after = [t for model in models for t in model.state_dict().values()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert all(p.requires_grad and p.grad is None for model in models for p in model.parameters())


def test_a_model_in_training_mode_is_refused():
    with pytest.raises(ValueError, match="models must be in eval mode, got training mode"):
        stacked([nets()[0].train()], 3)


def test_each_model_is_inverted_as_if_alone():
    """More models than a batch holds; from the mean of aux."""
    models, aux = nets(m=18), made(n=50)
    found = inverted(models, aux, 3, steps=40, rate=1.0)
    assert len(found) == 18
    for model, each in zip(models, found, strict=True):
        alone = miface(
            autograd(model), torch.arange(3), shape=(6,), steps=40, rate=1.0, start="public_mean", aux=aux.x
        )
        assert each.y.tolist() == [0, 1, 2]
        torch.testing.assert_close(each.x, alone.x, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(each.confidence, alone.confidence, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(found[0].x, found[1].x)


@pytest.mark.parametrize("binary", [False, True])
def test_rows_play_on_a_zoo_and_invert_its_shadows_once(tmp_path, monkeypatch, binary):
    """A table, also of zeros and ones. The last class has no record in aux."""
    data = made(n=160, shape=(12,), classes=4)
    if binary:
        data = Data((data.x > 0.5).float(), data.y, 4, "bits")
    zoo = tiny(tmp_path, RECIPE, data=data)
    seen, honest = [], inversions.inverted

    def watched(models, *rest, **more):
        seen.append(len(models))
        return honest(models, *rest, **more)

    monkeypatch.setattr(inversions, "inverted", watched)
    aux = zoo.aux[zoo.aux.y < 3]
    for a in range(2):
        world = replace(game(zoo, a, weights=True), aux=aux)
        for name in ROWS:
            score = ATTACKS[name].run(granted(world, ATTACKS[name]), stream(0), steps=5)
            assert score.shape == world.y.shape
            assert score.isfinite().all()
            assert len(score.unique()) > 10
    assert sorted(seen) == [1, 1, 1, 1, 4]


def test_the_calibrated_row_is_the_two_functions():
    world, _ = ridge(leaks=True, seed=0, n=60, d=20, m=4)
    models = [world.model, *world.shadows.models]
    start = {"start": "public_mean", "aux": world.aux.x}
    found = [miface(autograd(f), torch.arange(5), shape=(20,), steps=10, **start) for f in models]
    own, *others = (membership(each, world.x, world.y) for each in found)
    run = {
        name: ATTACKS[name].run(granted(world, ATTACKS[name]), stream(0), steps=10, rate=0.1) for name in ROWS
    }
    torch.testing.assert_close(run["inversion-raw"], own, rtol=1e-4, atol=1e-5)
    want = calibrated(own, torch.stack(others))
    torch.testing.assert_close(run["inversion-calibrated"], want, rtol=1e-4, atol=1e-5)


def test_what_the_rows_say():
    assert set(chosen("inversion")) >= set(ROWS)
    for name in ROWS:
        row = ATTACKS[name]
        assert (row.family, row.access, row.default) == ("inversion", "weights", True)
    world, _ = ridge(leaks=True, seed=0, n=60, d=20, m=4)
    raw = granted(world, ATTACKS["inversion-raw"])
    assert len(raw.shadows.z) == 0
    alone = replace(world, shadows=without(world.shadows))
    score = ATTACKS["inversion-raw"].run(granted(alone, ATTACKS["inversion-raw"]), stream(0))
    assert score.isfinite().all()
