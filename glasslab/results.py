"""One run on disk: rows, summary and manifest as strict JSON, rows as parquet, scores, curves.

Whatever draws or reports reads these four files and computes nothing.
"""

import json
import math
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float64, Int
from safetensors.torch import load_file
from safetensors.torch import save as dump
from torch import Tensor

FILES = ("results.parquet", "scores.safetensors", "curves.parquet", "results.json")  # the last one completes
PACKAGES = ("glasslab", "numpy", "scipy", "scikit-learn", "pandas", "safetensors")
HELD = ("truth", "records")  # entries of scores.safetensors that are no attack


@dataclass(frozen=True, eq=False)
class Results:
    """`rows` are one an (attack, target), `summary` one an attack, both plain values (None: undefined).

    `scores` are attack -> Float64[t n], a row of NaN where the attack failed on that target; `records` are
    ids in the data set. `curves` is tidy: one row a point, `curve` names its kind.
    """

    manifest: dict[str, Any]
    rows: list[dict[str, Any]]
    summary: list[dict[str, Any]]
    scores: dict[str, Float64[Tensor, "t n"]]
    truth: Bool[Tensor, "t n"]
    records: Int[Tensor, "n"]
    curves: pd.DataFrame


def save(folder: str | Path, results: Results) -> Path:
    """Writes the four files, each whole or not at all; results.json comes last and completes the run.

    Raises ValueError where an attack bears the name of another entry of scores.safetensors.
    """
    taken = set(HELD) & results.scores.keys()
    if taken:
        raise ValueError(f"scores must not be named {' or '.join(HELD)}, got {sorted(taken)}")
    document = {"manifest": results.manifest, "rows": results.rows, "summary": results.summary}
    held = {"truth": results.truth, "records": results.records}
    tensors = {name: t.contiguous() for name, t in (results.scores | held).items()}
    text = json.dumps(strict(document), indent=1, allow_nan=False)
    write: dict[str, Callable[[Path], Any]] = {
        "results.parquet": lambda path: pd.DataFrame(strict(results.rows)).to_parquet(path, index=False),
        "scores.safetensors": lambda path: path.write_bytes(dump(tensors)),
        "curves.parquet": lambda path: results.curves.to_parquet(path, index=False),
        "results.json": lambda path: path.write_text(text + "\n"),
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".writing-") as scratch:
        for name in FILES:
            write[name](Path(scratch) / name)
        for name in FILES:
            os.replace(Path(scratch) / name, folder / name)
    return folder


def read(folder: str | Path) -> Results:
    """A run from its folder. Raises ValueError where one of its files is not there."""
    folder = Path(folder)
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise ValueError(f"folder must hold {', '.join(FILES)}, got none of {', '.join(missing)} in {folder}")
    document = json.loads((folder / "results.json").read_text())
    scores = load_file(folder / "scores.safetensors")
    truth, records = (scores.pop(name) for name in HELD)
    curves = pd.read_parquet(folder / "curves.parquet")
    return Results(**document, scores=scores, truth=truth, records=records, curves=curves)


def strict(value: Any) -> Any:
    """Plain JSON values: what is not finite becomes None, numpy and torch scalars become Python's.

    >>> strict({"auc": float("nan"), "rates": (0.5, torch.tensor(1))})
    {'auc': None, 'rates': [0.5, 1]}
    """
    if isinstance(value, Mapping):
        return {str(key): strict(held) for key, held in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [strict(held) for held in value]
    if hasattr(value, "tolist"):  # arrays, tensors and their scalars
        return strict(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def provenance(*, seed: int, device: str, command: str | None = None) -> dict[str, Any]:
    """What every number carries: seed, commit, library versions, device, machine, and the command."""
    return {
        "seed": seed,
        "commit": commit(),
        "versions": versions(),
        "device": _device(device),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores",
        "threads": torch.get_num_threads(),
        "command": command if command is not None else shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def commit() -> str:
    """Commit of the source that runs, `+` behind it where files were changed; else the installed version."""
    root = Path(__file__).resolve().parents[1]
    try:
        top = _git(root, "rev-parse", "--show-toplevel")
        if Path(top).resolve() != root:  # installed into someone else's checkout
            return versions()["glasslab"]
        changed = _git(root, "status", "--porcelain", "--untracked-files=no")
        return _git(root, "rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return versions()["glasslab"]


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that a number may depend on."""
    own = {"python": platform.python_version(), "torch": str(torch.__version__)}
    return own | {name: _version(name) for name in PACKAGES}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", root, *arguments], capture_output=True, text=True, timeout=10)
    done.check_returncode()
    return done.stdout.strip()


def _device(name: str) -> str:
    """The device, a graphics card by its name."""
    return f"{name} ({torch.cuda.get_device_name(name)})" if name.startswith("cuda") else name
