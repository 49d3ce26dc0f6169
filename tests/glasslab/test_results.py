import json
import math
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from glasslab import results
from glasslab.results import FILES, Results, read, save, strict

CURVES = pd.DataFrame({"curve": ["roc", "roc"], "x": [0.0, 1.0], "y": [0.5, 1.0]})


def made(**changes):
    loss = {"attack": "loss", "auc": math.nan, "flags": ["a"], "n": np.int64(3)}
    held = Results(
        manifest={"seed": 0, "command": "by hand"},
        rows=[loss, {"attack": "lira", "auc": 0.5}],
        summary=[{"attack": "loss", "auc": -math.inf}],
        scores={"loss": torch.randn(2, 5).double()},
        truth=torch.rand(2, 5) < 0.5,
        records=torch.arange(5),
        curves=CURVES,
    )
    return replace(held, **changes)


def no_nan(word):
    raise AssertionError(word)


def test_what_was_written_is_read(tmp_path):
    held = made()
    assert save(tmp_path / "run", held) == tmp_path / "run"
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == sorted(FILES)
    again = read(tmp_path / "run")
    assert again.rows == [
        {"attack": "loss", "auc": None, "flags": ["a"], "n": 3},
        {"attack": "lira", "auc": 0.5},
    ]
    assert again.summary == [{"attack": "loss", "auc": None}]
    assert again.manifest == held.manifest
    assert torch.equal(again.scores["loss"], held.scores["loss"])
    assert again.scores["loss"].dtype == torch.float64
    assert torch.equal(again.truth, held.truth)
    assert torch.equal(again.records, held.records)
    pd.testing.assert_frame_equal(again.curves, CURVES)
    frame = pd.read_parquet(tmp_path / "run" / "results.parquet")
    assert frame["attack"].tolist() == ["loss", "lira"]


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
    max_leaves=20,
)


@given(plain)
def test_json_is_strict(value):
    text = json.dumps(strict(value), allow_nan=False)
    assert strict(json.loads(text, parse_constant=no_nan)) == strict(value)


def test_numbers_of_arrays_become_plain():
    given = {"a": np.float32(0.5), "b": torch.tensor([1.0, math.nan]), "c": np.bool_(True), 3: Path("x")}
    assert strict(given) == {"a": 0.5, "b": [1.0, None], "c": True, "3": "x"}


def test_a_failed_write_leaves_the_old_run_whole(tmp_path, monkeypatch):
    save(tmp_path, made())
    before = {name: (tmp_path / name).read_bytes() for name in FILES}

    def full(self, path, **settings):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pd.DataFrame, "to_parquet", full)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path, made(rows=[]))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_other_files_of_the_folder_are_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    save(tmp_path, made())
    save(tmp_path, made())
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(ValueError, match=r"got none of results.parquet, .* in .*"):
        read(tmp_path)
    with pytest.raises(ValueError, match=r"must not be named truth or records, got \['truth'\]"):
        save(tmp_path, made(scores={"truth": torch.zeros(2, 5).double()}))


def test_the_commit_is_that_of_this_source(tmp_path, monkeypatch):
    """Installed into somebody else's checkout, it is not their commit that made the numbers."""
    checkout = tmp_path / "theirs"
    package = checkout / "lib" / "glasslab"
    package.mkdir(parents=True)

    def git(*words):
        identity = ["-c", "user.name=n", "-c", "user.email=e@e"]
        subprocess.run(["git", "-C", checkout, *identity, *words], check=True, capture_output=True)

    git("init")
    git("commit", "--allow-empty", "-m", "theirs")
    monkeypatch.setattr(results, "__file__", str(package / "results.py"))
    assert results.commit() == results.versions()["glasslab"]
    monkeypatch.setattr(results, "__file__", str(checkout / "glasslab" / "results.py"))
    (checkout / "glasslab").mkdir()
    head = subprocess.run(["git", "-C", checkout, "rev-parse", "HEAD"], capture_output=True, text=True).stdout
    assert results.commit() == head[:12]
    (checkout / "file").write_text("new")
    git("add", "file")
    assert results.commit() == head[:12] + "+"


def test_provenance():
    held = results.provenance(seed=7, device="cpu", command="glasslab compare")
    assert held["seed"] == 7
    assert held["command"] == "glasslab compare"
    assert held["device"] == "cpu"
    assert held["versions"]["torch"] == torch.__version__
    assert strict(held) == held
