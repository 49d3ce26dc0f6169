"""The table of attacks on each fixed zoo: what the README shows, and whether LiRA beats the loss.

    python -m benchmark.compare

Location-30 is read from GLASSLAB_DATA. Zoos are trained once, the rest takes a minute each.
"""

from time import perf_counter

import tyro

from benchmark import record
from benchmark.zoos import ZOOS
from workbench.run import compare

RUNS = [("digits", 0), ("digits", 1), ("digits", 2), ("location30", 0)]
SHOWN = ("random", "loss", "modified-entropy-per-class", "shadow", "lira-offline", "lira")
RATES = ("1pct", "0.1pct", "0.001pct")
KEPT = (
    *(
        "attack",
        "auc",
        "auc_low",
        "auc_high",
        "balanced_accuracy",
        "ba_null",
        "n_pos",
        "n_neg",
        "gap",
        "gap_test",
    ),
    *(f"tpr_at_{rate}{end}" for rate in RATES for end in ("", "_low", "_high", "_flag")),
    *(f"tpr_at_{rate}_minus_loss{end}" for rate in RATES[:2] for end in ("", "_low", "_high")),
    *("below_resolution", "queries", "models", "seconds"),
)


def main(only: tuple[str, ...] = ()) -> None:
    """Runs all zoos (or `only` those named), prints each table; writes results/compare.json when all ran."""
    rows, figures = [], {}
    for name, seed in RUNS:
        if only and name not in only:
            continue
        start = perf_counter()
        zoo = ZOOS[name].zoo(seed)
        trained = perf_counter() - start
        learned = zoo.accuracy()
        summary = compare(zoo, "all", seed=seed).attrs["summary"]
        took = {"training_seconds": trained, "attack_seconds": perf_counter() - start - trained}
        about = {
            "data": name,
            "net": ZOOS[name].net,
            "seed": seed,
            "pool": len(zoo.pool),
            "targets": len(zoo.target_member),
        }
        for row in summary:
            shown = {"in_readme": row["attack"] in SHOWN, "train": learned["train"], "test": learned["test"]}
            rows.append(about | shown | took | {column: row.get(column) for column in KEPT})
            print(
                name,
                seed,
                *(f"{k} {_short(rows[-1][k])}" for k in ("attack", "auc", "tpr_at_1pct", "tpr_at_0.1pct")),
            )
        lira = next(row for row in summary if row["attack"] == "lira")
        for rate in RATES[:2]:
            figures[f"{name}_{seed}_lira_minus_loss_{rate}_low"] = lira[f"tpr_at_{rate}_minus_loss_low"]
    if not only:
        record.write("compare", "python -m benchmark.compare", 0, figures, rows)


def _short(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    tyro.cli(main)
