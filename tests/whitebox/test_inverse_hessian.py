import copy
import warnings
from functools import cache

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from glasslab.checks import Floored
from glasslab.metrics import auc
from glasslab.null_law import auc_se
from glasslab.recipe import Recipe
from glasslab.split import stream
from whitebox import inverse_hessian as module
from whitebox.inverse_hessian import inverse_hessian
from whitebox.krylov import powers

EPS = 1.5  # the nets are not trained: their Hessians have eigenvalues below -0.5
EPSILON = {"exact": EPS, "low_rank": 0.1, "cg": EPS}
METHODS = tuple(EPSILON)
RECIPE = Recipe(lr=0.05, momentum=0.9, weight_decay=5e-3)
methods = pytest.mark.parametrize("method", METHODS)


def net(kind="mlp"):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if kind == "conv":
            body = [nn.Conv2d(1, 3, 2), nn.BatchNorm2d(3), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
            model = nn.Sequential(nn.Unflatten(1, (1, 2, 3)), *body[:3], nn.Flatten(), nn.Linear(6, 3))
        elif kind == "relu":
            model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
        else:
            model = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3))
        for p in model.parameters():
            p.data += 0.3 * torch.randn(p.shape)
    return model.eval()


def records(n=20, d=6, c=3, seed=0):
    g = stream(seed, "iha")
    x, y = torch.randn(n, d, generator=g), torch.randint(c, (n,), generator=g)
    return x, y, torch.rand(n, generator=g) < 0.5


def fitted(x, y, member, c=2, decay=0.0):
    """Softmax regression at the optimum of the members' mean loss, from zero."""
    model = nn.Linear(x.shape[1], c).double()
    for p in model.parameters():
        p.data.zero_()
    solver = torch.optim.LBFGS(model.parameters(), max_iter=500, tolerance_grad=1e-12, tolerance_change=0)
    rows, labels = x[member].double(), y[member]

    def closure():
        solver.zero_grad()
        size = sum(p.square().sum() for p in model.parameters())
        loss = cross_entropy(model(rows), labels) + decay / 2 * size
        loss.backward()
        return loss

    solver.step(closure)
    return model.eval()


def logistic(seed, n=160, d=8):
    """(x, y): classes that overlap, so that the optimum is finite."""
    g = stream(seed, "logistic")
    x = torch.randn(n, d, generator=g)
    return x, (x[:, 0] + torch.randn(n, generator=g) > 0).long()


# One record at a time, the matrix from autograd, its inverse from eigenvalues


@cache
def ingredients(model, x, y):
    """(parameters, losses, gradients, Hessians), one record at a time."""
    model = copy.deepcopy(model).double()
    names, shapes = zip(*[(k, p.shape) for k, p in model.named_parameters()], strict=True)
    theta = torch.cat([p.detach().flatten() for p in model.parameters()])
    buffers = dict(model.named_buffers())

    def loss(flat, i):
        parts = flat.split([s.numel() for s in shapes])
        weights = {k: p.reshape(s) for k, p, s in zip(names, parts, shapes, strict=True)}
        z = torch.func.functional_call(model, {**weights, **buffers}, (x[i : i + 1].double(),))[0]
        return z.logsumexp(0) - z[y[i]]

    def slope(i):
        flat = theta.clone().requires_grad_()
        return torch.autograd.grad(loss(flat, i), flat)[0]

    each = range(len(x))
    curved = [
        torch.autograd.functional.hessian(lambda flat, i=i: loss(flat, i), theta, vectorize=True)
        for i in each
    ]
    return theta, [loss(theta, i) for i in each], [slope(i) for i in each], curved


def textbook(
    model,
    x,
    y,
    known,
    recipe,
    *,
    skip_loss=False,
    eps=0.2,
    method="exact",
    n=None,
    own=False,
    count=False,
    members=False,
):
    """The last three make wrong versions: entry i used in gbar0, n as a count, H over the members."""
    theta, ell, g, curved = ingredients(model, x, y)
    among = [h for h, is_in in zip(curved, known, strict=True) if is_in or not members]
    lam, mu, eta = recipe.weight_decay, recipe.momentum, recipe.lr
    L, Q = torch.linalg.eigh(sum(among) / len(among) + lam * torch.eye(len(theta), dtype=torch.float64))
    if method == "low_rank":
        inverse = sum(torch.outer(q, q) / l for l, q in zip(L, Q.T, strict=True) if abs(l) > eps)
    else:
        inverse = Q @ torch.diag(1 / (L + eps)) @ Q.T
    n = n or round(len(x) / 2)
    scores = []
    for i in range(len(x)):
        others = [j for j in range(len(x)) if known[j] and (own or j != i)]
        if count:
            n = len(others)
        gbar0 = sum((g[j] for j in others), torch.zeros_like(theta)) / n
        u, v = inverse @ g[i], inverse @ gbar0
        w = inverse @ u
        i1, i2, i3 = ell[i] / (1 + mu), u @ u / n, 2 * v @ u
        i4, i5 = u @ w / n, 2 * v @ w
        s = 1 - eta * lam / (1 + mu)
        r = -(i4 + i5) * (lam / 2) * (2 - eta * lam / (1 + mu))
        scores.append(-(i2 + i3) * s + r if skip_loss else i1 - (i2 + i3) * s / eta + r / eta)
    return torch.stack(scores)


@methods
@pytest.mark.parametrize("kind", ["mlp", "conv"])
@pytest.mark.parametrize("skip_loss", [False, True])
def test_equals_the_textbook(method, kind, skip_loss):
    """A decay of 0.5 makes I4 and I5 count as much as the rest."""
    model, (x, y, known) = net(kind), records()
    recipe = Recipe(lr=0.3, momentum=0.6, weight_decay=0.5)
    settings = {"method": method, "skip_loss": skip_loss, "eps": EPSILON[method]}
    want = textbook(model, x, y, known, recipe, **settings, n=12)
    got = inverse_hessian(model, x, y, known, recipe, **settings, n_train=12, tolerance=1e-12)
    torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-8)
    assert (want - textbook(model, x, y, known, recipe, **settings)).abs().max() > 1e-3


def test_by_default_n_is_half_of_the_candidates():
    model, (x, y, known) = net(), records()
    known[:15] = True
    got = inverse_hessian(model, x, y, known, RECIPE, eps=EPS)
    torch.testing.assert_close(got, textbook(model, x, y, known, RECIPE, eps=EPS), rtol=1e-8, atol=1e-8)


def test_momentum_is_that_of_sgd_alone():
    model, (x, y, known) = net(), records()
    adam = inverse_hessian(model, x, y, known, Recipe(optimiser="adam", lr=0.05, momentum=0.9), eps=EPS)
    plain = inverse_hessian(model, x, y, known, Recipe(lr=0.05, momentum=0.0), eps=EPS)
    assert torch.equal(adam, plain)


@pytest.mark.parametrize("kind", ["relu", "conv"])
def test_conjugate_gradients_give_what_the_exact_inverse_gives(kind):
    model, (x, y, known) = net(kind), records(60)
    exact, cg = (inverse_hessian(model, x, y, known, RECIPE, method=m, eps=EPS) for m in ("exact", "cg"))
    torch.testing.assert_close(cg, exact, rtol=1e-4, atol=1e-4 * exact.std().item())
    loose = inverse_hessian(model, x, y, known, RECIPE, method="cg", eps=EPS, tolerance=0.5)
    assert (loose - exact).abs().max() > 1e-3 * exact.std()


# What the entry of a record may decide


def moved(score):
    """(largest change of score i by flipping entry i; smallest, over i, of the largest change elsewhere)."""
    known = records()[2]
    before, own, elsewhere = score(known), [], []
    for i in range(0, len(known), 3):
        flipped = known.clone()
        flipped[i] = ~known[i]
        change = (score(flipped) - before).abs().tolist()
        own.append(change.pop(i))
        elsewhere.append(max(change))
    return max(own), min(elsewhere)


@methods
@pytest.mark.parametrize("skip_loss", [False, True])
def test_entry_i_of_known_never_enters_score_i(method, skip_loss):
    """Bit for bit, while the other scores move."""
    model, (x, y, _) = net("relu"), records()
    settings = {"method": method, "skip_loss": skip_loss, "eps": EPSILON[method]}
    own, elsewhere = moved(lambda known: inverse_hessian(model, x, y, known, RECIPE, **settings))
    assert own == 0
    assert elsewhere > 1e-5


@pytest.mark.parametrize("wrong", [{"own": True}, {"members": True}, {"own": True, "count": True}])
def test_the_flip_tells_the_wrong_versions(wrong):
    """gbar0 with record i in it; H over the members, i among them."""
    model, (x, y, _) = net("relu"), records()
    assert moved(lambda known: textbook(model, x, y, known, RECIPE, eps=EPS))[0] == 0
    assert moved(lambda known: textbook(model, x, y, known, RECIPE, eps=EPS, **wrong))[0] > 1e-5


def test_a_count_for_n_would_tell_where_the_sides_are_equal():
    """The flip does not see it: the count of the *others* is known without entry i, and gives i away."""
    model, (x, y, _) = net(), records()
    known = torch.arange(20) < 10
    assert moved(lambda k: textbook(model, x, y, k, RECIPE, eps=EPS, count=True))[0] == 0
    counts = torch.stack([known.sum() - known[i].int() for i in range(20)])
    assert auc(-counts.double(), known) == 1
    constant = inverse_hessian(model, x, y, known, RECIPE, eps=EPS, n_train=10)
    torch.testing.assert_close(
        constant, textbook(model, x, y, known, RECIPE, eps=EPS, n=10), rtol=1e-8, atol=1e-8
    )
    assert (constant - textbook(model, x, y, known, RECIPE, eps=EPS, count=True)).abs().max() > 1e-4


def test_null_world(monkeypatch):
    """Models that learned another draw. 12 worlds, 4 standard errors: a false alarm in 16,000."""
    worlds = []
    for seed in range(12):
        x, y = logistic(seed, n=60, d=30)
        known, other = (torch.rand(60, generator=stream(seed, name)) < 0.5 for name in ("known", "other"))
        worlds.append((fitted(x, y, other, decay=0.1), x, y, known))

    def mean():
        return sum(auc(inverse_hessian(*w, RECIPE, skip_loss=True), w[-1]) for w in worlds) / 12

    se = auc_se(30, 30) / 12**0.5
    assert abs(mean() - 0.5) < 4 * se
    monkeypatch.setattr(module, "_others", lambda g, v, member, start: member @ (g @ v.T))  # i among them
    assert abs(mean() - 0.5) > 6 * se


# What it finds


@pytest.mark.parametrize("eps", [1e-6, 0.02, 0.2])
def test_members_of_a_converged_regression_are_all_found(eps):
    x, y = logistic(0)
    member = torch.rand(160, generator=stream(0, "member")) < 0.5
    model = fitted(x, y, member)
    recipe = Recipe(lr=0.01, momentum=0.9)
    settings = {"eps": eps, "n_train": int(member.sum())}
    assert auc(inverse_hessian(model, x, y, member, recipe, skip_loss=True, **settings), member) > 0.9999
    assert auc(inverse_hessian(model, x, y, member, recipe, **settings), member) > 0.99


def test_the_loss_term_works_against_a_large_rate():
    """Members have a small loss. It is the formula's; hence both forms."""
    x, y = logistic(0)
    member = torch.rand(160, generator=stream(0, "member")) < 0.5
    model, recipe = fitted(x, y, member), Recipe(lr=1.0, momentum=0.0)
    areas = [auc(inverse_hessian(model, x, y, member, recipe, eps=eps), member) for eps in (1e-6, 0.02, 0.2)]
    assert areas[0] > areas[1] > areas[2]
    assert areas[2] < 0.7


def test_at_a_stationary_point_the_sign_is_the_answer():
    x, y = logistic(1)
    member = torch.rand(160, generator=stream(1, "member")) < 0.5
    score = inverse_hessian(
        fitted(x, y, member), x, y, member, Recipe(), skip_loss=True, n_train=int(member.sum())
    )
    assert torch.equal(score > 0, member)


# Where it runs


def test_leaves_the_model_alone_also_after_an_exception():
    model, (x, y, known) = net("conv"), records()
    fired = []
    model[0].register_forward_hook(lambda *_: fired.append(1))
    model[1].weight.requires_grad_(False)
    model[5].bias.grad = torch.ones(3)
    state, arguments = copy.deepcopy(model.state_dict()), copy.deepcopy((x, y, known))
    inverse_hessian(model, x, y, known, RECIPE, eps=EPS)
    with pytest.raises((ValueError, RuntimeError)):
        inverse_hessian(model, x[:, :3], y, known, RECIPE)
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())
    assert [p.requires_grad for p in model.parameters()][:2] == [False, True]
    assert [p.grad is None for p in model.parameters()] == [True] * 5 + [False]
    assert len(model[0]._forward_hooks) == 1
    assert not model.training
    assert all(torch.equal(a, b) for a, b in zip((x, y, known), arguments, strict=True))


@methods
def test_order_of_records_and_of_hidden_units_does_not_matter(method):
    model, (x, y, known) = net("relu"), records(30)
    settings = {"method": method, "eps": EPSILON[method], "records": 11, "tolerance": 1e-12}
    score = inverse_hessian(model, x, y, known, RECIPE, **settings)
    rows = torch.randperm(30, generator=stream(3))
    again = inverse_hessian(model, x[rows], y[rows], known[rows], RECIPE, **settings)
    torch.testing.assert_close(again, score[rows], rtol=1e-8, atol=1e-8)
    other, units = copy.deepcopy(model), torch.randperm(8, generator=stream(4))
    other[0].weight.data, other[0].bias.data = model[0].weight[units].data, model[0].bias[units].data
    other[2].weight.data = model[2].weight[:, units].data
    again = inverse_hessian(other, x, y, known, RECIPE, **settings)
    torch.testing.assert_close(again, score, rtol=1e-5, atol=1e-6)


def test_fewer_records_for_the_hessian_change_little():
    x, y = logistic(0)
    known = torch.rand(160, generator=stream(0, "member")) < 0.5
    model = fitted(x, y, known)
    every, some = (inverse_hessian(model, x, y, known, RECIPE, records=k) for k in (None, 80))
    assert not torch.equal(every, some)
    assert torch.corrcoef(torch.stack([every, some]))[0, 1] > 0.98
    assert torch.equal(every, inverse_hessian(model, x, y, known, RECIPE, records=160))


@methods
def test_memory_changes_no_result(method):
    model, (x, y, known) = net("conv"), records(40)
    settings = {"method": method, "eps": EPSILON[method], "tolerance": 1e-12}
    room, little = (
        inverse_hessian(model, x, y, known, RECIPE, **settings, memory=m) for m in ("512MiB", "120KiB")
    )
    torch.testing.assert_close(room, little, rtol=1e-9, atol=1e-9)


def test_the_method_follows_the_number_of_parameters():
    assert module._way("auto", 5_000, "512MiB") == "exact"
    assert module._way("auto", 6_000, "512MiB") == "cg"
    assert module._way("auto", 50_000, "40GiB") == "exact"
    assert module._way("auto", 50_001, "400GiB") == "cg"


def test_sure_records_in_float32_do_not_tie():
    """Log-odds of 60: in float32 their loss and gradient are 0."""
    model = nn.Linear(1, 2, bias=False).eval()
    model.weight.data = torch.tensor([[0.0], [1.0]])
    x, y = torch.tensor([[60.0], [50.0], [0.5]]), torch.tensor([1, 1, 0])
    score = inverse_hessian(model, x, y, torch.tensor([True, True, True]), Recipe(), skip_loss=True)
    assert score.isfinite().all()
    assert score[0] != score[1] != 0


@methods
def test_one_record_and_no_other_member(method):
    """Of a convex loss: the Hessian of a single record is indefinite in deeper nets."""
    x, y, _ = records(1)
    model, settings = nn.Linear(6, 3).eval(), {"method": method, "eps": 0.1}
    model.weight.data, model.bias.data = torch.linspace(-1, 1, 18).reshape(3, 6), torch.zeros(3)
    for known in (True, False):
        flag = torch.tensor([known])
        got = inverse_hessian(model, x, y, flag, RECIPE, **settings, tolerance=1e-12)
        want = textbook(model, x, y, flag, RECIPE, **settings, n=1)
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-8)


def test_negative_curvature_is_said():
    model, (x, y, known) = net("relu"), records()
    with pytest.warns(Floored, match="negative eigenvalues that eps 1e-06 does not outweigh"):
        inverse_hessian(model, x, 2 - y, known, Recipe(), eps=1e-6, method="exact")
    H = torch.diag(torch.tensor([-1.0, 1.0, 2.0, 3.0], dtype=torch.float64))
    b = torch.ones(2, 4, dtype=torch.float64)
    b[1, 0] = 0
    with pytest.warns(Floored, match="1 of 2 records met negative curvature"):
        got = powers(lambda v: v @ H, b, tolerance=1e-8, limit=10)
    torch.testing.assert_close(got[0], b / H.diagonal())


def test_low_rank_that_keeps_nothing_is_said():
    model, (x, y, known) = net(), records()
    with pytest.warns(Floored, match="0 of 43 eigenvalues"):
        score = inverse_hessian(model, x, y, known, RECIPE, eps=1e3, method="low_rank", skip_loss=True)
    assert (score == 0).all()


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"eps": 0.0}, "eps must be above 0, got 0.0"),
        ({"tolerance": 0.0}, "tolerance must be above 0"),
        ({"n_train": 0}, "n_train must be 1 or more, got 0"),
        ({"records": 21}, "records must lie in 1 .. 20, got 21"),
        ({"records": 0}, "records must lie in 1 .. 20, got 0"),
        ({"method": "exact", "memory": "16KiB"}, "memory must be 1MiB for method 'exact' and 43 parameters"),
        ({"memory": "16"}, "memory must be a number"),
    ],
)
def test_refuses(settings, text):
    model, (x, y, known) = net(), records()
    with pytest.raises(ValueError, match=text):
        inverse_hessian(model, x, y, known, RECIPE, **settings)


def test_refuses_a_model_in_training_mode_and_an_unknown_method():
    x, y, known = records()
    with pytest.raises(ValueError, match="train"):
        inverse_hessian(net("conv").train(), x, y, known, RECIPE)
    with pytest.raises(ValueError, match="method must be 'auto', 'exact', 'low_rank' or 'cg', got 'qr'"):
        module._way.__wrapped__("qr", 10, "1MiB")


# The solver


def test_powers_of_the_inverse_of_a_known_matrix():
    g = stream(0)
    q = torch.linalg.qr(torch.randn(30, 30, generator=g, dtype=torch.float64))[0]
    H = q @ torch.diag(torch.logspace(-1, 2, 30, dtype=torch.float64)) @ q.T
    b = torch.randn(7, 30, generator=g, dtype=torch.float64)
    b[3] = 0  # solved by zeros
    b[4] = q[:, 2]  # found at the first step
    got = powers(lambda v: v @ H, b, tolerance=1e-10, limit=200)
    want = [b]
    for k in range(3):
        want.append(torch.linalg.solve(H, want[-1].T).T)
        residual = (got[k] @ H - (got[k - 1] if k else b)).norm(dim=1)
        assert (residual <= 2e-10 * (got[k - 1] if k else b).norm(dim=1) + 1e-12).all()
    torch.testing.assert_close(got, torch.stack(want[1:]), rtol=1e-5, atol=1e-6)


def test_rows_left_undone_are_counted():
    H = torch.diag(torch.logspace(-3, 3, 40, dtype=torch.float64))
    b = torch.ones(3, 40, dtype=torch.float64)
    b[1, 1:] = 0
    with pytest.warns(Floored, match="2 of 3 records not within 1e-08 after 5 steps"):
        got = powers(lambda v: v @ H, b, tolerance=1e-8, limit=5)
    assert got.isfinite().all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        powers(lambda v: v @ H, b[1:2], tolerance=1e-8, limit=5)
