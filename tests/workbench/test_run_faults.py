"""What goes wrong in a run costs what went wrong, and nothing else."""

import pandas as pd
import pytest
import torch

from glasslab.results import read
from workbench import compare, run
from workbench.attacks import ATTACKS, Attack


def first_logit(model, x):
    return float(model(x)[0, 0].detach())


def broken(game, generator):
    if first_logit(game.oracle.model, game.x) == broken.dislikes:
        raise RuntimeError("cannot\nstand it")
    return torch.zeros(len(game.y))


@pytest.fixture
def with_a_bad_one(zoo, monkeypatch):
    """The table with an attack that fails on target 2, before a good one."""
    broken.dislikes = first_logit(zoo.target(2), zoo.pool.x)
    bad = Attack(broken, "blackbox", "probabilities", "arXiv:0")
    monkeypatch.setattr(run, "chosen", lambda names: {"bad": bad, "loss": ATTACKS["loss"]})


def test_a_failed_attack_is_a_failed_row(zoo, kept, with_a_bad_one, tmp_path):
    """Nothing is lost, and no row bears another's name."""
    frame = compare(zoo, "all", out=tmp_path, progress=False)
    bad, good = frame[frame["attack"] == "bad"], frame[frame["attack"] == "loss"]
    assert bad["error"].notna().tolist() == [False, False, True, False, False]
    assert "RuntimeError: cannot stand it (test_run.py:" in bad["error"].iloc[2]
    assert bad["auc"].isna().tolist() == [False, False, True, False, False]
    assert good["auc"].tolist() == kept[0].loc[kept[0]["attack"] == "loss", "auc"].tolist()
    pooled = read(tmp_path).summary[0]
    assert pooled["error"].startswith("1 of 5 targets: RuntimeError")
    assert pooled["auc"] is None  # nothing is averaged over fewer targets silently
    assert read(tmp_path).scores["bad"].isnan().any(1).tolist() == [False, False, True, False, False]


def test_what_lacks_something_is_refused_by_name_and_a_row_under_all(small):
    with pytest.raises(ValueError, match=r"attack lira-record needs .*shadow models in.*|attack lira needs"):
        compare(small, ["loss", "lira"], evaluate="leave-one-out", progress=False)
    frame = compare(small, "all", evaluate="leave-one-out", progress=False)
    errors = frame.groupby("attack")["error"].first()
    assert errors["lira"].startswith("not run: needs 2+ shadow models in each record, got 1")
    assert pd.isna(errors["loss"])
    with pytest.raises(ValueError, match="did you mean"):
        compare(small, ["lyra"], progress=False)


def test_ctrl_c_keeps_what_was_played(zoo, kept, tmp_path, monkeypatch):
    plain, calls = run.play, []

    def stopped(*arguments):
        calls.append(arguments)
        if len(calls) == 8:  # the second attack's third target
            raise KeyboardInterrupt
        return plain(*arguments)

    monkeypatch.setattr(run, "play", stopped)
    with pytest.raises(KeyboardInterrupt):
        compare(zoo, ["loss", "lira"], out=tmp_path, progress=False)
    held = read(tmp_path)
    assert held.manifest["stopped"]
    assert torch.equal(held.scores["loss"], kept[1].scores["loss"])
    assert torch.equal(held.scores["lira"][:2], kept[1].scores["lira"][:2])
    loss, lira = held.summary
    assert loss["auc"] == next(row["auc"] for row in kept[1].summary if row["attack"] == "loss")
    assert lira["error"] == "3 of 5 targets: stopped before this target"


def test_ctrl_c_while_measuring_keeps_the_scores(zoo, kept, tmp_path, monkeypatch):
    def stopped(runs, tick):
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "_measured", stopped)
    with pytest.raises(KeyboardInterrupt):
        compare(zoo, ["lira"], out=tmp_path, progress=False)
    assert torch.equal(read(tmp_path).scores["lira"], kept[1].scores["lira"])
