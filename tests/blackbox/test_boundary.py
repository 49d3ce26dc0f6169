import math
import warnings

import pytest
import torch
from torch import nn
from worlds import ridge

from blackbox import boundary as module
from blackbox.boundary import boundary
from glasslab.checks import Floored
from glasslab.metrics import auc
from glasslab.oracle import BudgetExceeded, Oracle
from glasslab.split import stream


class Watched(Oracle):
    """Remembers every row and its label."""

    def __call__(self, x):
        answer = super().__call__(x)
        self.seen = [*getattr(self, "seen", []), *zip(x, answer, strict=True)]
        return answer


class Ball(nn.Module):
    """Label 1 within a tiny ball, else 0: no random point finds it."""

    def __init__(self, centre):
        super().__init__()
        self.register_buffer("centre", centre)

    def forward(self, x):
        inside = ((x - self.centre).norm(dim=1) < 0.05).float()
        return torch.stack([1 - inside, inside], 1)


class Rippled(nn.Module):
    """Three classes with curved borders."""

    def forward(self, x):
        return torch.stack([x[:, 0] + (9 * x[:, 1]).sin() / 3, x[:, 1:].mean(1) * 1.3, 0.4 + x[:, 2] ** 2], 1)


def linear(d, n, seed=0):
    """(model, x, y, exact distance of x to the border); all points of the border near x lie in [0, 1]."""
    g = stream(seed, "linear")
    w = torch.randn(d, generator=g)
    w = w / w.norm()
    model = nn.Linear(d, 2).eval()
    model.weight.data, model.bias.data = torch.stack([w, -w]), torch.stack([-w.sum(), w.sum()]) / 2
    x = 0.2 + 0.6 * torch.rand(n, d, generator=g)
    margin = (x - 0.5).double() @ w.double()
    return model, x, (margin < 0).long(), margin.abs()


def rippled(n=12, d=6):
    """(model, x in float64, y with every fifth label wrong)."""
    model = Rippled().eval()
    x = torch.rand(n, d, generator=stream("rippled"), dtype=torch.float64)
    y = model(x.float()).argmax(1)
    return model, x, torch.where(torch.arange(n) % 5 == 0, (y + 1) % 3, y)


def textbook(oracle, x, y, budget, directions, box, randoms, normals, own):
    """One record, one query after another; returns its distance and the queries."""
    spent = 0

    def other(p):
        nonlocal spent
        spent += 1
        return int(oracle(p[None])[0]) != y

    def clip(p):
        return torch.tensor([min(max(v, box[0]), box[1]) for v in p.tolist()], dtype=x.dtype)

    def far_from(p):
        return math.dist(p.tolist(), x.tolist())

    def search(near, far, rounds):
        for _ in range(rounds):
            middle = (near + far) / 2
            if other(middle):
                far = middle
            else:
                near = middle
        return near, far

    if other(x):
        return 0.0, spent
    far = None
    for u in randoms[: min(100, budget // 4)]:
        p = box[0] + (box[1] - box[0]) * u
        if other(p):
            far = p
            break
    if far is None:
        far = min((p for p in own if int(oracle(p[None])[0]) != y), key=far_from)
    rounds = min(math.ceil(math.log2(len(x) ** 0.5 / 0.01)), budget // 4)
    near, far = best = search(x, far, min(rounds, budget - spent))
    t = 1
    while (b := min(int(directions * t**0.5), budget - spent - rounds - 1)) > 0:
        reach = far_from(far)
        delta = 0.01 * reach if t > 1 else 0.1 * (box[1] - box[0])
        signs, moves = [], []
        for u in normals[:b]:
            probe = clip(far + delta * u / u.norm())
            signs.append(1 if other(probe) else -1)
            moves.append(probe - far)
        mean = sum(signs) / b
        v = sum((s if abs(mean) == 1 else s - mean) * m for s, m in zip(signs, moves, strict=True))
        v, size = v / v.norm(), reach / t**0.5
        for _ in range(min(rounds, budget - spent - rounds)):
            q = clip(far + size * v)
            if other(q):
                near, far = search(x, q, rounds)
                break
            size /= 2
        best = min(best, (near, far), key=lambda ends: far_from(ends[1]))
        t += 1
    return far_from(search(*best, budget - spent)[1]), spent


@pytest.fixture
def same_for_all(monkeypatch):
    """Every record draws the same numbers: what a batch finds, each alone must find. (randoms, normals)"""
    randoms, normals = (f(400, 6, generator=stream("draws")).double() for f in (torch.rand, torch.randn))

    def patch():
        tries = iter(randoms)
        monkeypatch.setattr(torch, "rand", lambda *shape, generator: next(tries).expand(shape))
        monkeypatch.setattr(
            torch, "randn", lambda *shape, generator: normals[: shape[1]].expand(shape).clone()
        )

    yield patch, randoms, normals
    monkeypatch.undo()


@pytest.mark.parametrize(("budget", "rows"), [(7, 8192), (40, 8192), (90, 50), (160, 8192), (160, 50)])
def test_equals_the_textbook_loop(budget, rows, same_for_all, monkeypatch):
    model, x, y = rippled(n=10)
    own = torch.rand(30, 6, generator=stream("own"), dtype=torch.float64)
    patch, randoms, normals = same_for_all
    patch()
    monkeypatch.setattr(module, "ROWS", rows)
    oracle, slow = (Oracle(model, reveals="labels", batch=16) for _ in range(2))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fast = boundary(
            oracle, x, y, generator=stream(0), budget=budget, directions=12, start=own, box=(0.0, 1.0)
        )
    told = [
        textbook(slow, *record, budget, 12, (0.0, 1.0), randoms, normals, own)
        for record in zip(x, y.tolist(), strict=True)
    ]
    torch.testing.assert_close(fast, torch.tensor([v for v, _ in told], dtype=torch.float64))
    assert oracle.queries == sum(spent for _, spent in told) + len(caught) * len(own)
    assert {spent for _, spent in told} == {1, budget}


def test_a_linear_border_is_met_within_two_percent():
    model, x, y, margin = linear(d=10, n=40)
    oracle = Oracle(model, reveals="labels")
    ratio = boundary(oracle, x, y, generator=stream(0), box=(0.0, 1.0)) / margin
    assert ratio.max() < 1.02
    assert ratio.min() > 1 - 1e-4
    assert oracle.queries == 40 * 2500


@pytest.mark.filterwarnings("ignore::glasslab.checks.Floored")
def test_more_queries_come_nearer():
    model, x, y, margin = linear(d=30, n=60)
    mean = []
    for budget in (10, 20, 40, 100, 250, 1000):
        oracle = Oracle(model, reveals="labels")
        score = boundary(oracle, x, y, generator=stream(0), budget=budget, start=1 - x)
        mean.append(float((score / margin).median()))
    assert mean == sorted(mean, reverse=True)
    assert mean[-1] < 1.1


@pytest.mark.parametrize("budget", [4, 8, 13, 20, 30, 60, 61, 100, 250])
def test_a_budget_is_spent_to_the_last_query_and_no_further(budget):
    model, x, y, _ = linear(d=12, n=20)
    oracle = Oracle(model, reveals="labels")
    y = torch.where(torch.arange(20) < 6, 1 - y, y)
    start = torch.tensor([[0.1], [0.9]]).expand(2, 12) * model.weight[0].sign() % 1  # one on either side
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        score = boundary(oracle, x, y, generator=stream(0), budget=budget, start=start)
    assert oracle.queries == 6 + 14 * budget + 2 * len(caught)
    assert torch.equal(score == 0, torch.arange(20) < 6)
    assert score.isfinite().all()


@pytest.mark.parametrize("budget", [1, 2, 3, 9, 20, 57, 120])
@pytest.mark.filterwarnings("ignore::glasslab.checks.Floored")
def test_no_record_lives_on_the_budget_of_another(budget):
    model, x, y, _ = linear(d=4, n=12)
    for record in range(12):
        one, label = x[record : record + 1], y[record : record + 1]
        oracle = Oracle(model, reveals="labels", batch=8)
        score = boundary(oracle, one, label, generator=stream(record), budget=budget, start=1 - x)
        assert oracle.queries in (budget, budget + len(x))  # with those of the other records
        assert score.isfinite().all()


def test_the_distance_is_that_of_a_point_on_the_border():
    """Not of the last step, which lies beyond it: the point has another label, one just nearer has not."""
    model, x, y = rippled(n=12)
    for record in range(12):
        oracle = Watched(model, reveals="labels")
        one = x[record : record + 1]
        score = boundary(
            oracle, one, y[record : record + 1], generator=stream(record), budget=300, directions=20
        )
        if score == 0:
            continue
        points, label = (torch.stack(part) for part in zip(*oracle.seen, strict=True))
        reach, other = (points - one).norm(dim=1), label != y[record]
        gap = (reach[other] - score).abs()
        assert gap.min() < 1e-9
        nearest = points[other][gap.argmin()] - one[0]
        ray = (points - one) @ nearest / nearest.norm()
        on_ray = ((points - one) - ray[:, None] * nearest / nearest.norm()).norm(dim=1) < 1e-9
        assert ray[on_ray & ~other].max() > 0.99 * score[0]


def test_a_misclassified_record_is_at_zero_and_costs_one_query():
    model, x, y, _ = linear(d=5, n=10)
    oracle = Oracle(model, reveals="labels")
    assert torch.equal(boundary(oracle, x, 1 - y, generator=stream(0)), torch.zeros(10).double())
    assert oracle.queries == 10


def hidden(n=8):
    """A world in which only the last record lies in the ball, and no other record finds the ball."""
    centre = torch.full((5,), 0.7)
    x = torch.cat([0.6 * torch.rand(n - 1, 5, generator=stream("hidden")), centre[None]])
    return Ball(centre).eval(), x, (torch.arange(n) == n - 1).long()


def test_no_border_found_is_the_farthest_corner_and_counted():
    model, x, y = hidden()
    oracle = Oracle(model, reveals="labels")
    with pytest.warns(Floored, match="7 of 8 distances are the farthest corner's: no boundary"):
        score = boundary(oracle, x, y, generator=stream(0), budget=400, box=(0.0, 1.0))
    for i in range(7):
        corner = [0.0 if v > 0.5 else 1.0 for v in x[i].tolist()]
        assert score[i].item() == pytest.approx(math.dist(corner, x[i].tolist()), rel=1e-6)
    assert 0.04 < score[7] < 0.051
    assert oracle.queries == 7 * 101 + 400


def test_a_start_of_the_attackers_own_is_the_nearest_with_another_label():
    model, x, y = hidden()
    own = torch.cat([x[:3] + 0.001, x[7:] + 0.01, x[7:] + 0.02])  # the nearest have the same label
    oracle = Watched(model, reveals="labels")
    with pytest.warns(Floored, match="7 of 8 records start from another record, and 5 were asked for beside"):
        score = boundary(oracle, x, y, generator=stream(0), budget=400, start=own, box=(0.0, 1.0))
    exact = (x[:7] - x[7]).double().norm(dim=1) - 0.05
    assert ((score[:7] / exact) > 0.999).all()
    assert ((score[:7] / exact) < 1.1).all()
    assert oracle.queries == 8 * 400 + 5
    first = [(own[3] + record) / 2 for record in x[:7]]  # of the search from that start
    rows = torch.stack([row for row, _ in oracle.seen])
    assert all(bool((rows == middle).all(1).any()) for middle in first)


def test_own_records_are_not_asked_for_where_random_points_do():
    model, x, y, _ = linear(d=5, n=10)
    oracle = Oracle(model, reveals="labels")
    boundary(oracle, x, y, generator=stream(0), budget=100, start=x + 0.01)
    assert oracle.queries == 10 * 100


@pytest.mark.filterwarnings("ignore::glasslab.checks.Floored")
def test_a_model_of_one_label_has_no_border():
    model, x, _, _ = linear(d=5, n=10)
    model.weight.data.zero_()
    model.bias.data = torch.tensor([0.0, 1.0])
    one = torch.ones(10).long()
    for start in (None, x + 0.01):
        with pytest.raises(ValueError, match="oracle must know two labels, got only label 1"):
            boundary(Oracle(model, reveals="labels"), x, one, generator=stream(0), start=start)
    all_wrong = boundary(Oracle(model, reveals="labels"), x, 1 - one, generator=stream(0))
    assert torch.equal(all_wrong, torch.zeros(10).double())  # nothing is sought


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.eye(4)}, "x must be continuous, got a table of zeros and ones: noise_robustness"),
        ({"x": torch.full((4, 3), torch.nan)}, "x must be finite, got 12 NaN"),
        ({"x": torch.full((4, 3), 0.5)}, "box must hold 0.5 .. 0.5 and have width"),
        ({"start": torch.full((2, 3), torch.inf)}, "start must be finite, got 6"),
        ({"start": torch.zeros(2, 4)}, r"start must hold records as x does, \[3\], got \[4\]"),
        ({"box": (0.0, 0.5)}, "box must hold 0 .. 0.9 and have width, got 0 .. 0.5"),
        ({"budget": 0}, "budget must be 1 or more, got 0"),
        ({"directions": 0}, "directions must be 1 or more, got 0"),
    ],
)
def test_refuses_what_cannot_be_searched(change, message):
    x = torch.tensor([[0.0, 0.1, 0.2], [0.3, 0.4, 0.5], [0.6, 0.7, 0.8], [0.9, 0.1, 0.2]])
    given = {"x": x, "y": torch.zeros(4).long(), **change}
    oracle = Oracle(nn.Linear(given["x"].shape[1], 2).eval(), reveals="labels")
    with pytest.raises(ValueError, match=message):
        boundary(oracle, **given, generator=stream(0))
    assert oracle.queries == 0


def test_pictures_of_zeros_and_ones_are_not_refused():
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 2)).eval()
    net[1].bias.data = -net[1].weight.data.sum(1) / 2  # either label in one half of the box
    x = (torch.rand(6, 1, 4, 4, generator=stream(0)) < 0.5).float()
    score = boundary(Oracle(net, reveals="labels"), x, net(x).argmax(1), generator=stream(0), budget=50)
    assert (score > 0).all()


def test_pictures_are_asked_for_as_pictures():
    model, x, y, _ = linear(d=12, n=6)
    net = nn.Sequential(nn.Flatten(), model).eval()
    flat = boundary(Oracle(model, reveals="labels"), x, y, generator=stream(0), budget=80)
    oracle = Watched(net, reveals="labels")
    assert torch.equal(flat, boundary(oracle, x.view(6, 3, 2, 2), y, generator=stream(0), budget=80))
    assert {row.shape for row, _ in oracle.seen} == {(3, 2, 2)}


def test_probabilities_are_read_as_labels():
    model, x, y = rippled()
    by_label, by_p = (
        boundary(Oracle(model, reveals=what), x, y, generator=stream(0), budget=80)
        for what in ("labels", "probabilities")
    )
    assert torch.equal(by_label, by_p)


@pytest.mark.parametrize("box", [None, (0.1, 0.9)])
def test_asks_for_nothing_outside_the_box(box):
    model, x, y, _ = linear(d=8, n=10)
    oracle = Watched(model, reveals="labels")
    boundary(oracle, x, y, generator=stream(0), budget=300, box=box)
    rows = torch.stack([row for row, _ in oracle.seen])
    low, high = box or (x.min(), x.max())
    assert low - 1e-6 <= rows.min() < low + 0.02  # it is used up to its walls
    assert high - 0.02 < rows.max() <= high + 1e-6


def test_arguments_and_the_global_generator_are_left_alone():
    model, x, y = rippled()
    own = x[:3] / 2
    before, state = [t.clone() for t in (x, y, own)], torch.get_rng_state()
    one, two, other = (
        boundary(Oracle(model, reveals="labels"), x, y, generator=stream(s), budget=60, start=own)
        for s in (0, 0, 1)
    )
    assert all(torch.equal(a, b) for a, b in zip(before, (x, y, own), strict=True))
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("short", [1, 500, 1991])
def test_an_oracle_that_runs_dry_raises(short):
    model, x, y, _ = linear(d=5, n=20)
    oracle = Oracle(model, reveals="labels", budget=20 * 100 - short)
    with pytest.raises(BudgetExceeded):
        boundary(oracle, x, y, generator=stream(0), budget=100)
    assert oracle.queries <= 20 * 100 - short
    assert short < 1981 or oracle.queries == 0  # n - 1: not even the clean records are answered


def test_finds_a_planted_leak():
    game, truth = ridge(leaks=True, seed=0)
    oracle = Oracle(game.model, reveals="labels")
    assert auc(boundary(oracle, game.x, game.y, generator=stream(0), budget=40), truth) > 0.7
