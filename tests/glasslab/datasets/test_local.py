"""Arrays and images of the user's own: how they are read, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from glasslab.datasets import load


def save(path: Path, **arrays: np.ndarray) -> str:
    np.savez(path, **arrays)
    return f"npz:{path}"


table = np.arange(12.0).reshape(6, 2)
sides = np.array([0, 1, 0, 1, 0, 1])


@pytest.mark.parametrize("names", [("x", "y"), ("X", "Y"), ("features", "labels"), ("data", "labels")])
def test_npz_names(tmp_path, names):
    name = save(tmp_path / "a.npz", **dict(zip(names, (table, sides), strict=True)), spare=np.zeros(2))
    data = load(name)
    assert torch.equal(data.x, torch.tensor(table).float())
    assert (data.y.tolist(), data.classes, data.name) == (sides.tolist(), 2, name)


def test_npz_parts_are_joined_train_first(tmp_path):
    parts = {"x_train": table[:4], "y_train": sides[:4], "x_test": table[4:], "y_test": sides[4:]}
    joined = load(save(tmp_path / "a.npz", **parts))
    assert joined.x.tolist() == table.tolist()
    assert joined.y.tolist() == sides.tolist()
    del parts["y_test"]
    assert load(save(tmp_path / "b.npz", **parts)).x.tolist() == table[:4].tolist()


def test_bytes_become_channels_first_images_in_0_1(tmp_path):
    g = np.random.default_rng(0)
    grey, colour = g.integers(0, 256, (6, 5, 4), np.uint8), g.integers(0, 256, (6, 5, 4, 3), np.uint8)
    colour[0, 1, 2] = [255, 0, 51]
    seen = load(save(tmp_path / "grey.npz", x=grey, y=sides))
    assert torch.equal(seen.x[:, 0] * 255, torch.tensor(grey).float())
    last = load(save(tmp_path / "last.npz", x=colour, y=sides))
    assert last.shape == (3, 5, 4)
    assert last.x[0, :, 1, 2].tolist() == pytest.approx([1.0, 0.0, 0.2])
    first = load(save(tmp_path / "first.npz", x=np.ascontiguousarray(colour.transpose(0, 3, 1, 2)), y=sides))
    floats = load(save(tmp_path / "floats.npz", x=colour / 255, y=sides))
    assert first.digest == last.digest == floats.digest
    assert last.x.is_contiguous()
    rows = load(save(tmp_path / "rows.npz", x=grey[:, 0], y=sides))
    assert torch.equal(rows.x, torch.tensor(grey[:, 0]).float()), "a table of bytes is no image"


@pytest.mark.parametrize("y", [np.eye(2)[sides], np.eye(2, dtype=bool)[sides], sides[:, None], sides * 1.0])
def test_labels_one_hot_or_whole(tmp_path, y):
    data = load(save(tmp_path / "a.npz", x=table, y=y))
    assert (data.y.tolist(), data.y.dtype) == (sides.tolist(), torch.int64)


def test_names_of_classes_count_them(tmp_path, refused):
    three = {"x": table, "y": np.array([0, 1, 2, 0, 1, 2])}
    assert load(save(tmp_path / "a.npz", **three, classes=np.array(["a", "b", "c"]))).classes == 3
    said = refused(save(tmp_path / "b.npz", **three, classes=np.array(["a", "b", "c", "d"])))
    assert "every class 0 .. 3, got none of 3" in said
    said = refused(save(tmp_path / "c.npz", **three, classes=np.array(["a", "b"])))
    assert "0 .. 1, got labels from 0 to 2" in said


big = np.full((6, 2), 1e300)
bad = {
    "nan": ({"x": np.where(table == 3, np.nan, table), "y": sides}, "in 1 of 6 records, first in record 1"),
    "infinite": ({"x": np.where(table == 3, -np.inf, table), "y": sides}, "NaN or infinite"),
    "too big for float32": ({"x": big, "y": sides}, "NaN or infinite"),
    "unequal": ({"x": table, "y": sides[:5]}, "equally long, got 6 records and 5 labels"),
    "no record": ({"x": table[:0], "y": sides[:0]}, "at least one record"),
    "one class": ({"x": table, "y": sides * 0}, "classes must be 2 or more, got 1"),
    "from one": ({"x": table, "y": sides + 1}, "every class 0 .. 2, got none of 0"),
    "a hole": ({"x": table, "y": sides * 2}, "every class 0 .. 2, got none of 1"),
    "a huge label": ({"x": table, "y": sides * 10**15}, "got 6 records"),
    "negative": ({"x": table, "y": 2 * sides - 1}, "got labels from -1 to 1"),
    "half a label": ({"x": table, "y": sides / 2}, "y must hold whole numbers, got 0.5"),
    "no label": ({"x": table, "y": np.where(sides, np.nan, 0)}, "y must hold whole numbers, got nan"),
    "words": ({"x": table, "y": sides.astype(str)}, "got shape (6,) of <U21"),
    "two hot": ({"x": table, "y": np.ones((6, 2))}, "one label a record, or one-hot rows; got shape (6, 2)"),
    "words as x": ({"x": table.astype(str), "y": sides}, "x must hold numbers, got dtype <U32"),
    "one number each": ({"x": sides, "y": sides}, "got shape (6,)"),
    "too deep": ({"x": np.zeros((6, 1, 1, 1, 1)), "y": sides}, "got shape (6, 1, 1, 1, 1)"),
    "four channels": ({"x": np.zeros((6, 5, 5, 4), np.uint8), "y": sides}, "1 or 3 channels"),
    "not in 0..1": ({"x": np.full((6, 5, 5), 1.5), "y": sides}, "got float64 from 1.5 to 1.5"),
    "a nan in an image": (
        {"x": np.full((6, 5, 5), np.nan), "y": sides},
        "NaN or infinite features in 6 of 6",
    ),
    "objects": ({"x": table, "y": np.array([{}] * 6)}, "Object arrays cannot be loaded"),
    "other names": ({"a": table, "b": sides}, "got arrays a, b"),
    "parts that differ": (
        {"x_train": table, "y_train": sides, "x_test": table[:, :1], "y_test": sides},
        "must match exactly",
    ),
}


@pytest.mark.parametrize(("arrays", "says"), bad.values(), ids=bad.keys())
def test_bad_arrays_get_one_line(tmp_path, arrays, says, refused):
    assert says in refused(save(tmp_path / "bad.npz", **arrays))


def test_a_broken_npz_gets_one_line(tmp_path, refused):
    path = tmp_path / "a.npz"
    assert "found none at" in refused(f"npz:{path}")
    assert "found none at" in refused(f"npz:{tmp_path}")
    name = save(path, x=table, y=sides)
    whole = path.read_bytes()
    for length in [*range(0, len(whole), 37), len(whole) - 1]:
        path.write_bytes(whole[:length])
        assert f"{path} must be a whole npz" in refused(name)
    turned = bytearray(whole)
    turned[whole.index(table.tobytes()) + 5] ^= 1
    path.write_bytes(turned)
    assert "Bad CRC-32" in refused(name)
    np.save(tmp_path / "b.npy", table)
    assert "one array of shape (6, 2)" in refused(f"npz:{tmp_path / 'b.npy'}")
    path.write_text("x,y\n1,2\n")
    assert "must be a whole npz" in refused(name)


def paint(path: Path, value: int | tuple[int, ...], mode: str = "L", size: tuple[int, int] = (4, 3)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value).save(path)


def test_a_folder_of_images_is_read_class_by_class(tmp_path):
    for name, value in [("b/2.png", 4), ("b/10.png", 3), ("a/x.PNG", 1), ("a/y.pgm", 2), (".git/z.png", 9)]:
        paint(tmp_path / name, value)
    (tmp_path / "a" / "notes.txt").write_text("no image")
    (tmp_path / "readme.png").write_text("no folder")
    data = load(f"folder:{tmp_path}")
    assert (data.x[:, 0, 0, 0] * 255).tolist() == [1, 2, 3, 4]
    assert (data.y.tolist(), data.classes, data.shape) == ([0, 0, 1, 1], 2, (1, 3, 4))
    paint(tmp_path / "a" / "y.pgm", 2)
    paint(tmp_path / "c" / "colour.png", (10, 20, 30, 255), "RGBA")
    colour = load(f"folder:{tmp_path}")
    assert (colour.shape, colour.counts) == ((3, 3, 4), [2, 2, 1])
    assert (colour.x[-1, :, 0, 0] * 255).tolist() == pytest.approx([10, 20, 30])
    assert torch.equal(colour.x[:4], data.x.expand(-1, 3, -1, -1))


def test_a_bad_folder_gets_one_line(tmp_path, refused):
    name = f"folder:{tmp_path}"
    assert "2 or more folders of images, found 0" in refused(f"folder:{tmp_path / 'nowhere'}")
    paint(tmp_path / "a" / "1.png", 1)
    assert "2 or more folders of images, found 1" in refused(name)
    (tmp_path / "b").mkdir()
    assert "images of each class, found none of b" in refused(name)
    paint(tmp_path / "b" / "1.png", 1, size=(5, 3))
    said = refused(name)
    assert "one size (width, height), got (4, 3) in" in said
    assert said.endswith(f"(5, 3) in {tmp_path / 'b' / '1.png'}")
    paint(tmp_path / "b" / "0.tif", 70_000, "I")
    assert "b/0.tif must be a whole image of bytes, got mode I" in refused(name)
    whole = (tmp_path / "a" / "1.png").read_bytes()
    (tmp_path / "b" / "0.tif").unlink()
    for content in [b"", b"not an image", whole[: len(whole) // 2]]:
        (tmp_path / "b" / "1.png").write_bytes(content)
        assert "b/1.png must be a whole image" in refused(name)
