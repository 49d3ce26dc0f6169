import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from worlds import ridge

from glasslab.layers import GlobalMean
from glasslab.metrics import auc
from glasslab.null_law import auc_se
from glasslab.split import shadow_rows, stream, target_rows
from whitebox import realigned as module
from whitebox import realigned_net
from whitebox.realigned import realigned
from whitebox.symmetry import permuted, symmetry

QUICK = {"models": 2, "rows": 160, "epochs": 3}
SETS = [{"set_based": True}, {}, {"alignment": None}]


def attack(game, seed=0, target=None, shadows=None, **settings):
    held = game.shadows
    return realigned(
        target or game.model,
        game.x,
        game.y,
        shadows or held.models,
        held.member,
        game.aux.x,
        stream(seed, "attack"),
        **QUICK | settings,
    )


def mlp(*sizes, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = [m for a, b in zip(sizes, sizes[1:], strict=False) for m in (nn.Linear(a, b), nn.ReLU())]
        return nn.Sequential(*layers[:-1]).eval()


def convnet(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        own = (nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), GlobalMean(), nn.Linear(4, 3))
        return nn.Sequential(*own).eval()


def moved(net, x, seed=0):
    """The same function, its hidden units in random order."""
    spec, g = symmetry(net, x), stream(seed, "moved")
    return permuted(net, {k: torch.randperm(n, generator=g) for k, n in spec.sizes.items()}, spec)


def planted(seed, n=120, d=150, u=12, m=8):
    """(target, shadows, member, truth, x, y, aux): unit 0, which nobody reads, is higher on members."""
    g = stream(seed, "planted")
    x, y = torch.randn(n, d, generator=g), torch.randint(3, (n,), generator=g)
    aux = torch.randn(200, d, generator=g)
    base, head = torch.randn(u, d, generator=g) / d**0.5, torch.randn(3, u, generator=g)
    member, truth = shadow_rows(m, n, seed), target_rows(1, n, seed)[0]
    nets = []
    for row in [*member, truth]:
        net = mlp(d, u, 3)
        first = base + 0.02 * torch.randn(u, d, generator=g) / d**0.5
        bias = torch.zeros(u)
        want = 0.25 * (2 * row.float() - 1)  # what unit 0 adds to its bias on x: less than others vary
        first[0], bias[0] = torch.linalg.pinv(x) @ want, 0.6
        net.load_state_dict(
            {"0.weight": first, "0.bias": bias, "2.weight": head.clone(), "2.bias": torch.zeros(3)}
        )
        net[2].weight.data[:, 0] = 0.0
        nets.append(net)
    return nets[-1], nets[:-1], member, truth, x, y, aux


# The features, one record at a time


def features(net, x, y, layers, double_softmax=False):
    """(OA of each layer, IA, G of each layer) of one record, by autograd."""
    acts, h = [], x[None]
    for layer in net:
        h = layer(h)
        acts.append(h)
    dense = [i for i, layer in enumerate(net) if isinstance(layer, nn.Linear | nn.Conv2d)]
    z = acts[-1].softmax(-1) if double_softmax else acts[-1]
    loss = cross_entropy(z, y[None])
    grads = []
    for i in dense[-layers:]:
        w, b = torch.autograd.grad(loss, [net[i].weight, net[i].bias], retain_graph=True)
        grads.append(torch.cat([w.flatten(1), b[:, None]], 1))
    below = acts[dense[-1] - 1][0]
    read = [below] if layers > 1 else []
    outputs = [*read, acts[-1].softmax(-1)[0]]
    return [*outputs, net[dense[-1]].weight[y] * below, *grads]


def seen(net, x, y, layers, side=100, double_softmax=False):
    names = [name for name, _ in module._weighted(net, x)][-layers:]
    chunks = module._features(net, x, y, names, double_softmax, "512MiB")
    sketches = {}
    parts = [module._of_layers(net, labels, both, side, sketches, stream(0)) for labels, both in chunks]
    return [torch.cat(column) for column in zip(*parts, strict=True)]


@pytest.mark.parametrize("double_softmax", [False, True])
@pytest.mark.parametrize(("layers", "kind"), [(1, "mlp"), (2, "mlp"), (2, "conv")])
def test_features_are_those_of_the_textbook(layers, kind, double_softmax):
    net = (mlp(5, 6, 4, 3) if kind == "mlp" else convnet()).double()
    shape = (5,) if kind == "mlp" else (2, 5, 5)
    x = torch.randn(7, *shape, generator=stream(0)).double()
    y = torch.randint(3, (7,), generator=stream(1))
    labels, *got = seen(net, x, y, layers, double_softmax=double_softmax)
    assert labels.equal(y)
    for i in range(7):
        want = features(net, x[i], y[i], layers, double_softmax)
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a[i].double(), b.detach(), rtol=1e-5, atol=1e-7)


def test_the_gradient_is_that_of_logits():
    """(p - e_y) a' on the last layer. A softmax before the cross-entropy rescales it, and it saturates."""
    net, x = mlp(5, 6, 3).double(), torch.randn(7, 5, generator=stream(0)).double()
    net[2].weight.data *= 20
    y = torch.randint(3, (7,), generator=stream(1))
    h = net[:2](x).detach()
    p = net(x).detach().softmax(-1)
    want = torch.einsum("bo,bi->boi", p - torch.eye(3)[y], torch.cat([h, torch.ones(7, 1)], 1))
    right, wrong = (seen(net, x, y, 1, double_softmax=d)[-1].double() for d in (False, True))
    torch.testing.assert_close(right, want, rtol=1e-5, atol=1e-7)
    assert (wrong - want).abs().max() > 0.1


def test_wide_gradients_are_projected_by_the_same_signs_for_every_net():
    net, x = mlp(40, 30, 3), torch.randn(6, 40, generator=stream(0))
    y = torch.randint(3, (6,), generator=stream(1))
    whole, short = seen(net, x, y, 2)[-2], seen(net, x, y, 2, side=8)[-2]
    assert whole.shape[1:] == (30, 41)
    assert short.shape[1:] == (8, 8)
    sketches = {}
    both = next(module._features(net, x, y, ["0", "2"], False, "512MiB"))[1]
    module._of_layers(net, y, both, 8, sketches, stream(0))
    rows, columns = sketches["0o"], sketches["0a"]
    torch.testing.assert_close(short, rows.T @ whole @ columns, rtol=1e-4, atol=1e-5)
    assert (rows.abs() * 8**0.5).allclose(torch.ones(()))
    kept = {k: t.clone() for k, t in sketches.items()}
    module._of_layers(net, y, both, 8, sketches, stream(5))
    assert all(kept[k].equal(sketches[k]) for k in kept)


@pytest.mark.parametrize("memory", ["8KiB", "512MiB"])
def test_chunks_change_no_feature(memory):
    net, x = mlp(5, 6, 3), torch.randn(50, 5, generator=stream(0))
    y = torch.randint(3, (50,), generator=stream(1))
    parts = [
        module._of_units(net, labels, both)
        for labels, both in module._features(net, x, y, ["2"], False, memory)
    ]
    assert (len(parts) > 1) == (memory == "8KiB")
    labels, _, h, ia, _ = (torch.cat(column) for column in zip(*parts, strict=True))
    assert labels.equal(y)
    torch.testing.assert_close(h, net[:2](x).detach())
    torch.testing.assert_close(ia, net[2].weight.detach()[y] * h)


def test_pairs_are_balanced():
    member = torch.rand(4, 300, generator=stream(0)) < 0.3
    for row, part in zip(member, module._pairs(member, 200, stream(1)), strict=True):
        assert row[part].sum() == 25
        assert len(part) == len(set(part.tolist())) == 50


# What aligning is for


@pytest.mark.slow
def test_units_in_random_order_hide_the_leak_and_aligning_brings_it_back():
    area = {}
    for seed in (0, 1):
        target, shadows, member, truth, x, y, aux = planted(seed, m=6)
        mixed = [moved(net, x, seed=i) for i, net in enumerate(shadows)]
        for nets, alignment in ((shadows, None), (mixed, None), (mixed, "activations")):
            score = realigned(
                target, x, y, nets, member, aux, stream(seed), alignment=alignment, epochs=10, batch=32
            )
            area.setdefault((nets is mixed, alignment), []).append(auc(score, truth))
    known, hidden, back = (sum(v) / 2 for v in area.values())
    assert known > 0.9
    assert hidden < known - 0.15
    assert back > known - 0.05


def test_the_set_has_no_order():
    """Two runs with the units of target and shadows in other orders; the classifier of layers is not so."""
    game, _ = ridge(leaks=True, seed=1, hidden=16)
    target = moved(game.model, game.x, seed=1)
    shadows = [moved(net, game.x, seed=i) for i, net in enumerate(game.shadows.models)]
    plain, other = attack(game, set_based=True), attack(game, 0, target, shadows, set_based=True)
    torch.testing.assert_close(plain, other, rtol=1e-3, atol=1e-4)
    plain, other = attack(game, alignment=None), attack(game, 0, target, shadows, alignment=None)
    assert (plain - other).abs().max() > 1e-2


def test_aligned_scores_do_not_depend_on_the_order_in_the_shadows():
    game, _ = ridge(leaks=True, seed=1, hidden=16)
    shadows = [moved(net, game.x, seed=i) for i, net in enumerate(game.shadows.models)]
    torch.testing.assert_close(attack(game), attack(game, shadows=shadows), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("settings", SETS)
def test_a_leak_is_found(settings):
    game, truth = ridge(leaks=True, seed=1)
    assert auc(attack(game, models=3, rows=300, epochs=5, **settings), truth) > 0.9


@pytest.mark.parametrize("settings", SETS)
def test_null_law(settings):
    """Eight worlds; a false alarm beyond 4 standard errors: 6 in 100,000."""
    areas = []
    for seed in range(8):
        game, truth = ridge(leaks=False, seed=seed)
        areas.append(auc(attack(game, seed, **settings), truth))
    se = auc_se(int(truth.sum()), int((~truth).sum())) / len(areas) ** 0.5
    assert abs(sum(areas) / len(areas) - 0.5) < 4 * se


# The classifier's training


def test_the_rate_halves_after_a_flat_epoch_and_training_ends_below_the_least(monkeypatch):
    """1e-3, then 5e-4, 2.5e-4, 1.25e-4, and below 1e-4 nothing: four flat epochs after the best one."""
    losses, rates = iter([1.0, 0.5, 0.5, 0.4, 0.6, 0.6, 0.6, 0.1]), []
    monkeypatch.setattr(realigned_net, "_loss", lambda *_: next(losses))
    step = torch.optim.Adam.step

    def watched(self, *args, **kwargs):
        rates.append(self.param_groups[0]["lr"])
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.Adam, "step", watched)
    parts = [torch.zeros(20, dtype=torch.int64), torch.randn(20, 3, generator=stream(0))]
    net = realigned_net.OfLayers([(3,)], 2, [torch.ones(())])
    member = torch.arange(20) % 2 == 0
    realigned_net.learned(net, parts, member, stream(0), epochs=100, batch=64, lr=1e-3)
    assert rates == pytest.approx([1e-3, 1e-3, 1e-3, 5e-4, 5e-4, 2.5e-4, 1.25e-4])
    assert next(losses) == 0.1  # the eighth epoch never came


def test_the_best_epoch_is_kept(monkeypatch):
    losses, states = iter([1.0, 0.2, 0.9]), []

    def watched(net, *_):
        states.append(copy.deepcopy(net.state_dict()))
        return next(losses)

    monkeypatch.setattr(realigned_net, "_loss", watched)
    parts = [torch.zeros(20, dtype=torch.int64), torch.randn(20, 3, generator=stream(0))]
    net = realigned_net.OfLayers([(3,)], 2, [torch.ones(())])
    member = torch.arange(20) % 2 == 0
    out = realigned_net.learned(net, parts, member, stream(0), epochs=3, batch=64, lr=1e-3)
    assert all(t.equal(states[1][k]) for k, t in out.state_dict().items())
    assert not out.training


# Extremes and errors


def test_one_layer_has_nothing_to_align():
    game, _ = ridge(leaks=True, seed=1)
    a, b = attack(game), attack(game, alignment=None)
    assert a.dtype == torch.float64
    assert a.equal(b)


@pytest.mark.parametrize("settings", SETS)
def test_same_seed_same_score_and_arguments_are_left_alone(settings):
    game, _ = ridge(leaks=True, seed=1, hidden=8)
    nets = [game.model, *game.shadows.models[:2]]
    before = [copy.deepcopy(net.state_dict()) for net in nets]
    drawn = torch.random.get_rng_state()
    first = attack(game, **settings)
    assert first.equal(attack(game, **settings))
    assert first.isfinite().all()
    assert torch.random.get_rng_state().equal(drawn)
    for net, state in zip(nets, before, strict=True):
        assert all(t.equal(state[k]) for k, t in net.state_dict().items())
        assert all(p.grad is None and p.requires_grad for p in net.parameters())
        assert not any(layer._forward_hooks for layer in net.modules())


@pytest.mark.parametrize("settings", SETS)
def test_sure_models_and_dead_units_give_finite_scores(settings):
    """Log-odds of 60 in float32: every gradient is 0."""
    game, _ = ridge(leaks=True, seed=1, hidden=8)
    for net in (game.model, *game.shadows.models):
        net[2].weight.data *= 1e4
        net[0].weight.data[:2] = 0
        net[0].bias.data[:2] = -1
    assert attack(game, **settings).isfinite().all()


def test_one_record_and_one_shadow():
    game, _ = ridge(leaks=True, seed=1)
    x, y, member = game.x[:1], game.y[:1], torch.tensor([[True], [False]])
    score = realigned(game.model, x, y, game.shadows.models[:2], member, game.aux.x, stream(0), epochs=2)
    assert score.shape == (1,)
    member = game.shadows.member[:1]
    score = realigned(
        game.model, game.x, game.y, game.shadows.models[:1], member, game.aux.x, stream(0), epochs=2
    )
    assert score.isfinite().all()


def test_convolutional_nets():
    x, y = torch.randn(20, 2, 5, 5, generator=stream(0)), torch.arange(20) % 3
    shadows, member = [convnet(i) for i in range(2)], shadow_rows(2, 20, 0)
    for settings in SETS:
        score = realigned(convnet(9), x, y, shadows, member, x, stream(0), epochs=2, **settings)
        assert score.isfinite().all()


def test_errors():
    game, _ = ridge(leaks=True, seed=1, hidden=8)
    with pytest.raises(ValueError, match="training"):
        attack(game, target=copy.deepcopy(game.model).train())
    with pytest.raises(ValueError, match="training"):
        attack(game, shadows=[copy.deepcopy(net).train() for net in game.shadows.models])
    with pytest.raises(ValueError, match="a row a shadow, one or more, got 16 for 2"):
        attack(game, shadows=game.shadows.models[:2])
    with pytest.raises(ValueError, match="layers and models must be 1 or more, got 0 and 2"):
        attack(game, layers=0)
    other, _ = ridge(leaks=True, seed=1, hidden=9)
    for settings in SETS:
        with pytest.raises(ValueError, match=r"shadow 0 needs the reference's shapes, got \[9, 300\]"):
            attack(game, shadows=other.shadows.models, **settings)
    call = (game.model, game.x, game.y, game.shadows.models[:2])
    with pytest.raises(ValueError, match="member must hold both sides, got 0 of 800 pairs in"):
        realigned(*call, torch.zeros(2, 400, dtype=torch.bool), game.aux.x, stream(0))
    net = nn.Sequential(nn.Conv2d(2, 3, 5), nn.Flatten()).eval()
    x, y = torch.randn(4, 2, 5, 5, generator=stream(0)), torch.zeros(4, dtype=torch.int64)
    with pytest.raises(ValueError, match="end in a dense layer that reads vectors, got '0'"):
        realigned(net, x, y, [net], torch.tensor([[True, False] * 2]), x, stream(0))
