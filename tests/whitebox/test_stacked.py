import math
from dataclasses import replace
from statistics import fmean, pvariance

import pytest
import torch
from scipy.stats import spearmanr
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from worlds import gaussian, null

from glasslab.checks import Floored
from glasslab.intervals import auc_interval
from glasslab.likelihood import fit, ratio
from glasslab.metrics import auc
from glasslab.null_law import auc_se, null_breaches
from glasslab.split import leave_one_out, shadow_rows, stream, target_rows
from whitebox import stacked as module
from whitebox import stackers
from whitebox.stacked import ALL, Stack, fit_stack, stacked
from whitebox.stackers import boosted, logistic, nets

KINDS = ["logistic", "boosting", "sum", "mlp"]
LEARNED = ["logistic", "boosting", "mlp"]


def world(m, n, seed=0, t=1, **leak):
    """(signals of t targets, of the shadows, member, truth): N(hard + leak, 1) for members."""
    g, member, truth = stream(seed, "stacked"), shadow_rows(m, n, seed), target_rows(t, n, seed)
    target, shadows = {}, {}
    for name, size in leak.items():
        hard = 3 * torch.randn(n, generator=g).double()
        target[name], shadows[name] = (
            hard + size * rows + torch.randn(rows.shape, generator=g).double() for rows in (truth, member)
        )
    return target, shadows, member, truth


def score(target, shadows, member, **settings):
    return fit_stack(shadows, member, stream(0), **settings)(target)


# The slow twin: one record, one model, one number at a time


def law(values, nu0, pooled):
    """(mu, sigma) of a few values."""
    n = len(values)
    return fmean(values), math.sqrt((nu0 * pooled + n * pvariance(values)) / (nu0 + n))


def pooled_variance(lists):
    squares = sum(sum((v - fmean(x)) ** 2 for v in x) for x in lists)
    return squares / sum(len(x) - 1 for x in lists)


def log_normal(v, mu, sigma):
    return -(((v - mu) / sigma) ** 2) / 2 - math.log(sigma) - math.log(2 * math.pi) / 2


def squashed(v, b):
    return b * math.tanh(v / b)


def three(v, inside, outside):
    """Ratio, z and z d' of a value under two laws."""
    (mu, sigma), (mu0, sigma0) = inside, outside
    z = squashed((v - mu0) / sigma0, 10)
    d = squashed((mu - mu0) / math.sqrt((sigma**2 + sigma0**2) / 2), 5)
    return [squashed(log_normal(v, mu, sigma) - log_normal(v, mu0, sigma0), 20), z, z * d]


def against(S, references):
    """For each record (law in, law out): references[i] = (models in, models out)."""
    lists = [
        [[S[j, i].item() for j in models] for i, models in enumerate(side)]
        for side in zip(*references, strict=True)
    ]
    pools = [pooled_variance(side) for side in lists]
    return [
        tuple(law(side[i], 4.0, p) for side, p in zip(lists, pools, strict=True)) for i in range(S.shape[1])
    ]


def textbook(target, shadows, member, rounds):
    """`rounds`: (references of each record, [(model, record) that play the target])."""
    n, table, told, own = member.shape[1], [], [], [[0.0] * 3 * len(shadows) for _ in range(member.shape[1])]
    for references, plays in rounds:
        laws = {name: against(S, references) for name, S in shadows.items()}
        for j, i in plays:
            table.append(sum((three(shadows[name][j, i].item(), *laws[name][i]) for name in shadows), []))
            told.append(member[j, i].item())
        for i in range(n):
            seen = sum((three(target[name][0, i].item(), *laws[name][i]) for name in shadows), [])
            own[i] = [a + b / len(rounds) for a, b in zip(own[i], seen, strict=True)]
    scale = StandardScaler().fit(table)
    learner = LogisticRegression(C=0.1, tol=1e-10, max_iter=10_000).fit(scale.transform(table), told)
    return torch.from_numpy(learner.decision_function(scale.transform(own)))


def split_of(models, member, i):
    return [j for j in models if member[j, i]], [j for j in models if not member[j, i]]


@pytest.mark.parametrize("m", [8, 12])
def test_equals_the_textbook_in_two_halves_of_whole_pairs(m):
    target, shadows, member, _ = world(m, 25, a=1.0, b=0.3)
    first, second = range(m // 2), range(m // 2, m)
    rounds = [
        ([split_of(rest, member, i) for i in range(25)], [(j, i) for j in play for i in range(25)])
        for play, rest in ((first, second), (second, first))
    ]
    slow = textbook(target, shadows, member, rounds)
    torch.testing.assert_close(score(target, shadows, member)[0], slow, rtol=1e-5, atol=1e-5)


def test_equals_the_textbook_one_by_one_below_eight_models():
    target, shadows, member, _ = world(6, 25, a=1.0, b=0.3)
    number = torch.arange(6.0)[:, None].expand(-1, 25)
    rounds = []
    for side in (True, False):  # the k-th model in, then the k-th out of each record plays
        for k in range(3):
            plays = [([j for j in range(6) if member[j, i] == side][k], i) for i in range(25)]
            references = []
            for a, i in plays:
                left, inside = leave_one_out(a, number, member)
                models, known = left[:, i].int().tolist(), inside[:, i].tolist()
                found = list(zip(models, known, strict=True))
                references.append(([j for j, w in found if w], [j for j, w in found if not w]))
            rounds.append((references, plays))
    slow = textbook(target, shadows, member, rounds)
    torch.testing.assert_close(score(target, shadows, member)[0], slow, rtol=1e-5, atol=1e-5)


def test_one_target_is_the_two_steps_in_one():
    target, shadows, member, _ = world(8, 40, a=1.0, b=0.3)
    both = {name: (target[name][0], shadows[name]) for name in shadows}
    for kind in KINDS:
        one = stacked(both, member, stream(0), stacker=kind)
        assert one.dtype == torch.float64
        assert torch.equal(one, score(target, shadows, member, stacker=kind)[0])


# Which model is measured against which


@pytest.mark.parametrize("m", [8, 16, 64])
def test_halves_are_whole_pairs_and_counts_never_tell(m):
    member = shadow_rows(m, 50, 1)
    rows = module._kept(member)
    (a, b), (c, d) = module._splits(len(rows) // 2)
    assert (a, b) == (d, c)
    assert rows[a].sort(0).values.equal(torch.arange(m // 2)[:, None].expand(-1, 50))
    assert rows[b].sort(0).values.equal(torch.arange(m // 2, m)[:, None].expand(-1, 50))
    for half in (a, b):
        assert (member.gather(0, rows[half]).sum(0) == m // 4).all()
    for law in fit_stack({"x": torch.randn(m, 50, generator=stream(0))}, member, stream(0)).fits["x"]:
        assert (law.n_in == m // 4).all()
        assert (law.n_out == m // 4).all()


def test_rows_in_any_order_keep_their_counts():
    """Each record's models shuffled apart from the others': a row is no model any more."""
    target, shadows, member, truth = world(16, 2000, x=1.0)
    p = torch.rand(16, 2000, generator=stream(5)).argsort(0)
    stack = fit_stack({"x": shadows["x"].gather(0, p)}, member.gather(0, p), stream(0))
    assert all((law.n_in == 4).all() and (law.n_out == 4).all() for law in stack.fits["x"])
    plain = auc(score(target, shadows, member)[0], truth[0])
    assert abs(auc(stack(target)[0], truth[0]) - plain) < 0.02


@pytest.mark.parametrize(("m", "used"), [(10, 8), (14, 12), (62, 60)])
def test_a_pair_too_many_is_left_out_and_said(m, used):
    target, shadows, member, _ = world(m, 30, a=1.0)
    with pytest.warns(
        Floored, match=f"2 of {m} models left out: each record keeps {used // 2} in and"
    ) as seen:
        fast = score(target, shadows, member)
    assert len(seen) == 1
    assert torch.equal(fast, score(target, {"a": shadows["a"][:used]}, member[:used]))


def test_the_matrix_is_float32_of_every_model_and_record(monkeypatch):
    seen = []
    monkeypatch.setattr(
        module, "logistic", lambda X, told, C: seen.append((X, told, C)) or (lambda x: x[:, 0])
    )
    _, shadows, member, _ = world(8, 30, a=1.0, b=0.0)
    fit_stack(shadows, member, stream(0), C=0.7)
    X, told, C = seen[0]
    assert X.dtype == torch.float32
    assert X.shape == (8 * 30, 3 * 2)
    assert C == 0.7
    assert told.sum() == 4 * 30
    assert X[told][:, 0].mean() > X[~told][:, 0].mean() + 0.5
    fit_stack(shadows, member, stream(0), features=("product",))
    assert torch.equal(seen[1][0], X[:, [2, 5]])


# What it finds


@pytest.mark.parametrize("location", ["mean", "median"])
@pytest.mark.parametrize("variance", ["record", "shrunk", "pooled"])
def test_the_ratio_alone_against_all_shadows_ranks_as_lira(variance, location):
    phi, S, member, truth = gaussian(1.0, 16, 500)
    held = fit(S, member, variance=variance, location=location)
    plain = {"features": ("ratio",), "squash": False, "variance": variance, "location": location}
    stack = fit_stack({"phi": S}, member, stream(0), **plain)
    assert stack.fits["phi"][0].variance == variance
    whole = replace(stack, fits={"phi": (held,)})({"phi": phi})
    assert torch.equal(whole.argsort(), ratio(phi, held).argsort())
    summed = fit_stack({"phi": S}, member, stream(0), stacker="sum", **plain)
    torch.testing.assert_close(
        replace(summed, fits={"phi": (held,)})({"phi": phi}), ratio(phi, held), rtol=1e-12, atol=1e-12
    )


def test_two_halves_and_the_squash_rank_nearly_as_lira():
    target, shadows, member, _ = world(64, 2000, phi=1.0)
    whole = ratio(target["phi"][0], fit(shadows["phi"], member, variance="shrunk", location="mean"))
    halves = score(target, shadows, member, features=("ratio",))[0]
    assert spearmanr(whole, halves).statistic > 0.99


def test_the_sum_is_that_of_the_squashed_ratios_and_of_nothing_else():
    target, shadows, member, _ = world(8, 100, a=1.0, b=0.5)
    by_hand = torch.zeros(100).double()
    for name, S in shadows.items():
        for half in (slice(0, 4), slice(4, 8)):
            held = fit(S[half], member[half], variance="shrunk", location="mean")
            by_hand += 20 * (ratio(target[name][0], held) / 20).tanh() / 2
    torch.testing.assert_close(
        score(target, shadows, member, stacker="sum")[0], by_hand, rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("kind", LEARNED)
def test_finds_membership_in_a_coordinate_that_phi_does_not_see(kind):
    target, shadows, member, truth = world(16, 1500, phi=0.0, hidden=1.5)
    best = (1 + math.erf(0.75)) / 2
    assert best - 0.04 < auc(score(target, shadows, member, stacker=kind)[0], truth[0]) < best + 0.02
    blind = auc(score({"phi": target["phi"]}, {"phi": shadows["phi"]}, member, stacker=kind)[0], truth[0])
    assert abs(blind - 0.5) < 4 * auc_se(750, 750)


def test_finds_what_two_signals_tell_together_and_the_sum_does_not():
    """Most of a's noise is b's too, which tells nothing by itself."""
    target, shadows, member, truth = world(16, 1500, a=1.0, b=0.0)
    for one, seed in ((target, 0), (shadows, 1)):
        common = 3 * torch.randn(one["a"].shape, generator=stream(seed, "common")).double()
        one |= {name: s + common for name, s in one.items()}
    area = {kind: auc(score(target, shadows, member, stacker=kind)[0], truth[0]) for kind in KINDS}
    alone = auc(score({"a": target["a"]}, {"a": shadows["a"]}, member)[0], truth[0])
    assert all(area[kind] > alone + 0.04 for kind in LEARNED)
    assert area["sum"] < alone


@pytest.mark.parametrize("kind", LEARNED)
def test_noise_signals_change_less_than_the_interval(kind):
    target, shadows, member, truth = world(16, 1500, a=1.0, b=0.5, **{f"noise{k}": 0.0 for k in range(4)})
    names = ("a", "b")
    base = score(*({name: one[name] for name in names} for one in (target, shadows)), member, stacker=kind)[0]
    low, high = auc_interval(base, truth[0])
    assert low < auc(score(target, shadows, member, stacker=kind)[0], truth[0]) < high


def test_a_duplicated_signal_moves_nothing_but_the_sum():
    target, shadows, member, truth = world(16, 2000, t=4, a=1.0, b=1.0)
    again = [one | {"c": one["b"], "d": one["b"]} for one in (target, shadows)]
    moved = {
        kind: abs(
            auc(score(*again, member, stacker=kind), truth)
            - auc(score(target, shadows, member, stacker=kind), truth)
        )
        for kind in ("logistic", "boosting", "sum")
    }
    assert moved["logistic"] < 0.001
    assert moved["boosting"] < 0.001
    assert moved["sum"] > 0.005


@pytest.mark.parametrize("control", ["of another target", "of another record of the class"])
def test_signals_that_belong_elsewhere_bring_nothing(control):
    target, shadows, member, truth = world(16, 2000, t=2, phi=1.0, white=1.5)
    black = [{"phi": one["phi"]} for one in (target, shadows)]
    base = score(*black, member)[0]
    if control == "of another target":
        target = target | {"white": target["white"].flip(0)}
    else:
        y = torch.arange(2000) % 5
        p = y.argsort(stable=True)
        q = torch.cat([rows.roll(1) for rows in p.split(400)])
        assert (y[p] == y[q]).all()
        mixed = torch.empty_like(p).index_copy(0, p, q)
        target, shadows = (one | {"white": one["white"][:, mixed]} for one in (target, shadows))
    assert auc(score(target, shadows, member)[0], truth[0]) < auc_interval(base, truth[0]).high


# The null law: 0.001 in all over these checks


@pytest.mark.parametrize(
    ("m", "kind"),
    [(6, "logistic"), (16, "logistic"), (64, "logistic"), (64, "boosting"), *((8, k) for k in KINDS)],
)
def test_reads_what_chance_reads(m, kind):
    scores, truths = [], []
    for seed in range(3):
        shadows = {name: null(m, 400, seed)[0].roll(k, 1) for k, name in enumerate("ab")}
        target = {name: torch.randn(5, 400, generator=stream(seed, name)) for name in "ab"}
        scores.append(score(target, shadows, shadow_rows(m, 400, seed), stacker=kind))
        truths.append(target_rows(5, 400, seed))
    assert null_breaches(torch.cat(scores), torch.cat(truths), checks=20) == []


def leaking(s, S, member):
    """The wrong version: each shadow in turn against all others, whose counts tell whether it is in."""
    table = []
    for a in range(len(S)):
        rest = torch.arange(len(S)) != a
        held = fit(S[rest], member[rest], variance="shrunk", location="mean")
        table.append(module._features(S[a], held, ALL, True))
    learned = logistic(torch.stack(table).flatten(0, 1).float(), member.flatten())
    held = fit(S, member, variance="shrunk", location="mean")
    return Stack({"x": (held,)}, learned, ALL, True)({"x": s})


def rows_left_out(attack, n=4000):
    """Scores of every row of two balanced designs, against the seven others; and who is in."""
    scores, truths = [], []
    for seed in range(2):
        S, member = null(8, n, seed)
        for a in range(8):
            rest = torch.arange(8) != a
            scores.append(attack(S[a], S[rest], member[rest]))
            truths.append(member[a])
    return torch.stack(scores), torch.stack(truths)


def test_counts_that_are_not_equalised_fail_the_law_that_ours_pass():
    assert null_breaches(*rows_left_out(leaking), checks=20)
    with pytest.warns(Floored, match="1 of 7 models left out: each record keeps 3 in and 3 out"):
        ours = rows_left_out(lambda s, S, member: stacked({"x": (s, S)}, member, stream(0)))
    assert null_breaches(*ours, checks=20) == []


# Laws


@pytest.mark.parametrize("kind", KINDS)
def test_same_seed_same_score_and_no_other_generator_is_touched(kind):
    target, shadows, member, _ = world(8, 60, a=1.0, b=0.5)
    held = [t.clone() for t in (*target.values(), *shadows.values(), member)]
    before, threads = torch.random.get_rng_state(), torch.get_num_threads()
    one, two = (score(target, shadows, member, stacker=kind) for _ in range(2))
    assert torch.equal(one, two)
    assert torch.equal(before, torch.random.get_rng_state())
    assert threads == torch.get_num_threads()
    now = [*target.values(), *shadows.values(), member]
    assert all(torch.equal(a, b) for a, b in zip(held, now, strict=True))
    other = fit_stack(shadows, member, stream(1), stacker=kind)(target)
    assert torch.equal(one, other) == (kind != "mlp")


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_records_does_not_matter(kind):
    target, shadows, member, truth = world(8, 400, a=1.0, b=0.5)
    p = torch.randperm(400, generator=stream(0))
    moved = [{name: s[:, p] for name, s in one.items()} for one in (target, shadows)]
    before, after = (
        score(target, shadows, member, stacker=kind)[0],
        score(*moved, member[:, p], stacker=kind)[0],
    )
    if kind in ("logistic", "sum"):
        torch.testing.assert_close(before[p], after, rtol=1e-6, atol=1e-6)  # features are kept in float32
    else:
        assert abs(auc(before, truth[0]) - auc(after, truth[0][p])) < 0.02


def test_the_order_of_signals_does_not_matter():
    target, shadows, member, _ = world(8, 400, a=1.0, b=0.5)
    turned = [dict(reversed(one.items())) for one in (target, shadows)]
    torch.testing.assert_close(score(*turned, member), score(target, shadows, member), rtol=1e-9, atol=1e-9)
    assert torch.equal(score(turned[0], shadows, member), score(target, shadows, member))


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_target_does_not_change_the_first(kind):
    target, shadows, member, _ = world(8, 60, t=3, a=1.0, b=0.5)
    stack = fit_stack(shadows, member, stream(0), stacker=kind)
    together = stack(target)
    assert together.shape == (3, 60)
    for a in range(3):
        assert torch.equal(together[a], stack({name: s[a] for name, s in target.items()}))
    deep = stack({name: s[None, :2] for name, s in target.items()})
    assert torch.equal(deep, together[None, :2])
    assert stack({name: s[:0] for name, s in target.items()}).shape == (0, 60)


# Extremes


@pytest.mark.parametrize("kind", KINDS)
def test_one_record_and_values_of_any_size(kind):
    target, shadows, member, _ = world(8, 1, a=1.0)
    assert score(target, shadows, member, stacker=kind).isfinite().all()
    target, shadows, member, _ = world(8, 50, a=1.0)
    for scale in (1e-8, 1e8):
        own, others = ({"a": scale * one["a"]} for one in (target, shadows))
        assert score(own, others, member, stacker=kind).isfinite().all()
    sure = {"a": torch.where(member, 60.0, 58.0) + 1e-3 * torch.randn(8, 50, generator=stream(0)).float()}
    assert score({"a": sure["a"][:1] + 400}, sure, member, stacker=kind).isfinite().all()


def test_the_surest_members_are_not_tied():
    """z from 2 to 80, the ratio up to 300 nats: strictly higher with every step, where a hard clip ties."""
    _, shadows, member, _ = world(16, 39, a=4.0)
    stack = fit_stack(shadows, member, stream(0), features=("ratio",))
    for held in stack.fits["a"]:
        one = replace(
            stack, fits={"a": (replace(held, **dict.fromkeys(("sig_in", "sig_out"), held.sig_out)),)}
        )
        law = one.fits["a"][0]
        d = (law.mu_in - law.mu_out) / law.sig_out
        nats = torch.linspace(1, 300, 39).double()
        s = (law.mu_in + law.mu_out) / 2 + nats / d * law.sig_out
        torch.testing.assert_close(ratio(s, law), nats)
        assert (one({"a": s}).diff() > 0).all()


def test_a_signal_that_is_the_same_everywhere_tells_nothing():
    target, shadows, member, _ = world(8, 50, a=1.0)
    flat = [one | {"flat": torch.full_like(one["a"], 0.1)} for one in (target, shadows)]
    with pytest.warns(Floored, match="50 of 50 spreads"):
        beside = score(*flat, member)
    torch.testing.assert_close(beside, score(target, shadows, member), rtol=1e-9, atol=1e-9)
    with pytest.warns(Floored):
        alone = score(*({"flat": one["flat"]} for one in flat), member)
    assert len(alone.unique()) == 1


def test_refuses_too_few_models_naming_the_record():
    _, shadows, member, _ = world(4, 30, a=1.0)
    with pytest.raises(ValueError, match=r"3[+] models in and out .* to stack, got 2 of a side for record 0"):
        fit_stack(shadows, member, stream(0))
    _, shadows, member, _ = world(8, 30, a=1.0)
    member[:6, 17] = True
    with pytest.raises(ValueError, match="got [0-2] of a side for record 17"):
        fit_stack(shadows, member, stream(0))


def test_refuses_what_it_cannot_use():
    target, shadows, member, _ = world(8, 30, a=1.0, b=0.0)
    bad = shadows | {
        "b": shadows["b"].index_put((torch.tensor(1), torch.tensor(2)), torch.tensor(math.nan).double())
    }
    with pytest.raises(ValueError, match=r"shadow_signals\['b'\] must be finite, got 1 NaN"):
        fit_stack(bad, member, stream(0))
    with pytest.raises(ValueError, match="1 or more signals, got none"):
        fit_stack({}, member, stream(0))
    with pytest.raises(Exception, match="member|shadow_signals"):
        fit_stack({"a": shadows["a"][:, :20]}, member, stream(0))
    with pytest.raises(Exception, match="stacker"):
        fit_stack(shadows, member, stream(0), stacker="forest")
    with pytest.raises(Exception, match="features"):
        fit_stack(shadows, member, stream(0), features=("d",))
    with pytest.raises(ValueError, match="features must be some of .*, got \\[\\]"):
        fit_stack(shadows, member, stream(0), features=())
    for C in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="C must be above 0 and finite, got"):
            fit_stack(shadows, member, stream(0), C=C)
    stack = fit_stack(shadows, member, stream(0))
    with pytest.raises(ValueError, match=r"target_signals must be \['a', 'b'\], got \['a'\]"):
        stack({"a": target["a"]})
    with pytest.raises(ValueError, match=r"target_signals\['a'\] must be \[1, 30\]"):
        stack({name: s[:, :20] for name, s in target.items()})
    with pytest.raises(ValueError, match=r"target_signals\['b'\] must be finite, got 30 NaN"):
        stack(target | {"b": target["b"] + math.inf})


# The stackers


def table(rows=400, columns=4, seed=0):
    """Features of unequal size and place, and labels that depend on two of them."""
    g = stream(seed, "table")
    X = torch.randn(rows, columns, generator=g) * torch.tensor([0.1, 1.0, 7.0, 30.0]) + 5
    odds = 8 * (X[:, 0] - 5) - 1.5 * (X[:, 1] - 5) + 0.7
    return X, torch.rand(rows, generator=g) < odds.sigmoid()


@pytest.mark.parametrize("C", [1e-3, 0.1, 10.0])
def test_logistic_is_scikit_learns_at_its_end(C, monkeypatch):
    X, told = table()
    monkeypatch.setattr(stackers, "ROWS", 64)
    scaled = StandardScaler().fit_transform(X.double())
    twin = LogisticRegression(C=C, tol=1e-12, max_iter=10_000).fit(scaled, told)
    expected = torch.from_numpy(twin.decision_function(scaled))
    torch.testing.assert_close(logistic(X, told, C=C)(X.double()), expected, rtol=1e-5, atol=1e-6)


def test_logistic_goes_back_where_a_full_step_goes_too_far():
    """Full steps end at infinity here."""
    values = [[-0.02, 1.72], [-0.07, 0.11], [-0.45, 0.04], [-0.16, -0.24], [0.0, 0.37], [0.74, 1.81]]
    times = torch.tensor([9, 16, 4, 1, 25, 16])
    X = torch.tensor(values).repeat_interleave(times, 0)
    told = torch.tensor([True, False, False, True, True, True]).repeat_interleave(times)
    scaled = StandardScaler().fit_transform(X.double())
    twin = LogisticRegression(C=1e4, tol=1e-12, max_iter=100_000).fit(scaled, told)
    expected = torch.from_numpy(twin.decision_function(scaled))
    torch.testing.assert_close(logistic(X, told, C=1e4)(X.double()), expected, rtol=1e-3, atol=1e-3)


def test_logistic_does_not_mind_separable_equal_or_constant_columns():
    X, told = table()
    X[:, 3] = torch.where(told, 1e4, -1e4)
    X[:, 2], X[:, 1] = 0.1, X[:, 3]
    for C in (0.1, 1e6):
        model = logistic(X, told, C=C)
        assert ((model(X.double()) > 0) == told).all()
        assert model.weight[2] == 0
        assert model.weight[1] == pytest.approx(float(model.weight[3]), rel=1e-6)
    p = torch.randperm(400, generator=stream(1))
    torch.testing.assert_close(
        logistic(X[p], told[p]).weight, logistic(X, told).weight, rtol=1e-9, atol=1e-12
    )


def test_boosting_is_seeded_and_never_stops_early():
    X, told = table(rows=12_000)
    trees = boosted(X, told, stream(0)).trees
    assert trees.n_iter_ == 80  # scikit-learn's own choice is to stop early from 10,000 rows on
    settings = trees.get_params()
    assert settings["max_leaf_nodes"] == 15
    assert settings["learning_rate"] == 0.08
    assert isinstance(settings["random_state"], int)
    assert settings["random_state"] != boosted(X[:100], told[:100], stream(1)).trees.random_state


def test_nets_are_three_whose_logits_are_averaged():
    X, told = table(rows=3000)
    model = nets(X, told, stream(0), batch=100)
    assert len(model.nets) == 3
    alone = [replace(model, nets=(net,))(X.double()) for net in model.nets]
    torch.testing.assert_close(model(X.double()), torch.stack(alone).mean(0))
    assert not torch.equal(alone[0], alone[1])
    best = logistic(X, told)(X.double())
    assert auc(model(X.double()), told) > auc(best, told) - 0.01
    assert not any(w.requires_grad for net in model.nets for w in net.parameters())


def test_nets_and_trees_see_what_a_weighted_sum_cannot():
    X, _ = table(rows=6000)
    told = (X[:, 0] > 5) ^ (X[:, 1] > 5)
    assert auc(logistic(X, told)(X.double()), told) < 0.6
    assert auc(boosted(X, told, stream(0))(X.double()), told) > 0.95
    assert auc(nets(X, told, stream(0), batch=256, epochs=12)(X.double()), told) > 0.9
