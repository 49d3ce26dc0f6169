"""What lies in a root of zoos, and what of it can go."""

import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from filelock import Timeout

from glasslab.store import Plain, Store, root_of, unsealed

NAME = re.compile(r"[0-9a-f]{16}")
OURS = {"chunks", "signals", "locks", "log.jsonl", ".manifest.json.tmp"}  # in a folder without manifest


@dataclass(frozen=True)
class Summary:
    """One zoo. `shadows` and `targets` were asked for and are there, `models` lie in its chunks.

    `fault` is one line where the manifest is damaged; the rest is then unknown.
    """

    folder: Path
    bytes: int
    data: str = "?"
    net: str = "?"
    seed: int = 0
    shadows: int = 0
    targets: int = 0
    models: int = 0
    fault: str | None = None


class Unused(NamedTuple):
    """A file or folder that nothing needs any more, and why."""

    path: Path
    bytes: int
    reason: str


def zoos(root: str | Path | None = None) -> list[Summary]:
    """The zoos in a root, by name of folder."""
    return [_summary(path.parent) for path in sorted(root_of(root).glob("*/manifest.json"))]


def unused(root: str | Path | None = None) -> list[Unused]:
    """What may be deleted: what an interruption left, and cached arrays whose weights are no more.

    A damaged zoo and whatever a running process holds are left alone; so are files that are not ours.
    """
    folders = sorted(path for path in root_of(root).glob("*") if path.is_dir())
    return [thing for folder in folders for thing in _unused_in(folder)]


def remove(things: Iterable[Unused]) -> int:
    """Deletes what `unused` listed, unless a manifest has come since; returns the bytes set free."""
    freed = 0
    for path, size, _ in things:
        if path.is_dir() and not (path / "manifest.json").exists():
            shutil.rmtree(path)
        elif path.is_file():
            path.unlink()
        else:
            continue
        freed += size
    return freed


def _summary(folder: Path) -> Summary:
    size = _size(folder)
    try:
        held = Store(folder).manifest()
    except ValueError as error:
        return Summary(folder, size, fault=str(error))
    return Summary(
        folder,
        size,
        held["data"]["name"],
        held["recipe"]["net"],
        held["seed"],
        held["asked"].get("shadow", 0),
        held["asked"].get("target", 0),
        sum(chunk["models"] for chunk in held["chunks"].values()),
    )


def _unused_in(folder: Path) -> Iterator[Unused]:
    store = Store(folder)
    if not (folder / "manifest.json").exists():
        if (
            NAME.fullmatch(folder.name)
            and {p.name for p in folder.iterdir()} <= OURS
            and _free(store, "manifest")
        ):
            yield Unused(folder, _size(folder), "has no manifest")
        return
    try:
        chunks = store.manifest()["chunks"]
    except ValueError:
        return
    for path in sorted(folder.rglob("*")):
        reason = _reason(path, chunks)
        if reason and _free(store, path.name.lstrip(".").split(".")[0]):
            yield Unused(path, path.stat().st_size, reason)


def _reason(path: Path, chunks: Plain) -> str | None:
    """Why a file of a zoo is not needed; None if it is, or is not ours."""
    if path.suffix == ".tmp" and path.name.startswith("."):
        return "left by an interrupted write"
    if path.parent.name == "chunks" and path.suffix == ".safetensors" and path.stem not in chunks:
        return "not in the manifest"
    if path.parent.name != "signals" or path.suffix not in (".npy", ".json"):
        return None
    try:
        weights = unsealed(path.with_suffix(".json"))["weights"]
    except (OSError, ValueError):
        return "says not what it holds"
    if not path.with_suffix(".npy").exists():
        return "its array is not there"
    known = {entry["sha256"] for entry in chunks.values()}
    return None if known.issuperset(weights) else "its weights are no more"


def _free(store: Store, name: str) -> bool:
    """Whether no process works on what this lock guards."""
    try:
        with store.lock(name).acquire(blocking=False):
            return True
    except Timeout:
        return False


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
