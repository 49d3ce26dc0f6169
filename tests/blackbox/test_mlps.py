import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from blackbox.mlps import Examples, Training, _epoch, _initial, train
from glasslab.metrics import auc
from glasslab.split import stream

SIZES, HELD = (30, 50, 7), (9, 0, 12)


def sets(sizes, seed, noise=1.0):
    """The label is the first feature's sign, blurred; the second is constant, the third a large number."""
    g = stream(seed, "sets")
    drawn = []
    for size in sizes:
        x = torch.randn(size, 3, generator=g, dtype=torch.float64) * torch.tensor([1.0, 0.0, 1000.0]) + 5
        t = (x[:, 0] - 5 + noise * torch.randn(size, generator=g) > 0).long()
        drawn.append(Examples(x, t))
    return drawn


def textbook(examples, held, hidden, generator, training):
    """One net after another, with torch's own layers and optimiser; the same first weights and batches."""
    w = _initial(len(examples), 3, hidden, generator)
    orders = [_epoch([len(e.t) for e in examples], training.batch, generator) for _ in range(training.epochs)]
    offset, functions = 0, []
    mean = [e.x.mean(0) for e in examples]
    spread = [e.x.std(0, correction=0) for e in examples]
    scaled = [
        [((e.x - mean[i]) / spread[i].where(spread[i] > 0, 1.0)).float() for i, e in enumerate(side)]
        for side in (examples, held)
    ]
    for i, e in enumerate(examples):
        net = nn.Sequential(nn.Linear(3, hidden), nn.ReLU(), nn.Linear(hidden, 2))
        values = (w[0][i].T, w[1][i, 0], w[2][i].T, w[3][i, 0])
        for parameter, value in zip(net.parameters(), values, strict=True):
            parameter.data = value.detach().clone()
        optimiser = torch.optim.Adam(net.parameters(), lr=training.lr, weight_decay=training.l2)
        best, lowest, since = copy.deepcopy(net), float("inf"), 0
        for order in orders:
            for rows in order:
                own = rows[i] - offset
                optimiser.zero_grad()
                cross_entropy(net(scaled[0][i][own]), e.t[own]).backward()
                optimiser.step()
            loss = cross_entropy(net(scaled[1][i]), held[i].t).item() if len(held[i].t) else None
            if loss is not None and loss < lowest:
                best, lowest, since = copy.deepcopy(net), loss, 0
            else:
                since += 1
            if since == training.patience:
                break
        functions.append(best)
        offset += len(e.t)
    return [net(x).softmax(-1)[:, 1] for net, x in zip(functions, scaled[0], strict=True)]


@pytest.mark.parametrize("patience", [2, 100], ids=["stops early", "keeps the best"])
def test_equals_one_net_after_another(patience):
    training = Training(epochs=25, batch=8, lr=0.05, patience=patience)
    examples, held = sets(SIZES, 0), sets((9, 11, 12), 1)
    mlps = train(examples, held, hidden=6, generator=stream(0), training=training)
    slow = textbook(examples, held, 6, stream(0), training)
    for i, e in enumerate(examples):
        torch.testing.assert_close(mlps(i, e.x).float(), slow[i], rtol=2e-3, atol=2e-4)


def test_learns_what_can_be_learned():
    mlps = train(sets((90, 150, 60), 0, noise=0.1), sets((50, 0, 50), 1), hidden=16, generator=stream(0))
    for i, e in enumerate(sets((300, 300, 300), 2, noise=0.1)):
        assert auc(mlps(i, e.x), e.t.bool()) > 0.95
        assert not mlps(i, e.x).requires_grad


def test_an_epoch_takes_every_example_once_and_short_sets_go_round():
    batches = _epoch([6, 3], 2, stream(0))
    assert len(batches) == 3
    rows = torch.cat(list(batches), 1)
    assert rows[0].sort().values.tolist() == [0, 1, 2, 3, 4, 5]
    assert rows[1].sort().values.tolist() == [6, 6, 7, 7, 8, 8]
    assert torch.equal(rows[1, :3], rows[1, 3:])


def test_without_held_out_examples_every_epoch_is_run():
    examples, training = sets(SIZES, 0), Training(epochs=3, batch=64, patience=1)
    nothing = sets((0, 0, 0), 1)
    got = train(examples, nothing, hidden=4, generator=stream(0), training=training)
    g = stream(0)
    w = _initial(3, 3, 4, g)
    assert not torch.equal(got.weights[0], w[0])
    longer = train(examples, nothing, hidden=4, generator=stream(0), training=Training(epochs=4, batch=64))
    assert not torch.equal(got.weights[0], longer.weights[0])


def test_randomness_comes_from_the_generator_alone():
    before = torch.get_rng_state()
    one, two, other = (train(sets(SIZES, 0), sets(HELD, 1), hidden=4, generator=stream(s)) for s in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(one.weights, two.weights, strict=True))
    assert not torch.equal(one.weights[0], other.weights[0])


def test_a_large_difference_of_logits_keeps_its_order():
    """The probability is formed in float64: float32 ties at 1 from 17 on."""
    mlps = train(sets(SIZES, 0), sets(HELD, 1), hidden=4, generator=stream(0))
    loud = type(mlps)([*mlps.weights[:2], 20 * mlps.weights[2], mlps.weights[3]], mlps.mean, mlps.spread)
    x = torch.linspace(-3, 3, 9)[:, None] * torch.tensor([1.0, 0.0, 0.0]) + 5
    assert torch.equal(loud(0, x).argsort(), mlps(0, x).argsort())
