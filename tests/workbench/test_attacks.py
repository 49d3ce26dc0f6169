import warnings
from dataclasses import replace

import pytest
import torch
from worlds import ridge

from blackbox import baseline, merlin
from blackbox.lira import lira, lira_offline
from blackbox.shadow import shadow
from glasslab import signals
from glasslab.checks import Floored
from glasslab.game import without
from glasslab.oracle import forward
from glasslab.split import stream
from workbench import evidence, learned
from workbench.attacks import ATTACKS, Attack, Needs, chosen, demanded, unmet
from workbench.play import granted


@pytest.fixture(scope="module")
def world():
    return ridge(leaks=True, seed=0, n=300)


def run(name, game, **settings):
    return ATTACKS[name].run(granted(game, ATTACKS[name]), stream(3), **settings)


def logits(game):
    return forward(game.oracle.model, game.x).double()


@pytest.mark.parametrize(
    ("name", "by_hand"),
    [
        ("lira", lambda phi, S, member: lira(phi, S, member)),
        ("lira-record", lambda phi, S, member: lira(phi, S, member, variance="record")),
        ("lira-pooled", lambda phi, S, member: lira(phi, S, member, variance="pooled")),
        ("lira-offline", lambda phi, S, member: lira_offline(phi, S, member)),
        ("lira-offline-two-sided", lambda phi, S, member: lira_offline(phi, S, member, two_sided=True)),
        ("yeom", lambda phi, S, member: baseline.yeom(phi, S, member)),
        ("loss", lambda phi, S, member: baseline.loss(phi)),
    ],
)
def test_a_row_hands_its_function_what_it_needs(world, name, by_hand):
    game, _ = world
    held = game.shadows
    S = torch.stack([signals.phi(z[:, 0], game.y) for z in held.z])
    expected = by_hand(signals.phi(logits(game), game.y), S, held.inside)
    torch.testing.assert_close(run(name, game), expected, rtol=1e-9, atol=1e-12)


def test_the_shadow_row_is_the_shadow_function(world):
    game, _ = world
    held = game.shadows
    quick = ATTACKS["shadow"].quick
    p, shadow_p = logits(game).softmax(-1), held.z[:, :, 0].double().softmax(-1)
    by_hand = shadow(p, game.y, shadow_p, game.y, held.inside, generator=stream(3), **quick)
    torch.testing.assert_close(run("shadow", game, **quick), by_hand, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["modified-entropy-per-class", "loss-per-class"])
def test_per_class_rows_subtract_the_shadows_threshold(world, name):
    game, _ = world
    held = game.shadows
    own = evidence.loss if name.startswith("loss") else baseline.modified_entropy
    seen = torch.stack([own(z[:, 0], game.y) for z in held.z])
    by_hand = baseline.per_class(own(logits(game), game.y), game.y, seen, game.y, held.inside)
    torch.testing.assert_close(run(name, game), by_hand, rtol=1e-9, atol=1e-12)


def test_shadows_are_learned_from_once(world, monkeypatch):
    """The second target of the same shadows pays for its own queries alone, and hears the same warnings."""
    game, _ = world
    calls = []
    plain = evidence.likelihood.fit

    def counted(*arguments, **settings):
        calls.append(arguments)
        warnings.warn("a floor", Floored, stacklevel=2)
        return plain(*arguments, **settings)

    monkeypatch.setattr(evidence.likelihood, "fit", counted)
    fresh = replace(game, shadows=replace(game.shadows))
    for _ in range(3):
        with pytest.warns(Floored, match="a floor"):
            run("lira", fresh)
    assert len(calls) == 1


def test_shadows_of_other_records_are_asked_about_their_own(world):
    """Thresholds need records of which one knows who trained on them; the candidates are none of these."""
    game, _ = world
    other, _ = ridge(leaks=True, seed=9, n=300)
    strangers = replace(
        other.shadows,
        inside=torch.zeros(16, 300).bool(),
        z=torch.stack([forward(model, game.x) for model in other.shadows.models])[:, :, None],
    )
    score = run("modified-entropy-per-class", replace(game, shadows=strangers))
    tau = run("modified-entropy", game) - score
    at_home = run("modified-entropy", other) - run("modified-entropy-per-class", other)
    for c in range(5):  # the same shadows and records, so the same thresholds of classes
        torch.testing.assert_close(tau[game.y == c][0], at_home[other.y == c][0])


def test_correctness_reads_labels(world):
    game, _ = world
    right = (logits(game).argmax(-1) == game.y).double()
    assert torch.equal(run("correctness", game), right)
    assert torch.equal(ATTACKS["correctness"].run(game, stream(0)), right)  # from probabilities too


def test_names():
    assert list(chosen("all")) == list(ATTACKS)
    assert {"loss", "lira"} < set(chosen("default")) < set(ATTACKS)
    for family in ("blackbox", "whitebox", "inversion", "synthesis"):
        assert set(chosen(family)) == {name for name, row in ATTACKS.items() if row.family == family}
        assert 2 <= len(set(chosen("default")) & set(chosen(family))) <= 4
    assert list(chosen(["loss", "whitebox"])) == ["loss", *chosen("whitebox")]
    assert demanded(["loss", "whitebox"]) == {"loss"}
    assert demanded("default") == set(chosen("default"))
    assert demanded("all") == demanded("standard") == set()
    assert list(chosen(["lira", "loss"])) == ["lira", "loss"]
    assert list(chosen("lira")) == ["lira"]
    with pytest.raises(ValueError, match=r"such as lira .did you mean that.*; got 'lyra'"):
        chosen(["loss", "lyra"])
    with pytest.raises(ValueError, match="each named once, got loss, loss"):
        chosen(["loss", "loss"])
    with pytest.raises(ValueError, match="got none"):
        chosen([])


def test_what_is_unmet_is_said():
    attack = Attack(lambda game, generator: None, "blackbox", "probabilities", "", Needs(n_in=2, aux=50))
    assert unmet(attack, Needs(2, 0, 50)) is None
    assert unmet(attack, Needs(1, 9, 9)) == (
        "needs 2+ shadow models in each record, got 1; 50+ records of aux, got 9"
    )
    decays = replace(attack, needs=Needs(decay=True))
    assert unmet(decays, Needs(decay=True)) is None
    assert unmet(decays, Needs()) == "needs a recipe with weight decay (weight_decay=0.002, say), got none"


def test_the_spread_is_settled_on_the_real_game(world):
    """32 models a side: their own spread; a mock target, with fewer, keeps to that."""
    game, _ = ridge(leaks=True, seed=0, n=40, m=64)
    row = ATTACKS["lira"]
    assert row.settle(game.shadows) == {"variance": "record"}
    assert row.settle(world[0].shadows) == {"variance": "pooled"}
    assert ATTACKS["lira-offline"].settle(world[0].shadows) == {"variance": "pooled"}
    torch.testing.assert_close(run("lira", game), run("lira-record", game))
    assert not torch.allclose(run("lira", world[0]), run("lira", world[0], variance="record"))


def test_p_ranks_as_loss_and_keeps_its_promise(world):
    """In units of its threshold: the ROC of loss to the last tie, and a decision that 1 % of aux meets."""
    game, _ = world
    score = run("ye-p", game)
    assert torch.equal(score.argsort(stable=True), run("loss", game).argsort(stable=True))
    about_aux = run("ye-p", replace(game, x=game.aux.x, y=game.aux.y))
    flagged = (about_aux > ATTACKS["ye-p"].decision).double().mean()
    assert 0 < flagged <= 0.01


def test_how_many_records_gmia_selects_is_said(world):
    game, _ = world
    with pytest.warns(Floored, match="300 of 300 records are selected"):  # noise has no neighbours
        assert torch.equal(run("gmia-selected", game), run("gmia", game))


def test_rmia_without_shadows_to_tune_on_says_so(world):
    game, _ = world
    two = replace(game, shadows=without(game.shadows, range(2, 16)))
    with pytest.warns(Floored, match="a = 0.3 is not tuned: 2 shadows, 4 needed"):
        run("rmia-offline", two)


def test_morgan_flags_what_its_thresholds_say(world):
    """The score's decision is the paper's rule: loss within two thresholds, ratio at or above a third."""
    game, _ = ridge(leaks=True, seed=0, n=300, peaked=True)
    own = granted(game, ATTACKS["morgan"], 21)
    flagged = ATTACKS["morgan"].run(own, stream(3), budget=21) > ATTACKS["morgan"].decision
    again = granted(game, ATTACKS["morgan"], 21)
    loss, ratio = merlin.neighbours(again.oracle, game.x, game.y, generator=stream(3), T=20)
    low, high, least = merlin.morgan_thresholds(*learned.neighbours(again, stream(3).initial_seed(), 20))
    assert torch.equal(flagged, (loss >= low) & (loss <= high) & (ratio >= least))
    assert flagged.any()
