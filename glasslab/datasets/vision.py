"""Image sets that torchvision knows: from local files first, else by torchvision's download.

All official parts are joined, the training part first: 70,000 (MNIST, Fashion-MNIST), 60,000 (CIFAR), 99,289
(SVHN, without its "extra" part). MNIST's files are read here, gzip'd or not. The others are read by
torchvision once their MD5 sums are right; CIFAR's official batches are pickles, which torchvision opens after
that check only.
"""

from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np

from glasslab.data import Data
from glasslab.datasets.arrays import Array, images, labels
from glasslab.datasets.idx import read_idx
from glasslab.datasets.place import first, missing

DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # package dataset-fashion-mnist
FAILURES = (OSError, RuntimeError, HTTPException)  # of a download; URLError is an OSError
# The same file names serve both sets, so the first ten labels of the test part tell them apart.
TEST_LABELS = {"MNIST": [7, 2, 1, 0, 4, 1, 4, 9, 5, 9], "FashionMNIST": [9, 2, 1, 1, 6, 1, 4, 6, 5, 7]}


def mnist(root: Path, download: bool) -> Data:
    """Handwritten digits, 28 x 28, grey (LeCun et al. 1998)."""
    places, source = [root / "MNIST" / "raw", root], "yann.lecun.com/exdb/mnist"
    return _mnist("mnist", "MNIST", places, root, download, source)


def fashion_mnist(root: Path, download: bool) -> Data:
    """Pieces of clothing, 28 x 28, grey (Xiao et al. 2017, arXiv:1708.07747)."""
    places = [root / "FashionMNIST" / "raw", root, DEBIAN]
    source = "github.com/zalandoresearch/fashion-mnist"
    return _mnist("fashion_mnist", "FashionMNIST", places, root, download, source)


def cifar10(root: Path, download: bool) -> Data:
    """Photographs, 32 x 32, in colour (Krizhevsky 2009)."""
    return _cifar("cifar10", "CIFAR10", 10, root, download)


def cifar100(root: Path, download: bool) -> Data:
    """Photographs, 32 x 32, in colour; the 100 fine labels (Krizhevsky 2009)."""
    return _cifar("cifar100", "CIFAR100", 100, root, download)


def svhn(root: Path, download: bool) -> Data:
    """House numbers, 32 x 32, in colour (Netzer et al. 2011)."""
    from torchvision.datasets import SVHN

    def parts(online: bool) -> list[Any]:
        return [SVHN(root, split=split, download=online) for split in ("train", "test")]

    needs = "train_32x32.mat and test_32x32.mat, unchanged,"
    sets = _checked(parts, "svhn", needs, root, "http://ufldl.stanford.edu/housenumbers", download)
    return _joined([s.data for s in sets], [s.labels for s in sets], 10, "svhn")


def _cifar(name: str, title: str, classes: int, root: Path, download: bool) -> Data:
    from torchvision import datasets  # importing it takes a second: only when asked for
    from torchvision.datasets.utils import check_integrity

    make = getattr(datasets, title)

    def parts(online: bool) -> list[Any]:
        return [make(root, train=train, download=online) for train in (True, False)]

    needs = f"{make.base_folder}/ or {make.filename}, unchanged,"
    packed = check_integrity(root / make.filename, make.tgz_md5)  # then "download" only unpacks it
    source = "https://www.cs.toronto.edu/~kriz/cifar.html"
    sets = _checked(parts, name, needs, root, source, download or packed)
    return _joined([s.data for s in sets], [np.asarray(s.targets) for s in sets], classes, name)


def _checked(
    parts: Callable[[bool], list[Any]], name: str, needs: str, root: Path, source: str, download: bool
) -> list[Any]:
    """torchvision's data sets: the local files if their sums are right, else downloaded."""
    try:
        return parts(False)
    except (OSError, RuntimeError):
        if not download:
            raise missing(name, needs, root, source) from None
    try:
        return parts(True)
    except FAILURES as error:
        raise missing(name, needs, root, source, error) from None


def _mnist(name: str, title: str, places: list[Path], root: Path, download: bool, source: str) -> Data:
    stems = [f"{part}-{kind}-ubyte" for kind in ("images-idx3", "labels-idx1") for part in ("train", "t10k")]
    files = _found(stems, places)
    if not files:
        failure = _download(title, root) if download else None
        files = _found(stems, places)
        if not files:
            needs = f"{', '.join(stems)} (or each with .gz), all four,"
            raise missing(name, needs, places[0], source, failure)
    x0, x1, y0, y1 = [read_idx(file) for file in files]
    if y1[:10].tolist() != TEST_LABELS[title]:
        raise ValueError(f"{files[3]} must begin with labels {TEST_LABELS[title]}, got {y1[:10].tolist()}")
    return _joined([x0, x1], [y0, y1], 10, name)


def _found(stems: list[str], places: list[Path]) -> list[Path]:
    """The files of the first place that has all of them, packed or not; none if no place has."""
    for place in places:
        files = [first(place / stem, place / f"{stem}.gz") for stem in stems]
        whole = [file for file in files if file]
        if len(whole) == len(stems):
            return whole
    return []


def _download(title: str, root: Path) -> Exception | None:
    """torchvision's download into ROOT/TITLE/raw; what went wrong, if anything."""
    from torchvision import datasets

    try:
        getattr(datasets, title)(root, download=True)
    except FAILURES as error:
        return error
    return None


def _joined(x: list[Array], y: list[Array], classes: int, name: str) -> Data:
    return Data(images(np.concatenate(x)), labels(np.concatenate(y)), classes, name)
