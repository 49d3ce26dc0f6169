"""Weighing log-odds of several attacks: the slow twin is scikit-learn's logistic regression."""

import inspect
import math

import pytest
import torch
from scipy.stats import norm, spearmanr
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from glasslab.metrics import auc
from glasslab.null_law import null_breaches
from glasslab.split import shadow_rows, stream, target_rows
from whitebox import summed as module
from whitebox.summed import BOUND, summed, weigh


def world(m=8, n=60, seed=0, t=3, **leak):
    """(log-odds of t targets, of m shadows, member, truth): N(leak, 1) for members, else N(-leak, 1)."""
    g, member, truth = stream(seed, "summed"), shadow_rows(m, n, seed), target_rows(t, n, seed)

    def seen(rows, size):
        return size * (2.0 * rows - 1) + torch.randn(rows.shape, generator=g).double()

    return *({k: seen(rows, v) for k, v in leak.items()} for rows in (truth, member)), member, truth


# The slow twin


def twin(target, shadows, member, C):
    """Scores of one target: squashed, standardised, weighed, one record at a time."""

    def rows(of, shape):
        return [[BOUND * math.tanh(float(of[k][i]) / BOUND) for k in of] for i in shape]

    places = [(i, j) for i in range(member.shape[0]) for j in range(member.shape[1])]
    X = rows(shadows, places)
    scale = StandardScaler().fit(X)
    fitted = LogisticRegression(C=C, tol=1e-12, max_iter=10_000).fit(
        scale.transform(X), [bool(member[place]) for place in places]
    )
    return fitted.decision_function(scale.transform(rows(target, range(member.shape[1]))))


def one(of, a=0):
    return {k: v[a] for k, v in of.items()}


@pytest.mark.parametrize("C", [0.001, 0.1, 10.0])
def test_the_twin_is_a_logistic_regression(C):
    target, shadows, member, _ = world(a=0.5, b=0.2, c=1.0)
    shadows["b"], target["b"] = 40 * shadows["b"] + 3, 40 * target["b"] + 3  # far beyond the squash
    right = torch.tensor(twin(one(target), shadows, member, C))
    weighed = weigh(shadows, member, stream(0), C=C)
    torch.testing.assert_close(weighed(one(target)), right, rtol=1e-5, atol=1e-5)
    both = {k: (target[k][0], shadows[k]) for k in shadows}
    assert torch.equal(summed(both, member, stream(0), C=C), weighed(one(target)))
    assert C != 0.1 or torch.equal(summed(both, member, stream(0)), weighed(one(target)))


def test_several_targets_at_once():
    target, shadows, member, _ = world(a=0.5, b=0.2)
    weighed = weigh(shadows, member, stream(0))
    got = weighed(target)
    assert got.shape == (3, 60)
    assert got.dtype == torch.float64
    for a in range(3):
        torch.testing.assert_close(got[a], weighed(one(target, a)), rtol=1e-12, atol=1e-12)


def test_the_order_of_names_and_of_records():
    target, shadows, member, _ = world(a=0.5, b=0.2)
    weighed, turn = weigh(shadows, member, stream(0)), torch.randperm(60, generator=stream(0, "turn"))
    assert weighed.names == ("a", "b")
    assert torch.equal(weighed({k: target[k] for k in ("b", "a")}), weighed(target))
    moved = weigh({k: v[:, turn] for k, v in shadows.items()}, member[:, turn], stream(0))
    torch.testing.assert_close(moved(target), weighed(target), rtol=1e-9, atol=1e-9)


# What it is for


def test_two_independent_attacks_together_are_the_best_test():
    """N(+-a, 1) and N(+-b, 1): the best sum has AUC Phi(sqrt(2 (a^2 + b^2))). Four standard errors."""
    target, shadows, member, truth = world(m=16, n=400, a=0.4, b=0.3)
    found = [auc(s, truth) for s in (weigh(shadows, member, stream(0))(target), target["a"], target["b"])]
    assert found[0] > max(found[1:])
    assert found[0] == pytest.approx(norm.cdf(math.sqrt(2) * 0.5), abs=4 * 0.016)
    w = weigh(shadows, member, stream(0)).stacker.weight
    assert float(w[0] / w[1]) == pytest.approx(4 / 3, abs=0.15)


def test_noise_gets_no_weight():
    target, shadows, member, truth = world(m=16, n=400, a=0.6, b=0.0)
    weighed = weigh(shadows, member, stream(0))
    assert abs(float(weighed.stacker.weight[1] / weighed.stacker.weight[0])) < 0.1
    assert abs(auc(weighed(target), truth) - auc(target["a"], truth)) < 0.005
    only_noise = weigh({"b": shadows["b"]}, member, stream(0))({"b": target["b"]})
    assert not null_breaches(only_noise, truth)


def test_an_attack_twice_changes_no_ranking():
    target, shadows, member, _ = world(m=16, n=200, a=0.6, b=0.4)
    plain = weigh(shadows, member, stream(0))(target).flatten()
    twice = weigh(shadows | {"again": shadows["a"]}, member, stream(0))(
        target | {"again": target["a"]}
    ).flatten()
    assert spearmanr(plain, twice).statistic > 0.9999


def test_a_constant_attack_is_ignored():
    target, shadows, member, _ = world(a=0.6)
    flat = weigh(shadows | {"flat": torch.full_like(shadows["a"], 3.0)}, member, stream(0))
    got = flat(target | {"flat": torch.full_like(target["a"], 3.0)})
    torch.testing.assert_close(got, weigh(shadows, member, stream(0))(target), rtol=1e-6, atol=1e-6)


def test_one_wild_record_does_not_decide():
    """The wrong version, without the squash, gives an attack with one record at 1e6 nats no weight at all."""
    target, shadows, member, truth = world(m=8, n=100, a=1.0)
    wild = {"a": shadows["a"].clone()}
    wild["a"][0, int((~member[0]).nonzero()[0])] = 1e6
    assert auc(weigh(wild, member, stream(0))(target), truth) == auc(target["a"], truth)
    weight = float(weigh(wild, member, stream(0)).stacker.weight[0])
    assert weight > 0.2 * float(weigh(shadows, member, stream(0)).stacker.weight[0])
    X = StandardScaler().fit_transform(wild["a"].reshape(-1, 1).numpy())
    raw = LogisticRegression(C=0.1).fit(X, member.flatten().numpy()).coef_[0, 0] / float(wild["a"].std())
    assert abs(raw) < 1e-3 * weight


def test_the_squash_ties_nothing_of_use():
    s = torch.tensor([-200.0, -60, 0, 60, 200]).double()
    target, shadows, member, _ = world(a=1.0)
    got = weigh(shadows, member, stream(0))({"a": s})
    assert (got.diff() > 0).all()


def test_knows_nothing_where_nothing_is():
    """It fails by chance in 0.1 % of worlds."""
    target, shadows, member, truth = world(m=8, n=200, t=10, a=0.0, b=0.0)
    assert not null_breaches(weigh(shadows, member, stream(0))(target), truth)


@pytest.mark.parametrize("leak", [0.5, 0.0])
def test_small_nets_weigh_too(leak):
    target, shadows, member, truth = world(m=8, n=200, t=10, a=leak, b=leak / 2)
    score = weigh(shadows, member, stream(0), stacker="mlp")(target)
    again = weigh(shadows, member, stream(0), stacker="mlp")(target)
    assert torch.equal(score, again)
    assert not torch.equal(score, weigh(shadows, member, stream(1), stacker="mlp")(target))
    assert score.dtype == torch.float64
    if leak:
        linear = weigh(shadows, member, stream(0))(target)
        assert abs(auc(score, truth) - auc(linear, truth)) < 0.01
    else:
        assert not null_breaches(score, truth)


def test_logistic_regression_draws_nothing():
    target, shadows, member, _ = world(a=0.5)
    generator = stream(0)
    before = generator.get_state()
    assert torch.equal(weigh(shadows, member, generator)(target), weigh(shadows, member, stream(1))(target))
    assert torch.equal(generator.get_state(), before)


# Errors, and what stays as it was


def test_errors():
    target, shadows, member, _ = world(a=0.5, b=0.2)
    with pytest.raises(ValueError, match="log_odds must hold 1 or more attacks, got none"):
        weigh({}, member, stream(0))
    with pytest.raises(ValueError, match=r"log_odds\['b'\] must be \[8, 60\] as member, got \[1, 60\]"):
        weigh(shadows | {"b": torch.zeros(1, 60)}, member, stream(0))
    for rows in (torch.ones_like(member), torch.zeros_like(member)):
        with pytest.raises(
            ValueError, match=f"member must hold members and others, got {int(rows.sum())} of 480"
        ):
            weigh(shadows, rows, stream(0))
    for C in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="C must be above 0 and finite"):
            weigh(shadows, member, stream(0), C=C)
    with pytest.raises(ValueError, match=r"stacker must be one of \['logistic', 'mlp'\], got 'trees'"):
        inspect.unwrap(weigh)(shadows, member, stream(0), stacker="trees")
    for bad in (math.nan, math.inf, -math.inf):
        broken = shadows["b"].clone()
        broken[2, 3] = bad
        with pytest.raises(ValueError, match=r"log_odds\['b'\] must be finite, got 1 NaN or infinite values"):
            weigh(shadows | {"b": broken}, member, stream(0))
        with pytest.raises(ValueError, match=r"log_odds\['b'\] must be finite"):
            weigh(shadows, member, stream(0))({"a": target["a"], "b": torch.full_like(target["b"], bad)})
    with pytest.raises(ValueError, match=r"log_odds must be \['a', 'b'\], got \['a'\]"):
        weigh(shadows, member, stream(0))({"a": target["a"]})
    with pytest.raises(ValueError, match=r"log_odds must be \['a', 'b'\], got \['a', 'b', 'c'\]"):
        weigh(shadows, member, stream(0))(target | {"c": target["a"]})


def test_arguments_are_left_alone():
    target, shadows, member, _ = world(a=0.5, b=0.2)
    before = [{k: v.clone() for k, v in of.items()} for of in (target, shadows)]
    weigh(shadows, member, stream(0))(target)
    assert all(
        torch.equal(of[k], v)
        for of, held in zip((target, shadows), before, strict=True)
        for k, v in held.items()
    )
    assert list(shadows) == ["a", "b"]
    assert module.__doc__.count("Higher = member.") == 1
