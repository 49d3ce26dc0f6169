"""The score test against its laws: simulations with a known answer, twins, calibrations."""

import copy
import math
import statistics
import warnings

import pytest
import torch
from torch import nn
from worlds import ridge

from glasslab import signals
from glasslab.checks import Floored
from glasslab.data import Data
from glasslab.likelihood import fit, ratio
from glasslab.metrics import auc
from glasslab.null_law import auc_se
from glasslab.split import shadow_rows, stream
from whitebox import score_test as module
from whitebox.influence import Leverage
from whitebox.last_layer import last_layer
from whitebox.score_test import Rho, by_aux, by_shadows, gain, score_test
from whitebox.whitened import WhitenedGamma, WhitenedTheta


def mlp(seed=0, scale=0.5, c=3):
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, c)).double().eval()
    g = stream(seed, "weights")
    for w in model.parameters():
        w.data = torch.randn(w.shape, generator=g, dtype=torch.float64) * scale
    return model


def records(n, *shape, c=3, seed=0):
    g = stream(seed, "records")
    return torch.randn(n, *shape, generator=g, dtype=torch.float64), torch.randint(c, (n,), generator=g)


def data(n, *shape, c=3, seed=1):
    return Data(*records(n, *shape, c=c, seed=seed), c, "aux")


def within(S, member):
    """AUC over the models, record by record, and its mean."""
    areas = [auc(s, m) for s, m in zip(S.T, member.T, strict=True)]
    return sum(areas) / len(areas)


# The score


@pytest.mark.parametrize("curvature", ["kfac", "ekfac", "last", "sketch"])
def test_the_score_is_the_sum_of_both_signals_over_layers(curvature):
    model, (x, y), aux = mlp(), records(9, 4), data(60, 4)
    got = score_test(model, x, y, aux, lambda_s=0.3, curvature=curvature, ridge=0.1, k=20, seed=2)
    how = {"ridge": 0.1, "curvature": curvature, "k": 20, "seed": 2}
    parts = WhitenedGamma(aux, **how)(model, x, y) + 0.3 * WhitenedTheta(aux, **how)(model, x, y)
    torch.testing.assert_close(got, parts.sum(1), rtol=1e-7, atol=1e-9)
    assert got.dtype == torch.float64
    only = score_test(model, x, y, aux, lambda_s=0.0, curvature=curvature, ridge=0.1, k=20, seed=2)
    torch.testing.assert_close(only, WhitenedGamma(aux, **how)(model, x, y).sum(1), rtol=1e-9, atol=1e-9)


def regressions(seed, *, unequal, d=20, n=200, far=3.0, m=800, shadows=128, aux=1500):
    """Least squares on records of two kinds, each with half of the features, one of them with louder noise.

    Eight outlying records of both kinds at once. Returns mean AUC over draws of theta of: LiRA on the
    residual with 64 + 64 shadows, the best linear direction, the score direction with aux and no shadow;
    and rho of the eight.
    """
    g, second = stream(seed, "regressions"), torch.arange(d) >= d // 2
    loud = 1.8 if unequal else 1.0

    def randn(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    def draw(*shape):
        kind = (torch.rand(*shape, 1, generator=g) < 0.5).double()
        noise = (1 + (loud - 1) * kind[..., 0]) * randn(*shape)
        return randn(*shape, d) * torch.where(second, kind, 1 - kind), noise

    x, e = randn(8, d), far * torch.where(torch.rand(8, generator=g) < 0.5, 1.0, -1.0).double()

    def thetas(k):  # of noise alone: the optimum is 0
        member = torch.stack([torch.randperm(k, generator=g) for _ in range(8)], 1) < k // 2
        z, noise = draw(k, n - 4)
        H = z.mT @ z + torch.einsum("kr,rd,re->kde", member.double(), x, x)
        b = (z.mT @ noise[..., None])[..., 0] + (member * e) @ x
        return torch.linalg.solve(H, b), member

    (S, S_member), (theta, member), (ax, ae) = thetas(shadows), thetas(m), draw(aux)
    lira = ratio((theta @ x.T - e) * e.sign(), fit((S @ x.T - e) * e.sign(), S_member, variance="record"))
    G0 = torch.where(second, loud**2, 1.0).double() / 2
    best = theta / G0 @ (x * e.sign()[:, None]).T  # along Sigma^-1 delta = -H G^-1 g, H = 1/2
    off = ae - theta @ ax.T
    Gamma = -(off @ ax) / aux
    G = torch.einsum("ta,ad,ae->tde", off.square(), ax, ax) / aux - Gamma[:, :, None] * Gamma[:, None]
    score = torch.linalg.solve(G, Gamma) @ x.T * (e - theta @ x.T).sign()
    rho = gain(x, G0.sqrt().diag(), torch.eye(d).double() / 2**0.5)
    return {k: within(v, member) for k, v in (("lira", lira), ("best", best), ("score", score))}, rho


@pytest.mark.slow
@pytest.mark.parametrize("unequal", [False, True])
def test_weights_say_more_than_the_loss_where_rho_says_so(unequal):
    """rho = 1: no direction beats the loss by 0.01. rho = 1.3: the best one does, and the score keeps up.

    Mean over four worlds; a paired difference of one spreads by 0.005 to 0.007.
    """
    runs = [regressions(s, unequal=unequal) for s in range(4)]
    best, score = (statistics.mean(r[k] - r["lira"] for r, _ in runs) for k in ("best", "score"))
    rho = float(torch.cat([rho for _, rho in runs]).mean())
    assert rho == pytest.approx(1.31 if unequal else 1.0, abs=0.05)
    if unequal:
        assert best > 0.01
        assert score > 0.0
    else:
        assert best < 0.01
        assert score < 0.01
    assert score > -0.01


def logistic(seed, *, decay, n=400, d=20, m=30, flips=0.1):
    """Ridge logistic regressions at rest, by Newton's method: pool, aux, member and models."""
    g = stream(seed, "logistic")
    beta = torch.randn(d, generator=g).double()

    def draw(k, name):
        x = torch.randn(k, d, generator=g).double()
        y = (torch.rand(k, generator=g).double() < (x @ beta / beta.norm()).sigmoid()).long()
        return Data(x, torch.where(torch.rand(k, generator=g) < flips, 1 - y, y), 2, name)

    pool, aux = draw(n, "pool"), draw(2000, "aux")
    member, t = shadow_rows(m, n, seed), 2.0 * pool.y.double() - 1
    W, rows = torch.zeros(m, d).double(), member.double() / (n // 2)
    for _ in range(12):
        s = (-t * (W @ pool.x.T)).sigmoid()
        H = torch.einsum("mn,nd,ne->mde", rows * s * (1 - s), pool.x, pool.x) + decay / 2 * torch.eye(d)
        W = W - torch.linalg.solve(H, -(rows * s * t) @ pool.x + decay / 2 * W)
    return pool, aux, member, [two_logits(w) for w in W]


def two_logits(w):
    """Of a logistic regression; decay / 2 |W|^2 is decay / 4 |w|^2."""
    model = nn.Linear(len(w), 2, bias=False).double().eval()
    model.weight.data = torch.stack([-w / 2, w / 2])
    return model


def test_weight_decay_makes_the_sum_of_both_parts_better_than_either():
    """At rest, with lambda_s = the decay; by 3 standard errors over 14 models."""
    pool, aux, member, models = logistic(0, decay=0.5, m=14)
    how = {"curvature": "last", "ridge": 0.0}

    def areas(score):
        return torch.tensor([auc(score(f), row) for f, row in zip(models, member, strict=True)])

    both = areas(lambda f: score_test(f, pool.x, pool.y, aux, lambda_s=0.5, **how))
    for part in (WhitenedGamma(aux, **how), WhitenedTheta(aux, **how)):
        d = both - areas(lambda f, part=part: part(f, pool.x, pool.y)[:, 0])
        assert d.mean() > 3 * d.std() / 14**0.5
    d = both - areas(lambda f: signals.phi(f(pool.x).detach(), pool.y))
    assert d.mean() > 3 * d.std() / 14**0.5
    turned = areas(lambda f: -score_test(f, pool.x, pool.y, aux, lambda_s=0.5, **how))
    assert both.mean() > 0.55 > 0.45 > turned.mean()


@pytest.mark.slow
def test_within_a_record_the_score_keeps_up_with_the_loss_at_rho_1():
    pool, aux, member, models = logistic(0, decay=0.0, m=60, flips=0.0)
    T = torch.stack(
        [score_test(f, pool.x, pool.y, aux, lambda_s=0.0, curvature="last", ridge=0.0) for f in models]
    )
    loss = torch.stack([signals.phi(f(pool.x).detach(), pool.y) for f in models])
    assert Rho(aux)(models[0], pool.x, pool.y).median() < 1.05
    assert abs(within(T, member) - within(loss, member)) < 0.01
    assert within(T, member) > 0.58


@pytest.mark.slow
def test_the_same_aux_for_all_models_cancels_its_error():
    """Within a record, 60 records of aux do nearly as well as 2,000; a new set for each model does not."""
    pool, aux, member, models = logistic(1, decay=0.0, m=60, d=10)

    def area(sets):
        both = zip(models, sets, strict=True)
        how = {"lambda_s": 0.0, "curvature": "last", "ridge": 0.0}
        return within(torch.stack([score_test(f, pool.x, pool.y, a, **how) for f, a in both]), member)

    few = aux[torch.arange(60)]
    own = [aux[torch.randperm(2000, generator=stream(i))[:60]] for i in range(60)]
    much, same, other = area([aux] * 60), area([few] * 60), area(own)
    assert much - same < 0.5 * (much - other)
    assert same > other + 0.02


# Rho


def slow_rho(model, x, y, aux, G=None):
    """From pseudo-inverses in the raw coordinates, one record after another."""
    found = last_layer(model, aux.x, aux.y)
    K = torch.kron(found.P, torch.eye(6).double())
    G = K @ (found.G if G is None else G) @ K.T
    G_, H_ = (torch.linalg.pinv(M, rtol=1e-11, hermitian=True) for M in (G, K @ found.H @ K.T))
    out = []
    for v, c in zip(x, y, strict=True):
        a = torch.cat([model[:2](v), torch.ones(1)]).detach()
        p = model(v).softmax(0).detach()
        g = torch.outer(p - nn.functional.one_hot(c, 3), a).flatten()
        out.append((g @ G_ @ g) * (g @ H_ @ G @ H_ @ g) / (g @ H_ @ g) ** 2)
    return torch.stack(out)


def test_rho_is_that_of_the_textbook(monkeypatch):
    model, (x, y), aux = mlp(), records(30, 4), data(300, 4)
    got = Rho(aux)(model, x, y)
    torch.testing.assert_close(got, slow_rho(model, x, y, aux), rtol=1e-7, atol=1e-9)
    monkeypatch.setattr(module, "ROWS", 7)
    torch.testing.assert_close(Rho(aux)(model, x, y), got, rtol=1e-12, atol=0)


def test_rho_is_1_or_more_and_below_kantorovichs_bound():
    for scale in (0.5, 2.0):
        model, (x, y), aux = mlp(scale=scale), records(400, 4), data(300, 4)
        rho, found = Rho(aux)(model, x, y), last_layer(model, aux.x, aux.y)
        values = torch.linalg.eigvals(torch.linalg.solve(found.G, found.H)).real
        kappa = values.max() / values.min()
        assert (rho >= 1).all()
        assert rho.max() <= (kappa + 1) ** 2 / (4 * kappa) * (1 + 1e-9)
        assert rho.max() > 1.05


def test_kantorovichs_bound_is_reached():
    """g half along each of the two extreme directions."""
    G, H = torch.eye(2).double(), torch.tensor([1.0, 9.0]).double().diag()
    g = torch.tensor([[1.0, 3.0], [1.0, 0.0], [0.0, 0.0]]).double()  # H^-1/2 g has equal parts
    got = gain(g, torch.linalg.cholesky(G), torch.linalg.cholesky(H))
    want = (1 + 9) * (1 + 9 / 81) / (1 + 1) ** 2
    assert got.tolist() == pytest.approx([want, 1.0, 1.0], rel=1e-12)
    assert want == pytest.approx((9 + 1) ** 2 / (4 * 9))


def test_the_fisher_put_for_G_says_that_weights_never_help(monkeypatch):
    """The wrong version: labels drawn from the model. True ones that know nothing of it say otherwise."""
    model, (x, y), aux = mlp(scale=1.0), records(200, 4), data(500, 4)
    right = Rho(aux)(model, x, y)
    assert right.median() > 1.02
    whole = module.last_layer

    def fisher(*args, memory):
        found = whole(*args, memory=memory)
        return found._replace(G=3 * found.H)

    monkeypatch.setattr(module, "last_layer", fisher)
    for how in (0.0, 0.05):
        wrong = Rho(aux, ridge=how)(model, x, y)
        torch.testing.assert_close(wrong, torch.ones(200).double(), rtol=0, atol=1e-6)
        assert (wrong >= 1).all()


def test_rho_goes_to_1_where_labels_follow_the_model():
    """Well specified: the labels are drawn from it. The excess falls with the number of records."""
    model, (x, y) = mlp(), records(100, 4)

    def excess(n):
        ax = records(n, 4, seed=3)[0]
        u = torch.rand(n, 1, generator=stream(n)).double()
        ay = (u > model(ax).softmax(1).detach().cumsum(1)).sum(1).clamp(max=2)
        return float((Rho(Data(ax, ay, 3, "aux"))(model, x, y) - 1).median())

    assert excess(20_000) < 0.1 * excess(200)
    assert excess(20_000) < 0.01


def test_rho_refuses_a_singular_curvature():
    model, (x, y) = mlp(), records(9, 4)
    with pytest.raises(ValueError, match="ridge must be higher where a layer's curvature is singular, got 0"):
        Rho(data(8, 4))(model, x, y)
    assert Rho(data(8, 4), ridge=0.05)(model, x, y).min() >= 1
    with pytest.raises(ValueError, match="model must be in eval mode"):
        Rho(data(60, 4))(mlp().train(), x, y)


def test_rho_of_sure_records_is_finite():
    model, (x, _), aux = mlp().float(), records(9, 4), data(300, 4)
    model[2].weight.data *= 60 / float(model(x.float()).detach().abs().max())
    got = Rho(Data(aux.x.float(), aux.y, 3, "aux"))(model, x.float(), model(x.float()).argmax(1))
    assert got.isfinite().all()
    assert (got >= 1).all()


# Calibration


def test_by_shadows_is_a_likelihood_ratio_with_two_centres_and_pooled_spreads():
    S, member = torch.randn(8, 5, generator=stream(0)).double(), shadow_rows(8, 5, 0)
    s = torch.randn(5, generator=stream(1)).double()
    sides = {True: [], False: []}
    for i in range(5):
        for side in sides:
            values = [float(v) for v, m in zip(S[:, i], member[:, i], strict=True) if bool(m) == side]
            sides[side].append((statistics.median(values), values))
    out = []
    for i in range(5):
        log = {}
        for side, both in sides.items():
            spread = math.sqrt(statistics.mean((v - mu) ** 2 for mu, vs in both for v in vs) * 20 / (20 - 5))
            log[side] = statistics.NormalDist(both[i][0], spread).pdf(float(s[i]))
        out.append(math.log(log[True] / log[False]))
    got = by_shadows(s, S, member)
    torch.testing.assert_close(got, torch.tensor(out, dtype=torch.float64), rtol=1e-9, atol=1e-9)
    own = by_shadows(s, S, member, variance="record")
    torch.testing.assert_close(own, ratio(s, fit(S, member, variance="record")))
    with pytest.raises(ValueError, match="member must hold"):
        by_shadows(s, S, torch.ones_like(member))


def slow_by_aux(s, y, leverage, s_aux, y_aux, leverage_aux):
    """Lists, sorted; no ties."""
    out = []
    for v, c, h in zip(s.tolist(), y.tolist(), leverage.tolist(), strict=True):
        rows = list(zip(leverage_aux.tolist(), s_aux.tolist(), y_aux.tolist(), strict=True))
        own = sorted((a, b) for a, b, k in rows if k == c)
        if len(own) < 10:
            own = sorted((a, b) for a, b, _ in rows)
        k = min(10, max(1, len(own) // 10))
        size, more = divmod(len(own), k)
        groups, start = [], 0
        for i in range(k):
            stop = start + size + (i < more)
            groups.append(own[start:stop])
            start = stop
        group = next((part for part in groups if h <= part[-1][0]), groups[-1])
        values = [b for _, b in group]
        out.append((v - statistics.mean(values)) / statistics.stdev(values))
    return torch.tensor(out, dtype=torch.float64)


def made(n, c, seed, sizes=None):
    g = stream(seed, "made")
    y = torch.randint(c, (n,), generator=g) if sizes is None else torch.arange(c).repeat_interleave(sizes)
    leverage = torch.randn(len(y), generator=g).double()
    return torch.randn(len(y), generator=g).double() * leverage.exp() + y, y, leverage


def test_by_aux_is_that_of_the_textbook():
    here = made(60, 4, 0)
    there = made(0, 4, 1, torch.tensor([230, 100, 37, 6]))
    with pytest.warns(
        Floored, match=r"of 60 records have fewer than 100 records of aux in their class, \d+ few"
    ):
        got = by_aux(*here, *there)
    torch.testing.assert_close(got, slow_by_aux(*here, *there), rtol=1e-9, atol=1e-9)
    mixed = torch.randperm(len(there[0]), generator=stream(0))
    turn = torch.randperm(60, generator=stream(1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Floored)
        other = by_aux(*(t[turn] for t in here), *(t[mixed] for t in there))
        torch.testing.assert_close(other, got[turn])
        single = by_aux(*(t.float() if t.is_floating_point() else t for t in here), *there)
        torch.testing.assert_close(single, got, rtol=1e-3, atol=1e-3)


def test_by_aux_takes_out_what_class_and_leverage_explain():
    """Non-members of one law: z has mean 0 and spread 1 in each class and at each leverage."""
    z = by_aux(*made(3000, 3, 0), *made(30_000, 3, 1))
    _, y, leverage = made(3000, 3, 0)
    for rows in (y == 0, y == 2, leverage < -1, leverage > 1):
        assert abs(float(z[rows].mean())) < 4 / float(rows.sum()) ** 0.5
        assert 0.8 < float(z[rows].std()) < 1.3
    s = made(3000, 3, 0)[0]
    assert float(s[leverage > 1].std()) > 5 * float(s[leverage < -1].std())


def test_ties_single_classes_and_constants():
    s, s_aux = torch.arange(6.0).double(), torch.arange(40.0).double()
    y, y_aux, flat, flat_aux = (torch.zeros(k) for k in (6, 40, 6, 40))
    y, y_aux = y.long(), y_aux.long()
    spread = float(s_aux.std())
    with pytest.warns(Floored, match="6 of 6 records have fewer than 100"):
        got = by_aux(s, y, flat, s_aux, y_aux, flat_aux)
    with pytest.warns(Floored):
        above = by_aux(s, y, flat + 1, s_aux, y_aux, flat_aux)
    torch.testing.assert_close(got, (s - 19.5) / spread)
    torch.testing.assert_close(above, got)
    # half of the leverages tie: what they leave is too few for a group of its own
    some = torch.cat([torch.zeros(35), torch.ones(5)])
    with pytest.warns(Floored):
        got = by_aux(s, y, flat + 1, s_aux, y_aux, some)
    torch.testing.assert_close(got, (s - 19.5) / spread)
    with pytest.warns(Floored, match="6 of 6 spreads floored at 0.001"):
        got = by_aux(s, y, flat, torch.full((100,), 2.0), torch.zeros(100).long(), torch.arange(100.0))
    assert got.isfinite().all()
    with pytest.warns(Floored, match="1 fewer than 10"):
        one = by_aux(s[:1], y[:1], flat[:1], s_aux[:2], y_aux[:2], flat_aux[:2])
    assert one.tolist() == pytest.approx([-0.5 / 0.5**0.5])


def test_by_aux_refuses():
    s, y = torch.arange(3.0), torch.zeros(3).long()
    for count in (1, 0):
        need = f"s_aux must be as long as .*, s_aux 2 or longer, got {count}, {count}, {count}"
        with pytest.raises(ValueError, match=need) as caught:
            by_aux(s, y, s, s[:count], y[:count], s[:count])
        assert "\n" not in str(caught.value)


def test_records_of_aux_that_made_the_curvature_do_not_calibrate_it():
    """The wrong version: a record of aux pulls at Gamma itself, so that its T is too low, and z too high."""
    game, _ = ridge(leaks=False, seed=0, n=900, d=60)
    cut = torch.arange(900) < 300
    rest, calibration, model = game.aux[~cut], game.aux[cut], game.model
    leverage = Leverage(rest)

    def z(held):
        T = [score_test(model, d.x, d.y, rest, lambda_s=0.0) for d in (Data(game.x, game.y, 5, "x"), held)]
        h = leverage(model, game.x, game.y), leverage(model, held.x, held.y)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Floored)
            return by_aux(T[0], game.y, h[0], T[1], held.y, h[1])

    right, wrong = z(calibration), z(rest)
    error = (1 / 900 + 1 / 300) ** 0.5
    assert abs(float(right.mean())) < 4 * error
    assert float(wrong.mean()) > 4 * error


# Laws


def three(game, *, lambda_s=0.005):
    """Raw, by shadows, by aux."""
    cut = torch.arange(len(game.aux)) % 6 == 0
    rest, held = game.aux[~cut], game.aux[cut]
    how = {"lambda_s": lambda_s}
    raw = score_test(game.model, game.x, game.y, game.aux, **how)
    S = torch.stack([score_test(f, game.x, game.y, game.aux, **how) for f in game.shadows.models])
    leverage = Leverage(rest)
    mine, theirs = (
        (score_test(game.model, x, y, rest, **how), y, leverage(game.model, x, y))
        for x, y in ((game.x, game.y), (held.x, held.y))
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Floored)
        return raw, by_shadows(raw, S, game.shadows.member), by_aux(*mine, *theirs)


def test_finds_a_planted_leak():
    game, truth = ridge(leaks=True, seed=0, d=40)
    raw, shadows, aux = (auc(s, truth) for s in three(game))
    assert min(raw, aux) > 0.65
    assert shadows > 0.75
    assert shadows > raw + 0.02


def test_finds_nothing_where_nothing_is():
    """20 worlds; a false alarm in 16,000 for each of three scores."""
    worlds = [ridge(leaks=False, seed=s, n=120, d=30, m=4) for s in range(20)]
    areas = torch.tensor([[auc(s, truth) for s in three(game)] for game, truth in worlds])
    assert ((areas.mean(0) - 0.5).abs() <= 4 * auc_se(60, 60) / 20**0.5).all()


def test_order_and_arguments():
    game, _ = ridge(leaks=True, seed=0, n=60, d=20, m=2, hidden=8)
    model = game.model
    held, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    for how in ("kfac", "ekfac", "last"):
        whole = score_test(model, game.x, game.y, game.aux, lambda_s=0.01, curvature=how)
        turn = torch.randperm(60, generator=stream(0))
        other = score_test(model, game.x[turn], game.y[turn], game.aux, lambda_s=0.01, curvature=how)
        torch.testing.assert_close(other, whole[turn], rtol=1e-5, atol=1e-6)
        alone = score_test(model, game.x[:1], game.y[:1], game.aux, lambda_s=0.01, curvature=how)
        torch.testing.assert_close(alone, whole[:1], rtol=1e-5, atol=1e-6)
    assert all(torch.equal(v, held[name]) for name, v in model.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_refuses():
    model, (x, y), aux = mlp(), records(9, 4), data(60, 4)
    with pytest.raises(ValueError, match="lambda_s must be 0 or more, got -1") as caught:
        score_test(model, x, y, aux, lambda_s=-1.0)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="model must be in eval mode"):
        score_test(mlp().train(), x, y, aux, lambda_s=0.0)
    with pytest.raises(ValueError, match="x and y must hold as many records"):
        score_test(model, x[:0], y[:0], aux, lambda_s=0.0)
