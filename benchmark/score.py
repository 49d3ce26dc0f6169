"""LiRA for all targets of a zoo at once: seconds, memory, and how both grow.

Signals as a zoo keeps them, phi Float64[m k n] in one file per kind, mapped into memory; made up here, in a
temporary folder, for time does not depend on the values. Each size runs in a fresh process, three times.

seconds        from the files to all scores: map, fit, ratio. `first` is the first run of a fresh process, with
               its page faults; the files themselves are in the system's page cache, as they were just written.
peak_gib       the most that the process held in memory (VmHWM), less the resident pages of the mapped files;
               interpreter and libraries (`import_gib`) are counted in. All pages of the files are resident from
               the first run on, so the difference is exact for the two runs after it.
textbook       Algorithm 1 as a loop over records with scipy.stats.norm, timed on 200 records of the main size
               and multiplied up to all of them; its scores must equal ours.
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
from statistics import median

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


AXES = {
    "records": (12_500, 25_000, 50_000, 100_000),
    "models": (64, 128, 256, 512),
    "targets": (8, 64, 128, 256),
}


def main(seed: int = 0, size: Size = Size(), name: str = "score") -> None:  # noqa: B008 (frozen)
    """Measures, prints, and writes benchmark/results/NAME.json."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for axis, values in AXES.items():
            scale = getattr(size, axis) / getattr(Size(), axis)
            for value in values:
                each = replace(size, **{axis: round(value * scale)})
                rows.append({"axis": axis, **asdict(each), **measure(each, seed, Path(folder))})
                print(rows[-1], file=sys.stderr)
        loop = textbook(size, seed, Path(folder))
    own = next(row for row in rows if row["axis"] == "records" and row["records"] == size.records)
    show(rows, loop, own)
    figures = {"lira_all_targets_seconds": own["first"], "lira_peak_gib": own["peak_gib"]}
    rows.append({"axis": "textbook", **asdict(size), "seconds": loop, "sampled_records": SAMPLE})
    record.write(name, f"python -m benchmark.score --seed {seed}", seed, figures, rows)


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
    """Three runs, and the most that the process held."""
    member, base, seconds = members(size, seed)["shadows"], held("VmRSS"), []
    S, phi = (
        torch.from_numpy(np.load(folder / f"{kind}.npy", mmap_mode="c")) for kind in ("shadows", "targets")
    )
    for _ in range(3):
        start = time.perf_counter()
        ratio(phi, fit(S, member))
        seconds.append(time.perf_counter() - start)
    pages = resident(folder)
    return {
        "seconds": median(seconds),
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
    scores = np.zeros(phi.shape)
    for q in range(S.shape[1]):
        x_in, x_out = S[inside, q], S[~inside, q]
        laws = [norm(np.median(x), np.std(x)) for x in (x_in, x_out)]
        for a in range(len(phi)):
            scores[a, q] = laws[0].logpdf(phi[a, q]) - laws[1].logpdf(phi[a, q])
    return scores.mean(1)


def growth(rows: list[dict], axis: str) -> float:
    """Exponent of the median seconds between the smallest and the largest size: 1 is linear."""
    ends = [row for row in rows if row["axis"] == axis]
    first, last = ends[0], ends[-1]
    return math.log(last["seconds"] / first["seconds"]) / math.log(last[axis] / first[axis])


def show(rows: list[dict], loop_seconds: float, own: dict) -> None:
    table = Table("axis", "records", "models", "targets", "seconds", "first", "peak GiB", "mapped GiB")
    for row in rows:
        sizes = [f"{row[name]:,}" for name in ("records", "models", "targets")]
        numbers = [f"{row[name]:.3f}" for name in ("seconds", "first", "peak_gib", "mapped_gib")]
        table.add_row(row["axis"], *sizes, *numbers)
    console = Console()
    console.print(table)
    for axis in AXES:
        console.print(f"seconds grow as {axis} ^ {growth(rows, axis):.2f}")
    console.print(
        f"textbook loop: {loop_seconds:.0f} s (from {SAMPLE} records), {loop_seconds / own['seconds']:.0f} times ours"
    )


if __name__ == "__main__":
    tyro.cli(main)
