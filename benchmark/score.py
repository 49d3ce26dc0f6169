"""LiRA for all targets of a zoo at once: seconds, memory, and how both grow.

    python -m benchmark.score

Signals as a zoo keeps them, phi Float64[m k n] in one file a kind, mapped into memory. They are made up, in a
temporary folder: time does not depend on the values. Each size runs five times in a fresh process with one
thread, so one core is what it takes (Linux only).

first      seconds of the first run, from the mapped files to the scores of all targets (fit and ratio), page
           faults included; the files, just written, are in the system's cache. This is the figure.
seconds    the fastest of the five: what growth is read off, as other work on the machine only adds.
peak_gib   the most that the process held in memory (VmHWM), less the pages of the mapped files that are in
           memory at the end; interpreter and libraries (`import_gib`) are counted in. From the second run on
           all these pages are in memory all the time, so the difference is what the rest took at its peak.
textbook   Algorithm 1 as a loop over records with scipy.stats.norm, on the first 200 records of the main
           size, multiplied up to all of them. Its scores must equal ours.
"""

import math
import re
import sys
import tempfile
import time
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
from scipy.stats import norm
from torch import Tensor

from benchmark import record
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


def main(seed: int = 0, size: Size = SIZE, folder: Path = record.RESULTS) -> None:
    """Measures, prints, and writes score.json into `folder`; the axes scale with `size`."""
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
    command = " ".join(["python -m benchmark.score", *sys.argv[1:]])
    record.write("score", command, seed, figures, rows, folder)


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


def held(what: str) -> int:
    """VmRSS (now) or VmHWM (at most) of this process, in bytes; Linux only."""
    return 1024 * int(re.findall(rf"{what}:\s+(\d+) kB", Path("/proc/self/status").read_text())[0])


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
    slow = [loop(phi[..., i], S[..., i], member[:, i].numpy()) for i in range(SAMPLE)]
    seconds = time.perf_counter() - start
    ours = ratio(torch.from_numpy(phi), fit(torch.from_numpy(S), member)).numpy()
    np.testing.assert_allclose(np.stack(slow, -1), ours, rtol=1e-9, atol=1e-9)
    return seconds * size.records / SAMPLE


def loop(phi: np.ndarray, S: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Scores [t] of one record, from phi [t k] and S [m k]."""
    scores: np.ndarray = np.zeros(phi.shape)
    for q in range(S.shape[1]):
        x_in, x_out = S[inside, q], S[~inside, q]
        laws = [norm(np.median(x), np.std(x)) for x in (x_in, x_out)]
        for a in range(len(phi)):
            scores[a, q] = laws[0].logpdf(phi[a, q]) - laws[1].logpdf(phi[a, q])
    return np.asarray(scores.mean(1))


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


if __name__ == "__main__":
    tyro.cli(main)
