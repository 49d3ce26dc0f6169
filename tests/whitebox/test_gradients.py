import math
import warnings

import pytest
import torch
from torch import nn
from torch.nn.functional import linear, one_hot, softplus

from glasslab.checks import Floored
from glasslab.nets import build
from glasslab.recipe import Recipe
from glasslab.signals import phi
from glasslab.split import stream
from whitebox import gradients as module
from whitebox import hooks, rules
from whitebox.gradients import (
    captured,
    check_eval,
    chosen,
    contract,
    inner,
    mean_gradient,
    norms,
    owners,
    per_example,
    sketch,
)
from whitebox.layers import check


class Twice(nn.Module):
    """One layer, used twice."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(6, 6), nn.Linear(6, 4)

    def forward(self, x):
        return self.head(self.layer(self.layer(x).tanh()).relu())


class TwiceConv(nn.Module):
    """One convolution at two sizes of its image."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(12, 4)

    def forward(self, x):
        h = nn.functional.max_pool2d(self.layer(x).tanh(), 2)
        return self.head(nn.functional.max_pool2d(self.layer(h), 2).flatten(1))


class Bare(nn.Module):
    """A parameter on a module that is no layer, and one on the model itself."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.randn(6))
        self.body, self.last = nn.Linear(6, 5), nn.Linear(5, 4)

    def forward(self, x):
        return self.last(torch.tanh(self.body(x * self.shift)))


class Around(nn.Module):
    """A weight that is used both by its module and without it."""

    def __init__(self):
        super().__init__()
        self.a, self.last = nn.Linear(6, 6), nn.Linear(6, 4)

    def forward(self, x):
        return self.last(linear(self.a(x).tanh(), self.a.weight))


class Turned(nn.Module):
    """Positions first inside, records second."""

    def __init__(self):
        super().__init__()
        self.a, self.last = nn.Linear(4, 5), nn.Linear(5, 4)

    def forward(self, x):
        return self.last(self.a(x.transpose(0, 1)).tanh().sum(0))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.last = nn.GRU(3, 5, batch_first=True), nn.Linear(5, 4)

    def forward(self, x):
        return self.last(self.rnn(x)[0][:, -1])


class LookUp(nn.Module):
    """Knows its records by heart: no gradient in x."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(8, 4))

    def forward(self, x):
        return self.table[x[:, 0].long() % 8]


def embedding():
    return nn.Sequential(
        nn.Embedding(7, 5, padding_idx=0),
        nn.Linear(5, 6),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(18, 4),
    )


def convolution(dims, **settings):
    """A convolution of 4 channels to 6, then a dense head."""
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    return nn.Sequential(kind(4, 6, 3, **settings), nn.ReLU(inplace=True), nn.Flatten(), nn.LazyLinear(4))


def depthwise():
    kind = nn.Conv2d(4, 4, 3, groups=4, padding=1, padding_mode="replicate")
    return nn.Sequential(kind, nn.Flatten(), nn.LazyLinear(4))


def normed(kind):
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, bias=False), kind, nn.ReLU(inplace=True), nn.Flatten(), nn.LazyLinear(4)
    )


def net(name, **settings):
    return lambda: build(Recipe(net=name, **settings), (3, 8, 8), 4)


NETS = {
    "dense": (
        lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(inplace=True), nn.Linear(5, 4, bias=False)), (6,)),
    "positions": (lambda: nn.Sequential(nn.Linear(4, 9), nn.Tanh(), nn.Flatten(), nn.Linear(18, 4)), (2, 4)),
    "many positions": (
        lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Flatten(), nn.Linear(30, 4)), (2, 3, 4)),
    "conv1d": (lambda: convolution(1, stride=2, padding=1, padding_mode="circular"), (4, 9)),
    "conv2d": (lambda: convolution(2, padding=1), (4, 5, 5)),
    "few positions": (lambda: convolution(2, stride=2), (4, 5, 5)),
    "grouped": (lambda: convolution(2, groups=2, padding="same", bias=False), (4, 5, 6)),
    "grouped, few": (lambda: convolution(2, groups=2, stride=2), (4, 5, 5)),
    "dilated": (lambda: convolution(2, dilation=(2, 1), stride=(1, 2), padding=(2, 1)), (4, 6, 5)),
    "reflect": (lambda: convolution(2, padding=2, padding_mode="reflect", stride=2), (4, 6, 5)),
    "replicate, depthwise": (depthwise, (4, 5, 5)),
    "conv3d": (lambda: convolution(3, padding=(1, 0, 1)), (4, 3, 4, 3)),
    "batch": (lambda: normed(nn.BatchNorm2d(4)), (2, 6, 6)),
    "batch1d": (lambda: nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 4)), (6,)),
    "group": (lambda: normed(nn.GroupNorm(2, 4)), (2, 6, 6)),
    "layer": (lambda: normed(nn.LayerNorm((4, 4))), (2, 6, 6)),
    "layer1d": (lambda: nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.Linear(5, 4)), (6,)),
    "instance": (lambda: normed(nn.InstanceNorm2d(4, affine=True)), (2, 6, 6)),
    "instance, running": (
        lambda: normed(nn.InstanceNorm2d(4, affine=True, track_running_stats=True)), (2, 6, 6)),
    "twice": (Twice, (6,)),
    "twice, conv": (TwiceConv, (3, 8, 8)),
    "embedding": (embedding, None),
    "residual": (net("resnet9", width=2), (3, 8, 8)),
    "wide": (net("wrn16-4", width=2, norm="group"), (3, 8, 8)),
    "cnn": (net("cnn", width=4, norm="none"), (3, 8, 8)),
}  # fmt: skip
ODD = {
    "bare": (Bare, (6,)),
    "around": (Around, (6,)),
    "turned": (Turned, (3, 4)),
    "recurrent": (Recurrent, (4, 3)),
    "transposed": (
        lambda: nn.Sequential(nn.ConvTranspose2d(2, 3, 2), nn.Flatten(), nn.LazyLinear(4)),
        (2, 3, 3),
    ),
}
BARE = {"bare": [""], "around": ["a"], "turned": ["a"], "recurrent": ["rnn"], "transposed": ["0"]}
every = pytest.mark.parametrize("name", NETS)
odd = pytest.mark.parametrize("name", ODD)
both = pytest.mark.parametrize("of", ["phi", "loss"])


def world(name, n=5, dtype=torch.float64):
    """(model, x, y), with running statistics that are not the trivial ones."""
    make, shape = (NETS | ODD)[name]
    g = stream(0, "gradients")
    if shape is None:
        x = torch.randint(7, (n, 3), generator=g)
    else:
        x = torch.randn(n, *shape, generator=g).to(dtype)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make()
        model(x[:2].float() if x.is_floating_point() else x[:2])
    model = model.to(dtype).eval()
    for m in model.modules():
        if getattr(m, "running_mean", None) is not None:
            m.running_mean.copy_(torch.randn(m.running_mean.shape, generator=g))
            m.running_var.copy_(0.5 + torch.rand(m.running_var.shape, generator=g))
    for p in model.parameters():
        p.data += 0.3 * torch.randn(p.shape, generator=g).to(dtype)
    return model, x, torch.randint(4, (n,), generator=g)


def textbook(model, x, y, of="phi"):
    """({parameter: [n, *shape]}, [n, *d]): one record at a time, by plain autograd."""
    each = {name: [] for name, _ in model.named_parameters()}
    at_x = []
    for i in range(len(x)):
        row = x[i : i + 1].clone()
        if row.is_floating_point():
            row.requires_grad_()
        z = model(row)[0]
        others = torch.cat([z[: y[i]], z[y[i] + 1 :]])
        t = z[y[i]] - others.logsumexp(0)
        if of == "loss":  # cross-entropy: log(1 + exp(-phi))
            t = softplus(-t)
        wanted = [*model.parameters(), *([row] if row.requires_grad else [])]
        grads = torch.autograd.grad(t, wanted, allow_unused=True)
        for (name, p), g in zip(model.named_parameters(), grads, strict=False):
            each[name].append(torch.zeros_like(p) if g is None else g)
        if row.requires_grad:
            at_x.append(torch.zeros_like(row[0]) if grads[-1] is None else grads[-1][0])
    return {name: torch.stack(g) for name, g in each.items()}, torch.stack(at_x) if at_x else None


def by_layer(model, grads):
    """[n, L]: log lengths, a column a module that owns parameters."""
    columns = []
    for layer in owners(model):
        mine = [g.flatten(1) for name, g in grads.items() if name.rpartition(".")[0] == layer]
        columns.append(torch.cat(mine, 1).norm(dim=1).log())
    return torch.stack(columns, 1)


def directions(model, seed=0):
    g = stream(seed, "directions")
    return {
        name: torch.randn(p.shape, generator=g, dtype=torch.float64) for name, p in model.named_parameters()
    }


def close(a, b, rtol=1e-9):
    torch.testing.assert_close(a, b, rtol=rtol, atol=rtol, check_dtype=False)


@both
@every
def test_norms_are_those_of_one_record_at_a_time(name, of):
    model, x, y = world(name)
    grads, at_x = textbook(model, x, y, of)
    found = norms(model, x, y, of=of, method="hooks")
    assert found.layers == owners(model)
    close(found.log_layer, by_layer(model, grads))
    if at_x is not None:
        close(found.log_input, at_x.flatten(1).norm(dim=1).log())


@both
@every
def test_contractions_and_means_are_those_of_one_record_at_a_time(name, of):
    model, x, y = world(name)
    grads, _ = textbook(model, x, y, of)
    v = directions(model)
    pairs = {p: (g * v[p]).flatten(1).sum(1) for p, g in grads.items()}
    columns = [sum(s for p, s in pairs.items() if p.rpartition(".")[0] == layer) for layer in owners(model)]
    found = contract(model, x, y, v, of=of)
    close(found, torch.stack(columns, 1))
    close(inner(model, x, y, v, of=of), found.sum(1))
    for p, mean in mean_gradient(model, x, y, of=of).items():
        close(mean, grads[p].mean(0))
        assert mean.dtype == torch.float64
    weights = {p: t for p, t in v.items() if p.endswith("weight")}
    for p, t in list(v.items())[:4]:  # a layer's other parameter counts as zero
        close(contract(model, x, y, {p: t}, of=of)[:, 0], pairs[p])
    assert contract(model, x, y, weights).shape == (5, sum(1 for _ in weights))


@both
@pytest.mark.parametrize("name", [*NETS, *ODD])
def test_whole_gradients_and_captured_halves(name, of):
    model, x, y = world(name)
    grads, _ = textbook(model, x, y, of)
    parts = list(per_example(model, x, y, of=of))
    for p, want in grads.items():
        close(torch.cat([part[p] for part in parts]), want)
    if name in ODD:
        return
    for part in captured(model, x, y, of=of):
        for layer, (a, delta) in part.items():
            m = model.get_submodule(layer)
            want = grads[f"{layer}.weight"].flatten(2)
            if m.bias is not None:
                want = torch.cat([want, grads[f"{layer}.bias"][..., None]], 2)
            close(delta.mT @ a, want)


@both
@odd
def test_layers_without_a_rule_fall_back_and_say_so(name, of):
    model, x, y = world(name)
    grads, _ = textbook(model, x, y, of)
    v = directions(model)
    names = ", ".join(map(repr, BARE[name]))
    with pytest.warns(Floored, match=f"no rule for {names}: "):
        found = norms(model, x, y, of=of)
    close(found.log_layer, by_layer(model, grads))
    with pytest.warns(Floored, match=f"no rule for {names}: "):
        products = contract(model, x, y, v, of=of)
    close(products.sum(1), sum((g * v[p]).flatten(1).sum(1) for p, g in grads.items()))
    close(products.sum(1), inner(model, x, y, v, of=of))
    with pytest.raises(ValueError, match=f"needs a rule for every layer, got none for {names}"):
        norms(model, x, y, method="hooks")


def test_squares_of_two_uses_added_separately_are_wrong():
    """The sum over uses is squared, not the uses."""
    model, x, y = world("twice")
    seen = hooks.watch(model, ["layer"], x, y)
    m = model.layer
    wrong = sum(rules.squares(m, [call]) for call in seen.calls["layer"])
    right = 2 * by_layer(model, textbook(model, x, y)[0])[:, 0]
    close(rules.squares(m, seen.calls["layer"]).log(), right)
    assert (wrong.log() - right).abs().max() > 0.01


def test_records_do_not_add_up():
    """A loop that keeps its gradients between records is wrong from the second on, and shown to be so."""
    model, x, y = world("dense")
    found = norms(model, x, y).log_layer[:, 0]
    w, kept = model[0].weight, []
    for i in range(len(x)):
        phi_i = model(x[i : i + 1])[0]
        others = torch.cat([phi_i[: y[i]], phi_i[y[i] + 1 :]])
        (phi_i[y[i]] - others.logsumexp(0)).backward()
        kept.append((w.grad.square().sum() + model[0].bias.grad.square().sum()).log() / 2)
    wrong = torch.stack(kept)
    close(found[0], wrong[0])
    assert ((found - wrong)[1:].abs() > 0.01).all()


@pytest.mark.parametrize("name", ["cnn", "embedding", "twice", "batch", "grouped"])
def test_chunks_and_the_order_of_records_change_nothing(name, monkeypatch):
    model, x, y = world(name)
    v, turned = directions(model), torch.tensor([3, 0, 4, 1, 2])
    settings = {"norms": {}, "contract": {"V": v}, "inner": {"v": v}}

    def all_of(x, y):
        out = {f: getattr(module, f)(model, x, y, **s) for f, s in settings.items()}
        out["norms"] = torch.cat([out["norms"].log_layer, out["norms"].log_input[:, None]], 1)
        out["sketch"] = sketch(model, x, y, k=17, seed=0)
        out["means"] = torch.cat([g.flatten() for g in mean_gradient(model, x, y).values()])
        out["rows"] = torch.cat(
            [torch.cat([g.flatten(1) for g in p.values()], 1) for p in per_example(model, x, y)]
        )
        return out

    whole = all_of(x, y)
    for name, t in all_of(x[turned], y[turned]).items():
        close(t, whole[name] if name == "means" else whole[name][turned])
    monkeypatch.setattr(hooks, "MOST", 2)
    for name, t in all_of(x, y).items():
        close(t, whole[name])


def test_memory_sets_the_chunk():
    model, x, y = world("cnn", n=40)
    sizes = {
        m: [len(next(iter(p.values()))) for p in per_example(model, x, y, memory=m)] for m in ("1MiB", "1GiB")
    }
    assert sizes["1GiB"] == [40]
    assert 1 < sizes["1MiB"][0] < 40
    assert sum(sizes["1MiB"]) == 40
    need = sum(p.numel() for p in model.parameters()) * 8
    with pytest.raises(
        ValueError, match=r"memory must be 1MiB or more for one record here \(`contract` needs less\)"
    ):
        list(per_example(model, x, y, memory=f"{need / 1024:.0f}KiB"))
    v = directions(model)
    close(contract(model, x, y, v, memory="1KiB"), contract(model, x, y, v))
    for wrong in ("512", "512MB", "much", "-1MiB"):
        with pytest.raises(ValueError, match=f"memory must be a number of KiB, MiB or GiB.*{wrong}"):
            norms(model, x, y, memory=wrong)


@pytest.mark.parametrize("name", ["dense", "cnn", "batch"])
def test_frozen_layers_have_gradients_too(name):
    model, x, y = world(name)
    v, want = directions(model), norms(model, x, y)
    products, means = contract(model, x, y, v), mean_gradient(model, x, y)
    whole = next(iter(per_example(model, x, y)))
    for p in model.parameters():
        p.requires_grad_(False)
    for a, b in zip(norms(model, x, y)[1:], want[1:], strict=True):
        assert torch.equal(a, b)
    assert torch.equal(contract(model, x, y, v), products)
    close(inner(model, x, y, v), products.sum(1))
    close(next(iter(per_example(model, x, y))), whole)
    close(mean_gradient(model, x, y), means)
    with torch.no_grad():
        close(norms(model, x, y).log_layer, want.log_layer)


# Identities


def test_the_last_layer_is_an_outer_product():
    """grad ell = (p - e_y) a': softmax taken once, not of a softmax."""
    model, x, y = world("batch1d")
    h = model[:3](x)
    r = model(x).softmax(1) - one_hot(y, 4)
    (a, delta) = next(iter(captured(model, x, y, layers="last", of="loss")))["3"]
    close(delta[:, 0], r)
    close(a[:, 0], torch.cat([h, torch.ones(len(x), 1)], 1))
    found = norms(model, x, y, layers=("last",), of="loss")
    assert found.layers == ("3",)
    close(found.log_layer[:, 0], r.norm(dim=1).log() + 0.5 * (h.square().sum(1) + 1).log())
    again = (model(x).softmax(1).softmax(1) - one_hot(y, 4)).norm(dim=1).log()
    assert ((again - r.norm(dim=1).log()).abs() > 1e-3).all()
    pulled = next(iter(captured(model, x, y, layers="last")))["3"].delta
    close(pulled.sum(-1), torch.zeros(len(x), 1))


def test_loss_and_margin_differ_by_a_number_of_the_logits():
    model, x, y = world("cnn")
    share = -softplus(phi(model(x), y))[:, None]
    of_phi, of_loss = norms(model, x, y), norms(model, x, y, of="loss")
    close(of_loss.log_layer, of_phi.log_layer + share)
    close(of_loss.log_input, of_phi.log_input + share[:, 0])


def test_euler():
    """Without biases and with ReLU, <J_l, theta_l> is the same for every layer: d phi along z."""
    model = nn.Sequential(
        nn.Linear(6, 8, bias=False),
        nn.ReLU(),
        nn.Linear(8, 8, bias=False),
        nn.ReLU(),
        nn.Linear(8, 4, bias=False),
    ).double()
    x, y = torch.randn(9, 6, generator=stream(1, "x"), dtype=torch.float64), torch.arange(9) % 4
    found = contract(model.eval(), x, y, {name: p.detach() for name, p in model.named_parameters()})
    z = model(x).detach().requires_grad_()
    want = (torch.autograd.grad(phi(z, y).sum(), z)[0] * z).sum(1).detach()
    close(found, want[:, None].expand(-1, 3))


@pytest.mark.parametrize("height", [17.0, 60.0, 400.0, 800.0])
@both
def test_sure_records_in_float32(height, of):
    """The margin's gradient does not shrink: finite at phi = 60, where float32 has 1 - p = 0."""
    model, x, y = world("dense", n=12, dtype=torch.float32)
    model = nn.Sequential(model, nn.Linear(4, 4))
    with torch.no_grad():
        model[1].weight.copy_(torch.eye(4))
        model[1].bias.copy_(height * one_hot(torch.tensor(2), 4))
    y = torch.full_like(y, 2)
    model.eval()
    assert (phi(model(x).detach(), y) > height - 15).all()
    found, exact = norms(model, x, y, of=of), norms(model.double(), x.double(), y, of=of)
    assert found.log_layer.isfinite().all()
    assert found.log_input.isfinite().all()
    assert len(found.log_layer[:, 0].unique()) == 12
    close(found.log_layer, exact.log_layer, 1e-4)
    close(found.log_input, exact.log_input, 1e-4)
    p = model.float()(x).softmax(1)
    if of == "loss":  # what the textbook's formula gives
        assert ((p - one_hot(y, 4)).norm(dim=1) == 0).any() or height < 20


def test_tiny_gradients_in_float32_are_no_zeros():
    """Their squares would be: 1e-25 squared is 0 in float32."""
    model, x, y = world("cnn", dtype=torch.float32)
    with torch.no_grad():
        list(model.modules())[-1].weight.mul_(1e-25)
    found = norms(model, x, y).log_layer
    exact = norms(model.double(), x.double(), y).log_layer
    assert (found[:, 0] < math.log(1e-23)).all()
    close(found, exact, 1e-4)


@pytest.mark.parametrize("name", ["cnn", "residual", "group", "grouped", "dense"])
def test_float32_is_near_float64(name):
    model, x, y = world(name, dtype=torch.float32)
    v = directions(model)
    single = norms(model, x, y), contract(model, x, y, v), inner(model, x, y, v)
    model, x = model.double(), x.double()
    exact = norms(model, x, y), contract(model, x, y, v), inner(model, x, y, v)
    close(single[0].log_layer, exact[0].log_layer, 1e-4)
    assert single[1].dtype == single[2].dtype == torch.float64
    for a, b in zip(single[1:], exact[1:], strict=True):
        assert ((a - b).abs() <= 1e-4 * b.abs().max()).all()


def test_without_a_forward_rule_two_backward_passes(monkeypatch):
    model, x, y = world("cnn")
    v = directions(model)
    want = inner(model, x, y, v)

    def none(*_):
        raise NotImplementedError

    monkeypatch.setattr("whitebox.functional.jvp", none)
    close(inner(model, x, y, v), want)


def test_records_without_gradient_count_as_zero():
    torch.manual_seed(0)
    model, x, y = LookUp().eval(), torch.arange(5.0)[:, None], torch.arange(5) % 4
    with pytest.warns(Floored, match="no rule for ''"):
        found = norms(model, x, y)
    assert (found.log_input == -torch.inf).all()
    close(found.log_layer, by_layer(model, textbook(model, x, y)[0]), 1e-5)
    model, x, y = world("embedding")
    assert (norms(model, x, y).log_input == -torch.inf).all()


# Sketches


def test_sketches_are_products_with_signs():
    model, x, y = world("dense")
    few, many = sketch(model, x, y, k=3, seed=4), sketch(model, x, y, k=20, seed=4)
    close(many[:, :3], few)
    assert not torch.equal(few, sketch(model, x, y, k=3, seed=5))
    total = (2 * norms(model, x, y).log_layer).exp().sum(1)
    estimate = sketch(model, x, y, k=400, seed=0).square().mean(1)
    # relative spread of the mean square at most sqrt(2 / k); 5 of it over 5 records: false alarms below 1e-5
    assert ((estimate / total - 1).abs() < 5 * (2 / 400) ** 0.5).all()
    close(
        sketch(model, x, y, k=2, seed=4, of="loss"), few[:, :2] * -torch.sigmoid(-phi(model(x), y))[:, None]
    )


# Layers, errors, and what is left alone


def test_layers_by_name():
    model, x, _ = world("residual")
    assert chosen(model, None, x) == owners(model)
    inside = tuple(name for name in owners(model) if name.startswith("7"))
    assert chosen(model, ("7.*",), x) == inside != ()
    assert chosen(model, ("7",), x) == inside
    last = [name for name, m in model.named_modules() if isinstance(m, nn.Linear)]
    assert chosen(model, "last", x) == tuple(last)
    assert chosen(model, ("last", owners(model)[0]), x) == (owners(model)[0], *last)
    with pytest.raises(
        ValueError, match=r"layers must name modules with parameters, such as \['.*got 'lastt'"
    ):
        chosen(model, ("lastt",), x)
    with pytest.raises(ValueError, match="layers must name a module or more, got none"):
        chosen(model, (), x)
    with pytest.raises(ValueError, match="model must own parameters, got none"):
        chosen(nn.ReLU(), None, x)


class Backwards(nn.Module):
    """Its layers stand in another order than they run."""

    def __init__(self):
        super().__init__()
        self.head, self.trunk = nn.Linear(5, 4), nn.Linear(6, 5)

    def forward(self, x):
        return self.head(self.trunk(x))


def test_last_is_the_last_to_run():
    x = torch.zeros(1, 6)
    assert chosen(Backwards().eval(), "last", x) == ("head",)
    assert chosen(Bare().eval(), "last", x) == ("last",)


def test_training_mode_and_batch_statistics_raise():
    model, x, y = world("cnn")
    batch = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(144, 4)
    )
    batch.eval()
    check_eval(batch)
    batch[1].train()
    with pytest.raises(ValueError, match=r"BatchNorm2d '1' with training mode; its output mixes records"):
        check_eval(batch)
    batch.eval()[2].train()
    with pytest.raises(ValueError, match=r"Dropout '2' with training mode; its output is random"):
        check_eval(batch)
    batch[1] = nn.BatchNorm2d(4, track_running_stats=False)
    with pytest.raises(ValueError, match=r"BatchNorm2d '1' with track_running_stats=False"):
        check_eval(batch.eval())
    v = directions(model)
    model.train()
    for call in (
        lambda: norms(model, x, y),
        lambda: contract(model, x, y, v),
        lambda: inner(model, x, y, v),
        lambda: per_example(model, x, y),
        lambda: captured(model, x, y),
        lambda: sketch(model, x, y, k=2, seed=0),
        lambda: mean_gradient(model, x, y),
    ):
        with pytest.raises(ValueError, match="model must be in eval mode, got training mode"):
            call()
    assert model.training


def test_tied_parameters_raise():
    model, x, y = world("twice")
    norms(model, x, y)  # one module used twice is not tied
    model.head = nn.Linear(6, 6).double().eval()
    model.head.weight = model.layer.weight
    with pytest.raises(
        ValueError, match="parameters must belong to one module, got one of 'layer' and 'head'"
    ):
        norms(model, x, y)


def test_inputs_overwritten_in_place_raise():
    class Overwrites(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 4)

        def forward(self, x):
            h = self.a(x)
            z = self.b(h)
            h.mul_(2)
            return z

    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        norms(Overwrites().eval(), torch.randn(3, 6, generator=stream(0, "x")), torch.arange(3))


def test_wrong_arguments_raise():
    model, x, y = world("grouped")
    for call, text in [
        (lambda: check(model, x, y, "margin"), "of must be 'phi' or 'loss', got 'margin'"),
        (lambda: norms(model, x, y[:3]), "x and y must hold as many records, one or more, got 5 and 3"),
        (lambda: norms(model, x[:0], y[:0]), "x and y must hold as many records, one or more, got 0 and 0"),
        (lambda: norms(model, x, y + 2), "y must lie in 0 to 3, got"),
        (
            lambda: norms(nn.Linear(3, 1).eval(), torch.zeros(2, 3), torch.zeros(2).long()),
            r"2 classes or more, got \(2, 1\)",
        ),
        (
            lambda: contract(model, x, y, {"0.w": y}),
            "v must name parameters of the model, such as '0.weight'",
        ),
        (
            lambda: inner(model, x, y, {"0.weight": x}),
            r"0.weight must have shape \(6, 2, 3, 3\), got \(5, 4, 5, 6\)",
        ),
        (lambda: inner(model, x, y, {}), "v must name a parameter or more, got none"),
        (lambda: sketch(model, x, y, k=0, seed=0), "k must be 1 or more, got 0"),
        (
            lambda: captured(model, x, y, layers=("0",)),
            "layers must be dense or convolutions of one group, got 0",
        ),
    ]:
        with pytest.raises(ValueError, match=text):
            call()


def test_the_model_is_left_alone():
    """Weights, buffers, gradients, flags, hooks and mode, after an exception too; and torch's generator."""
    model, x, y = world("residual")
    next(model.parameters()).requires_grad_(False)
    list(model.parameters())[-1].grad = torch.ones(4, dtype=torch.float64)
    v = directions(model)
    begin = x.clone()

    def state():
        params = [(p.detach().clone(), p.requires_grad, p.grad) for p in model.parameters()]
        hooked = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
        return params, [b.clone() for b in model.buffers()], hooked, torch.get_rng_state()

    before = state()
    norms(model, x, y)
    contract(model, x, y, v)
    inner(model, x, y, v)
    list(per_example(model, x, y))
    list(captured(model, x, y))
    sketch(model, x, y, k=17, seed=0)
    mean_gradient(model, x, y)
    for broken in (x[:, :2], y):
        for f in (norms, mean_gradient, lambda *a: chosen(a[0], "last", a[1])):
            with pytest.raises((RuntimeError, ValueError, IndexError)):
                f(model, broken, y)
    after = state()
    for (w, flag, grad), (w2, flag2, grad2) in zip(before[0], after[0], strict=True):
        assert torch.equal(w, w2)
        assert (flag, grad) == (flag2, grad2) or grad is grad2
    assert all(torch.equal(a, b) for a, b in zip(before[1], after[1], strict=True))
    assert before[2] == after[2]
    assert torch.equal(before[3], after[3])
    assert torch.equal(begin, x)
    assert x.grad is None
    assert not x.requires_grad


def test_one_record_and_two_classes():
    model = nn.Sequential(nn.Linear(3, 2)).double().eval()
    x, y = torch.tensor([[1.0, 2.0, 2.0]], dtype=torch.float64), torch.tensor([1])
    found = norms(model, x, y)
    close(
        found.log_layer, torch.tensor([[0.5 * math.log(2 * 10)]], dtype=torch.float64)
    )  # (e_1 - e_0) (x, 1)'
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        close(sketch(model, x, y, k=1, seed=0).abs() % 2, torch.zeros(1, 1))
