"""The file format of MNIST: bytes behind a short header, gzip'd or not."""

import gzip
import zlib
from math import prod
from pathlib import Path

import numpy as np

from glasslab.datasets.arrays import Array
from glasslab.datasets.place import line

BYTES = 8  # the code of the element type


def read_idx(path: Path) -> Array:
    """The file's array of bytes. ValueError if it is truncated, damaged, or of another kind."""
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} must be a whole gzip file, got {line(error)}") from None
    if len(raw) < 4 or raw[:3] != bytes([0, 0, BYTES]) or len(raw) < 4 + 4 * raw[3]:
        raise ValueError(f"{path} must be an IDX file of bytes, got one that starts with {raw[:4]!r}")
    start = 4 + 4 * raw[3]
    shape = tuple(int.from_bytes(raw[i : i + 4], "big") for i in range(4, start, 4))
    if len(raw) - start != prod(shape):
        raise ValueError(f"{path} must hold {prod(shape)} bytes behind its header, got {len(raw) - start}")
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape)
