import math
import warnings

import numpy as np
import pytest
import torch
from scipy.interpolate import PchipInterpolator
from torch import nn
from worlds import ridge

from blackbox.similarity import decide, dtp, gmia, hidden, select, similarity
from glasslab.checks import Floored
from glasslab.metrics import auc
from glasslab.signals import loss as cross_entropy
from glasslab.split import stream


def world(n=20, m=9, c=4, targets=(), seed=0):
    """(z, shadow_z, shadow_member): unequal counts, 1 a side at least; members are answered otherwise."""
    g = stream(seed, "answers")
    member = torch.rand(m, n, generator=g) < 0.4
    member[0], member[1] = True, False
    shadow_z = 2 * torch.randn(m, n, c, generator=g) + 2 * member[..., None]
    return 2 * torch.randn(*targets, n, c, generator=g), shadow_z, member


def softmax(z):
    e = [math.exp(v) for v in z]
    return [v / sum(e) for v in e]


def textbook(z, shadow_z, member):
    """(score, dtp), from probabilities and their plain means."""
    scores, privacy = [], []
    for i in range(len(z)):
        mean = {}
        for side in (True, False):
            held = [softmax(shadow_z[j, i].tolist()) for j in range(len(member)) if member[j, i] == side]
            mean[side] = [sum(p) / len(held) for p in zip(*held, strict=True)]
        p = softmax(z[i].tolist())
        kl = {side: sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)) for side, q in mean.items()}
        scores.append(kl[False] - kl[True])
        privacy.append(max(abs(math.log(a / b)) for a, b in zip(mean[True], mean[False], strict=True)))
    return torch.tensor(scores, dtype=torch.float64), torch.tensor(privacy, dtype=torch.float64)


def mean_log_p(shadow_z, side):
    """log of the mean probabilities over one side."""
    p = shadow_z.double().softmax(-1)
    return ((p * side[..., None]).sum(0) / side.sum(0)[:, None]).log()


def test_similarity_and_dtp_equal_the_textbook_loop():
    score, privacy = textbook(*world())
    torch.testing.assert_close(similarity(*world()), score, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(dtp(*world()[1:]), privacy, rtol=1e-10, atol=1e-10)


def test_a_target_that_answers_as_one_side_scores_their_divergence():
    _, shadow_z, member = world()
    log_in, log_out = (mean_log_p(shadow_z, side) for side in (member, ~member))
    inside, outside = (similarity(q, shadow_z, member) for q in (log_in, log_out))
    assert (inside > 0).all()
    assert (outside < 0).all()
    torch.testing.assert_close(inside, (log_in.exp() * (log_in - log_out)).sum(-1))
    torch.testing.assert_close(outside, -(log_out.exp() * (log_out - log_in)).sum(-1))


def test_with_two_classes_it_is_linear_in_p_with_the_gap_in_log_odds_as_slope():
    _, shadow_z, member = world(c=2)
    log_in, log_out = (mean_log_p(shadow_z, side) for side in (member, ~member))
    slope = (log_in[:, 0] - log_in[:, 1]) - (log_out[:, 0] - log_out[:, 1])
    at = [
        similarity(torch.tensor([p, 1 - p]).double().log().expand(20, 2), shadow_z, member)
        for p in (0.2, 0.5, 0.9)
    ]
    torch.testing.assert_close((at[1] - at[0]) / 0.3, slope)
    torch.testing.assert_close((at[2] - at[1]) / 0.4, slope)


def test_the_complement_flips_the_sign_exactly():
    z, shadow_z, member = world()
    assert torch.equal(similarity(z, shadow_z, ~member), -similarity(z, shadow_z, member))
    assert torch.equal(dtp(shadow_z, ~member), dtp(shadow_z, member))


def test_differential_training_privacy_bounds_every_score():
    z, shadow_z, member = world(n=200)
    assert (similarity(z, shadow_z, member).abs() <= dtp(shadow_z, member)).all()


def test_logits_and_log_probabilities_are_the_same():
    z, shadow_z, member = world()
    moved = similarity(z.double().log_softmax(-1), shadow_z.double().log_softmax(-1), member)
    torch.testing.assert_close(moved, similarity(z, shadow_z, member))


def test_the_tail_is_kept_where_every_probability_is_1_in_float64():
    def log_p(phi):
        return [-math.log1p(math.exp(-phi)), -phi - math.log1p(math.exp(-phi))]

    shadow_z = torch.tensor([[[42.0, 0.0]], [[39.0, 0.0]]])
    member = torch.tensor([[True], [False]])
    got = similarity(torch.tensor([[41.0, 0.0]]), shadow_z, member)
    p, log_in, log_out = ([math.exp(v) for v in log_p(41)], log_p(42), log_p(39))
    exact = sum(a * (b - c) for a, b, c in zip(p, log_in, log_out, strict=True))
    torch.testing.assert_close(got, torch.tensor([exact], dtype=torch.float64), rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("scale", [60.0, 1e4])
def test_no_logit_is_too_large(scale):
    z, shadow_z, member = world()
    assert similarity(scale * z, scale * shadow_z, member).isfinite().all()
    assert dtp(scale * shadow_z, member).isfinite().all()


def test_models_that_answer_alike_say_nothing():
    z, shadow_z, member = world()
    assert (similarity(z, shadow_z[:1].expand(9, -1, -1), member).abs() < 1e-12).all()


def test_similarity_finds_a_planted_leak():
    game, truth = ridge(leaks=True, seed=0)
    z = game.model(game.x).detach()
    assert auc(similarity(z, game.shadows.z[:, :, 0], game.shadows.inside), truth) > 0.65


def test_similarity_of_all_targets_at_once_is_that_of_each_alone():
    z, shadow_z, member = world(targets=(2, 3))
    together = similarity(z, shadow_z, member)
    assert together.shape == (2, 3, 20)
    torch.testing.assert_close(together[1, 2], similarity(z[1, 2], shadow_z, member))


def test_similarity_knows_no_order_and_no_copies():
    z, shadow_z, member = world(n=9000)  # more than are read at a time
    g = stream(1)
    rows, models = torch.randperm(9000, generator=g), torch.randperm(9, generator=g)
    plain = similarity(z, shadow_z, member)
    moved = similarity(z[rows], shadow_z[models][:, rows], member[models][:, rows])
    torch.testing.assert_close(moved, plain[rows], rtol=1e-9, atol=1e-12)
    twice = similarity(z, shadow_z.repeat(2, 1, 1), member.repeat(2, 1))
    torch.testing.assert_close(twice, plain, rtol=1e-9, atol=1e-12)


def test_similarity_refuses_what_it_cannot_do():
    z, shadow_z, member = world()
    for name in ("in", "out"):
        lone = member.index_fill(1, torch.tensor(7), name == "out")
        with pytest.raises(ValueError, match=f"1[+] models {name} of each record, got 0 for record 7"):
            similarity(z, shadow_z, lone)
        with pytest.raises(ValueError, match="got 0 for record 7"):
            dtp(shadow_z, lone)
    with pytest.raises(ValueError, match="z must be finite, got 4 NaN or infinite"):
        similarity(z.index_fill(0, torch.tensor(3), torch.nan), shadow_z, member)
    with pytest.raises(ValueError, match="shadow_z must be finite, got NaN or infinity for record 5"):
        dtp(shadow_z.index_fill(1, torch.tensor(5), torch.inf), member)
    with pytest.raises(ValueError, match="two classes or more, got 1"):
        similarity(z[..., :1], shadow_z[..., :1], member)


def losses(n=20, m=12, seed=0):
    """(loss [40 n], shadow_loss, shadow_member): ties, losses of 0, one distinct loss, unequal counts."""
    g = stream(seed, "losses")
    shadow = (torch.randn(m, n, generator=g, dtype=torch.float64) * 2).exp()
    shadow[:, :4] = shadow[:, :4].round(decimals=0)  # ties and zeros
    shadow[:, 4] = 1.7
    shadow[:, 5] = shadow[:, 5].clamp(max=0.4)
    member = torch.rand(m, n, generator=g) < 0.4
    member[0], member[1] = True, False
    member[1:, 6], member[2:, 7] = True, True  # no other than model 1 is out
    member[1, 6:8] = False
    loss = torch.cat([(torch.randn(39 - m, n, generator=g).double() * 2).exp(), shadow, torch.zeros(1, n)])
    return loss, shadow, member


def reference(loss, shadow, member):
    """-F from scipy's interpolator, one record after another."""
    score = np.empty(loss.shape)
    for i in range(loss.shape[-1]):
        held = sorted(
            v for v, inside in zip(shadow[:, i].tolist(), member[:, i].tolist(), strict=True) if not inside
        )
        knots = {v: (rank + 1) / len(held) for rank, v in enumerate(held)}
        knots = {0.0: 0.0} | knots
        F = PchipInterpolator(list(knots), list(knots.values())) if len(knots) > 1 else None
        for a, l in enumerate(loss[:, i].tolist()):
            score[a, i] = -1.0 if F is None or l >= held[-1] else -float(F(l))
    return torch.from_numpy(score)


def test_gmia_equals_scipy_record_by_record():
    torch.testing.assert_close(gmia(*losses()), reference(*losses()), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("seed", range(5))
def test_gmia_equals_scipy_where_steps_differ_by_many_orders(seed):
    g = stream(seed, "steps")
    shadow = (6 * torch.randn(8, 30, generator=g, dtype=torch.float64)).exp()
    loss = (6 * torch.randn(40, 30, generator=g, dtype=torch.float64)).exp()
    member = torch.zeros(8, 30).bool()
    torch.testing.assert_close(
        gmia(loss, shadow, member), reference(loss, shadow, member), rtol=1e-9, atol=1e-12
    )


def test_the_p_value_is_a_distribution_function_far_beyond_the_knots():
    _, shadow, member = losses()
    grid = torch.cat([torch.zeros(1), torch.logspace(-12, 6, 4000)]).double()
    F = -gmia(grid[:, None].expand(-1, 20), shadow, member)
    assert ((F >= 0) & (F <= 1)).all()
    assert (F.diff(dim=0) >= -1e-15).all()
    assert (F[-1] == 1).all()
    some = shadow.masked_fill(member, torch.inf).amin(0) > 0
    assert (F[0, some] == 0).all()


def test_below_the_smallest_loss_smaller_is_still_more_telling():
    _, shadow, member = losses()
    least = shadow.masked_fill(member, torch.inf).amin(0)
    below = torch.linspace(0, 1, 50).double()[:, None] * least
    score = gmia(below, shadow, member)
    assert (score.diff(dim=0)[:, least > 0] < 0).all()


def test_one_distinct_loss_is_a_straight_line_and_one_model_is_enough():
    loss, shadow, member = losses()
    F = -gmia(loss, shadow, member)
    for i in (4, 6, 7):
        L = shadow[1, i]
        torch.testing.assert_close(F[:, i], (loss[:, i] / L).clamp(max=1))


def test_a_loss_of_0_keeps_its_own_rank():
    shadow = torch.tensor([0.0, 0.0, 1.0, 3.0]).double()[:, None]
    score = gmia(torch.zeros(1).double(), shadow, torch.zeros(4, 1).bool())
    assert score.item() == -0.5


def test_losses_of_0_alone_are_no_evidence_and_are_counted():
    loss, shadow, member = losses()
    shadow = torch.where((torch.arange(20) == 9) & ~member, 0.0, shadow)
    with pytest.warns(Floored, match="1 of 20 records have OUT losses of 0 only"):
        score = gmia(loss, shadow, member)
    assert (score[:, 9] == -1).all()


def test_a_record_of_constant_losses_in_the_middle_moves_no_other():
    loss, shadow, member = losses()
    plain = gmia(loss, shadow, member)
    changed = gmia(loss, shadow.index_fill(1, torch.tensor(10), 2.5), member)
    others = torch.arange(20) != 10
    assert torch.equal(changed[:, others], plain[:, others])
    assert not torch.equal(changed[:, 10], plain[:, 10])


def test_models_in_do_not_count():
    loss, shadow, member = losses()
    garbage = torch.where(member, 1e3 * shadow.flip(0), shadow)
    assert torch.equal(gmia(loss, garbage, member), gmia(loss, shadow, member))


def test_the_unit_of_the_loss_does_not_matter_down_to_the_smallest_numbers():
    g = stream(0)
    shadow, loss = (torch.rand(k, 30, generator=g, dtype=torch.float64) + 0.01 for k in (8, 50))
    member = torch.zeros(8, 30).bool()
    plain = gmia(loss, shadow, member)
    torch.testing.assert_close(gmia(loss * 1e-300, shadow * 1e-300, member), plain, rtol=1e-9, atol=1e-12)
    mixed = torch.tensor([5e-324, 1e-304, 2e-304, 1.0, 1.0 + 3e-16, 8.0], dtype=torch.float64)[:, None]
    grid = [0.0, 5e-324, 5e-305, 1e-304, 1.5e-304, 0.5, 1.0, 4.0, 8.0]
    F = -gmia(torch.tensor(grid, dtype=torch.float64)[:, None], mixed, torch.zeros(6, 1).bool())
    assert (F.diff(dim=0) > 0).all()
    assert F[[1, 3, 6, 8], 0].tolist() == pytest.approx([1 / 6, 2 / 6, 4 / 6, 1])


def test_gmia_finds_a_planted_leak():
    game, truth = ridge(leaks=True, seed=0)
    shadow = cross_entropy(game.shadows.z[:, :, 0], game.y)
    loss = cross_entropy(game.model(game.x).detach(), game.y)
    assert auc(gmia(loss, shadow, game.shadows.inside), truth) > 0.65


def test_gmia_knows_no_order_and_each_target_is_alone():
    loss, shadow, member = losses()
    g = stream(1)
    rows, models = torch.randperm(20, generator=g), torch.randperm(12, generator=g)
    plain = gmia(loss, shadow, member)
    moved = gmia(loss[:, rows], shadow[models][:, rows], member[models][:, rows])
    assert torch.equal(moved, plain[:, rows])
    assert torch.equal(plain[3], gmia(loss[3], shadow, member))
    assert torch.equal(plain.reshape(5, 8, 20), gmia(loss.reshape(5, 8, 20), shadow, member))
    torch.testing.assert_close(gmia(loss, shadow.repeat(2, 1), member.repeat(2, 1)), plain)
    many = 400  # more records than are read at a time
    torch.testing.assert_close(
        gmia(loss.repeat(1, many), shadow.repeat(1, many), member.repeat(1, many)), plain.repeat(1, many)
    )


def test_gmia_refuses_what_it_cannot_do():
    loss, shadow, member = losses()
    with pytest.raises(ValueError, match="1[+] models out of each record, got 0 for record 2"):
        gmia(loss, shadow, member.index_fill(1, torch.tensor(2), True))
    with pytest.raises(ValueError, match="shadow_loss must be finite and 0 or more, got nan for record 3"):
        gmia(loss, shadow.index_fill(1, torch.tensor(3), torch.nan), member)
    with pytest.raises(ValueError, match=r"loss must be finite and 0 or more, got -0.5 for record 3"):
        gmia(loss.index_fill(1, torch.tensor(3), -0.5), shadow, member)


def test_the_decision_is_a_p_value_of_at_most_its_level():
    member = torch.zeros(200, 3).bool()
    score = torch.tensor([-0.005, -0.01, -0.011], dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decide(score, member).tolist() == [True, True, False]
        assert decide(score, member[:100]).tolist() == [True, True, False]
        assert decide(score, member[:20], level=0.05).all()
    few = torch.cat([member[:99], torch.tensor([[True, True, False]])])
    with pytest.warns(Floored, match="2 of 3 records have fewer than 100 models out"):
        decide(score, few)
    with pytest.raises(ValueError, match="level must lie between 0 and 1, got 1"):
        decide(score, member, level=1.0)


def neighbours(x, aux, alpha):
    """How many rows of aux are closer than alpha in cosine distance, by loops."""
    count = []
    for a in x.tolist():
        near = 0
        for b in aux.tolist():
            dot = sum(u * v for u, v in zip(a, b, strict=True))
            near += 1 - dot / math.hypot(*a) / math.hypot(*b) < alpha
        count.append(near)
    return count


@pytest.mark.parametrize(("alpha", "beta", "n_target"), [(0.1, 0.1, 40), (0.3, 1.0, 13), (0.5, 30.0, 200)])
def test_selection_equals_the_loop(alpha, beta, n_target):
    g = stream(0)
    x, aux = torch.randn(30, 5, generator=g), torch.randn(25, 5, generator=g)
    expected = [count * n_target / 25 < beta for count in neighbours(x, aux, alpha)]
    assert 0 < sum(expected) < 30
    assert select(x, aux, n_target=n_target, alpha=alpha, beta=beta).tolist() == expected


def test_a_target_twice_as_large_is_expected_to_hold_twice_the_neighbours():
    g = stream(0)
    x, aux = torch.randn(600, 5, generator=g), torch.randn(50, 5, generator=g)  # more than counted at a time
    for beta in (0.5, 1.0, 2.0, 3.5):
        one, two = (select(x, aux, n_target=k * 20, beta=k * beta) for k in (1, 2))
        assert torch.equal(one, two)
    assert select(x, aux, n_target=20, beta=2.0).sum() > select(x, aux, n_target=40, beta=2.0).sum()
    line, ten = torch.ones(1, 3), torch.cat([torch.ones(1, 3), -torch.ones(9, 3)])  # 1 neighbour of 10
    assert select(line, ten, n_target=5, beta=0.6)
    assert not select(line, ten, n_target=5, beta=0.4)


def test_only_the_direction_of_features_counts():
    g = stream(0)
    x, aux = torch.randn(30, 5, generator=g), torch.randn(25, 5, generator=g)
    plain = select(x, aux, n_target=25, beta=2.0)
    assert torch.equal(select(1e-20 * x, 1e6 * aux, n_target=25, beta=2.0), plain)


def test_features_without_direction_have_no_neighbour_and_are_counted():
    with pytest.warns(Floored, match="1 of 2 records have features of 0 only"):
        chosen = select(torch.tensor([[0.0, 0.0], [1.0, 1.0]]), torch.ones(4, 2), n_target=4)
    assert chosen.tolist() == [True, False]


def test_selection_refuses_what_it_cannot_do():
    x = torch.ones(3, 2)
    with pytest.raises(ValueError, match="1 or more, got 0 and 3"):
        select(x, x, n_target=0)
    with pytest.raises(ValueError, match="1 or more, got 5 and 0"):
        select(x, x[:0], n_target=5)
    with pytest.raises(ValueError, match="features_aux must be finite, got NaN or infinity for record 1"):
        select(x, x.index_fill(0, torch.tensor(1), torch.nan), n_target=5)


class Backwards(nn.Module):
    """Its head is registered first."""

    def __init__(self):
        super().__init__()
        self.head, self.body = nn.Linear(4, 3), nn.Linear(6, 4)

    def forward(self, x):
        return self.head(self.body(x).relu())


def test_hidden_features_are_what_the_last_linear_layer_reads():
    x = torch.randn(300, 2, 3, generator=stream(0))  # three batches, the last one filled up
    net = nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).eval()
    features = hidden(net, x)
    assert features.shape == (300, 5)
    assert not features.requires_grad
    torch.testing.assert_close(features, net[:3](x).detach())
    torch.testing.assert_close(hidden(net, x[:7]), features[:7])

    backwards = Backwards().eval()
    torch.testing.assert_close(hidden(backwards, x.flatten(1)), backwards.body(x.flatten(1)).relu().detach())

    lone = nn.Linear(6, 3).eval()
    assert torch.equal(hidden(lone, x.flatten(1)), x.flatten(1))


def test_no_hook_stays_behind():
    x = torch.randn(10, 6, generator=stream(0))
    net = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    with pytest.raises(ValueError, match="eval mode"):
        hidden(net.train(), x)
    hidden(net.eval(), x)
    assert not any(layer._forward_pre_hooks or layer._forward_hooks for layer in net.modules())
    with pytest.raises(ValueError, match="model must run an nn.Linear, got none in Sequential"):
        hidden(nn.Sequential(nn.ReLU()).eval(), x)


def test_arguments_are_left_alone():
    z, shadow_z, member = world()
    loss, shadow, out = losses()
    g = stream(0)
    x, aux = torch.randn(30, 5, generator=g), torch.randn(25, 5, generator=g)
    given = [z, shadow_z, member, loss, shadow, out, x, aux]
    before = [t.clone() for t in given]
    for _ in range(2):
        similarity(z, shadow_z, member)
        dtp(shadow_z, member)
        gmia(loss, shadow, out)
        select(x, aux, n_target=20)
    assert all(torch.equal(a, b) for a, b in zip(given, before, strict=True))
