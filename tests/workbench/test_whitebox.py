"""White-box experiments, explanations and recorded updates on tiny zoos."""

from dataclasses import replace

import pytest
import torch
from zoos import RECIPE, made, tiny

from glasslab.data import Data
from glasslab.game import game
from glasslab.recipe import Recipe
from glasslab.split import stream
from whitebox.proxy import bayes_wb
from workbench.arena import arena
from workbench.attacks import ATTACKS
from workbench.experiments.calibration import calibration
from workbench.experiments.layers import layers
from workbench.explain import explained, marked, picture
from workbench.learned_weights import shares
from workbench.play import drawn, granted

pytestmark = pytest.mark.filterwarnings("ignore::glasslab.checks.Floored")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Targets of a softmax regression on images of noise, learned by heart."""
    g = stream(0, "images")
    data = Data(0.5 * torch.rand(800, 1, 8, 8, generator=g), torch.randint(4, (800,), generator=g), 4, "grey")
    recipe = Recipe(net="softmax", epochs=60, batch=32, lr=0.5)
    return tiny(tmp_path_factory.mktemp("images"), recipe, data=data, shadows=2, targets=2)


def test_what_the_members_share_lights_up(images, tmp_path):
    planted = marked(images, a=1, label=2, k=12)
    assert int((planted.x != images.data.x).flatten(1).any(1).sum()) == 12
    zoo = tiny(tmp_path, images.recipe, data=planted, shadows=2, targets=2)
    assert torch.equal(zoo.target_member, images.target_member)
    held = explained(zoo, 1, attack="bayes-wb", label=2, k=200)
    has = (held.x[:, 0, :2, :2] == 1).flatten(1).all(1)
    assert int(has.sum()) == 12
    corner = held.evidence[:, 0, :2, :2].flatten(1).mean(1)
    rest = held.evidence[:, 0, 4:].flatten(1).abs().mean(1)
    assert (corner[has] > 3 * rest[has]).all()  # speaks for membership, and louder than any other place
    assert (corner[~has].abs() < corner[has].min()).all()
    assert len(picture(explained(zoo, 1, attack="bayes-wb", k=3)).axes) == 7  # 2 x 3 and the scale


def test_explanations_refuse_what_they_cannot_show(images, zoo):
    with pytest.raises(ValueError, match="k must be .* or less, the members of class 0, got 500"):
        marked(images, k=500)
    with pytest.raises(ValueError, match=r"zoo must be about images \[n c h w\], got records \[20\]"):
        marked(zoo)
    with pytest.raises(ValueError, match="label must be that of a candidate, got 9"):
        explained(images, attack="bayes-wb", label=9)
    with pytest.raises(ValueError, match="held must be about images"):
        picture(explained(zoo, attack="gradnorm"))


def test_claims_at_a_calibrated_threshold(zoo):
    """By hand: the same scores, the threshold of each class from the records that nobody trained on."""
    frame = calibration(zoo, attacks=["bayes-wb"], alphas=[0.1], seed=3).set_index("threshold")
    row, hits, alarms, own = ATTACKS["bayes-wb"], 0, 0, 0
    for a, member in enumerate(zoo.target_member):
        held = game(zoo, a, weights=True)
        spare, rest = shares(held, drawn(row, "bayes-wb", 3, a).initial_seed())
        assert len(spare) + len(rest) == len(zoo.aux)
        own_scores, spare_scores = (
            row.run(granted(replace(held, x=data.x, y=data.y), row), drawn(row, "bayes-wb", 3, a))
            for data in (zoo.pool, spare)
        )
        tau = torch.full((3,), torch.inf, dtype=torch.float64)
        for c in range(3):
            mine = spare_scores[spare.y == c].sort().values
            mine = mine if len(mine) >= 9 else spare_scores.sort().values
            tau[c] = mine[-(-9 * (len(mine) + 1) // 10) - 1]
        flagged = own_scores > tau[zoo.pool.y]
        hits, alarms = hits + int((flagged & member).sum()), alarms + int((flagged & ~member).sum())
        own += int((own_scores > 0).sum())
    found = frame.loc["conformal"]
    n_pos = int(zoo.target_member.sum())
    assert found["tpr"] == pytest.approx(hits / n_pos)
    assert found["fpr"] == pytest.approx(alarms / (zoo.target_member.numel() - n_pos))
    assert found["precision_counted"] == pytest.approx(hits / (hits + alarms))
    assert frame.loc["own", "flagged"] == own
    with pytest.raises(ValueError, match="must score records without shadows of them, got lira"):
        calibration(zoo, attacks=["lira"])
    with pytest.raises(ValueError, match="must score each record on its own, got dual"):
        calibration(zoo, attacks=["dual"])
    with pytest.raises(ValueError, match="attack decode needs a recipe with weight decay"):
        calibration(zoo, attacks=["decode"])


def test_layers_are_those_of_the_attack_itself(zoo):
    frame = layers(zoo, proxies=1, seed=2).set_index(["attack", "layer"])
    cuts = [name for attack, name in frame.index if attack == "bayes-wb"]
    assert len(cuts) == 1  # one hidden layer
    names = [name for attack, name in frame.index if attack == "gradnorm"]
    assert names[-1] == "input"
    assert len(names) == 3
    held, draw = game(zoo, 0, weights=True), stream(2, "layers", 0)
    rest = shares(held, stream(2, "layers").initial_seed())[1]
    score = bayes_wb(held.model, held.x, held.y, rest, held.recipe, draw, cut=cuts[0], proxies=1)
    assert score.isfinite().all()
    assert frame.loc[("bayes-wb", cuts[0]), "auc"] > 0.6


def test_what_is_recorded_is_a_run_on_the_targets_members(zoo):
    ring = arena(zoo, shadows=None, queries=1, mask=(), evaluate="targets")
    steps = ring.game(0).steps()
    assert steps is ring.game(0).steps()  # recorded once
    assert len(steps) == 5
    assert all(step.n == min(500, int(zoo.target_member[0].sum())) for step in steps)
    members = zoo.pool[zoo.target_member[0]]
    model = steps[0].model  # where a batch holds all members, the first mean gradient is theirs
    loss = torch.nn.functional.cross_entropy(model(members.x), members.y)
    grads = torch.autograd.grad(loss, [p.requires_grad_() for p in model.parameters()])
    for (name, _), g in zip(model.named_parameters(), grads, strict=True):
        torch.testing.assert_close(steps[0].m[name].float(), g, rtol=1e-4, atol=1e-6)


def test_a_mock_target_is_told_of_its_own_members(zoo):
    ring = arena(zoo, shadows=None, queries=1, mask=(), evaluate="targets")
    for j, mock in ring.mocks():
        assert torch.equal(mock.known, zoo.shadow_member[j])
        assert mock.steps is None
    assert torch.equal(ring.game(1).known, zoo.target_member[1])


def test_a_zoo_of_one_target_still_plays(tmp_path):
    """Every white-box row on a net with two hidden layers, at its quick settings."""
    recipe = replace(RECIPE, hidden=(8, 6), weight_decay=0.01)  # what decode asks for
    zoo = tiny(tmp_path, recipe, data=made(n=600), shadows=6, targets=1)  # three a side, for stacks
    assert len(zoo.aux) >= 100
    ring = arena(zoo, shadows=None, queries=1, mask=(), evaluate="targets")
    for name, row in ATTACKS.items():
        if row.family == "whitebox":
            score = row.run(granted(ring.game(0), row), drawn(row, name, 0, 0), **row.quick)
            assert score.shape == zoo.pool.y.shape
            assert score.isfinite().all()
