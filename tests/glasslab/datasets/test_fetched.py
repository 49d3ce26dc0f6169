"""Olivetti, LFW and Adult from small local files, and from fetchers that are played."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from glasslab.datasets import fetched, load

FETCHERS = {"olivetti": "fetch_olivetti_faces", "lfw": "fetch_lfw_people", "adult": "fetch_openml"}


@pytest.mark.parametrize(("name", "fetcher"), FETCHERS.items())
def test_a_failed_fetch_leaves_nothing_behind(name, fetcher, tmp_path, monkeypatch, refused):
    def fails(data_home: str) -> None:
        (Path(data_home) / "half.pkz").write_bytes(b"half")
        raise OSError("no route\nto host")

    monkeypatch.setattr(f"sklearn.datasets.{fetcher}", lambda *_, **settings: fails(settings["data_home"]))
    said = refused(name, tmp_path / "root", download=True)
    assert said.startswith(f"{name} needs {'olivetti_faces' if name == 'olivetti' else name}.npz")
    assert "the download failed (no route to host)" in said
    assert not list((tmp_path / "root").iterdir())


def test_fetched_faces_are_the_bytes_of_the_npz(tmp_path, monkeypatch):
    grey = np.random.default_rng(5).integers(0, 243, (80, 64, 64))
    grey.flat[:2] = 0, 242
    held = type("Bunch", (), {"images": np.float32(grey) / np.float32(242), "target": np.arange(80) % 40})
    monkeypatch.setattr("sklearn.datasets.fetch_olivetti_faces", lambda *, data_home: held)
    fresh = load("olivetti", tmp_path)
    assert (fresh.x[:, 0] * 255).round().int().tolist() == grey.tolist()
    assert [p.name for p in tmp_path.iterdir()] == ["olivetti_faces.npz"]
    monkeypatch.delattr("sklearn.datasets.fetch_olivetti_faces")
    assert load("olivetti", tmp_path, download=False).digest == fresh.digest


def write_people(folder: Path) -> None:
    g = np.random.default_rng(6)
    for person, count in {"Zoe_Z": 4, "Ann_A": 3, "Bob_B": 1}.items():
        (folder / person).mkdir(parents=True)
        for i in range(1, count + 1):
            small = Image.fromarray(g.integers(0, 256, (25, 25, 3), np.uint8))
            small.resize((250, 250)).save(folder / person / f"{person}_{i:04}.jpg")


def test_lfw_has_the_pixels_of_scikit_learn(tmp_path, monkeypatch, refused):
    """The twin is fetch_lfw_people itself, which shuffles."""
    from sklearn.datasets import fetch_lfw_people

    write_people(tmp_path / "lfw_home" / "lfw_funneled")
    for pairs in ("pairsDevTrain.txt", "pairsDevTest.txt", "pairs.txt"):
        (tmp_path / "lfw_home" / pairs).touch()
    twin = fetch_lfw_people(data_home=tmp_path, min_faces_per_person=3, download_if_missing=False)
    monkeypatch.setattr(fetched, "FACES", 3)
    data = load("lfw", tmp_path, download=False)
    assert (data.shape, data.counts) == ((1, 62, 47), [3, 4])  # Ann, Zoe; Bob has too few
    ours = {face.numpy().round(5).tobytes(): int(y) for face, y in zip(data.x[:, 0], data.y, strict=True)}
    theirs = {face.round(5).tobytes(): int(y) for face, y in zip(twin.images, twin.target, strict=True)}
    assert ours == theirs
    monkeypatch.setattr(fetched, "FACES", 4)
    assert "2 or more people with 4 faces, found 1" in refused("lfw", tmp_path)


def test_fetched_lfw_is_the_local_one(tmp_path, monkeypatch):
    def fetch(*, data_home: str, min_faces_per_person: int) -> None:
        write_people(Path(data_home) / "lfw_home" / "lfw_funneled")

    monkeypatch.setattr(fetched, "FACES", 3)
    monkeypatch.setattr("sklearn.datasets.fetch_lfw_people", fetch)
    monkeypatch.setattr(fetched, "PEOPLE", 2)
    write_people(tmp_path / "local" / "lfw_funneled")
    assert load("lfw", tmp_path / "far").digest == load("lfw", tmp_path / "local").digest
    assert [p.name for p in (tmp_path / "far").iterdir()] == ["lfw.npz"]


FIRST = "39, State-gov, 77516, Bachelors, 13, Single, Sales, Own-child, White, Male, 9, 0, 40, Cuba, <=50K\n"
SECOND = "50, Private, 83311, Bachelors, 13, Divorced, ?, Husband, White, Female, 0, 0, 13, ?, >50K\n"
CENSUS = FIRST + SECOND + "\n"
EXAM = """|1x3 Cross validator
25, ?, 226802, 11th, 7, Divorced, Sales, Own-child, Black, Male, 0, 12, 40, Cuba, >50K.
"""


def write_adult(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "adult.data").write_text(CENSUS)
    (root / "adult.test").write_text(EXAM)
    monkeypatch.setattr(fetched, "ROWS", {"adult.data": 2, "adult.test": 1})


def test_adult_from_its_two_files(tmp_path, monkeypatch):
    write_adult(tmp_path, monkeypatch)
    data = load("adult", tmp_path)
    assert data.y.tolist() == [0, 1, 1]
    age, workclass, fnlwgt = data.x[:, :1], data.x[:, 1:4], data.x[:, 4:5]
    assert age.squeeze().tolist() == [39, 50, 25]
    assert workclass.tolist() == [[0, 0, 1], [0, 1, 0], [1, 0, 0]]  # ?, Private, State-gov
    assert fnlwgt.squeeze().tolist() == [77516, 83311, 226802]
    assert data.shape == (6 + 3 + 7 * 2,)
    assert data.x[:, -2:].tolist() == [[0, 1], [1, 0], [0, 1]]  # ?, Cuba
    assert data.x[:, -3].tolist() == [40, 13, 40]


def test_adult_of_openml_is_the_same_table(tmp_path, monkeypatch):
    write_adult(tmp_path, monkeypatch)
    local = load("adult", tmp_path)
    rows = [r.rstrip(".").split(", ") for r in (CENSUS + EXAM).splitlines() if r and not r.startswith("|")]
    frame = pd.DataFrame(rows, columns=[*fetched.COLUMNS, "class"]).replace("?", None)
    frame = frame.astype({name: "int64" if name in fetched.NUMBERS else "category" for name in frame})
    held = type("Bunch", (), {"data": frame.drop(columns="class"), "target": frame["class"]})
    monkeypatch.setattr("sklearn.datasets.fetch_openml", lambda *_, **__: held)
    assert load("adult", tmp_path / "far").digest == local.digest
    assert load("adult", tmp_path / "far", download=False).digest == local.digest


census = {
    "short row": ("39, State-gov, 77516\n", "must have 15 fields a row, got 3 in row 1"),
    "cut row": (FIRST + SECOND[:60], "must have 15 fields a row, got 9 in row 2"),
    "cut file": (FIRST, "must hold 2 rows, got 1"),
    "empty": ("", "must hold 2 rows, got 0"),
    "no number": (CENSUS.replace("39,", "old,"), "age must be a number, got could not convert string"),
    "no income": (CENSUS.replace(">50K", ">5"), "income must be one of <=50K, >50K, got '>5'"),
    "infinite": (CENSUS.replace("39,", "inf,"), "NaN or infinite features in 1 of 3 records"),
}


@pytest.mark.parametrize(("content", "says"), census.values(), ids=census.keys())
def test_a_bad_census_gets_one_line(content, says, tmp_path, monkeypatch, refused):
    write_adult(tmp_path, monkeypatch)
    (tmp_path / "adult.data").write_text(content)
    assert says in refused("adult", tmp_path)
