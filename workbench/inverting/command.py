"""`glasslab invert`: rebuilds an input of each label, prints the table, keeps images, numbers and pictures.

In the folder: invert.json (rows, curves, manifest), ATTACK-KEY.safetensors, sheet.png, convergence.png. What
is finished there with the same settings is read, not run again.
"""

import hashlib
import json
import os
import shlex
import sys
import tempfile
import warnings
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from jaxtyping import Float, Int
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from glasslab.checks import Floored
from glasslab.datasets import load
from glasslab.results import provenance, strict
from inversion.result import Inversion
from workbench import steps
from workbench.inverting import attacks, measured, pictures, printed, told
from workbench.inverting.told import Told
from workbench.inverting.victim import FACES, Victim, victim
from workbench.options import InvertOptions
from workbench.steps import Stopped

FEW = 8  # faces, and labels, in a picture
PLACES = ("out", "root", "data_root", "faces", "device", "attack")  # change no image


def invert(options: InvertOptions) -> int:
    """Runs it; 0. Raises ValueError, before any training, for what cannot be."""
    table, start = attacks.chosen(options.attack), perf_counter()
    apart = any(row.prior for row in table.values())
    _refuse_early(options, apart)
    held = victim(options, apart=apart)
    y = labels_of(options.labels, held.data.classes).to(held.data.y.device)
    folder = (
        options.out or Path("runs") / f"{datetime.now():%Y%m%d-%H%M%S}-invert-{held.data.name}-{held.net}"
    )
    folder.mkdir(parents=True, exist_ok=True)
    ready: dict[str, Told] = {}
    for name in table:
        try:
            ready[name] = told.told(held, options, name, _run(held, options, name, y, folder))
        except KeyboardInterrupt:
            kept = ", ".join(ready) or "no attack"
            raise Stopped(f"{kept} finished and kept in {folder}; with --out {folder} it goes on") from None
    lines = measured.flat([line for each in ready.values() for line in each.lines])
    columns = {name: x for each in ready.values() for name, x in each.images.items()}
    command = shlex.join(["glasslab", *sys.argv[1:]])
    manifest = provenance(seed=options.seed, device=str(held.data.x.device), command=command) | held.about
    manifest |= {"net": held.net, "seconds": perf_counter() - start}
    curves = measured.curves({name: each.found for name, each in ready.items()})
    _save(
        folder,
        options,
        held,
        {"manifest": manifest, "rows": lines, "curves": curves},
        columns,
    )
    width = None if sys.stdout.isatty() else steps.WIDTH
    Console(width=width).print(printed.table(lines, manifest))
    steps.say(f"{folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")
    return 0


def _refuse_early(options: InvertOptions, apart: bool) -> None:
    """Raises ValueError before anything is trained."""
    steps.masks_of(options.mask)
    classes = load(options.data, options.data_root).classes
    labels_of(options.labels, classes // 2 if apart else classes)
    numbers = {
        "rate": options.rate,
        "width": options.width,
        "pairs": options.pairs,
        "steps": options.steps or 1,
    }
    for name, value in numbers.items():
        if not value > 0:
            raise ValueError(f"{name} must be above 0, got {value}")


def labels_of(words: str, classes: int) -> Int[Tensor, "c"]:
    """Labels such as 0,3,7; "all" are 0 to classes - 1. Raises ValueError for others, and for none."""
    if words == "all":
        return torch.arange(classes)
    try:
        some = [int(word) for word in words.split(",") if word.strip()]
    except ValueError:
        some = []
    if not some or len(set(some)) < len(some) or not all(0 <= label < classes for label in some):
        raise ValueError(f"labels must be all, or distinct ones of 0 to {classes - 1}, got {words!r}")
    return torch.tensor(some)


def _run(
    held: Victim, options: InvertOptions, name: str, y: Int[Tensor, "c"], folder: Path
) -> tuple[Inversion, float, list[str]]:
    """Reads what is there, else runs the attack behind a clock, and keeps what it found."""
    path = folder / f"{name}-{_key(held, options, name)}.safetensors"
    if path.exists():
        steps.say(f"{name}: read from {path.name}")
        return _read(path)
    steps.say(f"{name} on {len(y)} labels: {_ahead(held, options, name, y)}")
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(
        *columns, console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True
    ) as bar:
        bar.add_task(name, total=None)
        found, took, said = told.run(held, options, name, y)
    _keep(path, found, took, said)
    return found, took, said


def _ahead(held: Victim, options: InvertOptions, name: str, y: Int[Tensor, "c"]) -> str:
    """Seconds and queries that MI-FACE will take at most, from a few of its steps; words for the others."""
    if name != "miface":
        return "the net's prior and the search take seconds to minutes"
    made = options.steps or attacks.ASKED[options.gradient]
    few = 4
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Floored)
        attacks.by_miface(held, options, y, steps=1)  # what is loaded late
        begun = perf_counter()
        probe = attacks.by_miface(held, options, y, steps=few)
    each = (perf_counter() - begun) / few
    asked = int(probe.queries.sum()) // (few + 1) * (made + 1)
    asks = f", {asked:,} queries" if asked else ""
    return f"at most {made:,} steps, about {steps._time(each * made)} in all{asks}"


def _key(held: Victim, options: InvertOptions, name: str) -> str:
    """Of everything that decides the images."""
    said = {k: str(v) for k, v in asdict(options).items() if k not in PLACES}
    text = json.dumps([name, said, held.about["data"], held.about["public"]], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


def _keep(path: Path, found: Inversion, seconds: float, notes: list[str]) -> None:
    tensors = {
        n: getattr(found, n).contiguous() for n in ("x", "y", "cost", "confidence", "steps", "queries")
    }
    tensors |= {} if found.curve is None else {"curve": found.curve.contiguous()}
    words = {
        "stop_reason": json.dumps(found.stop_reason),
        "notes": json.dumps(notes),
        "seconds": repr(seconds),
    }
    scratch = path.with_suffix(".new")
    save_file(tensors, scratch, metadata=words)
    os.replace(scratch, path)


def _read(path: Path) -> tuple[Inversion, float, list[str]]:
    with safe_open(path, "pt") as file:
        words = file.metadata()
        tensors: dict[str, Any] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    reasons, notes = (json.loads(words[name]) for name in ("stop_reason", "notes"))
    return Inversion(**tensors, stop_reason=tuple(reasons)), float(words["seconds"]), notes


def _save(
    folder: Path,
    options: InvertOptions,
    held: Victim,
    document: dict[str, Any],
    columns: dict[str, Float[Tensor, "n *d"]],
) -> None:
    """Each file whole or not at all; numbers first, pictures from the same columns."""
    said = document["manifest"]["command"]
    count = len(next(iter(columns.values())))
    some = count if options.faces == "all" or held.data.name != FACES else min(FEW, count)
    labels = labels_of(options.labels, held.data.classes).tolist()
    figures: dict[str, Figure] = {"convergence.png": pictures.convergence(document["curves"], said)}
    if len(held.data.shape) == 3:
        shown = {name: images[:some] for name, images in columns.items()}
        figures["sheet.png"] = pictures.sheet(shown, sorted(labels)[:some], said)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".writing-") as scratch:
        parts = Path(scratch)
        (parts / "invert.json").write_text(json.dumps(strict(document), indent=1, allow_nan=False) + "\n")
        for name, figure in figures.items():
            figure.savefig(parts / name, dpi=150)
        for part in list(parts.iterdir()):
            os.replace(part, folder / part.name)
