import hashlib
import warnings

import pytest
import torch
from torch import nn
from torch.nn.functional import avg_pool2d

from glasslab import masks, nets
from glasslab.checks import Floored
from glasslab.data import Data
from glasslab.oracle import BudgetExceeded, Oracle
from glasslab.recipe import Recipe
from glasslab.split import stream
from inversion import miface as module
from inversion.gradient import autograd, difference, nes
from inversion.miface import miface

SHAPE = (1, 4, 4)
RESULTS = ("x", "cost", "confidence", "steps", "queries")


def filled(net, seed, scale=1.0):
    """The net in float64, with normal weights."""
    g = stream(seed, "filled")
    with torch.no_grad():
        for t in [*net.double().parameters(), *net.buffers()]:
            t.copy_(scale * torch.randn(t.shape, generator=g, dtype=torch.float64))
    return net.eval()


def world(name, classes=6):
    """(what gives logits, the shape of candidates, PROCESS)."""
    if name == "softmax":
        return filled(nets.softmax(Recipe(), SHAPE, classes), 1), SHAPE, lambda x: x - 0.01 * x.abs()
    if name == "mlp":
        return filled(nets.mlp(Recipe(hidden=(7,)), SHAPE, classes), 2, 0.7), SHAPE, module.identity
    dae = filled(nets.dae(Recipe(hidden=(9, 5)), SHAPE, classes), 3)

    def through(h):
        x = dae.decode(h)
        soft = avg_pool2d(x, 3, 1, 1, count_include_pad=False)
        return dae.encode((x + 0.5 * (x - soft)).clamp(0, 1))

    return dae.above, (9,), through


def normal(classes, seed, squared=5.0, d=256):
    """Softmax regression with rows of W of that mean squared norm, in float32."""
    net = nets.softmax(Recipe(), (d,), classes).eval()
    with torch.no_grad():
        net[1].weight.copy_(torch.randn(classes, d, generator=stream(seed, "W")) * (squared / d) ** 0.5)
        net[1].bias.zero_()
    return net


def same(one, other):
    return one.stop_reason == other.stop_reason and all(
        torch.equal(getattr(one, name), getattr(other, name)) for name in RESULTS
    )


# Algorithm 1 as it is printed, one label


def textbook(cost, x, *, steps, window, rate, stop, process=None, every=1, clip=None, returns="best"):
    """`cost(x)` gives c, its gradient and f; `stop(c, f)` says whether the label is done, and why."""
    xs, (c, g, f) = [x], cost(x)
    costs, sure, reason = [c], [f], "max_iter"
    for i in range(1, steps + 1):
        x = xs[-1] - rate * g
        if process is not None and i % every == 0:
            x = process(x[None])[0]
        if clip is not None:
            x = x.clamp(*clip)
        c, g, f = cost(x)
        worst = max(costs[-window:])
        xs.append(x)
        costs.append(c)
        sure.append(f)
        if c >= worst:
            reason = "stall"
            break
        if stop(c, f):
            reason = stop(c, f)
            break
    best = min(range(len(costs)), key=costs.__getitem__) if returns == "best" else len(costs) - 1
    return xs[best], costs[best], sure[best], len(xs) - 1, reason


def white(model, label, penalty=None):
    """c = 1 - f + penalty of one image, by autograd; less 1 without penalty, so that it moves near f = 0."""

    def cost(x):
        x = x.detach().clone().requires_grad_()
        f = model(x[None])[0].softmax(-1)[label]
        c = 1 - f + penalty(x[None])[0] if penalty else -f
        c.backward()
        return c.item(), x.grad.clone(), f.item()

    return cost


def pulled(x):
    return 0.02 * (x - 0.3).square().flatten(1).sum(1)


# Rates and steps at which no stall hangs on the last bit of two equal costs.
PACE = {"softmax": (2.0, 40), "mlp": (5.0, 8), "dae": (1.0, 12)}
CASES = [
    {},
    {"penalty": pulled},
    {"clip": (0.0, 0.6)},
    {"penalty": pulled, "clip": (0.0, 0.6), "target_confidence": None, "literal_gamma": 0.5},
]


@pytest.mark.parametrize("settings", CASES, ids=["plain", "penalty", "clip", "literal"])
@pytest.mark.parametrize("name", ["softmax", "mlp", "dae"])
def test_the_batch_is_the_listing_run_label_by_label(name, settings):
    model, shape, process = world(name)
    rate, steps = PACE[name]
    y = torch.tensor([5, 0, 1, 2, 3, 4, 0])
    start = torch.rand(7, *shape, generator=stream(4), dtype=torch.float64)
    common = {"steps": steps, "window": 3, "rate": rate, "process": process, "process_every": 2}
    got = miface(autograd(model), y, shape=shape, start=start, watch=7, **{**common, **settings})
    target, gamma = settings.get("target_confidence", 0.99), settings.get("literal_gamma")

    def stop(c, f):
        if gamma is None:
            return "confidence" if f >= target else ""
        return "literal_gamma" if c <= gamma else ""  # there is a penalty

    for i, label in enumerate(y.tolist()):
        x, c, f, made, reason = textbook(
            white(model, label, settings.get("penalty")),
            start[i],
            steps=steps,
            window=3,
            rate=rate,
            stop=stop,
            process=None if process is module.identity else process,
            every=2,
            clip=settings.get("clip"),
        )
        assert (int(got.steps[i]), got.stop_reason[i]) == (made, reason)
        torch.testing.assert_close(got.x[i], x.detach(), rtol=0, atol=1e-10)
        assert got.cost[i].item() == pytest.approx(c if "penalty" in settings else 1 + c, abs=1e-10)
        assert got.confidence[i].item() == pytest.approx(f, abs=1e-10)
        alone = miface(autograd(model), y[i : i + 1], shape=shape, start=start[i], **{**common, **settings})
        assert alone.stop_reason[0] == got.stop_reason[i]
        torch.testing.assert_close(alone.x[0], got.x[i], rtol=0, atol=1e-10)


def test_the_batches_of_the_listing_stop_at_mixed_times():
    """The comparison above would say little if all labels stopped together."""
    seen = set()
    for name in ("softmax", "mlp", "dae"):
        model, shape, process = world(name)
        start = torch.rand(7, *shape, generator=stream(4), dtype=torch.float64)
        got = miface(
            autograd(model),
            torch.tensor([5, 0, 1, 2, 3, 4, 0]),
            shape=shape,
            start=start,
            steps=PACE[name][1],
            window=3,
            rate=PACE[name][0],
            process=process,
            process_every=2,
        )
        seen |= {(reason, int(n)) for reason, n in zip(got.stop_reason, got.steps, strict=True)}
    assert {reason for reason, _ in seen} == {"stall", "confidence", "max_iter"}
    assert len(seen) > 5


def test_softmax_regression_never_leaves_the_span_of_its_weights():
    """a in coefficient space, x = W a: p = softmax(W W' a + b), a += rate p_y (e_y - p)."""
    net = normal(8, 7, squared=1.0)
    with torch.no_grad():
        net[1].bias.copy_(torch.linspace(-0.5, 0.5, 8))
    W, b = net[1].weight.detach().double(), net[1].bias.detach().double()
    a, kernel, eye = torch.zeros(8, 8).double(), W @ W.T, torch.eye(8).double()
    for _ in range(600):
        p = (a @ kernel + b).softmax(-1)
        a = a + 0.1 * p.diag()[:, None] * (eye - p)
    f = (a @ kernel + b).softmax(-1).diag()
    settings = {"shape": (256,), "steps": 600, "target_confidence": None}
    got = miface(autograd(net), torch.arange(8), **settings)
    assert got.stop_reason == ("max_iter",) * 8
    torch.testing.assert_close(got.confidence, f, rtol=0, atol=1e-6)
    torch.testing.assert_close(got.x.double(), a @ W, rtol=0, atol=1e-4)
    assert not torch.allclose(
        miface(autograd(net), torch.arange(8), rate=0.1 / 8, **settings).confidence, f, atol=1e-3
    )  # what a mean over the labels would give


# Two readings of gamma


@pytest.mark.parametrize("classes", [40, *(pytest.param(c, marks=pytest.mark.slow) for c in (200, 530))])
def test_every_label_reaches_its_confidence(classes):
    got = miface(autograd(normal(classes, 0)), torch.arange(classes), shape=(256,))
    assert set(got.stop_reason) == {"confidence"}
    assert (got.confidence >= 0.99).all()
    assert got.steps.max() < 5000


@pytest.mark.parametrize(("classes", "least", "most"), [(200, 550, 800), (530, 1000, 1700)])
def test_some_labels_of_many_reach_their_confidence(classes, least, most):
    got = miface(autograd(normal(classes, 0)), torch.arange(0, classes, classes // 4), shape=(256,))
    assert set(got.stop_reason) == {"confidence"}
    assert least < got.steps.double().mean() < most


def test_the_literal_gamma_stops_at_a_confidence_of_one_in_a_hundred():
    literal = {"shape": (256,), "target_confidence": None, "literal_gamma": 0.99}
    ten = miface(autograd(normal(10, 0)), torch.arange(10), **literal)
    assert ten.steps.tolist() == [1] * 10
    assert set(ten.stop_reason) == {"literal_gamma"}
    many = miface(autograd(normal(200, 0)), torch.arange(0, 200, 20), **literal)
    assert ((many.confidence >= 0.01) & (many.confidence < 0.011)).all()
    # The wrong version goes on while the rule for stopping holds: one step here, and none too few above.
    assert many.steps.min() > 100


def test_float32_does_not_lose_the_first_steps():
    """1 - f in float32 does not move where f is near 0: the wrong version stalls at step 1."""
    net, y = normal(530, 1, squared=0.05), torch.arange(0, 530, 50)
    short = {"shape": (256,), "steps": 60}
    plain = miface(autograd(net), y, **short)
    weighed = miface(autograd(net), y, penalty=lambda x: 0 * x.flatten(1).sum(1), **short)
    single = miface(lambda x, y: tuple(t.float() for t in autograd(net)(x, y)), y, **short)
    for got in (plain, weighed, single):
        assert set(got.stop_reason) == {"max_iter"}
        assert (got.steps == 60).all()
    double = miface(autograd(normal(530, 1, squared=0.05).double()), y, **short)
    assert double.stop_reason == plain.stop_reason == weighed.stop_reason

    def cost(x):
        f, g = autograd(net)(x[None], y[:1])
        return float(1 - f.float()[0]), -g[0], float(f)

    lost = textbook(cost, torch.zeros(256), stop=lambda c, f: "", rate=0.1, steps=60, window=100)
    assert lost[3:] == (1, "stall")


# The best iterate


def hill(x, y):
    """f rises until x = y and falls after; the pull is to the right all the way."""
    return (-(x[:, 0] - y).square() / 20).exp(), torch.ones_like(x)


def test_a_cost_that_falls_then_rises_gives_the_best_iterate():
    y = torch.tensor([3, 1, 2])
    found = miface(hill, y, shape=(1,), rate=0.5, window=4, steps=30, target_confidence=None)
    assert found.x[:, 0].tolist() == [3, 1, 2]
    assert found.confidence.tolist() == [1, 1, 1]
    for i, label in enumerate(y.tolist()):

        def cost(x, label=label):
            f, g = hill(x[None], torch.tensor([label]))
            return 1 - float(f), -g[0], float(f)

        settings = {"stop": lambda c, f: "", "rate": 0.5, "steps": 30, "window": 4}
        best = textbook(cost, torch.zeros(1), **settings)
        last = textbook(cost, torch.zeros(1), returns="last", **settings)
        assert found.x[i] == best[0] != last[0]
        assert int(found.steps[i]) == best[3]
        assert found.stop_reason[i] == best[4] == "stall"


def test_the_start_takes_part():
    found = miface(hill, torch.tensor([0]), shape=(1,), steps=5, window=1)
    assert found.x.item() == 0
    assert (found.steps.item(), found.stop_reason) == (1, ("stall",))


def test_one_look_a_step():
    calls = []

    def counted(x, y):
        calls.append(len(x))
        return hill(x, y)

    miface(counted, torch.tensor([12, 15]), shape=(1,), steps=20)
    assert calls == [2] * 21
    calls.clear()
    miface(counted, torch.tensor([1, 1, 1, 15]), shape=(1,), steps=12, rate=1.0, window=1)
    assert calls[0] == 4
    assert calls[-1] == 1  # those that stopped are dropped


# What breaks


@pytest.mark.parametrize("what", ["gradient", "probability"])
def test_a_nan_ends_its_own_image_alone(what):
    net = normal(10, 3)
    known, calls = autograd(net), []

    def poisoned(x, y):
        f, g = known(x, y)
        calls.append(0)
        if len(calls) == 6:
            bad = (y == 2).nonzero()[:, 0]
            g, f = (
                (g.index_fill(0, bad, torch.nan), f)
                if what == "gradient"
                else (g, f.index_fill(0, bad, torch.nan))
            )
        return f, g

    settings = {"shape": (256,), "steps": 40, "watch": 10}
    clean = miface(known, torch.arange(6), **settings)
    found = miface(poisoned, torch.arange(6), **settings)
    others = torch.arange(6) != 2
    for name in RESULTS:
        assert torch.equal(getattr(clean, name)[others], getattr(found, name)[others])
    assert found.stop_reason[2] == "diverged"
    assert found.stop_reason.count("diverged") == 1
    assert found.steps[2] == (6 if what == "gradient" else 5)
    assert found.x.isfinite().all()
    assert found.curve.isfinite().all()
    best = miface(known, torch.tensor([2]), shape=(256,), steps=5 if what == "gradient" else 4)
    torch.testing.assert_close(found.x[2], best.x[0])
    assert found.cost[2].item() == pytest.approx(best.cost.item(), abs=1e-7)


def test_a_gradient_that_breaks_after_the_stop_changes_nothing():
    """A step times a mask of 0 would still be NaN."""

    def breaks(x, y):
        f, g = hill(x, y)
        return f, torch.where(f[:, None] > 0.99, torch.nan, g)

    found = miface(breaks, torch.tensor([1, 9, 9]), shape=(1,), steps=20)
    assert found.stop_reason == ("confidence", "max_iter", "max_iter")
    assert found.x[0].item() == pytest.approx(0.6, abs=1e-6)


def test_nothing_but_nan_returns_the_start():
    found = miface(lambda x, y: (x[:, 0] * torch.nan, x), torch.tensor([0]), shape=(2,), start="grey")
    assert found.stop_reason == ("diverged",)
    assert found.x.tolist() == [[0.5, 0.5]]
    assert found.cost.isnan().all()
    assert found.steps.tolist() == [0]


def digest(model):
    """Weights, buffers, gradients, flags, modes and hooks of a model."""
    known = hashlib.sha256()
    for name, t in [*model.named_parameters(), *model.named_buffers()]:
        grad = None if t.grad is None else t.grad.numpy().tobytes()
        known.update(repr((name, t.requires_grad, t.detach().numpy().tobytes(), grad)).encode())
    for m in model.modules():
        known.update(repr((m.training, len(m._forward_hooks), len(m._backward_hooks))).encode())
    return known.hexdigest()


def test_arguments_are_left_alone():
    net = nn.Sequential(nn.Unflatten(1, (1, 8)), nn.BatchNorm1d(1), nn.Flatten(), nn.Linear(8, 4)).eval()
    net[3].bias.requires_grad_(False)
    net[3].weight.grad = torch.ones(4, 8)
    y, start, aux = torch.arange(4), torch.rand(4, 8, generator=stream(0)), torch.rand(5, 8)
    before = digest(net), [t.clone() for t in (y, start, aux)]

    def fails(x):
        raise RuntimeError("on purpose")

    for given in (start, start[0], "public_mean"):
        for gradient in (autograd(net), nes(Oracle(net), 4, 0.1)):
            miface(gradient, y, shape=(8,), start=given, aux=aux, steps=30, window=1)
        with pytest.raises(RuntimeError, match="on purpose"):
            miface(autograd(net), y, shape=(8,), start=given, aux=aux, penalty=fails)
    assert digest(net) == before[0]
    assert all(torch.equal(a, b) for a, b in zip((y, start, aux), before[1], strict=True))
    with pytest.raises(ValueError, match="eval mode"):
        miface(autograd(net.train()), y, shape=(8,))


# Where it starts


def test_a_start_of_noise_does_not_depend_on_the_other_labels():
    net = normal(6, 5)
    settings = {"shape": (256,), "start": "noise", "steps": 1, "rate": 1e-12}
    many = miface(autograd(net), torch.tensor([3, 1, 3, 0]), **settings)
    one = miface(autograd(net), torch.tensor([3]), **settings)
    assert torch.equal(many.x[0], one.x[0])
    assert not torch.equal(many.x[0], many.x[2])  # a second image of a label is another one
    assert ((many.x >= 0) & (many.x < 1)).all()
    assert same(many, miface(autograd(net), torch.tensor([3, 1, 3, 0]), **settings))
    assert not torch.equal(many.x, miface(autograd(net), torch.tensor([3, 1, 3, 0]), seed=1, **settings).x)


def test_restarts_keep_the_least_cost_and_pay_for_all():
    net = normal(6, 5)
    settings = {"shape": (256,), "start": "noise", "steps": 3, "watch": 1}
    asked, y = Oracle(net), torch.tensor([3, 1])
    many = miface(difference(asked, 0.01), y, restarts=4, **settings)
    assert many.queries.tolist() == [4 * 4 * 512] * 2
    assert asked.queries == int(many.queries.sum())
    white = miface(autograd(net), y, restarts=4, **settings)
    starts = torch.stack(module._noise([3, 1], (256,), 4, 0)).float()
    each = miface(autograd(net), y.repeat_interleave(4), **{**settings, "start": starts})
    cost = each.cost.reshape(2, 4)
    torch.testing.assert_close(white.cost, cost.min(1).values)
    assert cost.argmin(1).any()  # not the first of each
    pick = torch.arange(2) * 4 + cost.argmin(1)
    torch.testing.assert_close(white.x, each.x[pick])
    torch.testing.assert_close(white.curve, each.curve[:, pick])


def test_starts_are_what_they_say():
    net = normal(6, 5)
    aux = torch.rand(7, 256, generator=stream(1))
    data = Data(aux, torch.zeros(7, dtype=torch.int64), 6, "public")
    still = {"shape": (256,), "steps": 1, "rate": 1e-12}
    y = torch.arange(3)
    for start, given, want in (
        ("zero", None, torch.zeros(256)),
        ("grey", None, torch.full((256,), 0.5)),
        ("public_mean", aux, aux.mean(0)),
        ("public_mean", data, aux.mean(0)),
        (aux[0], None, aux[0]),
        (aux[:3], None, aux[:3]),
    ):
        found = miface(autograd(net), y, start=start, aux=given, **still)
        torch.testing.assert_close(found.x, want.expand(3, 256))
        assert found.x.dtype == torch.float32
    assert miface(autograd(normal(6, 5).double()), y, **still).x.dtype == torch.float64


def test_a_dead_start_names_its_remedy():
    net = nn.Sequential(nn.Linear(8, 5, bias=False), nn.ReLU(), nn.Linear(5, 3)).eval()
    with pytest.warns(Floored, match=r"3 of 3 gradients are 0 at the zero start.*start='grey'") as said:
        found = miface(autograd(net), torch.arange(3), shape=(8,))
    assert len(said) == 1
    assert found.stop_reason == ("stall",) * 3
    assert found.steps.tolist() == [1] * 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert miface(autograd(net), torch.arange(3), shape=(8,), start="grey", steps=5).steps.min() > 1


# Answers alone


def test_rounding_that_hides_everything_is_said():
    """Rounded to .05, and probes of .001: every difference is 0."""

    def rounded(p):
        return (p / 0.05).round() * 0.05

    net, y = normal(10, 6, d=16), torch.arange(4)
    gradient = difference(Oracle(net, mask=[rounded]), 0.001)
    assert (gradient(torch.zeros(4, 16), y)[1] == 0).all()
    with pytest.warns(Floored, match=r"4 of 4 gradients are 0: .* widen h or sigma"):
        found = miface(gradient, y, shape=(16,))
    assert found.stop_reason == ("stall",) * 4
    assert found.queries.tolist() == [2 * 32] * 4
    wide = miface(difference(Oracle(net, mask=[rounded]), 0.5), y, shape=(16,), steps=200)
    assert (autograd(net)(wide.x, y)[0] > 2 * autograd(net)(found.x, y)[0]).all()
    with pytest.warns(Floored, match="4 of 4"):
        miface(difference(Oracle(net, mask=[masks.round_to(1)]), 0.001), y, shape=(16,))


def test_answers_lead_where_weights_lead():
    net, y = normal(6, 6, d=16), torch.arange(6)
    settings = {"shape": (16,), "steps": 60, "rate": 0.5}
    white, oracle = miface(autograd(net), y, **settings), Oracle(net)
    asked = miface(difference(oracle, 0.01), y, **settings)
    torch.testing.assert_close(asked.x, white.x, rtol=0, atol=5e-3)
    assert asked.stop_reason == white.stop_reason
    assert white.queries.tolist() == [0] * 6
    assert torch.equal(asked.queries, 32 * (asked.steps + 1))  # the last look counts, and no stopped image's
    assert oracle.queries == int(asked.queries.sum())
    assert len(set(miface(nes(Oracle(net), 50, 0.1), y, **settings).stop_reason)) >= 1


def test_stopped_images_are_not_asked_for():
    net, y = normal(6, 6, d=16), torch.arange(6)
    oracle = Oracle(net)
    settings = {"shape": (16,), "steps": 40, "rate": 1.0, "target_confidence": 0.6}
    many = miface(nes(oracle, 5, 0.1, seed=2), y, **settings)
    assert len(set(many.steps.tolist())) > 1
    assert torch.equal(many.queries, 10 * (many.steps + 1))
    assert oracle.queries == int(many.queries.sum())
    for label in range(6):
        one = miface(nes(Oracle(net), 5, 0.1, seed=2), y[label : label + 1], **settings)
        torch.testing.assert_close(one.x[0], many.x[label], rtol=0, atol=1e-5)
        assert one.steps[0] == many.steps[label]


@pytest.mark.parametrize("budget", [0, 5, 95, 96, 500])
def test_a_spent_budget_ends_in_the_best_so_far(budget):
    net, y = normal(6, 6, d=16), torch.arange(3)
    oracle = Oracle(net, budget=budget)
    found = miface(difference(oracle, 0.01), y, shape=(16,), steps=50)
    looks = budget // 96
    assert oracle.queries == int(found.queries.sum()) == 96 * looks <= budget
    assert found.stop_reason == ("budget",) * 3
    assert found.steps.tolist() == [max(looks - 1, 0)] * 3
    if looks:
        before = miface(difference(Oracle(net), 0.01), y, shape=(16,), steps=max(looks - 1, 1))
        assert looks == 1 or torch.equal(found.x, before.x)
    else:
        assert found.confidence.isnan().all()
        assert found.cost.isnan().all()


def test_any_gradient_may_say_that_it_is_spent():
    def spent(x, y):
        if float(x.max()) > 0.25:
            raise BudgetExceeded("no more")
        return hill(x, y)

    found = miface(spent, torch.tensor([9]), shape=(1,))
    assert found.stop_reason == ("budget",)
    assert found.x.item() == pytest.approx(0.2)


# The curve


def test_the_curve_keeps_what_has_stopped():
    y = torch.tensor([1, 2, 12])
    found = miface(hill, y, shape=(1,), rate=0.25, window=2, steps=22, target_confidence=0.999, watch=4)
    assert found.stop_reason == ("confidence", "confidence", "max_iter")
    assert found.curve.shape == (6, 3)  # 4, 8, .. 20, and 24 where all have stopped
    x = torch.minimum(0.25 * torch.tensor([4, 8, 12, 16, 20, 22])[:, None], y)
    torch.testing.assert_close(found.curve.float(), (-(x - y).square() / 20).exp())
    assert miface(hill, y, shape=(1,), steps=2).curve is None
    assert miface(hill, torch.tensor([0]), shape=(1,), steps=9, watch=4).curve.shape == (1, 1)


# Errors


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"literal_gamma": 0.99}, "literal_gamma must come with target_confidence=None, got 0.99"),
        ({"target_confidence": 1.5}, "target_confidence must be above 0 and at most 1, got 1.5"),
        ({"steps": 0}, "steps must be 1 or more, got 0"),
        ({"window": 0}, "window must be 1 or more, got 0"),
        ({"process_every": 0}, "process_every must be 1 or more, got 0"),
        ({"rate": 0.0}, "rate must be above 0, got 0"),
        ({"watch": -1}, "watch must be 0 or more steps, got -1"),
        ({"clip": (1.0, 0.0)}, "clip must be"),
        ({"start": "public_mean"}, "aux must hold public records"),
        (
            {"start": "public_mean", "aux": torch.zeros(3, 5)},
            r"aux must hold records of shape \[256\], got \[5\]",
        ),
        ({"start": torch.zeros(3, 256)}, r"start must be of shape \[256\] or \[2, 256\], got \[3, 256\]"),
        ({"restarts": 2}, "restarts must be 1 unless start is 'noise', got 2"),
        ({"penalty": lambda x: x.square().sum()}, r"penalty must give one value an image, \[2\], got \[\]"),
    ],
)
def test_wrong_settings_are_refused(settings, match):
    with pytest.raises(ValueError, match=match):
        miface(autograd(normal(10, 0)), torch.arange(2), **{"shape": (256,), "steps": 2, **settings})


def test_no_labels_are_refused():
    with pytest.raises(ValueError, match="y must hold one or more labels"):
        miface(hill, torch.zeros(0, dtype=torch.int64), shape=(1,))
