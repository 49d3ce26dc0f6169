"""`glasslab experiment NAME`: what it prints and keeps, and what it refuses."""

import json
from io import StringIO

import pandas as pd
import pytest
from matplotlib import pyplot
from rich.console import Console

from glasslab.zoo import Zoo
from workbench import cli
from workbench.cli import main
from workbench.experiments import gap
from workbench.experiments.calibration import calibration
from workbench.experiments.catalogue import EXPERIMENTS, chosen
from workbench.experiments.command import save, table
from workbench.experiments.layers import layers
from workbench.experiments.metric_attacks import metric_attacks
from workbench.experiments.overfitting import overfitting
from workbench.experiments.precision_cdf import precision_cdf
from workbench.experiments.transfer import architectures, distributions, transfer_architecture
from workbench.options import ZooOptions

TINY = ["--shadows", "8", "--targets", "2", "--records", "80", "--recipe", "epochs=2"]


def strictly(text):
    def never(name):
        raise AssertionError(name)

    return json.loads(text, parse_constant=never)


@pytest.mark.parametrize("name", ["gap", "records"])
def test_an_experiment_by_its_command(name, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(gap, "RECORDS", (1.0,))
    words = ["experiment", name, *TINY, "--root", str(tmp_path / "zoo"), "--out", str(tmp_path / "run")]
    assert main(words) == 0
    said = capsys.readouterr()
    assert "models to train, about" in said.err
    assert name in said.out
    assert max(map(len, said.out.splitlines())) <= 100
    files = {path.name: path for path in (tmp_path / "run").iterdir()}
    assert set(files) == {f"{name}.{kind}" for kind in ("parquet", "json", "png")}
    assert files[f"{name}.png"].read_bytes().startswith(b"\x89PNG")
    held = strictly(files[f"{name}.json"].read_text())
    manifest = held["manifest"]
    assert {"seed", "commit", "versions", "device", "command", "zoos"} <= manifest.keys()
    assert manifest["experiment"] == name
    frame = pd.read_parquet(files[f"{name}.parquet"])
    assert len(frame) == len(held["rows"])
    assert set(frame.columns) == set(held["rows"][0])
    assert ("lines" in held) == (name == "gap")
    assert pyplot.get_fignums() == []

    if name == "records":
        assert main(words) == 0  # again, and nothing is trained
        assert "all models are there" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("gapp", "got 'gapp' (did you mean gap?)"),
        ("xyzzy", "name must be one of metric-attacks, gap, "),
        ("entropy --also digits", "also must be left out for entropy"),
        ("gap --data digitz", "got 'digitz'"),
        ("transfer-data --also breast_cancer", "10 classes, got (30,) and 2 of breast_cancer"),
        ("records --shadows 3", "must be even"),
        ("", "experiment"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(words, said, capsys, monkeypatch):
    def refuse(*arguments, **settings):
        raise AssertionError("trained")

    monkeypatch.setattr(Zoo, "train", refuse)
    try:
        code = main(["experiment", *words.split()])
    except SystemExit as end:
        code = end.code
    assert code == 2
    line = capsys.readouterr().err
    assert said in line
    assert line.count("\n") == 1


def test_the_help_names_every_experiment():
    text = " ".join((cli.experiment.__doc__ or "").split())
    assert all(f" {name}," in text or f" {name}." in text for name in EXPERIMENTS)


def test_every_experiment_of_one_data_set_is_drawn(zoo, tmp_path):
    """Pictures and short tables of those whose command trains too much for a test."""
    alone = {"noise": zoo}
    frames = {
        "metric-attacks": metric_attacks(alone, attacks=["random", "correctness", "loss"]),
        "overfitting": overfitting(alone, attack="loss-per-class"),
        "precision-cdf": precision_cdf(zoo, attacks=["loss-per-class"]),
        "transfer-architecture": transfer_architecture(zoo, {}, attacks=["loss-per-class"]),
        "entropy": EXPERIMENTS["entropy"].run(alone, 0),
        "ablations": EXPERIMENTS["ablations"].run(alone, 0),
        "calibration": calibration(zoo, attacks=["loss", "bayes-wb"]),
        "layers": layers(zoo, proxies=1),
    }
    for name, frame in frames.items():
        manifest = {"seed": 0, "commit": "0123", "command": f"glasslab experiment {name}"}
        save(tmp_path, name, frame, manifest | {"zoos": frame.attrs["zoos"]})
        assert (tmp_path / f"{name}.png").stat().st_size > 1000
        assert table(chosen(name).short(frame), name).row_count > 0


def test_a_table_never_cuts_a_number():
    """Wrong version: -0.002 in a column too narrow for it reads -0.00."""
    words, numbers = {"shadows": "w" * 40, "attack": "a" * 40}, dict.fromkeys("abcdef", -0.002)
    frame = pd.DataFrame([words | numbers])
    page = Console(file=StringIO(), width=100)
    page.print(table(frame, "title"))
    assert page.file.getvalue().count("-0.002") == 6
    assert page.file.getvalue().count("w") == 41  # folded, not cut; its head has one more


def test_architectures_share_records_and_distributions_do_not():
    orders = architectures(ZooOptions(), [])
    assert len({order.data.digest for order in orders.values()}) == 1
    assert len({order.recipe for order in orders.values()}) == len(orders) == 5
    assert len({str(order.settings) for order in orders.values()}) == 1

    orders = distributions(ZooOptions(), [])
    home = {x.numpy().tobytes() for x in orders["home"].data.x}
    other = {x.numpy().tobytes() for x in orders["other records"].data.x}
    assert not home & other
    assert len(orders["home"].data) + len(orders["other records"].data) == 1797
    assert len({order.settings["records"] for order in orders.values()}) == 1
    assert all(round(0.6 * len(o.data)) >= o.settings["records"] for o in orders.values())
    assert orders["dimmed"].data.x.max() == pytest.approx(0.6)
