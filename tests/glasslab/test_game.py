from dataclasses import fields, is_dataclass, replace

import pytest
import torch
from zoos import RECIPE, made, tiny

from glasslab import Data
from glasslab.game import Models, game, mock_game
from glasslab.masks import round_to, temperature
from glasslab.oracle import BudgetExceeded, answer, complete

IMAGES = made(shape=(1, 5, 6))
M, T = 6, 3


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("zoos")


@pytest.fixture(scope="module")
def zoo(root):
    return tiny(root, data=IMAGES, shadows=M, targets=T)


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def held(value, seen=()):
    """Every tensor that an attacker can reach from its game without asking or loading a model."""
    if isinstance(value, torch.Tensor):
        yield value
    elif is_dataclass(value) and not isinstance(value, Models):
        for f in fields(value):
            yield from held(getattr(value, f.name))


def test_the_attacker_holds_the_shadows_and_the_candidates(zoo):
    g = game(zoo, 1)
    assert torch.equal(g.x, zoo.pool.x)
    assert torch.equal(g.y, zoo.pool.y)
    assert (g.classes, g.recipe, g.aux.digest) == (3, zoo.recipe, zoo.aux.digest)
    assert g.shadows.member is g.shadows.inside is zoo.shadow_member
    assert g.shadows.records is zoo.pool
    assert torch.equal(g.shadows.z, zoo.answers())
    assert torch.equal(g.shadows.z_aux, zoo.answers(on="aux")[:, :, 0])
    assert (g.init, g.checkpoints, g.known, g.steps) == (None,) * 4


@pytest.mark.parametrize("make", [game, mock_game])
def test_the_truth_is_nowhere_in_a_game(zoo, make):
    rows = zoo.target_member if make is game else zoo.shadow_member
    for a in range(T):
        for t in held(make(zoo, a, weights=True)):
            if t.dtype == torch.bool and t.shape[-1] == rows.shape[1] and make is game:
                assert not (t == rows[a]).all(-1).any()
    assert sum(t.dtype == torch.bool for t in held(make(zoo, 0))) == 2  # member and inside, of the shadows


def test_the_oracle_answers_for_the_target(zoo):
    for a in range(T):
        g = game(zoo, a)
        torch.testing.assert_close(
            g.oracle(g.x), zoo.target(a)(g.x).double().softmax(-1), rtol=1e-5, atol=1e-7
        )
        assert g.model is None
        assert g.oracle.queries == len(g.x)


def test_access_is_what_was_asked_for(zoo):
    assert same(game(zoo, 1, weights=True).model, zoo.target(1))
    assert same(mock_game(zoo, 4, weights=True).model, zoo.shadow(4))
    labels = game(zoo, 0, reveals="labels").oracle
    assert torch.equal(labels(zoo.pool.x), zoo.target(0)(zoo.pool.x).argmax(-1))
    with pytest.raises(BudgetExceeded):
        game(zoo, 0, budget=5).oracle(zoo.pool.x)


def test_all_targets_share_their_shadows(zoo):
    assert game(zoo, 0).shadows is game(zoo, 2, weights=True, budget=3).shadows
    assert game(zoo, 0).shadows is not game(zoo, 0, queries=2).shadows
    assert game(zoo, 0).shadows is not game(zoo, 0, mask=(round_to(2),)).shadows
    assert game(zoo, 0, mask=(round_to(2),)).shadows is game(zoo, 1, mask=[round_to(2)]).shadows
    assert game(zoo, 0).y is game(zoo, 1).y


def test_masks_lie_before_target_and_shadows(zoo):
    mask = (temperature(0.1), round_to(1))
    g = game(zoo, 0, mask=mask, queries=2)
    torch.testing.assert_close(g.oracle(g.x), answer(zoo.target(0)(g.x).detach(), mask))
    assert g.oracle.floor == 0.05
    for got, z in (
        (g.shadows.z, zoo.answers(queries=2)),
        (g.shadows.z_aux, zoo.answers(on="aux")[:, :, 0]),
    ):
        with pytest.warns(UserWarning, match="floor"):
            want = complete(answer(z, mask), 0.05)
        torch.testing.assert_close(got.exp(), want)
        assert got.isfinite().all()


def test_queries_are_one_axis(zoo):
    g = game(zoo, 0, queries=18)
    assert g.shadows.z.shape == (M, len(g.y), 18, 3)
    assert torch.equal(g.shadows.z, zoo.answers(queries=18))
    assert g.shadows.z_aux.shape == (M, len(g.aux), 3)


def test_models_are_read_when_asked_for(zoo, monkeypatch):
    models = game(zoo, 0).shadows.models
    assert len(models) == M
    assert all(same(model, zoo.shadow(i)) for i, model in enumerate(models))
    assert [len(models[1:3]), len(models[::2])] == [2, 3]
    assert same(models[2:][0], zoo.shadow(2))
    with pytest.raises(IndexError):
        models[M]
    loaded = []
    lazy = Models(loaded.append, range(4, 9))
    assert (len(lazy), loaded) == (5, [])
    lazy[2:][-1]
    assert loaded == [8]


def test_no_such_target_or_shadow(zoo):
    with pytest.raises(ValueError, match="target must lie in 0 .. 2, got 3"):
        game(zoo, T)
    with pytest.raises(ValueError, match="shadow must lie in 0 .. 5, got 6"):
        mock_game(zoo, M)


def test_a_zoo_without_shadows(root):
    g = game(tiny(root, data=IMAGES, shadows=0, targets=1), 0)
    assert len(g.shadows.z) == len(g.shadows.z_aux) == len(g.shadows.models) == 0


# Shadows of another zoo


def test_foreign_shadows(zoo, root):
    other = tiny(root, data=made(9, shape=(1, 5, 6)), shadows=4, targets=0)
    g = game(zoo, 0, shadows=other)
    assert g.shadows.records.digest == other.pool.digest
    assert torch.equal(g.shadows.member, other.shadow_member)
    assert g.shadows.inside.shape == (4, len(zoo.pool))
    assert not g.shadows.inside.any()
    assert torch.equal(g.shadows.z, other.answers(on=zoo.pool))
    assert torch.equal(g.shadows.z_aux, other.answers(on=zoo.aux)[:, :, 0])
    assert g.aux.digest == zoo.aux.digest
    assert same(g.shadows.models[3], other.shadow(3))
    assert game(zoo, 1, shadows=other).shadows is g.shadows
    assert game(zoo, 1).shadows is not g.shadows


def test_shadows_of_another_recipe_trained_on_the_candidates(zoo, root):
    other = tiny(root, replace(RECIPE, epochs=2), data=IMAGES, shadows=4, targets=0)
    g = game(zoo, 0, shadows=other)
    assert g.shadows.inside is g.shadows.member is other.shadow_member
    assert torch.equal(g.shadows.z, other.answers())


def repeated(zoo):
    """Forty candidates, each twice with its label and once with another one."""
    x, y = zoo.pool.x[:40], zoo.pool.y[:40]
    return Data(torch.cat([x, x, x]), torch.cat([y, y, (y + 1) % 3]), 3, "repeated")


@pytest.mark.parametrize("overlap", ["reshuffled", "repeated"])
def test_inside_is_found_by_content_where_pools_overlap(zoo, root, overlap):
    data = IMAGES if overlap == "reshuffled" else repeated(zoo)
    other = tiny(root, data=data, shadows=4, targets=0, seed=1)
    g = game(zoo, 0, shadows=other)
    for i in range(len(zoo.pool)):
        at = (other.pool.x == zoo.pool.x[i]).flatten(1).all(1) & (other.pool.y == zoo.pool.y[i])
        assert torch.equal(g.shadows.inside[:, i], other.shadow_member[:, at].any(1))
    assert g.shadows.inside.any(0).sum() not in (0, len(zoo.pool))


def test_shadows_of_other_records_are_refused(zoo, root):
    other = tiny(root, data=made(), shadows=2, targets=0)
    with pytest.raises(ValueError, match=r"on must be records of \(shape, classes\)"):
        game(zoo, 0, shadows=other)


# A shadow plays the target


@pytest.mark.parametrize("j", range(M))
def test_a_mock_game_leaves_the_target_out_with_equal_counts(zoo, j):
    g = mock_game(zoo, j, queries=2)
    rest = [i for i in range(M) if i not in (j, j ^ 1)]
    assert torch.equal(g.shadows.z, zoo.answers(queries=2)[rest])
    assert torch.equal(g.shadows.inside, zoo.shadow_member[rest])
    assert g.shadows.inside.sum(0).eq(M // 2 - 1).all()
    assert g.shadows.member is g.shadows.inside
    torch.testing.assert_close(g.oracle(g.x), zoo.shadow(j)(g.x).double().softmax(-1), rtol=1e-5, atol=1e-7)
    own = zoo.answers(queries=2)[j]
    assert not (g.shadows.z == own).flatten(2).all(2).any()  # none of its answers is among the others'


@pytest.mark.parametrize("j", range(M))
def test_models_of_a_mock_game_go_with_their_rows(zoo, j):
    g = mock_game(zoo, j)
    rest = [i for i in range(M) if i not in (j, j ^ 1)]
    assert len(g.shadows.models) == len(g.shadows.member) == len(g.shadows.z_aux) == M - 2
    for r, i in enumerate(rest):
        assert same(g.shadows.models[r], zoo.shadow(i))
        assert torch.equal(g.shadows.member[r], zoo.shadow_member[i])
        assert torch.equal(g.shadows.z_aux[r], zoo.answers(on="aux")[i, :, 0])
    assert g.shadows.member.sum(0).eq(M // 2 - 1).all()
    assert same(g.shadows.models[1:][0], zoo.shadow(rest[1]))


def test_a_mock_game_among_foreign_shadows_leaves_out_only_the_same_row(zoo, root):
    foreign = tiny(root, data=made(9, shape=(1, 5, 6)), shadows=4, targets=0)
    assert mock_game(zoo, 1, shadows=foreign).shadows is game(zoo, 1, shadows=foreign).shadows
    other = tiny(root, replace(RECIPE, epochs=2), data=IMAGES, shadows=4, targets=0)
    assert len(mock_game(zoo, 1, shadows=other).shadows.z) == 2
    assert len(mock_game(zoo, 5, shadows=other).shadows.z) == 4
