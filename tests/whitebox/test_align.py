import copy
from itertools import permutations as orders

import pytest
import torch
from torch import nn

from glasslab.layers import GlobalMean, Residual
from glasslab.nets import NETS, build
from glasslab.recipe import Recipe
from glasslab.split import stream
from whitebox.align import _levelled, align, assigned, matched
from whitebox.symmetry import Place, Symmetry, permuted, symmetry

METHODS = ("weights", "bottom_up", "top_down", "activations", "correlation", "sort")
methods = pytest.mark.parametrize("method", METHODS)
FLAT = ("softmax", "mlp", "dae")
CASES = [(net, "batch") for net in NETS] + [
    (net, kind) for net in NETS if net not in FLAT for kind in ("group", "none")
]
SHAPE = (3, 14, 14)


def lively(net, seed):
    """Float64, weights and statistics moved, so that no two units are alike and no norm is trivial."""
    g = stream(seed, "lively")
    net = net.double().eval()
    with torch.no_grad():
        for name, t in [*net.named_parameters(), *net.named_buffers()]:
            if "running_var" in name:
                t.copy_(0.5 + torch.rand(t.shape, generator=g).double())
            elif "mean" in name.split(".")[-1] or (t.ndim == 1 and t.is_floating_point()):
                t += 0.1 * torch.randn(t.shape, generator=g).double()
    return net


def make(name, kind="batch", seed=0, width=None):
    extra = {} if name == "softmax" else {"hidden": (12, 9)} if name in FLAT else {"width": width or 4}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        scale = (torch.rand(3), 0.5 + torch.rand(3))
        return lively(build(Recipe(net=name, norm=kind, **extra), SHAPE, 5, scale), seed)


def mlp(*sizes, seed=0, act=nn.ReLU):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = [m for a, b in zip(sizes, sizes[1:], strict=False) for m in (nn.Linear(a, b), act())]
        return nn.Sequential(*layers[:-1]).double().eval()


def images(n=4, seed=0):
    return torch.randn(n, *SHAPE, generator=stream(seed, "images")).double()


def drawn(spec, seed=0):
    """Random bijections that keep the groups of a GroupNorm together."""
    g, out = stream(seed, "drawn"), {}
    for name, size in spec.sizes.items():
        side = size // spec.groups[name]
        order = torch.randperm(spec.groups[name], generator=g).tolist()
        out[name] = torch.cat([k * side + torch.randperm(side, generator=g) for k in order])
    return out


def undone(p):
    return {name: q.argsort() for name, q in p.items()}


@torch.no_grad()
def same(a, b, x):
    torch.testing.assert_close(a(x), b(x), rtol=1e-10, atol=1e-12)


def state(net):
    return {k: t.clone() for k, t in net.state_dict().items()}


def unchecked(function):
    """Without the annotations' own checks, which only tests have."""
    while hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    return function


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# The function stays what it was


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_a_random_permutation_changes_the_weights_and_not_the_function(name, kind):
    net, x = make(name, kind), images()
    spec = symmetry(net, x)
    other = permuted(net, drawn(spec), spec)
    same(other, net, x)
    assert equal(state(other), state(net)) == (name == "softmax")
    assert equal(state(permuted(other, undone(drawn(spec)), spec)), state(net))


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_the_permutation_found_for_two_nets_does_not_change_the_function(name, kind):
    net, other, x = make(name, kind), make(name, kind, seed=1), images()
    spec = symmetry(net, x)
    for method in METHODS if name in ("mlp", "dae", "cnn", "resnet9") else ("weights", "activations"):
        found = matched(net, other, x, spec, method=method, generator=stream(0))
        assert found.keys() == spec.sizes.keys()
        for key, p in found.items():
            assert p.dtype == torch.int64
            assert p.sort().values.tolist() == list(range(spec.sizes[key]))
        same(permuted(net, found, spec), net, x)


def test_how_many_permutations_the_nets_have():
    count = {name: len(symmetry(make(name), images()).sizes) for name in NETS}
    # a stream for each run of sums, one for what lies within each block; resnet18: 4 stages of 2 blocks
    assert count == {
        "softmax": 0, "mlp": 2, "dae": 2, "cnn": 4, "lenet": 3, "alexnet": 5, "resnet9": 6,
        "resnet18": 12, "wrn28-2": 16, "wrn16-4": 10,
    }  # fmt: skip


def test_a_flattened_image_maps_channels_to_blocks():
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 16, 2))
    net, x = lively(net, 0), torch.randn(4, 1, 6, 6, generator=stream(0)).double()
    spec = symmetry(net, x)
    owners = {(p.name, p.axis, p.block) for p in spec.places}
    own = {(f"1.{k}", 0, 1) for k in ("weight", "bias", "running_mean", "running_var")}
    assert owners == own | {("0.weight", 0, 1), ("0.bias", 0, 1), ("4.weight", 1, 16)}
    same(permuted(net, {"0": torch.tensor([2, 0, 1])}, spec), net, x)


@pytest.mark.parametrize("lost", ["running_mean", "1.bias", "body.0.weight", "3.weight"])
def test_a_spec_with_a_place_missing_is_told_apart(lost):
    """Specs written by hand have such errors: the statistics forgotten, a residual stream cut in two."""
    body = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
    net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), Residual(body), nn.Linear(6, 3))
    net, x = lively(net, 0), torch.randn(5, 4, generator=stream(0)).double()
    spec = symmetry(net, x)
    assert spec.sizes == {"0": 6, "2.body.0": 6}
    same(permuted(net, drawn(spec), spec), net, x)
    kept = tuple(p for p in spec.places if not p.name.endswith(lost))
    assert len(kept) < len(spec.places)
    wrong = permuted(net, drawn(spec), Symmetry(kept, spec.sizes, spec.groups, spec.scalable))
    assert (wrong(x) - net(x)).abs().max() > 1e-3


class Odd(nn.Module):
    """A module used twice, tied weights, a bare scale, channel windows, a view, a mean."""

    def __init__(self):
        super().__init__()
        self.stem, self.deep = nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.twice = nn.Conv2d(6, 6, 1)
        self.gain = nn.Parameter(torch.rand(6, 1, 1))
        self.norm, self.last = nn.LayerNorm(6), nn.Linear(6, 3)

    def forward(self, x):
        h = self.deep(torch.tanh(self.stem(x))) * self.gain
        h = torch.relu(self.twice(h) + 0.5)
        h = torch.relu(self.twice(h)) + h
        return self.last(self.norm(h.mean((2, 3)).view(len(x), -1)))


def test_modules_of_any_wiring_are_followed():
    net, x = lively(Odd(), 0), torch.randn(4, 2, 5, 5, generator=stream(0)).double()
    spec = symmetry(net, x)
    assert spec.sizes == {"stem": 6}
    assert not spec.scalable
    same(permuted(net, drawn(spec), spec), net, x)
    again = permuted(net, drawn(spec), spec)
    assert equal(state(align(again, net, x, generator=stream(0))), state(net))


def test_grouped_convolutions_and_units_that_are_read_out_stay():
    net = nn.Sequential(nn.Conv2d(2, 4, 1), nn.ReLU(), nn.Conv2d(4, 6, 1, groups=2), GlobalMean())
    assert symmetry(net.eval(), torch.randn(2, 2, 3, 3, generator=stream(0))).sizes == {}


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.last = nn.LSTM(4, 5, batch_first=True), nn.Linear(5, 2)

    def forward(self, x):
        return self.last(self.inner(x)[0][:, -1])


def test_what_cannot_be_followed_is_named():
    with pytest.raises(ValueError, match=r"lstm in module 'inner' \(LSTM\)"):
        symmetry(Recurrent().eval(), torch.zeros(2, 3, 4))


# The textbook: every bijection tried


def best(score, size):
    """The first bijection of the highest score."""
    return max(orders(range(size)), key=lambda p: score(p))


def textbook(model, reference, x, method):
    """Of a net of two hidden layers: (p, q), one unit and one bijection at a time."""
    (a1, c1), (a2, c2), (a3, _) = (
        (m.weight.detach(), m.bias.detach()) for m in reference if isinstance(m, nn.Linear)
    )
    (b1, d1), (b2, d2), (b3, _) = (
        (m.weight.detach(), m.bias.detach()) for m in model if isinstance(m, nn.Linear)
    )
    u, v = len(a1), len(a2)

    def near(a, b):
        return lambda p: -sum(float((a[i] - b[j]).square().sum()) for i, j in enumerate(p))

    if method == "bottom_up":
        p = best(near(torch.cat([a1, c1[:, None]], 1), torch.cat([b1, d1[:, None]], 1)), u)
        q = best(near(torch.cat([a2, c2[:, None]], 1), torch.cat([b2[:, list(p)], d2[:, None]], 1)), v)
        return p, q
    if method == "top_down":
        q = best(near(a3.T, b3.T), v)
        return best(near(a2.T, b2[list(q)].T), u), q
    hidden = []
    for net in (reference, model):
        first = net[:2](x)
        hidden.append((first.detach().T, net[2:4](first).detach().T))
    found = []
    for a, b in zip(*hidden, strict=True):
        if method == "activations":
            found.append(best(near(a, b), len(a)))
        else:
            r = torch.corrcoef(torch.cat([a, b]))[: len(a), len(a) :].nan_to_num(0.0)
            found.append(best(lambda p, r=r: sum(float(r[i, j]) for i, j in enumerate(p)), len(a)))
    return tuple(found)


@pytest.mark.parametrize("method", ["bottom_up", "top_down", "activations", "correlation"])
@pytest.mark.parametrize("seed", range(3))
def test_one_pass_finds_what_trying_every_bijection_finds(method, seed):
    model, reference = (mlp(4, 5, 5, 3, seed=10 * seed + i, act=nn.Tanh) for i in (1, 2))
    x = torch.randn(70, 4, generator=stream(seed)).double()
    spec = symmetry(model, x)
    found = matched(model, reference, x, spec, method=method, generator=stream(0))
    p, q = textbook(model, reference, x, method)
    assert found["0"].tolist() == list(p)
    assert found["2"].tolist() == list(q)


@torch.no_grad()
def product(model, reference):
    pairs = zip(model.parameters(), reference.parameters(), strict=True)
    return sum(float((a * b).sum()) for a, b in pairs)


@pytest.mark.parametrize("seed", range(4))
def test_weight_matching_never_lowers_the_product_and_ends_where_no_layer_gains(seed):
    model, reference = (mlp(4, 5, 4, 3, seed=10 * seed + i, act=nn.Tanh) for i in (1, 2))
    spec = symmetry(model, torch.zeros(2, 4).double())
    found = matched(model, reference, None, spec, generator=stream(seed))
    end = product(permuted(model, found, spec), reference)
    assert end >= product(model, reference)
    for name, size in spec.sizes.items():
        for p in orders(range(size)):
            other = permuted(model, found | {name: torch.tensor(p)}, spec)
            assert product(other, reference) <= end + 1e-9


def test_weight_matching_goes_by_the_true_product_where_a_weight_carries_a_permutation_twice():
    """What is added to the stream that it reads: linear assignment alone may lower the product there."""
    worse = 0
    for seed in range(20):
        nets = []
        for i in (0, 1):
            body = mlp(4, 4, seed=2 * seed + i)
            net = nn.Sequential(mlp(1, 4), Residual(body), nn.Tanh(), mlp(4, 2)).double().eval()
            with torch.no_grad():
                for p in (*net[0].parameters(), body[0].bias, *net[3].parameters()):
                    p *= 1e-6
            nets.append(net)
        model, reference = nets
        spec = symmetry(model, torch.zeros(2, 1).double())
        assert spec.sizes == {"0.0": 4}
        found = matched(model, reference, None, spec, generator=stream(seed))
        before = product(model, reference)
        assert product(permuted(model, found, spec), reference) >= before
        a, b = (net[1].body[0].weight.detach() for net in (reference, model))
        naive = {"0.0": assigned(a @ b.T + a.T @ b)}
        worse += product(permuted(model, naive, spec), reference) < before
    assert worse  # the naive step would have been taken


@methods
def test_a_planted_permutation_is_recovered_exactly(method):
    acts = method in ("activations", "correlation")  # two dead units of ReLU are the same to them
    for net in (make("dae"), make("dae", seed=1) if acts else make("resnet9", "group", width=8)):
        x = torch.randn(60, *SHAPE, generator=stream(1)).double()
        spec = symmetry(net, x)
        moved = permuted(net, drawn(spec), spec)
        found = matched(moved, net, x, spec, method=method, generator=stream(0))
        for name, p in drawn(spec).items():
            assert p[found[name]].tolist() == list(range(len(p)))
        assert equal(state(align(moved, net, x, method=method, generator=stream(0))), state(net))


@methods
def test_a_noisy_copy_is_put_back(method):
    """Found from the weights or from what units do, but not by sorting sums: the control."""
    net = mlp(6, 30, 30, 3)
    spec = symmetry(net, torch.zeros(2, 6).double())
    noisy = copy.deepcopy(net)
    with torch.no_grad():
        for p in noisy.parameters():
            p += 0.1 * p.std() * torch.randn(p.shape, generator=stream(3)).double()
    moved = permuted(noisy, drawn(spec), spec)
    x = torch.randn(200, 6, generator=stream(1)).double()
    found = matched(moved, net, x, spec, method=method, generator=stream(0))
    right = sum(int((p[found[name]] == torch.arange(30)).sum()) for name, p in drawn(spec).items())
    assert (right < 45) if method == "sort" else (right >= 54)


def test_units_are_compared_without_their_scale_behind_relu_only():
    """A factor pushed from a unit into the next layer is the same function, and the same weights to us."""
    net = mlp(4, 6, 5, 3)
    spec = symmetry(net, torch.zeros(2, 4).double())
    assert spec.scalable == {"0", "2"}
    scaled = copy.deepcopy(net)
    factor = torch.logspace(-2, 2, 6).double()
    scaled[0].weight.data *= factor[:, None]
    scaled[0].bias.data *= factor
    scaled[2].weight.data /= factor
    a, b = (_levelled(dict(m.named_parameters()), spec) for m in (net, scaled))
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=1e-10, atol=1e-12)
    level = copy.deepcopy(net)
    level.load_state_dict(a)
    same(level, net, torch.randn(5, 4, generator=stream(0)).double())
    moved = permuted(scaled, drawn(spec), spec)
    for method in ("weights", "bottom_up", "top_down"):
        found = matched(moved, net, None, spec, method=method, generator=stream(0))
        assert all(p[found[k]].equal(torch.arange(len(p))) for k, p in drawn(spec).items())


@pytest.mark.parametrize(
    ("net", "scalable"),
    [
        (mlp(4, 6, 3, act=nn.Tanh), set()),
        (make("cnn", "batch"), set()),
        (make("resnet9", "none"), None),
    ],
)
def test_which_nets_have_a_scale(net, scalable):
    x = images() if scalable != set() or isinstance(net[1], nn.Sequential) else torch.zeros(2, 4).double()
    spec = symmetry(net, x)
    assert spec.scalable == (set(spec.sizes) if scalable is None else scalable)
    if scalable is None:
        level = copy.deepcopy(net)
        level.load_state_dict(net.state_dict() | _levelled(dict(net.named_parameters()), spec))
        same(level, net, x)


def test_assignment_keeps_groups_together_and_is_the_best_that_does():
    gain = torch.rand(6, 6, generator=stream(0)).double()
    got = assigned(gain, 3)
    kept = [p for p in orders(range(6)) if all(p[i] // 2 == p[i + 1] // 2 for i in (0, 2, 4))]
    want = max(kept, key=lambda p: sum(float(gain[i, j]) for i, j in enumerate(p)))
    assert got.tolist() == list(want)
    assert assigned(gain).tolist() != list(want)


# Extremes and errors


@methods
def test_dead_units_and_ties_are_settled_the_same_way_each_time(method):
    net, other = mlp(3, 6, 2), mlp(3, 6, 2, seed=1)
    for m in (net, other):
        m[0].weight.data[2:] = 0.0
        m[0].bias.data[2:] = -1.0 if method != "weights" else 0.0
        m[2].weight.data[:, 2:] = 0.0
    x = torch.randn(30, 3, generator=stream(0)).double()
    spec = symmetry(net, x)
    found = [matched(net, other, x, spec, method=method, generator=stream(0))["0"] for _ in range(2)]
    assert found[0].equal(found[1])
    same(permuted(net, {"0": found[0]}, spec), net, x)


def test_dead_units_count_nothing_in_the_correlation():
    """They go where they cost least; a nan would stop the assignment."""
    net = mlp(3, 5, 2)
    net[0].weight.data[3] = 0.0
    net[0].bias.data[3] = -1.0
    x = torch.randn(30, 3, generator=stream(0)).double()
    spec = symmetry(net, x)
    moved = permuted(net, {"0": torch.tensor([3, 1, 0, 4, 2])}, spec)
    found = matched(moved, net, x, spec, method="correlation", generator=stream(0))["0"]
    assert torch.tensor([3, 1, 0, 4, 2])[found].tolist() == [0, 1, 2, 3, 4]


def test_only_the_first_500_records_are_compared():
    net, other = mlp(3, 6, 2), mlp(3, 6, 2, seed=1)
    x = torch.randn(700, 3, generator=stream(0)).double()
    y = torch.cat([x[:500], 100 * x[500:]])
    spec = symmetry(net, x)
    a, b = (matched(net, other, z, spec, method="activations", generator=stream(0)) for z in (x, y))
    assert a["0"].equal(b["0"])


def test_a_net_without_hidden_units_is_copied():
    net, other = make("softmax"), make("softmax", seed=1)
    assert equal(state(align(net, other, images(), method="activations", generator=stream(0))), state(net))


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_without_records_the_shape_is_guessed(name):
    net = mlp(4, 6, 5, 3) if name == "mlp" else make(name)
    spec = symmetry(net, torch.zeros(2, 4).double() if name == "mlp" else images())
    moved = permuted(net, drawn(spec), spec)
    assert equal(state(align(moved, net, generator=stream(0))), state(net))
    with pytest.raises(ValueError, match="x must hold records for method 'correlation', got none"):
        align(moved, net, method="correlation", generator=stream(0))
    with pytest.raises(ValueError, match="x must be given, got None: no record could be made up"):
        align(make("mlp"), make("mlp"), generator=stream(0))


def test_arguments_are_left_alone():
    net, other, x = make("cnn"), make("cnn", seed=1), images()
    before, again, rows = state(net), state(other), x.clone()
    seen = torch.random.get_rng_state()
    net.get_parameter("1.0.weight").requires_grad_(False)
    for method in METHODS:
        out = align(net, other, x, method=method, generator=stream(0))
    assert equal(state(net), before)
    assert equal(state(other), again)
    assert x.equal(rows)
    assert torch.random.get_rng_state().equal(seen)
    assert not any(m._forward_hooks or m._forward_pre_hooks or m.training for m in net.modules())
    assert not out.get_parameter("1.0.weight").requires_grad
    assert all(p.grad is None for p in net.parameters())


def test_errors():
    net, x, g = mlp(4, 6, 3), torch.zeros(2, 4).double(), stream(0)
    with pytest.raises(ValueError, match=r"model needs the reference's shapes, got \[6, 4\] for \[7, 4\]"):
        align(net, mlp(4, 7, 3), x, generator=g)
    with pytest.raises(ValueError, match="training"):
        align(net.train(), mlp(4, 6, 3), x, generator=g)
    net.eval()
    with pytest.raises(ValueError, match="method must be one of weights, .*, got 'magic'"):
        unchecked(matched)(net, net, x, symmetry(net, x), method="magic", generator=g)
    spec = symmetry(net, x)
    with pytest.raises(ValueError, match="a bijection of 6 units in int64"):
        permuted(net, {"0": torch.tensor([0, 1, 2, 3, 4, 4])}, spec)
    with pytest.raises(ValueError, match="permutations must be of 0, got '9'"):
        permuted(net, {"9": torch.arange(6)}, spec)
    assert Place("0.weight", 0, "0", 1) in spec.places


def test_wiring_must_agree():
    one, other = mlp(4, 4, 4, 3), nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)).double()
    a = nn.Sequential(one[0], Residual(nn.Sequential(one[2])), one[4]).double().eval()
    b = nn.Sequential(other[0], nn.Sequential(), other[2])
    b[1].body = nn.Sequential(other[1])
    b.eval()
    with pytest.raises(ValueError, match="wired as the reference"):
        align(a, b, torch.zeros(2, 4).double(), generator=stream(0))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_the_gpu():
    net, x = make("resnet9").cuda(), images().cuda()
    spec = symmetry(net, x)
    moved = permuted(net, drawn(spec), spec)
    same(moved, net, x)
    for method in METHODS:
        same(align(moved, net, x, method=method, generator=stream(0)), net, x)
