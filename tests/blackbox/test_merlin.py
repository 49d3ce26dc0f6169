import itertools
import math
import warnings
from fractions import Fraction

import pytest
import torch
from torch import nn
from worlds import ridge

from blackbox.merlin import Thresholds, merlin, morgan, morgan_thresholds, neighbours
from glasslab.checks import Floored
from glasslab.masks import round_to
from glasslab.metrics import auc
from glasslab.oracle import BudgetExceeded, Oracle
from glasslab.split import stream


class Bowl(nn.Module):
    """Log-odds top - steep |x|^2 + slope x for the first of two classes; it notes what it was asked."""

    def __init__(self, top=0.0, steep=0.0, slope=0.0):
        super().__init__()
        self.top, self.steep, self.slope = top, steep, slope
        self.asked = []

    def forward(self, x):
        self.asked.append(x)
        phi = self.top - self.steep * x.square().flatten(1).sum(1) + self.slope * x.flatten(1).sum(1)
        return torch.stack([phi, torch.zeros_like(phi)], 1)


def ask(model, x, y=None, seed=0, **settings):
    y = torch.zeros(len(x), dtype=torch.long) if y is None else y
    oracle = Oracle(model.eval(), batch=1 + settings.get("T", 100))  # whole records: nothing is filled up
    return neighbours(oracle, x, y, generator=stream(seed), **settings)


def textbook(model, x, y, T, sigma, seed=0):
    """(loss, ratio), record by record and copy by copy, from the log-softmax in Python's floats."""
    eta = torch.randn(len(x), T, x.shape[1], generator=stream(seed))

    def loss(row, label):
        z = model(row[None])[0].double().tolist()
        return max(z) + math.log(sum(math.exp(v - max(z)) for v in z)) - z[label]

    losses, ratios = [], []
    for i in range(len(x)):
        own, label = loss(x[i], int(y[i])), int(y[i])
        losses.append(own)
        ratios.append(sum(loss(x[i] + sigma * eta[i, t], label) > own for t in range(T)) / T)
    return losses, ratios


def test_equals_the_textbook_loop():
    g = stream(0, "net")
    net = nn.Linear(6, 4).eval()
    net.load_state_dict({"weight": torch.randn(4, 6, generator=g), "bias": torch.randn(4, generator=g)})
    net = nn.Sequential(net, nn.Tanh(), nn.Softshrink(0.1)).eval()  # flat in places: ties show
    x, y = torch.randn(20, 6, generator=g), torch.randint(4, (20,), generator=g)
    with torch.no_grad():
        losses, ratios = textbook(net, x, y, T=30, sigma=0.5)
    loss, ratio = ask(net, x, y, T=30, sigma=0.5)
    assert 0 < ratio.min() < ratio.max() < 1
    assert ratio.tolist() == ratios
    assert loss.tolist() == pytest.approx(losses, rel=1e-6)


def test_a_minimum_has_ratio_1_a_slope_one_half_and_a_maximum_0():
    x = torch.zeros(400, 5)
    assert (ask(Bowl(steep=3.0), x)[1] == 1).all()
    assert (ask(Bowl(steep=-3.0), x)[1] == 0).all()
    slope = ask(Bowl(slope=3.0), x)[1]
    assert abs(slope.mean() - 0.5) < 4 * 0.5 / math.sqrt(400 * 100)


@pytest.mark.parametrize("top", [20.0, 60.0, 300.0])
def test_a_sure_model_still_has_its_minima(top):
    """In float32 p is 1 from 17 on, and its logarithm 0."""
    assert (ask(Bowl(top=top, steep=10.0), torch.zeros(20, 5), sigma=0.1)[1] > 0.9).all()


def test_a_record_that_is_far_wrong_has_no_ceiling_of_loss():
    loss, ratio = ask(Bowl(top=-60.0, steep=10.0), torch.zeros(20, 5), sigma=0.1)
    assert (ratio > 0.9).all()
    assert loss.tolist() == pytest.approx([60.0] * 20)


def test_an_equal_loss_is_not_a_higher_one():
    assert (ask(Bowl(top=1.0), torch.zeros(20, 5))[1] == 0).all()


@pytest.mark.parametrize("slope", [5.0, -5.0])
def test_uniform_noise_goes_both_ways(slope):
    model = Bowl(slope=slope)
    ratio = ask(model, torch.zeros(300, 1), noise="uniform", sigma=0.5)[1]
    assert abs(ratio.mean() - 0.5) < 4 * 0.5 / math.sqrt(300 * 100)
    asked = torch.cat(model.asked)
    assert asked.abs().max() < 0.5
    assert asked.min() < -0.49
    assert asked.max() > 0.49


def test_the_noise_is_gaussian_of_that_width():
    model = Bowl()
    x = torch.full((60, 2), 7.0)
    ask(model, x, sigma=0.25)
    eta = torch.cat(model.asked).reshape(60, 101, 2) - 7
    assert (eta[:, 0] == 0).all()  # the record itself
    assert eta[:, 1:].std().item() == pytest.approx(0.25, rel=0.03)
    assert (eta.abs() > 0.5).double().mean().item() == pytest.approx(0.0455, abs=0.01)


def test_each_record_has_noise_of_its_own():
    model = Bowl(slope=1.0)
    ask(model, torch.zeros(50, 3))  # more rows than are asked at a time
    eta = torch.cat(model.asked).reshape(50, 101, 3)[:, 1:].flatten(0, 1)
    assert len(eta.unique(dim=0)) == 5000


def test_copies_are_cut_to_the_unit_interval_on_request_only():
    x = torch.rand(30, 4, generator=stream(0)).round()
    free, cut = Bowl(), Bowl()
    ask(free, x, sigma=0.3)
    ask(cut, x, sigma=0.3, clip=True)
    asked = torch.cat(free.asked)
    assert asked.min() < -0.5
    assert asked.max() > 1.5
    assert ((torch.cat(cut.asked) >= 0) & (torch.cat(cut.asked) <= 1)).all()


@pytest.mark.parametrize(("n", "T"), [(1, 1), (7, 100), (90, 100), (3, 5000)])
def test_it_asks_for_n_times_T_plus_1(n, T):
    oracle = Oracle(Bowl(steep=1.0).eval(), budget=n * (T + 1))
    y = torch.zeros(n, dtype=torch.long)
    assert (merlin(oracle, torch.zeros(n, 2), y, generator=stream(0), T=T) == 1).all()
    assert oracle.queries == n * (T + 1)
    short = Oracle(Bowl().eval(), budget=n * (T + 1) - 1)
    with pytest.raises(
        BudgetExceeded, match=f"{n * (T + 1)} queries asked, {n * (T + 1) - 1} left of a budget"
    ):
        merlin(short, torch.zeros(n, 2), y, generator=stream(0), T=T)
    assert short.queries == 0


def test_records_are_not_mixed_up_between_chunks():
    g = stream(0)
    x = torch.randn(200, 3, generator=g).index_fill(0, torch.tensor([0, 77, 199]), 0.0)
    y = torch.zeros(200, dtype=torch.long).index_fill(0, torch.tensor([199]), 1)
    loss, ratio = ask(Bowl(top=1.0, steep=10.0), x, y)
    assert ratio[[0, 77]].tolist() == [1, 1]
    assert ratio[199] == 0  # of the other class: a maximum
    phi = 1 - 10 * x.square().sum(1).double()
    expected = torch.nn.functional.softplus(torch.where(y == 0, -phi, phi))
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)


def test_images_are_records_too():
    assert (ask(Bowl(steep=1.0), torch.zeros(3, 1, 4, 4))[1] == 1).all()


def test_the_ratio_is_merlin_and_a_seed_gives_it_again():
    x, y = torch.zeros(20, 2), torch.zeros(20, dtype=torch.long)
    alone = [merlin(Oracle(Bowl(slope=1.0).eval()), x, y, generator=stream(seed)) for seed in (0, 0, 1)]
    assert torch.equal(alone[0], ask(Bowl(slope=1.0), x)[1])
    assert torch.equal(alone[0], alone[1])
    assert not torch.equal(alone[0], alone[2])


def test_what_is_tied_by_a_mask_or_by_float64_is_counted_once():
    oracle = Oracle(Bowl(top=9.0, steep=1.0).eval(), mask=(round_to(1),))
    with pytest.warns(Floored, match="9090 of 9090 answers sit on the floor 0.05") as caught:
        ratio = merlin(oracle, torch.zeros(90, 2), torch.zeros(90, dtype=torch.long), generator=stream(0))
    assert (ratio == 0).all()
    assert len(caught) == 1
    with pytest.warns(Floored, match="of 9090 log-odds clamped at [+]-700") as caught:
        ask(Bowl(top=1e4, steep=1.0), torch.zeros(90, 2))
    assert len(caught) == 1


def test_it_refuses_what_it_cannot_do():
    x, y = torch.zeros(3, 2), torch.zeros(3, dtype=torch.long)
    labels = Oracle(Bowl().eval(), reveals="labels")
    with pytest.raises(ValueError, match="^oracle must reveal probabilities to this attack, got labels$"):
        merlin(labels, x, y, generator=stream(0))
    for settings in ({"T": 0}, {"sigma": 0.0}, {"sigma": math.nan}):
        with pytest.raises(ValueError, match="T must be 1 or more and sigma above 0, got"):
            ask(Bowl(), x, **settings)


def test_merlin_finds_members_that_were_learned_by_heart():
    g = stream(0, "heart")
    x, y, member = (
        torch.randn(200, 20, generator=g),
        torch.randint(2, (200,), generator=g),
        torch.arange(200) < 100,
    )
    own, weight = x[:100], 3.0

    class Nearest(nn.Module):
        """Sure of its members' labels, the more so the nearer."""

        def forward(self, q):
            d = (q[:, None] - own).square().sum(-1)
            votes = torch.where(y[:100] == 1, 1.0, -1.0) * (-d).exp()
            return torch.stack([-weight * votes.sum(1), weight * votes.sum(1)], 1)

    ratio = merlin(Oracle(Nearest().eval()), x, y, generator=stream(0), T=50)
    assert auc(ratio, member) > 0.95


def shadow(n=60, levels=5, seed=0):
    """(loss, ratio, member) with ties in the ratio and in some losses."""
    g = stream(seed, "shadow")
    member = torch.rand(n, generator=g) < 0.5
    ratio = (torch.rand(n, generator=g) * 0.7 + 0.3 * member).mul(levels).round() / levels
    loss = (torch.randn(n, generator=g, dtype=torch.float64) - member.double()).exp()
    loss[::7] = loss[0]
    return loss, ratio.double(), member


def searched(loss, ratio, member):
    """Every triple of values there are: the best precision, then the most flagged, then the lowest triple."""
    least, best = max(20, len(loss) / 100), None
    rows = list(zip(loss.tolist(), ratio.tolist(), member.tolist(), strict=True))
    losses, levels = sorted(set(loss.tolist())), sorted(set(ratio.tolist()) - {0.0})
    for low, high, level in itertools.product(losses, losses, levels):
        flagged = [m for l, r, m in rows if low <= l <= high and r >= level]
        if len(flagged) >= least:
            key = (Fraction(sum(flagged), len(flagged)), len(flagged))
            if best is None or key > best[0]:
                best = (key, Thresholds(low, high, level))
    return best[1]


@pytest.mark.parametrize("seed", range(3))
def test_the_search_equals_trying_everything(seed):
    assert morgan_thresholds(*shadow(seed=seed)) == searched(*shadow(seed=seed))


def test_the_search_never_flags_fewer_than_it_must():
    for n in (25, 60, 5000):
        loss, ratio, member = shadow(n=n, levels=100)
        found = morgan_thresholds(loss, ratio, member)
        flagged = (loss >= found.low) & (loss <= found.high) & (ratio >= found.ratio)
        assert flagged.sum() >= max(20, n / 100)
        assert member[flagged].double().mean() >= member.double().mean()


def test_equal_precision_goes_to_the_thresholds_that_flag_more():
    member = torch.arange(80) < 40
    loss = torch.arange(80).double()
    found = morgan_thresholds(loss, member.double(), member)
    assert found == Thresholds(0.0, 39.0, 1.0)  # all members, at the lowest thresholds that flag them


def test_a_ratio_of_0_is_asked_for_only_where_there_are_too_few_others():
    loss, _, member = shadow()
    for others, level in ((20, 0.5), (19, 0.0)):
        ratio = torch.where(torch.arange(60) < others, 0.5, 0.0)
        assert morgan_thresholds(loss, ratio, member).ratio == level


def fpr_threshold(score, member, fpr):
    """The lowest score at or above which at most that share of the non-members lies."""
    outside = score[~member].tolist()
    fit = [v for v in score.tolist() if sum(s >= v for s in outside) <= Fraction(str(fpr)) * len(outside)]
    return min(fit, default=math.inf)


@pytest.mark.parametrize("alpha", [0.01, 0.1, 0.29])
def test_the_script_takes_both_loss_thresholds_and_merlins_at_given_fpr(alpha):
    loss, ratio, member = shadow(n=300, levels=100)
    found = morgan_thresholds(loss, ratio, member, rule="script", alpha=alpha)
    assert found.low == -fpr_threshold(-loss, member, 0.22)
    assert found.high == -fpr_threshold(-loss, member, 0.30)
    assert found.ratio == fpr_threshold(ratio, member, alpha)
    assert 0 < found.low < found.high


def test_the_script_flags_nobody_where_even_the_highest_ratio_flags_too_many():
    loss, ratio, member = shadow(levels=1)
    found = morgan_thresholds(loss, ratio, member, rule="script")
    assert found.ratio == math.inf


def test_morgans_score_is_the_ratio_in_the_band_and_one_less_elsewhere():
    loss, ratio, member = shadow()
    found = morgan_thresholds(loss, ratio, member)
    low, high = found.low, found.high
    l = torch.tensor([low, high, low - 1e-9, high + 1e-9, 1e3, (low + high) / 2], dtype=torch.float64)
    r = torch.tensor([0.25, 1.0, 0.75, 1.0, 0.0, 0.0])
    score = morgan(l, r, loss, ratio, member)
    assert score.tolist() == [0.25, 1.0, -0.25, 0.0, -1.0, 0.0]


@pytest.mark.parametrize("rule", ["grid", "script"])
def test_every_threshold_above_0_is_the_papers_decision(rule):
    loss, ratio, member = shadow(n=300, levels=20)
    found = morgan_thresholds(loss, ratio, member, rule=rule, alpha=0.2)
    score = morgan(loss, ratio, loss, ratio, member, rule=rule, alpha=0.2)
    for level in (0.05, 0.5, 1.0, found.ratio):
        decision = (loss >= found.low) & (loss <= found.high) & (ratio >= level)
        assert level > 0
        assert torch.equal(score >= level, decision)


@pytest.mark.parametrize("rule", ["grid", "script"])
def test_order_targets_and_arguments(rule):
    given = shadow(n=300, levels=20)
    before = [t.clone() for t in given]
    loss, ratio = (torch.rand(2, 50, generator=stream(1), dtype=torch.float64) for _ in range(2))
    together = morgan(loss, ratio, *given, rule=rule)
    p = torch.randperm(300, generator=stream(0))
    assert torch.equal(together, morgan(loss, ratio, *(t[p] for t in given), rule=rule))
    assert torch.equal(together[1], morgan(loss[1], ratio[1], *given, rule=rule))
    assert torch.equal(together.flip(1), morgan(loss.flip(1), ratio.flip(1), *given, rule=rule))
    assert all(torch.equal(a, b) for a, b in zip(given, before, strict=True))


def test_asking_leaves_the_records_alone():
    x = torch.randn(40, 3, generator=stream(0))
    before = x.clone()
    ask(Bowl(steep=1.0), x, clip=True)
    assert torch.equal(x, before)


def test_morgan_finds_what_merlin_and_the_loss_find_together():
    loss, ratio, member = shadow(n=4000, levels=100)
    l, r, truth = shadow(n=4000, levels=100, seed=1)
    assert auc(morgan(l, r, loss, ratio, member), truth) > 0.6
    found = morgan_thresholds(loss, ratio, member)
    flagged = (l >= found.low) & (l <= found.high) & (r >= found.ratio)
    assert truth[flagged].double().mean() > 0.8


def test_a_game_with_real_models_can_be_played():
    game, _ = ridge(leaks=True, seed=0, n=120, d=60)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        target = neighbours(game.oracle, game.x, game.y, generator=stream(0), T=20)
        own = neighbours(Oracle(game.shadows.models[0]), game.x, game.y, generator=stream(1), T=20)
    score = morgan(*target, *own, game.shadows.inside[0])
    assert score.shape == (120,)
    assert score.isfinite().all()


def test_morgan_refuses_what_it_cannot_do():
    loss, ratio, member = shadow()
    with pytest.raises(ValueError, match="shadow_member must hold both sides, got 0 of 60 in"):
        morgan_thresholds(loss, ratio, torch.zeros_like(member))
    with pytest.raises(ValueError, match="shadow_loss must hold 20[+] records for rule='grid', got 19"):
        morgan_thresholds(loss[:19], ratio[:19], member[:19])
    with pytest.raises(ValueError, match="shadow_loss must be finite, got 60 NaN"):
        morgan_thresholds(loss * torch.nan, ratio, member)
    with pytest.raises(ValueError, match="ratio must lie in 0 .. 1, got 1.5"):
        morgan(loss, torch.full((60,), 1.5), loss, ratio, member)
    with pytest.raises(ValueError, match="alpha must lie between 0 and 1, got 0"):
        morgan_thresholds(loss, ratio, member, rule="script", alpha=0.0)
