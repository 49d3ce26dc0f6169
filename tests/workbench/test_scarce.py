from dataclasses import replace

import pytest
import torch
from zoos import RECIPE, tiny

from glasslab.game import game
from glasslab.oracle import BudgetExceeded
from glasslab.split import stream
from workbench import compare, scarce
from workbench.arena import arena
from workbench.attacks import ATTACKS
from workbench.cli import main
from workbench.play import play, price
from workbench.scarce import Scarcity
from workbench.synthetic_shadows import made, trained

PLAYED = ["loss", "lira-offline", "rmia-offline"]


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    """Two targets, no shadow."""
    return tiny(tmp_path_factory.mktemp("target"), replace(RECIPE, epochs=80), shadows=0, targets=2)


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    return {"root": tmp_path_factory.mktemp("made"), "device": "cpu"}


@pytest.fixture(scope="module")
def climbed(target, settings):
    return scarce.shadow_zoos(target, Scarcity("hillclimb"), 4, settings)


def test_words():
    assert scarce.scarcity("real") is None
    assert scarce.scarcity("hillclimb") == Scarcity("hillclimb")
    assert scarce.scarcity("noisy:0.2") == Scarcity("noisy", 0.2)
    for words in ("", "noisy", "noisy:2", "noisy:x", "hillclimb:3", "real:1", "climb"):
        with pytest.raises(ValueError, match="shadow-data must be real, hillclimb, marginals or noisy:RATE"):
            scarce.scarcity(words)


def test_a_class_that_nothing_makes_is_said(tmp_path, settings):
    """After one epoch the target never says some class."""
    zoo = tiny(tmp_path, replace(RECIPE, epochs=1), shadows=0, targets=1)
    with pytest.raises(ValueError, match="hillclimb must make a record of every class, got none of class"):
        scarce.shadow_zoos(zoo, Scarcity("hillclimb"), 2, settings)


def test_each_target_has_records_of_its_own(target, climbed):
    assert len(climbed) == 2
    assert climbed[0].data.digest != climbed[1].data.digest
    assert all(zoo.data.name.startswith("synthetic:hillclimb") for zoo in climbed)
    assert [len(zoo.shadow_member) for zoo in climbed] == [4, 4]
    assert all(len(zoo.pool) == pytest.approx(len(target.pool), abs=2) for zoo in climbed)


def test_no_shadow_has_learned_a_candidate(target, climbed):
    known = set(map(bytes, target.pool.x.numpy()))
    for a, zoo in enumerate(climbed):
        assert not known & set(map(bytes, zoo.data.x.numpy()))
        assert not game(target, a, shadows=zoo).shadows.inside.any()


def test_records_are_made_and_shadows_trained_once(target, settings, climbed, monkeypatch):
    monkeypatch.setattr("glasslab.growth.train", None)  # would be called
    again = scarce.shadow_zoos(target, Scarcity("hillclimb"), 4, settings)
    assert [zoo.key for zoo in again] == [zoo.key for zoo in climbed]


def test_noisy_records_are_the_same_for_all(target, settings):
    held = scarce.shadow_zoos(target, Scarcity("noisy", 0.2), 2, settings)
    assert held[0].key == held[1].key
    assert len(held[0].data) <= len(target.aux)


def test_every_target_meets_its_own_shadows(target, climbed):
    ring = arena(target, shadows=climbed, queries=1, mask=(), evaluate="targets")
    for a, zoo in enumerate(climbed):
        assert torch.equal(ring.game(a).shadows.records.x, zoo.pool.x)
    with pytest.raises(ValueError, match="shadows must be one zoo a target, 2 of them, got 1"):
        arena(target, shadows=climbed[:1], queries=1, mask=(), evaluate="targets")
    frame = compare(target, PLAYED, shadows=climbed, progress=False)
    assert frame["error"].isna().all()
    assert frame.attrs["manifest"]["shadow_zoos"] == [zoo.key for zoo in climbed]
    alone = compare(target, PLAYED, shadows=climbed[1], progress=False)
    both = [f[(f["attack"] == "lira-offline") & (f["target"] == 1)]["auc"].item() for f in (frame, alone)]
    assert both[0] == both[1]


@pytest.mark.parametrize("name", [name for name, row in ATTACKS.items() if row.family == "synthesis"])
def test_rows_pay_for_what_they_make(target, name):
    row, one = ATTACKS[name], game(target, 0)
    settings = dict(row.quick) | {"records": None}
    found = play(row, one, stream(0, name), settings)
    assert found.error is None
    assert len(one.y) <= found.queries <= price(row, one, 0)


def test_shadows_learn_halves_of_what_was_made(target):
    one = game(target, 0)
    data = made(one, "marginals", stream(0, "draw"), records=60)
    held = trained(data, one.x, one.aux, replace(one.recipe, epochs=1), 4, 0)
    assert held.member.sum(0).tolist() == [2] * 60
    assert held.member.sum(1).tolist() == [30] * 4
    assert held.z.shape == (4, len(one.y), 1, one.classes)
    with torch.no_grad():
        torch.testing.assert_close(held.models[1](one.x[:5]), held.z[1, :5, 0], rtol=1e-5, atol=1e-5)
    assert not any(layer.training for model in held.models for layer in model.modules())


def test_who_cannot_pay_is_refused_before_asking(target):
    one = game(target, 0)
    poor = replace(one, oracle=replace(one.oracle, budget=len(one.y)))
    for method in ("hillclimb", "marginals"):
        with pytest.raises(BudgetExceeded, match=f"left of a budget of {len(one.y)}"):
            made(poor, method, stream(0))
    assert poor.oracle.queries == 0


def test_the_command(tmp_path, capsys):
    words = ["compare", "--targets", "2", "--records", "100", "--recipe", "epochs=20", "--shadows", "4"]
    words += ["--root", str(tmp_path / "zoo"), "--out", str(tmp_path / "run")]
    assert main([*words, "--shadow-data", "noisy:0.1"]) == 0
    said = capsys.readouterr()
    assert "shadows are right on" in said.err
    assert "lira-offline" in said.out
    assert main([*words, "--shadow-data", "marginals", "--attacks", "lira"]) == 2
    assert "attack lira needs" in capsys.readouterr().err
    assert main([*words, "--shadow-data", "nosy:1"]) == 2
    assert "shadow-data must be" in capsys.readouterr().err
