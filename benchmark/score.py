"""What scoring costs: LiRA for all targets of a zoo at once, and then every black-box attack.

    python -m benchmark.score                                     # all of it, some ten minutes
    python -m benchmark.score --attacks rmia gmia --folder SOME   # of the attacks, these

LiRA: signals as a zoo keeps them, phi Float64[m k n] in one file a kind, mapped into memory. They are made
up, in a temporary folder: time does not depend on the values. Each size runs five times in a fresh process
with one thread, so one core is what it takes (Linux only).

first      seconds of the first run, from the mapped files to the scores of all targets (fit and ratio), page
           faults included; the files, just written, are in the system's cache. This is the figure.
seconds    the fastest of the five: what growth is read off, as other work on the machine only adds.
peak_gib   the most that the process held in memory (VmHWM), less the pages of the mapped files that are in
           memory at the end; interpreter and libraries (`import_gib`) are counted in. From the second run on
           all these pages are in memory all the time, so the difference is what the rest took at its peak.
textbook   Algorithm 1 as a loop over records with scipy.stats.norm, on the first 200 records of the main
           size, multiplied up to all of them. Its scores must equal ours.

Attacks (rows with `axis` "attack", of benchmark/score_cases.py): four sizes each, a fresh process and one
thread for each, inputs in memory, after a run on a few records.

first      seconds of the first run; `seconds` the fastest of five, or of at least three where they are slow.
peak_mb    the most that the first run held above its inputs, interpreter and libraries, in 1e6 bytes.
cores      processor seconds over seconds of the first run; well below 1, other work had the machine.

Rows with `axis` "against" compare the largest size with a published package (its name and version; in a venv
of its own, see benchmark/peer.py; on the same arrays, one thread) or with the textbook loop of
benchmark/score_twins.py. `seconds` are theirs, `ours` ours, `ratio` one over the other. Of the loop, and of
a slow package, `sampled_records` are timed and multiplied up. `agreement` "equal" was asserted; else the
`rank_correlation` of the scores is given. `differs` tells what is done otherwise than in ours, and
`ratio_like` is the ratio where ours does that too. What learns has a plain loop or scikit-learn beside it.
"""

import math
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmark import peer, record, score_attacks, score_twins
from benchmark.measure import held
from benchmark.score_cases import CASES
from glasslab.likelihood import fit, ratio
from glasslab.split import shadow_rows, target_rows

GIB = 2**30
SAMPLE = 200  # records for the textbook loop


@dataclass(frozen=True)
class Size:
    """Of the problem; these are the numbers of the issue."""

    records: int = 50_000
    models: int = 256
    targets: int = 8
    queries: int = 2


SIZE = Size()
AXES = {"records": (1 / 4, 1 / 2, 1, 2), "models": (1 / 4, 1 / 2, 1, 2), "targets": (1, 8, 16, 32)}
Row = dict[str, Any]


def main(
    seed: int = 0,
    size: Size = SIZE,
    attacks: tuple[str, ...] = tuple(CASES),
    scale: float = 1.0,
    folder: Path = record.RESULTS,
) -> None:
    """Measures, prints, and writes score.json into `folder`.

    The axes of LiRA scale with `size`, the records of the attacks with `scale`.
    """
    if any(CASES[name].peers for name in attacks):
        peer.interpreter()  # what cannot be had is known before anything is measured
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as files:
        for axis, factors in AXES.items():
            for factor in factors:
                each = replace(size, **{axis: round(getattr(size, axis) * factor)})
                rows.append({"axis": axis, **asdict(each), **measure(each, seed, Path(files))})
        slow = textbook(size, seed, Path(files))
    own = rows[AXES["records"].index(1)]
    show(rows, f"{slow:.0f} s (from {SAMPLE} records), {slow / own['seconds']:.0f} times ours")
    figures = {"lira_all_targets_seconds": own["first"], "lira_peak_gib": own["peak_gib"]}
    rows.append({"axis": "textbook", **asdict(size), "seconds": slow, "sampled_records": SAMPLE})
    found = list(of_attacks(attacks, scale, seed))
    show_attacks(found)
    command = " ".join(["python -m benchmark.score", *sys.argv[1:]])
    record.write("score", command, seed, figures | figures_of(found), rows + found, folder)


def of_attacks(attacks: tuple[str, ...], scale: float, seed: int) -> Iterator[Row]:
    console = Console()
    for name in attacks:
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as files:
            yield from score_attacks.rows(name, scale, seed, Path(files))
        console.print(f"{name}: measured in {time.perf_counter() - start:.0f} s")


def figures_of(found: list[Row]) -> dict[str, float]:
    """RMIA's seconds and memory at its largest size, and the ratio to each published package."""
    figures: dict[str, float] = {}
    for row in found:
        if row["axis"] == "attack" and row["attack"] == "rmia":  # the last one is the largest
            figures |= {"rmia_seconds": row["first"], "rmia_peak_mb": row["peak_mb"]}
        if "script" in row:
            figures[f"{row['attack']}_over_{row['script'].split('_')[0]}"] = row["ratio"]
    return figures


def measure(size: Size, seed: int, folder: Path) -> dict[str, float]:
    """Seconds and memory of one size, in a process of its own."""
    draw(size, seed, folder)
    with ProcessPoolExecutor(1, get_context("spawn")) as fresh:
        return fresh.submit(run, size, seed, folder).result()


def draw(size: Size, seed: int, folder: Path) -> None:
    """shadows.npy [m k n] and targets.npy [t k n]: N(hard, 1), members one higher."""
    rng = np.random.default_rng(seed)
    hard = 3 * rng.standard_normal(size.records)
    for kind, member in members(size, seed).items():
        shape = (len(member), size.queries, size.records)
        out = np.lib.format.open_memmap(folder / f"{kind}.npy", "w+", np.float64, shape)
        for row, inside in zip(out, member.numpy(), strict=True):
            row[:] = hard + inside + rng.standard_normal(row.shape)


def members(size: Size, seed: int) -> dict[str, Tensor]:
    return {
        "shadows": shadow_rows(size.models, size.records, seed),
        "targets": target_rows(size.targets, size.records, seed),
    }


def run(size: Size, seed: int, folder: Path) -> dict[str, float]:
    """Five runs on one core, and the most that the process held."""
    torch.set_num_threads(1)
    member, base, seconds = members(size, seed)["shadows"], held("VmRSS"), []
    S, phi = (
        torch.from_numpy(np.load(folder / f"{kind}.npy", mmap_mode="c")) for kind in ("shadows", "targets")
    )
    for _ in range(5):
        start = time.perf_counter()
        ratio(phi, fit(S, member))
        seconds.append(time.perf_counter() - start)
    pages = resident(folder)
    return {
        "seconds": min(seconds),
        "first": seconds[0],
        "peak_gib": (held("VmHWM") - pages) / GIB,
        "mapped_gib": pages / GIB,
        "import_gib": base / GIB,
    }


def resident(folder: Path) -> int:
    """Bytes of the files in `folder` that are mapped and lie in memory."""
    found = re.findall(
        rf" {re.escape(str(folder))}/.*\n(?:.*\n)*?Rss:\s+(\d+) kB", Path("/proc/self/smaps").read_text()
    )
    return 1024 * sum(map(int, found))


def textbook(size: Size, seed: int, folder: Path) -> float:
    """Seconds of the loop for all records, from the first few; raises if it disagrees with ours."""
    draw(size, seed, folder)
    torch.set_num_threads(1)
    member = members(size, seed)["shadows"][:, :SAMPLE]
    S, phi = (np.load(folder / f"{kind}.npy", mmap_mode="c")[..., :SAMPLE] for kind in ("shadows", "targets"))
    start = time.perf_counter()
    slow = [score_twins.normal_ratio(phi[..., i], S[..., i], member[:, i].numpy()) for i in range(SAMPLE)]
    seconds = time.perf_counter() - start
    ours = ratio(torch.from_numpy(phi), fit(torch.from_numpy(S), member)).numpy()
    np.testing.assert_allclose(np.stack(slow, -1), ours, rtol=1e-9, atol=1e-9)
    return seconds * size.records / SAMPLE


def growth(rows: list[Row], axis: str) -> float:
    """Exponent of the seconds between the smallest and the largest size: 1 is linear."""
    ends = [row for row in rows if row["axis"] == axis]
    first, last = ends[0], ends[-1]
    return math.log(last["seconds"] / first["seconds"]) / math.log(last[axis] / first[axis])


def show(rows: list[Row], slow: str) -> None:
    table = Table("axis", "records", "models", "targets", "seconds", "first", "peak GiB", "mapped GiB")
    for row in rows:
        sizes = [f"{row[name]:,}" for name in ("records", "models", "targets")]
        numbers = [f"{row[name]:.3f}" for name in ("seconds", "first", "peak_gib", "mapped_gib")]
        table.add_row(row["axis"], *sizes, *numbers)
    console = Console()
    console.print(table)
    for axis in AXES:
        console.print(f"seconds grow as {axis} ^ {growth(rows, axis):.2f}")
    console.print(f"textbook loop: {slow}")


def show_attacks(found: list[Row]) -> None:
    measured, compared = (
        Table(*names)
        for names in (
            ("attack", "records", "models", "seconds", "first", "peak MB", "cores"),
            ("attack", "against", "seconds", "ours", "ratio", "like for like", "agreement"),
        )
    )
    for row in found:
        if row["axis"] == "attack":
            numbers = [f"{row[name]:.3f}" for name in ("seconds", "first", "peak_mb", "cores")]
            measured.add_row(row["attack"], f"{row['records']:,}", str(row["models"]), *numbers)
        else:
            numbers = [f"{row[name]:.3f}" for name in ("seconds", "ours")]
            ratios = [f"{row[name]:.1f}" if name in row else "" for name in ("ratio", "ratio_like")]
            agreement = row.get("agreement") or f"{row['rank_correlation']:.3f}"
            compared.add_row(row["attack"], row["against"], *numbers, *ratios, agreement)
    console = Console(width=110)
    console.print(measured)
    console.print(compared)


if __name__ == "__main__":
    tyro.cli(main)
