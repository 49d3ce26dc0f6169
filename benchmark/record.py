"""What a benchmark leaves behind: benchmark/results/NAME.json, from which the README's table is rebuilt."""

import json
import os
import platform
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from glasslab.results import commit

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "numpy", "scipy")


def write(
    name: str,
    command: str,
    seed: int,
    figures: Mapping[str, float],
    rows: Sequence[Mapping[str, Any]],
    folder: Path = RESULTS,
) -> Path:
    """Writes strict JSON with commit, machine and versions, and returns its path.

    `figures` are the few numbers that the README names, `rows` everything that was measured. Raises
    ValueError on NaN and infinity, and then leaves the old file as it was.
    """
    result = {
        "command": command,
        "seed": seed,
        "commit": commit(),
        "machine": machine(),
        "versions": {"python": platform.python_version()} | {p: version(p) for p in PACKAGES},
        "figures": dict(figures),
        "rows": [dict(row) for row in rows],
    }
    text = json.dumps(result, indent=2, allow_nan=False) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    path, new = folder / f"{name}.json", folder / f".{name}.json.new"
    new.write_text(text, encoding="utf-8")
    new.replace(path)
    return path


def machine() -> str:
    """Processor, cores that this process may use, and GPU where there is one; no names of hosts."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpu = f", {torch.cuda.get_device_name(0)}" if torch.cuda.is_available() else ""
    return f"{_processor()}, {cores} cores{gpu}, {platform.system()} {platform.machine()}"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else None
    return found[1].strip() if found else platform.processor() or platform.machine()
