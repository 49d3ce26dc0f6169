"""load: names, roots, bundled sets, and real files where they are at hand."""

from pathlib import Path

import numpy as np
import pytest
import torch

from glasslab.datasets import BUNDLED, FILES, load, vision
from glasslab.datasets.place import home


def test_bundled_sets():
    digits, cancer = load("digits"), load("breast_cancer")
    assert (digits.shape, digits.classes, len(digits), digits.name) == ((1, 8, 8), 10, 1797, "digits")
    assert (float(digits.x.min()), float(digits.x.max())) == (0.0, 1.0)
    rows = [[round(16 * float(v)) for v in row] for row in digits.x[0, 0, :2]]
    assert rows == [[0, 0, 5, 13, 9, 1, 0, 0], [0, 0, 13, 15, 10, 15, 5, 0]]  # the first zero of UCI's file
    assert digits.y[:10].tolist() == list(range(10))
    assert (cancer.shape, cancer.counts) == ((30,), [212, 357])
    assert cancer.x[0, 0].item() == pytest.approx(17.99)
    assert {data.x.dtype for data in (digits, cancer)} == {torch.float32}


@pytest.mark.parametrize("name", ["", "digit", "npz:", "zip:x", "folder"])
def test_an_unknown_name_lists_the_known(name, refused):
    said = refused(name)
    assert all(known in said for known in [*BUNDLED, *FILES, "npz:PATH", "folder:PATH"])
    assert said.endswith(f"got {name!r}")


@pytest.mark.parametrize("name", sorted(FILES.keys() - {"fashion_mnist"}))
def test_missing_files_say_which_and_where(name, tmp_path, refused):
    said = refused(name, tmp_path)
    assert said.startswith(f"{name} needs ")
    assert str(tmp_path) in said
    assert "found none; put it there from" in said
    assert not list(tmp_path.iterdir())


def test_the_root_is_the_argument_then_the_environment_then_the_cache(tmp_path, monkeypatch, refused):
    assert home(None) == Path.home() / ".cache" / "glasslab" / "data"
    monkeypatch.setenv("GLASSLAB_DATA", str(tmp_path / "a"))
    assert home(None) == tmp_path / "a"
    assert home(tmp_path / "b") == tmp_path / "b"
    assert str(tmp_path / "a") in refused("svhn")
    assert str(tmp_path / "b") in refused("svhn", tmp_path / "b")
    monkeypatch.setenv("GLASSLAB_DATA", "")
    assert home(None) == Path.home() / ".cache" / "glasslab" / "data"


def test_location30_from_its_real_file(shared):
    data = load("location30", shared("location30.npz"))
    assert (data.x.shape, data.classes, min(data.counts) > 90) == ((5010, 446), 30, True)
    assert set(data.x.unique().tolist()) == {0.0, 1.0}


def test_olivetti_from_its_real_file(shared):
    folder = shared("olivetti_faces.npz")
    data, raw = load("olivetti", folder), np.load(folder / "olivetti_faces.npz")["x"]
    assert (data.x.shape, data.counts) == ((400, 1, 64, 64), [10] * 40)
    assert (data.x[:, 0] * 255).round().int().tolist() == raw.tolist()


def test_colour_photographs_from_a_real_npz(shared):
    path = shared("cifar10_10k.npz") / "cifar10_10k.npz"
    data, raw = load(f"npz:{path}"), np.load(path)
    assert (data.x.shape, data.classes) == ((12_000, 3, 32, 32), 10)
    for i, part, j in [(0, "train", 0), (9_999, "train", 9_999), (10_000, "test", 0), (-1, "test", -1)]:
        turned = (data.x[i] * 255).round().permute(1, 2, 0).int()
        assert turned.tolist() == raw[f"x_{part}"][j].tolist()
        assert data.y[i] == raw[f"y_{part}"][j]


def test_fashion_mnist_from_its_real_files(monkeypatch):
    """The first boot and the first shirt; sums over all pixels published nowhere, so shape and counts."""
    folder = Path("/usr/share/datasets/fashion-mnist")
    if not folder.is_dir():
        pytest.skip("needs Debian's package dataset-fashion-mnist")
    data = load("fashion_mnist", folder, download=False)
    assert (data.x.shape, data.counts) == ((70_000, 1, 28, 28), [7_000] * 10)
    assert (data.x.min().item(), data.x.max().item()) == (0.0, 1.0)
    upright = data.x[data.y == 1].mean(0)[0]  # trousers: legs apart at the bottom, one belt at the top
    assert upright[-4, 14] < 0.5 * upright[3, 14]
    assert torch.equal(data.y[60_000:60_010], torch.tensor(vision.TEST_LABELS["FashionMNIST"]))
