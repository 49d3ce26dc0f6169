import json
from dataclasses import replace

import pytest
import torch

from glasslab.datasets.place import home
from glasslab.recon_rows import Row
from inversion.miface import miface
from inversion.result import Inversion
from workbench.cli import main
from workbench.inverting import attacks, command, measured
from workbench.inverting.victim import victim
from workbench.options import InvertOptions

REFERENCES = ["class mean", "one step", "random private image", "other class", "public mean"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("zoo")


@pytest.fixture(scope="module")
def options(root):
    return InvertOptions(recipe="epochs=3", steps=20, root=root)


@pytest.fixture(scope="module")
def held(options):
    return victim(options, apart=False)


@pytest.fixture(scope="module")
def apart(options):
    return victim(options, apart=True)


def run(root, folder, *words):
    said = ["invert", "--recipe", "epochs=3", "--root", str(root), "--out", str(folder), *words]
    return main(said)


@pytest.fixture(scope="module")
def folder(root, tmp_path_factory):
    path = tmp_path_factory.mktemp("run")
    assert run(root, path, "--steps", "20") == 0
    return path


def read(folder):
    return json.loads((folder / "invert.json").read_text())


def test_every_attack_has_its_five_references(folder):
    rows = read(folder)["rows"]
    assert [row["row"] for row in rows] == ["miface", *REFERENCES]
    assert [row["reference"] for row in rows] == [False, True, False, True, False, False]
    assert all(row["attack"] == "miface" for row in rows)
    own = {row["row"]: row for row in rows}
    assert own["random private image"]["feature_distance"] == 0
    assert own["random private image"]["ssim"] == pytest.approx(1)
    assert own["random private image"]["psnr"] is None  # infinite
    assert own["public mean"]["nearest_id_low"] < own["public mean"]["nearest_id"] <= 0.2
    assert own["miface"]["queries"] == 0
    assert sum(own["miface"]["stop_reasons"].values()) == 10
    assert {"against_one_step", "p_distance_class_mean", "membership_auc"} <= own["miface"].keys()
    assert own["class mean"]["frechet_judge"] is None
    assert "10 rows" in own["class mean"]["frechet_reason"]


def test_every_result_says_where_it_is_from(folder):
    document = read(folder)
    manifest = document["manifest"]
    assert {"seed", "commit", "versions", "command", "zoo", "accuracy", "judge_accuracy"} <= manifest.keys()
    assert manifest["trained"] + manifest["judged"] + manifest["comparison"] <= 1797
    assert len(document["curves"]) == 10
    assert all(len(c["steps"]) == len(c["confidence"]) for c in document["curves"])
    assert {"sheet.png", "convergence.png"} < {path.name for path in folder.iterdir()}


def test_a_finished_attack_is_read_not_run_again(folder, root, monkeypatch, capsys):
    before = read(folder)["rows"]

    def refuse(*arguments):
        raise AssertionError("run again")

    monkeypatch.setitem(attacks.ATTACKS, "miface", replace(attacks.ATTACKS["miface"], run=refuse))
    assert run(root, folder, "--steps", "20") == 0
    assert "read from miface-" in capsys.readouterr().err
    assert read(folder)["rows"] == before
    with pytest.raises(AssertionError, match="run again"):
        run(root, folder, "--steps", "21")


def test_who_saw_what(held, apart):
    sides = [
        set(map(bytes, held.data.x[ids].numpy())) for ids in (held.trained, held.judged, held.comparison)
    ]
    assert all(not a & b for a, b in ((sides[0], sides[1]), (sides[0], sides[2]), (sides[1], sides[2])))
    assert apart.data.classes == 5
    assert apart.prior.classes == 5
    known = set(map(bytes, apart.data.x.numpy()))
    assert not known & set(map(bytes, apart.prior.x.numpy()))
    assert torch.equal(apart.aux, apart.prior.x)


def test_the_command_measures_what_miface_returns(held, options):
    y = torch.arange(10)
    found = attacks.by_miface(held, options, y)
    slow = miface(
        attacks.autograd(held.model), y, shape=(1, 8, 8), steps=20, start="public_mean", aux=held.aux
    )
    assert torch.equal(found.x, slow.x)
    line = measured.measured(held, "miface", Row(found.x, y, False)).line(0)
    near = held.judge.logits(found.x).argmax(1)
    assert line["judge_acc1"] == float((near == y).double().mean())


@pytest.mark.parametrize("gradient", ["difference", "nes"])
def test_asking_is_counted_and_ends_at_the_budget(held, options, gradient):
    some = replace(options, gradient=gradient, basis=0, pairs=8, steps=3)
    each = 10 * (16 if gradient == "nes" else 128)
    found = attacks.by_miface(held, some, torch.arange(10))
    assert int(found.queries.sum()) == 4 * each
    found = attacks.by_miface(held, replace(some, budget=2 * each), torch.arange(10))
    assert int(found.queries.sum()) == 2 * each
    assert set(found.stop_reason) == {"budget"}


def test_labels_alone(apart, options):
    found = attacks.ATTACKS["label-only"].run(apart, options, torch.arange(5))
    assert found.x.shape == (5, 1, 8, 8)
    assert int(found.queries.sum()) > 0
    assert attacks.access_of("label-only", options) == "labels"
    assert attacks.access_of("miface", options) == "weights"
    assert attacks.access_of("miface", replace(options, gradient="nes")) == "probabilities"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--attack mifase", "attack must be one or more of miface, deepinversion"),
        ("--attack miface,miface", "got 'miface,miface'"),
        ("--gradient nose", "'nose'"),
        ("--mask blur:3", "mask must be one of"),
        ("--data digitz", "got 'digitz'"),
        ("--net dae", "net dae must come with --data olivetti"),
        ("--rate 0", "rate must be above 0, got 0.0"),
        ("--labels 3,99", "labels must be all, or distinct ones of 0 to 9, got '3,99'"),
        ("--attack deepinversion", "BatchNorm"),
    ],
)
def test_a_mistake_is_one_line(root, tmp_path, capsys, words, said):
    try:
        code = run(root, tmp_path / "out", *words.split())
    except SystemExit as end:
        code = end.code
    assert code == 2
    err = capsys.readouterr().err.splitlines()
    assert said in err[-1]
    assert err[-1].startswith("glasslab: ")


def test_labels():
    assert command.labels_of("all", 3).tolist() == [0, 1, 2]
    assert command.labels_of("2, 0", 3).tolist() == [2, 0]
    for words in ("", "1,1", "x", "3", "-1"):
        with pytest.raises(ValueError, match="labels must be"):
            command.labels_of(words, 3)


def test_ctrl_c_says_what_is_kept(folder, root, monkeypatch, capsys):
    def stop(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setitem(attacks.ATTACKS, "gmi", replace(attacks.ATTACKS["gmi"], run=stop, prior=False))
    assert run(root, folder, "--steps", "20", "--attack", "miface,gmi") == 130
    assert "miface finished and kept" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(not (home(None) / "olivetti_faces.npz").exists(), reason="no olivetti_faces.npz")
def test_faces(tmp_path):
    """The bars of one split: error at most 10 %, who is who by 5,000 steps and by one."""
    assert main(["invert", "--data", "olivetti", "--confidence", "1", "--out", str(tmp_path)]) == 0
    own = {row["row"]: row for row in read(tmp_path)["rows"]}
    assert read(tmp_path)["manifest"]["accuracy"]["comparison"] >= 0.9
    assert own["miface"]["nearest_id"] >= 0.9
    assert own["one step"]["nearest_id"] >= 0.9
    assert own["other class"]["nearest_id"] <= 0.05


def test_a_curve_keeps_its_ends():
    """Of many steps some are kept, the first and the last among them, and none twice."""
    held = torch.linspace(0, 1, 5000, dtype=torch.float64)[:, None].repeat(1, 2)
    y, ends = torch.tensor([4, 7]), torch.tensor([5000, 3000])
    nothing = torch.zeros(2, dtype=torch.float64)
    found = Inversion(torch.zeros(2, 3), y, nothing, nothing, ends, 0 * ends, ("max_iter", "stall"), held)
    lines = measured.curves({"miface": found})
    assert [line["label"] for line in lines] == [4, 7]
    assert lines[0]["steps"] == sorted(set(lines[0]["steps"]))
    assert (lines[0]["steps"][0], lines[0]["steps"][-1]) == (1, 5000)
    assert lines[0]["confidence"] == pytest.approx([held[s - 1, 0].item() for s in lines[0]["steps"]])


def test_a_prior_asks_once_for_all_labels():
    queries = torch.tensor([7, 7, 7])
    nothing = torch.zeros(3, dtype=torch.float64)
    found = Inversion(torch.zeros(3, 2), torch.arange(3), nothing, nothing, queries, queries, ("stall",) * 3)
    assert attacks.asked("kedmi", found) == attacks.asked("plg-mi", found) == 7
    assert attacks.asked("miface", found) == attacks.asked("label-only", found) == 21
