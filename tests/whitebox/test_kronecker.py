"""Kronecker factors, EK-FAC and the exact last layer, against loops of autograd in float64."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, one_hot

from glasslab.split import stream
from whitebox import kronecker, last_layer
from whitebox.gradients import captured, per_example
from whitebox.kronecker import diagonal, ekfac, energy, factors
from whitebox.last_layer import own_less_wrong, projection

CLOSE = {"rtol": 1e-9, "atol": 1e-12}


def fill(model, seed=0):
    """Weights of one seed, float64, eval mode."""
    g = stream(seed, "weights")
    for w in model.parameters():
        w.data = torch.randn(w.shape, generator=g, dtype=torch.float64) * 0.5
    return model.double().eval()


def mlp(bias=True, seed=0):
    return fill(nn.Sequential(nn.Linear(4, 5, bias=bias), nn.Tanh(), nn.Linear(5, 3, bias=bias)), seed)


def cnn():
    parts = nn.Conv2d(2, 3, 3, stride=2, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(12, 3)
    return fill(nn.Sequential(*parts))


def norms():
    parts = nn.Conv2d(2, 4, 3, groups=2), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)
    return fill(nn.Sequential(*parts))


def records(n, *shape, c=3, seed=0):
    g = stream(seed, "records")
    x = torch.randn(n, *shape, generator=g, dtype=torch.float64)
    return x, torch.randint(c, (n,), generator=g)


def rows(model, x, y, layer):
    """Gradient of each record's loss in [W | b] of a layer, [n, o, i1]: one record at a time."""
    m = model.get_submodule(layer)
    held = [p for p in (m.weight, m.bias) if p is not None]
    out = []
    for i in range(len(x)):
        g = torch.autograd.grad(cross_entropy(model(x[i : i + 1]), y[i : i + 1]), held)
        out.append(torch.cat([v.reshape(len(m.weight), -1) for v in g], 1))
    return torch.stack(out)


def second_moment(v):
    return sum(torch.outer(r, r) for r in v) / len(v)


# Factors


@pytest.mark.parametrize("bias", [True, False])
def test_factors_are_means_of_outer_products(bias):
    model = mlp(bias)
    x, y = records(20, 4)
    found = factors(model, x, y)
    assert list(found) == ["0", "2"]
    hidden = model[0](x).tanh().detach()
    for name, a in (("0", x), ("2", hidden)):
        if bias:
            a = torch.cat([a, torch.ones(20, 1).double()], 1)
        deltas = []
        for i in range(20):
            h = model[0](x[i])
            pre = (h if name == "0" else model[2](h.tanh())).detach().requires_grad_()
            z = model[2](pre.tanh()) if name == "0" else pre
            deltas.append(torch.autograd.grad(cross_entropy(z, y[i]), pre)[0])
        torch.testing.assert_close(found[name].A, second_moment(a), **CLOSE)
        torch.testing.assert_close(found[name].B, second_moment(torch.stack(deltas)), **CLOSE)
        assert found[name].records == 20
        assert found[name].A.dtype == found[name].B.dtype == torch.float64


def test_a_convolution_sums_over_positions_and_keeps_the_trace_of_G():
    model = cnn()
    x, y = records(12, 2, 4, 4)
    found = factors(model, x, y)["0"]
    seen = nn.functional.unfold(x, 3, padding=1, stride=2).mT  # [n, 4, 18]
    seen = torch.cat([seen, torch.ones(12, 4, 1).double()], 2)
    torch.testing.assert_close(found.A, second_moment(seen.flatten(0, 1)), **CLOSE)
    g = rows(model, x, y, "0").flatten(1)
    trace = float(second_moment(g).trace())
    assert float(found.A.trace() * found.B.trace()) == pytest.approx(trace, rel=1e-9)
    deltas = []
    for i in range(12):
        pre = model[0](x[i : i + 1]).detach().requires_grad_()
        delta = torch.autograd.grad(cross_entropy(model[1:](pre), y[i : i + 1]), pre)[0]
        deltas.append(delta[0].flatten(1).T)
    bare = second_moment(torch.cat(deltas)) * 4
    torch.testing.assert_close(found.B / found.B.trace(), bare / bare.trace(), **CLOSE)
    assert abs(float(found.A.trace() * bare.trace()) / trace - 1) > 0.05  # without scaling it is off


def test_norms_without_forming_are_those_of_the_formed(monkeypatch):
    """Many positions, and few."""
    g = stream(0)
    for t, i, o in ((2, 9, 8), (9, 3, 4)):
        a, delta = (torch.randn(7, t, d, generator=g, dtype=torch.float64) for d in (i, o))
        want = torch.stack([(delta[k].T @ a[k]).square().sum() for k in range(7)])
        torch.testing.assert_close(kronecker._squares(a, delta), want, **CLOSE)
        monkeypatch.setattr(kronecker, "FORMED", i * o * 2)
        torch.testing.assert_close(kronecker._squares(a, delta), want, **CLOSE)


def test_labels_drawn_from_the_model_make_the_fisher_and_true_ones_do_not():
    """Labels that no model knows: G of the true ones is larger than that of the drawn ones."""
    model = mlp()
    model[2].weight.data *= 8
    x, y = records(4000, 4)
    drawn = factors(model, x, y, labels="sampled", generator=stream(0))["2"]
    again = factors(model, x, y, labels="sampled", generator=stream(0))["2"]
    assert torch.equal(drawn.B, again.B)
    p = model(x).softmax(1).detach()
    fisher = (torch.diag_embed(p) - p[:, :, None] * p[:, None, :]).mean(0)
    torch.testing.assert_close(drawn.B, fisher, rtol=0, atol=4 * 0.5 / 4000**0.5)  # 4 standard errors
    true = factors(model, x, y)["2"].B
    torch.testing.assert_close(true, second_moment(p - one_hot(y, 3)), **CLOSE)
    assert (true - fisher).norm() > 0.5 * fisher.norm()


def test_drawn_labels_follow_the_probabilities():
    model = fill(nn.Linear(2, 3))
    x = torch.zeros(20_000, 2).double()
    p = model.bias.softmax(0).detach()
    y = kronecker.drawn(model, x, torch.zeros(20_000).long(), "sampled", stream(0))
    error = (p * (1 - p) / 20_000).sqrt()
    assert ((torch.bincount(y, minlength=3) / 20_000 - p).abs() < 4 * error).all()


# Eigenbases


@pytest.mark.parametrize(("make", "shape"), [(mlp, (4,)), (cnn, (2, 4, 4))])
def test_ekfac_has_the_mean_squares_along_the_eigenvectors(make, shape, monkeypatch):
    model = make()
    x, y = records(30, *shape)
    found, bases = factors(model, x, y), ekfac(model, x, y)
    monkeypatch.setattr(kronecker, "FORMED", 100)
    pieces = ekfac(model, x, y)
    for name, basis in bases.items():
        g = rows(model, x, y, name)
        want = torch.stack([(basis.U_B.T @ r @ basis.U_A).square() for r in g]).mean(0)
        torch.testing.assert_close(basis.value, want, **CLOSE)
        torch.testing.assert_close(pieces[name].value, want, **CLOSE)
        A, B = (U.T @ M @ U for U, M in ((basis.U_A, found[name].A), (basis.U_B, found[name].B)))
        torch.testing.assert_close(A, torch.diag(A.diagonal()), rtol=0, atol=1e-10)
        torch.testing.assert_close(B, torch.diag(B.diagonal()), rtol=0, atol=1e-10)
        eye = torch.eye(basis.U_B.shape[1], dtype=torch.float64)
        torch.testing.assert_close(basis.U_B.T @ basis.U_B, eye, **CLOSE)
    o = [len(basis.U_B) - basis.U_B.shape[1] for basis in bases.values()]
    assert o == [0, 1]  # the last layer's deltas sum to 0
    assert bases[name].U_B.sum(0).abs().max() < 1e-12


def product_world():
    """Inputs and labels in every combination, and a model that sees no input: a and delta are independent."""
    model = fill(nn.Linear(3, 4))
    model.weight.data.zero_()
    model.bias.data = torch.tensor([1.0, 0.0, -1.0, 0.5]).double()
    x, _ = records(8, 3)
    y = torch.tensor([0, 0, 0, 1, 1, 2, 3, 3])
    return model, x.repeat_interleave(len(y), 0), y.repeat(8)


def test_both_forms_are_exact_where_input_and_gradient_are_independent():
    model, x, y = product_world()
    want = second_moment(rows(model, x, y, "").flatten(1))
    (found,), (basis,) = factors(model, x, y).values(), ekfac(model, x, y).values()
    torch.testing.assert_close(torch.kron(found.B, found.A), want, **CLOSE)
    U = torch.kron(basis.U_B, basis.U_A)
    torch.testing.assert_close(U @ torch.diag(basis.value.flatten()) @ U.T, want, **CLOSE)


@pytest.mark.parametrize(("make", "shape"), [(mlp, (4,)), (cnn, (2, 4, 4))])
def test_energy_is_a_quadratic_form(make, shape, monkeypatch):
    model = make()
    x, y = records(15, *shape)
    bases = ekfac(model, x, y)
    for few in (False, True):
        if few:
            monkeypatch.setattr(kronecker, "FORMED", 1)
        (part,) = captured(model, x, y, of="loss")
        for name, basis in bases.items():
            weight = torch.rand(basis.value.shape, generator=stream(0), dtype=torch.float64)
            U = torch.kron(basis.U_B, basis.U_A)
            C = U @ torch.diag(weight.flatten()) @ U.T
            g = rows(model, x, y, name).flatten(1)
            want = torch.stack([v @ C @ v for v in g])
            torch.testing.assert_close(energy(*part[name], basis, weight), want, **CLOSE)


def test_what_has_no_factors_has_a_diagonal():
    model = norms()
    x, y = records(9, 2, 4, 4)
    assert list(factors(model, x, y)) == ["4"]
    found = diagonal(model, x, y)
    assert set(found) == {"0.weight", "0.bias", "1.weight", "1.bias"}
    for name, value in found.items():
        p = model.get_parameter(name)
        each = [torch.autograd.grad(cross_entropy(model(x[[i]]), y[[i]]), p)[0].square() for i in range(9)]
        torch.testing.assert_close(value, torch.stack(each).mean(0), **CLOSE)
    assert diagonal(mlp(), *records(3, 4)) == {}


# The last layer


def test_the_projection_is_an_orthonormal_basis_of_what_sums_to_zero():
    for c in (2, 3, 7):
        P = projection(torch.zeros(1, c).double())
        torch.testing.assert_close(P.T @ P, torch.eye(c - 1).double(), **CLOSE)
        assert P.sum(0).abs().max() < 1e-14


@pytest.mark.parametrize("bias", [True, False])
def test_the_last_layer_is_autograds_hessian_and_the_covariance(bias, monkeypatch):
    """H does not know the labels, G is centred and does."""
    model = mlp(bias)
    x, y = records(40, 4)
    whole = kronecker.last_layer(model, x, y)
    monkeypatch.setattr(last_layer, "FORMED", 30)
    pieces = kronecker.last_layer(model, x, y)
    hidden = model[0](x).tanh().detach()
    a = torch.cat([hidden, torch.ones(40, int(bias)).double()], 1)
    theta = torch.cat([model[2].weight, *([model[2].bias[:, None]] if bias else [])], 1).detach()

    def loss(theta):
        return cross_entropy(a @ theta.T, y)

    H = torch.autograd.functional.hessian(loss, theta).reshape(theta.numel(), theta.numel())
    g = rows(model, x, y, "2").flatten(1)
    G = second_moment(g - g.mean(0))
    K = torch.kron(whole.P, torch.eye(a.shape[1]).double())
    for found in (whole, pieces):
        torch.testing.assert_close(found.H, K.T @ H @ K, **CLOSE)
        torch.testing.assert_close(found.G, K.T @ G @ K, **CLOSE)
    torch.testing.assert_close(K @ whole.G @ K.T, G, **CLOSE)  # nothing lies outside
    assert whole.records == 40


def test_the_subspace_has_an_inverse_and_the_raw_coordinates_have_none():
    """Rank (c - 1)(u + 1): there is no ridge 0 without the projection."""
    model = mlp()
    x, y = records(200, 4)
    found = kronecker.last_layer(model, x, y)
    for M in (found.H, found.G):
        torch.linalg.cholesky(M)
        assert torch.linalg.cond(M) < 1e8
    g = rows(model, x, y, "2").flatten(1)
    raw = second_moment(g - g.mean(0))
    assert raw.shape == (18, 18)
    assert torch.linalg.matrix_rank(raw, rtol=1e-10) == 12


def gain(J, G, H):
    """rho of each record: how much more than the loss the whole of theta can say."""
    g, h = torch.linalg.solve(G, J.T), torch.linalg.solve(H, J.T)
    over = (J.T * g).sum(0) * (h * (G @ h)).sum(0)
    return over / (J.T * h).sum(0).square()


def test_the_fisher_put_for_G_says_that_weights_never_help():
    """Labels drawn from the model make G = H and rho = 1 for all; true ones, with noise, do not."""
    model = mlp()
    x, y = records(500, 4)
    found = kronecker.last_layer(model, x, y)
    a, z = last_layer.last_inputs(model, x, y)
    J = ((own_less_wrong(z, y) @ found.P)[:, :, None] * a[:, None, :]).flatten(1)
    wrong = gain(J, found.H.clone(), found.H)
    torch.testing.assert_close(wrong, torch.ones(500).double(), rtol=0, atol=1e-6)
    right = gain(J, found.G, found.H)
    assert right.min() > 1 - 1e-9
    assert right.median() > 1.001


def test_curvature_survives_a_model_that_is_sure():
    """p (1 - p) as a difference is 0 from phi about 37, as p - 1 is."""
    model = mlp()
    x, _ = records(60, 4)
    y = model(x).argmax(1)
    model[2].weight.data *= 400
    model[2].bias.data *= 400
    found = kronecker.last_layer(model, x, y)
    a, z = last_layer.last_inputs(model, x, y)
    p = z.softmax(1)
    assert (1 - p.max(1).values == 0).double().mean() > 0.5  # yet each of them has its share
    rest = torch.where(p == p.max(1, True).values, 0.0, p)
    sharp = p.max(1).values > 1 - 1e-13
    alone = last_layer.hessian(a[sharp], z[sharp]).trace()
    want = float((2 * rest.sum(1) * a.square().sum(1))[sharp].mean())
    assert float(alone) / want == pytest.approx(1, rel=1e-9)
    assert found.G.trace() > 0


# Laws


def test_chunks_and_order_change_nothing():
    model = cnn()
    x, y = records(30, 2, 4, 4)
    turned = torch.randperm(30, generator=stream(1))
    for name, f in factors(model, x, y).items():
        for other in (factors(model, x, y, memory="16 KiB"), factors(model, x[turned], y[turned])):
            torch.testing.assert_close(f.A, other[name].A, **CLOSE)
            torch.testing.assert_close(f.B, other[name].B, **CLOSE)


def test_the_model_is_left_as_it_was():
    model = norms()
    model[1].weight.requires_grad_(False)
    x, y = records(9, 2, 4, 4)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    random = torch.get_rng_state()
    ekfac(model, x, y, labels="sampled", generator=stream(0))
    diagonal(model, x, y)
    kronecker.last_layer(model, x, y)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert [p.requires_grad for p in model.parameters()] == [True, True, False, True, True, True]
    assert not model.training
    assert not any(m._forward_hooks for m in model.modules())
    assert torch.equal(random, torch.get_rng_state())


def test_float32_is_near_float64():
    model = cnn()
    x, y = records(30, 2, 4, 4)
    wide = factors(model, x, y), ekfac(model, x, y), kronecker.last_layer(model, x, y)
    model.float()
    slim = factors(model, x.float(), y), ekfac(model, x.float(), y), kronecker.last_layer(model, x.float(), y)
    near = {"rtol": 1e-4, "atol": 1e-5}
    for name in wide[0]:
        torch.testing.assert_close(slim[0][name].A, wide[0][name].A, **near)
        torch.testing.assert_close(slim[0][name].B, wide[0][name].B, **near)
        assert slim[1][name].U_B.shape == wide[1][name].U_B.shape  # sums to 0 up to float32's rounding
    torch.testing.assert_close(slim[2].H, wide[2].H, **near)
    torch.testing.assert_close(slim[2].G, wide[2].G, **near)


def test_one_record_is_enough():
    model = mlp()
    x, y = records(1, 4)
    g = rows(model, x, y, "0").flatten(1)
    f = factors(model, x, y)["0"]
    torch.testing.assert_close(torch.kron(f.B, f.A), second_moment(g), **CLOSE)
    assert kronecker.last_layer(model, x, y).G.abs().max() < 1e-20


def test_a_module_used_twice_has_positions_of_both_calls():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x):
            return self.head(self.body(self.body(x).tanh()).tanh())

    model = fill(Twice())
    x, y = records(10, 4)
    f = factors(model, x, y)["body"]
    trace = second_moment(rows(model, x, y, "body").flatten(1)).trace()
    assert float(f.A.trace() * f.B.trace()) == pytest.approx(float(trace), rel=1e-9)


def test_refuses_what_it_cannot_do():
    x, y = records(5, 4)
    with pytest.raises(ValueError, match="generator must be given to draw labels, got None"):
        factors(mlp(), x, y, labels="sampled")
    with pytest.raises(ValueError, match=r"layers must hold a dense layer or .*, got \['1'\]"):
        factors(norms(), *records(5, 2, 4, 4), layers=["1"])
    with pytest.raises(ValueError, match="train"):
        factors(mlp().train(), x, y)
    with pytest.raises(ValueError, match="train"):
        kronecker.last_layer(mlp().train(), x, y)
    with pytest.raises(ValueError, match="last layer must be dense with one position, got LayerNorm '1'"):
        kronecker.last_layer(fill(nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3))), x, y)
    with pytest.raises(ValueError, match="last layer must give the logits, got gradients .* off in '0'"):
        kronecker.last_layer(fill(nn.Sequential(nn.Linear(4, 3), nn.Softmax(1))), x, y)
    with pytest.raises(ValueError, match="last layer must be dense with one position, got 2 positions"):
        kronecker.last_layer(fill(nn.Sequential(nn.Unflatten(1, (2, 2)), nn.Linear(2, 3), Mean())), x, y)
    with pytest.raises(ValueError, match="at most 8192 parameters in its last layer, got 10000"):
        last_layer.hessian(torch.ones(1, 5000).double(), torch.ones(1, 3).double())
    fine = kronecker.last_layer(fill(nn.Sequential(nn.Linear(4, 3), nn.LogSoftmax(1))), x, y)  # a shift
    torch.testing.assert_close(fine.H, kronecker.last_layer(fill(nn.Linear(4, 3)), x, y).H, **CLOSE)


class Mean(nn.Module):
    def forward(self, x):
        return x.mean(1)


def test_cross_entropy_of_a_softmax_is_not_the_gradient():
    """(p - e_y) a' is; the softmax applied twice rescales it."""
    model = fill(nn.Linear(4, 3))
    x, y = records(6, 4)
    (g,) = per_example(model, x, y, of="loss")
    p = model(x).softmax(1).detach()
    want = (p - one_hot(y, 3))[:, :, None] * x[:, None, :]
    torch.testing.assert_close(g["weight"], want, **CLOSE)
    theta = model.weight.detach().clone().requires_grad_()
    twice = cross_entropy((x @ theta.T + model.bias).softmax(1), y, reduction="sum")
    assert (torch.autograd.grad(twice, theta)[0] - want.sum(0)).norm() > 0.1 * want.sum(0).norm()
    a = torch.cat([x, torch.ones(6, 1).double()], 1)
    G = kronecker.last_layer(model, x, y).G
    v = ((p - one_hot(y, 3))[:, :, None] * a[:, None, :]).flatten(1)
    K = torch.kron(projection(p), torch.eye(5).double())
    torch.testing.assert_close(G, K.T @ second_moment(v - v.mean(0)) @ K, **CLOSE)
