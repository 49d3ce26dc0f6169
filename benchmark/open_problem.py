"""Does holding the weights beat a per-record likelihood ratio on outputs? Five zoos, seeds 0, 1, 2.

    python -m benchmark.open_problem

Location-30, Fashion-MNIST and CIFAR-10 are read from GLASSLAB_DATA. Signals that are finished lie in
`folder` and are not made again; `--only digits` answers for one zoo. Writes results/open_problem_ZOO.json for
each, and results/open_problem.json of all that are there. W, the attack that is judged, is fixed in
workbench/open_problem/frozen.py; `--seeds 100` is for its development and writes nothing.
"""

import json
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console

from benchmark import record
from benchmark.zoos import OPEN
from glasslab.results import strict
from workbench.open_problem import told
from workbench.open_problem.frozen import CLAIMED, TRIED
from workbench.open_problem.run import answer

FREE = "decode"  # the attack without any shadow
PICTURES = Path("docs/pictures")
IDEAS = 19  # distinct ones, listed in docs/open-problem.md


def main(
    only: tuple[str, ...] = (), folder: Path = Path("runs/open_problem"), seeds: tuple[int, ...] = CLAIMED
) -> None:
    """Answers for the zoos named (all by default), and prints a table for each."""
    for name in only or tuple(OPEN):
        zoos = [OPEN[name].zoo(seed) for seed in seeds]
        found = answer(zoos, folder / name)
        Console(width=140).print(told.table(found.rows, f"{name}, seeds {', '.join(map(str, seeds))}"))
        print(*told.lines(found.document), sep="\n")
        if seeds != CLAIMED:
            continue
        rows = [{"zoo": name} | row for row in found.rows]
        about = {k: v for k, v in found.document.items() if k != "rows"}
        figures = {"won_against_lira": float(about["verdict"]["won_against_lira"])}
        figures["won_against_blackbox_stack"] = float(about["verdict"]["won_against_blackbox_stack"])
        command = f"python -m benchmark.open_problem --only {name}"
        record.write(
            f"open_problem_{name}",
            command,
            0,
            figures,
            strict([*rows, about | {"zoo": name, "table": "about"}]),
        )
        told.roc(found.scores, found.truth, name).savefig(PICTURES / f"open-problem-{name}.png", dpi=110)
        if found.rho is not None:
            gain = told.of_records(found.scores["W"], found.truth) - told.of_records(
                found.scores["lira"], found.truth
            )
            told.gains(found.rho, gain, name).savefig(PICTURES / f"open-problem-{name}-rho.png", dpi=110)
    if seeds == CLAIMED:
        merge()


def merge() -> None:
    """results/open_problem.json of the zoos that have an answer."""
    rows, about = [], {}
    for name in OPEN:
        path = record.RESULTS / f"open_problem_{name}.json"
        if path.exists():
            held = json.loads(path.read_text())["rows"]
            rows += [row for row in held if row.get("table") != "about"]
            about[name] = next(row for row in held if row.get("table") == "about")
            null = next(r for r in about[name]["permuted_truth"] if (r["attack"], r["seed"]) == ("W", "all"))
            rows.append({"zoo": name} | null | {"attack": "permuted-truth"})
    record.write("open_problem", "python -m benchmark.open_problem", 0, figures(rows, about), strict(rows))


def figures(rows: list[dict[str, Any]], about: dict[str, dict[str, Any]]) -> dict[str, float]:
    """What is asked of the five zoos together."""
    at = {(row["zoo"], row["attack"]): row for row in rows if row["seed"] == "all"}
    over = sorted(at[zoo, "W"]["ratio_to_lira"] for zoo in about)
    free = {zoo: at[zoo, FREE] for zoo in about}
    few = {zoo: at[zoo, "lira-16"]["tpr_at_0.1pct"] for zoo in about}
    verdicts = [held["verdict"] for held in about.values()]
    shares = sorted(free[zoo]["tpr_at_0.1pct"] / few[zoo] for zoo in about if few[zoo] > 0)
    return {
        "zoos": float(len(about)),
        "zoos_won_against_lira": float(sum(v["won_against_lira"] for v in verdicts)),
        "zoos_white_box_wins": float(
            sum(v["won_against_lira"] and v["won_against_blackbox_stack"] for v in verdicts)
        ),
        "median_ratio_to_lira": over[len(over) // 2],
        "shadow_free_dual_over_lira16": shares[len(shares) // 2],
        "zoos_shadow_free_beats_lira64": float(sum((row["low"] or 0) > 1 for row in free.values())),
        "ideas_tried": float(IDEAS),
        "configurations_tried": float(TRIED),
    }


if __name__ == "__main__":
    tyro.cli(main)
