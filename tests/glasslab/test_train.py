"""Both engines against a plain PyTorch loop, and what a model may depend on."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

from glasslab import nets
from glasslab.data import Data
from glasslab.recipe import Recipe
from glasslab.schedule import order, rate
from glasslab.split import shadow_rows
from glasslab.train import estimate, pick_device, resolve, rows_at_once, train

RECIPE = Recipe(
    epochs=3, batch=8, lr=0.05, hidden=(16, 12), engine="stacked", precision="float32", scale="none"
)
SEEDS = [11, 12, 13, 14, 15, 16, 17, 18, 19, 20]


def world(n=60, d=(6,), classes=4):
    g = torch.Generator().manual_seed(0)
    return torch.rand(n, *d, generator=g), torch.randint(classes, (n,), generator=g)


def make(recipe, shape=(6,), classes=4, scale=None):
    return lambda: nets.build(recipe, shape, classes, scale)


def textbook(net, recipe, x, y, row, seed, loss):
    """One model by the plain loop of any PyTorch tutorial, on the same batches."""
    torch.manual_seed(seed)
    model, g = net(), torch.Generator().manual_seed(seed)
    optimiser = {
        "sgd": lambda p: torch.optim.SGD(p, recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay),
        "adam": lambda p: torch.optim.Adam(p, recipe.lr, weight_decay=recipe.weight_decay),
        "adamw": lambda p: torch.optim.AdamW(p, recipe.lr, weight_decay=recipe.weight_decay),
    }[recipe.optimiser](model.parameters())
    steps = -(-len(row) // (2 * recipe.batch))
    for epoch in range(recipe.epochs):
        for i, rows in enumerate(order(row, steps, recipe.batch, g)):
            optimiser.param_groups[0]["lr"] = rate(recipe, epoch * steps + i, steps * recipe.epochs)
            optimiser.zero_grad()
            loss(model(x[rows]), y[rows]).backward()
            optimiser.step()
    return {name: t.detach() for name, t in model.state_dict().items()}


@pytest.mark.parametrize("engine", ["stacked", "serial"])
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"weight_decay": 0.05, "schedule": "step"},
        {"momentum": 0.0, "schedule": "constant"},
        {"optimiser": "adam", "weight_decay": 0.05},
        {"optimiser": "adamw", "weight_decay": 0.05},
        {"label_smoothing": 0.2},
        {"net": "softmax", "hidden": ()},
    ],
    ids=str,
)
def test_equals_the_plain_loop(engine, change):
    recipe = replace(RECIPE, **change, engine=engine)
    (x, y), member = world(), shadow_rows(10, 60, 0)
    scale = (x.mean(0), 2 * x.std(0))
    got = train(make(recipe, scale=scale), recipe, x, y, member, SEEDS)
    for i in (0, 7, 9):  # the stacked engine works in slices of 8

        def loss(z, target):
            return cross_entropy(z, target, label_smoothing=recipe.label_smoothing)

        slow = textbook(make(recipe, scale=scale), recipe, x, y, member[i], SEEDS[i], loss)
        assert got.keys() == slow.keys()
        for name in slow:
            torch.testing.assert_close(got[name][i], slow[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("engine", ["stacked", "serial"])
def test_soft_targets_and_a_loss_of_ones_own(engine):
    recipe = replace(RECIPE, engine=engine)
    (x, _), member = world(), shadow_rows(2, 60, 0)
    soft = torch.rand(60, 4, generator=torch.Generator().manual_seed(1)).softmax(1)
    for loss in (None, mse_loss):
        got = train(make(recipe), recipe, x, soft, member, SEEDS[:2], loss=loss)
        slow = textbook(make(recipe), recipe, x, soft, member[1], SEEDS[1], loss or cross_entropy)
        torch.testing.assert_close({k: t[1] for k, t in got.items()}, slow, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("engine", ["stacked", "serial"])
def test_any_net_goes_through_either_engine(engine):
    recipe = replace(RECIPE, net="cnn", hidden=(), width=4, norm="group", epochs=1, engine=engine)
    (x, y), member = world(d=(1, 8, 8)), shadow_rows(2, 60, 0)
    got = train(make(recipe, (1, 8, 8)), recipe, x, y, member, SEEDS[:2])
    slow = textbook(make(recipe, (1, 8, 8)), recipe, x, y, member[1], SEEDS[1], cross_entropy)
    torch.testing.assert_close({k: t[1] for k, t in got.items()}, slow, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "change", [{}, {"dropout": 0.3}, {"net": "cnn", "augment": ("mirror", "crop")}], ids=str
)
@pytest.mark.parametrize("engine", ["stacked", "serial"])
def test_same_arguments_same_bytes(engine, change):
    conv = "net" in change
    recipe = replace(RECIPE, hidden=() if conv else (16,), norm="group", epochs=2, **change, engine=engine)
    shape = (1, 8, 8) if conv else (6,)
    (x, y), member = world(d=shape), shadow_rows(10, 60, 0)
    rng, threads = torch.get_rng_state(), torch.get_num_threads()
    once = train(make(recipe, shape), recipe, x, y, member, SEEDS)
    assert torch.equal(rng, torch.get_rng_state()), "the caller's generator moved"
    assert torch.get_num_threads() == threads
    torch.rand(3)
    again = train(make(recipe, shape), recipe, x, y, member, SEEDS)
    assert all(torch.equal(once[name], again[name]) for name in once)
    assert not torch.equal(
        *(t[:2] for t in (once["1.weight" if not conv else "0.weight"],)).__next__().unbind()
    )


@pytest.fixture
def two_cores():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("engine", ["stacked", "serial"])
def test_neighbours_on_other_cores_do_not_change_the_bits(engine, two_cores):
    recipe = replace(RECIPE, engine=engine)
    (x, y), member = world(), shadow_rows(10, 60, 0)
    once = train(make(recipe), recipe, x, y, member, SEEDS)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
    again = train(make(recipe), recipe, x, y, member, SEEDS)
    assert all(torch.equal(once[name], again[name]) for name in once)


def test_a_serial_model_does_not_depend_on_its_neighbours():
    recipe = replace(RECIPE, engine="serial")
    (x, y), member = world(), shadow_rows(4, 60, 0)
    together = train(make(recipe), recipe, x, y, member, SEEDS[:4])
    alone = train(make(recipe), recipe, x, y, member[2:3], SEEDS[2:3])
    assert all(torch.equal(together[name][2], alone[name][0]) for name in alone)


@pytest.mark.parametrize("engine", ["stacked", "serial"])
def test_a_model_sees_its_members_only(engine):
    recipe = replace(RECIPE, engine=engine)
    (x, y), member = world(), shadow_rows(2, 60, 0)
    clean = train(make(recipe), recipe, x, y, member[:1], SEEDS[:1])
    x[~member[0]] = torch.nan
    got = train(make(recipe), recipe, x, y, member[:1], SEEDS[:1])
    assert all(torch.equal(clean[name], got[name]) for name in got)


@pytest.mark.parametrize("engine", ["stacked", "serial"])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_patience_keeps_the_best_weights_on_val(engine, dropout):
    """By hand: train for 1, 2, ... epochs at a constant rate, stop 2 epochs after the lowest loss on val."""
    recipe = replace(RECIPE, lr=0.5, epochs=12, schedule="constant", engine=engine, dropout=dropout)
    (x, y), member = world(), shadow_rows(2, 60, 0)
    val = Data(*world(n=30), 4, "val")
    runs = [train(make(recipe), replace(recipe, epochs=e), x, y, member, SEEDS[:2]) for e in range(1, 13)]
    ticks = []
    got = train(
        make(recipe), replace(recipe, patience=2), x, y, member, SEEDS[:2], val=val, tick=ticks.append
    )
    for i in (0, 1):
        model, losses = make(recipe)().eval(), []
        for run in runs:
            model.load_state_dict({name: t[i] for name, t in run.items()})
            losses.append(cross_entropy(model(val.x), val.y).item())

        best, waited = 0, 0
        for e in range(1, 12):
            best, waited = (e, 0) if losses[e] < losses[best] else (best, waited + 1)
            if waited == 2:
                break
        assert best < 9, "the world must overfit, or the test shows nothing"
        assert all(torch.equal(got[name][i], runs[best][name][i]) for name in got)
    assert sum(ticks) < 24


def test_ticks_count_epochs_of_models():
    (x, y), member = world(), shadow_rows(10, 60, 0)
    for engine in ("stacked", "serial"):
        ticks = []
        recipe = replace(RECIPE, engine=engine)
        train(make(recipe), recipe, x, y, member, SEEDS, tick=ticks.append)
        assert sum(ticks) == 10 * recipe.epochs


def test_order_shows_each_member_once_before_any_twice():
    row = torch.zeros(50).bool()
    row[::5] = True
    seen = order(row, 4, 3, torch.Generator().manual_seed(0)).flatten()
    assert sorted(seen[:10].tolist()) == list(range(0, 50, 5))
    assert torch.equal(seen[10:], seen[:2])


def test_auto_chooses_by_net(monkeypatch):
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: True)
    table = Data(10 * torch.rand(50, 6), torch.arange(50) % 2, 2, "table")
    image = Data(torch.rand(50, 3, 32, 32), torch.arange(50) % 2, 2, "image")

    def chosen(recipe, data):
        r = resolve(recipe, data, "cpu")
        return r.engine, r.precision, r.scale

    assert chosen(Recipe(), table) == ("stacked", "float32", "standard")
    assert chosen(Recipe(hidden=(1024, 512)), table) == ("serial", "bfloat16", "standard")
    assert chosen(Recipe(net="cnn"), image) == ("serial", "bfloat16", "none")
    assert chosen(Recipe(net="cnn", precision="float32"), image) == ("serial", "float32", "none")
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: False)
    assert chosen(Recipe(net="cnn"), image) == ("serial", "float32", "none")
    assert (rows_at_once(resolve(Recipe(), table, "cpu")), rows_at_once(Recipe(engine="serial"))) == (16, 4)


def test_bfloat16_learns_as_float32_does():
    g = torch.Generator().manual_seed(0)
    y = torch.arange(400) % 4
    x = 0.3 * torch.randn(400, 6, generator=g) + nn.functional.one_hot(y, 6)
    recipe = replace(RECIPE, epochs=10, engine="serial", precision="bfloat16")
    state = train(make(recipe), recipe, x, y, torch.ones(1, 400).bool(), [3])
    assert {t.dtype for t in state.values()} == {torch.float32}
    model = make(recipe)()
    model.load_state_dict({name: t[0] for name, t in state.items()})
    assert (model(x).argmax(1) == y).float().mean() > 0.9


def test_the_estimate_multiplies_what_a_step_takes(monkeypatch):
    """On a clock of its own: 2 s to begin and half a second a step; 60 records are 4 steps of 8 members."""
    clock = [0.0]

    def run(net, recipe, x, y, member, seeds, *, device):
        clock[0] += 2 + 0.5 * recipe.epochs * -(-len(x) // (2 * recipe.batch))

    monkeypatch.setattr("glasslab.train.train", run)
    monkeypatch.setattr("glasslab.train.perf_counter", lambda: clock[0])
    assert estimate(make(RECIPE), replace(RECIPE, epochs=10), *world(), 4) == pytest.approx(2 + 0.5 * 40)


def test_refuses_what_cannot_be_trained():
    (x, y), member = world(), shadow_rows(2, 60, 0)
    with pytest.raises(ValueError, match="seeds must be one a row of member, got 3 for 2 rows"):
        train(make(RECIPE), RECIPE, x, y, member, SEEDS[:3])
    with pytest.raises(ValueError, match="got none in row 1"):
        train(make(RECIPE), RECIPE, x, y, member & torch.tensor([[True], [False]]), SEEDS[:2])
    with pytest.raises(ValueError, match="val must be given"):
        train(make(RECIPE), replace(RECIPE, patience=2), x, y, member, SEEDS[:2])
    with pytest.raises(ValueError, match="must be resolved"):
        train(make(RECIPE), replace(RECIPE, engine="auto"), x, y, member, SEEDS[:2])
    batch_norm = replace(RECIPE, net="cnn", hidden=(), width=4)
    with pytest.raises(ValueError, match="engine must be serial for a net with BatchNorm"):
        train(make(batch_norm, (1, 8, 8)), batch_norm, world(d=(1, 8, 8))[0], y, member, SEEDS[:2])
    with pytest.raises(ValueError, match="precision must be float32 with engine stacked"):
        train(make(RECIPE), replace(RECIPE, precision="bfloat16"), x, y, member, SEEDS[:2])
    with pytest.raises(ValueError, match="device must be auto or one of"):
        pick_device("abacus")


def test_refuses_a_net_with_other_logits_than_classes():
    data = Data(torch.rand(50, 6), torch.arange(50) % 3, 3, "table")
    for outputs in (2, 4):
        with pytest.raises(ValueError, match=f"net must give 3 logits a record, got shape \\({outputs},\\)"):
            resolve(Recipe(net=lambda shape, classes, c=outputs: nn.Linear(6, c)), data, "cpu")
