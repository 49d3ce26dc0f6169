import math
import warnings

import pytest
import torch
from scipy.stats import spearmanr
from worlds import gaussian, ridge

from blackbox.base import base, base_offline
from blackbox.rmia import log_confidence, rmia, rmia_offline
from glasslab.checks import Floored
from glasslab.metrics import auc, tpr_at_fpr
from glasslab.split import leave_one_out, shadow_rows, stream, target_rows

FORMS = {"online": base, "offline": base_offline}
forms = pytest.mark.parametrize("form", FORMS)


def world(m=8, n=20, seed=0, k=None):
    """(log_p, shadow_log_p, shadow_member), half of the models in."""
    g = stream(seed, "base")
    shape = (n,) if k is None else (k, n)
    log_p, S = (
        torch.nn.functional.logsigmoid(2 * torch.randn(*size, generator=g, dtype=torch.float64))
        for size in (shape, (m, *shape))
    )
    return log_p, S, shadow_rows(m, n, seed)


def uneven(m=7, n=20, seed=0):
    """Other counts for each record, at least one model a side."""
    log_p, S, _ = (
        world(m, n, seed) if m % 2 == 0 else [t[:m] if t.ndim > 1 else t for t in world(m + 1, n, seed)]
    )
    member = torch.rand(m, n, generator=stream(seed, "uneven")) < 0.35
    member[:2] = torch.tensor([[True], [False]])
    return log_p, S, member


def textbook(log_p, S, member, form, a=0.33):
    """Probabilities and lists; one side alone where the other is empty."""
    scores = []
    for i in range(member.shape[1]):
        inside, outside = ([j for j in range(len(member)) if member[j, i] == side] for side in (True, False))
        least = min(len(inside), len(outside)) or len(member)
        used = inside[:least] + outside[:least] if form == "online" else outside
        asked, shadows = (log_p[None], S[:, None]) if log_p.ndim == 1 else (log_p, S)
        ratios = []
        for q in range(len(asked)):
            p_x = math.fsum(math.exp(shadows[j, q, i]) for j in used) / len(used)
            ratios.append(asked[q, i].item() - (1.0 if form == "online" else a) * math.log(p_x))
        scores.append(math.fsum(ratios) / len(ratios))
    return torch.tensor(scores, dtype=torch.float64)


@forms
@pytest.mark.parametrize("make", [world, uneven, lambda: world(k=3)], ids=["even", "uneven", "queries"])
def test_equals_the_textbook_loop(make, form):
    inputs = make()
    torch.testing.assert_close(FORMS[form](*inputs), textbook(*inputs, form), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("a", [0.0, 0.5, 1.0])
def test_offline_equals_the_textbook_loop_for_each_a(a):
    inputs = uneven()
    slow = textbook(*inputs, "offline", a)
    torch.testing.assert_close(base_offline(*inputs, a=a), slow, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("m", [1, 3])
@pytest.mark.parametrize("seed", range(3))
def test_works_from_one_shadow_and_from_three(m, seed):
    """Coins: some records have all models on one side, which then stands alone and is counted."""
    log_p, S, _ = world(m=4, seed=seed)
    S, member = S[:m], target_rows(m, 20, seed)
    lone = int((member.all(0) | ~member.any(0)).sum())
    with pytest.warns(Floored, match=f"{lone} of 20 records have models on one side alone"):
        score = base(log_p, S, member)
    torch.testing.assert_close(score, textbook(log_p, S, member, "online"), rtol=1e-12, atol=1e-12)
    out = ~member.all(0)
    left = base_offline(log_p[out], S[:, out], member[:, out])  # one, two or three models out
    torch.testing.assert_close(left, textbook(log_p[out], S[:, out], member[:, out], "offline"))


def test_one_shadow_gives_the_difference_of_log_p():
    log_p, S, _ = world(m=2)
    none_in = torch.zeros(1, 20, dtype=torch.bool)
    with pytest.warns(Floored, match="20 of 20"):
        assert torch.equal(base(log_p, S[:1], none_in), log_p - S[0])
    with pytest.warns(Floored, match="20 of 20"):
        assert torch.equal(base(log_p, S[:1], ~none_in), log_p - S[0])
    torch.testing.assert_close(base_offline(log_p, S[:1], none_in), log_p - 0.33 * S[0])


def test_both_sides_are_there_in_a_balanced_design_and_nothing_is_counted():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        base(*world(m=2))


def test_equal_numbers_of_both_sides_the_first_in_model_order():
    log_p, S, _ = world(m=8)
    member = torch.zeros(8, 20, dtype=torch.bool)
    member[[2, 5, 6]] = True
    score, kept = base(log_p, S, member), [0, 1, 2, 3, 5, 6]
    torch.testing.assert_close(score, log_p - S[kept].exp().mean(0).log(), rtol=0, atol=1e-14)
    assert not torch.allclose(score, log_p - S.exp().mean(0).log(), atol=1e-3)


@forms
@pytest.mark.parametrize("copies", ["one after another", "all, then all again"])
def test_each_shadow_twice_changes_nothing(copies, form):
    log_p, S, member = world()
    twice = (
        (t.repeat_interleave(2, 0) if copies == "one after another" else t.repeat(2, 1)) for t in (S, member)
    )
    torch.testing.assert_close(FORMS[form](log_p, *twice), FORMS[form](log_p, S, member), rtol=0, atol=1e-14)


def test_each_shadow_twice_in_its_place_changes_nothing_where_counts_differ():
    log_p, S, member = uneven()
    for attack in (base, base_offline):
        twice = attack(log_p, S.repeat_interleave(2, 0), member.repeat_interleave(2, 0))
        torch.testing.assert_close(twice, attack(log_p, S, member), rtol=0, atol=1e-14)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("m", [2, 4, 16])
def test_never_ranks_against_rmia(m, seed):
    g = stream(seed, "spearman")
    log_p, S, member = world(m, 300, seed)
    aux, S_aux = (-torch.rand(*size, generator=g, dtype=torch.float64) * 3 for size in ((200,), (m, 200)))
    untied = base(log_p, S, member)
    steps = rmia(log_p, aux, S, S_aux, member, trim=0.0)
    assert (steps[untied.argsort()].diff() >= 0).all()
    assert spearmanr(untied, steps).statistic > 0.95
    trimmed = rmia(log_p, aux, S, S_aux, member)
    assert spearmanr(untied, trimmed).statistic > 0.9
    offline = rmia_offline(log_p, aux, S, S_aux, member, trim=0.0, a=1.0)
    assert spearmanr(base_offline(log_p, S, member, a=1.0), offline).statistic > 0.95


@pytest.mark.parametrize("a", [0.0, 1.0])
def test_offline_ranges_from_the_targets_own_p_to_the_difference(a):
    log_p, S, member = uneven()
    outside = torch.stack([S[~w, i].exp().mean().log() for i, w in enumerate(member.T)])
    torch.testing.assert_close(base_offline(log_p, S, member, a=a), log_p - a * outside)


@forms
def test_tails_are_kept_where_every_p_underflows(form):
    log_p, S, member = world()
    deep = FORMS[form](log_p, S - 1000, member)
    shift = 1000 if form == "online" else 330
    torch.testing.assert_close(deep, FORMS[form](log_p, S, member) + shift, rtol=1e-12, atol=0)
    near = -torch.logspace(-300, -20, 20, dtype=torch.float64)  # p of 1, to all digits
    assert (FORMS[form](near, torch.zeros_like(S), member).diff() < 0).all()


@forms
def test_copies_of_one_query_change_nothing(form):
    log_p, S, member = world()
    thrice = FORMS[form](log_p.expand(3, -1), S[:, None].expand(-1, 3, -1), member)
    torch.testing.assert_close(thrice, FORMS[form](log_p, S, member), rtol=1e-12, atol=1e-14)


@forms
def test_queries_are_averaged_after_the_ratio(form):
    log_p, S, member = world(k=2)
    single = [FORMS[form](log_p[q], S[:, q], member) for q in (0, 1)]
    torch.testing.assert_close(FORMS[form](log_p, S, member), (single[0] + single[1]) / 2)


@forms
def test_all_targets_at_once_are_each_alone(form):
    _, S, member = world(k=2)
    log_p = -torch.rand(2, 3, 2, 20, generator=stream(0))
    together = FORMS[form](log_p, S, member)
    assert together.shape == (2, 3, 20)
    for i in range(2):
        for j in range(3):
            assert torch.equal(together[i, j], FORMS[form](log_p[i, j], S, member))
    flat = FORMS[form](log_p[0, :, 0], S[:, 0], member)  # no axis of queries
    assert torch.equal(flat[1], FORMS[form](log_p[0, 1, 0], S[:, 0], member))


@forms
def test_chunks_do_not_show(form, monkeypatch):
    inputs = world(k=2)
    whole = FORMS[form](*inputs)
    monkeypatch.setattr("glasslab.moments.VALUES", 3 * 2 * 8)
    assert torch.equal(FORMS[form](*inputs), whole)


@forms
def test_the_order_of_records_and_of_shadows_does_not_matter(form):
    log_p, S, member = world(n=30)
    g = stream(0)
    rows, models = torch.randperm(30, generator=g), torch.randperm(8, generator=g)
    moved = FORMS[form](log_p[rows], S[models][:, rows], member[models][:, rows])
    torch.testing.assert_close(moved, FORMS[form](log_p, S, member)[rows], rtol=1e-12, atol=1e-14)


def test_the_complement_changes_nothing_online():
    log_p, S, member = world()
    assert torch.equal(base(log_p, S, member), base(log_p, S, ~member))


@forms
def test_arguments_are_left_alone_and_float32_is_scored_as_its_double(form):
    inputs = [t.float() if t.is_floating_point() else t for t in world()]
    copies = [t.clone() for t in inputs]
    score = FORMS[form](*inputs)
    assert all(torch.equal(a, b) for a, b in zip(inputs, copies, strict=True))
    assert torch.equal(score, FORMS[form](*[t.double() if t.is_floating_point() else t for t in inputs]))


@forms
def test_a_constant_signal_gives_equal_scores(form):
    log_p, S, member = uneven()
    assert len(FORMS[form](torch.full_like(log_p, -0.7), torch.full_like(S, -0.7), member).unique()) == 1


@forms
def test_finds_a_planted_leak_and_nothing_where_nothing_is(form):
    for leaks in (True, False):
        game, truth = ridge(leaks=leaks, seed=0)
        S = log_confidence(game.shadows.z[:, :, 0], game.y)
        area = auc(
            FORMS[form](log_confidence(game.model(game.x).detach(), game.y), S, game.shadows.inside), truth
        )
        assert area > 0.65 if leaks else abs(area - 0.5) < 4 * math.sqrt(1 / (3 * 400))


@forms
@pytest.mark.parametrize("m", [2, 6])
def test_a_null_world_is_calibrated(m, form):
    n, worlds, rates, areas = 1000, 10, [], []
    for seed in range(worlds):
        truth, score = target_rows(1, n, seed)[0], FORMS[form](*world(m, n, seed))
        point = tpr_at_fpr(score, truth, 0.1)
        rates.append(point.tpr - point.fpr)
        areas.append(auc(score, truth) - 0.5)
    assert abs(sum(rates) / worlds - 1 / (n / 2)) < 4 * math.sqrt(0.1 * 0.9 * 4 / n / worlds)
    assert abs(sum(areas) / worlds) < 4 * math.sqrt(1 / (3 * n * worlds))


def test_a_shadow_without_its_complement_as_target_tells_nothing():
    n = 20_000
    _, S, member = world(6, n)
    rest, inside = leave_one_out(0, S, member)
    scores = [base(S[0], rest, inside), base(S[0], S[2:], member[2:]), base_offline(S[0], S[2:], member[2:])]
    for score in scores:
        assert abs(auc(score, member[0]) - 0.5) < 4 * math.sqrt(1 / (3 * n))


def test_beats_the_plain_loss_where_records_differ_in_difficulty():
    phi, S, member, truth = gaussian(1.0, m=16, n=4000)
    log_p, S = (torch.nn.functional.logsigmoid(t) for t in (phi, S))
    assert auc(base(log_p, S, member), truth) > auc(log_p, truth) + 0.05
    assert auc(base_offline(log_p, S, member), truth) > auc(log_p, truth)


def test_two_targets_in_one_process_are_separate_runs():
    first = base(*world(seed=0))
    base(*world(12, 30, seed=1))
    assert torch.equal(first, base(*world(seed=0)))


def test_refuses_what_it_cannot_do():
    log_p, S, member = world()
    lone = member.clone()
    lone[:, 7] = True
    with pytest.raises(ValueError, match="1[+] models out of each record, got 0 for record 7"):
        base_offline(log_p, S, lone)
    with pytest.raises(ValueError, match="1[+] models, got 0"):
        base(log_p, S[:0], member[:0])
    with pytest.raises(ValueError, match="1[+] models out of each record, got 0 for record 0"):
        base_offline(log_p, S[:0], member[:0])
    with pytest.raises(ValueError, match="a must be in .0, 1., got 1.2"):
        base_offline(log_p, S, member, a=1.2)


@forms
@pytest.mark.parametrize("bad", [float("nan"), -math.inf, math.inf])
def test_nan_and_infinity_are_refused(bad, form):
    log_p, S, member = world()
    wrong = [t.index_fill(-1, torch.tensor(3), bad) for t in (log_p, S)]
    with pytest.raises(ValueError, match="log_p must be finite, got 1 "):
        FORMS[form](wrong[0], S, member)
    with pytest.raises(ValueError, match="shadow_log_p must be finite, got NaN or infinity for record 3"):
        FORMS[form](log_p, wrong[1], member)


@forms
def test_shapes_are_checked(form):
    log_p, S, member = world()
    with pytest.raises(Exception, match="shadow_log_p"):
        FORMS[form](log_p, S.T, member)
    with pytest.raises(ValueError, match="log_p must end in .2, 20. as shadow_log_p, got .20."):
        FORMS[form](log_p, S[:, None].expand(-1, 2, -1), member)
