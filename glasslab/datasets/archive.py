"""Tables out of a tgz that nobody vouches for.

Nothing is unpacked to disk: members are read where they lie. An archive that would climb out of its folder
were it unpacked is refused all the same.
"""

import gzip
import hashlib
import tarfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import IO

from glasslab.datasets.arrays import Array
from glasslab.datasets.place import line


def read(
    path: Path, names: Sequence[str], parse: Callable[[IO[bytes], str], Array], *, sha256: str | None = None
) -> list[Array]:
    """The members called `names`, in that order, each through `parse(stream, name)`.

    Raises ValueError if the checksum differs, the archive is truncated or damaged, a member is missing, or
    any member would climb out of its folder or is a link or a device.
    """
    if sha256 and (came := _sha256(path)) != sha256:
        raise ValueError(f"{path} must have SHA-256 {sha256}, got {came}")
    tables = {}
    try:
        with gzip.open(path) as stream, tarfile.open(fileobj=stream) as tar:
            for member in tar:
                name = _safe(member, path)
                if name in names and (content := tar.extractfile(member)):
                    tables[name] = parse(content, f"{path}, {name},")
            while stream.read(1 << 20):  # to the end, where gzip keeps its checksum
                pass
    except (EOFError, OSError, tarfile.TarError, zlib.error) as error:
        raise ValueError(f"{path} must be a whole tgz archive, got {line(error)}") from None
    absent = [name for name in names if name not in tables]
    if absent:
        raise ValueError(f"{path} must hold {', '.join(names)}, found no {', '.join(absent)}")
    return [tables[name] for name in names]


def _safe(member: tarfile.TarInfo, path: Path) -> str:
    """The member's name without a leading "./"."""
    name = PurePosixPath(member.name)
    if name.is_absolute() or ".." in name.parts:
        raise ValueError(f"{path} must stay in its folder, got a member {member.name!r}")
    if not (member.isfile() or member.isdir()):
        raise ValueError(f"{path} must hold plain files only, got a link or a device {member.name!r}")
    return str(name)


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
