import pytest
import torch
from worlds import ridge

from blackbox.mlps import Training
from blackbox.shadow import _pairs, _parted, attack_model, shadow
from glasslab.checks import Floored
from glasslab.metrics import above, auc, balanced
from glasslab.split import shadow_rows, stream

QUICK = Training(epochs=12, lr=0.02)
variants = pytest.mark.parametrize("per_class", [True, False], ids=["an MLP a class", "one MLP"])


def answers(leaks=True, seed=0):
    """(p, y, truth) of a target, and its shadows' (p, member)."""
    game, truth = ridge(leaks=leaks, seed=seed)
    p = game.oracle(game.x)
    return p, game.y, truth, game.shadows.z[:, :, 0].double().softmax(-1), game.shadows.inside


def planted(leaky, m=8, n=3000, c=5, seed=0):
    """(p, y, truth, shadow_p, member): the label's logit is 2 higher for members of the classes `leaky`."""
    g = stream(seed, "planted")
    y, member = torch.arange(n) % c, shadow_rows(m, n, seed)
    z = torch.randn(m, n, c, generator=g)
    leak = 2.0 * (member & torch.isin(y, torch.tensor(leaky)))
    p = z.scatter_add(-1, y.expand(m, n)[..., None], leak[..., None]).double().softmax(-1)
    return p[0], y, member[0], p[1:], member[1:]


def errors(score, truth):
    """Standard errors between the AUC and 1/2."""
    n_pos, n = int(truth.sum()), len(truth)
    return (auc(score, truth) - 0.5) / ((n + 1) / (12 * n_pos * (n - n_pos))) ** 0.5


@variants
@pytest.mark.parametrize("features", ["probability", "log"])
def test_finds_a_planted_leak_and_decides_at_one_half(per_class, features):
    p, y, truth, shadow_p, member = answers()
    settings = {"features": features, "per_class": per_class, "pairs": 1500}
    score = shadow(p, y, shadow_p, y, member, generator=stream(0), **settings)
    assert auc(score, truth) > 0.8
    assert balanced(above(score, truth, 0.5)) > 0.7
    assert 0 <= score.min() < score.max() <= 1


@variants
def test_lights_up_the_class_that_leaks_and_no_other(per_class):
    p, y, truth, shadow_p, member = planted([3], n=10_000)
    score = shadow(p, y, shadow_p, y, member, generator=stream(0), per_class=per_class, training=QUICK)
    assert auc(score[y == 3], truth[y == 3]) > (0.8 if per_class else 0.7)  # sorted, it loses its place
    for k in (0, 1, 2, 4):
        assert abs(errors(score[y == k], truth[y == k])) < 4


@variants
def test_nothing_is_found_where_nothing_is(per_class):
    p, y, truth, shadow_p, member = planted([], n=10_000)
    score = shadow(p, y, shadow_p, y, member, generator=stream(0), per_class=per_class, training=QUICK)
    assert abs(errors(score, truth)) < 4


@variants
def test_shuffled_membership_teaches_nothing(per_class):
    """Of what leaks it learns either sign, as chance has it: on average neither."""
    p, y, truth, shadow_p, member = planted([0, 1, 2], n=300, c=3)
    areas = []
    for i in range(16):
        g = stream(i, "shuffle")
        shuffled = torch.stack([row[torch.randperm(300, generator=g)] for row in member])
        model = attack_model(
            shadow_p, y, shuffled, generator=g, per_class=per_class, pairs=300, training=QUICK
        )
        areas.append(auc(model(p, y), truth))
    mean, spread = torch.tensor(areas).mean(), torch.tensor(areas).std()
    assert abs(mean - 0.5) < 4 * spread / 16**0.5
    assert abs(mean - 0.5) < 0.15 < auc(shadow(p, y, shadow_p, y, member, generator=stream(0)), truth) - 0.5


@variants
def test_the_order_of_candidates_does_not_matter(per_class):
    p, y, _, shadow_p, member = planted([0], n=300)
    model = attack_model(shadow_p, y, member, generator=stream(0), per_class=per_class, training=QUICK)
    rows = torch.randperm(300, generator=stream(1))
    torch.testing.assert_close(model(p[rows], y[rows]), model(p, y)[rows], rtol=1e-9, atol=1e-12)


@variants
def test_trained_once_it_serves_all_targets(per_class):
    p, y, _, shadow_p, member = planted([0], n=300)
    settings = {"per_class": per_class, "training": QUICK}
    model = attack_model(shadow_p, y, member, generator=stream(0), **settings)
    both = model(torch.stack([p, shadow_p[0]]), y)
    torch.testing.assert_close(both[0], shadow(p, y, shadow_p, y, member, generator=stream(0), **settings))
    torch.testing.assert_close(both[1], model(shadow_p[0], y))


def test_the_one_mlp_sees_sorted_answers_and_the_label():
    p, y, _, shadow_p, member = planted([0], n=300)
    model = attack_model(shadow_p, y, member, generator=stream(0), per_class=False, training=QUICK)
    torch.testing.assert_close(model(p[:, [3, 1, 4, 2, 0]], y), model(p, y))
    assert not torch.allclose(model(p, (y + 1) % 5), model(p, y), atol=1e-3)


@variants
def test_log_features_are_the_logarithms(per_class):
    p, y, _, shadow_p, member = planted([0], n=300)
    settings = {"per_class": per_class, "training": QUICK}
    one = attack_model(shadow_p, y, member, generator=stream(0), features="log", **settings)
    two = attack_model(shadow_p.log(), y, member, generator=stream(0), **settings)
    assert torch.equal(one(p, y), two(p.log(), y))
    assert one(torch.eye(5).double()[y], y).isfinite().all()  # a 0 has a logarithm to speak of


def test_an_mlp_a_class_sees_answers_in_their_order():
    p, y, _, shadow_p, member = planted([0], n=300)
    model = attack_model(shadow_p, y, member, generator=stream(0), training=QUICK)
    assert not torch.allclose(model(p[:, [3, 1, 4, 2, 0]], y), model(p, y), atol=1e-3)


def test_the_records_of_the_shadows_need_not_be_the_candidates():
    p, y, truth, *_ = answers(seed=1)
    *_, shadow_p, member = answers(seed=0)
    game, _ = ridge(leaks=True, seed=0)
    score = shadow(p[:150], y[:150], shadow_p, game.y, member, generator=stream(0), training=QUICK)
    assert auc(score, truth[:150]) > 0.8


# What the MLPs learn from


def test_pairs_are_balanced_distinct_and_of_their_class():
    _, y, _, _, member = planted([0], n=301)
    models = torch.tensor([1, 4, 6])
    drawn = _pairs(y, member, models, 5, 10**6, stream(0))
    for k, pairs in enumerate(drawn):
        model, record = pairs.T
        assert len({*map(tuple, pairs.tolist())}) == len(pairs)
        assert torch.isin(model, models).all()
        assert (y[record] == k).all()
        inside = member[model, record]
        size = min(int(member[models][:, y == k].sum()), int((~member[models][:, y == k]).sum()))
        assert int(inside.sum()) == int((~inside).sum()) == size
    assert 300 in drawn[0][:, 1]  # the last record too
    assert [len(pairs) for pairs in _pairs(y, member, models, 5, 31, stream(0))] == [30] * 5


def test_held_out_shadows_hold_both_sides_or_there_are_none():
    member = shadow_rows(40, 50, 0)
    kept, held = _parted(member, stream(0))
    assert len(held) == 4
    assert sorted([*kept.tolist(), *held.tolist()]) == list(range(40))
    sides = torch.arange(40)[:, None].expand(-1, 50) < 20  # as leave-one-out leaves them
    for seed in range(20):
        _, held = _parted(sides, stream(seed))
        assert sides[held].any(1).sum() == 2
    for few in (member[:1], sides[[0, -1]]):
        kept, held = _parted(few, stream(0))
        assert (len(kept), len(held)) == (len(few), 0)


def test_a_single_shadow_will_do():
    p, y, truth, shadow_p, member = planted([0, 1, 2, 3, 4], m=2)
    assert len(shadow_p) == 1
    assert auc(shadow(p, y, shadow_p, y, member, generator=stream(0), training=QUICK), truth) > 0.7


def test_a_small_class_goes_by_the_mlp_for_all_and_is_counted():
    p, y, _, shadow_p, member = planted([0, 1], n=600, c=4)
    few = (y != 2) | (torch.arange(600) < 20)  # 5 records of class 2
    settings = {"generator": stream(0), "training": QUICK}
    with pytest.warns(Floored, match="1 of 4 classes go by the one MLP for all"):
        model = attack_model(shadow_p[:, few], y[few], member[:, few], **settings)
    assert model.place.tolist() == [0, 1, -1, 2]
    rows = y == 2
    torch.testing.assert_close(model(p[rows][:, [2, 0, 1, 3]], y[rows]), model(p[rows], y[rows]))  # sorted
    assert model(p, y).isfinite().all()


def test_randomness_comes_from_the_generator_alone_and_arguments_are_left():
    p, y, _, shadow_p, member = planted([0], n=300)
    held = [t.clone() for t in (p, y, shadow_p, member)]
    before = torch.get_rng_state()
    scores = [shadow(p, y, shadow_p, y, member, generator=stream(s), training=QUICK) for s in (0, 0, 1)]
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(scores[0], scores[1])
    assert not torch.equal(scores[0], scores[2])
    assert all(torch.equal(a, b) for a, b in zip(held, (p, y, shadow_p, member), strict=True))


def test_refuses_what_it_cannot_learn_from():
    p, y, _, shadow_p, member = planted([0], n=300)
    g = stream(0)
    with pytest.raises(ValueError, match=r"y must lie in 0 .. 4, got labels from 0 to 5"):
        shadow(p, y, shadow_p, y + (y == 4), member, generator=g)
    with pytest.raises(ValueError, match="p must be finite, got 1500 NaN"):
        attack_model(shadow_p.index_fill(0, torch.tensor(1), torch.nan), y, member, generator=g)
    with pytest.raises(ValueError, match="both sides of a class, got no such class in 7 models"):
        shadow(p, y, shadow_p, y, torch.ones_like(member), generator=g)
    with pytest.raises(ValueError, match="p must hold 2 classes, got 1"):
        attack_model(shadow_p[..., :1], y * 0, member, generator=g)
