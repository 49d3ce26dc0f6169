import copy
import math

import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d, cross_entropy
from worlds import ridge

from glasslab import signals
from glasslab.metrics import auc
from glasslab.null_law import null_breaches
from glasslab.oracle import forward
from glasslab.split import shadow_rows, stream
from whitebox import nasr as module
from whitebox.fitting import fit
from whitebox.nasr import nasr, nasr_known
from whitebox.nasr_net import AttackNet, Kernels

SMALL = {"kernels": 4, "head": (16,), "lr": 0.01}
QUICK = {"rows": 200, "models": 2, "epochs": 4} | SMALL
KNOWN = {"rows": 200, "epochs": 4} | SMALL


class Told(nn.Module):
    """Convolutions with and without a bias, norms, a dense layer, a bare parameter."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.grouped = nn.Conv2d(4, 6, (2, 3), groups=2, bias=False)
        self.act = nn.ReLU(inplace=True)
        self.squeeze = nn.Conv1d(6, 3, 1)
        self.layer = nn.LayerNorm(16)
        self.factor = nn.Parameter(torch.tensor(1.3))
        self.head = nn.Linear(48, 3)

    def forward(self, x):
        h = self.act(self.norm(self.conv(x)))
        h = self.squeeze(self.act(self.grouped(h)).flatten(2))
        return self.head(self.layer(h).flatten(1) * self.factor)


def images(n=7, seed=0):
    """(model, x, y): records [2, 5, 6]; the norm has seen some batches."""
    g = stream(seed, "images")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Told()
    x, y = torch.randn(n, 2, 5, 6, generator=g), torch.randint(3, (n,), generator=g)
    model(torch.randn(50, 2, 5, 6, generator=g))
    return model.eval(), x, y


def linear(w, bias=None):
    m = nn.Linear(w.shape[1], len(w), bias=bias is not None)
    m.weight.data = w.clone()
    if bias is not None:
        m.bias.data = bias.clone()
    return m.eval()


# What the net is shown


def textbook(model, x, y, *, zero_grad=True, twice=False):
    """parameter -> gradients of the loss, a record at a time. The wrong ones: never zeroed, softmax twice."""
    model = copy.deepcopy(model).double()
    found = {name: [] for name, _ in model.named_parameters()}
    for i in range(len(x)):
        if zero_grad:
            model.zero_grad()
        z = model(x[i : i + 1].double())
        cross_entropy(z.softmax(1) if twice else z, y[i : i + 1]).backward()
        for name, p in model.named_parameters():
            found[name].append(p.grad.clone())
    return {name: torch.stack(grads).float() for name, grads in found.items()}


def view(model, x, y, layers="last", outputs=()):
    return module._view(model, x, y, layers=layers, outputs=outputs)


def close(a, b):
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-6)


def test_it_is_shown_logits_label_loss_and_each_record_s_own_gradient():
    model, x, y = images()
    z, label, loss, G = view(model, x, y)
    assert close(z, model(x).detach())
    assert close(loss, cross_entropy(model(x), y, reduction="none").detach()[:, None])
    assert label.tolist() == [[float(k == c) for c in range(3)] for k in y.tolist()]
    for settings, right in (({}, True), ({"zero_grad": False}, False), ({"twice": True}, False)):
        g = textbook(model, x, y, **settings)
        want = torch.cat([g["head.weight"], g["head.bias"][:, :, None]], 2)[..., None]
        assert close(G, want) == right


def test_the_last_layer_s_gradient_is_the_error_times_the_features():
    g = stream(0)
    model = linear(torch.randn(3, 4, generator=g), torch.randn(3, generator=g))
    x, y = torch.randn(9, 4, generator=g), torch.randint(3, (9,), generator=g)
    z, label, _, G = view(model, x, y)
    error, a = z.softmax(1) - label, torch.cat([x, torch.ones(9, 1)], 1)
    assert close(G[..., 0], error[:, :, None] * a[:, None])
    assert not close(G[..., 0], (z.softmax(1).softmax(1) - label)[:, :, None] * a[:, None])


def test_gradients_of_any_shape_stand_by_output_unit():
    model, x, y = images()
    seen = view(model, x, y, ["*"])[3:]
    g = textbook(model, x, y)
    shapes = {tuple(v.shape[1:]) for v in seen}
    assert shapes == {(4, 3, 9), (4, 2, 1), (6, 2, 6), (3, 7, 1), (16, 2, 1), (1, 1, 1), (3, 49, 1)}
    conv = next(v for v in seen if v.shape[1:] == (4, 3, 9))
    for i in range(len(x)):
        for o in range(4):
            for channel in range(2):
                assert close(conv[i, o, channel], g["conv.weight"][i, o, channel].flatten())
            assert close(conv[i, o, 2, :1], g["conv.bias"][i, o : o + 1])
            assert (conv[i, o, 2, 1:] == 0).all()
    norm = next(v for v in seen if v.shape[1:] == (4, 2, 1))
    assert close(norm[..., 0], torch.stack([g["norm.weight"], g["norm.bias"]], 2))
    grouped = next(v for v in seen if v.shape[1:] == (6, 2, 6))
    assert close(grouped, g["grouped.weight"].flatten(3))
    assert close(next(v for v in seen if v.shape[1:] == (1, 1, 1)).flatten(), g["factor"])
    assert sum(v[0].numel() for v in seen) == sum(p.numel() for p in model.parameters()) + 4 * 8


def test_outputs_are_those_of_the_layers_also_where_the_next_works_in_place():
    model, x, y = images(200)
    _, _, _, norm, squeezed, _ = view(model, x, y, outputs=["norm", "sq*"])
    with torch.no_grad():
        want = model.norm(model.conv(x))
        assert close(norm, want.flatten(2))
        assert (norm < 0).any()
        h = model.squeeze(model.grouped(want.relu()).relu().flatten(2))
    assert close(squeezed, h)
    assert not model.norm._forward_hooks


def test_records_are_seen_each_alone_and_in_their_order(monkeypatch):
    model, x, y = images(50)
    whole = view(model, x, y, ["conv", "head"], ["norm"])
    p = torch.randperm(50, generator=stream(0))
    moved = view(model, x[p], y[p], ["conv", "head"], ["norm"])
    monkeypatch.setattr(module, "CHUNK", 7)
    for other in (moved, [v[p] for v in view(model, x, y, ["conv", "head"], ["norm"])]):
        assert all(close(v[p], w) for v, w in zip(whole, other, strict=True))


def test_far_out_records_keep_their_gradients():
    """At log-odds of 50 and 60 in float32, where 1 - p is 0."""
    model = linear(torch.eye(2))
    x, y = torch.tensor([[50.0, 0.0], [60.0, 0.0]]), torch.tensor([0, 0])
    _, _, loss, G = view(model, x, y)
    want = torch.tensor([math.exp(-50) * 50, math.exp(-60) * 60])
    torch.testing.assert_close(G[:, 1, 0, 0] / want, torch.ones(2), rtol=1e-4, atol=0)
    torch.testing.assert_close(loss[:, 0] / want * x[:, 0], torch.ones(2), rtol=1e-4, atol=0)
    model.zero_grad()
    cross_entropy(model(x), y).backward()
    assert (model.weight.grad[0] == 0).all()  # what autograd makes of it


# The net


def test_the_net_is_that_of_the_paper():
    """Sizes of the published parts, for a last layer of 64 x 10; 14.3 million weights."""
    z, label, loss = torch.ones(1, 10), torch.ones(1, 10), torch.ones(1, 1)
    inputs = [z, label, loss, torch.ones(1, 10, 65, 1), torch.ones(1, 6, 5, 9), torch.ones(1, 8, 25)]
    net = AttackNet(inputs, 100, module.FULL)
    sizes = [[tuple(w.shape) for w in part.parameters() if w.ndim > 1] for part in net.parts]
    assert sizes[:3] == [[(100, 10), (64, 100)], [(128, 10), (64, 128)], [(100, 1), (64, 100)]]
    assert sizes[3] == [(100, 10), (2024, 6500), (512, 2024), (256, 512)]
    assert sizes[4] == [(6, 54), (64, 30)]
    assert sizes[5] == [(8, 200), (1024, 8), (512, 1024), (128, 512), (64, 128)]
    assert 14.2e6 < sum(w.numel() for w in net.parts[3].parameters()) < 14.5e6
    encoder = [tuple(w.shape) for w in net.encoder.parameters() if w.ndim > 1]
    assert encoder == [(256, 64 * 5 + 256), (128, 256), (64, 128), (1, 64)]
    drops = [sum(isinstance(m, nn.Dropout) and m.p == 0.2 for m in part.modules()) for part in net.parts]
    assert drops == [0, 0, 0, 2, 1, 2]
    for w in net.parameters():
        assert w.ndim == 1 or w.numel() < 100 or float(w.detach().std()) == pytest.approx(0.01, rel=0.3)
        assert w.ndim > 1 or (w == 0).all()


def test_the_kernels_span_all_output_units_of_one_input():
    g = stream(0)
    v = torch.randn(3, 5, 4, 6, generator=g)
    layer = Kernels(30, 7)
    want = conv2d(v, layer.weight.view(7, 5, 1, 6), layer.bias)[..., 0]
    torch.testing.assert_close(layer(v), want.transpose(1, 2))


def test_the_net_equals_the_textbook():
    """One record and one unit at a time, with larger weights."""
    g = stream(0)
    inputs = [
        torch.randn(4, *shape, generator=g) * scale
        for shape, scale in (((3,), 1), ((3,), 1), ((1,), 9), ((2, 3, 1), 1e-9))
    ]
    net = AttackNet(inputs, 5, (6, 4)).eval()
    for w in net.parameters():
        w.data = torch.randn(w.shape, generator=g) / 3
    got = net(*net.scaled(inputs)).tolist()

    def dense(a, layer, relu=True):
        b = [
            sum(w * v for w, v in zip(row, a, strict=True)) + c
            for row, c in zip(layer.weight.tolist(), layer.bias.tolist(), strict=True)
        ]
        return [max(v, 0.0) for v in b] if relu else b

    for i in range(4):
        shown = []
        for v in inputs:
            size = math.sqrt(sum(e * e for e in v.flatten().tolist()) / v.numel())
            shown.append((v[i].double() / size).asinh())
        code = []
        for part, v in zip(net.parts, shown[:3], strict=False):
            layers = [m for m in part if isinstance(m, nn.Linear)]
            code += dense(dense(v.tolist(), layers[0]), layers[1])
        first, *rest = [m for m in net.parts[3] if isinstance(m, nn.Linear)]
        a = [k for p in range(3) for k in dense([float(shown[3][o, p, 0]) for o in range(2)], first)]
        for layer in rest:
            a = dense(a, layer)
        a = code + a
        layers = [m for m in net.encoder if isinstance(m, nn.Linear)]
        for layer in layers:
            a = dense(a, layer, relu=layer is not layers[-1])
        assert got[i] == pytest.approx(a[0], rel=1e-4)


def test_the_loss_is_the_squared_error_of_the_probability():
    logits, t = torch.tensor([0.0, 2.0, -1.0]), torch.tensor([1.0, 0.0, 0.0])
    p = [1 / (1 + math.exp(-s)) for s in logits.tolist()]
    want = ((p[0] - 1) ** 2 + p[1] ** 2 + p[2] ** 2) / 3
    assert module._squared(logits, t).item() == pytest.approx(want)


# What it finds


def flagged(seed=0, n=200, m=4):
    """(model, x, y, shadows, member, truth): the sign of a feature that no logit uses is that of a member.

    The gradient in its column is the error times the sign; all else is the same for both.
    """
    g = stream(seed, "flagged")
    truth = torch.rand(n, generator=g) < 0.5
    x = torch.randn(n, 6, generator=g)
    x[:, 0] = torch.where(truth, 2.0, -2.0)
    models = [
        linear(torch.randn(3, 6, generator=g).index_fill(1, torch.tensor([0]), 0.0)) for _ in range(m + 1)
    ]
    y = torch.randint(3, (n,), generator=g)
    return models[0], x, y, models[1:], truth.expand(m, n).clone(), truth


def summed(model, x, y, **settings):
    """The wrong version: every record gets the gradient of its batch."""
    for grads in real(model, x, y, **settings):
        yield {name: g.sum(0, keepdim=True).expand_as(g) for name, g in grads.items()}


real = module.per_example


def test_a_leak_in_the_gradient_alone_is_found_and_not_from_sums_over_the_batch(monkeypatch):
    model, x, y, shadows, member, truth = flagged()
    settings = {"rows": 800, "models": 4, "epochs": 15} | SMALL
    z = forward(model, x)
    assert abs(auc(-signals.loss(z, y), truth) - 0.5) < 0.15
    assert auc(nasr(model, x, y, shadows, member, stream(0), **settings), truth) > 0.95
    model, x, y, _, _, truth = flagged(n=500)
    own = {"epochs": 30} | SMALL
    assert auc(nasr_known(model, x, y, truth, stream(0), **own), truth) > 0.9
    monkeypatch.setattr(module, "per_example", summed)
    model, x, y, shadows, member, truth = flagged()
    assert auc(nasr(model, x, y, shadows, member, stream(0), **settings), truth) < 0.7


@pytest.mark.slow
def test_beats_the_loss_threshold_where_the_loss_is_weak():
    """Over 3 worlds, with the default part for gradients made smaller."""
    gain = []
    for seed in range(3):
        game, truth = ridge(leaks=True, seed=seed, d=40)
        held = game.shadows
        settings = {"rows": 3000, "models": 8, "epochs": 6, "kernels": 8, "head": (32,), "lr": 3e-3}
        score = nasr(game.model, game.x, game.y, held.models, held.member, stream(0), **settings)
        gain.append(auc(score, truth) - auc(-signals.loss(forward(game.model, game.x), game.y), truth))
    assert sum(gain) / 3 > 0.03


def attacks(game, truth, seed=0):
    """Scores of both."""
    held, g = game.shadows, stream(seed)
    shadows = nasr(game.model, game.x, game.y, held.models, held.member, g, **QUICK)
    return shadows, nasr_known(game.model, game.x, game.y, truth, g, **KNOWN)


def test_finds_a_planted_leak_with_quick_settings():
    game, truth = ridge(leaks=True, seed=0, d=300)
    for score in attacks(game, truth):
        assert score.dtype == torch.float64
        assert score.shape == truth.shape
        assert auc(score, truth) > 0.9


def test_reads_what_chance_reads_where_nothing_is():
    """From shadows on the whole pipeline, and from known records; one false alarm in 1,000 runs."""
    found, truths = ([], []), []
    for seed in range(6):
        game, truth = ridge(leaks=False, seed=seed, n=200, d=40)
        for scores, score in zip(found, attacks(game, truth), strict=True):
            scores.append(score)
        truths.append(truth)
    for scores in found:
        assert null_breaches(torch.stack(scores), torch.stack(truths), checks=4) == []


@pytest.mark.slow
def test_an_epoch_chosen_on_the_records_under_test_finds_what_is_not_there(monkeypatch):
    """Over 30 worlds, 4 standard errors: the wrong version keeps the epoch that reads the truth best."""
    areas = {"ours": [], "wrong": []}
    for seed in range(30):
        game, truth = ridge(leaks=False, seed=seed, n=40, d=10, m=4)
        held = game.shadows
        settings = {"rows": 80, "models": 2, "epochs": 8, "batch": 16} | SMALL | {"lr": 0.03}

        def wrong(net, inputs, member, generator, *, epochs, game=game, truth=truth, **keywords):
            seen = net.scaled(view(game.model, game.x, game.y))
            kept, best = net, 0.0
            for _ in range(epochs):
                net = fit(net, inputs, member, generator, epochs=1, **keywords | {"val": 0.0})
                with torch.no_grad():
                    area = auc(net(*seen), truth)
                kept, best = (net, area) if area > best else (kept, best)
            return kept

        for name, trained in (("ours", fit), ("wrong", wrong)):
            monkeypatch.setattr(module, "fit", trained)
            score = nasr(game.model, game.x, game.y, held.models, held.member, stream(seed), **settings)
            areas[name].append(auc(score, truth) - 0.5)
    mean, error = ({k: float(f(torch.tensor(v))) for k, v in areas.items()} for f in (torch.mean, torch.std))
    assert abs(mean["ours"]) < 4 * error["ours"] / 30**0.5
    assert mean["wrong"] > 4 * error["wrong"] / 30**0.5


# Who knows what


def world(n=14, seed=0):
    """(model, x, y, known) for the law of the known."""
    g = stream(seed, "known")
    model = linear(torch.randn(3, 4, generator=g), torch.randn(3, generator=g))
    known = torch.arange(n) % 3 == 0
    return model, torch.randn(n, 4, generator=g), torch.randint(3, (n,), generator=g), known


def learned(model, x, y, rows, known, generator, scored):
    """What one half teaches about the other, by the parts of the attack."""
    seen = view(model, x[rows], y[rows])
    net = module._learned(seen, known[rows], "known", generator, (4, (16,)), epochs=1, batch=4, lr=0.01)
    with torch.no_grad():
        return net(*net.scaled(view(model, x[scored], y[scored]))).double()


def one_stream(model, x, y, known, generator):
    """Wrong: both halves draw from one generator, and a fit draws as often as its sides are long."""
    order, score = torch.randperm(len(x), generator=generator), torch.zeros(len(x)).double()
    for half in (0, 1):
        scored, others = order[half::2], order[1 - half :: 2]
        score[scored] = learned(model, x, y, others, known, generator, scored)
    return score


def same_records(model, x, y, known, generator):
    """Wrong: it scores what it learned from."""
    rows = torch.arange(len(x))
    return learned(model, x, y, rows, known, generator, rows)


def ours(model, x, y, known, generator):
    settings = {"kernels": 4, "head": (16,), "epochs": 1, "batch": 4, "lr": 0.01}
    return nasr_known(model, x, y, known, generator, **settings)


@pytest.mark.parametrize(("attack", "right"), [(ours, True), (one_stream, False), (same_records, False)])
def test_what_is_known_of_a_record_never_touches_its_score(attack, right):
    model, x, y, known = world()
    before = attack(model, x, y, known, stream(0))
    own, others = [], []
    for i in range(len(x)):
        flipped = known.clone()
        flipped[i] = ~flipped[i]
        moved = (attack(model, x, y, flipped, stream(0)) - before).abs() > 0
        own.append(bool(moved[i]))
        others.append(bool(moved.any()))
    assert any(own) != right
    assert sum(others) > len(x) / 2


@pytest.mark.parametrize(
    ("n", "share", "rows"), [(40, 0.5, 999), (41, 0.25, 999), (41, 0.5, 14), (40, 0.1, 5)]
)
def test_known_and_scored_records_never_meet(n, share, rows, monkeypatch):
    model, x, y, _ = world(n)
    x[:, 0] = torch.arange(n).float()
    asked, real = [], module._view

    def spy(model, x, y, **settings):
        asked.append({int(v) for v in x[:, 0]})
        return real(model, x, y, **settings)

    monkeypatch.setattr(module, "_view", spy)
    settings = {"share": share, "rows": rows, "epochs": 1} | SMALL
    known = torch.rand(n, generator=stream(5)) < 0.5
    nasr_known(model, x, y, known, stream(1), **settings)
    told, scored = asked[::2], asked[1::2]
    assert scored[0] | scored[1] == set(range(n))
    assert len(scored[0]) + len(scored[1]) == n
    for known, tried in zip(told, scored, strict=True):
        assert not known & tried
        assert len(known) == min(rows, round(share * n))


def test_each_half_is_read_in_its_own_spread():
    model, x, y, known = world(40)
    score = ours(model, x, y, known, stream(0))
    order = torch.randperm(40, generator=stream(0))
    for half in (order[::2], order[1::2]):
        assert float(score[half].mean()) == pytest.approx(0, abs=1e-9)
        assert float(score[half].std(correction=0)) == pytest.approx(1)


def test_rows_are_drawn_before_gradients_are_taken(monkeypatch):
    """Half of them members; the target shows one record first, for its shapes."""
    game, _ = ridge(leaks=True, seed=0, n=100, d=30)
    asked, told, real_view, real_learned = [], [], module._view, module._learned

    def spy(model, x, y, **settings):
        asked.append(len(x))
        return real_view(model, x, y, **settings)

    def learn(inputs, member, *rest, **settings):
        told.append(member)
        return real_learned(inputs, member, *rest, **settings)

    monkeypatch.setattr(module, "_view", spy)
    monkeypatch.setattr(module, "_learned", learn)
    settings = {"rows": 60, "models": 3, "epochs": 1} | SMALL
    held = game.shadows
    nasr(game.model, game.x, game.y, held.models, held.member, stream(0), **settings)
    assert asked == [20, 20, 20, 1, 100]
    assert told[0].sum() == 30


# Laws and extremes


def test_arguments_are_left_alone_and_randomness_comes_from_the_generator():
    model, x, y = images(20)
    model.head.weight.requires_grad_(False)
    model.conv.weight.grad = torch.ones_like(model.conv.weight)
    shadows = [images(1, seed=k)[0] for k in (1, 2)]
    member = shadow_rows(2, 20, 0)
    tensors = [x, y, member, *(w for m in (model, *shadows) for w in m.state_dict().values())]
    before, state = [t.clone() for t in tensors], torch.get_rng_state()
    settings = {"layers": ["conv", "head"], "outputs": ["norm"]} | QUICK

    def both(seed):
        g = stream(seed)
        return torch.stack(
            [
                nasr(model, x, y, shadows, member, g, **settings),
                nasr_known(model, x, y, member[0], g, **{k: v for k, v in settings.items() if k != "models"}),
            ]
        )

    one, two, other = both(0), both(0), both(1)
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    with pytest.raises(ValueError, match="nope"):
        nasr(model, x, y, shadows, member, stream(0), **QUICK | {"outputs": ["norm", "nope"]})
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(before, tensors, strict=True))
    assert not model.head.weight.requires_grad
    assert model.head.bias.requires_grad
    assert (model.conv.weight.grad == 1).all()
    for m in (model, *shadows):
        assert not any(layer.training or layer._forward_hooks for layer in m.modules())


@pytest.mark.parametrize("layers", ["last", ["conv"], ["norm", "layer"], ["*"]])
def test_any_layer_can_be_looked_at(layers):
    model, x, y = images(30)
    shadows, member = [images(1, seed=k)[0] for k in (1, 2)], shadow_rows(2, 30, 0)
    settings = {"layers": layers, "outputs": ["act", "squeeze"]} if layers == ["*"] else {"layers": layers}
    if layers == ["*"]:
        with pytest.raises(ValueError, match=r"used once, got act, used 2 times"):
            nasr(model, x, y, shadows, member, stream(0), **QUICK | settings)
        settings["outputs"] = ["squeeze"]
    score = nasr(model, x, y, shadows, member, stream(0), **QUICK | settings)
    assert score.isfinite().all()
    assert len(score.unique()) > 20


def test_one_record_and_one_class_and_ties():
    game, truth = ridge(leaks=True, seed=0, n=40, d=20, m=4)
    held, x = game.shadows, game.x
    for n, y in ((1, game.y[:1]), (40, torch.zeros(40, dtype=torch.int32))):
        member = held.member[:, :n]
        if n == 1:
            member = torch.tensor([[True], [False], [True], [False]])
        score = nasr(game.model, x[:n], y, held.models, member, stream(0), **QUICK | {"models": 4})
        assert score.shape == (n,)
        assert score.isfinite().all()
    same = x[:1].expand(40, -1).clone()
    y = torch.zeros(40, dtype=torch.int64)
    assert nasr(game.model, same, y, held.models, held.member, stream(0), **QUICK).std() < 1e-3
    assert nasr_known(game.model, same, y, truth, stream(0), **KNOWN).isfinite().all()


@pytest.mark.parametrize("factor", [1e-20, 15.0, 1e4, 1e12])
def test_loud_and_silent_models_give_finite_scores(factor):
    """Log-odds of 60 and of millions in float32; a target that is louder than all of its shadows."""
    game, truth = ridge(leaks=True, seed=0, n=60, d=80, m=4)
    held = game.shadows
    loud = linear(game.model.weight.data * factor)
    all_loud = [linear(m.weight.data * factor) for m in held.models]
    for shadows in (held.models, all_loud):
        score = nasr(loud, game.x, game.y, shadows, held.member, stream(0), **QUICK)
        assert score.isfinite().all()
    assert nasr_known(loud, game.x, game.y, truth, stream(0), **KNOWN).isfinite().all()
    if factor == 15:
        assert len(score.unique()) == 60  # the logits still differ


def test_refuses_what_it_cannot_do():
    game, truth = ridge(leaks=True, seed=0, n=40, d=20, m=4)
    held, x, y = game.shadows, game.x, game.y

    def shadow(model=game.model, x=x, shadows=held.models, member=held.member, **settings):
        return nasr(model, x, y, shadows, member, stream(0), **QUICK | settings)

    def known(known=truth, **settings):
        return nasr_known(game.model, x, y, known, stream(0), **KNOWN | settings)

    with pytest.raises(ValueError, match="a row for each of 3 shadows, got 4"):
        shadow(shadows=held.models[:3])
    for attack, name, side in ((shadow, "member", held.member), (known, "known", truth)):
        with pytest.raises(ValueError, match=rf"{name} must hold both sides, got \d+ in and 0 out"):
            attack(**{name: torch.ones_like(side)})
        with pytest.raises(ValueError, match=rf"{name} must hold both sides, got 0 in and \d+ out"):
            attack(**{name: torch.zeros_like(side)})
    for share in (0.0, 0.6, -1.0):
        with pytest.raises(ValueError, match="share must lie above 0 and be 0.5 at most, got"):
            known(share=share)
    with pytest.raises(ValueError, match="finite logits and gradients, got [0-9]+ NaN"):
        shadow(x=x.index_fill(0, torch.arange(40), torch.nan))
    with pytest.raises(ValueError, match=r"shadows must show what the target shows, shapes .*\[5, 20, 1\]"):
        shadow(shadows=[nn.Sequential(nn.Linear(20, 7), nn.Linear(7, 5)).eval() for _ in range(4)])
    with pytest.raises(ValueError, match=r"outputs must name modules, got 'heat'; the nearest are head"):
        view(*images(), outputs=["heat"])
    with pytest.raises(ValueError, match=r"2\+ classes apart, got 1"):
        view(linear(torch.ones(1, 20)), x, torch.zeros_like(y))
    training = nn.Sequential(nn.Linear(20, 5), nn.Dropout())
    with pytest.raises(ValueError, match="eval"):
        shadow(model=training)
    with pytest.raises(ValueError, match="eval"):
        shadow(shadows=[training] * 4)
    assert training.training
