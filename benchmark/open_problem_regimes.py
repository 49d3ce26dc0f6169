"""The open problem in further regimes: fine-tuning, little time, and a world whose answer is known.

    python -m benchmark.open_problem_regimes

Fashion-MNIST and what else the five zoos need is read from GLASSLAB_DATA. Signals and scores that are
finished lie in `folder` and are not made again. Writes results/open_problem_regimes.json once all parts are
there.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import tyro

from benchmark import record
from benchmark.invert import say
from benchmark.open_problem_budget import PLAYED, bought, budget
from benchmark.open_problem_rows import Row
from benchmark.open_problem_tuned import finetuning
from glasslab.results import strict
from workbench.open_problem.positive import LOUD, positive

PARTS: Mapping[str, Callable[[Path], list[Row]]] = {
    "finetuning": finetuning,
    "budget": budget,
    "bought": bought,
    "positive": lambda _: [dict(positive(loud)) for loud in (1.0, LOUD)],
}


def main(only: tuple[str, ...] = (), folder: Path = Path("runs/open_problem_regimes")) -> None:
    """Runs the parts that are not in `folder` yet (or `only` those named, anew); prints a line a row.

    Writes results/open_problem_regimes.json once all are there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in PARTS.items():
        path = folder / f"{name}.json"
        if name in only or (not only and not path.exists()):
            rows = strict(part(folder / name))
            path.write_text(json.dumps(rows, indent=1, allow_nan=False))
            for row in rows:
                say(row)
    if all((folder / f"{name}.json").exists() for name in PARTS):
        held = {name: json.loads((folder / f"{name}.json").read_text()) for name in PARTS}
        rows = [{"part": name} | row for name, some in held.items() for row in some]
        record.write(
            "open_problem_regimes", "python -m benchmark.open_problem_regimes", 0, figures(held), rows
        )


def figures(held: Mapping[str, list[Row]]) -> dict[str, float]:
    """The few numbers that are named elsewhere."""
    tuned_ = {row["attack"]: row for row in held["finetuning"] if row["seed"] == "all"}
    found = {
        "finetuning_displacement_over_lira": tuned_["displacement"]["ratio_to_lira"],
        "finetuning_displacement_over_lira_low": tuned_["displacement"]["low"],
        "finetuning_stacked_over_lira": tuned_["stacked"]["ratio_to_lira"],
        "finetuning_decode_over_lira": tuned_["decode"]["ratio_to_lira"],
    }
    for name in PLAYED:
        rows = {row["attack"]: row for row in held["budget"] if row["zoo"] == name}
        found |= {f"{name}_shadows_for_a_frozen_trunk": float(rows["lira-q"]["shadows"])}
        for attack in ("frozen-trunk", "decode"):
            key = f"{name}_{attack.replace('-', '_')}_over_lira_q"
            found |= {key: rows[attack]["ratio_to_lira-q"], f"{key}_low": rows[attack]["low"]}
    for row in held["positive"]:
        key = f"positive_control_rho_{row['rho']:.1f}"
        found |= {key: row["ratio_to_lira"], f"{key}_low": row["low"], f"{key}_high": row["high"]}
    return {key: float(value) for key, value in found.items() if value is not None}


if __name__ == "__main__":
    tyro.cli(main)
