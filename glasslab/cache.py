"""Arrays that a zoo's models gave, one row a model: written model by model, read as a memory map.

A file is named by everything that decides its content: weights, records, what was computed, queries, masks.
"""

import hashlib
import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from glasslab.data import Data
from glasslab.store import Plain, Store, fault, sealed, text, unsealed, write


def cached(
    store: Store, about: Plain, models: int, rows: Callable[[], Iterable[Tensor]]
) -> Shaped[Tensor, "{models} ..."]:
    """The array that `about` describes, from its file if it has one; else `rows`, one a model, write it.

    The result is mapped copy-on-write: it takes no memory until it is read, and may be written to without
    a change on disk.
    """
    path = store.folder / "signals" / f"{hashlib.sha256(text(about).encode()).hexdigest()[:32]}.npy"
    with store.lock(path.stem):
        if not _whole(path, path.name in store.sound):
            path.with_suffix(".json").unlink(missing_ok=True)
            sha = write(path, _npy(models, iter(rows())))
            entry = about | {"file": {"sha256": sha, "bytes": path.stat().st_size}}
            write(path.with_suffix(".json"), [sealed(entry)])
        store.sound.add(path.name)
    return torch.from_numpy(np.load(path, mmap_mode="c", allow_pickle=False))


def content(value: object) -> Any:
    """Plain values that say what `value` holds: equal content, equal values, in every process.

    Data, tensors and modules count by their bytes, frozen dataclasses by class and fields; fields that their
    repr leaves out do not count. Raises ValueError for anything else that is not a plain value.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return {"float": repr(value)}
    if isinstance(value, Data):
        return {"data": value.digest}
    if isinstance(value, Tensor):
        return {"tensor": _digest(value)}
    if isinstance(value, nn.Module):
        state = {name: _digest(t) for name, t in value.state_dict().items()}
        return {"module": str(value), "training": value.training, "state": state}
    if isinstance(value, tuple | list):
        return [content(held) for held in value]
    if isinstance(value, dict):
        return {"dict": [[content(key), content(held)] for key, held in value.items()]}
    if is_frozen(value):
        return {"class": _name(type(value)), "fields": _fields(value)}
    need = "plain values, tensors, Data, modules or frozen dataclasses of these"
    raise ValueError(f"what is cached by content must hold {need}, got {type(value).__name__}: give a key=")


def is_frozen(value: object) -> bool:
    """Whether it is an instance of a frozen dataclass."""
    params = getattr(type(value), "__dataclass_params__", None)
    return params is not None and bool(params.frozen)


def _fields(value: Any) -> Plain:
    held = [(f, getattr(value, f.name)) for f in fields(value)]
    return {f.name: content(v) for f, v in held if f.repr or isinstance(v, Data | Tensor | nn.Module)}


def _name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _digest(t: Tensor) -> str:
    raw = t.detach().cpu().contiguous().flatten().view(torch.uint8)
    return hashlib.sha256(f"{t.dtype} {tuple(t.shape)}".encode() + raw.numpy().tobytes()).hexdigest()


def _npy(models: int, rows: Iterator[Tensor]) -> Iterator[bytes]:
    """The bytes of a .npy file whose leading axis is models; only one row is held at a time."""
    first, held = next(rows).numpy(), 1
    head = {"descr": np.lib.format.dtype_to_descr(first.dtype), "fortran_order": False}
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, head | {"shape": (models, *first.shape)})
    yield buffer.getvalue()
    yield first.tobytes()
    for row in rows:
        if row.shape != first.shape:
            raise ValueError(
                f"signal must have one shape for all models, {first.shape}, got {tuple(row.shape)}"
            )
        yield row.numpy().tobytes()
        held += 1
    assert held == models, f"{held} rows for {models} models"


def _whole(path: Path, checked: bool) -> bool:
    """Whether the array is what it was when it was written; one that is not is made again."""
    try:
        entry = unsealed(path.with_suffix(".json"))
        size = path.stat().st_size == int(entry["file"]["bytes"])
        return size and (checked or fault(path, entry["file"]) is None)
    except (OSError, ValueError):
        return False
