import json
from dataclasses import replace

import pytest
import torch
from zoos import RECIPE, tiny

from glasslab import metrics
from glasslab.data import Data
from glasslab.signals import phi
from glasslab.split import stream
from whitebox.gram import Gram
from workbench.cli import main
from workbench.open_problem import command, judged, parts, run
from workbench.open_problem.bought import affordable
from workbench.open_problem.frozen import CLAIMED, W
from workbench.open_problem.scores import black

DECAYS = replace(RECIPE, hidden=(64,), epochs=60, weight_decay=0.003)


def noise(n=600, d=20, classes=3):
    """Nothing to learn but by heart: labels are coin flips."""
    g = stream(0, "noise")
    return Data(torch.rand(n, d, generator=g), torch.randint(classes, (n,), generator=g), classes, "noise")


CONTROLS = ("control-noise", "control-target", "control-record")


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    """16 shadows and 5 targets near a stationary point; 300 candidates with labels drawn at random."""
    root = tmp_path_factory.mktemp("decays")
    return tiny(root, DECAYS, data=noise(), shadows=16, targets=5, records=300)


@pytest.fixture(scope="module")
def found(zoo, tmp_path_factory):
    return run.answer([zoo], tmp_path_factory.mktemp("open"), draws=100, show=False)


def test_the_weights_read_more_than_their_answers(found):
    truth = found.truth
    auc = {name: metrics.auc(score, truth) for name, score in found.scores.items()}
    assert auc["W"] > auc["B"] + 0.02
    assert auc["W"] > auc["lira"] + 0.02
    assert auc["decode"] > 0.6


def test_controls_read_what_b_reads(found):
    """White-box signals of noise, another model or another record: as if there were none."""
    truth = found.truth
    for name in CONTROLS:
        assert metrics.auc(found.scores[name], truth) == pytest.approx(
            metrics.auc(found.scores["B"], truth), abs=0.03
        )


def test_permuted_truth_shows_no_gain(found):
    """The same scores against members drawn anew: chance, within four standard errors."""
    null = {row["attack"]: row for row in found.document["permuted_truth"]}
    n = found.truth.numel() / 2
    for name in ("W", "B", "lira"):
        assert abs(null[name]["auc"] - 0.5) < 4 * (1 / (6 * n)) ** 0.5


def test_the_truth_of_a_target_changes_no_score(zoo, found, tmp_path):
    flipped = replace(zoo, target_member=~zoo.target_member)
    other = run.answer([flipped], tmp_path, draws=100, show=False)
    for name, score in found.scores.items():
        assert torch.equal(other.scores[name], score), name


@pytest.mark.slow
def test_another_target_beside_it_changes_no_score(zoo, found, tmp_path_factory):
    """Bit-equal, but for the control that exchanges targets."""
    root = tmp_path_factory.mktemp("more")
    more = tiny(root, DECAYS, data=noise(), shadows=16, targets=6, records=300)
    other = run.answer([more], tmp_path_factory.mktemp("open"), draws=100, show=False)
    for name, score in found.scores.items():
        if name not in ("control-target", "control-noise"):
            assert torch.equal(other.scores[name][:5], score), name


def test_finished_signals_are_read(zoo, tmp_path, monkeypatch):
    run.answer([zoo], tmp_path, draws=100, show=False)
    made = sorted((tmp_path / "parts").iterdir())
    assert len(made) == 16 + 5
    made[3].unlink()
    asked = []
    gram = parts._gram

    def counted(*arguments) -> Gram:
        asked.append(arguments[1:])
        return gram(*arguments)

    monkeypatch.setattr(parts, "_gram", counted)
    run.answer([zoo], tmp_path, draws=100, show=False)
    assert len(asked) == 2  # the missing one, and the shadow that lends its gradients to B


def test_players_are_whole_pairs_of_either_half():
    assert parts.players(64, 8) == [0, 1, 2, 3, 32, 33, 34, 35]
    assert parts.players(16, 16) == [0, 1, 2, 3, 4, 5, 8, 9, 10, 11, 12, 13]
    assert parts.players(12, 8) == [0, 1, 2, 3, 6, 7, 8, 9]


def test_black_box_signals_by_hand():
    z = torch.randn(7, 4, generator=stream(0, "z"), dtype=torch.float64)
    y = torch.arange(7) % 4
    p = z.softmax(1)
    own = torch.nn.functional.one_hot(y, 4).bool()
    got = black(z, y)
    q = p.masked_fill(own, 0) / (1 - p[own])[:, None]
    wanted = {
        "phi": phi(z, y),
        "log_rest": (1 - p[own]).log(),
        "log_error": (p - own.double()).norm(dim=1).log(),
        "wrong_entropy": torch.special.entr(q).sum(1),
        "z_y": z[own],
    }
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(got[name], value, rtol=1e-9, atol=1e-12)


def test_black_box_signals_are_finite_where_a_model_is_sure():
    z = torch.tensor([[60.0, 0.0, 0.0], [0.0, 60.0, 0.0]])
    for name, value in black(z, torch.tensor([0, 0])).items():
        assert value.isfinite().all(), name


@pytest.mark.parametrize(
    ("low", "seeds", "won"),
    [(1.1, [1.2, 1.5], True), (0.9, [1.2, 1.5], False), (1.1, [0.9, 1.5], False), (None, [None], False)],
)
def test_a_zoo_is_won_by_its_interval_and_by_every_seed(low, seeds, won):
    row = {"attack": "W", "seed": "all", "low": low, "low_bb": low}
    row |= {"ratio_to_lira_seeds": seeds, "ratio_to_blackbox_stack_seeds": seeds}
    assert judged.verdict([row]) == {"won_against_lira": won, "won_against_blackbox_stack": won}


def test_w_is_frozen():
    """Claims were made with these numbers; another W is another claim."""
    law = W.laws[0]
    assert (W.ridge, W.shape_ridge, W.players, W.C, W.stacker) == (0.01, 0.03, 8, 0.1, "logistic")
    assert (len(W.laws), law.noise, law.rho, law.tau, law.rounds) == (1, 0.5, 0.3, 0.03, 2)
    assert CLAIMED == (0, 1, 2)


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("GLASSLAB_ZOO", str(tmp_path / "zoo"))
    words = ["open-problem", "--shadows", "12", "--targets", "3", "--records", "120"]
    words += ["--recipe", "epochs=20,weight_decay=0.003", "--out", str(tmp_path / "out")]
    assert main(words) == 0
    said = capsys.readouterr()
    assert "over LiRA" in said.out
    assert "about" in said.err
    held = json.loads((tmp_path / "out" / "open_problem.json").read_text())
    assert held["frozen"] is True
    assert held["resolved"] is False
    assert {row["attack"] for row in held["rows"]} >= {"W", "B", "lira", "decode", *CONTROLS}
    assert (tmp_path / "out" / "roc.png").stat().st_size > 1000
    bought = next(row for row in held["rows"] if row["attack"] == "lira-bought")
    assert bought["shadows"] > 12
    for line in ("permuted truth: W reads", "positive control", "W less B", "W against B: "):
        assert line in said.err
    assert held["positive_control"]["rho"] > 1.2


def test_no_bought_trains_no_further_shadow(tmp_path, monkeypatch, found):
    monkeypatch.setenv("GLASSLAB_ZOO", str(tmp_path / "zoo"))
    asked = []

    def answer(zoos, folder, *, bought):
        asked.append(bought)
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "answer", answer)
    words = ["open-problem", "--shadows", "12", "--targets", "2", "--records", "60", "--recipe"]
    words += ["epochs=2,weight_decay=0.003", "--out", str(tmp_path / "out")]
    assert [main(words), main([*words, "--no-bought"])] == [130, 130]
    assert asked == [True, False]
    assert "lira-bought" not in found.scores


@pytest.mark.parametrize(("seconds", "each", "wanted"), [(10.0, 1.0, 10), (11.9, 2.0, 4), (0.5, 1.0, 0)])
def test_shadows_are_bought_in_whole_pairs(seconds, each, wanted):
    assert affordable(seconds, each) == wanted


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--shadows", "10"], "shadows must be 12 or more and a multiple of 4 for open-problem, got 10"),
        (["--targets", "1"], "targets must be 2 or more for open-problem, got 1"),
        (["--recipe", "epochs=3"], "recipe must have a weight_decay above 0 for open-problem, got 0"),
    ],
)
def test_what_cannot_be_answered_is_refused_in_one_line(words, line, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("GLASSLAB_ZOO", str(tmp_path))
    assert main(["open-problem", *words]) == 2
    assert line in capsys.readouterr().err
