"""From numpy arrays to the tensors of a `Data`. Nothing is unpickled."""

import zipfile
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from glasslab.data import Data
from glasslab.datasets.place import line

Array = NDArray[Any]
PAIRS = (("x", "y"), ("X", "Y"), ("X", "y"), ("features", "labels"), ("data", "labels"))


def read_npz(path: Path) -> dict[str, Array]:
    """The archive's `x`, `y` and, if it has them, `classes` (their names).

    x and y are stored under one of PAIRS; else as x_train and y_train, followed by x_test and y_test
    where these are there too. Raises ValueError where neither fits, or the archive is not whole.
    """
    try:
        with path.open("rb") as stream:  # np.load would leave the file of a broken archive open
            held = np.load(stream, allow_pickle=False)
            if not isinstance(held, np.lib.npyio.NpzFile):
                raise ValueError(f"one array of shape {held.shape}, which names no labels")
            wanted = _wanted(held.files)
            return {name: np.concatenate([held[part] for part in parts]) for name, parts in wanted.items()}
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} must be a whole npz of plain arrays x and y, got {line(error)}") from None


def features(x: Array) -> Float[Tensor, "n *d"]:
    """Rows [n, d] become floats; [n, h, w], [n, h, w, c] and [n, c, h, w] become images, c = 1 or 3.

    Raises ValueError for other shapes, and for what is not a number.
    """
    if x.dtype.kind not in "buif":
        raise ValueError(f"x must hold numbers, got dtype {x.dtype}")
    if x.ndim == 2:
        with np.errstate(over="ignore"):  # what overflows becomes infinite, and Data refuses that
            return torch.from_numpy(x.astype(np.float32))
    if x.ndim in (3, 4):
        return images(x)
    raise ValueError(f"x must be rows [n, d] or images [n, h, w] or [n, h, w, c], got shape {x.shape}")


def images(x: Array) -> Float[Tensor, "n c h w"]:
    """Channels-first floats in [0, 1]: bytes are divided by 255, floats must lie there already.

    A last axis of 1 or 3 is the colour, else the second axis must be. Raises ValueError otherwise.
    """
    x = x[:, None] if x.ndim == 3 else np.moveaxis(x, -1, 1) if x.shape[-1] in (1, 3) else x
    if x.shape[1] not in (1, 3):
        raise ValueError(f"images must have 1 or 3 channels, last or second, got shape {x.shape}")
    if x.dtype == np.uint8:
        return torch.from_numpy(np.array(x, order="C")).float().div_(255)
    if (x < 0).any() or (x > 1).any():
        raise ValueError(f"images must be bytes, or lie in [0, 1]; got {x.dtype} from {x.min()} to {x.max()}")
    return torch.from_numpy(np.array(x, np.float32, order="C"))


def labels(y: Array) -> Int[Tensor, "n"]:
    """Whole numbers [n] or [n, 1], or one-hot rows [n, c], as int64. ValueError for anything else."""
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.dtype.kind not in "buif" or y.ndim not in (1, 2):
        raise ValueError(f"y must hold one whole number a record, got shape {y.shape} of {y.dtype}")
    if y.ndim == 2:
        if not (((y == 0) | (y == 1)).all() and (y.sum(1) == 1).all()):
            raise ValueError(f"y must hold one label a record, or one-hot rows; got shape {y.shape}")
        return torch.from_numpy(y.argmax(1))
    with np.errstate(invalid="ignore"):  # NaN becomes some whole number, and differs from it
        counted = y.astype(np.int64)
    if (counted != y).any():
        raise ValueError(f"y must hold whole numbers, got {y[counted != y][0]}")
    return torch.from_numpy(counted)


def as_data(x: Array, y: Array, classes: int, name: str) -> Data:
    """The same as `Data`."""
    return Data(features(x), labels(y), classes, name)


def _wanted(files: Collection[str]) -> dict[str, tuple[str, ...]]:
    names: dict[str, tuple[str, ...]] = {"classes": ("classes",)} if "classes" in files else {}
    for x, y in PAIRS:
        if x in files and y in files:
            return names | {"x": (x,), "y": (y,)}
    if "x_train" not in files or "y_train" not in files:
        raise ValueError(f"arrays {', '.join(sorted(files)) or 'none'}")
    parts = ("train", "test") if "x_test" in files and "y_test" in files else ("train",)
    return names | {side: tuple(f"{side}_{part}" for part in parts) for side in "xy"}
