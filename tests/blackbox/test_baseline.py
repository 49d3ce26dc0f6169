import math

import pytest
import torch
from scipy.stats import halfnorm
from worlds import ridge

from blackbox import baseline
from blackbox.baseline import per_class, thresholds, yeom
from glasslab import signals
from glasslab.checks import Floored
from glasslab.metrics import auc, balanced_accuracy, roc, tpr_at_fpr
from glasslab.split import stream


@pytest.fixture(scope="module")
def world():
    """(z, y, truth) of a target that leaks, and its shadows' (z, member)."""
    game, truth = ridge(leaks=True, seed=0)
    return game.model(game.x).detach(), game.y, truth, game.shadows.z[:, :, 0], game.shadows.inside


def scores(z, y):
    phi = signals.phi(z, y)
    return {
        "correctness": baseline.correctness(z, y),
        "loss": baseline.loss(phi),
        "confidence": baseline.confidence(phi),
        "entropy": baseline.entropy(z),
        "modified_entropy": baseline.modified_entropy(z, y),
    }


@pytest.mark.parametrize("name", ["correctness", "loss", "confidence", "entropy", "modified_entropy"])
def test_finds_a_planted_leak(world, name):
    z, y, truth, *_ = world
    assert auc(scores(z, y)[name], truth) > 0.65


def test_loss_and_confidence_are_one_attack_and_minus_the_loss(world):
    z, y, truth, *_ = world
    phi = signals.phi(z, y)
    assert torch.equal(baseline.loss(phi), baseline.confidence(phi))
    torch.testing.assert_close(baseline.loss(phi), -signals.loss(z, y))
    own, probability = roc(baseline.loss(phi), truth), roc(signals.confidence(z, y), truth)
    assert torch.equal(own.hits, probability.hits)
    assert torch.equal(own.alarms, probability.alarms)


def test_loss_is_ordered_where_probabilities_end():
    phi = torch.linspace(-700, 700, 20_001, dtype=torch.float64)
    assert (baseline.loss(phi).diff() > 0).all()
    assert baseline.loss(phi)[[0, -1]].tolist() == pytest.approx([-700.0, -math.exp(-700.0)], rel=1e-9)
    close = -20 + torch.linspace(-1e-9, 1e-9, 9, dtype=torch.float64)  # where a common softplus jumps
    assert (baseline.loss(close).diff() > 0).all()


def test_correctness_has_the_gap_for_its_accuracy(world):
    z, y, truth, *_ = world
    right = z.argmax(-1) == y
    g = right[truth].double().mean() - right[~truth].double().mean()
    assert g > 0.1
    assert balanced_accuracy(baseline.correctness(z, y), truth) == pytest.approx(
        (1 + g.item()) / 2, abs=1e-12
    )


def test_entropies_equal_their_formulas_and_higher_is_member():
    p = torch.tensor([[0.7, 0.2, 0.1], [0.7, 0.2, 0.1]], dtype=torch.float64)
    y = torch.tensor([0, 1])
    h = 0.7 * math.log(1 / 0.7) + 0.2 * math.log(5) + 0.1 * math.log(10)
    assert baseline.entropy(p.log()).tolist() == pytest.approx([-h, -h])
    assert baseline.modified_entropy(p.log(), y).tolist() == pytest.approx([-0.162, -2.141], abs=5e-4)


def test_random_is_uniform_and_comes_from_its_generator():
    score = baseline.random(10_000, stream(0))
    assert torch.equal(score, baseline.random(10_000, stream(0)))
    assert abs(score.mean() - 0.5) < 4 * (1 / 12 / 10_000) ** 0.5
    assert 0 <= score.min() < score.max() < 1


def test_several_targets_at_once_are_each_alone(world):
    z, y, *_ = world
    both = scores(torch.stack([z, z.flip(0)]), y)
    for name, score in scores(z.flip(0), y).items():
        assert torch.equal(both[name][1], score)


# Yeom's decisions


def test_yeom_flags_losses_up_to_the_mean_training_loss(world):
    z, y, truth, shadow_z, member = world
    phi, shadow_phi = signals.phi(z, y), signals.phi(shadow_z, y)
    losses = [signals.loss(shadow_z[j], y) for j in range(len(member))]
    a = sum(l[w].sum() for l, w in zip(losses, member, strict=True)) / member.sum()
    assert torch.equal(yeom(phi, shadow_phi, member) >= 0, signals.loss(z, y) <= a)
    assert torch.equal(yeom(phi, shadow_phi, member, published=(0.3, 0.5)) >= 0, signals.loss(z, y) <= 0.3)


def test_half_normal_flags_where_the_training_density_is_the_higher(world):
    z, y, *_, member = world
    a, b = 0.2, 0.9
    l = signals.loss(z, y)
    got = yeom(signals.phi(z, y), torch.zeros(member.shape), member, rule="half_normal", published=(a, b))
    expected = halfnorm.pdf(l.numpy(), scale=a) >= halfnorm.pdf(l.numpy(), scale=b)
    assert 0 < expected.sum() < len(l)
    assert (got >= 0).tolist() == expected.tolist()


@pytest.mark.parametrize(("a", "b"), [(0.0, 1.0), (1e-300, 1e10), (0.5, 0.5 + 1e-15), (1e-5, 1.0)])
def test_half_normal_at_its_edges(a, b):
    score = yeom(
        torch.zeros(1), torch.zeros(2, 1), torch.eye(2, 1).bool(), rule="half_normal", published=(a, b)
    )
    t = score.item() + math.log(2)
    assert a * 0.999 - 1e-15 <= t <= b


def test_half_normal_falls_back_and_says_so():
    phi, member = torch.zeros(3), torch.eye(2, 3).bool()
    with pytest.warns(Floored, match="half_normal fell back to mean: 0.9 in, 0.2 out"):
        score = yeom(phi, torch.zeros(2, 3), member, rule="half_normal", published=(0.9, 0.2))
    assert score.tolist() == pytest.approx([0.9 - math.log(2)] * 3)


# Thresholds a class


def slow_threshold(score, member):
    """Every midpoint, and nobody, tried one after another; the first of the best, from the strictest on."""
    levels = sorted(set(score), reverse=True)
    tried = [levels[0]] + [(u + v) / 2 for u, v in zip(levels, levels[1:], strict=False)]
    n_pos = sum(member)

    def accuracy(tau):
        hits = sum(s > tau and w for s, w in zip(score, member, strict=True))
        alarms = sum(s > tau and not w for s, w in zip(score, member, strict=True))
        return hits * (len(member) - n_pos) - alarms * n_pos

    return max(tried, key=accuracy)


@pytest.mark.parametrize("sign", [1, -1], ids=["leaks", "upside down"])
@pytest.mark.parametrize("levels", [2, 7, 10_000])
def test_thresholds_equal_the_slow_search(levels, sign):
    g = stream(levels, sign)
    member = torch.rand(4, 60, generator=g) < 0.4
    y = torch.randint(3, (60,), generator=g)
    score = torch.randint(levels, (4, 60), generator=g).double() + sign * round(levels / 3) * member
    tau = thresholds(score, y, member, 3)
    for c in range(3):
        own, inside = score[:, y == c].flatten().tolist(), member[:, y == c].flatten().tolist()
        assert tau[c].item() == slow_threshold(own, inside)


def test_of_several_best_thresholds_the_strictest_is_taken():
    score, member = torch.tensor([[4.0, 3.0, 2.0, 1.0]]), torch.tensor([[True, False, True, False]])
    assert thresholds(score, torch.zeros(4).long(), member, 1).tolist() == [3.5]


def test_one_class_shifts_all_scores_alike():
    g = stream(0)
    score, shadow_score = torch.randn(50, generator=g), torch.randn(4, 50, generator=g)
    member = torch.rand(4, 50, generator=g) < 0.5
    y = torch.zeros(50).long()
    shifted = per_class(score, y, shadow_score, y, member)
    torch.testing.assert_close(shifted, score.double() - thresholds(shadow_score, y, member, 1)[0])


def test_a_class_dependent_offset_is_found_and_taken_from_the_shadows():
    g = stream(1)
    y, offset = torch.arange(900) % 3, torch.tensor([0.0, 40.0, -7.0])
    member, truth = torch.rand(8, 900, generator=g) < 0.5, torch.rand(900, generator=g) < 0.5
    shadow_score = offset[y] + 2 * member + torch.randn(8, 900, generator=g)
    score = offset[y] + 2 * truth + torch.randn(900, generator=g)
    found = per_class(score, y, shadow_score, y, member)
    assert auc(score, truth) < 0.7
    assert auc(found, truth) > 0.9
    assert ((found > 0) == truth).double().mean() > 0.8
    torch.testing.assert_close(
        thresholds(shadow_score, y, member, 3), (offset + 1).double(), atol=0.2, rtol=0
    )
    moved = per_class(score + 3, y, shadow_score, y, member)  # the target's own level is never read
    torch.testing.assert_close(moved, found + 3, atol=1e-5, rtol=1e-5)


def test_a_class_without_both_sides_uses_the_threshold_of_all():
    score, member = torch.tensor([[1.0, 2.0, 5.0, 6.0]]), torch.tensor([[False, True, True, True]])
    y = torch.tensor([0, 0, 1, 1])
    with pytest.warns(Floored, match="2 of 3 classes without both sides"):
        assert thresholds(score, y, member, 3).tolist() == [1.5, 1.5, 1.5]


def test_equal_scores_flag_nobody():
    y, member = torch.zeros(4).long(), torch.tensor([[True, False, True, False]])
    found = per_class(torch.full((4,), 2.0), y, torch.full((1, 4), 2.0), y, member)
    assert found.tolist() == [0.0] * 4
    assert tpr_at_fpr(found, member[0], 0.5).tpr == 0


def test_refuses_what_has_no_answer():
    y, member = torch.zeros(2).long(), torch.ones(1, 2).bool()
    with pytest.raises(ValueError, match="z must hold two classes or more, got 1"):
        baseline.correctness(torch.zeros(2, 1), y)
    with pytest.raises(ValueError, match="z must be finite, got 1 "):
        baseline.entropy(torch.tensor([[torch.nan, 0.0]]))
    with pytest.raises(ValueError, match="phi must be finite, got 1 "):
        baseline.loss(torch.tensor([torch.inf, 0.0]))
    with pytest.raises(ValueError, match="shadow_member must hold both sides, got 2 of 2 in"):
        thresholds(torch.zeros(1, 2), y, member, 1)
    with pytest.raises(ValueError, match="shadow_member must hold both sides, got 2 of 2 in"):
        yeom(torch.zeros(2), torch.zeros(1, 2), member)
    with pytest.raises(ValueError, match="published must hold two finite losses"):
        yeom(torch.zeros(2), torch.zeros(1, 2), member, published=(-1.0, 1.0))


def test_arguments_are_left_alone(world):
    z, y, truth, shadow_z, member = world
    held = [z, y, truth, shadow_z, member]
    before = [t.clone() for t in held]
    scores(z, y)
    S = signals.phi(shadow_z, y)
    per_class(signals.phi(z, y), y, S, y, member)
    yeom(signals.phi(z, y), S, member)
    assert all(torch.equal(a, b) for a, b in zip(before, held, strict=True))
