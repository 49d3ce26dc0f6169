"""What attacks are worth when shadows are few: all reference attacks at 2 to 128 trained shadows.

    python -m benchmark.shadows

For each number m the attacker holds the first m shadows of a zoo, half of them in each record and half out;
the targets are the same for every m. Location-30 and the colour images are read from GLASSLAB_DATA. Where an
attack's needs are not met its numbers are null, and `reason` says why. Differences to `lira` are paired: the
same resampled targets and records for both.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import tyro
from matplotlib.figure import Figure
from torch import Tensor

from benchmark import record
from benchmark.zoos import ZOOS
from glasslab import columns
from glasslab.bootstrap import paired
from glasslab.game import game
from glasslab.split import stream
from glasslab.zoo import Zoo
from workbench.arena import holdings
from workbench.attack import unmet
from workbench.blackbox_reference import REFERENCE
from workbench.evidence import one_thread
from workbench.play import play

Row = dict[str, Any]

DATASETS = {"digits": 128, "location30": 128, "colour_cnn": 32}  # and the most shadows that are trained
COUNTS = (2, 4, 8, 16, 32, 64, 128)
LEFT_OUT = ("gmia-selected", "lira-offline-two-sided")
DRAWN = {
    "lira": ("black", "-"),
    "lira-offline": ("black", ":"),
    "rmia": ("0.35", "--"),
    "rmia-offline": ("0.35", ":"),
    "base": ("0.6", "-."),
    "bavaria": ("#123f7a", "-"),
    "bavaria-offline": ("#123f7a", ":"),
    "ye-r": ("0.7", (0, (1, 1))),
}
PICTURE = record.ROOT / "docs" / "pictures" / "shadows.png"
MEASURES = ("auc", "tpr_at_0.1pct")


def main(only: tuple[str, ...] = (), seed: int = 0) -> None:
    """Runs every data set (or `only` those named); writes the results and the picture when all ran."""
    rows: list[Row] = []
    for name, most in DATASETS.items():
        if not only or name in only:
            rows += measured(name, most, seed)
    if not only:
        command = f"python -m benchmark.shadows --seed {seed}"
        record.write("shadows", command, seed, _figures(rows), rows)
        PICTURE.parent.mkdir(parents=True, exist_ok=True)
        drawn(rows, command).savefig(PICTURE, dpi=150)


def measured(dataset: str, most: int, seed: int) -> list[Row]:
    """One row an attack and number of shadows."""
    rows: list[Row] = []
    whole = ZOOS[dataset].zoo(seed, most)
    for m in COUNTS:
        if m > most:
            reason = f"the zoo has {most} shadows"
            rows += [_row(dataset, name, m) | {"reason": reason} for name in _names()]
            continue
        zoo = ZOOS[dataset].zoo(seed, m)
        scores = {name: scored(zoo, name, seed) for name in _names()}
        with one_thread():
            rows += [_measured(dataset, name, m, scores, whole, seed) for name in scores]
        for row in rows[-len(scores) :]:
            print(
                dataset, m, row["attack"], *(row[measure] for measure in MEASURES), row["reason"], flush=True
            )
    return rows


def scored(zoo: Zoo, name: str, seed: int) -> Tensor | str:
    """Scores [t n] of an attack against every target, or why there are none."""
    m, attack = len(zoo.shadow_member), REFERENCE[name]
    lack = unmet(attack, holdings(m, len(zoo.aux), 1, zoo.pool.x, left_out=False))
    if lack:
        return lack
    runs = [play(attack, game(zoo, a), stream(seed, name)) for a in range(len(zoo.target_member))]
    failed = [run.error for run in runs if run.error]
    return failed[0] if failed else torch.stack([run.score for run in runs if run.score is not None])


def _measured(
    dataset: str, name: str, m: int, scores: Mapping[str, Tensor | str], zoo: Zoo, seed: int
) -> Row:
    score, lira, truth = scores[name], scores["lira"], zoo.target_member
    row = _row(dataset, name, m)
    if isinstance(score, str):
        return row | {"reason": score}
    found = columns.summary(score, truth, stream(seed, "summary"))
    row |= {measure: found[measure] for measure in MEASURES} | {"tpr_at_1pct": found["tpr_at_1pct"]}
    row |= {end: found[f"tpr_at_0.1pct_{end}"] for end in ("low", "high", "flag")}
    row |= {"auc_low": found["auc_low"], "auc_high": found["auc_high"], "n_neg": found["n_neg"]}
    if isinstance(lira, Tensor) and name != "lira":
        against = paired(score, lira, truth, stream(seed, "rivals"))
        for measure in (*MEASURES, "tpr_at_1pct"):
            value, low, high, *_ = against[measure]
            row |= {f"{measure}_minus_lira": value, f"{measure}_minus_lira_low": low}
            row |= {f"{measure}_minus_lira_high": high}
    return row


def _names() -> list[str]:
    return [name for name in REFERENCE if name not in LEFT_OUT]


def _row(dataset: str, name: str, m: int) -> Row:
    empty = dict.fromkeys((*MEASURES, "low", "high", "reason"))
    return {"dataset": dataset, "attack": name, "shadows": m, "n_in": m // 2, "n_out": m // 2} | empty


def _figures(rows: Sequence[Row]) -> dict[str, float]:
    """AUC of the online attacks at 4 and at 64 shadows."""
    shown = ("lira", "rmia", "base", "bavaria")
    return {
        f"{row['dataset']}_{row['attack']}_auc_at_{row['shadows']}": row["auc"]
        for row in rows
        if row["attack"] in shown and row["shadows"] in (4, 64) and row["auc"] is not None
    }


def drawn(rows: Sequence[Row], command: str) -> Figure:
    """TPR at 0.1 % FPR and AUC against the number of trained shadows, a column a data set."""
    figure = Figure(figsize=(3.4 * len(DATASETS), 6.0), layout="constrained")
    grid = figure.subplots(2, len(DATASETS), squeeze=False, sharex="col")
    for column, dataset in enumerate(DATASETS):
        for axes, measure in zip(grid[:, column], ("tpr_at_0.1pct", "auc"), strict=True):
            for name, (colour, dash) in DRAWN.items():
                points = [r for r in rows if (r["dataset"], r["attack"]) == (dataset, name) and r["auc"]]
                x, y = ([row[key] for row in points] for key in ("shadows", measure))
                percent = [100 * value for value in y] if measure != "auc" else y
                axes.plot(x, percent, color=colour, linestyle=dash, marker="o", markersize=3, label=name)
            axes.set_xscale("log", base=2)
            axes.set_xticks(COUNTS, map(str, COUNTS))
            axes.minorticks_off()
        grid[0, column].set_title(dataset)
        grid[1, column].set_xlabel("shadows trained (half of them in)")
    grid[0, 0].set_ylabel("TPR at 0.1 % FPR, %")
    grid[1, 0].set_ylabel("AUC")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4, fontsize=8)
    figure.get_layout_engine().set(rect=(0, 0.03, 1, 0.97))  # type: ignore[union-attr, call-arg]
    figure.text(0.01, 0.008, command, fontsize=6, color="0.35", in_layout=False)
    return figure


if __name__ == "__main__":
    tyro.cli(main)
