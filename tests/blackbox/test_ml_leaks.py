import math

import pytest
import torch
from worlds import ridge

from blackbox.ml_leaks import confidence_max, learn, ml_leaks
from blackbox.mlps import Training
from glasslab.metrics import above, auc, balanced
from glasslab.split import shadow_rows, stream

QUICK = Training(epochs=12, lr=0.02)


def planted(leak=2.0, n=3000, c=5, seed=0, share=0.5):
    """(p, truth, shadow_p, shadow_member): a random class's logit is 2 higher for members."""
    g = stream(seed, "planted")
    member = torch.rand(2, n, generator=g) < share if share != 0.5 else shadow_rows(2, n, seed)
    z = torch.randn(2, n, c, generator=g)
    top = torch.randint(c, (2, n, 1), generator=g)
    p = z.scatter_add(-1, top, leak * member[..., None].float()).double().softmax(-1)
    return p[0], member[0], p[1:], member[1:]


def errors(score, truth):
    """Standard errors between the AUC and 1/2."""
    n_pos, n = int(truth.sum()), len(truth)
    return (auc(score, truth) - 0.5) / ((n + 1) / (12 * n_pos * (n - n_pos))) ** 0.5


def textbook(p, mlp):
    """Sorts, standardises and goes through the MLP one record and one unit at a time."""
    w1, b1, w2, b2 = (w[0].double().tolist() for w in mlp.weights)
    mean, spread = mlp.mean[0].tolist(), mlp.spread[0].tolist()
    scores = []
    for row in p.tolist():
        top = sorted(row, reverse=True)[:3]
        x = [(v - a) / b for v, a, b in zip(top, mean, spread, strict=True)]
        h = [max(0.0, b1[0][u] + sum(v * w1[i][u] for i, v in enumerate(x))) for u in range(len(b1[0]))]
        z = [b2[0][k] + sum(v * w2[u][k] for u, v in enumerate(h)) for k in (0, 1)]
        scores.append(1 / (1 + math.exp(z[0] - z[1])))
    return torch.tensor(scores, dtype=torch.float64)


@pytest.mark.parametrize("c", [2, 3, 5])
def test_equals_the_textbook_loop(c):
    p, _, shadow_p, member = planted(n=400, c=c)
    p = p.round(decimals=1)  # ties among the largest
    model = learn(shadow_p, member, generator=stream(0), hidden=7, training=QUICK)
    torch.testing.assert_close(model(p[:20]), textbook(p[:20], model.mlp), rtol=1e-9, atol=1e-9)
    again = ml_leaks(p[:20], shadow_p, member, generator=stream(0), hidden=7, training=QUICK)
    assert torch.equal(again, model(p[:20]))


def test_finds_a_planted_leak_and_decides_at_one_half():
    game, truth = ridge(leaks=True, seed=0)
    S, member = game.shadows.z[:1, :, 0].double().softmax(-1), game.shadows.inside[:1]
    score = ml_leaks(game.oracle(game.x), S, member, generator=stream(0), training=QUICK)
    assert auc(score, truth) > 0.65
    assert balanced(above(score, truth, 0.5)) > 0.6
    assert 0 <= score.min() < score.max() <= 1


@pytest.mark.parametrize("c", [2, 3, 5])
def test_finds_a_leak_that_has_no_class_and_nothing_where_nothing_is(c):
    p, truth, shadow_p, member = planted(c=c)
    assert auc(ml_leaks(p, shadow_p, member, generator=stream(0), training=QUICK), truth) > 0.65
    p, truth, shadow_p, member = planted(leak=0.0, c=c)
    assert abs(errors(ml_leaks(p, shadow_p, member, generator=stream(0), training=QUICK), truth)) < 4


def test_shuffled_membership_teaches_nothing():
    """Of what leaks it learns either sign, as chance has it: on average neither."""
    p, truth, shadow_p, member = planted(n=600)
    areas = []
    for i in range(16):
        g = stream(i, "shuffle")
        shuffled = member[:, torch.randperm(600, generator=g)]
        areas.append(auc(ml_leaks(p, shadow_p, shuffled, generator=g, training=QUICK), truth))
    mean, spread = torch.tensor(areas).mean(), torch.tensor(areas).std()
    assert abs(mean - 0.5) < 4 * spread / 16**0.5
    assert abs(mean - 0.5) < 0.2


def test_permuted_candidates_have_permuted_scores_and_classes_have_no_name():
    p, _, shadow_p, member = planted(n=300)
    model = learn(shadow_p, member, generator=stream(0), training=QUICK)
    rows = torch.randperm(300, generator=stream(1))
    torch.testing.assert_close(model(p[rows]), model(p)[rows])
    torch.testing.assert_close(model(p[:, [3, 1, 4, 2, 0]]), model(p))


def test_three_largest_are_all_it_looks_at():
    p, _, shadow_p, member = planted(n=300)
    model = learn(shadow_p, member, generator=stream(0), training=QUICK)
    order = p.argsort(-1, descending=True)
    emptied = p.scatter(-1, order[:, 3:], 0.0)
    assert torch.equal(model(emptied), model(p))
    third = p.scatter(-1, order[:, 2:], 0.0)
    assert not torch.allclose(model(third), model(p), atol=1e-3)


def test_members_and_others_are_balanced_and_the_last_record_counts():
    p, _, shadow_p, member = planted(share=0.9, leak=0.0)
    score = ml_leaks(p, shadow_p, member, generator=stream(0), training=QUICK)
    assert abs(score.mean() - 0.5) < 0.1  # not the share of members
    lone = torch.zeros(1, 40).bool()
    lone[0, -1] = True
    shadow_p = torch.tensor([0.4, 0.3, 0.3]).double().expand(1, 40, 3).clone()
    shadow_p[0, -1] = torch.tensor([1.0, 0.0, 0.0])
    score = ml_leaks(shadow_p[0], shadow_p, lone, generator=stream(0))
    assert score[-1] > 0.9
    assert score[:-1].max() < 0.1


def test_all_targets_at_once_are_each_alone_and_the_shadows_records_need_not_be_the_candidates():
    p, _, shadow_p, member = planted(n=300)
    together = ml_leaks(p.reshape(2, 3, 50, 5), shadow_p, member, generator=stream(0), training=QUICK)
    alone = ml_leaks(p[200:250], shadow_p, member, generator=stream(0), training=QUICK)
    torch.testing.assert_close(together[1, 1], alone)


def test_randomness_comes_from_the_generator_alone_and_arguments_are_left():
    p, _, shadow_p, member = planted(n=300)
    held = [t.clone() for t in (p, shadow_p, member)]
    before = torch.get_rng_state()
    scores = [ml_leaks(p, shadow_p, member, generator=stream(s), training=QUICK) for s in (0, 0, 1)]
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(scores[0], scores[1])
    assert not torch.equal(scores[0], scores[2])
    assert all(torch.equal(a, b) for a, b in zip(held, (p, shadow_p, member), strict=True))


def test_constant_answers_have_equal_scores_and_one_pair_will_do():
    p = torch.full((4, 3), 1 / 3, dtype=torch.float64)
    member = torch.tensor([[True, False, False, True]])
    score = ml_leaks(p, p[None], member, generator=stream(0), training=QUICK)
    assert score.unique().numel() == 1
    assert ml_leaks(p, p[None, :2], member[:, :2], generator=stream(0), training=QUICK).isfinite().all()


def test_refuses_what_it_cannot_learn_from():
    p, _, shadow_p, member = planted(n=60)
    g = stream(0)
    with pytest.raises(ValueError, match="shadow_p must hold 1 shadow, got 2"):
        ml_leaks(p, shadow_p.expand(2, -1, -1), member.expand(2, -1), generator=g)
    with pytest.raises(ValueError, match="shadow_member must hold both sides, got 60 of 60 in"):
        learn(shadow_p, torch.ones_like(member), generator=g)
    with pytest.raises(ValueError, match="shadow_p must hold two classes or more, got 1"):
        learn(shadow_p[..., :1], member, generator=g)
    with pytest.raises(ValueError, match="shadow_p must be finite, got 5 NaN"):
        learn(shadow_p.index_fill(1, torch.tensor(3), torch.nan), member, generator=g)
    model = learn(shadow_p, member, generator=g, training=QUICK)
    with pytest.raises(ValueError, match="^p must be finite, got 5 NaN"):
        model(p.index_fill(0, torch.tensor(3), torch.inf))
    with pytest.raises(ValueError, match="p must have its 3 largest as the shadow, got 2 classes"):
        model(p[:, :2])
    with pytest.raises(ValueError, match="z must be finite"):
        confidence_max(p.log().index_fill(0, torch.tensor(3), torch.nan))
    with pytest.raises(ValueError, match="z must hold two classes or more, got 1"):
        confidence_max(p[:, :1])


def test_confidence_max_is_the_logarithm_of_the_largest_probability():
    z = torch.randn(2, 3, 20, 4, generator=stream(0))
    z[..., 1] = z[..., 0]  # ties
    score = confidence_max(z)
    for a, b, i in ((0, 0, 0), (1, 2, 19), (0, 1, 7)):
        e = [math.exp(v) for v in z[a, b, i].tolist()]
        assert score[a, b, i].item() == pytest.approx(math.log(max(e) / sum(e)), rel=1e-12)
    torch.testing.assert_close(confidence_max(z.log_softmax(-1)), score, rtol=0, atol=1e-6)
    assert score.dtype == torch.float64


def test_confidence_max_keeps_its_tail_and_its_argument():
    z = torch.zeros(4, 10)
    z[:, 3] = torch.tensor([5.0, 60.0, 200.0, 700.0])
    held = z.clone()
    score = confidence_max(z)
    assert (score.diff() > 0).all()
    assert score.tolist() == pytest.approx([-math.log1p(9 * math.exp(-v)) for v in (5, 60, 200, 700)])
    assert torch.equal(z, held)
    assert confidence_max(1e4 * z).isfinite().all()
