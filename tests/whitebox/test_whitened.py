"""Whitened directions against explicit means, inverses and loops of autograd in float64."""

import copy
import inspect

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from glasslab.cache import content
from glasslab.data import Data
from glasslab.split import stream
from whitebox.functional import signs
from whitebox.gradients import contract, inner
from whitebox.kronecker import diagonal, ekfac, factors
from whitebox.last_layer import last_layer
from whitebox.symmetry import permuted, symmetry
from whitebox.whitened import WhitenedGamma, WhitenedTheta, Whitening, lower, whitened

CLOSE = {"rtol": 1e-8, "atol": 1e-9}
SIGNALS = (WhitenedGamma, WhitenedTheta)


def fill(model, seed=0, scale=0.5):
    """Weights of one seed, float64, eval mode."""
    g = stream(seed, "weights")
    for w in model.parameters():
        w.data = torch.randn(w.shape, generator=g, dtype=torch.float64) * scale
    return model.double().eval()


def mlp(*sizes):
    sizes = sizes or (4, 5, 3)
    parts = [m for a, b in zip(sizes, sizes[1:], strict=False) for m in (nn.Linear(a, b), nn.ReLU())]
    return fill(nn.Sequential(*parts[:-1]))


def cnn():
    parts = nn.Conv2d(2, 3, 3), nn.GroupNorm(1, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 4)
    return fill(nn.Sequential(*parts))


def records(n, *shape, c=3, seed=0):
    g = stream(seed, "records")
    return torch.randn(n, *shape, generator=g, dtype=torch.float64), torch.randint(c, (n,), generator=g)


def data(n, *shape, c=3, seed=1):
    return Data(*records(n, *shape, c=c, seed=seed), c, "aux")


def gradients(model, x, y, of):
    """Of each record: parameter -> tensor, by autograd one after another."""
    out = []
    for v, c in zip(x, y, strict=True):
        z = model(v[None])[0]
        value = z[c] - torch.cat([z[:c], z[c + 1 :]]).logsumexp(0) if of == "phi" else cross_entropy(z, c)
        out.append(
            dict(
                zip(
                    dict(model.named_parameters()),
                    torch.autograd.grad(value, list(model.parameters())),
                    strict=True,
                )
            )
        )
    return out


def mean(grads):
    return {name: torch.stack([g[name] for g in grads]).mean(0) for name in grads[0]}


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def joined(g, layer):
    return torch.cat([g[f"{layer}.weight"].flatten(1), g[f"{layer}.bias"][:, None]], 1)


def sum_zero(c):
    """An orthonormal basis of the vectors that sum to 0: not the one of the code."""
    centred = torch.eye(c).double() - 1 / c
    return torch.linalg.svd(centred).U[:, : c - 1]


def damped(M, ridge, unit=None):
    return M + ridge * (M.trace() / len(M) if unit is None else unit) * torch.eye(len(M)).double()


def slow_kfac(model, x, y, aux, D, ridge):
    """One column each for convolution, norm and last layer of `cnn`."""
    whole = gradients(model, aux.x, aux.y, "loss")
    seen, delta = [], []
    for v, c in zip(aux.x, aux.y, strict=True):
        patches = torch.stack(
            [torch.cat([v[:, i : i + 3, j : j + 3].flatten(), torch.ones(1)]) for i in (0, 1) for j in (0, 1)]
        )
        out = model[0](v[None]).detach().requires_grad_()
        seen.append(patches)
        delta.append(torch.autograd.grad(cross_entropy(model[1:](out), c[None]), out)[0][0].flatten(1).T)
    A = sum(s.T @ s for s in seen) / (4 * len(seen))
    B = sum(d.T @ d for d in delta) / len(delta)
    G = sum((d.T @ s).square().sum() for d, s in zip(delta, seen, strict=True)) / len(seen)
    B = B * G / (A.trace() * B.trace())
    conv = damped(B, ridge).inverse() @ joined(D, "0") @ damped(A, ridge).inverse()
    norm = {}
    for name in ("1.weight", "1.bias"):
        square = torch.stack([g[name] ** 2 for g in whole]).mean(0)
        norm[name] = D[name] / (square + ridge * square.mean())
    a = torch.cat([model[:4](aux.x).detach(), torch.ones(len(aux), 1)], 1)
    d = model(aux.x).softmax(1).detach() - nn.functional.one_hot(aux.y, 4)
    A, B, P = a.T @ a / len(a), d.T @ d / len(d), sum_zero(4)
    inside = damped(P.T @ B @ P, ridge, B.trace() / 4).inverse() @ P.T @ joined(D, "4")
    last = P @ inside @ damped(A, ridge).inverse()
    return torch.stack(
        [
            torch.stack(
                [
                    (joined(g, "0") * conv).sum(),
                    sum((g[name] * norm[name]).sum() for name in norm),
                    (joined(g, "4") * last).sum(),
                ]
            )
            for g in gradients(model, x, y, "phi")
        ]
    )


@pytest.mark.parametrize("ridge", [0.05, 0.7])
def test_kfac_is_that_of_the_textbook(ridge):
    """Convolution over positions, norm by its diagonal, last layer in the sum-zero subspace."""
    model, (x, y), aux = cnn(), records(7, 2, 4, 4, c=4), data(60, 2, 4, 4, c=4)
    pull = mean(gradients(model, aux.x, aux.y, "loss"))
    for signal, D in ((WhitenedGamma, pull), (WhitenedTheta, weights(model))):
        got = signal(aux, ridge)(model, x, y)
        torch.testing.assert_close(got, slow_kfac(model, x, y, aux, D, ridge), **CLOSE)
        assert torch.equal(signal(aux, ridge, layers=("4", "1"))(model, x, y), got[:, 1:])


def test_ekfac_is_that_of_the_textbook():
    """C = kron(U_B, U_A) diag kron(U_B, U_A)', inverted as one matrix."""
    model, (x, y), aux = mlp(), records(7, 4), data(60, 4)
    pull = mean(gradients(model, aux.x, aux.y, "loss"))
    whole, J = gradients(model, aux.x, aux.y, "loss"), gradients(model, x, y, "phi")
    for signal, D in ((WhitenedGamma, pull), (WhitenedTheta, weights(model))):
        got, columns = signal(aux, 0.1, "ekfac")(model, x, y), []
        for layer, a in (("0", aux.x), ("2", model[:2](aux.x).detach())):
            a = torch.cat([a, torch.ones(60, 1)], 1)
            B = torch.stack([joined(g, layer)[:, -1] for g in whole])  # the bias's gradient is delta
            U_A = torch.linalg.eigh(a.T @ a / 60).eigenvectors
            S = sum_zero(3) if layer == "2" else torch.eye(5).double()
            U_B = S @ torch.linalg.eigh(S.T @ (B.T @ B / 60) @ S).eigenvectors
            value = torch.stack([(U_B.T @ joined(g, layer) @ U_A) ** 2 for g in whole]).mean(0)
            K = torch.kron(U_B.contiguous(), U_A.contiguous())
            V = K @ (K.T @ joined(D, layer).flatten() / (value + 0.1 * value.mean()).flatten())
            columns.append(torch.stack([joined(g, layer).flatten() @ V for g in J]))
        torch.testing.assert_close(got, torch.stack(columns, 1), **CLOSE)


@pytest.mark.parametrize("ridge", [0.0, 0.05])
def test_last_is_the_explicit_inverse(ridge):
    """Centred, of true labels; at ridge 0 the pseudo-inverse in raw coordinates says the same."""
    model, (x, y), aux = mlp(), records(7, 4), data(90, 4)
    g = torch.stack([joined(v, "2").flatten() for v in gradients(model, aux.x, aux.y, "loss")])
    J = torch.stack([joined(v, "2").flatten() for v in gradients(model, x, y, "phi")])
    K = torch.kron(sum_zero(3).contiguous(), torch.eye(6).double())
    centred = g - g.mean(0)
    C = damped(K.T @ centred.T @ centred @ K / 90, ridge)
    for signal, D in ((WhitenedGamma, g.mean(0)), (WhitenedTheta, joined(weights(model), "2").flatten())):
        got = signal(aux, ridge, "last")(model, x, y)
        want = J @ K @ C.inverse() @ K.T @ D
        torch.testing.assert_close(got, want[:, None], **CLOSE)
        if ridge == 0:
            raw = torch.linalg.pinv(centred.T @ centred / 90, rtol=1e-10, hermitian=True)
            torch.testing.assert_close(got[:, 0], J @ raw @ D, **CLOSE)


def test_the_raw_coordinates_have_no_ridge_0_and_the_subspace_has():
    """The wrong version inverts B of the last layer as it is: rank c - 1 of c."""
    model, (x, y), aux = mlp(), records(7, 4), data(60, 4)
    f = factors(model, aux.x, aux.y)["2"]
    assert torch.linalg.matrix_rank(f.B, rtol=1e-10) == 2
    with pytest.raises(ValueError, match="ridge must be higher"):
        lower(f.B, 0.0)
    got = WhitenedTheta(aux, 0.0)(model, x, y)
    near = WhitenedTheta(aux, 1e-9)(model, x, y)
    torch.testing.assert_close(got, near, rtol=1e-5, atol=1e-7)
    # what shifts all logits alike is no direction: a model that differs by it has the same score
    shifted = copy.deepcopy(model)
    shifted[2].weight.data += torch.randn(5, generator=stream(0)).double()
    torch.testing.assert_close(WhitenedTheta(aux)(shifted, x, y)[:, 1], WhitenedTheta(aux)(model, x, y)[:, 1])


def test_last_equals_kfac_where_inputs_and_deltas_are_independent():
    """One layer, p free of x, every x with every label, labels as likely as p says: the same G in both."""
    x0 = records(20, 3)[0]
    labels = torch.tensor([0, 0, 1, 2])
    aux = Data(x0.repeat_interleave(4, 0), labels.repeat(20), 3, "aux")
    model = nn.Sequential(nn.Linear(3, 3)).double().eval()
    model[0].weight.data = torch.randn(1, 3, generator=stream(0)).double().expand(3, 3).clone()
    model[0].bias.data = torch.tensor([0.5, 0.25, 0.25]).double().log()
    g = stream(1)
    D = {"0.weight": torch.randn(3, 3, generator=g).double(), "0.bias": torch.randn(3, generator=g).double()}
    kfac, last = (whitened(model, D, aux, ("0",), ridge=0.0, curvature=how) for how in ("kfac", "last"))
    for name in D:
        torch.testing.assert_close(kfac[name], last[name], rtol=1e-9, atol=1e-10)
    x, y = records(6, 3, seed=2)
    a, b = (WhitenedTheta(aux, 0.0, how)(model, x, y) for how in ("kfac", "last"))
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)
    assert a.abs().min() > 1e-3
    other = Data(aux.x * torch.where(aux.y == 0, 3.0, 1.0)[:, None], aux.y, 3, "aux")  # no longer so
    kfac, last = (whitened(model, D, other, ("0",), ridge=0.0, curvature=how) for how in ("kfac", "last"))
    assert not torch.allclose(kfac["0.weight"], last["0.weight"], rtol=1e-3)


@pytest.mark.parametrize("k", [40, 3])
def test_sketch_is_that_of_the_textbook(k):
    """Many columns and next to no ridge: the covariance of all layers itself."""
    model = fill(nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2)))
    (x, y), aux = records(7, 3, c=2), data(80, 3, c=2)
    ridge = 1e-10 if k == 40 else 0.05

    def flat(g):
        return torch.cat([g[name].flatten() for name in g])

    whole = torch.stack([flat(g) for g in gradients(model, aux.x, aux.y, "loss")])
    J = torch.stack([flat(g) for g in gradients(model, x, y, "phi")])
    centred = whole - whole.mean(0)
    G = centred.T @ centred / 80
    theta = weights(model)
    for name in ("2.weight", "2.bias"):
        theta[name] = theta[name] - theta[name].mean(0)
    held = dict(model.named_parameters())
    R = torch.stack([torch.cat([signs(5, n, j, p.detach()) for n, p in held.items()]) for j in range(k)], 1)
    for signal, D in ((WhitenedGamma, whole.mean(0)), (WhitenedTheta, flat(theta))):
        got = signal(aux, ridge, "sketch", k=k, seed=5)(model, x, y)
        want = J @ R @ damped(R.T @ G @ R, ridge).inverse() @ R.T @ D
        torch.testing.assert_close(got, want[:, None], rtol=1e-4, atol=1e-5)
        if k == 40:
            exact = J @ torch.linalg.pinv(G, rtol=1e-10, hermitian=True) @ D
            torch.testing.assert_close(got[:, 0], exact, rtol=1e-3, atol=1e-4)
            assert not torch.allclose(signal(aux, 0.05, "sketch", k=8)(model, x, y), got, rtol=0.1)


def test_drawn_labels_are_another_curvature():
    """The Fisher put for G, where labels know nothing of the model."""
    model, (x, y), aux = mlp(), records(9, 4), data(400, 4)
    model[2].weight.data *= 6
    got = WhitenedTheta(aux, layers=("2",))(model, x, y)[:, 0]
    f = factors(model, aux.x, aux.y, layers=("2",), labels="sampled", generator=stream(0))["2"]
    P = sum_zero(3)
    inside = damped(P.T @ f.B @ P, 0.05, f.B.trace() / 3).inverse() @ P.T @ joined(weights(model), "2")
    V = P @ inside @ damped(f.A, 0.05).inverse()
    wrong = torch.stack([(joined(g, "2") * V).sum() for g in gradients(model, x, y, "phi")])
    assert ((wrong / got - 1).abs() > 0.2).double().mean() > 0.5


# Invariance


@pytest.mark.parametrize("curvature", ["kfac", "ekfac", "last"])
@pytest.mark.parametrize("signal", SIGNALS)
def test_units_that_change_places_change_nothing(signal, curvature):
    for model, shape in ((mlp(4, 6, 5, 3), (4,)), (cnn(), (2, 4, 4))):
        c = 4 if len(shape) == 3 else 3
        (x, y), aux = records(9, *shape, c=c), data(80, *shape, c=c)
        spec = symmetry(model, x)
        other = permuted(model, {k: torch.arange(u).roll(1) for k, u in spec.sizes.items()}, spec)
        assert any(not torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
        one = signal(aux, curvature=curvature)
        torch.testing.assert_close(one(other, x, y), one(model, x, y), rtol=1e-10, atol=1e-10)


def test_a_sketch_does_depend_on_the_order_of_units():
    model, (x, y), aux = mlp(4, 6, 3), records(9, 4), data(80, 4)
    spec = symmetry(model, x)
    other = permuted(model, {k: torch.arange(u).flip(0) for k, u in spec.sizes.items()}, spec)
    one = WhitenedGamma(aux, curvature="sketch", k=8)
    assert not torch.allclose(one(other, x, y), one(model, x, y), rtol=0.01)


def rescaled(model):
    """Each hidden unit times a factor, undone by the next layer: the same function."""
    out, factor = copy.deepcopy(model), torch.tensor([0.3, 5.0, 1.7, 0.6, 2.0]).double()
    out[0].weight.data *= factor[:, None]
    out[0].bias.data *= factor
    out[2].weight.data /= factor
    return out


@pytest.mark.parametrize("curvature", ["kfac", "last"])
def test_units_that_change_their_scale_change_nothing_of_gamma_at_ridge_0(curvature):
    """Factors of full rank: no dead unit, no constant input, more records than parameters of a layer."""
    model, (x, y), aux = mlp(4, 5, 3), records(9, 4), data(400, 4)
    other = rescaled(model)
    torch.testing.assert_close(other(x), model(x), rtol=1e-12, atol=1e-12)
    at_0 = WhitenedGamma(aux, 0.0, curvature)
    torch.testing.assert_close(at_0(other, x, y), at_0(model, x, y), rtol=1e-8, atol=1e-9)
    for changed in (WhitenedGamma(aux, 0.05, curvature), WhitenedTheta(aux, 0.0, "kfac")):
        assert not torch.allclose(changed(other, x, y), changed(model, x, y), rtol=0.01)


# Paths, dtypes, extremes


def test_one_forward_mode_pass_gives_the_sum_over_layers():
    for model, shape, c in ((mlp(), (4,), 3), (cnn(), (2, 4, 4), 4)):
        (x, y), aux = records(9, *shape, c=c), data(60, *shape, c=c)
        layers = [name for name, m in model.named_modules() if m._parameters]
        for how in ("kfac", "ekfac"):
            V = whitened(model, weights(model), aux, layers, ridge=0.05, curvature=how)
            through = inner(model, x, y, V)
            torch.testing.assert_close(contract(model, x, y, V).sum(1), through, **CLOSE)
            torch.testing.assert_close(
                WhitenedTheta(aux, curvature=how)(model, x, y).sum(1), through, **CLOSE
            )


def test_embeddings_and_groups_are_divided_by_their_squares():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.last = nn.Embedding(9, 4, padding_idx=0), nn.Linear(4, 3)

        def forward(self, x):
            return self.last(self.table(x.long()).mean(1))

    model = fill(Tokens())
    g = stream(0)
    x, y = torch.randint(8, (10, 3), generator=g).double(), torch.randint(3, (10,), generator=g)
    ax, ay = torch.randint(7, (50, 3), generator=g).double(), torch.randint(3, (50,), generator=g)
    aux = Data(ax, ay, 3, "aux")  # token 7 never, token 8 nowhere
    square = diagonal(model, ax, ay, layers=("table",))["table.weight"]
    V = model.table.weight.detach() / (square + 0.05 * square.mean())
    want = torch.stack([(v["table.weight"] * V).sum() for v in gradients(model, x, y, "phi")])
    got = WhitenedTheta(aux)(model, x, y)
    torch.testing.assert_close(got[:, 0], want, **CLOSE)
    assert got.isfinite().all()
    assert WhitenedTheta(aux, curvature="sketch", k=8)(model, x, y).isfinite().all()
    with pytest.raises(ValueError, match="ridge must be higher where a layer's curvature is singular, got 0"):
        WhitenedTheta(aux, 0.0)(model, x, y)


@pytest.mark.parametrize("curvature", ["kfac", "ekfac", "last", "sketch"])
@pytest.mark.parametrize("signal", SIGNALS)
def test_chunks_order_and_one_record(signal, curvature):
    model, (x, y), aux = cnn(), records(30, 2, 4, 4, c=4), data(80, 2, 4, 4, c=4)
    held, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    model[0].weight.requires_grad_(False)
    one = signal(aux, curvature=curvature, k=20)
    whole = one(model, x, y)
    assert whole.shape == (30, 1 if curvature in ("last", "sketch") else 3)
    assert whole.dtype == torch.float64
    turn, back = torch.randperm(30, generator=stream(0)), torch.randperm(80, generator=stream(1))
    close = {"rtol": 1e-7, "atol": 1e-9}
    torch.testing.assert_close(one(model, x[turn], y[turn]), whole[turn], **close)
    torch.testing.assert_close(one(model, x[:1], y[:1]), whole[:1], **close)
    other = signal(aux[back], curvature=curvature, k=20, memory="256 KiB")
    torch.testing.assert_close(other(model, x, y), whole, **close)
    assert all(torch.equal(v, held[name]) for name, v in model.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())
    assert [p.requires_grad for p in model.parameters()] == [False, *[True] * 5]
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks or m.training for m in model.modules())


@pytest.mark.parametrize("curvature", ["kfac", "ekfac", "last"])
def test_float32_is_near_float64_and_sure_records_are_told_apart(curvature):
    model = fill(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)))
    (x, y), aux = records(9, 4), data(80, 4)
    for signal in SIGNALS:
        want = signal(aux, curvature=curvature)(model, x, y)
        half = Data(aux.x.float(), aux.y, 3, "aux")
        single = signal(half, curvature=curvature)(copy.deepcopy(model).float(), x.float(), y)
        torch.testing.assert_close(single, want, rtol=1e-4, atol=1e-4 * float(want.abs().max()))
    sure = copy.deepcopy(model).float()
    sure[2].weight.data *= 60 / float(model(x).detach().abs().max())
    label = sure(x.float()).argmax(1)
    label_aux = sure(half.x).argmax(1)
    label_aux[::7] = (label_aux[::7] + 1) % 3
    got = WhitenedGamma(Data(half.x, label_aux, 3, "aux"), curvature=curvature)(sure, x.float(), label)
    assert got.isfinite().all()
    assert len(got.sum(1).unique()) == len(got)


def test_a_layer_that_aux_does_not_pull_at_counts_zero():
    model, (x, y), aux = cnn(), records(9, 2, 4, 4, c=4), data(60, 2, 4, 4, c=4)
    model[4].weight.data.zero_()
    for how in ("kfac", "ekfac"):
        got = WhitenedTheta(aux, curvature=how)(model, x, y)
        assert (got[:, :2] == 0).all()
        assert (got[:, 2] != 0).all()


def test_two_classes_and_a_class_that_aux_lacks():
    model, (x, _) = mlp(4, 5, 2), records(9, 4)
    y = torch.arange(9) % 2
    aux = Data(records(60, 4, seed=1)[0], torch.zeros(60).long(), 2, "aux")
    for how in ("kfac", "ekfac", "last", "sketch"):
        assert WhitenedGamma(aux, curvature=how, k=9)(model, x, y).isfinite().all()


def test_a_signal_is_known_by_its_content():
    aux, same, other = data(60, 4), data(60, 4), data(60, 4, seed=2)
    assert content(WhitenedGamma(aux)) == content(WhitenedGamma(same))
    kinds = [WhitenedGamma(aux), WhitenedTheta(aux), WhitenedGamma(other), WhitenedGamma(aux, 0.1)]
    kinds += [WhitenedGamma(aux, layers=("2",)), WhitenedGamma(aux, curvature="last")]
    assert len({str(content(kind)) for kind in kinds}) == len(kinds)


def test_refuses():
    model, (x, y), aux = mlp(), records(9, 4), data(60, 4)
    with pytest.raises(ValueError, match="model must be in eval mode") as caught:
        WhitenedGamma(aux)(copy.deepcopy(model).train(), x, y)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="ridge must be 0 or more, got -0.1"):
        WhitenedGamma(aux, -0.1)(model, x, y)
    with pytest.raises(ValueError, match="layers must be None with curvature='last', got \\('0',\\)"):
        WhitenedGamma(aux, curvature="last", layers=("0",))(model, x, y)
    with pytest.raises(ValueError, match="layers must name modules"):
        WhitenedGamma(aux, layers=("nowhere",))(model, x, y)
    raw, wrong = inspect.unwrap(Whitening.product), Whitening(aux)
    object.__setattr__(wrong, "curvature", "exact")
    with pytest.raises(
        ValueError, match="curvature must be 'kfac', 'ekfac', 'last' or 'sketch', got 'exact'"
    ):
        raw(wrong, model, x, y, gamma=1.0, theta=0.0)
    dead = copy.deepcopy(model)
    dead[0].bias.data[0], dead[0].weight.data[0] = -100.0, 0.0
    for how in ("kfac", "ekfac", "last"):
        with pytest.raises(
            ValueError, match="ridge must be higher where a layer's curvature is singular, got 0"
        ):
            WhitenedTheta(aux, 0.0, how)(dead, x, y)
        assert WhitenedTheta(aux, 0.05, how)(dead, x, y).isfinite().all()


def test_cholesky_of_the_exact_last_layer_succeeds_at_ridge_0():
    """No dead unit, more records than (c - 1)(u + 1)."""
    model, aux = mlp(), data(60, 4)
    found = last_layer(model, aux.x, aux.y)
    assert len(found.G) == 12
    L = lower(found.G, 0.0)
    torch.testing.assert_close(L @ L.T, found.G, **CLOSE)
    for basis in ekfac(model, aux.x, aux.y).values():
        assert basis.value.min() > 0
