"""Decoding against posteriors by enumeration, and on weights that rest where theory says."""

import copy
import itertools
import math
from dataclasses import replace

import pytest
import torch
from rest import DECAY, C, at_rest, draw, world
from scipy.stats import norm, spearmanr
from torch import nn

from glasslab import signals
from glasslab.metrics import auc, tpr_at_fpr
from glasslab.null_law import auc_se, null_breaches
from glasslab.split import shadow_rows, stream
from whitebox import decode as module
from whitebox.decode import Law, bits, decode, decode_shadow, inverse_lower, posterior, shares
from whitebox.dual import solve
from whitebox.gram import Gram, grams, pooled

LAW = Law(noise=1.0, rho=0.5, tau=0.1)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=stream(seed, "randn"), dtype=torch.float64)


def doubles(numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def gram(J, theta):
    return Gram(J @ J.T, J @ theta, float(theta.square().sum()), len(theta))


# A sum of known parts


def made(n, d, seed=0, *, noise=1.0, rho=0.5, tau=0.1, correlated=0.0, orthogonal=False):
    """(J, theta, g, member, law, s): theta = sum of m_i alpha_i J_i + noise, by decoding's law."""
    u = stream(seed, "made")

    def draw(*shape):
        return torch.randn(*shape, generator=u, dtype=torch.float64)

    J = draw(n, d) + correlated * draw(1, d)
    if orthogonal:
        J = torch.linalg.qr(J.T).Q.T[:n] * (1 + torch.rand(n, 1, generator=u).double())
    g = draw(n).exp() / 2
    member = torch.rand(n, generator=u) < 0.5
    theta = (member * g * (1 + rho * draw(n)) + tau * g.mean() * draw(n)) @ J + noise**0.5 * draw(d)
    s = noise
    law = Law(noise=s * d / float(theta.square().sum()), rho=rho, tau=tau)  # a share of the mean square
    return J, theta, g, member, law, s


def enumerated(J, theta, g, law, s):
    """Posterior log-odds of each bit at prior 1/2, from the likelihoods of all 2^n sets of members."""
    n, d = J.shape
    floor = (law.tau * float(g.mean())) ** 2
    terms = {}
    for m in itertools.product((0, 1), repeat=n):
        mean = sum((m[i] * g[i] * J[i] for i in range(n)), torch.zeros(d).double())
        cov = s * torch.eye(d).double()
        for i in range(n):
            cov += (m[i] * (law.rho * g[i]) ** 2 + floor) * torch.outer(J[i], J[i])
        off = theta - mean
        terms[m] = float(-(off @ torch.linalg.solve(cov, off)) / 2 - torch.linalg.slogdet(cov).logabsdet / 2)
    top = max(terms.values())
    return [
        math.log(sum(math.exp(v - top) for m, v in terms.items() if m[i]))
        - math.log(sum(math.exp(v - top) for m, v in terms.items() if not m[i]))
        for i in range(n)
    ]


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("rounds", [1, 2, 5])
def test_orthogonal_gradients_give_the_exact_posterior(n, rounds):
    """No other record touches record i's part of theta: its log-odds are exact in any round."""
    for seed in range(4):
        J, theta, g, _, law, s = made(n, 6, seed, orthogonal=True)
        got = bits(gram(J, theta), g, replace(law, rounds=rounds))
        right = doubles(enumerated(J, theta, g, law, s))
        torch.testing.assert_close(got, right, rtol=1e-9, atol=1e-10)


def test_correlated_gradients_come_near_the_exact_posterior():
    """10 candidates, 4 worlds, of independent and of much correlated gradients."""
    near = {1: [], 2: []}
    off = {1: [], 2: []}
    for seed, correlated in enumerate((0.0, 0.3, 1.0, 2.0)):
        J, theta, g, _, law, s = made(10, 14, seed, correlated=correlated)
        right = doubles(_by_gram(J, theta, g, law, s))
        for rounds in near:
            got = bits(gram(J, theta), g, replace(law, rounds=rounds))
            near[rounds].append(float(spearmanr(got, right).statistic))
            off[rounds].append(float((got - right).abs().mean()))
    assert min(near[1] + near[2]) > 0.93
    assert sum(off[2]) < sum(off[1]) < 4 * 0.7  # nats


def _by_gram(J, theta, g, law, s):
    """`enumerated` for 2^10 sets, in one batch."""
    m = torch.tensor(list(itertools.product((0.0, 1.0), repeat=len(g)))).double()
    v = m * (law.rho * g).square() + (law.tau * g.mean()).square()
    cov = s * torch.eye(J.shape[1]).double() + torch.einsum("kn,nd,ne->kde", v, J, J)
    like = torch.distributions.MultivariateNormal((m * g) @ J, cov).log_prob(theta)
    return [float(like[m[:, i] == 1].logsumexp(0) - like[m[:, i] == 0].logsumexp(0)) for i in range(len(g))]


def test_the_two_enumerations_agree():
    J, theta, g, _, law, s = made(4, 5, correlated=1.0)
    assert enumerated(J, theta, g, law, s) == pytest.approx(_by_gram(J, theta, g, law, s), rel=1e-9)


# The slow twin: explicit inverses, one record at a time


def twin(J, theta, g, law, s):
    n, mean_g = len(g), float(g.mean())
    odds = found = [0.0] * n
    for turn in range(law.rounds):
        p = [1 / (1 + math.exp(-min(12.0, max(-12.0, o)))) for o in odds]
        mu = doubles([p[i] * float(g[i]) for i in range(n)])
        v = [
            p[i] * (law.rho * float(g[i])) ** 2
            + (law.tau * mean_g) ** 2
            + p[i] * (1 - p[i]) * float(g[i]) ** 2
            for i in range(n)
        ]
        found = []
        for i in range(n):
            # what theta says of alpha_i, with every other alpha integrated out
            cov = s * torch.eye(J.shape[1]).double()
            for j in set(range(n)) - {i}:
                cov += v[j] * torch.outer(J[j], J[j])
            rest = theta - (mu @ J - mu[i] * J[i])
            sharp = float(J[i] @ torch.linalg.solve(cov, J[i]))
            c, k = float(J[i] @ torch.linalg.solve(cov, rest)) / sharp, 1 / sharp
            floor = (law.tau * mean_g) ** 2
            inside = norm.logpdf(c, float(g[i]), math.sqrt(k + (law.rho * float(g[i])) ** 2 + floor))
            found.append(float(inside - norm.logpdf(c, 0, math.sqrt(k + floor))))
        odds = found if turn == 0 else [0.7 * a + 0.3 * b for a, b in zip(found, odds, strict=True)]
    return doubles(found)


@pytest.mark.parametrize("rounds", [1, 2, 3, 6])
@pytest.mark.parametrize("correlated", [0.0, 1.5])
def test_the_twin_leaves_each_record_out_in_turn(rounds, correlated):
    J, theta, g, _, law, s = made(8, 7, rounds, correlated=correlated)
    law = replace(law, rounds=rounds)
    torch.testing.assert_close(bits(gram(J, theta), g, law), twin(J, theta, g, law, s), rtol=1e-8, atol=1e-9)


def test_rounds_come_to_rest():
    J, theta, g, _, law, _ = made(20, 15, 3, correlated=0.5)
    many, more = (bits(gram(J, theta), g, replace(law, rounds=r)) for r in (80, 81))
    torch.testing.assert_close(many, more, rtol=1e-6, atol=1e-6)


def test_the_posterior_is_the_textbooks():
    """Gaussian linear model: precision J J' / s + 1/v, inverted as it stands."""
    J, theta = randn(9, 6), randn(6, seed=1)
    mu, v, s = randn(9, seed=2), randn(9, seed=3).exp(), 0.7
    cov = torch.linalg.inv(J @ J.T / s + (1 / v).diag())
    mean, C_ = posterior(gram(J, theta), mu, v, s)
    torch.testing.assert_close(mean, cov @ (J @ theta / s + mu / v), rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(C_, cov.diagonal(), rtol=1e-9, atol=1e-10)


def test_the_inverse_of_a_triangle():
    for n in (1, 2, 255, 257, 600):
        L = randn(n, n).tril() / n + torch.eye(n).double()
        before = L.clone()
        torch.testing.assert_close(inverse_lower(L), torch.linalg.inv(L), rtol=1e-9, atol=1e-10)
        assert torch.equal(L, before)


def test_the_theorys_law_finds_what_it_made():
    """Log-odds are calibrated where the world is the law's: of records at p, a share of p are members."""
    scores, truth = [], []
    for seed in range(30):
        J, theta, g, member, law, _ = made(30, 60, seed)
        scores.append(bits(gram(J, theta), g, law))
        truth.append(member)
    p, m = torch.cat(scores).sigmoid(), torch.cat(truth).double()
    assert abs(float((m - p).mean())) < 4 * float((p * (1 - p)).mean() / len(p)) ** 0.5
    assert auc(torch.cat(scores), torch.cat(truth)) > 0.9


# Weights at rest


SHARP = Law(noise=1e-4, rho=0.02, tau=1e-3)  # weights that are all that theory says


@pytest.mark.parametrize("kind", ["linear", "tanh"])
def test_finds_all_members_of_weights_at_rest(kind):
    model, x, y, member = world(kind)
    how = {"weight_decay": DECAY, "n_train": int(member.sum())}
    got = decode(model, x, y, law=SHARP, **how)
    assert got.dtype == torch.float64
    assert auc(got, member) == 1.0
    assert (got > 0).equal(member)
    assert auc(decode(model, x, y, **how), member) > 0.95


def test_beats_coefficients_and_the_loss_on_noisy_weights():
    """TPR at 5 % FPR, pooled over 12 worlds; noise of a tenth of the weights' size.

    The wrong version holds all g to be alike; a member that the model is sure of has a small share.
    """
    scores, truth = {"decode": [], "dual": [], "loss": [], "alike": []}, []
    for seed in range(12):
        model, x, y, member = world("linear", seed, n=30)
        model = copy.deepcopy(model)
        size = model.weight.square().mean().sqrt()
        model.weight += 0.1 * size * randn(*model.weight.shape, seed=seed)
        law = Law(noise=0.01, rho=0.1, tau=0.05)
        scores["decode"].append(decode(model, x, y, weight_decay=DECAY, n_train=15, law=law))
        whole, g = pooled([g for _, g in grams(model, x, y)]), shares(model(x), y, DECAY, 15)
        scores["alike"].append(bits(whole, g.mean().expand(30).clone(), law))
        scores["dual"].append(solve(whole, 0.01))
        scores["loss"].append(signals.phi(model(x), y))
        truth.append(member)
    tpr = {k: tpr_at_fpr(torch.stack(v), torch.stack(truth), 0.05).tpr for k, v in scores.items()}
    assert tpr["decode"] > tpr["dual"] + 0.1
    assert tpr["dual"] > tpr["loss"]
    assert tpr["decode"] > tpr["alike"]


def test_the_share_is_that_of_the_answers():
    model, x, y, member = world("tanh")
    n = int(member.sum())
    p = model(x).softmax(-1)[torch.arange(len(y)), y]
    torch.testing.assert_close(shares(model(x), y, DECAY, n), (1 - p) / (n * DECAY), rtol=1e-9, atol=1e-12)
    g = shares(model(x), y, DECAY, n)
    whole = pooled([g for _, g in grams(model, x, y)])
    got = decode(model, x, y, weight_decay=DECAY, n_train=n)
    torch.testing.assert_close(got, bits(whole, g), rtol=1e-9, atol=1e-10)
    ((_, first),) = grams(model, x, y, layers="0")
    alone = decode(model, x, y, weight_decay=DECAY, n_train=n, layers="0")
    torch.testing.assert_close(alone, bits(first, g), rtol=1e-7, atol=1e-8)  # one layer, in any units


# Invariances


def test_units_may_change_places():
    model, x, y, _ = world("tanh")
    turn, moved = torch.randperm(5, generator=stream(0, "units")), copy.deepcopy(model)
    moved[0].weight.data, moved[0].bias.data = model[0].weight[turn], model[0].bias[turn]
    moved[2].weight.data = model[2].weight[:, turn]
    how = {"weight_decay": DECAY, "n_train": 12}
    torch.testing.assert_close(decode(moved, x, y, **how), decode(model, x, y, **how), rtol=1e-8, atol=1e-9)


def test_candidates_in_another_order():
    model, x, y, _ = world("tanh")
    turn = torch.randperm(len(x), generator=stream(0, "records"))
    how = {"weight_decay": DECAY, "n_train": 12}
    got = decode(model, x[turn], y[turn], **how)
    torch.testing.assert_close(got, decode(model, x, y, **how)[turn], rtol=1e-8, atol=1e-9)


def test_log_odds_do_not_depend_on_units():
    """theta, J and s in other units, and alpha with g in others."""
    J, theta, g, _, law, _ = made(8, 12)
    right = bits(gram(J, theta), g, law)
    torch.testing.assert_close(bits(gram(1e3 * J, 1e3 * theta), g, law), right, rtol=1e-8, atol=1e-9)
    for unit in (1e-30, 1e-5, 1e6):
        torch.testing.assert_close(bits(gram(J / unit, theta), unit * g, law), right, rtol=1e-8, atol=1e-9)


# What it must not find


def test_knows_nothing_of_a_target_that_learned_other_records():
    """24 targets of other records; one under permuted truths. It fails by chance in 0.1 % of worlds."""
    x, y = draw(24, 16, 0)
    how = {"weight_decay": DECAY, "n_train": 12}
    models = [at_rest("linear", *draw(12, 16, seed, "fresh"), seed) for seed in range(24)]
    rows = torch.stack([shadow_rows(2, 24, seed)[0] for seed in range(24)])
    assert not null_breaches(torch.stack([decode(m, x, y, **how) for m in models]), rows, checks=2)
    other = torch.stack([decode_shadow(models[0], x, y, m(x), **how) for m in models])
    assert not null_breaches(other, rows, checks=2)
    model, x, y, member = world("linear")
    score = decode(model, x, y, **how)
    turned = [member[torch.randperm(24, generator=stream(i, "turn"))] for i in range(24)]
    assert abs(sum(auc(score, m) for m in turned) / 24 - 0.5) < 4 * auc_se(12, 12) / 24**0.5


def test_two_targets_in_one_process():
    how = {"weight_decay": DECAY, "n_train": 12}
    one, two = world("linear", 0), world("linear", 1)
    first, second = decode(*one[:3], **how), decode(*two[:3], **how)
    assert torch.equal(decode(*one[:3], **how), first)
    assert torch.equal(decode(*two[:3], **how), second)


# Without the weights


def test_a_shadow_that_is_the_target_needs_no_weights():
    x, y = draw(12, 6, 3)
    model = nn.Sequential(nn.Linear(6, 6, bias=False), nn.ReLU(), nn.Linear(6, C, bias=False)).double().eval()
    z, how = model(x).detach(), {"weight_decay": DECAY, "n_train": 6}
    got = decode_shadow(model, x, y, z, **how)
    torch.testing.assert_close(got, decode(model, x, y, **how), rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(
        decode_shadow(model, x, y, z.log_softmax(-1), **how), got, rtol=1e-8, atol=1e-9
    )


def test_of_the_target_a_shadow_takes_answers_alone():
    """G is the shadow's; b and g are of the answers, b with the mean square that it has on the shadow."""
    model, x, y, _ = world("tanh", 0)
    shadow, z = world("tanh", 1)[0], model(x)
    own = pooled([g for _, g in grams(shadow, x, y)])
    b = doubles(
        [
            float(z[i, k]) - sum(float(w * v) for w, v in zip(rest.softmax(0), rest, strict=True))
            for i, k in enumerate(y.tolist())
            for rest in [torch.cat([z[i, :k], z[i, k + 1 :]])]
        ]
    )
    b = b * (own.b.square().sum() / b.square().sum()).sqrt()
    right = bits(own._replace(b=b), shares(z, y, DECAY, 12))
    got = decode_shadow(shadow, x, y, z, weight_decay=DECAY, n_train=12)
    torch.testing.assert_close(got, right, rtol=1e-8, atol=1e-9)
    assert (got - bits(own, shares(z, y, DECAY, 12))).abs().max() > 0.01  # with the shadow's own b


def test_a_shadow_finds_members_in_answers():
    """A shadow of other records: mean over 8 worlds, four standard errors above chance."""
    found = []
    for seed in range(8):
        model, x, y, member = world("linear", seed)
        shadow = at_rest("linear", *draw(12, 16, seed, "fresh"), seed)
        got = decode_shadow(shadow, x, y, model(x), weight_decay=DECAY, n_train=12)
        found.append(auc(got, member))
    assert sum(found) / 8 > 0.5 + 4 * auc_se(12, 12) / 8**0.5


# Extremes


def test_one_candidate_and_ties():
    model, x, y, member = world("linear")
    i = int(member.nonzero()[0])
    how = {"weight_decay": DECAY, "n_train": 12}
    assert decode(model, x[i : i + 1], y[i : i + 1], **how).isfinite().all()
    tied = decode(model, x[:1].expand(5, -1), y[:1].expand(5), **how)
    assert tied.isfinite().all()
    torch.testing.assert_close(tied, tied[:1].expand(5), rtol=1e-8, atol=1e-9)


def test_a_record_twice():
    """Either of two equal candidates may be the member: both stay above every other record."""
    model, x, y, member = world("linear")
    i = int((shares(model(x), y, DECAY, 12) * member).argmax())
    got = decode(
        model, torch.cat([x, x[i : i + 1]]), torch.cat([y, y[i : i + 1]]), weight_decay=DECAY, n_train=12
    )
    assert float(got[i]) == pytest.approx(float(got[-1]), rel=1e-8)
    alone = decode(model, x, y, weight_decay=DECAY, n_train=12)
    assert float(got[i]) < float(alone[i])


def test_sure_records():
    """In float32, phi = 60 of all records; in float64, phi of 0, 60 and 1,000 in one world."""
    model = nn.Linear(4, C).eval()
    model.weight.data, model.bias.data = randn(C, 4).float(), torch.tensor([60.0, 0, 0])
    x, y = randn(9, 4, seed=1).float(), torch.zeros(9).long()
    how = {"weight_decay": 1e-3, "n_train": 4}
    assert signals.phi(model(x).detach(), y).min() > 50
    assert decode(model, x, y, **how).isfinite().all()
    wide = nn.Linear(4, C, bias=False).double().eval()
    x = randn(9, 4, seed=1) * torch.tensor([0, 1, 1, 60, 60, 60, 1e3, 1e3, 1e3]).double()[:, None]
    for labels in (wide(x).argmax(1), wide(x).argmin(1)):
        assert decode(wide, x, labels, **how).isfinite().all()
        assert decode(wide, x, labels, weight_decay=1e-9, n_train=4).isfinite().all()


@pytest.mark.parametrize("g", [1e3, 1e-26, 1e-100, 1e-180, 1e-300, 0.0])
def test_shares_of_any_size(g):
    J, theta = randn(4, 6), randn(6, seed=1)
    got = bits(gram(J, theta), torch.full((4,), g).double())
    assert got.isfinite().all()
    assert g > 1e-20 or got.abs().max() < 1e-10  # they leave no trace in the weights


def test_more_candidates_than_weights_with_little_noise():
    """G has no inverse, and rounding gives it negative eigenvalues beside large ones."""
    J, theta = randn(60, 5), randn(5, seed=1)
    for noise in (1e-8, 1e-14, 1e-18):
        assert bits(gram(J, theta), torch.ones(60).double(), Law(noise=noise)).isfinite().all()


def test_a_record_without_a_gradient_says_nothing():
    J, theta, g, *_ = made(5, 7)
    J[2] = 0
    got = bits(gram(J, theta), g)
    assert abs(float(got[2])) < 1e-12
    assert got.isfinite().all()


# Errors, and what stays as it was


def test_errors():
    model, x, y, _ = world("linear")
    with pytest.raises(ValueError, match="weight_decay must be above 0 to decode, got 0"):
        decode(model, x, y, weight_decay=0.0, n_train=12)
    with pytest.raises(ValueError, match="weight_decay must be above 0 to decode, got 0") as raised:
        decode_shadow(model, x, y, model(x), weight_decay=0.0, n_train=12)
    assert "\n" not in str(raised.value)
    with pytest.raises(ValueError, match="n_train must be 1 or more, got 0"):
        decode(model, x, y, weight_decay=DECAY, n_train=0)
    for name, zero in (("noise", 0.0), ("rho", 0.0), ("tau", 0.0), ("rounds", 0)):
        with pytest.raises(ValueError, match=f"{name} must be above 0, got 0"):
            Law(**{name: zero})
    with pytest.raises(ValueError, match="training mode"):
        decode(copy.deepcopy(model).train(), x, y, weight_decay=DECAY, n_train=12)
    with pytest.raises(ValueError, match="layers must name modules"):
        decode_shadow(model, x, y, model(x), weight_decay=DECAY, n_train=12, layers="no.such")


def test_arguments_are_left_alone():
    model, x, y, _ = world("tanh")
    before = copy.deepcopy(model.state_dict()), x.clone(), y.clone()
    how = {"weight_decay": DECAY, "n_train": 12}
    decode(model, x, y, **how)
    decode_shadow(model, x, y, z := model(x), **how)
    assert all(torch.equal(a, model.state_dict()[k]) for k, a in before[0].items())
    assert torch.equal(x, before[1])
    assert torch.equal(y, before[2])
    assert torch.equal(z, model(x))
    J, theta, g, _, law, _ = made(5, 6)
    of, held = gram(J, theta), g.clone()
    G, b = of.G.clone(), of.b.clone()
    bits(of, g, law)
    assert torch.equal(of.G, G)
    assert torch.equal(of.b, b)
    assert torch.equal(g, held)
    assert module.__doc__.count("Higher = member.") == 1
