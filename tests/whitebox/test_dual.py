"""The training set out of the weights: at a stationary point alpha is known in closed form."""

import copy

import pytest
import torch
from rest import DECAY, C, at_rest, blank, draw, world
from torch import nn

from glasslab import signals
from glasslab.likelihood import fit, ratio
from glasslab.metrics import auc
from glasslab.null_law import auc_se, null_breaches
from glasslab.split import shadow_rows, stream
from whitebox import dual as module
from whitebox.dual import Dual, by_shadows, dual, dual_shadow, shaped, solve
from whitebox.gram import Gram, grams, pooled


def theory(model, x, y, member):
    return (-signals.phi(model(x), y)).sigmoid() / (int(member.sum()) * DECAY) * member


# What it must find


@pytest.mark.parametrize("kind", ["linear", "tanh"])
def test_alpha_is_the_share_of_each_member_and_0_for_others(kind):
    model, x, y, member = world(kind)
    got, right = dual(model, x, y, ridge=1e-12), theory(model, x, y, member)
    torch.testing.assert_close(got, right, rtol=0, atol=1e-8)
    assert right[member].min() > 1e-4
    assert auc(got, member) == 1.0
    assert auc(dual(model, x, y), member) > 0.95
    assert got.dtype == torch.float64


def test_the_gradient_of_the_loss_would_not_do():
    """The wrong version: with the gradient of the loss every member has one coefficient, 1 / (n lambda)."""
    model, x, y, member = world()
    found = pooled([g for _, g in grams(model, x, y)])
    share = -(-signals.phi(model(x), y)).sigmoid()
    wrong = solve(found._replace(G=share[:, None] * found.G * share, b=share * found.b), 1e-13)
    n = int(member.sum())
    torch.testing.assert_close(wrong[member], torch.full((n,), -1 / (n * DECAY)).double(), rtol=1e-4, atol=0)


def test_each_layer_holds_the_same_sum():
    model, x, y, member = world("tanh")
    columns = Dual(ridge=1e-12)(model, x, y)
    assert columns.shape == (len(x), 3)
    right = theory(model, x, y, member)
    torch.testing.assert_close(columns[:, 0], right, rtol=0, atol=1e-7)  # more weights than candidates
    torch.testing.assert_close(columns[:, 2], right, rtol=0, atol=1e-7)
    assert (columns[:, 1] - right).abs().max() > 1e-3  # 12 directions for 24 unknowns
    assert torch.equal(columns[:, 2], dual(model, x, y, ridge=1e-12))
    assert torch.equal(Dual(ridge=1e-12, together=False)(model, x, y), columns[:, :2])
    alone = Dual(ridge=1e-12, layers=("0",))(model, x, y)
    torch.testing.assert_close(alone[:, 0], columns[:, 0], rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(alone[:, 0], dual(model, x, y, ridge=1e-12, layers="0"), rtol=0, atol=1e-7)


def jacobian(model, x, y):
    """Layer -> gradients of the margins, one record at a time; and the weights."""
    held = [list(m.parameters()) for m in model.modules() if isinstance(m, nn.Linear)]
    copies = [[p.clone() for p in layer] for layer in held]
    trained = copy.deepcopy(model).requires_grad_()
    mine = [list(m.parameters()) for m in trained.modules() if isinstance(m, nn.Linear)]
    rows = [[] for _ in mine]
    for i in range(len(x)):
        margin = signals.phi(trained(x[i : i + 1]), y[i : i + 1]).sum()
        for layer, own in enumerate(mine):
            grads = torch.autograd.grad(margin, own, retain_graph=True)
            rows[layer].append(torch.cat([g.flatten() for g in grads]))
    return [(torch.stack(r), torch.cat([p.flatten() for p in c])) for r, c in zip(rows, copies, strict=True)]


@pytest.mark.parametrize("kind", ["linear", "tanh", "relu"])
@pytest.mark.parametrize("ridge", [0.01, 0.3])
def test_the_twin_is_a_ridge_regression_on_formed_gradients(kind, ridge):
    """min over alpha of |theta - J' alpha|^2 + r |alpha|^2 as least squares on stacked rows."""
    if kind == "relu":
        (x, y), model = draw(9, 6, 3), blank("relu", 6)
    else:
        model, x, y, _ = world(kind)
    parts = [
        (J / theta.square().mean().sqrt(), theta / theta.square().mean().sqrt())
        for J, theta in jacobian(model, x, y)
    ]
    J, theta = torch.cat([J for J, _ in parts], 1), torch.cat([t for _, t in parts])
    r = ridge * J.square().sum() / len(x)
    rows = torch.cat([J.T, r.sqrt() * torch.eye(len(x)).double()])
    right = torch.linalg.lstsq(rows, torch.cat([theta, torch.zeros(len(x)).double()])).solution
    torch.testing.assert_close(dual(model, x, y, ridge=ridge), right, rtol=1e-9, atol=1e-10)


def test_shaped_looks_where_members_would_show():
    """alpha has covariance g and theta white noise: the textbook's mean of alpha, in units of sqrt(g)."""
    model, x, y, member = world("tanh")
    J = torch.cat([J for J, _ in jacobian(model, x, y)], 1)
    theta = torch.cat([theta for _, theta in jacobian(model, x, y)])
    of = Gram(J @ J.T, J @ theta, float(theta.square().sum()), len(theta))
    g = (-signals.phi(model(x), y)).sigmoid() / (12 * DECAY)
    prior = (g / g.mean()).diag()
    r = 0.03 * (prior @ of.G).trace() / len(x)  # variance of the noise
    alpha = prior @ J @ torch.linalg.solve(J.T @ prior @ J + r * torch.eye(len(theta)).double(), theta)
    got = shaped(of, g, 0.03)
    torch.testing.assert_close(got, alpha / (g / g.mean()).sqrt(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(shaped(of, 1e-9 * g, 0.03), got, rtol=1e-9, atol=1e-9)
    even = shaped(of, torch.full_like(g, 3.0), 0.03)
    torch.testing.assert_close(even, solve(of, 0.03), rtol=1e-9, atol=1e-10)
    exact = shaped(of, g, 1e-12)
    torch.testing.assert_close(exact, (g * g.mean()).sqrt() * member, rtol=0, atol=1e-6)
    assert shaped(of, torch.zeros_like(g), 0.03).abs().max() == 0  # every phi above 745


def test_units_may_change_places():
    model, x, y, _ = world("tanh")
    turn, moved = torch.randperm(5, generator=stream(0, "units")), copy.deepcopy(model)
    moved[0].weight.data, moved[0].bias.data = model[0].weight[turn], model[0].bias[turn]
    moved[2].weight.data = model[2].weight[:, turn]
    torch.testing.assert_close(dual(moved, x, y), dual(model, x, y), rtol=1e-9, atol=1e-10)


def test_candidates_in_another_order():
    model, x, y, _ = world("tanh")
    turn = torch.randperm(len(x), generator=stream(0, "records"))
    torch.testing.assert_close(dual(model, x[turn], y[turn]), dual(model, x, y)[turn], rtol=1e-9, atol=1e-10)


def test_records_of_aux_among_the_candidates():
    model, x, y, member = world("tanh", n=20)
    more, labels = draw(10, 16, 5, "aux")
    with_aux = dual(model, torch.cat([x, more]), torch.cat([y, labels]), ridge=1e-6)
    alone, right = dual(model, x, y, ridge=1e-6), theory(model, x, y, member)
    assert (with_aux[:20] - alone)[member].abs().max() < 0.01 * right[member].min()
    assert with_aux[20:].abs().max() < 0.01 * right[member].min()


def test_a_member_that_is_not_asked_for_blurs_the_rest():
    """Coverage: with all members among the candidates alpha is exact, with half of them it is not."""
    model, x, y, member = world("linear")
    half = torch.arange(len(x)) < len(x) // 2
    right = theory(model, x, y, member)
    blurred = (dual(model, x[half], y[half], ridge=1e-12) - right[half]).abs().max()
    assert blurred > 1e4 * (dual(model, x, y, ridge=1e-12) - right).abs().max()


def test_a_record_twice_shares_its_coefficient():
    model, x, y, member = world("linear")
    i = int(member.nonzero()[0])
    twice = dual(model, torch.cat([x, x[i : i + 1]]), torch.cat([y, y[i : i + 1]]), ridge=1e-8)
    assert float(twice[i]) == pytest.approx(float(twice[-1]), rel=1e-6)
    assert float(2 * twice[i]) == pytest.approx(float(theory(model, x, y, member)[i]), rel=1e-4)


# What it must not find


def test_knows_nothing_of_a_target_that_learned_other_records():
    """24 targets of other records; one under permuted truths. It fails by chance in 0.1 % of worlds."""
    scores, rows = [], []
    x, y = draw(24, 16, 0)
    for seed in range(24):
        model = at_rest("linear", *draw(12, 16, seed, "fresh"), seed)
        scores.append(dual(model, x, y))
        rows.append(shadow_rows(2, 24, seed)[0])
    assert not null_breaches(torch.stack(scores), torch.stack(rows), checks=2)
    model, x, y, member = world("linear")
    permuted = torch.stack([member[torch.randperm(24, generator=stream(i, "turn"))] for i in range(24)])
    area = sum(auc(dual(model, x, y), m) for m in permuted) / 24
    assert abs(area - 0.5) < 4 * auc_se(12, 12) / 24**0.5
    assert auc(dual(model, x, y), member) > 0.95


def test_two_targets_in_one_process():
    one, two = world("linear", 0), world("linear", 1)
    first, second = dual(*one[:3]), dual(*two[:3])
    assert torch.equal(dual(*one[:3]), first)
    assert torch.equal(dual(*two[:3]), second)


# Without the weights


def test_a_shadow_that_is_the_target_needs_no_weights():
    (x, y), model = draw(12, 6, 3), blank("relu", 6)
    got = dual_shadow(model, x, y, model(x).detach())
    torch.testing.assert_close(got, dual(model, x, y), rtol=1e-9, atol=1e-10)
    log_p = model(x).detach().log_softmax(-1)
    torch.testing.assert_close(dual_shadow(model, x, y, log_p), got, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(
        dual_shadow(model, x, y, model(x).detach(), layers="0"), dual(model, x, y, layers="0")
    )


def test_a_shadow_finds_members_in_answers():
    """A shadow of other records: mean over 8 worlds, four standard errors above chance."""
    found = []
    for seed in range(8):
        model, x, y, member = world("linear", seed)
        shadow = at_rest("linear", *draw(12, 16, seed, "fresh"), seed)
        found.append(auc(dual_shadow(shadow, x, y, model(x)), member))
    assert sum(found) / 8 > 0.5 + 4 * auc_se(12, 12) / 8**0.5


# Against shadows


def test_the_ratio_is_that_of_alpha_over_shadows():
    x, y = draw(20, 16, 0)
    member = shadow_rows(8, 20, 0)
    S = torch.stack([dual(at_rest("linear", x[m], y[m], i), x, y) for i, m in enumerate(member)])
    got = by_shadows(S[0], S[2:], member[2:], variance="pooled")
    right = ratio(S[0], fit(S[2:], member[2:], variance="pooled", location="mean"))
    torch.testing.assert_close(got, right, rtol=0, atol=0)
    shrunk = ratio(S[0], fit(S[2:], member[2:], variance="shrunk", location="mean"))
    torch.testing.assert_close(by_shadows(S[0], S[2:], member[2:]), shrunk, rtol=0, atol=0)
    assert auc(got, member[0]) == 1.0
    assert by_shadows(S[:2], S[2:], member[2:]).shape == (2, 20)


# Extremes and errors


def test_one_candidate():
    model, x, y, _ = world("linear")
    got = dual(model, x[:1], y[:1], ridge=0.5)
    ((_, of),) = grams(model, x[:1], y[:1])
    assert float(got) == pytest.approx(float(of.b / of.G / 1.5), rel=1e-12)


def test_sure_records_in_single_precision():
    model = nn.Linear(4, C).eval()
    model.weight.data, model.bias.data = torch.randn(C, 4, generator=stream(0)), torch.tensor([60.0, 0, 0])
    x, y = torch.randn(9, 4, generator=stream(1)), torch.zeros(9).long()
    assert signals.phi(model(x).detach(), y).min() > 50
    got = dual(model, x, y)
    assert got.isfinite().all()
    assert len(got.unique()) == 9


def test_errors():
    model, x, y, _ = world("linear")
    for ridge in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=f"ridge must be above 0, got {ridge}"):
            dual(model, x, y, ridge=ridge)
    with pytest.raises(ValueError, match="ridge must be above 0, got 0.0"):
        Dual(ridge=0.0)(model, x, y)
    with pytest.raises(ValueError, match="training mode"):
        dual(copy.deepcopy(model).train(), x, y)
    with pytest.raises(ValueError, match="layers must name modules"):
        dual_shadow(model, x, y, model(x), layers="no.such")


def test_solve_leaves_its_gram():
    G = Gram(torch.eye(3).double() * 2, torch.ones(3).double(), 1.0, 1)
    assert solve(G, 0.5).tolist() == pytest.approx([1 / 3] * 3)
    assert torch.equal(G.G, torch.eye(3).double() * 2)


def test_arguments_are_left_alone():
    model, x, y, _ = world("tanh")
    before = copy.deepcopy(model.state_dict()), x.clone(), y.clone()
    dual(model, x, y)
    dual_shadow(model, x, y, z := model(x))
    Dual()(model, x, y)
    assert all(torch.equal(a, model.state_dict()[k]) for k, a in before[0].items())
    assert torch.equal(x, before[1])
    assert torch.equal(y, before[2])
    assert torch.equal(z, model(x))
    assert not model.training


def test_a_signals_repr_tells_its_settings():
    assert repr(Dual(ridge=0.03, layers=("0",))) == (
        "Dual(ridge=0.03, layers=('0',), together=True, memory='512MiB')"
    )
    assert module.__doc__.count("Higher = member.") == 1
