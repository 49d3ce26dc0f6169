import math
import warnings

import pytest
import torch
from torch import nn
from torch.nn.functional import softplus
from worlds import gaussian, ridge

from blackbox.baseline import confidence
from blackbox.baseline import loss as loss_attack
from blackbox.lira import lira_offline
from blackbox.reference import distil, threshold_p, ye_d, ye_p, ye_r, ye_s
from glasslab.checks import Floored
from glasslab.data import Data
from glasslab.masks import round_to, temperature
from glasslab.metrics import auc, roc
from glasslab.oracle import BudgetExceeded, Oracle, forward
from glasslab.recipe import Recipe
from glasslab.signals import loss as cross_entropy
from glasslab.split import shadow_rows, stream

RECIPE = Recipe(hidden=(16,), epochs=2)


def f(l, losses):
    """The padded grid: through (0, 0), the sorted losses, (1000, 1), a line between, the middle of equals."""
    knots = [0.0, *sorted(losses), 1000.0]
    step = 1 / (len(knots) - 1)
    at = [j * step for j, knot in enumerate(knots) if knot == l]
    if at:
        return (at[0] + at[-1]) / 2
    j = max(j for j, knot in enumerate(knots) if knot < l)
    return (j + (l - knots[j]) / (knots[j + 1] - knots[j])) * step


def textbook_r(loss, S, member):
    out = [[S[j][i].item() for j in range(len(S)) if not member[j][i]] for i in range(len(loss))]
    return torch.tensor(
        [-f(l.item(), losses) for l, losses in zip(loss, out, strict=True)], dtype=torch.float64
    )


def textbook_s(loss, y, S, shadow_y, member, per_class):
    scores = []
    for l, c in zip(loss.tolist(), y.tolist(), strict=True):
        pairs = [(j, i) for j in range(len(S)) for i in range(len(S[0])) if not member[j][i]]
        own = [S[j][i].item() for j, i in pairs if not per_class or shadow_y[i] == c]
        scores.append(-f(l, own))
    return torch.tensor(scores, dtype=torch.float64)


def world(m=6, n=20, seed=0):
    """(loss, y, S, member) with ties, zeros, and another number of models out of each record."""
    g = stream(seed, "reference")
    S = (torch.rand(m, n, generator=g, dtype=torch.float64) * 4).round(decimals=1)  # many equal ones
    S[:, 3], S[1:4, 5] = 0.7, 0.0
    loss = (torch.rand(n, generator=g, dtype=torch.float64) * 5).round(decimals=1)
    loss[3], loss[4], loss[5], loss[6] = 0.7, 0.0, 0.0, 1e-9
    member = torch.rand(m, n, generator=g) < 0.5
    member[0] = False
    return loss, torch.arange(n) % 3, S, member


def losses(leak=1.0, m=10, n=30, seed=0):
    """(loss, S, member, truth) of the Gaussian world."""
    phi, S, member, truth = gaussian(leak, m, n, seed)
    return softplus(-phi), softplus(-S), member, truth


# P


@pytest.mark.parametrize("leak", [0.0, 1.0])
def test_loss_confidence_and_p_have_one_roc(leak):
    phi, _, _, truth = gaussian(leak, m=2, n=200)
    loss = softplus(-phi)
    ours = roc(ye_p(loss, loss[:50]), truth)
    for other in (loss_attack(phi), confidence(phi)):
        assert all(torch.equal(a, b) for a, b in zip(ours[1:], roc(other, truth)[1:], strict=True))
    assert len(ours.hits) == 201  # below the smallest loss on aux too: nothing is tied


@pytest.mark.parametrize("law", ["exponential", "heavy", "rounded"])
@pytest.mark.parametrize(("a", "alpha"), [(100, 0.01), (100, 0.1), (257, 0.037)])
def test_the_threshold_has_the_false_positive_rate_it_promises(law, a, alpha):
    worlds, fresh = 4000, 50
    u = torch.rand(worlds, a + fresh, generator=stream(law, a, str(alpha)), dtype=torch.float64)
    l = {"exponential": -u.log(), "heavy": 1 / u - 1, "rounded": (-3 * u.log()).floor()}[law]
    flagged = ye_p(l[:, a:], l[:, :a]) > threshold_p(l[:, :a], alpha)[:, None]
    rate = flagged.double().mean(1)
    error = (rate.std() / worlds**0.5).item()
    promised = math.floor(alpha * (a + 1)) / (a + 1)
    assert promised <= alpha
    assert rate.mean() < promised + 4 * error
    if law != "rounded":  # with ties it keeps below
        assert rate.mean() > promised - 4 * error


def test_the_threshold_is_the_kth_smallest_loss_of_each_target():
    l = torch.stack([torch.randperm(99, generator=stream(t)).float() for t in range(3)])
    for alpha, k in ((0.02, 2), (0.29, 29), (0.5, 50), (0.995, 99)):
        assert threshold_p(l, alpha).tolist() == [1.0 - k] * 3
    assert threshold_p(l[0], 0.5) == threshold_p(l, 0.5)[0]


def test_too_few_records_of_aux_make_no_threshold():
    with pytest.raises(ValueError, match=r"loss_aux must hold 100\+ records for a threshold at 0.01, got 99"):
        threshold_p(torch.rand(99), 0.01)
    assert threshold_p(torch.rand(100), 0.01).isfinite()
    for alpha in (0.0, 1.0, -0.1):
        with pytest.raises(ValueError, match=r"alpha must lie in \(0, 1\), got"):
            threshold_p(torch.rand(100), alpha)


# S, R and D


@pytest.mark.parametrize("per_class", [True, False])
def test_s_equals_the_textbook_loop(per_class):
    loss, y, S, member = world()
    own = torch.arange(20).roll(1) % 3  # the shadows' records are others than the candidates
    fast = ye_s(loss, y, S, own, member, per_class=per_class)
    torch.testing.assert_close(fast, textbook_s(loss, y, S, own, member, per_class), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_r_equals_the_textbook_loop(seed):
    loss, _, S, member = world(seed=seed)
    torch.testing.assert_close(ye_r(loss, S, member), textbook_r(loss, S, member), rtol=1e-12, atol=1e-12)


def test_r_is_the_interpolation_to_the_grid_where_nothing_is_equal():
    loss, S, member, _ = losses(m=12)
    for i, score in enumerate(ye_r(loss, S, member)):
        knots = torch.cat([torch.tensor([0.0]), S[~member[:, i], i].sort().values, torch.tensor([1000.0])])
        j = int((knots < loss[i]).sum())
        share = (loss[i] - knots[j - 1]) / (knots[j] - knots[j - 1])
        assert -score.item() == pytest.approx((j - 1 + share.item()) / (len(knots) - 1), rel=1e-12)


def test_d_is_r_over_all_the_distilled_models():
    loss, _, S, _ = world()
    nobody = torch.zeros(S.shape).bool()
    assert torch.equal(ye_d(loss, S), ye_r(loss, S, nobody))
    torch.testing.assert_close(ye_d(loss, S), textbook_r(loss, S, nobody), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("smooth", ["linear", "gaussian"])
def test_what_the_models_in_say_does_not_matter_to_r(smooth):
    loss, S, member, _ = losses()
    garbage = torch.where(member, 3000 * torch.rand(S.shape, generator=stream(0), dtype=torch.float64), S)
    garbage[0, member[0]] = 0.0
    assert torch.equal(ye_r(loss, garbage, member, smooth=smooth), ye_r(loss, S, member, smooth=smooth))


def test_what_the_models_in_say_does_not_matter_to_s():
    loss, S, member, _ = losses()
    y, garbage = torch.arange(30) % 2, torch.where(member, 7.0, S)
    assert torch.equal(ye_s(loss, y, garbage, y, member), ye_s(loss, y, S, y, member))


@pytest.mark.parametrize("location", ["median", "mean"])
@pytest.mark.parametrize("variance", ["auto", "record", "pooled"])
def test_gaussian_r_ranks_as_lira_offline(variance, location):
    phi, S, member, _ = gaussian(1.0, m=10, n=60, spread=3.0)
    settings = {"variance": variance, "location": location}
    ours = ye_r(softplus(-phi), softplus(-S), member, smooth="gaussian", **settings)
    theirs = lira_offline(phi, S, member, **settings)
    assert torch.equal(ours.argsort(), theirs.argsort())
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("n_classes", [1, 3])
def test_s_ranks_as_the_loss_within_a_class(n_classes):
    loss, S, member, _ = losses(n=300)
    y = torch.arange(300) % n_classes
    score = ye_s(loss, y, S, y, member)
    for c in range(n_classes):
        assert torch.equal(score[y == c].argsort(), (-loss[y == c]).argsort())
    together = ye_s(loss, y, S, y, member, per_class=False)
    assert torch.equal(together.argsort(), (-loss).argsort())


def test_s_sees_what_class_a_loss_is_from():
    """The same loss is low for a hard class and high for an easy one."""
    y = torch.arange(40) % 2
    S, member = torch.where(y == 0, 0.1, 3.0) * (1 + torch.arange(4.0)[:, None]), shadow_rows(4, 40, 0)
    score = ye_s(torch.ones(40), y, S, y, member)
    assert score[y == 1].min() > score[y == 0].max()
    assert ye_s(torch.ones(40), y, S, y, member, per_class=False).unique().numel() == 1


def test_the_surest_members_are_never_tied():
    """1 - F is 1 for all of them."""
    loss = 10.0 ** -torch.arange(1.0, 301.0, dtype=torch.float64)
    S, y = torch.arange(1, 5)[:, None].expand(-1, 300).double(), torch.zeros(300).long()
    member = torch.zeros(4, 300).bool()
    for score in (ye_r(loss, S, member), ye_s(loss, y, S, y, member), ye_d(loss, S), ye_p(loss, loss)):
        assert (score.diff() > 0).all()
    gaussian_r = ye_r(loss, S / 9, member, smooth="gaussian")
    assert (gaussian_r.diff() > 0).all()


def test_r_is_finite_at_a_loss_of_0_and_beyond_1000():
    loss = torch.tensor([0.0, 0.0, 1e-300, 999.0, 1000.0])
    S = torch.tensor([[0.0, 1.0, 1.0, 1.0, 1.0], [0.0, 2.0, 2.0, 2.0, 1000.0]])
    member = torch.zeros(2, 5).bool()
    score = ye_r(loss.double(), S.double(), member)
    want = [1 / 3, 0.0, 1e-300 / 3, (2 + 997 / 998) / 3, (2 + 3) / 2 / 3]
    assert (-score).tolist() == pytest.approx(want, rel=1e-12)
    with pytest.warns(Floored, match="2 of 5 values of loss above 1000 nats count as that"):
        far = ye_r(torch.tensor([1e4, 5e3, 1.0, 1.0, 1.0]), S, member)
    assert far[:2].tolist() == [-1.0, -1.0]
    with pytest.warns(Floored, match="5 of 10 values of shadow_loss above"):
        assert ye_r(loss, torch.stack([S[0], S[1] + 2000]), member).isfinite().all()


def test_gaussian_r_is_finite_at_a_loss_of_0_and_beyond_700_and_says_so():
    loss, S, member, _ = losses(n=5)
    at_0 = loss.clone()
    at_0[0], at_0[1] = 0.0, 1e4
    with pytest.warns(Floored, match="2 of 5 log-odds clamped at .-700"):
        score = ye_r(at_0, S, member, smooth="gaussian")
    assert score.isfinite().all()
    assert score.argmax() == 0
    assert score.argmin() == 1
    rest = ye_r(loss, S, member, smooth="gaussian")
    assert torch.equal(score[2:], rest[2:])


def test_f_never_falls_and_stays_within_0_and_1():
    grid = torch.cat([torch.linspace(0, 6, 5000), torch.tensor([10.0, 100.0, 1000.0])]).double()
    _, _, S, member = world()
    for i in range(20):
        F = -ye_r(grid[:, None], S[:, i : i + 1], member[:, i : i + 1])[:, 0]
        assert F.min() >= 0
        assert F.max() == 1
        assert (F.diff() >= 0).all()


@pytest.mark.parametrize("smooth", ["linear", "gaussian"])
def test_finds_a_planted_leak(smooth):
    game, truth = ridge(leaks=True, seed=0)
    S = cross_entropy(game.shadows.z[:, :, 0], game.y)
    loss = cross_entropy(game.model(game.x).detach(), game.y)
    assert auc(ye_r(loss, S, game.shadows.inside, smooth=smooth), truth) > 0.65
    assert auc(ye_s(loss, game.y, S, game.y, game.shadows.inside), truth) > 0.65
    assert auc(ye_p(loss, loss), truth) > 0.65


def every(loss, y, S, member):
    return {
        "p": ye_p(loss, loss),
        "s": ye_s(loss, y, S, y, member),
        "r": ye_r(loss, S, member),
        "r-gaussian": ye_r(loss, S, member, smooth="gaussian"),
    }


def test_the_order_of_records_and_of_shadows_does_not_matter():
    loss, S, member, _ = losses()
    y, g = torch.arange(30) % 3, stream(0)
    rows, models = torch.randperm(30, generator=g), torch.randperm(10, generator=g)
    plain = every(loss, y, S, member)
    moved = every(loss[rows], y[rows], S[models][:, rows], member[models][:, rows])
    for name, score in plain.items():
        torch.testing.assert_close(moved[name], score[rows], rtol=1e-9, atol=1e-12)


def test_all_targets_at_once_are_each_alone_and_arguments_are_left():
    _, S, member, _ = losses()
    y, loss = torch.arange(30) % 3, torch.rand(2, 3, 30, generator=stream(0))
    held = [t.clone() for t in (loss, y, S, member)]
    together = every(loss, y, S, member)
    for a, b in ((0, 0), (1, 2)):
        for name, alone in every(loss[a, b], y, S, member).items():
            assert together[name].dtype == torch.float64
            torch.testing.assert_close(together[name][a, b], alone)
    assert all(torch.equal(a, b) for a, b in zip(held, (loss, y, S, member), strict=True))


def test_many_records_go_in_chunks_and_come_out_in_order(monkeypatch):
    loss, S, member, _ = losses(n=100)
    whole = ye_r(loss, S, member)
    monkeypatch.setattr("glasslab.moments.VALUES", 33)
    assert torch.equal(ye_r(loss, S, member), whole)


def test_one_shadow_one_record_one_class_and_constant_losses_will_do():
    one, out = torch.ones(1).double(), torch.zeros(1, 1).bool()
    assert ye_r(one / 2, one[None], out).tolist() == [-0.25]
    assert ye_s(one / 2, one.long(), one[None], one.long(), out).tolist() == [-0.25]
    same, member = torch.full((20,), 0.3).double(), shadow_rows(4, 20, 0)
    y = torch.zeros(20).long()
    with pytest.warns(Floored, match="spreads"):
        scores = every(same, y, same.expand(4, -1), member)
    for score in scores.values():
        assert score.unique().numel() == 1
        assert score.isfinite().all()


def test_a_class_without_losses_goes_by_those_of_all_and_is_counted():
    loss, y, S, member = world()
    member = member | (y == 1)  # every model trained on all of class 1
    with pytest.warns(Floored, match="1 of 3 classes without losses out of training go by those of all"):
        score = ye_s(loss, y, S, y, member)
    torch.testing.assert_close(score[y == 1], ye_s(loss, y, S, y, member, per_class=False)[y == 1])
    with pytest.warns(Floored, match="3 of 3"):
        ye_s(loss, y, S, y + 3, member)


def test_too_few_models_out_are_refused_by_record():
    loss, y, S, member = world()
    member[:, 7] = True
    with pytest.raises(ValueError, match=r"shadow_member must hold 1\+ models .* got 0 for record 7"):
        ye_r(loss, S, member)
    with pytest.raises(ValueError, match=r"1\+ models out .* got 0 for record 7"):
        ye_r(loss + 0.1, S + 0.1, member, smooth="gaussian")
    with pytest.raises(ValueError, match=r"1\+ models out of some record, got 0 of 6"):
        ye_s(loss, y, S, y, torch.ones_like(member))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -0.1])
def test_losses_that_are_none_are_refused(bad):
    loss, y, S, member = world()
    wrong, S_wrong = loss.index_fill(0, torch.tensor(2), bad), S.index_fill(1, torch.tensor(2), bad)
    for call in (
        lambda: ye_p(wrong, loss),
        lambda: ye_s(wrong, y, S, y, member),
        lambda: ye_r(wrong, S, member),
        lambda: ye_r(wrong, S, member, smooth="gaussian"),
        lambda: ye_d(wrong, S),
    ):
        with pytest.raises(ValueError, match="^loss must be finite and 0 or more, got 1 other"):
            call()
    for call in (lambda: ye_s(loss, y, S_wrong, y, member), lambda: ye_r(loss, S_wrong, member)):
        with pytest.raises(ValueError, match="^shadow_loss must be finite and 0 or more, got 6 other"):
            call()
    for call in (lambda: ye_p(loss, wrong), lambda: threshold_p(wrong, 0.5)):
        with pytest.raises(ValueError, match="^loss_aux must be finite"):
            call()


# What D distils


class Counting(nn.Module):
    """A linear classifier that notes how many rows it saw of those that hold anything."""

    def __init__(self, d, c):
        super().__init__()
        self.linear, self.rows = nn.Linear(d, c), 0

    def forward(self, x):
        self.rows += int((x != 0).any(1).sum())
        return self.linear(x)


def teacher(d=12, c=4, a=200, scale=1.0):
    """(target, aux): the target's labels know nothing of those of aux."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Counting(d, c).eval()
        x = scale * torch.randn(a, d)
    model.linear.weight.data *= 3
    return model, Data(x, torch.arange(a) % c, c, "aux")


@pytest.mark.parametrize("scale", ["none", "standard"])
def test_distilled_models_say_what_the_target_says_and_aux_is_asked_once(scale):
    model, aux = teacher(a=600)
    recipe = Recipe(net="softmax", epochs=40, lr=0.5, scale=scale)
    oracle = Oracle(model)
    students = distil(oracle, aux, recipe, q=2, seed=0)
    assert oracle.queries == model.rows == 600
    fresh = teacher(a=1000)[1].x[600:]  # beyond what they were trained on
    taught = forward(model, fresh).softmax(1)
    for student in students:
        assert not student.training
        assert (forward(student, fresh).softmax(1) - taught).abs().mean() < 0.03  # the labels alone: 0.3
    assert isinstance(students[0][0], nn.Flatten) == (scale == "none")


def test_soft_labels_are_learned_and_no_hard_ones():
    """A target that is never sure has students that are not: argmax labels would make them so."""
    model, aux = teacher()
    soft = distil(Oracle(model, mask=(temperature(20.0),)), aux, Recipe(hidden=(16,), epochs=30), q=2, seed=0)
    assert torch.stack([forward(s, aux.x).softmax(1).amax(1) for s in soft]).mean() < 0.5


def test_each_distilled_model_has_half_of_aux_and_a_seed_of_its_own(monkeypatch):
    seen = {}

    def spy(net, recipe, x, y, member, seeds, device):
        seen.update(y=y, member=member, seeds=seeds, recipe=recipe)
        return {name: torch.stack([t] * len(seeds)) for name, t in net().state_dict().items()}

    monkeypatch.setattr("blackbox.reference.train", spy)
    model, aux = teacher()
    recipe = Recipe(hidden=(4,), patience=5, label_smoothing=0.1)
    with pytest.warns(Floored, match="of 200 answers sit on the floor"):
        distil(Oracle(model, mask=(round_to(1),)), aux, recipe, q=5, seed=3)
    assert seen["member"].sum(1).tolist() == [100] * 5
    assert len({tuple(row) for row in seen["member"].tolist()}) == len(set(seen["seeds"])) == 5
    torch.testing.assert_close(seen["y"].sum(1), torch.ones(200))  # rounded answers are made whole
    assert seen["y"].min() > 0
    assert seen["recipe"].patience == seen["recipe"].label_smoothing == 0
    assert "auto" not in (seen["recipe"].engine, seen["recipe"].precision, seen["recipe"].scale)


def test_distilling_depends_on_its_seed_alone():
    model, aux = teacher()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    answers = [
        torch.stack([forward(s, aux.x) for s in distil(Oracle(model), aux, RECIPE, q=4, seed=seed)])
        for seed in (0, 0, 1)
    ]
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(answers[0], answers[1])
    assert not torch.equal(answers[0], answers[2])
    assert not torch.equal(answers[0][0], answers[0][1])
    more = torch.stack([forward(s, aux.x) for s in distil(Oracle(model), aux, RECIPE, q=6, seed=0)])
    torch.testing.assert_close(more[:4], answers[0])  # further models leave the first as they are


def test_images_can_be_distilled_through_convolutions():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        x = torch.rand(40, 1, 8, 8)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).eval()
    recipe = Recipe(net="cnn", width=4, norm="none", epochs=1, scale="standard")
    students = distil(Oracle(model), Data(x, torch.arange(40) % 3, 3, "aux"), recipe, q=2, seed=0)
    assert all(forward(s, x).isfinite().all() for s in students)


def test_distilling_refuses_what_it_cannot_do():
    model, aux = teacher()
    with pytest.raises(ValueError, match="oracle must reveal probabilities to distil from, got labels"):
        distil(Oracle(model, reveals="labels"), aux, RECIPE, q=2, seed=0)
    with pytest.raises(BudgetExceeded):
        distil(Oracle(model, budget=199), aux, RECIPE, q=2, seed=0)
    with pytest.raises(ValueError, match=r"q and aux must be 1\+ models and 2\+ records, got 0 and 200"):
        distil(Oracle(model), aux, RECIPE, q=0, seed=0)
    with pytest.raises(ValueError, match="got 2 and 1"):
        distil(Oracle(model), aux[torch.tensor([0])], RECIPE, q=2, seed=0)
    assert model.rows == 0


def test_d_finds_a_leak_through_the_models_it_distilled():
    game, truth = ridge(leaks=True, seed=0, n=300)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        students = distil(game.oracle, game.aux, Recipe(net="softmax", epochs=20), q=4, seed=0)
    D = torch.stack([cross_entropy(forward(s, game.x), game.y) for s in students])
    loss = cross_entropy(forward(game.model, game.x), game.y)
    assert auc(ye_d(loss, D), truth) > 0.65
