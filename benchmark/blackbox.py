"""The full black-box family on each fixed zoo: what the README shows, and whether LiRA beats the loss.

    python -m benchmark.blackbox

Location-30 and the colour images are read from GLASSLAB_DATA. A run that is finished lies in `folder` and is
not repeated; `--only digits` runs one data set. `search` is what a search attack may ask a candidate: the
paper's 2,500 where the net is small, far less for convolutional nets on a processor.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from benchmark import record
from benchmark.zoos import ZOOS
from glasslab.results import read
from workbench.run import compare


@dataclass(frozen=True)
class Run:
    """A zoo, its seed, which attacks, and the queries of a search."""

    zoo: str
    seed: int = 0
    attacks: str | tuple[str, ...] = "blackbox"
    script: str = "blackbox"
    targets: int | None = None  # None: all of the zoo's
    search: int = 2500

    @property
    def name(self) -> str:
        return f"{self.zoo}-{self.seed}"


RUNS = (
    Run("digits"),
    Run("digits", 1, "standard"),
    Run("digits", 2, "standard"),
    Run("location30", search=500),
    Run("colour_cnn", search=16),
    Run("colour_resnet9", search=12),
)
SHOWN = (
    *("random", "loss", "modified-entropy-per-class", "merlin", "shadow", "boundary"),
    *("sablayrolles", "watson", "gmia", "bavaria", "base", "rmia", "lira-offline", "lira"),
)
RATES = ("1pct", "0.1pct", "0.001pct")
NUMBERS = ("auc", *(f"tpr_at_{rate}" for rate in RATES))
RIVALS = ("loss", "lira")
KEPT = (
    *("attack", "access", "holds", "paper", "auc", "auc_low", "auc_high", "balanced_accuracy", "ba_null"),
    *("balanced_accuracy_transferred", "balanced_accuracy_decision", "n_pos", "n_neg", "gap", "gap_test"),
    *(f"tpr_at_{rate}{end}" for rate in RATES for end in ("", "_low", "_high", "_flag")),
    *(
        f"{number}_minus_{rival}{end}"
        for number in NUMBERS[:3]
        for rival in RIVALS
        for end in ("", "_low", "_high")
    ),
    *("below_resolution", "queries", "models", "seconds", "notes", "error"),
)


def main(only: tuple[str, ...] = (), folder: Path = Path("runs/blackbox")) -> None:
    """Runs what is not in `folder` yet (or `only` those named), prints it.

    Writes results/blackbox.json of all runs that are there.
    """
    for run in RUNS:
        if not only or run.zoo in only:
            played(run, folder / run.name)
    rows, figures = [], dict[str, float]()
    for run in (run for run in RUNS if (folder / run.name / "results.json").exists()):
        held = read(folder / run.name)
        rows += [row(run, summary, held.manifest) for summary in held.summary]
        lira = next(row for row in held.summary if row["attack"] == "lira")
        for rate in RATES[:2]:
            low = lira[f"tpr_at_{rate}_minus_loss_low"]
            figures[f"{run.zoo}_{run.seed}_lira_minus_loss_{rate}_low"] = low
    record.write("blackbox", "python -m benchmark.blackbox", 0, figures, rows)


def played(run: Run, folder: Path) -> None:
    """Trains what is missing, attacks, keeps the run in `folder`; nothing where it is there."""
    if not (folder / "results.json").exists():
        start = time.perf_counter()
        zoo = ZOOS[run.zoo].zoo(run.seed, targets=run.targets)
        print(f"{run.name}: zoo after {time.perf_counter() - start:.0f} s", flush=True)
        command = f"python -m benchmark.{run.script} --only {run.zoo}"
        compare(zoo, run.attacks, search=run.search, seed=run.seed, out=folder, command=command)
    held = read(folder)
    print(f"{run.name}: attacks took {held.manifest['seconds']:.0f} s")
    for row in sorted(held.summary, key=lambda row: row["tpr_at_0.1pct"] or 0.0, reverse=True):
        numbers = " ".join(f"{number} {_short(row[number])}" for number in NUMBERS)
        print(f"  {row['attack']:28} {numbers} {row['error'] or ''}")


def row(run: Run, summary: Mapping[str, Any], manifest: Mapping[str, Any]) -> dict[str, Any]:
    about = {
        "data": run.zoo,
        "net": ZOOS[run.zoo].net,
        "seed": run.seed,
        "search": run.search,
        "commit": manifest["commit"],
        "pool": manifest["pool"],
        "shadows": manifest["shadows"],
        "targets": manifest["targets"],
        "in_readme": summary["attack"] in SHOWN,
        "train": manifest["accuracy"]["train"],
        "test": manifest["accuracy"]["test"],
        "attack_seconds": manifest["seconds"],
    }
    return about | {column: summary.get(column) for column in KEPT}


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


if __name__ == "__main__":
    tyro.cli(main)
