"""The README's tables, rebuilt from benchmark/results between their markers.

python -m benchmark.readme            # writes them
python -m benchmark.readme --check    # exit 1 if what stands there is stale
"""

import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

import tyro

from benchmark.record import RESULTS, ROOT

README = ROOT / "README.md"
SPEED = {
    "ratio_digits_mlp": "64 digits MLPs (64-128-10), stacked",
    "ratio_location_dense": "Location-30 446-1024-512-30, bfloat16",
    "ratio_cnn": "cnn on 32x32 colour images, bfloat16",
    "ratio_resnet9": "resnet-9 with BatchNorm there, bfloat16",
}
Result = Mapping[str, Any]


def attacks(compare: Result) -> str:
    """TPR at a low FPR of each attack on each data set, pooled over targets, in percent."""
    lines = [
        "| data, net | attack | TPR at 1 % FPR | TPR at 0.1 % FPR | AUC | seconds |",
        "|---|---|---|---|---|---|",
    ]
    for row in compare["rows"]:
        if row["seed"] == 0 and row.get("in_readme"):
            rates = " | ".join(_percent(row, f"tpr_at_{name}") for name in ("1pct", "0.1pct"))
            name = f"| {row['data']}, {row['net']} | {row['attack']} "
            lines.append(f"{name}| {rates} | {row['auc']:.3f} | {row['seconds']:.2f} |")
    return "\n".join([*lines, "", _origin(compare)])


def speed(train: Result, score: Result) -> str:
    """How much faster than the plain loop; what LiRA costs for a whole zoo."""
    figures = train["figures"]
    lines = ["| training, against a plain PyTorch loop | models per second |", "|---|---|"]
    lines += [f"| {text} | {figures[name]:.1f} x |" for name, text in SPEED.items()]
    lira = score["figures"]
    cost = (
        f"{lira['lira_all_targets_seconds']:.1f} s, {lira['lira_peak_gib']:.2f} GiB above the mapped signals"
    )
    lines.append(f"| LiRA, 50,000 records x 256 shadows x 8 targets x 2 queries | {cost} |")
    return "\n".join([*lines, "", _origin(train)])


TABLES: dict[str, tuple[tuple[str, ...], Callable[..., str]]] = {
    "attacks": (("compare",), attacks),
    "speed": (("train", "score"), speed),
}


def main(check: bool = False) -> None:
    """Rebuilds the tables; with `check` only says whether they are up to date."""
    old = text = README.read_text(encoding="utf-8")
    for name, (sources, table) in TABLES.items():
        results = [json.loads((RESULTS / f"{source}.json").read_text(encoding="utf-8")) for source in sources]
        head, tail = f"<!-- table: {name} -->\n", "<!-- end -->"
        before, rest = text.split(head)
        text = before + head + table(*results) + "\n" + rest[rest.index(tail) :]
    if check and text != old:
        sys.exit("README.md: a table is stale, run `make table`")
    if not check:
        README.write_text(text, encoding="utf-8")


def _percent(row: Result, name: str) -> str:
    low, high = 100 * row[f"{name}_low"], 100 * row[f"{name}_high"]
    return f"{100 * row[name]:.2f} ({low:.2f} to {high:.2f})"


def _origin(result: Result) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return f"`{result['command']}` at commit {result['commit']}, on {result['machine']}; {versions}."


if __name__ == "__main__":
    tyro.cli(main)
