import re
import warnings

import pytest
import torch
from worlds import ridge

from glasslab.checks import Floored
from glasslab.split import stream
from workbench.attacks import Attack
from workbench.play import granted, play


@pytest.fixture(scope="module")
def game():
    return ridge(leaks=True, seed=0, n=100)[0]


def attack(run, access="probabilities"):
    return Attack(run, "blackbox", access, "")


def ask(game, generator, *, times=1):
    for _ in range(times):
        p = game.oracle(game.x)
    return p[:, 0]


def test_counts_what_it_asked_itself(game):
    assert [play(attack(ask), game, stream(0)).queries for _ in range(2)] == [100, 100]
    assert play(attack(ask), game, stream(0), {"times": 3}).queries == 300


def test_the_weights_are_for_those_who_need_them(game):
    assert granted(game, attack(ask, "weights")).model is game.model
    assert granted(game, attack(ask, "weights")).oracle.budget == 0
    assert granted(game, attack(ask)).model is None
    bare = granted(game, attack(ask))
    with pytest.raises(ValueError, match="must hold the model .* got None"):
        granted(bare, attack(ask, "weights"))
    assert "must hold the model" in play(attack(ask, "weights"), bare, stream(0)).error


@pytest.mark.parametrize(
    ("score", "said"),
    [
        (torch.zeros(99), r"one score a record, \[100\], got \[99\]"),
        (torch.full((100,), torch.nan), "must be finite, got 100 NaN or infinite"),
        (torch.zeros(100).index_fill(0, torch.tensor([3]), torch.inf), "got 1 NaN or infinite"),
    ],
)
def test_a_score_that_is_none_is_an_error(game, score, said):
    played = play(attack(lambda game, generator: score), game, stream(0))
    assert played.score is None
    assert re.search(said, played.error)


def test_floors_are_noted_once_and_other_warnings_pass(game):
    def runs(game, generator):
        for _ in range(2):
            warnings.warn("3 of 9 floored", Floored, stacklevel=2)
        warnings.warn("look out", RuntimeWarning, stacklevel=2)
        return torch.zeros(100)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        played = play(attack(runs), game, stream(0))
    assert played.notes == "3 of 9 floored"
    assert [str(warning.message) for warning in caught] == ["look out"]


def test_ctrl_c_passes_through(game):
    def stops(game, generator):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        play(attack(stops), game, stream(0))
