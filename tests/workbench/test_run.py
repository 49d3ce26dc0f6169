import json

import numpy as np
import pandas as pd
import pytest
import torch

from glasslab import columns, likelihood, metrics, results
from glasslab.game import game
from glasslab.masks import round_to
from glasslab.results import read
from glasslab.split import stream
from workbench import blackbox_reference, compare, learned, run
from workbench.attacks import ATTACKS, Attack
from workbench.mock import folds
from workbench.play import granted

FEW = ["random", "loss", "lira"]


def test_one_row_an_attack_and_target(kept):
    frame, held, _ = kept
    names = held.manifest["attacks"]
    expected = [(name, a) for name in names for a in range(5)]
    assert list(zip(frame["attack"], frame["target"], strict=True)) == expected
    assert [row["attack"] for row in held.summary] == names
    assert frame["error"].isna().all()
    assert (frame["shadows"] == 16).all()
    cost = frame.groupby("attack")[["queries", "models"]].first()
    assert cost.loc[["random", "correctness", "lira"]].to_numpy().tolist() == [[0, 0], [300, 0], [300, 16]]


def test_numbers_are_those_of_the_scores(zoo, kept):
    """The way from an attack's function to the table, done by hand for one target and for all."""
    frame, held, _ = kept
    by_hand = [ATTACKS["lira"].run(granted(game(zoo, a), ATTACKS["lira"]), stream(0)) for a in range(5)]
    score = torch.stack(by_hand)
    assert torch.equal(held.scores["lira"], score)
    assert torch.equal(held.truth, zoo.target_member)
    assert torch.equal(held.records, zoo.split.pool)
    row = frame[(frame["attack"] == "lira") & (frame["target"] == 3)].iloc[0]
    assert row["auc"] == metrics.auc(score[3], zoo.target_member[3])
    pooled = next(row for row in held.summary if row["attack"] == "lira")
    assert pooled["tpr_at_1pct"] == metrics.tpr_at_fpr(score, zoo.target_member, 0.01).tpr
    assert pooled["n_neg"] == int((~zoo.target_member).sum())
    assert pooled["auc_low"] < pooled["auc"] < pooled["auc_high"]


def test_the_gap_is_what_correctness_finds(kept):
    """Balanced accuracy is (1 + gap) / 2: an identity on the candidates."""
    frame, _, _ = kept
    rows = frame[frame["attack"] == "correctness"]
    assert (rows["gap"] > 0.1).all()
    np.testing.assert_allclose(rows["balanced_accuracy_decision"], (1 + rows["gap"]) / 2, rtol=1e-12)


def test_thresholds_come_from_mock_targets(zoo, kept):
    """There the false-positive rate is near its name, and the target's truth is not needed."""
    frame, held, _ = kept
    lira = next(row for row in held.summary if row["attack"] == "lira")
    assert lira["tpr_at_1pct_fpr_transferred"] < 0.05
    assert lira["balanced_accuracy"] >= lira["balanced_accuracy_transferred"] > 0.6
    assert lira["calibrated_by"] == "16 mock targets"
    assert lira["calibrated_auc"] > 0.7


def test_a_mock_target_is_attacked_by_the_same_rule(zoo, monkeypatch):
    """With 14 shadows of 16 left, "auto" would mean another spread than for the target itself."""
    monkeypatch.setattr(likelihood, "ENOUGH", 8)
    monkeypatch.setattr(blackbox_reference, "ENOUGH", 8)
    zoo.memo.clear()  # other tests have fitted "auto" to its shadows
    auto, record = (compare(zoo, name, progress=False) for name in ("lira", "lira-record"))
    zoo.memo.clear()
    for column in ("auc", "tpr_at_1pct_transferred", "balanced_accuracy_transferred"):
        assert auto[column].tolist() == record[column].tolist()


def test_lira_is_told_apart_from_loss(kept):
    held = {row["attack"]: row for row in kept[1].summary}
    lira, loss = held["lira"], held["loss"]
    assert lira["auc_minus_loss"] == pytest.approx(lira["auc"] - loss["auc"])
    assert lira["auc_minus_loss_low"] < lira["auc_minus_loss"] < lira["auc_minus_loss_high"]
    assert loss["auc_minus_loss"] is None
    assert held["random"]["auc_minus_loss_high"] < 0
    assert held["modified-entropy-per-class"]["auc_minus_lira"] is not None
    assert held["random"]["auc_minus_lira"] is None  # it holds less


def test_results_are_strict_json(kept):
    _, held, folder = kept
    text = (folder / "results.json").read_text()

    def refuse(word):
        raise AssertionError(word)

    document = json.loads(text, parse_constant=refuse)
    assert document.keys() == {"manifest", "rows", "summary"}
    assert document["manifest"]["command"] == "glasslab compare"
    assert not document["manifest"]["stopped"]
    columns = {tuple(row) for row in document["rows"]}
    assert len(columns) == 1  # the same ones in every row
    assert document["rows"] == held.rows
    pd.testing.assert_frame_equal(
        pd.read_parquet(folder / "results.parquet")[["attack", "auc", "tpr_at_0.1pct_flag"]],
        pd.DataFrame(held.rows)[["attack", "auc", "tpr_at_0.1pct_flag"]],
        check_dtype=False,
    )


def test_the_frame_can_be_worked_with(kept, tmp_path):
    """Attributes of a frame travel with it: they must not break a join, a summary, a file."""
    frame, held, _ = kept
    assert frame.attrs["summary"] == held.summary
    assert frame.attrs["manifest"]["zoo"] == held.manifest["zoo"]
    twice = pd.concat([frame, frame.copy()])
    assert len(twice) == 2 * len(frame)
    assert frame.describe()["auc"]["count"] == len(frame)
    frame.to_parquet(tmp_path / "frame.parquet")


def test_same_seed_same_numbers(zoo, kept):
    again = compare(zoo, FEW, progress=False)
    before = kept[0][kept[0]["attack"].isin(FEW)].reset_index(drop=True)
    columns = [name for name in again if name != "seconds"]
    pd.testing.assert_frame_equal(before[columns], again[columns], check_dtype=False)


def test_an_attack_alone_gives_what_it_gives_among_others(zoo, kept):
    alone = compare(zoo, ["lira"], progress=False)
    among = kept[0][kept[0]["attack"] == "lira"].reset_index(drop=True)
    assert alone["auc"].tolist() == among["auc"].tolist()
    assert alone["balanced_accuracy_transferred"].tolist() == among["balanced_accuracy_transferred"].tolist()


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


def test_shadows_teach_once_and_chance_draws_for_each(zoo, kept, monkeypatch):
    calls = []
    plain = learned.shadow.attack_model

    def counted(*arguments, **settings):
        calls.append(arguments)
        return plain(*arguments, **settings)

    monkeypatch.setattr(learned.shadow, "attack_model", counted)
    zoo.memo.clear()
    compare(zoo, ["shadow-sorted"], progress=False)
    assert len(calls) == 1 + len(folds(16))  # for all targets, and for the mock targets of each fold
    assert len(kept[1].scores["random"].unique()) == 5 * 300


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

    def stopped(*arguments, search):
        calls.append(arguments)
        if len(calls) == 8:  # the second attack's third target
            raise KeyboardInterrupt
        return plain(*arguments, search=search)

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


def test_leave_one_out(zoo, tmp_path):
    frame = compare(zoo, ["loss", "lira"], evaluate="leave-one-out", out=tmp_path, progress=False)
    assert len(frame) == 2 * 16
    assert (frame["shadows"] == 14).all()
    lira = next(row for row in frame.attrs["summary"] if row["attack"] == "lira")
    assert lira["targets"] == 16
    assert lira["auc"] > 0.7
    assert lira["balanced_accuracy_transferred"] == pytest.approx(
        frame.loc[frame["attack"] == "lira", "balanced_accuracy_transferred"].mean()
    )
    score, truth = read(tmp_path).scores["loss"], zoo.shadow_member
    by_hand = columns.transferred(score[0], truth[0], score[1:], truth[1:])  # the others' thresholds
    first = frame[frame["attack"] == "loss"].iloc[0]
    assert {name: first[name] for name in by_hand if isinstance(by_hand[name], float)} == {
        name: value for name, value in by_hand.items() if isinstance(value, float)
    }
    with pytest.raises(ValueError, match="takes the zoo's own shadows"):
        compare(zoo, evaluate="leave-one-out", shadows=zoo, progress=False)


def test_shadows_of_another_zoo(zoo, foreign):
    names = ["loss", "modified-entropy-per-class", "shadow-sorted", "lira-offline"]
    frame = compare(zoo, names, shadows=foreign, progress=False)
    assert frame["error"].isna().all()
    assert "balanced_accuracy_transferred" not in frame  # no mock targets on these records
    areas = frame.groupby("attack")["auc"].mean()
    assert areas["modified-entropy-per-class"] > 0.7
    assert areas["shadow-sorted"] > 0.54
    assert frame.attrs["manifest"]["shadow_zoo"] == foreign.key
    with pytest.raises(ValueError, match="attack lira needs 2"):
        compare(zoo, ["lira"], shadows=foreign, progress=False)


def test_floors_become_notes(zoo):
    frame = compare(zoo, ["lira"], mask=[round_to(1)], progress=False)
    assert frame["notes"].str.contains("answers sit on the floor 0.05").all()
    assert frame["notes"].str.contains("log-odds").notna().all()
    assert frame.attrs["manifest"]["mask"] == ["round_to(d=1)"]
    pooled = frame.attrs["summary"][0]
    assert "on 5 targets" in pooled["notes"]


def test_the_manifest_says_where_numbers_come_from(zoo, kept):
    held = kept[1].manifest
    assert held["seed"] == 0
    assert held["zoo"] == zoo.key
    assert held["data"]["digest"] == zoo.data.digest
    assert held["commit"][:12] == results.commit()[:12]
    assert held["versions"]["torch"] == torch.__version__
    assert held["seconds"] > 0
    assert {"device", "machine", "recipe", "pool", "aux", "test", "duplicates", "checks"} <= held.keys()


def test_costly_attacks_have_no_mock_targets(zoo):
    frame = compare(zoo, ["loss", "merlin"], search=9, progress=False)
    loss, merlin = frame.attrs["summary"]
    assert merlin["tpr_at_1pct_transferred"] is None
    assert loss["tpr_at_1pct_transferred"] is not None
    assert "no thresholds from mock targets: it is costly" in merlin["notes"]
    assert (frame.loc[frame["attack"] == "merlin", "queries"] == 300 * 9).all()
    assert frame.attrs["manifest"]["search"] == 9


def test_a_set_leaves_out_what_cannot_run(zoo, small):
    """`small` has four shadows and no images: what lacks something is a row that says so."""
    frame = compare(small, "standard", progress=False)
    lacks = frame.loc[frame["error"].notna()].set_index("attack")["error"]
    assert lacks["ye-p"].startswith("not run: needs 100+ records of aux, got ")
    assert lacks.str.startswith("not run: needs").all()
    assert "boundary" not in set(frame["attack"])
    with pytest.raises(ValueError, match="attack augmentation needs images, got a table"):
        compare(zoo, ["loss", "augmentation"], progress=False)
