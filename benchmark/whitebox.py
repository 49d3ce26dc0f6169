"""Every white-box attack beside LiRA, RMIA and the loss, on the fixed zoos; and with weight decay or dropout.

    python -m benchmark.whitebox

Location-30 and Fashion-MNIST are read from GLASSLAB_DATA. A run that is finished lies in `folder` and is not
repeated; `--only digits` runs one zoo. Each row says what its attacker holds: only numbers under one label
are a ranking. `calibration` rows: precision at a threshold that keeps its false-positive rate on aux, beside
that where the attack itself would say member.
"""

from pathlib import Path

import tyro

from benchmark import record
from benchmark.blackbox import Run, played, row
from benchmark.zoos import ZOOS
from glasslab.results import read, strict
from workbench.experiments.calibration import calibration

TARGETS = 4  # some attacks learn anew for each
BESIDE = ("random", "loss", "rmia", "lira")
ZOOS_PLAYED = (
    *("digits", "location30", "fashion_cnn"),
    *("digits_decay", "digits_dropout", "location30_decay", "location30_dropout"),
)
RUNS = tuple(
    Run(zoo, attacks=(*BESIDE, "whitebox"), script="whitebox", targets=TARGETS) for zoo in ZOOS_PLAYED
)


def main(only: tuple[str, ...] = (), folder: Path = Path("runs/whitebox")) -> None:
    """Runs what is not in `folder` yet (or `only` those named), prints it.

    Writes results/whitebox.json of all runs that are there.
    """
    for run in RUNS:
        if not only or run.zoo in only:
            played(run, folder / run.name)
    rows, figures = [], dict[str, float]()
    for run in (run for run in RUNS if (folder / run.name / "results.json").exists()):
        held = read(folder / run.name)
        rows += [row(run, summary, held.manifest) for summary in held.summary]
        figures[f"{run.zoo}_gap"] = held.manifest["accuracy"]["gap"]
        rows += [
            {"data": run.zoo, "table": "calibration"} | line
            for line in calibration(ZOOS[run.zoo].zoo(run.seed, targets=TARGETS), seed=run.seed).to_dict(
                "records"
            )
        ]
    record.write("whitebox", "python -m benchmark.whitebox", 0, figures, strict(rows))


if __name__ == "__main__":
    tyro.cli(main)
