import math
from statistics import fmean

import pytest
import torch
from worlds import gaussian, ridge

from blackbox.base import base, base_offline
from blackbox.rmia import log_confidence, rmia, rmia_offline, sm_taylor, tune
from glasslab.metrics import auc, tpr_at_fpr
from glasslab.split import leave_one_out, shadow_rows, stream, target_rows

FORMS = {"online": rmia, "offline": rmia_offline}
forms = pytest.mark.parametrize("form", FORMS)
queries = pytest.mark.parametrize("queries", ["mean", "vote"])


def world(m=10, n=20, a=30, seed=0, k=None, uneven=False):
    """(log_p, log_p_aux, shadow_log_p, shadow_log_p_aux, shadow_member); a third of the z are equal."""
    g = stream(seed, "rmia")
    shape = (n,) if k is None else (k, n)
    member = torch.rand(m, n, generator=g) < 0.4 if uneven else shadow_rows(m, n, seed)
    member[:2] = torch.tensor([[True], [False]])  # both sides are there

    def drawn(*size):
        return torch.nn.functional.logsigmoid(2 * torch.randn(*size, generator=g, dtype=torch.float64))

    aux, shadow_aux = drawn(a), drawn(m, a)
    aux[: a // 3], shadow_aux[:, : a // 3] = aux[-1], shadow_aux[:, -1:]
    return drawn(*shape), aux, drawn(m, *shape), shadow_aux, member


def trimmed(values, trim):
    cut = math.floor(round(trim * len(values), 9))
    return fmean(sorted(values)[cut : len(values) - cut])


def textbook(log_p, log_p_aux, S, S_aux, member, gamma, trim, a, form, queries="mean"):
    """All pairs (x, z), with lists of probabilities."""
    m, n = member.shape
    p_z = [((1 + a) * trimmed(S_aux[:, z].exp().tolist(), trim) + 1 - a) / 2 for z in range(S_aux.shape[1])]
    r_z = [math.exp(log_p_aux[z]) / p_z[z] for z in range(len(p_z))]
    asked, S = (log_p[None], S[:, None]) if log_p.ndim == 1 else (log_p, S)
    scores = []
    for i in range(n):
        inside, outside = ([j for j in range(m) if member[j, i] == side] for side in (True, False))
        least = min(len(inside), len(outside))
        used = inside[:least] + outside[:least] if form == "online" else outside
        votes = []
        for q in range(len(asked)):
            p_x = trimmed([math.exp(S[j, q, i]) for j in used], trim)
            p_x = p_x if form == "online" else ((1 + a) * p_x + 1 - a) / 2
            votes.append([math.exp(asked[q, i]) / p_x / r > gamma for r in r_z])
        if queries == "mean":
            scores.append(fmean(fmean(vote) for vote in votes))
        else:
            scores.append(fmean(2 * sum(pair) > len(votes) for pair in zip(*votes, strict=True)))
    return torch.tensor(scores, dtype=torch.float64)


@forms
@pytest.mark.parametrize("uneven", [False, True])
@pytest.mark.parametrize(("gamma", "trim", "a"), [(2.0, 0.2, 0.3), (1.0, 0.0, 0.6), (1.5, 0.34, 1.0)])
@pytest.mark.parametrize("m", [4, 10, 15])
def test_equals_the_textbook_loop_over_all_pairs(m, gamma, trim, a, uneven, form):
    inputs = world(m if uneven else m + m % 2, uneven=uneven)
    fast = FORMS[form](*inputs, gamma=gamma, trim=trim, a=a)
    torch.testing.assert_close(fast, textbook(*inputs, gamma, trim, a, form), rtol=0, atol=1e-12)


@forms
@queries
@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_queries_are_averaged_or_vote_as_in_the_textbook_and_an_even_split_is_no(k, queries, form):
    inputs = world(k=k)
    fast = FORMS[form](*inputs, gamma=1.3, queries=queries)
    slow = textbook(*inputs, 1.3, 0.2, 0.3, form, queries)
    torch.testing.assert_close(fast, slow, rtol=0, atol=1e-12)


@forms
def test_vote_and_mean_are_two_things(form):
    inputs = world(k=3)
    assert not torch.equal(FORMS[form](*inputs), FORMS[form](*inputs, queries="vote"))
    one = world(k=1)
    flat = (one[0][0], one[1], one[2][:, 0], one[3], one[4])
    assert torch.equal(FORMS[form](*one), FORMS[form](*flat))
    assert torch.equal(FORMS[form](*one, queries="vote"), FORMS[form](*flat))


@forms
@queries
def test_copies_of_one_query_change_nothing(queries, form):
    log_p, aux, S, S_aux, member = world()
    thrice = (log_p.expand(3, -1), aux, S[:, None].expand(-1, 3, -1), S_aux, member)
    once = FORMS[form](log_p, aux, S, S_aux, member)
    torch.testing.assert_close(FORMS[form](*thrice, queries=queries), once, rtol=0, atol=1e-12)


def test_lr_must_lie_strictly_above_gamma():
    """r(z) = 1 / 4, 1 / 2, 1, so that an x of r = 2 has LR 8, 4, 2; logs of powers of 2 subtract exactly."""
    half = math.log(0.5)
    S = torch.full((2, 1), 2 * half, dtype=torch.float64)
    aux = torch.tensor([3 * half, 2 * half, half], dtype=torch.float64)
    S_aux = torch.full((2, 3), half, dtype=torch.float64)
    member = torch.tensor([[True], [False]])
    log_p = torch.tensor([half], dtype=torch.float64)
    scores = [rmia(log_p, aux, S, S_aux, member, a=1.0, gamma=g).item() for g in (2.0, 1.99, 4.0, 8.0, 0.5)]
    assert scores == pytest.approx([2 / 3, 1, 1 / 3, 0, 1], abs=0)


def test_one_hand_case_offline_and_online():
    """.2 and .4 out, .8 in, a = .3: p(x) is (1.3 x .3 + .7) / 2 = .545 offline, (.2 + .8) / 2 online."""
    S = torch.tensor([[0.2], [0.8], [0.4]], dtype=torch.float64).log()
    member = torch.tensor([[False], [True], [False]])
    S_aux = torch.full((3, 1), 0.5, dtype=torch.float64).log()  # p(z) = (1.3 x .5 + .7) / 2 = .675
    aux = torch.tensor([0.27], dtype=torch.float64).log()  # r(z) = .4
    for form, p_x in ((rmia_offline, 0.545), (rmia, 0.5)):
        border = math.log(2 * 0.4 * p_x)
        for side, expected in ((-1e-9, 0.0), (1e-9, 1.0)):
            log_p = torch.tensor([border + side], dtype=torch.float64)
            assert form(log_p, aux, S, S_aux, member).item() == expected


def test_p_of_z_is_the_offline_form_online_too():
    """Not the mean over all models, nor over the upper half of them, as zeroing the IN values would give."""
    log_p, aux, S, S_aux, member = world()
    score = rmia(log_p, aux, S, S_aux, member, trim=0.0)
    n_in = member.sum(0)
    p_x = S.exp().sum(0) / len(S)
    assert torch.equal(n_in, torch.full_like(n_in, 5))
    mean, upper = S_aux.exp().mean(0), S_aux.exp().sort(0).values[5:].mean(0)
    r = (log_p.exp() / p_x)[:, None]
    found = {
        name: (r > 2 * aux.exp() / p_z).double().mean(1)
        for name, p_z in {"offline": (1.3 * mean + 0.7) / 2, "all": mean, "upper half": upper}.items()
    }
    torch.testing.assert_close(score, found["offline"], rtol=0, atol=1e-12)
    assert not torch.allclose(score, found["all"])
    assert not torch.allclose(score, found["upper half"])


def test_equal_numbers_of_both_sides_the_first_in_model_order():
    log_p, aux, S, S_aux, _ = world()
    member = torch.zeros(10, 20, dtype=torch.bool)
    member[[2, 5]] = True  # 2 in, 8 out: out are used 0 and 1
    p_x = S[[0, 1, 2, 5]].exp().mean(0)  # of four nothing is trimmed
    p_z = (1.3 * S_aux.exp().sort(0).values[2:8].mean(0) + 0.7) / 2  # of all ten models two a side are
    pairs = (log_p.exp() / p_x)[:, None] > 2 * aux.exp() / p_z
    score = rmia(log_p, aux, S, S_aux, member)
    torch.testing.assert_close(score, pairs.double().mean(1), rtol=0, atol=1e-12)


def test_trim_cuts_whole_values_a_side_and_none_below_five_models():
    log_p, aux, S, S_aux, _ = world(m=10, n=100, a=2000)
    none_in = torch.zeros(10, 100, dtype=torch.bool)
    for m, same in ((4, True), (5, False)):
        few = (log_p, aux, S[:m], S_aux[:m], none_in[:m])
        cut, whole = (rmia_offline(*few, trim=trim) for trim in (0.2, 0.0))
        assert torch.equal(cut, whole) == same
    low, lower = (S.index_fill(0, torch.tensor(3), p) for p in (-30.0, -60.0))  # one of ten, below the rest
    wild, wilder = (S.index_fill(0, torch.tensor(3), p) for p in (-1e-9, -1e-12))
    for one, two in ((low, lower), (wild, wilder)):
        scores = [rmia_offline(log_p, aux, given, S_aux, none_in) for given in (one, two, S)]
        assert torch.equal(scores[0], scores[1])
        assert not torch.equal(scores[0], scores[2])
    assert not torch.equal(rmia_offline(log_p, aux, wild, S_aux, none_in, trim=0.0), scores[0])


@forms
def test_score_never_decreases_in_the_targets_p_and_stays_within_0_and_1(form):
    _, aux, S, S_aux, member = world()
    ladder = torch.linspace(-40, -1e-9, 200, dtype=torch.float64)[:, None].expand(-1, 20)
    score = FORMS[form](ladder, aux.expand(200, -1), S, S_aux, member)
    assert (score.diff(dim=0) >= 0).all()
    assert ((score >= 0) & (score <= 1)).all()
    assert (score[-1] > score[0]).all()


def test_share_is_of_z_not_of_x():
    """Counts over the number of z: doubling the candidates changes no value, one z gives 0 or 1."""
    log_p, aux, S, S_aux, member = world()
    once = rmia(log_p, aux, S, S_aux, member)
    twice = rmia(log_p.repeat(2), aux, S.repeat(1, 2), S_aux, member.repeat(1, 2))
    assert torch.equal(twice, once.repeat(2))
    assert set(rmia(log_p, aux[:1], S, S_aux[:, :1], member).tolist()) == {0.0, 1.0}


def test_one_constant_on_all_reference_probabilities_changes_nothing():
    log_p, aux, S, S_aux, member = world()
    shift = -1.7  # a = 1 makes p(z) linear in the shadows' p too
    moved = rmia(log_p, aux, S + shift, S_aux + shift, member, a=1.0)
    torch.testing.assert_close(moved, rmia(log_p, aux, S, S_aux, member, a=1.0), rtol=0, atol=1e-12)
    moved = rmia(log_p + shift, aux + shift, S, S_aux, member)
    torch.testing.assert_close(moved, rmia(log_p, aux, S, S_aux, member), rtol=0, atol=1e-12)


@forms
def test_shuffled_references_of_aux_change_nothing(form):
    """The models of the shadow axis need not be those of the candidates, nor in the same order for each z."""
    log_p, aux, S, S_aux, member = world()
    order = torch.rand(S_aux.shape, generator=stream(0)).argsort(0)
    shuffled = FORMS[form](log_p, aux, S, S_aux.gather(0, order), member)
    torch.testing.assert_close(shuffled, FORMS[form](log_p, aux, S, S_aux, member), rtol=0, atol=1e-12)


@forms
def test_the_order_of_records_shadows_and_aux_does_not_matter(form):
    log_p, aux, S, S_aux, member = world(m=8, n=30)
    member = shadow_rows(8, 30, 0)
    g = stream(0)
    rows, models, z = (torch.randperm(size, generator=g) for size in (30, 8, 30))
    plain = FORMS[form](log_p, aux, S, S_aux, member)
    moved = FORMS[form](log_p[rows], aux[z], S[models][:, rows], S_aux[models][:, z], member[models][:, rows])
    assert torch.equal(moved, plain[rows])


@forms
@queries
def test_all_targets_at_once_are_each_alone(queries, form):
    _, _, S, S_aux, member = world(k=2)
    g = stream(0)
    log_p, aux = (-torch.rand(2, 3, *size, generator=g).double() for size in ((2, 20), (30,)))
    together = FORMS[form](log_p, aux, S, S_aux, member, queries=queries)
    assert together.shape == (2, 3, 20)
    for i in range(2):
        for j in range(3):
            alone = FORMS[form](log_p[i, j], aux[i, j], S, S_aux, member, queries=queries)
            assert torch.equal(together[i, j], alone)
    flat = FORMS[form](log_p[0, :, 0], aux[0], S[:, 0], S_aux, member)
    assert torch.equal(flat[1], FORMS[form](log_p[0, 1, 0], aux[0, 1], S[:, 0], S_aux, member))


@forms
def test_chunks_do_not_show(form, monkeypatch):
    inputs = world(k=2)
    whole = FORMS[form](*inputs)
    monkeypatch.setattr("glasslab.moments.VALUES", 7 * 2 * 10)
    assert torch.equal(FORMS[form](*inputs), whole)


@forms
def test_float32_is_scored_as_its_double_and_arguments_are_left_alone(form):
    inputs = [t.float() if t.is_floating_point() else t for t in world()]
    copies = [t.clone() for t in inputs]
    score = FORMS[form](*inputs)
    assert all(torch.equal(a, b) for a, b in zip(inputs, copies, strict=True))
    assert torch.equal(score, FORMS[form](*[t.double() if t.is_floating_point() else t for t in inputs]))


@pytest.mark.parametrize("seed", range(3))
def test_online_without_trimming_it_is_a_step_function_of_base(seed):
    log_p, aux, S, S_aux, member = world(m=8, n=400, a=50, seed=seed)
    member = shadow_rows(8, 400, seed)
    untied = base(log_p, S, member)
    for gamma in (1.0, 2.0):
        step = rmia(log_p, aux, S, S_aux, member, trim=0.0, gamma=gamma)
        assert (step[untied.argsort()].diff() >= 0).all()
        assert len(step.unique()) > 10


def test_tails_are_kept_where_every_p_underflows():
    """p of 1e-400: a floor of p, or 1e-6 in the denominators, would tie these records."""
    log_p = torch.tensor([-920.0, -910.0, -900.0], dtype=torch.float64)
    S, S_aux = (torch.full((4, 3), level, dtype=torch.float64) for level in (-905.0, -910.0))
    # r(x) = e^-15, e^-5, e^5 and r(z) = e^-15, e^-5, e^5
    scores = rmia(log_p, log_p - 5, S, S_aux, shadow_rows(4, 3, 0), a=1.0, gamma=1.0001)
    assert scores.tolist() == pytest.approx([0, 1 / 3, 2 / 3])


@pytest.mark.parametrize(("form", "a"), [("online", 0.3), ("offline", 0.3), ("offline", 1.0)])
def test_finds_a_planted_leak(form, a):
    game, truth = ridge(leaks=True, seed=0)
    shadows = game.shadows
    S, S_aux = log_confidence(shadows.z[:, :, 0], game.y), log_confidence(shadows.z_aux, game.aux.y)
    z, z_aux = (game.model(x).detach() for x in (game.x, game.aux.x))
    own = (log_confidence(z, game.y), log_confidence(z_aux, game.aux.y))
    score = FORMS[form](*own, S, S_aux, shadows.inside, a=a)
    assert auc(score, truth) > 0.65
    fresh, nothing = ridge(leaks=False, seed=0)
    z, z_aux = (fresh.model(x).detach() for x in (fresh.x, fresh.aux.x))
    score = FORMS[form](
        log_confidence(z, fresh.y), log_confidence(z_aux, fresh.aux.y), S, S_aux, shadows.inside
    )
    assert abs(auc(score, nothing) - 0.5) < 4 * math.sqrt(1 / (3 * 400))


@forms
def test_a_null_world_is_calibrated(form):
    """TPR at FPR 10 %, mean over worlds, against its value for scores that know nothing; AUC against 1/2."""
    n, worlds, rates, areas = 1000, 10, [], []
    for seed in range(worlds):
        log_p, aux, S, S_aux, _ = world(m=6, n=n, a=2000, seed=seed)
        truth = target_rows(1, n, seed)[0]
        score = FORMS[form](log_p, aux, S, S_aux, shadow_rows(6, n, seed))
        point = tpr_at_fpr(score, truth, 0.1)
        rates.append(point.tpr - point.fpr)
        areas.append(auc(score, truth) - 0.5)
    error = math.sqrt(0.1 * 0.9 * 4 / n / worlds)
    assert abs(fmean(rates) - 1 / (n / 2)) < 4 * error
    assert abs(fmean(areas)) < 4 * math.sqrt(1 / (3 * n * worlds))


def test_a_shadow_without_its_complement_as_target_tells_nothing():
    n = 20_000
    log_p, aux, S, S_aux, _ = world(m=6, n=n, a=500)
    member = shadow_rows(6, n, 0)
    rest, inside = leave_one_out(0, S, member)
    for score in (
        rmia(S[0], S_aux[0], rest, S_aux[2:], inside),
        rmia(S[0], S_aux[0], S[2:], S_aux[2:], member[2:]),
        rmia_offline(S[0], S_aux[0], S[2:], S_aux[2:], member[2:]),
    ):
        assert abs(auc(score, member[0]) - 0.5) < 4 * math.sqrt(1 / (3 * n))


def mocked(a, n=3000, m=8, seed=0):
    """A world in which p_in = a p_out + (1 - a) is true: the attack with this a should rank best."""
    g = stream(seed, "mocked")
    p_out = torch.rand(n, generator=g, dtype=torch.float64) ** 2 * 0.9 + 0.01
    member = shadow_rows(m, n, seed)
    centre = torch.where(member, a * p_out + 1 - a, p_out)
    noise = torch.randn(m, n, generator=g, dtype=torch.float64)
    S = (centre.log() + 0.3 * noise).clamp(max=-1e-6)
    p_aux = torch.rand(n, generator=g, dtype=torch.float64) ** 2 * 0.9 + 0.01
    S_aux = (p_aux.log() + 0.3 * torch.randn(m, n, generator=g, dtype=torch.float64)).clamp(max=-1e-6)
    return S, S_aux, member


@pytest.mark.parametrize("mock", [0, 1, 5])
def test_tune_is_the_best_a_of_a_loop_over_the_attack_on_the_mock_target(mock):
    S, S_aux, member = mocked(0.5)
    rest = [j for j in range(8) if j // 2 != mock // 2]
    grid = [step / 40 for step in range(41)]

    def area(a):
        return auc(rmia_offline(S[mock], S_aux[mock], S[rest], S_aux[rest], member[rest], a=a), member[mock])

    areas = [area(a) for a in grid]
    found = tune(S, S_aux, member, mock=mock, grid=grid)
    assert found == grid[areas.index(max(areas))]
    assert 0 < found < 1
    assert tune(S, S_aux, member, mock=mock) == max(grid[::4], key=area)  # the default grid


def test_tune_leaves_out_a_row_only_where_it_is_the_complement():
    S, S_aux, member = mocked(0.5, n=300)
    for pair, left_out in ((1, True), (2, False)):
        wild = S.index_fill(
            0, torch.tensor(pair), -1e-9
        )  # sure of all: it would hide the members of shadow 0
        assert (tune(wild, S_aux, member) == tune(S, S_aux, member)) == left_out
    swapped = [0, 2, 1, 3, 4, 5, 6, 7]  # rows 0 and 1 are now no pair
    again = [t[swapped] for t in (S, S_aux, member)]
    wild = again[0].index_fill(0, torch.tensor(1), -1e-9)
    assert tune(wild, *again[1:]) != tune(*again)
    assert 0 <= tune(S[:7], S_aux[:7], member[:7], mock=6) <= 1  # no row 7


def test_tune_works_over_queries_and_ties_go_to_the_first():
    S, S_aux, member = mocked(0.5, n=300)
    twice = S[:, None].expand(-1, 2, -1)
    assert tune(twice, S_aux, member) == tune(S, S_aux, member)
    flat = torch.full_like(S, -1.0)
    assert tune(flat, torch.full_like(S_aux, -1.0), member, grid=(0.7, 0.2)) == 0.7


def test_log_confidence_is_the_tempered_softmax_with_its_tails():
    g = stream(0)
    z, y = 3 * torch.randn(2, 7, 5, generator=g), torch.randint(5, (7,), generator=g)
    for T in (1.0, 2.0):
        naive = (z.double() / T).softmax(-1)[:, torch.arange(7), y].log()
        torch.testing.assert_close(log_confidence(z, y, T=T), naive)
        torch.testing.assert_close(log_confidence(z.log_softmax(-1), y, T=T), naive, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(log_confidence(z, y), log_confidence(z, y, T=2.0))
    steep = torch.tensor([[x, 0.0] for x in (50.0, 100.0, 400.0)], dtype=torch.float64)
    exact = -torch.tensor([math.log1p(math.exp(-x)) for x in (25.0, 50.0, 200.0)], dtype=torch.float64)
    torch.testing.assert_close(
        log_confidence(steep, torch.zeros(3, dtype=torch.long)), exact, rtol=1e-12, atol=0
    )


def taylor(x, n):
    return sum(x**i / math.factorial(i) for i in range(n))


@pytest.mark.parametrize(("T", "n", "margin"), [(2.0, 4, 0.6), (1.0, 5, 0.0), (2.0, 2, 0.3)])
def test_sm_taylor_equals_its_textbook(T, n, margin):
    g = stream(1)
    z, y = torch.rand(2, 9, 4, generator=g) * 6 - 1, torch.randint(4, (9,), generator=g)
    slow = torch.zeros(2, 9, dtype=torch.float64)
    for j in range(2):
        for i in range(9):
            own = taylor(z[j, i, y[i]].item() / T - margin, n)
            others = sum(taylor(z[j, i, c].item() / T, n) for c in range(4) if c != y[i])
            slow[j, i] = math.log(own / (own + others))
    torch.testing.assert_close(sm_taylor(z, y, T=T, n=n, margin=margin), slow, rtol=1e-9, atol=1e-9)


def test_sm_taylor_defaults_tend_to_the_softmax_and_keep_the_tail():
    z, y = torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([0])
    assert sm_taylor(z, y).item() == sm_taylor(z, y, T=2.0, n=4, margin=0.6).item()
    torch.testing.assert_close(sm_taylor(z, y, n=40, margin=0.0), log_confidence(z, y))
    huge = torch.tensor([[1e9, 0.0]], dtype=torch.float64)
    assert sm_taylor(huge, y, margin=0.0).item() == pytest.approx(-1 / (5e8**3 / 6), rel=1e-6)


def test_sm_taylor_refuses_what_is_not_positive_with_its_count():
    z, y = (
        torch.tensor([[-6.0, 0.0], [3.0, 0.0], [-3.4, 0.0], [1.0, -90.0]]),
        torch.zeros(4, dtype=torch.long),
    )
    with pytest.raises(ValueError, match="got 3 of 4"):
        sm_taylor(z, y)  # row 2: -1.7 - .6 lies below -1.596; row 3: the sum of all is negative
    assert sm_taylor(z[1:2], y[1:2]).isfinite().all()


def test_few_models_and_bad_values_are_refused_by_name():
    log_p, aux, S, S_aux, member = world()
    none_in = torch.zeros_like(member)
    with pytest.raises(
        ValueError, match="1[+] models in of each record, got 0 for record 0; rmia_offline needs none"
    ):
        rmia(log_p, aux, S, S_aux, none_in)
    lone = member.clone()
    lone[:, 7] = True
    for attack in FORMS.values():
        with pytest.raises(ValueError, match="1[+] models out of each record, got 0 for record 7"):
            attack(log_p, aux, S, S_aux, lone)
    assert rmia_offline(log_p, aux, S[:1], S_aux[:1], none_in[:1]).isfinite().all()  # one model will do
    with pytest.raises(
        ValueError,
        match="1[+] models out of .*, got 0 for record 0 with shadow 0 and its complement",
    ):
        tune(S[:2], S_aux[:2], shadow_rows(2, 20, 0))
    with pytest.raises(ValueError, match="mock must be one of 10 shadows, got 10"):
        tune(S, S_aux, member, mock=10)


@forms
@pytest.mark.parametrize("bad", [float("nan"), -math.inf])
@pytest.mark.parametrize(
    ("place", "name"),
    [
        (0, "log_p must"),
        (1, "log_p_aux must"),
        (2, "shadow_log_p must.*record 3"),
        (3, "_aux must.*record 3"),
    ],
)
def test_nan_and_infinity_are_refused(place, name, bad, form):
    inputs = list(world())
    inputs[place] = inputs[place].clone()
    inputs[place][..., 3] = bad
    with pytest.raises(ValueError, match=name):
        FORMS[form](*inputs)


@forms
@pytest.mark.parametrize(
    ("setting", "name"),
    [({"gamma": 0.0}, "gamma"), ({"trim": 0.5}, "trim"), ({"a": 1.1}, "a must"), ({"a": -0.1}, "a")],
)
def test_settings_out_of_range_are_refused(setting, name, form):
    with pytest.raises(ValueError, match=name):
        FORMS[form](*world(), **setting)


@forms
def test_shapes_are_checked(form):
    log_p, aux, S, S_aux, member = world()
    with pytest.raises(Exception, match="shadow_log_p"):
        FORMS[form](log_p, aux, S.T, S_aux, member)
    with pytest.raises(ValueError, match="log_p must end in .2, 20. as shadow_log_p, got .20."):
        FORMS[form](log_p, aux, S[:, None].expand(-1, 2, -1), S_aux, member)
    with pytest.raises(ValueError, match="log_p_aux must be .3, 30. .* got .30."):
        FORMS[form](log_p.expand(3, -1), aux, S, S_aux, member)
    with pytest.raises(ValueError, match="shadow_log_p_aux must hold a model and a record, got .10, 0."):
        FORMS[form](log_p, aux[:0], S, S_aux[:, :0], member)


@forms
def test_a_constant_signal_gives_equal_scores(form):
    flat = [torch.full_like(t, -0.7) if t.is_floating_point() else t for t in world(uneven=True)]
    assert len(FORMS[form](*flat, gamma=1.0).unique()) == 1


def test_two_targets_in_one_process_are_separate_runs():
    first = rmia(*world(seed=0))
    rmia(*world(m=12, n=30, seed=1))
    assert torch.equal(first, rmia(*world(seed=0)))


def test_near_base_on_gaussian_signals():
    """With phi as logit: AUC within 0.01 of its untied version, above the plain loss."""
    phi, S, member, truth = gaussian(1.0, m=32, n=4000)
    aux, S_aux = gaussian(1.0, m=32, n=4000, seed=1)[:2]
    logs = [torch.nn.functional.logsigmoid(t) for t in (phi, aux, S, S_aux)]
    online = auc(rmia(*logs, member), truth)
    assert abs(online - auc(base(logs[0], logs[2], member), truth)) < 0.01
    assert online > auc(phi, truth) + 0.05
    assert auc(rmia_offline(*logs, member), truth) > auc(phi, truth)
    assert auc(base_offline(logs[0], logs[2], member), truth) > auc(phi, truth)
