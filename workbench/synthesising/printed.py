"""What a run of `glasslab synthesize` prints: a row a class, what it cost, and how good the records are."""

from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from synthesis.report import Quality
from synthesis.synthetic import Synthetic

HARD = "! class "  # the report repeats what stands below the table


def table(made: Synthetic) -> Table:
    """A row a class."""
    drawn = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for head in ("class", "wanted", "made", "success", "mean queries", "queries", "mean confidence"):
        drawn.add_column(head, justify="right", no_wrap=True)
    for row in made.per_class():
        drawn.add_row(
            *(f"{row[name]:,g}" for name in ("label", "wanted", "made")),
            f"{row['success']:.1%}",
            f"{row['mean_queries']:,.1f}",
            f"{row['queries']:,g}",
            "-" if row["confidence"] != row["confidence"] else f"{row['confidence']:.3f}",
            style=None if row["success"] >= 0.5 else "red",
        )
    return drawn


def report(made: Synthetic, manifest: dict[str, Any], quality: Quality) -> Text:
    """What it cost, then how good the records are; doubts in red."""
    of_records = [line for line in quality.lines() if not line.startswith(HARD)]
    lines = [*_cost(made, manifest), *of_records, manifest["command"]]
    return Text("\n").join(Text(line, "red" if line.startswith("!") else "") for line in lines)


def _cost(made: Synthetic, manifest: dict[str, Any]) -> list[str]:
    right, asked = manifest["accuracy"], manifest["queries"]
    reasons = ", ".join(f"{name} {count:,}" for name, count in made.reasons().items())
    each = f", {manifest['queries_per_record_made']:.1f} per record made" if len(made.y) else ""
    said = [
        f"{manifest['data']['name']}, {manifest['net']}: target right on {right['train']:.1%} of its "
        f"training records, {right['test']:.1%} of test records",
        f"{made.method}: {len(made.y):,} of {len(made.wanted):,} records made; {reasons}",
        f"mean queries {manifest['queries_per_record']:.1f} per wanted record{each}; {asked:,} in all, "
        f"{manifest['making_seconds']:.1f} s",
    ]
    said += [f"! {line}" for line in (*made.hard(), *manifest["checks"], *manifest["notes"])]
    return [*said, f"seed {manifest['seed']}, commit {manifest['commit']}"]
