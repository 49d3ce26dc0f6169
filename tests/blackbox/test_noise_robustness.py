import pytest
import torch
from scipy.stats import norm
from torch import nn
from worlds import ridge

from blackbox import noise_robustness as module
from blackbox.noise_robustness import best_level, levels, noise_robustness
from glasslab.metrics import auc
from glasslab.oracle import BudgetExceeded, Oracle
from glasslab.split import stream


class First(nn.Module):
    """The label is the first feature, rounded."""

    def forward(self, x):
        return torch.stack([0.5 - x[:, 0], x[:, 0] - 0.5], 1)


def asked(model, **settings):
    return Oracle(model.eval(), reveals="labels", **settings)


def world(kind, n=20, d=12):
    """(model, x, y), a fifth of the labels wrong."""
    g = stream("noise", kind)
    model = nn.Sequential(nn.Linear(d, 16), nn.ReLU(), nn.Linear(16, 3)).eval()
    for w in model.parameters():
        w.data = torch.randn(w.shape, generator=g)
    x = torch.rand(n, d, generator=g)
    x = (x < 0.5).float() if kind == "binary" else x
    y = model(x).argmax(1)
    return model, x, torch.where(torch.arange(n) % 5 == 0, (y + 1) % 3, y)


@pytest.mark.parametrize("kind", ["binary", "gaussian"])
def test_equals_the_textbook_loop(kind):
    model, x, y = world(kind)
    N, level = 30, 0.2
    slow, g = [], stream(0)
    right = [i for i in range(20) if int(model(x[i : i + 1]).argmax()) == y[i]]
    draw = (torch.rand if kind == "binary" else torch.randn)(len(right) * N, 12, generator=g).tolist()
    for i in range(20):
        kept = 0
        for k in range(N) if i in right else []:
            noise = draw[right.index(i) * N + k]
            if kind == "binary":
                copy = [1 - v if u < level else v for v, u in zip(x[i].tolist(), noise, strict=True)]
            else:
                copy = [v + level * u for v, u in zip(x[i].tolist(), noise, strict=True)]
            kept += int(model(torch.tensor([copy])).argmax()) == int(y[i])
        slow.append(kept / N)
    oracle = asked(model)
    fast = noise_robustness(oracle, x, y, generator=stream(0), N=N, level=level)
    assert torch.equal(fast, torch.tensor(slow, dtype=torch.float64))
    assert oracle.queries == 20 + 16 * N
    assert len(fast.unique()) > 5


@pytest.mark.parametrize("level", [0.5, 1.0, 3.0])
def test_gaussian_noise_crosses_a_linear_border_as_often_as_the_normal_law_says(level):
    margin = torch.tensor([0.1, 0.5, 1.0, 2.0])
    x = torch.stack([0.5 + margin, torch.zeros(4), torch.ones(4)], 1)
    share = noise_robustness(
        asked(First()), x, torch.ones(4).long(), generator=stream(0), N=4000, level=level
    )
    assert (share - torch.tensor(norm.cdf(margin / level))).abs().max() < 4 * 0.5 / 4000**0.5


@pytest.mark.parametrize("level", [0.05, 0.3, 0.5])
def test_a_feature_flips_as_often_as_it_is_told_to(level):
    x = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    share = noise_robustness(
        asked(First()), x, torch.tensor([1, 0]), generator=stream(0), N=4000, level=level
    )
    assert (share - (1 - level)).abs().max() < 4 * 0.5 / 4000**0.5


def test_features_flip_one_by_one():
    """Two features decide together: their flips are independent."""
    x = torch.tensor([[1.0, 0.0]])
    either = nn.Linear(2, 2).eval()  # label 1 where the first holds or the second
    either.weight.data, either.bias.data = torch.tensor([[0.0, 0.0], [1.0, 1.0]]), torch.tensor([0.5, 0.0])
    share = noise_robustness(asked(either), x, torch.tensor([1]), generator=stream(0), N=4000, level=0.5)
    assert abs(share.item() - 0.75) < 4 * 0.5 / 4000**0.5


@pytest.mark.parametrize("rows", [1, 7, 64, 8192])
def test_each_record_is_asked_for_with_its_own_copies(rows, monkeypatch):
    """Every feature is flipped, so that a copy's label is certain: 1 - x, in whatever chunks it comes."""
    model, x, y = world("binary")
    monkeypatch.setattr(module, "ROWS", rows)
    monkeypatch.setattr(torch, "rand", lambda shape, generator: torch.zeros(shape))
    oracle = asked(model)
    share = noise_robustness(oracle, x, y, generator=stream(0), N=5, level=0.1)
    expected = (model(x).argmax(1) == y) & (model(1 - x).argmax(1) == y)
    assert torch.equal(share, expected.double())
    assert 0 < expected.sum() < 16
    assert oracle.queries == 20 + 16 * 5


def test_a_misclassified_record_is_at_zero_and_costs_one_query():
    model, x, y = world("gaussian")
    wrong = (model(x).argmax(1) + 1) % 3
    oracle = asked(model)
    assert torch.equal(noise_robustness(oracle, x, wrong, generator=stream(0)), torch.zeros(20).double())
    assert oracle.queries == 20


def test_the_kind_follows_the_features():
    model, x, y = world("binary")
    scores = [
        noise_robustness(asked(model), x, y, generator=stream(0), N=40, kind=kind, level=0.4)
        for kind in ("auto", "binary", "gaussian")
    ]
    assert torch.equal(scores[0], scores[1])
    assert not torch.equal(scores[0], scores[2])
    model, x, y = world("gaussian")
    auto, gaussian = (
        noise_robustness(asked(model), x, y, generator=stream(0), N=40, kind=kind)
        for kind in ("auto", "gaussian")
    )
    assert torch.equal(auto, gaussian)


def test_the_levels_of_binary_features_count_flips():
    x = (torch.rand(9, 100, generator=stream(0)) < 0.3).float()
    assert levels(x) == [0.01, 0.02, 0.03, 0.05, 0.1]
    assert levels(x[:, :6]) == pytest.approx([1 / 6, 2 / 6, 3 / 6])  # never more than half
    assert levels(x[:, :1]) == [0.5]


def test_the_levels_of_other_features_are_in_their_own_units():
    x = torch.randn(400, 7, generator=stream(0)) * torch.tensor([1.0, 2, 3, 1, 1, 1, 1]) + 9
    spread = (sum(float(x[:, j].double().var(correction=0)) for j in range(7)) / 7) ** 0.5
    assert levels(x) == pytest.approx([spread * k for k in (0.1, 0.25, 0.5, 1, 2)])
    assert levels(10 * x) == pytest.approx([10 * v for v in levels(x)], rel=1e-4)


@pytest.mark.parametrize(("kind", "place"), [("binary", 1), ("gaussian", 2)])
def test_the_default_level_is_one_of_them(kind, place):
    model, x, y = world(kind)
    default, told = (
        noise_robustness(asked(model), x, y, generator=stream(0), N=40, level=level)
        for level in (None, levels(x)[place])
    )
    assert torch.equal(default, told)
    small = (torch.arange(4)[:, None] % 2).float()
    noise_robustness(asked(First()), small, small[:, 0].long(), generator=stream(0), N=4)  # one level only


def test_the_best_level_is_the_one_whose_scores_tell_best():
    """Members lie far from the border, others near: weak noise does not reach it, strong drowns it."""
    member = torch.arange(200) % 2 == 0
    x = torch.stack([0.5 + torch.where(member, 0.6, 0.4), torch.rand(200, generator=stream(0))], 1)
    y = torch.ones(200).long()
    oracle = asked(First())
    best = best_level(oracle, x, y, member, generator=stream(0), N=100)
    assert oracle.queries == 5 * (200 + 200 * 100)
    areas = [
        auc(noise_robustness(asked(First()), x, y, generator=stream(1), N=100, level=level), member)
        for level in levels(x)
    ]
    assert best == levels(x)[areas.index(max(areas))]
    assert max(areas) > 0.9
    turned = best_level(oracle, x, y, ~member, generator=stream(0), N=100)
    assert turned != best  # of an AUC below one half the least bad


def test_of_equal_levels_the_weakest_is_taken():
    x = torch.tensor([[9.0], [8.0], [9.0], [8.0]])
    member = torch.tensor([True, True, False, False])
    oracle = asked(First())
    assert best_level(oracle, x, torch.ones(4).long(), member, generator=stream(0), N=9) == levels(x)[0]


def test_probabilities_are_read_as_labels():
    model, x, y = world("gaussian")
    by_label, by_p = (
        noise_robustness(Oracle(model, reveals=what), x, y, generator=stream(0), N=20)
        for what in ("labels", "probabilities")
    )
    assert torch.equal(by_label, by_p)


def test_pictures_keep_their_shape():
    model, x, y = world("gaussian")
    net = nn.Sequential(nn.Flatten(), model).eval()
    flat = noise_robustness(asked(model), x, y, generator=stream(0), N=20)
    assert torch.equal(flat, noise_robustness(asked(net), x.view(20, 3, 2, 2), y, generator=stream(0), N=20))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.full((4, 3), torch.nan)}, "x must be finite, got 12 NaN"),
        ({"kind": "binary"}, "x must hold zeros and ones where kind is 'binary', got 12 other"),
        ({"N": 0}, "N, the number of noisy copies, must be 1 or more, got 0"),
        ({"level": 0.0}, "level must lie above 0, and for flips not above 1/2, got 0"),
        ({"level": torch.nan}, "level must lie above 0"),
        (
            {"x": torch.ones(4, 3), "level": 0.6},
            "level must lie above 0, and for flips not above 1/2, got 0.6",
        ),
        ({"x": torch.full((4, 3), 0.5)}, "level must lie above 0"),  # without spread there is no unit
    ],
)
def test_refuses(change, message):
    given = {"x": torch.full((4, 3), 0.3) + torch.eye(4)[:, :3] / 2, "y": torch.zeros(4).long(), **change}
    oracle = asked(First())
    with pytest.raises(ValueError, match=message):
        noise_robustness(oracle, **given, generator=stream(0))
    assert oracle.queries == 0


def test_arguments_and_the_global_generator_are_left_alone():
    model, x, y = world("binary")
    before, state = [x.clone(), y.clone()], torch.get_rng_state()
    one, two, other = (noise_robustness(asked(model), x, y, generator=stream(s), N=40) for s in (0, 0, 1))
    assert torch.equal(before[0], x)
    assert torch.equal(before[1], y)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("budget", [19, 20, 20 + 16 * 30 - 1])
def test_an_oracle_that_runs_dry_raises(budget):
    model, x, y = world("gaussian")
    oracle = asked(model, budget=budget)
    with pytest.raises(BudgetExceeded):
        noise_robustness(oracle, x, y, generator=stream(0), N=30)
    assert oracle.queries == (0 if budget < 20 else 20)


def test_finds_a_planted_leak():
    game, truth = ridge(leaks=True, seed=0)
    score = noise_robustness(asked(game.model), game.x, game.y, generator=stream(0), N=30)
    assert auc(score, truth) > 0.7
