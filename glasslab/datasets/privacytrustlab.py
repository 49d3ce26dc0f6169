"""Purchase-100, Texas-100 and Location-30, the tables of Shokri et al. 2017 (arXiv:1610.05820).

Each is read from one of: NAME.npz (arrays x and y, features and labels, or data and labels; labels may be
one-hot), the archive of github.com/privacytrustlab/datasets, or that archive unpacked. They are for research
and not ours to pass on, so nothing is downloaded. Only Location's archive has a checksum that we know.
"""

import warnings
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from glasslab.data import Data
from glasslab.datasets import archive
from glasslab.datasets.arrays import Array, features, labels, read_npz
from glasslab.datasets.place import line, missing

SOURCE = "https://github.com/privacytrustlab/datasets"


class Source(NamedTuple):
    """`members` is one table with the label first, or a table of features and one of labels."""

    archive: str
    members: tuple[str, ...]
    classes: int
    sha256: str | None = None


SOURCES = {
    "purchase100": Source("dataset_purchase.tgz", ("dataset_purchase",), 100),
    "texas100": Source("dataset_texas.tgz", ("texas/100/feats", "texas/100/labels"), 100),
    "location30": Source(
        "dataset_location.tgz",
        ("bangkok",),
        30,
        "927203f85a868f8ee17a0ded1dc61699efe602167beabe34fbf45b4b1de94b33",
    ),
}


def purchase100(root: Path, download: bool) -> Data:
    """Which of 600 products each of 197,324 shoppers bought; the label is a cluster of shoppers."""
    return _data("purchase100", root)


def texas100(root: Path, download: bool) -> Data:
    """67,330 hospital stays, 6,169 binary features; the label is one of the 100 most frequent procedures."""
    return _data("texas100", root)


def location30(root: Path, download: bool) -> Data:
    """Which of 446 places in Bangkok each of 5,010 Foursquare users saw; the label is a cluster of users."""
    return _data("location30", root)


def _data(name: str, root: Path) -> Data:
    source = SOURCES[name]
    if (path := root / f"{name}.npz").is_file():
        held = read_npz(path)
        x, y = held["x"], held["y"]
    elif (path := root / source.archive).is_file():
        x, y = _apart(archive.read(path, source.members, _table, sha256=source.sha256))
    elif all((root / member).is_file() for member in source.members):
        x, y = _apart([_unpacked(root / member) for member in source.members])
    else:
        raise missing(name, f"{name}.npz or {source.archive}", root, SOURCE)
    counted = labels(y)
    if len(counted) and counted.min() == 1:
        counted = counted - 1  # the archives count from 1; what lacks class 0 only is refused all the same
    return Data(features(x), counted, source.classes, name)


def _apart(tables: list[Array]) -> tuple[Array, Array]:
    """Features and labels; one table alone holds the label in its first column."""
    return (tables[0][:, 1:], tables[0][:, 0]) if len(tables) == 1 else (tables[0], tables[1])


def _unpacked(path: Path) -> Array:
    with path.open("rb") as stream:
        return _table(stream, str(path))


def _table(stream: IO[bytes], name: str) -> Array:
    """Comma-separated whole numbers from 0 to 255, perhaps in quotes."""
    try:
        with warnings.catch_warnings(action="ignore"):  # loadtxt warns of an empty file, we refuse it
            table = np.loadtxt(stream, np.uint8, delimiter=",", quotechar='"', ndmin=2)
    except ValueError as error:
        raise ValueError(f"{name} must be a table of whole numbers, got {line(error)}") from None
    if not table.size:
        raise ValueError(f"{name} must be a table of whole numbers, got an empty file")
    return table
