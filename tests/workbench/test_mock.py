import pytest
import torch
from worlds import null

from blackbox.lira import lira
from glasslab.game import game
from glasslab.metrics import auc
from glasslab.null_law import auc_se
from workbench.mock import MOCKS, folds, mock_games


@pytest.mark.parametrize("m", [0, 2, 4, 6, 8, 16, 20, 40, 64, 96, 128, 256])
def test_whole_blocks_leave_and_an_eighth_at_most(m):
    made = folds(m)
    mocks = [j for fold in made for j in fold]
    assert mocks == list(range(len(mocks)))  # none twice
    assert len(mocks) <= m
    for fold in made:
        assert fold.start % 2 == len(fold) % 2 == 0
        assert len(fold) <= max(2, m // 8)
        assert m - len(fold) >= 2
    if m > 2:
        assert len(mocks) >= min(m, MOCKS)
    else:
        assert not mocks


def test_the_others_have_equal_counts_and_the_mock_is_none_of_them(zoo):
    real = game(zoo, 0)
    seen = []
    for j, mock in mock_games(zoo, real):
        seen.append(j)
        held = mock.shadows
        assert mock.model is None
        assert (held.inside.sum(0) == len(held.inside) // 2).all()
        kept = [i for i in range(16) if i // 2 != j // 2]
        assert torch.equal(held.z, real.shadows.z[kept])
        assert torch.equal(held.member, zoo.shadow_member[kept])
        assert len(held.models) == len(kept)
        answers = mock.oracle(mock.x).argmax(-1)
        assert torch.equal(answers, real.shadows.z[j, :, 0].argmax(-1))
        own, row = held.models[0].state_dict(), zoo.shadow(kept[0]).state_dict()
        assert all(torch.equal(own[name], row[name]) for name in own)
    assert seen == list(range(16))


def test_mocks_of_a_fold_share_their_shadows(zoo):
    held = [mock.shadows for _, mock in mock_games(zoo, game(zoo, 0))]
    assert held[0] is held[1]
    assert held[1] is not held[2]


def test_counts_do_not_tell_the_mock():
    S, member = null(16, 20_000)
    rest = [i for i in range(16) if i not in folds(16)[0]]
    score = lira(S[0], S[rest], member[rest], variance="record")
    assert abs(auc(score, member[0]) - 0.5) < 4 * auc_se(10_000, 10_000)
