"""Data sets of the user's own: one npz file, or one folder of images a class."""

from pathlib import Path

import numpy as np
from PIL import Image

from glasslab.data import Data
from glasslab.datasets.arrays import Array, features, images, labels, read_npz
from glasslab.datasets.place import line

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}


def npz(path: Path, name: str) -> Data:
    """x and y of the file (`read_npz` says under which names), as `features` and `labels` read them.

    There are as many classes as names in its `classes`, else as the highest label says; labels count from 0.
    Raises ValueError where the file is missing or does not fit.
    """
    if not path.is_file():
        raise ValueError(f"{name} must name a file, found none at {path.absolute()}")
    held = read_npz(path)
    y = labels(held["y"])
    classes = len(held["classes"]) if "classes" in held else int(y.max()) + 1 if len(y) else 2
    return Data(features(held["x"]), y, classes, name)


def folder(path: Path, name: str) -> Data:
    """The images in each subfolder, which is a class; classes and files in the order of their names.

    Grey if all of them are grey, else RGB (an alpha channel is dropped). Raises ValueError for fewer than
    two classes, a class without images, a file that is no image, two different sizes.
    """
    kinds = sorted(p for p in path.glob("[!.]*") if p.is_dir())
    if len(kinds) < 2:
        raise ValueError(f"{name} must hold 2 or more folders of images, found {len(kinds)}")
    files = [sorted(p for p in kind.iterdir() if p.suffix.lower() in SUFFIXES) for kind in kinds]
    empty = [kind.name for kind, inside in zip(kinds, files, strict=True) if not inside]
    if empty:
        raise ValueError(f"{name} must hold images of each class, found none of {', '.join(empty[:5])}")
    x = _stacked([file for inside in files for file in inside])
    y = np.repeat(np.arange(len(kinds)), [len(inside) for inside in files])
    return Data(images(x), labels(y), len(kinds), name)


def picture(path: Path) -> Image.Image:
    """The image as "L" (grey) or "RGB". ValueError if it is none, truncated, or deeper than a byte."""
    try:
        with Image.open(path) as image:
            if image.mode[0] in "IF":  # 16 or 32 bits, which converting would clip
                raise ValueError(f"mode {image.mode}")
            return image.convert("L" if image.mode in ("1", "L", "LA") else "RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} must be a whole image of bytes, got {line(error)}") from None


def _stacked(files: list[Path]) -> Array:
    """Bytes [n, h, w], or [n, h, w, 3] if any image has colour."""
    pictures = [picture(file) for file in files]
    size = pictures[0].size
    odd = [(file, p.size) for file, p in zip(files, pictures, strict=True) if p.size != size]
    if odd:
        came = f"{size} in {files[0]} and {odd[0][1]} in {odd[0][0]}"
        raise ValueError(f"images must have one size (width, height), got {came}")
    mode = "L" if all(p.mode == "L" for p in pictures) else "RGB"
    return np.stack([np.asarray(p.convert(mode)) for p in pictures])
