"""Where data files lie, and the one line that is said when they do not."""

import os
from pathlib import Path


def home(root: str | Path | None) -> Path:
    """`root`, else the folder that GLASSLAB_DATA names, else ~/.cache/glasslab/data."""
    return Path(root or os.environ.get("GLASSLAB_DATA") or "~/.cache/glasslab/data").expanduser()


def first(*paths: Path) -> Path | None:
    """The first path that exists."""
    return next((path for path in paths if path.exists()), None)


def missing(name: str, needs: str, root: Path, source: str, why: Exception | None = None) -> ValueError:
    """To be raised: what was looked for, where, and how one gets it; `why` the download failed, if tried."""
    where = f"{root} (root=, else GLASSLAB_DATA)"
    reason = f"found none, and the download failed ({line(why)})" if why else "found none"
    return ValueError(f"{name} needs {needs} in {where}: {reason}; put it there from {source}")


def line(error: Exception) -> str:
    """What an error says, in one line of at most 200 characters."""
    return (" ".join(str(error).split()) or type(error).__name__)[:200]
