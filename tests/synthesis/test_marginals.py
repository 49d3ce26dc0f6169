"""marginals: frequencies, labels, queries; what it takes from whom."""

import pytest
import torch
from torch import nn

from glasslab.checks import Floored
from glasslab.data import Data
from glasslab.masks import round_to
from glasslab.oracle import Oracle
from glasslab.split import stream
from synthesis.features import binary, draw, integer, one_of, real, resolved
from synthesis.marginals import marginals


def baskets(n=300, d=10, classes=3, seed=0):
    g = stream(seed, "baskets")
    p = torch.rand(classes, d, generator=g)
    y = torch.arange(n) % classes
    return Data((torch.rand(n, d, generator=g) < p[y]).float(), y, classes, "baskets")


def target(d=10, classes=3, seed=0, scale=3.0):
    model = nn.Linear(d, classes)
    with torch.no_grad():
        for w in model.parameters():
            w.copy_(scale * torch.randn(w.shape, generator=stream(seed, "target")))
    return model.eval()


def textbook(p, n, generator):
    """One bit at a time."""
    u = torch.rand(n, len(p), generator=generator)
    return [[1.0 if u[i][j] < p[j] else 0.0 for j in range(len(p))] for i in range(n)]


def test_a_record_is_drawn_bit_by_bit_and_labelled_by_the_target():
    data, model = baskets(), target()
    made = marginals(data, 25, generator=stream(1), oracle=Oracle(model))
    assert made.x.tolist() == textbook(data.x.mean(0), 25, stream(1))
    for x, y, confidence in zip(made.x, made.y, made.confidence, strict=True):
        p = model(x).detach().double().softmax(0)
        assert (int(y), float(confidence)) == (int(p.argmax()), pytest.approx(float(p.max())))


def test_frequencies_are_those_of_the_statistics():
    """Within 4 standard errors, each feature and category; and independent, each pair."""
    p = torch.tensor([0.0, 0.02, 0.3, 0.9, 1.0])
    values = torch.tensor([[1.0], [2.0], [2.0], [7.0]])
    held = [
        binary([0, 2, 4, 6, 8], p),
        one_of([1, 3, 5], [0.2, 0.5, 0.3]),
        integer(0, 9, [7], values),
        real(-90, 90, [9], normal=(3.0, 2.0)),
    ]
    n = 20_000
    x = marginals(held, n, generator=stream(0), oracle=Oracle(target())).x
    want = torch.zeros(10)
    want[[0, 2, 4, 6, 8]], want[[1, 3, 5]] = p, torch.tensor([0.2, 0.5, 0.3])
    flat = [0, 1, 2, 3, 4, 5, 6, 8]
    share, error = x.mean(0)[flat], (want * (1 - want) / n).sqrt()[flat]
    assert ((share - want[flat]).abs() <= 4 * error).all()
    assert (x[:, [1, 3, 5]].sum(1) == 1).all()
    for value, share in ((1, 0.25), (2, 0.5), (7, 0.25)):
        assert abs(float((x[:, 7] == value).float().mean()) - share) < 4 * (share * (1 - share) / n) ** 0.5
    assert abs(x[:, 9].mean() - 3) < 4 * 2 / n**0.5
    assert abs(x[:, 9].std() - 2) < 4 * 2 / (2 * n) ** 0.5
    pair = torch.corrcoef(x[:, [4, 6, 1, 7, 9]].T)
    assert (pair - torch.eye(5)).abs().max() < 4 / n**0.5


def test_what_ties_features_together_is_lost():
    """Records of two kinds, all ones or all zeros; drawn whole, they would be so again."""
    x = (torch.arange(100)[:, None] % 2).float().expand(-1, 10)
    made = marginals(
        Data(x, torch.arange(100) % 2, 2, "kinds"), 500, generator=stream(0), oracle=Oracle(target())
    )
    assert ((made.x.sum(1) > 0) & (made.x.sum(1) < 10)).float().mean() > 0.9


def test_by_class_draws_from_the_class_that_labels():
    data = baskets(600)
    made = marginals(data, 30_001, generator=stream(0), by_class=True)
    assert torch.bincount(made.y).tolist() == [10_001, 10_000, 10_000]
    for c in range(3):
        p, share = data.x[data.y == c].mean(0), made.x[made.y == c].mean(0)
        assert ((share - p).abs() <= 4 * (p * (1 - p) / 10_000).sqrt()).all()
        assert (share - data.x[data.y == (c + 1) % 3].mean(0)).abs().max() > 0.2
    assert made.confidence.isnan().all()
    assert not made.queries.any()
    assert made.method.startswith("marginals-by-class:")


def test_every_query_is_counted_and_every_record_is_there():
    oracle = Oracle(target(), budget=50)
    made = marginals(baskets(), 50, generator=stream(0), oracle=oracle)
    assert oracle.queries == int(made.queries.sum()) == 50
    assert made.success.all()
    assert torch.equal(made.wanted, made.y)
    assert made.reasons() == {"sampled": 50}
    assert made.data(3).name == f"synthetic:{made.method}"
    assert made.method.startswith("marginals:")
    with pytest.raises(ValueError, match="n must be at most what the budget leaves, 0 queries, got 1"):
        marginals(baskets(), 1, generator=stream(0), oracle=oracle)
    oracle = Oracle(target(), budget=49)
    with pytest.raises(ValueError, match="49 queries, got 50"):
        marginals(baskets(), 50, generator=stream(0), oracle=oracle)
    assert oracle.queries == 0


def test_behind_labels_and_masks():
    model, data = target(), baskets()
    plain, hidden, rounded = (
        marginals(data, 40, generator=stream(0), oracle=oracle)
        for oracle in (Oracle(model), Oracle(model, reveals="labels"), Oracle(model, mask=(round_to(1),)))
    )
    assert torch.equal(plain.y, hidden.y)
    assert hidden.confidence.unique().tolist() == [1.0]
    assert torch.equal(rounded.confidence, plain.confidence.round(decimals=1))


def test_the_shape_of_records_is_kept():
    g = stream(0)
    images = Data(torch.rand(30, 1, 4, 4, generator=g), torch.arange(30) % 3, 3, "images")
    model = nn.Sequential(nn.Flatten(), target(16)).eval()
    made = marginals(images, 9, generator=g, oracle=Oracle(model))
    assert made.x.shape == (9, 1, 4, 4)
    assert marginals(images, 9, generator=g, by_class=True).x.shape == (9, 1, 4, 4)
    for pixel in ((0, 0), (2, 3)):
        assert set(made.x[:, 0, *pixel].tolist()) <= set(images.x[:, 0, *pixel].tolist())
    held = [real(0, 1, values=images.x.flatten(1))]
    held = resolved(held, 16)
    assert marginals(held, 9, generator=g, oracle=Oracle(model), shape=(1, 4, 4)).x.shape == (9, 1, 4, 4)
    assert marginals(held, 9, generator=g, oracle=Oracle(target(16))).x.shape == (9, 16)


def test_kinds_may_be_told():
    """Whole groups, where a guess takes single bits."""
    g = stream(0)
    data = Data(torch.eye(5)[torch.randint(5, (40,), generator=g)], torch.arange(40) % 3, 3, "groups")
    told, guessed = (
        marginals(data, 99, generator=g, oracle=Oracle(target(5)), features=kinds)
        for kinds in ([one_of(range(5))], None)
    )
    assert (told.x.sum(1) == 1).all()
    assert not (guessed.x.sum(1) == 1).all()
    both = marginals(data, 99, generator=g, by_class=True, features=[one_of(range(5))])
    assert (both.x.sum(1) == 1).all()


def test_the_generator_decides_all_and_arguments_are_left_alone():
    data, model = baskets(), target()
    held, weights = data.x.clone(), [w.clone() for w in model.parameters()]
    before = torch.get_rng_state()

    def made(seed, **more):
        more = more or {"oracle": Oracle(model)}
        return marginals(data, 20, generator=stream(seed), **more)

    assert torch.equal(made(0).x, made(0).x)
    assert made(0).method == made(0).method
    assert made(0).method != made(1).method
    assert not torch.equal(made(0).x, made(1).x)
    assert torch.equal(made(0, by_class=True).x, made(0, by_class=True).x)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(held, data.x)
    assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))
    assert not model.training


def test_a_class_of_one_record_is_copied_and_told():
    data = Data(baskets(4).x, torch.tensor([0, 0, 1, 2]), 3, "few")
    with pytest.warns(Floored, match="2 of 3 classes have one record, of which theirs are copies"):
        made = marginals(data, 9, generator=stream(0), by_class=True)
    assert torch.equal(made.x[made.y == 2], data.x[3:].expand(3, -1))


class Broken(nn.Module):
    def forward(self, x):
        return torch.full((len(x), 3), torch.nan)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"n": 0}, "n must be 1 or more, got 0"),
        ({"oracle": None}, "oracle must be given, to label the records, got None"),
        ({"by_class": True}, "oracle must be None, as by_class takes the class as label, got an oracle"),
        ({"shape": (10,)}, r"shape must be left out where records tell it, got \(10,\)"),
        (
            {"statistics": [binary([0, 1])]},
            "statistics must give each feature a marginal, got none for Binary",
        ),
        ({"statistics": []}, "statistics must hold one feature or more, got none"),
        (
            {"statistics": [binary([0, 1], 0.5)], "by_class": True, "oracle": None},
            r"statistics must be records \(Data\) for by_class, got 1 features",
        ),
        (
            {"statistics": [binary([0, 1], 0.5)], "features": [binary()]},
            r"statistics must be records \(Data\) for features, got 1 features",
        ),
        ({"statistics": [binary([0, 1], 0.5)], "shape": (3,)}, r"shape must hold 2 features, got \(3,\)"),
        (
            {
                "statistics": Data(baskets(2).x, torch.tensor([0, 2]), 3, "x"),
                "by_class": True,
                "oracle": None,
            },
            "statistics must hold every class with by_class, got none of class 1",
        ),
        ({"oracle": Oracle(Broken())}, "oracle must answer with numbers, got NaN for 5 of 5 records"),
    ],
)
def test_refuses(wrong, said):
    if isinstance(wrong.get("oracle"), Oracle):
        wrong["oracle"].model.eval()
    given = {"statistics": baskets(), "n": 5, "oracle": Oracle(target()), "generator": stream(0)} | wrong
    with pytest.raises(ValueError, match=f"^{said}$"):
        marginals(given.pop("statistics"), given.pop("n"), **given)


def test_features_that_are_all_known_may_be_mixed():
    held = resolved([binary([1, 2], 0.5), real(0, 1, values=torch.ones(3, 1))], 3)
    x = draw(held, 5, stream(0))
    assert torch.equal(marginals(held, 5, generator=stream(0), oracle=Oracle(target(3))).x, x)
