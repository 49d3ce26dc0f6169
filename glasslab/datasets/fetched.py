"""Sets that scikit-learn fetches: Olivetti, Labeled Faces in the Wild, Adult. Local files come first.

scikit-learn keeps what it fetches as pickles. Here it fetches into a fresh temporary folder, so that such a
file is written and never read; what came is kept in the root as an npz instead.
"""

import csv
import os
import tempfile
import warnings
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path

import numpy as np

from glasslab.data import Data
from glasslab.datasets.arrays import Array, as_data, read_npz
from glasslab.datasets.local import picture
from glasslab.datasets.place import first, missing

FACES = 20  # of a person at least; with fewer, no half of them says much about the other half
PEOPLE = 62  # have so many in LFW
NUMBERS = ("age", "fnlwgt", "education-num", "capital-gain", "capital-loss", "hours-per-week")
COLUMNS = (
    *("age", "workclass", "fnlwgt", "education", "education-num", "marital-status", "occupation"),
    *("relationship", "race", "sex", "capital-gain", "capital-loss", "hours-per-week", "native-country"),
)
INCOMES = ["<=50K", ">50K"]
ROWS = {"adult.data": 32_561, "adult.test": 16_281}


def olivetti(root: Path, download: bool) -> Data:
    """400 faces of 40 people, 64 x 64, grey (AT&T Laboratories Cambridge; Samaria & Harter 1994).

    From olivetti_faces.npz: x u8[400, 64, 64] and y.
    """
    path = root / "olivetti_faces.npz"
    if not path.is_file():
        _fetch("olivetti", _olivetti, path, "sklearn.datasets.fetch_olivetti_faces", download)
    return _kept(path, 40, "olivetti")


def lfw(root: Path, download: bool) -> Data:
    """3,023 faces of the 62 people who have 20 or more, 62 x 47, grey (Huang et al. 2007).

    From lfw.npz, or from the folder lfw_funneled (or lfw_home/lfw_funneled) with a folder a person; pixels
    are cut and reduced as by scikit-learn's fetch_lfw_people, people and images in the order of their names.
    """
    path, people = root / "lfw.npz", first(root / "lfw_funneled", root / "lfw_home" / "lfw_funneled")
    if not path.is_file() and people:
        x, y = faces(people)
        return as_data(x, y, int(y.max()) + 1, "lfw")
    if not path.is_file():
        _fetch("lfw", _lfw, path, "http://vis-www.cs.umass.edu/lfw", download, " or lfw_funneled/")
    return _kept(path, PEOPLE, "lfw")


def adult(root: Path, download: bool) -> Data:
    """48,842 people of the 1994 census, 1 = earns above 50,000 dollars (Becker & Kohavi 1996, UCI).

    From adult.npz, or from adult.data and adult.test (the latter's records last); else OpenML's version 2,
    which has an order of its own. Six columns are numbers, as they are; the others become one column a
    value, values sorted, "?" (unknown) being one of them.
    """
    path, parts = root / "adult.npz", [root / name for name in ROWS]
    if not path.is_file() and all(part.is_file() for part in parts):
        x, y = encoded(np.concatenate([_census(part) for part in parts]))
        return as_data(x, y, 2, "adult")
    if not path.is_file():
        needs = " or adult.data and adult.test"
        _fetch("adult", _adult, path, "https://archive.ics.uci.edu/dataset/2/adult", download, needs)
    return _kept(path, 2, "adult")


def faces(folder: Path) -> tuple[Array, Array]:
    """Grey [n, 62, 47] in [0, 1] of the people with FACES or more, and who it is. ValueError if none."""
    files = [sorted(p.glob("*.jpg")) for p in sorted(folder.iterdir()) if p.is_dir()]
    files = [of_one for of_one in files if len(of_one) >= FACES]
    if len(files) < 2:
        raise ValueError(f"{folder} must hold 2 or more people with {FACES} faces, found {len(files)}")
    x = np.stack([_face(path) for of_one in files for path in of_one])
    return x, np.repeat(np.arange(len(files)), [len(of_one) for of_one in files])


def encoded(rows: Array) -> tuple[Array, Array]:
    """Features and labels of Adult's rows of text: COLUMNS and, last, one of INCOMES. ValueError if not."""
    incomes = np.char.rstrip(rows[:, -1], ".")  # adult.test ends each row with a full stop
    strange = ~np.isin(incomes, INCOMES)
    if strange.any():
        raise ValueError(f"income must be one of {', '.join(INCOMES)}, got {str(incomes[strange][0])!r}")
    columns = [_column(name, rows[:, i]) for i, name in enumerate(COLUMNS)]
    return np.concatenate(columns, 1), (incomes == INCOMES[1]).astype(np.int64)


def _column(name: str, values: Array) -> Array:
    if name in NUMBERS:
        try:
            return values.astype(np.float32)[:, None]
        except ValueError as error:
            raise ValueError(f"{name} must be a number, got {error}") from None
    kinds, which = np.unique(values, return_inverse=True)
    return np.eye(len(kinds), dtype=np.float32)[which]


def _census(path: Path) -> Array:
    """Rows of text of adult.data or adult.test."""
    with path.open(encoding="utf-8", newline="") as stream:
        rows = [r for r in csv.reader(stream, skipinitialspace=True) if r and not r[0].startswith("|")]
    fields = [len(row) for row in rows]
    odd = [i for i, came in enumerate(fields, 1) if came != len(COLUMNS) + 1]
    if odd:
        wanted = len(COLUMNS) + 1
        raise ValueError(f"{path} must have {wanted} fields a row, got {fields[odd[0] - 1]} in row {odd[0]}")
    if len(rows) != ROWS[path.name]:
        raise ValueError(f"{path} must hold {ROWS[path.name]:,} rows, got {len(rows):,}")
    return np.array(rows)


def _face(path: Path) -> Array:
    """The middle of the picture at half its size, colours averaged: what fetch_lfw_people makes of it."""
    small = picture(path).convert("RGB").crop((78, 70, 172, 195)).resize((47, 62))
    return (np.asarray(small, np.float32) / np.float32(255)).mean(2)


def _kept(path: Path, classes: int, name: str) -> Data:
    held = read_npz(path)
    return as_data(held["x"], held["y"], classes, name)


Fetch = Callable[[str], tuple[Array, Array]]  # a fresh folder to work in -> x, y


def _fetch(name: str, fetch: Fetch, path: Path, source: str, download: bool, needs: str = "") -> None:
    """Writes what `fetch` brings to `path`, as a whole or not at all."""
    if not download:
        raise missing(name, path.name + needs, path.parent, source)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as fresh, warnings.catch_warnings(action="ignore"):
            x, y = fetch(fresh)
            np.savez(Path(fresh) / path.name, x=x, y=y)
            os.replace(Path(fresh) / path.name, path)
    except (OSError, ValueError, HTTPException) as error:
        raise missing(name, path.name + needs, path.parent, source, error) from None


def _olivetti(fresh: str) -> tuple[Array, Array]:
    from sklearn.datasets import fetch_olivetti_faces  # importing it takes a second: only when asked for

    held = fetch_olivetti_faces(data_home=fresh)
    return np.rint(held.images * 242).astype(np.uint8), held.target  # it divides by the brightest, 242


def _lfw(fresh: str) -> tuple[Array, Array]:
    from sklearn.datasets import fetch_lfw_people

    fetch_lfw_people(data_home=fresh, min_faces_per_person=70)  # for its files; its images come shuffled
    return faces(Path(fresh) / "lfw_home" / "lfw_funneled")


def _adult(fresh: str) -> tuple[Array, Array]:
    from sklearn.datasets import fetch_openml

    held = fetch_openml("adult", version=2, data_home=fresh, as_frame=True, parser="pandas")
    frame = held.data[list(COLUMNS)].assign(income=held.target)
    return encoded(frame.astype(object).fillna("?").astype(str).to_numpy(str))
