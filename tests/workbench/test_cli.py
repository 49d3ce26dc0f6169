import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from zoos import starts

from glasslab.zoo import Zoo
from workbench import cli, steps
from workbench.attacks import ATTACKS
from workbench.cli import main

ROOT = Path(__file__).parents[2]
SMALL = ["--shadows", "8", "--targets", "2", "--records", "100", "--recipe", "epochs=2"]


@pytest.fixture(params=[True, False], ids=["boxes", "ascii"])
def wrong(request, capsys, monkeypatch):
    """Runs a command that must end with code 2 and one line, before any model is trained; the line."""
    if request.param:  # what the parser draws on a terminal
        monkeypatch.setattr("tyro._fmtlib._should_use_utf8_drawing_chars", lambda: True)

    def refuse(*arguments, **settings):
        raise AssertionError("trained")

    monkeypatch.setattr(Zoo, "train", refuse)

    def ends(*words):
        try:
            code = main(words)
        except SystemExit as end:
            code = end.code
        assert code == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.count("\n") == 1
        assert said.err.startswith("glasslab: ")
        return said.err

    return ends


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("", "Expected one of {compare, train, attack, experiment, invert, synthesize, open-problem, zoo}"),
        ("comprae", "comprae"),
        ("compare --shdows 3", "--shdows, 3 (did you mean --shadows?)"),
        ("compare --shadows few", "--shadows"),
        ("compare --size huge", "'huge'"),
        ("compare --attacks", "--attacks"),
        ("compare --attacks loss,lyra", "such as lira (did you mean that?); got 'lyra'"),
        ("compare --attacks loss,loss", "each named once, got loss, loss"),
        ("compare --data digitz", "got 'digitz'"),
        ("compare --net cmn", "got 'cmn'"),
        ("compare --recipe epoch=3", "got 'epoch=3'"),
        ("compare --recipe lr=0", "lr must be above 0, got 0.0"),
        ("compare --shadows 7 --attacks loss", "must be even"),
        ("compare --records 1", "records must be 2 or more, got 1"),
        ("compare --mask blur:3", "got 'blur:3'"),
        ("compare --mask round_to:-1", "got 'round_to:-1' (d must be 0 or more, got -1)"),
        ("compare --data breast_cancer --queries 2", "queries must be 1 for tables"),
        ("compare --shadows 2 --attacks lira", "attack lira needs 2+ shadow models in each record, got 1"),
        ("compare --shadows 4 --attacks lira --evaluate leave-one-out", "attack lira needs 2+"),
        ("compare --search 1", "search must be 2 or more queries a record, got 1"),
        ("compare --data breast_cancer --attacks augmentation", "augmentation needs images, got a table"),
        ("compare --size paper", "size paper is written for cifar10"),
        ("compare --device abacus", "got 'abacus'"),
        ("attack --zoo nowhere", "manifest.json"),
        ("attack loss", "--zoo"),
        ("attack loss --zoo nowhere", "got none in nowhere"),
        ("zoo", "Expected one of {ls, verify, extend, gc}"),
        ("zoo burn", "burn"),
        ("zoo extend nowhere --shadows 4", "got none in nowhere"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(wrong, words, said):
    assert said in wrong(*words.split())


def test_our_own_mistakes_show_where(monkeypatch):
    """Only lines that were written for the user come without a traceback."""
    monkeypatch.setattr(steps, "ordered", lambda options: json.loads("{"))
    with pytest.raises(ValueError, match="Expecting property name"):
        main(["compare"])


@pytest.mark.parametrize("words", [[], ["compare"], ["train"], ["attack"], ["zoo"], ["zoo", "gc"]])
def test_help_names_every_flag_and_explains_it(words, capsys):
    with pytest.raises(SystemExit) as end:
        main([*words, "--help"])
    assert not end.value.code
    text = capsys.readouterr().out
    assert f"usage: {' '.join(['glasslab', *words])}" in text
    if words == ["compare"]:
        zoo = ("data", "net", "size", "shadows", "targets", "records", "recipe", "seed", "device", "root")
        attack = ("attacks", "queries", "mask", "evaluate", "out", "data-root")
        for flag in zoo + attack:
            assert f"--{flag} " in text


def test_help_does_not_wait_for_torch():
    code = (
        "import sys; from workbench.cli import main\n"
        "try: main(['compare', '--help'])\n"
        "except SystemExit: sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == 0


def test_the_main_job(tmp_path, capsys, monkeypatch):
    """Trains, prints the table and says where the files are; again, and nothing is trained."""
    monkeypatch.chdir(tmp_path)
    words = ["compare", *SMALL, "--attacks", "loss,lira"]
    assert main(words) == 0
    said = capsys.readouterr()
    assert "32 models to train, about" in said.err  # whole chunks of 16
    assert "zoo in zoo/" in said.err
    assert " lira " in said.out
    (run,) = (tmp_path / "runs").iterdir()
    assert run.name.endswith("-digits-mlp")
    files = {
        "results.json",
        "results.parquet",
        "scores.safetensors",
        "curves.parquet",
        "roc.png",
        "records.png",
    }
    assert {path.name for path in run.iterdir()} == files
    assert all(name in said.err for name in files)

    (zoo,) = (tmp_path / "zoo").iterdir()
    begun = starts(zoo)
    assert main([*words, "--out", "again"]) == 0
    assert "all models are there" in capsys.readouterr().err
    assert starts(zoo) == begun
    rows = [
        json.loads((folder / "results.json").read_text())["summary"] for folder in (run, tmp_path / "again")
    ]
    for row in (*rows[0], *rows[1]):
        row.pop("seconds")
    assert rows[0] == rows[1]

    assert main(["attack", "loss", "lira", "--zoo", str(zoo), "--out", "third"]) == 0
    third = json.loads((tmp_path / "third" / "results.json").read_text())["summary"]
    assert [row["auc"] for row in third] == [row["auc"] for row in rows[0]]


def test_an_attack_that_raises_gives_code_1_and_the_rest(tmp_path, capsys, monkeypatch):
    def broken(game, generator):
        raise RuntimeError("no luck")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(ATTACKS, "entropy", replace(ATTACKS["entropy"], run=broken))
    assert main(["compare", *SMALL, "--attacks", "entropy,loss", "--out", "run"]) == 1
    said = capsys.readouterr().out
    assert "entropy: RuntimeError: no luck" in said
    assert " loss " in said
    assert main(["compare", *SMALL, "--attacks", "loss", "--out", "run"]) == 0


def test_what_lacks_something_is_no_failure_under_all(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["compare", "--shadows", "2", *SMALL[2:], "--attacks", "all", "--out", "run"]
    few = ("loss", "lira")
    for name in [name for name in ATTACKS if name not in few]:
        monkeypatch.delitem(ATTACKS, name)
    assert main(words) == 0
    assert "lira: not run: needs 2+ shadow models" in capsys.readouterr().out


def test_zoos_are_looked_after(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("GLASSLAB_ZOO", str(tmp_path))
    assert main(["zoo", "ls"]) == 0
    assert "no zoo in" in capsys.readouterr().err
    assert main(["train", *SMALL]) == 0
    assert "8 shadows and 2 targets in" in capsys.readouterr().err
    (zoo,) = tmp_path.iterdir()
    assert main(["zoo", "extend", str(zoo), "--shadows", "20"]) == 0
    assert "20 shadows and 2 targets in" in capsys.readouterr().err
    assert main(["zoo", "ls"]) == 0
    assert "digits" in capsys.readouterr().out
    assert main(["zoo", "verify"]) == 0
    assert "1 zoos, 0 files that are not what they were" in capsys.readouterr().err

    chunk = zoo / "chunks" / "shadow-0000.safetensors"
    content = bytearray(chunk.read_bytes())
    content[-1] ^= 1
    chunk.write_bytes(content)
    assert main(["zoo", "verify", str(zoo)]) == 1
    assert chunk.name in capsys.readouterr().err

    stray = zoo / "chunks" / "shadow-0099.safetensors"
    shutil.copy(chunk, stray)
    assert main(["zoo", "gc"]) == 0
    assert "--yes deletes them" in capsys.readouterr().err
    assert stray.exists()
    assert main(["zoo", "gc", "--yes"]) == 0
    assert not stray.exists()
    assert chunk.exists()


def test_a_full_disk_is_one_line(tmp_path, capsys, monkeypatch):
    def full(*arguments, **settings):
        raise OSError(28, "disk full; what was finished is kept: make room and run again", "chunk")

    monkeypatch.setattr(Zoo, "train", full)
    assert main(["train", *SMALL, "--root", str(tmp_path)]) == 2
    assert "disk full; what was finished is kept" in capsys.readouterr().err.splitlines()[-1]


def test_the_script_is_this_one():
    text = (ROOT / "pyproject.toml").read_text()
    assert 'glasslab = "workbench.cli:main"' in text
    names = {"compare", "train", "attack", "experiment", "invert", "synthesize", "open-problem", "zoo"}
    assert set(cli.COMMANDS) == names
