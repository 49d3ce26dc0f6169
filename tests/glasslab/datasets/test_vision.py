"""Image sets from small files in the layouts of torchvision and Debian."""

import gzip
import hashlib
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import scipy.io

from glasslab.datasets import load, vision


def idx(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return header + array.astype(np.uint8).tobytes()


def write_mnist(folder: Path, title: str, *, packed: bool) -> tuple[np.ndarray, np.ndarray]:
    """Four small files; what they hold, joined."""
    g = np.random.default_rng(2)
    x, y = g.integers(0, 256, (50, 5, 4)), g.permutation(np.arange(50) % 10)
    y[30:40] = vision.TEST_LABELS[title]
    folder.mkdir(parents=True, exist_ok=True)
    for part, rows in {"train": slice(0, 30), "t10k": slice(30, 50)}.items():
        for kind, array in {"images-idx3": x[rows], "labels-idx1": y[rows]}.items():
            path = folder / f"{part}-{kind}-ubyte{'.gz' if packed else ''}"
            path.write_bytes(gzip.compress(idx(array)) if packed else idx(array))
    return x, y


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("folder", ["", "raw"])
@pytest.mark.parametrize(("name", "title"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")])
def test_mnist_packed_or_not_in_the_root_or_where_torchvision_puts_it(name, title, folder, packed, tmp_path):
    x, y = write_mnist(tmp_path / title / "raw" if folder else tmp_path, title, packed=packed)
    data = load(name, tmp_path)
    assert (data.x[:, 0] * 255).round().int().tolist() == x.tolist()
    assert data.y.tolist() == y.tolist()
    assert (data.shape, data.classes, data.name) == ((1, 5, 4), 10, name)


def test_one_mnist_is_not_taken_for_the_other(tmp_path, refused):
    write_mnist(tmp_path, "FashionMNIST", packed=True)
    assert "must begin with labels [7, 2, 1, 0" in refused("mnist", tmp_path)
    write_mnist(tmp_path / "MNIST" / "raw", "MNIST", packed=False)
    assert len(load("mnist", tmp_path)) == len(load("fashion_mnist", tmp_path)) == 50


def test_fashion_mnist_from_the_debian_package(tmp_path, monkeypatch):
    write_mnist(tmp_path / "package", "FashionMNIST", packed=True)
    monkeypatch.setattr(vision, "DEBIAN", tmp_path / "package")
    assert len(load("fashion_mnist", tmp_path)) == 50


@pytest.mark.parametrize("packed", [True, False])
def test_a_broken_idx_file_gets_one_line(packed, tmp_path, refused):
    write_mnist(tmp_path, "MNIST", packed=packed)
    path = tmp_path / ("train-images-idx3-ubyte" + (".gz" if packed else ""))
    whole = path.read_bytes()
    for content in [whole[:cut] for cut in (0, 3, 7, 15, 16, len(whole) // 2, len(whole) - 1)]:
        path.write_bytes(content)
        assert f"{path} must " in refused("mnist", tmp_path)
    other = idx(np.zeros((30, 5, 4)))
    for header in (b"\0\0\x0d\x03", b"\1\0\x08\x03"):
        path.write_bytes(gzip.compress(header + other[4:]) if packed else header + other[4:])
        assert "must be an IDX file of bytes" in refused("mnist", tmp_path)
    if packed:
        path.write_bytes(b"not gzip")
        assert "must be a whole gzip file" in refused("mnist", tmp_path)
    path.unlink()
    assert "train-images-idx3-ubyte" in refused("mnist", tmp_path)


class Bomb:
    """Unpickled, it leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def write_cifar(root: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Small batches in torchvision's layout, whose sums are made the official ones."""
    from torchvision import datasets

    make, key = {
        "cifar10": (datasets.CIFAR10, "labels"),
        "cifar100": (datasets.CIFAR100, "fine_labels"),
    }[name]
    n, classes = (60, 10) if name == "cifar10" else (240, 100)
    g = np.random.default_rng(3)
    x, y = g.integers(0, 256, (n, 3, 32, 32), np.uint8), g.permutation(np.arange(n) % classes)
    folder = root / make.base_folder
    folder.mkdir(parents=True)
    sums = {}
    for file, rows in {"one": slice(0, n // 2), "two": slice(n // 2, n)}.items():
        batch = {"data": x[rows].reshape(-1, 3072), key: y[rows].tolist()}
        (folder / file).write_bytes(pickle.dumps(batch))
    (folder / "meta").write_bytes(pickle.dumps({"names": [str(c) for c in range(classes)]}))
    for path in folder.iterdir():
        sums[path.name] = hashlib.md5(path.read_bytes()).hexdigest()
    monkeypatch.setattr(make, "train_list", [["one", sums["one"]]])
    monkeypatch.setattr(make, "test_list", [["two", sums["two"]]])
    monkeypatch.setattr(make, "meta", {"filename": "meta", "key": "names", "md5": sums["meta"]})
    return x, y


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_joins_its_parts(name, tmp_path, monkeypatch):
    x, y = write_cifar(tmp_path, monkeypatch, name)
    data = load(name, tmp_path, download=False)
    assert (data.x * 255).round().int().tolist() == x.tolist()
    assert data.y.tolist() == y.tolist()


@pytest.mark.parametrize("download", [True, False])
def test_a_batch_of_another_checksum_is_never_unpickled(download, tmp_path, monkeypatch, refused):
    write_cifar(tmp_path, monkeypatch, "cifar10")
    (tmp_path / "cifar-10-batches-py" / "one").write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    said = refused("cifar10", tmp_path, download=download)
    assert "cifar-10-batches-py/ or cifar-10-python.tar.gz, unchanged," in said
    assert ("the download failed" in said) == download
    assert not (tmp_path / "exploded").exists()


def test_a_packed_cifar_is_unpacked_without_a_download(tmp_path, monkeypatch, refused):
    from torchvision.datasets import CIFAR10

    x, _ = write_cifar(tmp_path / "made", monkeypatch, "cifar10")
    with tarfile.open(tmp_path / CIFAR10.filename, "w:gz") as tar:
        tar.add(tmp_path / "made" / CIFAR10.base_folder, CIFAR10.base_folder)
    refused("cifar10", tmp_path)
    assert not (tmp_path / CIFAR10.base_folder).exists(), "an archive of another sum is not even unpacked"
    md5 = hashlib.md5((tmp_path / CIFAR10.filename).read_bytes()).hexdigest()
    monkeypatch.setattr(CIFAR10, "tgz_md5", md5)
    assert len(load("cifar10", tmp_path, download=False)) == len(x)


def test_svhn_joins_its_parts_and_counts_from_zero(tmp_path, monkeypatch, refused):
    from torchvision.datasets import SVHN

    g = np.random.default_rng(4)
    x, y = g.integers(0, 256, (40, 3, 32, 32), np.uint8), g.permutation(np.arange(40) % 10)
    known = {}
    for part, rows in {"train": slice(0, 25), "test": slice(25, 40)}.items():
        path = tmp_path / f"{part}_32x32.mat"
        tens = np.where(y[rows] == 0, 10, y[rows]).astype(np.uint8)[:, None]  # as in the official files
        scipy.io.savemat(path, {"X": x[rows].transpose(2, 3, 1, 0), "y": tens})
        known[part] = ["", path.name, hashlib.md5(path.read_bytes()).hexdigest()]
    assert "train_32x32.mat and test_32x32.mat, unchanged," in refused("svhn", tmp_path)
    monkeypatch.setattr(SVHN, "split_list", known)
    data = load("svhn", tmp_path)
    assert (data.x * 255).round().int().tolist() == x.tolist()
    assert data.y.tolist() == y.tolist()


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10", "cifar100", "svhn"])
def test_without_a_network_one_line_says_what_to_do(name, tmp_path, refused):
    said = refused(name, tmp_path, download=True)
    assert "found none, and the download failed (" in said
    assert "no network in the tests" in said
    assert str(tmp_path) in said
