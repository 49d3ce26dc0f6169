import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from glasslab.checks import Floored
from glasslab.masks import round_to, temperature, top_k
from glasslab.oracle import Answered, BudgetExceeded, Oracle, answer, complete, forward, log_answer
from glasslab.signals import phi


class Counting(nn.Module):
    """Passes on to a net and counts the rows that are not padding."""

    def __init__(self, net):
        super().__init__()
        self.net, self.rows, self.batches = net, 0, []
        self.eval()

    def forward(self, x):
        self.rows += int((x != 0).flatten(1).any(1).sum())
        self.batches.append(len(x))
        return self.net(x)


def dense(c=4):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, c)).eval()


def conv():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4))
    net[1].running_mean += 0.1
    return net.eval()


def records(n, *shape):
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(1)) + 0.1


def f64(rows):
    return torch.tensor(rows, dtype=torch.float64)


def test_counts_what_the_model_sees():
    oracle = Oracle(model := Counting(dense()), batch=32)
    for n in (1, 50, 32, 7):
        oracle(records(n, 6))
    oracle(records(1, 6))  # the same row again costs again
    assert oracle.queries == model.rows == 91
    assert set(model.batches) == {32}


def test_the_budget_answers_all_or_nothing():
    oracle = Oracle(model := Counting(dense()), budget=10)
    oracle(records(4, 6))
    with pytest.raises(BudgetExceeded, match="7 queries asked, 6 left of a budget of 10"):
        oracle(records(7, 6))
    assert oracle.queries == model.rows == 4
    assert oracle.left == 6
    assert len(oracle(records(6, 6))) == 6
    assert oracle.left == 0
    assert Oracle(model).left is None
    with pytest.raises(RuntimeError, match="1 queries asked, 0 left of a budget of 0"):
        Oracle(model, budget=0)(records(1, 6))


@pytest.mark.parametrize(("net", "shape"), [(dense(), (6,)), (conv(), (3, 8, 8))], ids=["dense", "conv"])
def test_an_answer_does_not_depend_on_its_batch_mates(net, shape):
    x = records(70, *shape)
    together = forward(net, x, 32)
    alone = torch.cat([forward(net, x[i : i + 1], 32) for i in range(70)])
    order = torch.randperm(70, generator=torch.Generator().manual_seed(2))
    assert torch.equal(together, alone)
    assert torch.equal(forward(net, x[order], 32), together[order])
    torch.testing.assert_close(together, net(x))


def test_refuses_training_mode_and_leaves_the_mode_alone():
    net = dense()
    net[1].train()
    oracle = Oracle(net)
    with pytest.raises(ValueError, match="eval mode, got training mode"):
        oracle(records(3, 6))
    assert oracle.queries == 0
    assert net[1].training
    assert not net.training


def test_no_autocast_and_no_gradient():
    net, x = dense(), records(5, 6)
    plain = forward(net, x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(forward(net, x), plain)
        assert torch.is_autocast_enabled("cpu")
        assert net(x).dtype == torch.bfloat16
    assert not plain.requires_grad
    assert torch.is_grad_enabled()
    assert torch.equal(forward(net, x.double()), plain)


def test_channels_last_weights_answer_the_same():
    x = records(9, 3, 8, 8)
    last = conv().to(memory_format=torch.channels_last)
    torch.testing.assert_close(forward(last, x, 4), forward(conv(), x, 4))
    assert last[0].weight.is_contiguous(memory_format=torch.channels_last)


def test_nobody_asked_nothing_counted():
    oracle = Oracle(dense(), budget=0)
    assert oracle(torch.zeros(0, 6)).shape == (0, 4)
    assert oracle.queries == 0


def test_labels_are_the_argmax_before_any_mask():
    net, x = nn.Identity().eval(), torch.tensor([[0.0, 0.1, 0.0], [1.0, 1.0, 0.0]])
    assert Oracle(net, mask=[round_to(0)])(x).argmax(-1).tolist() == [0, 0]
    labels = Oracle(net, reveals="labels", mask=[round_to(0), lambda p: 1 / 0])(x)
    assert labels.tolist() == [1, 0]
    assert labels.dtype == torch.int64


def test_masks_go_from_left_to_right():
    z = torch.tensor([[2.0, 1.0, 0.0]])
    p = z.double().softmax(-1)
    assert torch.equal(answer(z, [top_k(2), temperature(5)]), temperature(5)(top_k(2)(p)))
    assert not torch.equal(answer(z, [top_k(2), temperature(5)]), answer(z, [temperature(5), top_k(2)]))
    assert torch.equal(Oracle(nn.Identity().eval(), mask=[top_k(2)])(z), top_k(2)(p))


def test_shadows_are_answered_as_the_target_is():
    z = torch.randn(3, 5, 2, 4, generator=torch.Generator().manual_seed(3))
    masks = [temperature(2), top_k(2)]
    one = torch.stack([answer(z[a, i], masks) for a in range(3) for i in range(5)])
    assert torch.equal(answer(z, masks), one.reshape(z.shape))


def test_probabilities_carry_log_odds_of_700():
    z = torch.zeros(1401, 10).index_copy(1, torch.tensor([3]), torch.arange(-700.0, 701.0)[:, None])
    y = torch.full((1401,), 3)
    p = Oracle(nn.Identity().eval())(z)
    torch.testing.assert_close(phi(p.log(), y), phi(z, y), rtol=1e-12, atol=1e-12)


def test_complete_by_hand():
    top3 = f64([[0.5, 0.3, 0.1, 0.0, 0.0]])
    assert complete(top3, 1e-12)[0].tolist() == pytest.approx([0.5, 0.3, 0.1, 0.05, 0.05])
    with pytest.warns(Floored, match="2 of 3 answers sit on the floor 0.05"):
        got = complete(f64([[1.0, 0.0, 0.0], [0.6, 0.5, 0.0], [0.0, 0.0, 0.0]]), 0.05)
    assert got.tolist() == [[1.0, 0.05, 0.05], [0.6, 0.5, 0.05], pytest.approx([1 / 3] * 3)]


def test_complete_leaves_unmasked_answers_alone():
    p = f64([[1.0, 1e-300, 0.0]])
    assert torch.equal(complete(p, None), p)
    assert log_answer(p, None).isfinite().all()
    assert log_answer(p, None)[0, 1].item() == pytest.approx(-300 * math.log(10))


@pytest.mark.parametrize("mask", [[top_k(1)], [top_k(3)], [round_to(1)], [round_to(3)]], ids=repr)
@pytest.mark.filterwarnings("ignore::glasslab.checks.Floored")
def test_completed_answers_have_a_logarithm(mask):
    g = torch.Generator().manual_seed(4)
    oracle = Oracle(nn.Identity().eval(), mask=mask)
    p = oracle(8 * torch.randn(200, 6, generator=g))
    before = p.clone()
    full = complete(p, oracle.floor)
    assert torch.equal(p, before)
    assert full.log().isfinite().all()
    for row, filled in zip(p.tolist(), full.tolist(), strict=True):
        zeros = max(sum(v == 0 for v in row), 1)
        share = max(0.0, 1 - sum(row)) / zeros
        assert filled == pytest.approx([max(v or share, oracle.floor) for v in row], rel=1e-9, abs=1e-15)


def test_floor_is_the_masks():
    assert Oracle(dense()).floor is None
    assert Oracle(dense(), mask=[round_to(3)]).floor == pytest.approx(0.0005)


def test_refuses_another_interface():
    oracle = Oracle(dense())
    oracle.reveals = "logits"  # the constructor's types are checked under pytest only
    with pytest.raises(ValueError, match="reveals must be 'probabilities' or 'labels', got 'logits'"):
        oracle.__post_init__()


def test_two_oracles_do_not_mix():
    a, b = Oracle(dense(), budget=5), Oracle(dense(), budget=5)
    a(records(3, 6))
    assert (a.queries, b.queries) == (3, 0)


@pytest.fixture
def answered():
    model, x = Counting(nn.Linear(3, 2)), torch.randn(20, 3)
    z = forward(model, x)
    model.rows = 0
    return model, x, Oracle(model, answered=[Answered(x, z)]), Oracle(model)


@pytest.mark.parametrize("rows", [slice(None), slice(4, 9), slice(19, 20)], ids=str)
def test_what_is_answered_already_is_counted_and_not_asked_again(answered, rows):
    model, x, known, fresh = answered
    seen = known(x[rows])
    assert (model.rows, known.queries) == (0, len(x[rows]))
    assert torch.equal(seen, fresh(x[rows]))


@pytest.mark.parametrize(
    "other",
    [
        lambda x: x.clone(),  # other memory
        lambda x: x[:, [0, 2, 1]],  # other order of features
        lambda x: x[::2],  # other rows
        lambda x: x.flatten()[1:58].reshape(19, 3),  # shifted by one number
        lambda x: x[:1].expand(20, 3),  # one row again and again
        lambda x: torch.cat([x, x]),
    ],
)
def test_only_the_same_rows_are_known(answered, other):
    model, x, known, fresh = answered
    rows = other(x)
    assert torch.equal(known(rows), fresh(rows))
    assert model.rows > 0


def test_a_record_that_was_changed_is_asked_anew(answered):
    model, x, known, fresh = answered
    x[3] += 1
    assert torch.equal(known(x), fresh(x))
    assert model.rows > 0


def test_known_answers_respect_the_budget_and_the_masks(answered):
    model, x, known, _ = answered
    with pytest.raises(BudgetExceeded):
        replace(known, budget=19)(x)
    masked = replace(known, mask=[round_to(1)])(x)
    assert torch.equal(masked, known(x).round(decimals=1))
    assert torch.equal(replace(known, reveals="labels")(x), known(x).argmax(-1))
    assert model.rows == 0
