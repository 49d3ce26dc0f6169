"""Self-influence against explicit inverses, refits, and loops of autograd in float64."""

import copy
import math

import pytest
import torch
from scipy.stats import spearmanr
from torch import nn
from torch.nn.functional import cross_entropy
from worlds import ridge as ridge_world

from glasslab.checks import Floored
from glasslab.data import Data
from glasslab.metrics import auc
from glasslab.null_law import auc_se
from glasslab.split import stream
from whitebox import sif as module
from whitebox.influence import Leverage, influence, sif, tracin
from whitebox.kronecker import drawn

CLOSE = {"rtol": 1e-9, "atol": 1e-9}


def fill(model, seed=0, scale=0.5):
    """Weights of one seed, float64, eval mode."""
    g = stream(seed, "weights")
    for w in model.parameters():
        w.data = torch.randn(w.shape, generator=g, dtype=torch.float64) * scale
    return model.double().eval()


def mlp(seed=0):
    return fill(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), seed)


def relu():
    return fill(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)))


def cnn():
    parts = nn.Conv2d(2, 3, 3), nn.GroupNorm(1, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(48, 3)
    return fill(nn.Sequential(*parts))


def records(n, *shape, c=3, seed=0):
    g = stream(seed, "records")
    x = torch.randn(n, *shape, generator=g, dtype=torch.float64)
    return x, torch.randint(c, (n,), generator=g)


def margin(z, y):
    return z[y] - torch.cat([z[:y], z[y + 1 :]]).logsumexp(0)


def gradient(model, x, y, of="loss", only=None):
    """One record's gradient in all parameters (or in those of a layer), as one vector."""
    held = [p for name, p in model.named_parameters() if only is None or name.startswith(only)]
    z = model(x[None])[0]
    value = cross_entropy(z, y) if of == "loss" else margin(z, y)
    return torch.cat([g.flatten() for g in torch.autograd.grad(value, held)])


def hessian(model, x, y):
    """Of the loss at one record, in all parameters."""
    shapes = {name: p.shape for name, p in model.named_parameters()}

    def loss(flat):
        parts = flat.split([s.numel() for s in shapes.values()])
        held = {n: v.reshape(s) for (n, s), v in zip(shapes.items(), parts, strict=True)}
        return cross_entropy(torch.func.functional_call(model, held, (x[None],)), y[None])

    flat = torch.cat([p.detach().flatten() for p in model.parameters()])
    return torch.autograd.functional.hessian(loss, flat)


def softmax_hessian(model, x):
    """Mean over records of kron(diag p - p p', a a') in the raw coordinates of a dense layer [W, then b]."""
    out = 0
    for v in x:
        p = model(v).softmax(0).detach()
        a = torch.cat([v, torch.ones(1).double()])
        out = out + torch.kron(torch.diag(p) - torch.outer(p, p), torch.outer(a, a))
    return out / len(x)


def raw(model, x, y, of="phi"):
    """J in the same coordinates."""
    rows = []
    for v, label in zip(x, y, strict=True):
        g = gradient(model, v, label, of)
        c = model.weight.shape[0]
        rows.append(torch.cat([g[: -c or None].reshape(c, -1), g[-c:, None]], 1).flatten())
    return torch.stack(rows)


# The last layer, exactly


@pytest.mark.parametrize("ridge", [0.0, 0.05, 3.0])
def test_last_is_the_explicit_inverse_on_softmax_regression(ridge):
    """The inverse in raw coordinates, a pseudo-inverse at ridge 0: J lies in the range of H."""
    model = fill(nn.Linear(4, 3))
    x, y = records(12, 4)
    aux_x, aux_y = records(80, 4, seed=1)
    H = softmax_hessian(model, aux_x)
    unit = ridge * H.trace() / (2 * 5)
    inverse = (
        torch.linalg.pinv(H, rtol=1e-10)
        if ridge == 0
        else torch.linalg.inv(H + unit * torch.eye(15).double())
    )
    g = raw(model, x, y, "loss")
    want = -torch.stack([v @ inverse @ v for v in g]).log()
    torch.testing.assert_close(influence(model, x, y, aux_x, aux_y, ridge=ridge), want, **CLOSE)


def test_the_damping_is_put_on_the_solution():
    """H s + r s = g. Public code adds r times g instead: s is then (1 - r) H^-1 g."""
    model = fill(nn.Linear(4, 3))
    x, y = records(12, 4)
    aux = Data(*records(80, 4, seed=1), 3, "aux")
    H, J = softmax_hessian(model, aux.x), raw(model, x, y)
    unit = 0.3 * H.trace() / 10
    right = torch.stack([v @ torch.linalg.solve(H + unit * torch.eye(15).double(), v) for v in J]).log()
    wrong = torch.stack([(1 - unit) * (v @ torch.linalg.pinv(H, rtol=1e-10) @ v) for v in J]).log()
    got = Leverage(aux, ridge=0.3)(model, x, y)
    torch.testing.assert_close(got, right, **CLOSE)
    assert (got - wrong).abs().min() > 0.05


def test_the_score_is_the_loss_and_the_leverage():
    model = mlp()
    x, y = records(20, 4)
    aux = Data(*records(60, 4, seed=1), 3, "aux")
    phi = torch.stack([margin(z, label) for z, label in zip(model(x), y, strict=True)]).detach()
    lost = -2 * torch.nn.functional.logsigmoid(-phi)
    for method, signal in (
        ("last", Leverage(aux)),
        ("ekfac", Leverage(aux, "ekfac", seed=3)),
        ("identity", Leverage(aux, "identity")),
    ):
        score = influence(model, x, y, aux.x, aux.y, method=method, generator=stream(3, "leverage"))
        torch.testing.assert_close(score, lost - signal(model, x, y), **CLOSE)


def test_labels_do_not_matter_to_the_curvature():
    """H is that of the model's own probabilities."""
    model = mlp()
    x, y = records(9, 4)
    aux_x, aux_y = records(60, 4, seed=1)
    for method in ("last", "ekfac"):
        a, b = (
            influence(model, x, y, aux_x, labels, method=method, generator=stream(0))
            for labels in (aux_y, (aux_y + 1) % 3)
        )
        torch.testing.assert_close(a, b, **CLOSE)


def newton(x, y, weight, decay, c=3):
    """Softmax regression with weighted records, to the optimum: [c, i1], and a' theta for all x."""
    a = torch.cat([x, torch.ones(len(x), 1).double()], 1)
    theta = torch.zeros(c * a.shape[1], dtype=torch.float64)
    for _ in range(12):
        p = (a @ theta.reshape(c, -1).T).softmax(1)
        slope = weight[:, None] * (p - nn.functional.one_hot(y, c)) / len(x)
        g = (slope.T @ a).flatten() + decay * theta
        curve = (torch.diag_embed(p) - p[:, :, None] * p[:, None, :]) * weight[:, None, None] / len(x)
        H = torch.einsum("nij,nk,nl->ikjl", curve, a, a).reshape(len(theta), -1)
        theta = theta - torch.linalg.solve(H + decay * torch.eye(len(theta)).double(), g)
    assert g.abs().max() < 1e-10
    return theta.reshape(c, -1), a @ theta.reshape(c, -1).T


def test_leverage_predicts_what_leaving_a_record_out_does_to_its_margin():
    """phi - phi without it is sigma(-phi) leverage / n, to first order."""
    x, y = records(50, 3)
    decay = 0.01
    theta, z = newton(x, y, torch.ones(50).double(), decay)
    model = nn.Linear(3, 3).double().eval()
    model.weight.data, model.bias.data = theta[:, :-1], theta[:, -1]
    H = softmax_hessian(model, x)
    signal = Leverage(Data(x, y, 3, "its own"), ridge=float(decay / (H.trace() / 8)))
    got = signal(model, x, y)
    want = []
    for i in range(50):
        _, without = newton(x, y, (torch.arange(50) != i).double(), decay)
        full = margin(z[i], y[i])
        want.append(float(50 * (full - margin(without[i], y[i])) / (-full).sigmoid()))
    assert min(want) > 0
    assert spearmanr(got, want).statistic > 0.9
    assert abs(got.exp() / torch.tensor(want) - 1).median() < 0.15


# EK-FAC, and no curvature


def test_ekfac_is_exact_where_the_factors_are_independent():
    """The model sees no input, so p is the same everywhere; what is left is the draw of 20,000 labels."""
    model = fill(nn.Linear(3, 3))
    model.weight.data.zero_()
    x, y = records(15, 3)
    aux_x, aux_y = records(20_000, 3, seed=1)
    exact = influence(model, x, y, aux_x, aux_y, ridge=0.0)
    drawn_labels = influence(model, x, y, aux_x, aux_y, method="ekfac", ridge=0.0, generator=stream(0))
    torch.testing.assert_close(drawn_labels, exact, rtol=0, atol=0.1)


def textbook_ekfac(model, x, y, aux_x, labels, ridge):
    """Dense layers by name; eigenvectors of the factors in raw coordinates, then the mean squares."""
    out = torch.zeros(len(x)).double()
    for name, m in model.named_modules():
        if not isinstance(m, nn.Linear):
            continue
        c = len(m.weight)

        def rows(x, y, of, name=name, c=c):
            found = [gradient(model, v, label, of, name) for v, label in zip(x, y, strict=True)]
            return torch.stack([torch.cat([g[:-c].reshape(c, -1), g[-c:, None]], 1) for g in found])

        g = rows(aux_x, labels, "loss")
        # rank one: g = delta a' with a's last entry 1
        delta, a = g[:, :, -1], (g.mT @ g[:, :, -1:] / g[:, :, -1:].square().sum(1, keepdim=True))[:, :, 0]
        U_A = torch.linalg.eigh(a.T @ a).eigenvectors
        U_B = torch.linalg.eigh(delta.T @ delta).eigenvectors
        value = torch.stack([(U_B.T @ v @ U_A).square() for v in g]).mean(0)
        if name == "2":  # one direction of the deltas is none: it is no part of the mean
            U_B, value = U_B[:, 1:], value[1:]
        value = value + ridge * value.mean()
        J = rows(x, y, "phi")
        out += torch.stack([((U_B.T @ v @ U_A).square() / value).sum() for v in J])
    return out.log()


def test_ekfac_is_the_textbooks():
    model = mlp()
    x, y = records(8, 4)
    aux_x, aux_y = records(40, 4, seed=1)
    labels = drawn(model, aux_x, aux_y, "sampled", stream(5))
    phi = torch.stack([margin(z, label) for z, label in zip(model(x), y, strict=True)]).detach()
    lost = -2 * torch.nn.functional.logsigmoid(-phi)
    got = influence(model, x, y, aux_x, aux_y, method="ekfac", generator=stream(5), memory="4 KiB")
    torch.testing.assert_close(lost - got, textbook_ekfac(model, x, y, aux_x, labels, 0.05), **CLOSE)


def test_norm_layers_count_by_the_diagonal():
    model = cnn()
    x, y = records(6, 2, 6, 6)
    aux_x, aux_y = records(30, 2, 6, 6, seed=1)
    labels = drawn(model, aux_x, aux_y, "sampled", stream(5))
    whole = influence(model, x, y, aux_x, aux_y, method="ekfac", generator=stream(5))
    part = 0
    for name in ("1.weight", "1.bias"):
        g = torch.stack([gradient(model, v, t, "loss", name) for v, t in zip(aux_x, labels, strict=True)])
        J = torch.stack([gradient(model, v, t, "phi", name) for v, t in zip(x, y, strict=True)])
        value = g.square().mean(0)
        part = part + (J.square() / (value + 0.05 * value.mean())).sum(1)
    phi = torch.stack([margin(z, t) for z, t in zip(model(x), y, strict=True)]).detach()
    leverage = (-2 * torch.nn.functional.logsigmoid(-phi) - whole).exp()
    bare = nn.Sequential(model[0], Frozen(model[1]), *model[2:]).eval()
    rest = influence(bare, x, y, aux_x, aux_y, method="ekfac", generator=stream(5))
    without = (-2 * torch.nn.functional.logsigmoid(-phi) - rest).exp()
    torch.testing.assert_close(leverage - without, part, rtol=1e-6, atol=1e-6)


class Frozen(nn.Module):
    """A norm whose weights are no parameters."""

    def __init__(self, norm):
        super().__init__()
        self.groups = norm.num_groups
        self.register_buffer("w", norm.weight.detach().clone())
        self.register_buffer("b", norm.bias.detach().clone())

    def forward(self, x):
        return nn.functional.group_norm(x, self.groups, self.w, self.b)


def test_identity_is_the_gradient_norm_squared():
    model = cnn()
    x, y = records(7, 2, 6, 6)
    want = [-gradient(model, v, t).square().sum().log() for v, t in zip(x, y, strict=True)]
    got = influence(model, x, y, x, y, method="identity")
    torch.testing.assert_close(got, torch.stack(want), **CLOSE)


def permuted(model, seed=0):
    """The same function: hidden units in another order."""
    other, order = copy.deepcopy(model), torch.randperm(6, generator=stream(seed))
    other[0].weight.data = model[0].weight.data[order]
    other[0].bias.data = model[0].bias.data[order]
    other[2].weight.data = model[2].weight.data[:, order]
    return other


@pytest.mark.parametrize("method", ["last", "ekfac", "identity"])
def test_the_order_of_hidden_units_does_not_matter(method):
    model = relu()
    x, y = records(9, 4)
    aux_x, aux_y = records(60, 4, seed=1)
    a, b = (
        influence(m, x, y, aux_x, aux_y, method=method, generator=stream(0)) for m in (model, permuted(model))
    )
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


# TracIn


def test_tracin_is_the_sum_over_checkpoints_and_captum_says_so_too():
    models, rates = [cnn(), fill(cnn(), 1), fill(cnn(), 2)], [0.1, 0.03, 0.01]
    x, y = records(7, 2, 6, 6)
    want = []
    for v, t in zip(x, y, strict=True):
        parts = [r * gradient(m, v, t).square().sum() for m, r in zip(models, rates, strict=True)]
        want.append(-sum(parts).log())
    random = torch.get_rng_state()
    held = [{k: v.clone() for k, v in m.state_dict().items()} for m in models]
    torch.testing.assert_close(tracin(models, rates, x, y), torch.stack(want), **CLOSE)
    torch.testing.assert_close(tracin(models, rates, x, y, through="captum"), torch.stack(want), **CLOSE)
    for m, before in zip(models, held, strict=True):
        assert all(torch.equal(v, before[k]) for k, v in m.state_dict().items())
        assert not m.training
        assert all(p.grad is None for p in m.parameters())
    assert torch.equal(random, torch.get_rng_state())
    slim = [copy.deepcopy(m).float() for m in models]
    fast, slow = (tracin(slim, rates, x.float(), y, through=how) for how in ("norms", "captum"))
    torch.testing.assert_close(fast, slow, rtol=1e-5, atol=1e-5)


def test_one_checkpoint_is_the_gradient_norm_and_says_so():
    model = mlp()
    x, y = records(9, 4)
    with pytest.warns(Floored, match="1 of 2 checkpoints"):
        score = tracin([model], [0.1], x, y)
    norm = influence(model, x, y, x, y, method="identity")
    torch.testing.assert_close(score, norm - math.log(0.1), **CLOSE)


def test_frozen_weights_count_in_tracin():
    models = [mlp(), mlp(1)]
    x, y = records(5, 4)
    want = tracin(models, [0.1, 0.1], x, y)
    for m in models:
        m[0].requires_grad_(False)
    for how in ("norms", "captum"):
        torch.testing.assert_close(tracin(models, [0.1, 0.1], x, y, through=how), want, **CLOSE)
        assert not models[0][0].weight.requires_grad


# SIF


def textbook_sif(model, views, x, y, depth, repeats, copies, damping=0.01, scale=25.0):
    """The authors' recursion with explicit Hessians of one record; `views` yields what it sees of it."""
    g, total = gradient(model, x, y), 0
    for _ in range(repeats):
        s = g
        for _ in range(depth):
            s = g + (1 - damping) * s - hessian(model, next(views), y) @ s / scale
        total = total + s / scale
    beside = sum(gradient(model, next(views), y) for _ in range(copies)) / copies
    I = -(beside @ total / repeats)
    return -I.abs().log() - 1000 * (model(x[None]).argmax() != y)


@pytest.mark.parametrize("depth", [None, 1, 3])
def test_sif_is_the_recursion_on_the_record_alone(depth):
    for model in (mlp(), relu()):
        x, y = records(10, 4)
        want = [textbook_sif(model, iter([v] * 9), v, t, depth or 1, 1, 1) for v, t in zip(x, y, strict=True)]
        got = sif(model, x, y, depth=depth)
        torch.testing.assert_close(got, torch.stack(want), rtol=1e-9, atol=1e-12)


def test_sif_at_depth_one_is_a_gradient_norm_less_a_curvature():
    """I = -(1.99 |g|^2 - g' H g / 25) / 25, and not the self-influence that its name says."""
    model = fill(nn.Linear(4, 3), scale=1.5)
    x, y = records(60, 4)
    got = sif(model, x, y, mistakes_out=False)
    want, other = [], []
    for v, t in zip(x, y, strict=True):
        g, H = gradient(model, v, t), hessian(model, v, t)
        want.append(-(1.99 * g @ g - g @ H @ g / 25) / 25)
        # the same with the damping on v, as the authors' other routine has it
        other.append(-(1.99 * g @ g - 0.01 * g @ g - g @ H @ g / 25) / 25)
    want, other = (-torch.stack(v).abs().log() for v in (want, other))
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
    assert (got - other).abs().min() > 1e-3
    wrong = model(x).argmax(1) != y
    assert 0 < wrong.sum() < 60
    torch.testing.assert_close(sif(model, x, y), got - 1000 * wrong, rtol=1e-9, atol=1e-9)
    norm = influence(model, x, y, x, y, method="identity")
    exact = influence(model, x, y, x, y)
    assert spearmanr(got, norm).statistic > 0.99
    assert spearmanr(got, exact).statistic < spearmanr(got, norm).statistic


def crops(x, draws):
    """Views of one image, by padding and slicing."""
    c, h, w = x.shape
    wide = torch.zeros(c, h + 2 * (h // 8), w + 2 * (w // 8)).double()
    wide[:, h // 8 : h // 8 + h, w // 8 : w // 8 + w] = x
    for down, right, mirrored in draws:
        view = wide[:, down : down + h, right : right + w]
        yield view.flip(2) if mirrored else view


def test_adaptive_sif_sees_crops_and_flips():
    model = fill(nn.Sequential(nn.Conv2d(1, 1, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(12, 2)))
    x, y = records(3, 1, 8, 10, c=2)
    settings = {"depth": 2, "repeats": 2, "copies": 3}
    got = sif(model, x, y, adaptive=True, generator=stream(0), **settings)
    u = torch.rand(3, 7, 3, generator=stream(0), dtype=torch.float64)
    draws = (u * torch.tensor([3, 3, 2])).long()
    assert draws.amin((0, 1)).tolist() == [0, 0, 0]
    assert draws.amax((0, 1)).tolist() == [2, 2, 1]
    want = [textbook_sif(model, crops(x[i], draws[i].tolist()), x[i], y[i], 2, 2, 3) for i in range(3)]
    torch.testing.assert_close(got, torch.stack(want), rtol=1e-9, atol=1e-12)
    again = sif(model, x, y, adaptive=True, generator=stream(0), memory="8 KiB", **settings)
    torch.testing.assert_close(again, got, rtol=1e-12, atol=0)
    assert not torch.equal(sif(model, x, y, adaptive=True, generator=stream(1), **settings), got)


def test_adaptive_sif_has_the_papers_numbers(monkeypatch):
    """Depth 8, 8 repeats: 64 Hessians. The record itself, and 128 copies."""
    seen = []

    def slope(model, x, y):
        seen.append("g")
        return torch.zeros(len(x)).double(), {"w": x.flatten(1)}, y == y

    def pulled(model, x, y, v):
        seen.append("H")
        return v

    monkeypatch.setattr(module, "_slope", slope)
    monkeypatch.setattr(module, "_pulled", pulled)
    model, (x, y) = cnn(), records(2, 2, 6, 6)
    sif(model, x, y, adaptive=True, generator=stream(0))
    assert (seen.count("H"), seen.count("g")) == (64, 129)
    seen.clear()
    sif(model, x, y)
    assert (seen.count("H"), seen.count("g")) == (1, 1)


# Laws


def everything(model, x, y, aux_x, aux_y):
    yield influence(model, x, y, aux_x, aux_y)
    yield influence(model, x, y, aux_x, aux_y, method="ekfac", generator=stream(0))
    yield influence(model, x, y, aux_x, aux_y, method="identity")
    yield tracin([model, model], [0.1, 0.1], x, y)
    yield sif(model, x, y)
    yield Leverage(Data(aux_x, aux_y, int(aux_y.max()) + 1, "aux"))(model, x, y)


def test_records_are_scored_each_alone_and_in_their_order():
    model = relu()
    x, y = records(40, 4)
    aux = records(60, 4, seed=1)
    turned = torch.randperm(40, generator=stream(1))
    before = [v.clone() for v in (x, y, *aux)]
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    random = torch.get_rng_state()
    for whole, other, one in zip(
        everything(model, x, y, *aux),
        everything(model, x[turned], y[turned], *aux),
        everything(model, x[7:8], y[7:8], *aux),
        strict=True,
    ):
        assert whole.dtype == torch.float64
        assert whole.shape == (40,)
        torch.testing.assert_close(other, whole[turned], **CLOSE)
        torch.testing.assert_close(one, whole[7:8], **CLOSE)
    assert all(torch.equal(a, b) for a, b in zip(before, (x, y, *aux), strict=True))
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())
    assert not model.training
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert torch.equal(random, torch.get_rng_state())


def test_sure_records_are_told_apart_in_float32():
    """phi = 110 and 120: exp(-phi) is 0 there in float32, and so is a plain gradient."""
    model = nn.Linear(2, 3).eval()
    model.weight.data = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    model.bias.data.zero_()
    x = torch.tensor([[110.7, 1.0], [120.7, 1.0], [-60.0, 1.0]])
    y = torch.zeros(3).long()
    g = torch.autograd.grad(cross_entropy(model(x[1:2]), y[1:2]), model.weight)[0]
    assert not g.any()
    aux_x, aux_y = records(50, 2)
    aux = (aux_x.float(), aux_y)
    for method in ("last", "ekfac", "identity"):
        score = influence(model, x, y, *aux, method=method, generator=stream(0))
        assert score.isfinite().all()
        assert 10 < score[1] - score[0] < 21
        assert score[0] > score[2]
    score = tracin([model, model], [0.1, 0.1], x, y)
    assert 19 < score[1] - score[0] < 21  # 2 x 10 nats
    score = sif(model, x, y)
    assert score[2] < -900
    assert 19 < score[1] - score[0] < 21
    with pytest.warns(Floored, match="2 of 3 records have no gradient"):
        assert tracin([model, model], [0.1, 0.1], x, y, through="captum").isfinite().all()


@pytest.mark.parametrize("method", ["last", "ekfac", "identity"])
def test_finds_a_planted_leak_and_nothing_where_nothing_is(method):
    """False alarm of the second half: 4 standard errors of the mean over 8 worlds, 6e-5."""
    game, truth = ridge_world(leaks=True, seed=0)
    aux = game.aux.x[:100], game.aux.y[:100]

    def score(game):
        settings = {"method": method, "generator": stream(0)}
        return influence(game.model, game.x, game.y, *aux, **settings)

    assert auc(score(game), truth) > 0.65
    found = []
    for seed in range(8):
        game, truth = ridge_world(leaks=False, seed=seed, n=200, d=60, m=2)
        aux = game.aux.x, game.aux.y
        found.append(auc(score(game), truth) - 0.5)
    assert abs(sum(found) / 8) < 4 * auc_se(100, 100) / 8**0.5


def test_tracin_and_sif_find_a_planted_leak_and_nothing_where_nothing_is():
    """As above."""
    found = []
    for seed in range(9):
        game, truth = ridge_world(leaks=not seed, seed=seed, n=200, d=60 if seed else 150, m=2)
        model = game.model
        half = copy.deepcopy(model)
        half.weight.data /= 2
        scores = tracin([half, model], [0.1, 0.1], game.x, game.y), sif(model, game.x, game.y)
        found.append([auc(s, truth) - 0.5 for s in scores])
    assert min(found[0]) > 0.15
    for k in range(2):
        assert abs(sum(f[k] for f in found[1:]) / 8) < 4 * auc_se(100, 100) / 8**0.5


def test_curvature_that_is_nowhere_is_told():
    model = nn.Linear(2, 2, bias=False).double().eval()
    model.weight.data = torch.tensor([[1e4, 0.0], [-1e4, 0.0]]).double()
    aux = torch.ones(5, 2).double(), torch.zeros(5).long()
    x, y = records(3, 2, c=2)
    flat = influence(model, x, y, x, y, method="identity")
    for method in ("last", "ekfac"):
        with pytest.warns(Floored, match="is 0 on aux: the identity stands for it"):
            score = influence(model, x, y, *aux, method=method, generator=stream(0))
        torch.testing.assert_close(score, flat, **CLOSE)
    x[1] = 0.0
    with pytest.warns(Floored, match="1 of 3 records have no gradient"):
        score = influence(model, x, y, *records(9, 2, c=2), method="identity")
    assert score.isfinite().all()


def test_extremes_stay_finite():
    """One record, one record of aux, equal records, one class in aux, two classes."""
    model = fill(nn.Linear(4, 2))
    x, y = records(1, 4, c=2)
    for aux in ((x, y), (x.repeat(9, 1), y.repeat(9))):
        for score in everything(model, x, y, aux[0], aux[1] * 0 + 1):
            assert score.isfinite().all()
    same = influence(model, x.repeat(4, 1), y.repeat(4), x, y)
    assert same.unique().numel() == 1


def test_refuses_what_it_cannot_do():
    x, y = records(6, 4)
    with pytest.raises(ValueError, match="generator must be given to draw labels"):
        influence(mlp(), x, y, x, y, method="ekfac")
    for method in ("last", "ekfac"):
        with pytest.raises(ValueError, match="ridge must be higher where .* curvature is singular, got 0"):
            influence(mlp(), x, y, x[:2], y[:2], method=method, ridge=0.0, generator=stream(0))
    for f in (
        lambda m: influence(m, x, y, x, y),
        lambda m: Leverage(Data(x, y, 3, "aux"))(m, x, y),
        lambda m: tracin([mlp(), m], [0.1, 0.1], x, y),
        lambda m: sif(m, x, y),
    ):
        with pytest.raises(ValueError, match="train"):
            f(mlp().train())
    for models, rates in (([], []), ([mlp(), mlp()], [0.1]), ([mlp(), mlp()], [0.1, 0.0])):
        with pytest.raises(
            ValueError, match=r"rates must hold one positive rate for each of 1\+ checkpoints"
        ):
            tracin(models, rates, x, y)
    with pytest.raises(ValueError, match=r"x must hold images, and generator be given, .* got \[4\]"):
        sif(mlp(), x, y, adaptive=True, generator=stream(0))
    with pytest.raises(ValueError, match=r"x must hold images, and generator be given"):
        sif(cnn(), *records(3, 2, 6, 6), adaptive=True)
