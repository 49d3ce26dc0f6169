import re
import warnings
from dataclasses import replace
from functools import partial

import pytest
import torch
from worlds import ridge

from glasslab.checks import Floored
from glasslab.split import stream
from workbench.attack import HOLDS
from workbench.attacks import Attack, Needs
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
    assert play(replace(attack(ask), asks=3), game, stream(0), {"times": 3}).queries == 300


def test_the_weights_are_for_those_who_need_them(game):
    assert granted(game, attack(ask, "weights")).model is game.model
    assert granted(game, attack(ask, "weights")).oracle.budget == 0
    assert granted(game, attack(ask)).model is None
    bare = granted(game, attack(ask))
    with pytest.raises(ValueError, match="must hold the model .* got None"):
        granted(bare, attack(ask, "weights"))
    assert "must hold the model" in play(attack(ask, "weights"), bare, stream(0)).error


@pytest.mark.parametrize("holds", [label for label in HOLDS if label.startswith(("weights", "informed"))])
def test_only_two_labels_are_told_who_is_a_member(game, holds):
    row = replace(attack(ask, "weights"), holds=holds)
    if holds.endswith("+init"):
        with pytest.raises(ValueError, match="must hold the init .* got None"):
            granted(game, row)
        return
    told = granted(game, row).known
    assert (told is not None) == (holds in ("informed", "weights+known members"))
    assert granted(game, attack(ask)).known is None


def test_updates_are_for_those_who_watch_training(game):
    assert granted(game, replace(attack(ask, "weights"), holds="steps")).steps is game.steps
    assert granted(game, attack(ask, "weights")).steps is None
    with pytest.raises(ValueError, match="must hold the steps"):
        granted(replace(game, steps=None), replace(attack(ask, "weights"), holds="steps"))


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


def spends(game, generator, *, budget):
    for _ in range(budget):
        game.oracle(game.x)
    return game.oracle(game.x).double() if game.oracle.reveals == "labels" else torch.zeros(len(game.y))


def test_an_attack_is_answered_as_often_as_its_row_says(game):
    """What the table says that an attack asks is not a promise, but the budget of its oracle."""
    greedy = Attack(partial(ask, times=3), "blackbox", "probabilities", "")
    assert play(replace(greedy, asks=3), game, stream(0)).queries == 300
    assert (
        "100 queries asked, 0 left of a budget of 200" in play(replace(greedy, asks=2), game, stream(0)).error
    )
    about_aux = replace(greedy, run=lambda game, generator: game.oracle(game.aux.x)[: len(game.y), 0])
    assert "BudgetExceeded" in play(replace(about_aux, asks=0), game, stream(0)).error
    assert play(replace(about_aux, asks=0, asks_aux=1), game, stream(0)).queries == len(game.aux)


def test_a_search_ends_at_its_budget(game):
    row = Attack(spends, "blackbox", "labels", "", asks=None)
    assert "BudgetExceeded" in play(row, game, stream(0), search=7).error  # it asks once too often
    frugal = replace(row, run=lambda game, generator, *, budget: spends(game, generator, budget=budget - 1))
    assert play(frugal, game, stream(0), search=7).queries == 700


def test_a_budget_of_the_game_holds_where_it_is_lower(game):
    poor = replace(game, oracle=replace(game.oracle, budget=99))
    assert "100 queries asked, 99 left" in play(attack(ask), poor, stream(0)).error


def test_shadows_are_for_those_whose_row_says_so(game):
    """An attack that is not said to need shadows is handed none."""
    row = attack(lambda game, generator: torch.full((len(game.y),), float(len(game.shadows.models))))
    assert play(row, game, stream(0)).score.max() == 0
    assert play(replace(row, needs=Needs(n_out=1)), game, stream(0)).score.max() == 16
