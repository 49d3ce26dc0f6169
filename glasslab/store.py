"""A zoo's folder: chunks of weights, a manifest with their checksums, a log beside it, locks.

    manifest.json                       what was trained: strict JSON, sorted, no clock, its own checksum
    chunks/shadow-0000.safetensors ...  stacked state dicts, the leading axis is models
    signals/HASH.npy, HASH.json         cached arrays, and what each holds
    log.jsonl                           when, where, and by which commit each chunk was trained
    locks/                              the kernel frees a lock whose holder was killed

A file appears under its name whole or not at all.
"""

import errno
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

FORMAT = 1
FULL = (errno.ENOSPC, errno.EDQUOT)

Plain = dict[str, Any]  # of plain values: what JSON holds


def root_of(root: str | Path | None = None) -> Path:
    """Where zoos lie: `root`, else the environment's GLASSLAB_ZOO, else ./zoo."""
    return Path(root or os.environ.get("GLASSLAB_ZOO") or "zoo")


def write(path: Path, parts: Iterable[bytes | memoryview]) -> str:
    """Writes the parts one after another, and returns their SHA-256; the file appears whole or not at all.

    The caller holds a lock on the file. Raises OSError in one line where the disk is full.
    """
    temp, sha = path.with_name(f".{path.name}.tmp"), hashlib.sha256()
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with _room_for(path):
            with open(temp, "wb") as file:
                for part in parts:
                    sha.update(part)
                    file.write(part)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temp, path)
    finally:
        temp.unlink(missing_ok=True)
    _sync(path.parent)
    return sha.hexdigest()


def checksum(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def text(value: Mapping[str, Any]) -> str:
    """Strict JSON with sorted keys: the same values, the same bytes."""
    return json.dumps(value, sort_keys=True, indent=1, allow_nan=False) + "\n"


def fault(path: Path, entry: Plain) -> str | None:
    """One line that says what is wrong with a file, None if it is what its entry says."""
    if not path.is_file():
        return f"{path}: missing"
    if path.stat().st_size != entry["bytes"]:
        return f"{path}: cut short or grown, need {entry['bytes']} bytes, got {path.stat().st_size}"
    found = checksum(path)
    if found != entry["sha256"]:
        return f"{path}: changed, need SHA-256 {entry['sha256'][:16]}, got {found[:16]}"
    return None


def sealed(value: Plain) -> bytes:
    """JSON that carries its own checksum."""
    return text(value | {"checksum": hashlib.sha256(text(value).encode()).hexdigest()}).encode()


def unsealed(path: Path) -> Plain:
    """What a sealed file says. Raises ValueError, naming the file, where it was changed or cut short."""
    try:
        value = json.loads(path.read_bytes())
        value.pop("checksum")
        whole = sealed(value) == path.read_bytes()
    except (ValueError, KeyError, AttributeError, TypeError):
        whole = False
    if not whole:
        raise ValueError(f"{path}: changed or cut short, its checksum does not fit")
    return value


@dataclass(frozen=True, eq=False)
class Store:
    """The files of one zoo. A file's checksum is checked once, when it is first read."""

    folder: Path
    sound: set[str] = field(default_factory=set, init=False, repr=False)

    def manifest(self) -> Plain:
        """What the manifest says. Raises ValueError where it is missing, damaged, or of another format."""
        path = self.folder / "manifest.json"
        if not path.is_file():
            raise ValueError(f"folder must hold a manifest.json, got none in {self.folder}")
        manifest = unsealed(path)
        if manifest["format"] != FORMAT:
            raise ValueError(f"{path}: need format {FORMAT}, got {manifest['format']}")
        return manifest

    def begin(self, head: Plain) -> None:
        """Makes the folder, or finds it made. Raises ValueError where it holds another zoo."""
        with self.lock("manifest"):
            if not (self.folder / "manifest.json").exists():
                self._note(head | {"asked": {}, "chunks": {}})
            key = self.manifest()["key"]
        if key != head["key"]:
            raise ValueError(f"{self.folder} must hold zoo {head['key'][:16]}, got {key[:16]}")

    def end(self, asked: Mapping[Any, int]) -> None:
        """Notes that so many models of each kind were asked for and are there."""
        with self.lock("manifest"):
            manifest = self.manifest()
            most = {kind: max(models, manifest["asked"].get(kind, 0)) for kind, models in asked.items()}
            if most != manifest["asked"]:
                self._note(manifest | {"asked": most})

    def finished(self) -> dict[str, Plain]:
        """Entries of the chunks that are on disk in full length."""
        chunks: dict[str, Plain] = self.manifest()["chunks"]
        return {name: e for name, e in chunks.items() if _size(self.chunk(name)) == e["bytes"]}

    def chunk(self, name: str) -> Path:
        return self.folder / "chunks" / f"{name}.safetensors"

    def put(self, name: str, state: Mapping[str, Tensor], about: Plain) -> None:
        """Writes a chunk, then its entry; a kill in between costs this chunk. The caller holds its lock."""
        held = save(
            {key: tensor.contiguous() for key, tensor in state.items()}
        )  # metadata has no fixed order
        entry = about | {"sha256": write(self.chunk(name), [held]), "bytes": len(held)}
        with self.lock("manifest"):
            manifest = self.manifest()
            manifest["chunks"][name] = entry
            self._note(manifest)
        self.sound.discard(name)

    def row(self, name: str, row: int) -> dict[str, Tensor]:
        """State dict of one model. Raises ValueError, in one line with the file, where a chunk is damaged."""
        path = self.chunk(name)
        if name not in self.sound:
            wrong = fault(path, self.manifest()["chunks"][name])
            if wrong:
                raise ValueError(
                    f"{wrong}; delete the file and train again: only its models are trained anew"
                )
            self.sound.add(name)
        with safe_open(path, framework="pt") as file:
            return {key: file.get_slice(key)[row] for key in file.keys()}  # noqa: SIM118 (no mapping)

    def lock(self, name: str) -> FileLock:
        """A lock between processes, not yet taken."""
        (self.folder / "locks").mkdir(parents=True, exist_ok=True)
        return FileLock(self.folder / "locks" / f"{name}.lock")

    def log(self, event: Plain) -> None:
        """Adds a line to log.jsonl, in one piece."""
        path, line = self.folder / "log.jsonl", json.dumps(event, sort_keys=True, allow_nan=False) + "\n"
        with _room_for(path), open(path, "ab", buffering=0) as file:
            file.write(line.encode())

    def faults(self) -> list[str]:
        """One line for each file that is missing or not what it was; it begins with the file's name."""
        try:
            chunks = self.manifest()["chunks"]
        except ValueError as error:
            return [str(error)]
        found = [fault(self.chunk(name), entry) for name, entry in chunks.items()]
        for about in sorted((self.folder / "signals").glob("*.json")):
            try:
                found.append(fault(about.with_suffix(".npy"), unsealed(about)["file"]))
            except ValueError as error:
                found.append(str(error))
        return [line for line in found if line]

    def _note(self, manifest: Plain) -> None:
        """Replaces the manifest, under its lock."""
        write(self.folder / "manifest.json", [sealed(manifest)])


@contextmanager
def _room_for(path: Path) -> Iterator[None]:
    """Says in one line that the disk is full."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        hint = "disk full; what was finished is kept: make room and run again"
        raise OSError(error.errno, hint, str(path)) from error


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _sync(folder: Path) -> None:
    """Makes a rename last through a loss of power, where the system can."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
