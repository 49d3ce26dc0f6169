import copy
import inspect

import numpy as np
import pytest
import torch
from torch import nn
from worlds import ridge

from glasslab.metrics import auc
from glasslab.split import shadow_rows, stream, target_rows
from whitebox import density as module
from whitebox.density import density, gram


def net(*sizes, seed=0, act=nn.ReLU):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pairs = zip(sizes, sizes[1:], strict=False)
        layers = [m for a, b in pairs for m in (nn.Linear(a, b), act())]
        return nn.Sequential(*layers[:-1]).double().eval()


def records(n=20, d=4, seed=0):
    return torch.randn(n, d, generator=stream(seed, "density")).double()


def linear(w):
    model = nn.Linear(len(w), 1, bias=False).double().eval()
    model.weight.data = w[None].clone()
    return model


def shuffled(model, seed):
    """The same function, its hidden units in another order."""
    model, g = copy.deepcopy(model), stream(seed, "shuffled")
    dense = [m for m in model if isinstance(m, nn.Linear)]
    for below, above in zip(dense, dense[1:], strict=False):
        p = torch.randperm(len(below.weight), generator=g)
        below.weight.data, below.bias.data = below.weight.data[p], below.bias.data[p]
        above.weight.data = above.weight.data[:, p]
    return model


def unchecked(function):
    while hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    return function


# Slow twins, in numpy


def standard(model, shadows):
    """(target [d], shadows [m d]), by the shadows' means and spreads; coordinate by coordinate."""
    rows = [np.concatenate([p.detach().numpy().ravel() for p in f.parameters()]) for f in (model, *shadows)]
    target, S = rows[0].copy(), np.stack(rows[1:])
    for j in range(len(target)):
        mean, spread = S[:, j].mean(), S[:, j].std()
        S[:, j], target[j] = (S[:, j] - mean) / spread, (target[j] - mean) / spread
    return target, S


def slow_ridge(model, shadows, member, strength=1.0):
    """Ridge regression on the parameters themselves, w = (S'S + r I)^-1 S'b."""
    target, S = standard(model, shadows)
    inverse = np.linalg.inv(S.T @ S + strength * np.eye(S.shape[1]))
    return [target @ inverse @ S.T @ (b - b.mean()) for b in member.double().numpy().T]


def slow_lda(model, shadows, member, components):
    target, S = standard(model, shadows)
    axes = np.linalg.svd(S, full_matrices=False)[2][:components]
    t, S, out = axes @ target, S @ axes.T, []
    for inside in member.numpy().T:
        a, b = S[inside], S[~inside]
        within = sum((s - s.mean(0)).T @ (s - s.mean(0)) for s in (a, b)) / (len(S) - 2)
        w = np.linalg.inv(within) @ (a.mean(0) - b.mean(0))
        out.append(w @ (t - (a.mean(0) + b.mean(0)) / 2))
    return out


@pytest.mark.parametrize("m", [12, 40])
def test_the_score_is_that_of_ridge_regression_on_the_parameters(m):
    """19 parameters: fewer, and more, than shadows. The members of a record need not be half."""
    model, shadows = net(2, 4, 1, seed=99), [net(2, 4, 1, seed=s) for s in range(m)]
    member = torch.rand(m, 6, generator=stream(0)) < 0.3
    for strength in (1.0, 7.0):
        got = density(model, shadows, member, records(5, 2), stream(0), alignment=None, ridge=strength)
        np.testing.assert_allclose(got, slow_ridge(model, shadows, member, strength), rtol=1e-7, atol=1e-9)


def test_lda_is_that_of_explicit_covariances():
    model, shadows = net(2, 4, 1, seed=99), [net(2, 4, 1, seed=s) for s in range(40)]
    member = shadow_rows(40, 6, 0)
    member[:3, 2] = True
    for components in (1, 5, 16):
        settings = {"alignment": None, "classifier": "lda", "components": components}
        got = density(model, shadows, member, records(5, 2), stream(0), **settings)
        np.testing.assert_allclose(got, slow_lda(model, shadows, member, components), rtol=1e-6, atol=1e-8)


def test_the_gram_matrix_is_made_in_pieces_and_without_what_never_moves(monkeypatch):
    theta = torch.randn(6, 50, generator=stream(0))
    theta[1:, 7] = 3.0  # the same in all shadows, not in the target
    whole = gram(theta)
    monkeypatch.setattr(module, "FORMED", 6 * 11)
    torch.testing.assert_close(gram(theta), whole)
    torch.testing.assert_close(gram(torch.cat([theta[:, :7], theta[:, 8:]], 1)), whole)
    assert whole.isfinite().all()


# The code works where the idea can


def regressions(x, y, rows):
    """Least squares on each row's records, [m d]."""
    w = rows.double()
    A = torch.einsum("mn,ni,nj->mij", w, x, x)
    return torch.linalg.solve(A, torch.einsum("mn,ni,n->mi", w, x, y))


@pytest.mark.parametrize(
    "settings",
    [{}, pytest.param({"classifier": "lda", "components": 5}, marks=pytest.mark.slow)],
    ids=["ridge", "lda"],
)
def test_in_five_dimensions_2000_models_come_near_the_best_direction(settings):
    """The oracle: each record's two Gaussians from 20,000 other models, their covariance in full."""
    g, n, d = stream(0, "convex"), 40, 5
    x = torch.randn(n, d, generator=g).double()
    y = x.sum(1) + torch.randn(n, generator=g).double()
    many, rows, truth = (
        torch.rand(20_000, n, generator=g) < 0.5,
        shadow_rows(2000, n, 0),
        target_rows(15, n, 0),
    )
    targets, theta, w = regressions(x, y, truth), regressions(x, y, many), many.double()
    shadows = [linear(t) for t in regressions(x, y, rows)]
    got = torch.stack([density(linear(t), shadows, rows, x[:2], stream(0), **settings) for t in targets])
    best = []
    mu_in, mu_out = (v.T @ theta / v.sum(0)[:, None] for v in (w, 1 - w))
    for i in range(n):
        centred = theta - torch.where(many[:, i, None], mu_in[i], mu_out[i])
        direction = torch.linalg.solve(centred.T @ centred / len(theta), mu_in[i] - mu_out[i])
        best.append((targets - (mu_in[i] + mu_out[i]) / 2) @ direction)
    area, oracle = (auc(s.flatten(), truth.flatten()) for s in (got, torch.stack(best, 1)))
    assert oracle > 0.6
    assert area == pytest.approx(oracle, abs=0.03)


def planted(seed):
    """(score by alignment, truth): one net, moved by a few records' own directions, units in random order."""
    base, n, m, g = net(4, 6, 3), 6, 40, stream(seed, "planted")
    size = sum(p.numel() for p in base.parameters())
    directions = torch.randn(n, size, generator=g).double()

    def moved(row, i):
        model = copy.deepcopy(base)
        theta = nn.utils.parameters_to_vector(model.parameters()).detach()
        noise = 0.02 * torch.randn(size, generator=g).double()
        nn.utils.vector_to_parameters(theta + 0.02 * row.double() @ directions + noise, model.parameters())
        return shuffled(model, i).requires_grad_(False)

    rows, truth = shadow_rows(m, n, seed), target_rows(1, n, seed)[0]
    shadows = [moved(row, i) for i, row in enumerate(rows)]
    target, x = moved(truth, 1000), records(60)
    how = ("activations", "weights", None)
    return [density(target, shadows, rows, x, stream(0), alignment=a) for a in how], truth


def test_alignment_brings_back_what_the_order_of_units_hides():
    found = [planted(s) for s in range(6)]
    truth = torch.cat([t for _, t in found])
    by_activations, by_weights, off = (auc(torch.cat([s[k] for s, _ in found]), truth) for k in range(3))
    assert min(by_activations, by_weights) > 0.85
    assert off < min(by_activations, by_weights) - 0.15


@pytest.mark.parametrize("alignment", ["activations", "weights", "correlation", "bottom_up", None])
def test_the_order_of_units_changes_nothing_with_alignment(alignment):
    """Of the target's, and of a shadow's."""
    model, shadows, rows = (
        net(4, 6, 3, seed=99),
        [net(4, 6, 3, seed=s) for s in range(8)],
        shadow_rows(8, 10, 0),
    )

    def run(model, shadows):
        return density(model, shadows, rows, records(60), stream(0), alignment=alignment)

    before = run(model, shadows)
    for after in (
        run(shuffled(model, 1), shadows),
        run(model, [shuffled(f, s) for s, f in enumerate(shadows)]),
    ):
        if alignment is None:
            assert not torch.allclose(after, before, rtol=0.01)
        else:
            torch.testing.assert_close(after, before, rtol=1e-8, atol=1e-10)


def test_two_hidden_layers_are_aligned_from_any_order():
    model = net(4, 6, 5, 3, seed=99)
    shadows, rows = [net(4, 6, 5, 3, seed=s) for s in range(8)], shadow_rows(8, 10, 0)
    one = density(model, shadows, rows, records(60), stream(0))
    other = density(
        shuffled(model, 1), [shuffled(f, s) for s, f in enumerate(shadows)], rows, records(60), stream(0)
    )
    torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("hidden", [0, 12])
@pytest.mark.parametrize(
    "settings", [{}, {"alignment": None}, {"classifier": "lda", "components": 5}], ids=str
)
def test_finds_nothing_where_nothing_is(hidden, settings):
    """A false alarm in 16,000."""
    areas = []
    for seed in range(20):
        game, truth = ridge(leaks=False, seed=seed, n=60, d=10, hidden=hidden, m=8)
        held = game.shadows
        score = density(game.model, held.models, held.member, game.aux.x, stream(0), **settings)
        areas.append(auc(score, truth) - 0.5)
    found = torch.tensor(areas)
    assert found.mean().abs() <= 4 * found.std() / 20**0.5


def test_random_units_leave_it_next_to_nothing():
    """Each model has other random units under a layer that leaks. A false alarm in 16,000."""
    areas = []
    for seed in range(20):
        game, truth = ridge(leaks=True, seed=seed, n=100, d=20, hidden=60, m=4)
        held = game.shadows
        areas.append(auc(density(game.model, held.models, held.member, game.aux.x, stream(0)), truth) - 0.5)
    found = torch.tensor(areas)
    assert found.mean() <= 0.03 + 4 * found.std() / 20**0.5


# Extremes and errors


def test_arguments_are_left_alone_and_records_of_shadows_may_be_few():
    model, shadows, rows, x = (
        net(4, 6, 3),
        [net(4, 6, 3, seed=s) for s in (1, 2)],
        shadow_rows(2, 1, 0),
        records(),
    )
    held = [copy.deepcopy(f.state_dict()) for f in (model, *shadows)]
    rng, kept = torch.random.get_rng_state(), (rows.clone(), x.clone())
    one = density(model, shadows, rows, x, stream(0))
    assert one.dtype == torch.float64
    assert one.shape == (1,)
    assert one.isfinite().all()
    assert torch.equal(one, density(model, shadows, rows, x, stream(0)))
    assert torch.equal(rng, torch.random.get_rng_state())
    assert torch.equal(rows, kept[0])
    assert torch.equal(x, kept[1])
    for before, f in zip(held, (model, *shadows), strict=True):
        assert all(torch.equal(before[k], t) for k, t in f.state_dict().items())
        assert all(p.requires_grad and p.grad is None for p in f.parameters())
        assert not any(m.training or m._forward_hooks for m in f.modules())


def test_models_that_are_all_the_same_say_nothing():
    model, rows = net(4, 6, 3), shadow_rows(8, 10, 0)
    score = density(model, [copy.deepcopy(model) for _ in range(8)], rows, records(), stream(0))
    assert score.tolist() == [0.0] * 10


def test_a_record_in_all_shadows_scores_zero_and_the_order_of_records_and_shadows_does_not_matter():
    model, shadows, rows = (
        net(4, 6, 3, seed=99),
        [net(4, 6, 3, seed=s) for s in range(8)],
        shadow_rows(8, 10, 0),
    )
    rows[:, 3] = True
    score = density(model, shadows, rows, records(), stream(0))
    assert score[3] == 0
    p, q = torch.randperm(10, generator=stream(1)), torch.randperm(8, generator=stream(2))
    torch.testing.assert_close(density(model, shadows, rows[:, p], records(), stream(0)), score[p])
    moved = density(model, [shadows[i] for i in q.tolist()], rows[q], records(), stream(0))
    torch.testing.assert_close(moved, score, rtol=1e-9, atol=1e-12)


def test_refuses():
    model, shadows, rows = (
        net(4, 6, 3, seed=99),
        [net(4, 6, 3, seed=s) for s in range(8)],
        shadow_rows(8, 10, 0),
    )
    attack = unchecked(density)
    for settings, text in (
        ({"classifier": "svm"}, "classifier must be one of ridge, lda, got 'svm'"),
        ({"ridge": 0.0}, "ridge must be above 0, got 0.0"),
        ({"shadows": shadows[:7]}, "shadows must be 2 or more, one a row of member, got 7 for 8 rows"),
        ({"shadows": shadows[:1], "member": rows[:1]}, "shadows must be 2 or more, .* got 1 for 1 rows"),
        ({"shadows": [*shadows[:7], net(4, 5, 3)]}, r"shadows\[7\] needs the reference's shapes"),
        ({"shadows": [*shadows[:7], net(4, 6, 3).train()]}, "model must be in eval mode"),
        ({"model": net(4, 6, 3).train()}, "model must be in eval mode"),
        ({"classifier": "lda"}, r"components must lie in 1 \.\. 5 for 8 shadows, got 16"),
        (
            {"classifier": "lda", "components": 2, "member": torch.ones(8, 10).bool()},
            r"member must hold 1\+ shadows in and out of each record, got 0 for record 0",
        ),
    ):
        given = {"model": model, "shadows": shadows, "member": rows} | settings
        with pytest.raises(ValueError, match=text) as caught:
            attack(aux_x=records(), generator=stream(0), **given)
        assert "\n" not in str(caught.value)
    assert not {"truth", "target_member"} & inspect.signature(density).parameters.keys()
