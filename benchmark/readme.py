"""The tables of the README and of docs/attacks, rebuilt between their markers.

Numbers come from benchmark/results, what an attack needs from the table of attacks.

python -m benchmark.readme            # writes them
python -m benchmark.readme --check    # exit 1 if what stands there is stale
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import tyro

from benchmark import readme_open
from benchmark.record import RESULTS, ROOT
from workbench.attacks import ATTACKS, Attack

README, INDEX = ROOT / "README.md", ROOT / "docs" / "attacks" / "README.md"
OPEN = ROOT / "docs" / "open-problem.md"
SPEED = {
    "ratio_digits_mlp": "64 digits MLPs (64-128-10), stacked",
    "ratio_location_dense": "Location-30 446-1024-512-30, bfloat16",
    "ratio_cnn": "cnn on 32x32 colour images, bfloat16",
    "ratio_resnet9": "resnet-9 with BatchNorm there, bfloat16",
}
Result = Mapping[str, Any]


def attacks(blackbox: Result) -> str:
    """TPR at 0.1 % FPR in percent with its interval, and AUC: an attack a line, a data set a column."""
    rows = [row for row in blackbox["rows"] if row["seed"] == 0 and row["in_readme"]]
    sets = list(dict.fromkeys((row["data"], row["net"]) for row in rows))
    names = sorted({row["attack"] for row in rows}, key=lambda name: -_mean(rows, name))
    lines = [
        f"| TPR % at 0.1 % FPR, AUC | {' | '.join(f'{_short(data)}, {net}' for data, net in sets)} |",
        f"|---|{'---|' * len(sets)}",
    ]
    for name in names:
        own = {row["data"]: row for row in rows if row["attack"] == name}
        lines.append(f"| {name} | {' | '.join(_cell(own[data]) for data, _ in sets)} |")
    return "\n".join([*lines, "", _origin(blackbox)])


def _mean(rows: Sequence[Result], name: str) -> float:
    """Of the TPR over data sets, where the attack can run."""
    return fmean(row["tpr_at_0.1pct"] or 0.0 for row in rows if row["attack"] == name)


def _cell(row: Result) -> str:
    return "-" if row["error"] else f"{_percent(row, 'tpr_at_0.1pct')}, {row['auc']:.3f}"


def _short(data: str) -> str:
    return data.split("_")[0]


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


def told(table: Callable[[Result], str]) -> Callable[[Result], str]:
    """The table with a line on where its numbers come from."""
    return lambda result: f"{table(result)}\n\n{_origin(result)}"


def needs() -> str:
    """What each attack holds, needs and asks."""
    lines = [
        "| row | file | holds | needs at least | asks a candidate | paper |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in ATTACKS.items():
        page = _page(name)
        parts = [f"`{name}`", f"[{page}]({page}.md)", row.holds, _least(row), _asks(row), row.paper or "-"]
        lines.append(f"| {' | '.join(parts)} |")
    return "\n".join(lines)


def _page(name: str) -> str:
    """The page that names this row of `glasslab compare`."""
    pages = sorted(set(INDEX.parent.glob("*.md")) - {INDEX}, key=lambda p: (p.stem != _file(name), p.stem))
    for path in pages:
        told = [part for part in path.read_text(encoding="utf-8").split("\n\n") if "glasslab compare" in part]
        if any(f"`{name}`" in part for part in told):
            return path.stem
    raise ValueError(f"docs/attacks must have a page that names the row {name}, got none")


def _file(name: str) -> str:
    return name.replace("-", "_")


def _least(row: Attack) -> str:
    words = {"n_in": "in", "n_out": "out"}
    models = [
        f"{getattr(row.needs, side)} shadow {word}"
        for side, word in words.items()
        if getattr(row.needs, side)
    ]
    aux = [f"{row.needs.aux} of aux"] if row.needs.aux else []
    kind = ["images"] if row.needs.images else ["not binary"] if row.needs.continuous else []
    decay = ["weight decay"] if row.needs.decay else []
    return ", ".join([*models, *aux, *decay, *kind]) or "-"


def _asks(row: Attack) -> str:
    each = "up to --search" if row.asks is None else f"{row.asks} x queries" if row.repeats else str(row.asks)
    made = f", and {row.asks_made} a record that it makes" if row.asks_made else ""
    return each + (", and aux once" if row.asks_aux else "") + made


TABLES: dict[str, tuple[Path, tuple[str, ...], Callable[..., str]]] = {
    "attacks": (README, ("blackbox",), attacks),
    "speed": (README, ("train", "score"), speed),
    "open": (README, ("open_problem",), told(readme_open.ratios)),
    "rows": (INDEX, (), needs),
    "five": (OPEN, ("open_problem",), told(readme_open.ratios)),
    "seeds": (OPEN, ("open_problem",), readme_open.each_seed),
    "controls": (OPEN, ("open_problem",), readme_open.controls),
    "every": (OPEN, ("open_problem",), told(readme_open.every_attack)),
    "coverage": (OPEN, ("open_problem_tables",), readme_open.coverage),
    "decay": (OPEN, ("open_problem_tables",), readme_open.decay),
    "width": (OPEN, ("open_problem_tables",), readme_open.sweep(["width"], "hidden", "weights")),
    "size": (OPEN, ("open_problem_tables",), readme_open.sweep(["size", "size_most"], "records")),
    "layers": (OPEN, ("open_problem_tables",), readme_open.layers),
    "settings": (OPEN, ("open_problem_tables",), readme_open.settings),
    "shadows": (OPEN, ("open_problem_tables",), readme_open.shadows),
    "labels": (OPEN, ("open_problem_tables",), readme_open.sweep(["labels"], "share")),
    "augmentation": (OPEN, ("open_problem_tables",), readme_open.sweep(["augmentation"], "data", "augment")),
    "norm": (OPEN, ("open_problem_tables",), readme_open.sweep(["norm"], "norm")),
    "defence": (OPEN, ("open_problem_tables",), told(readme_open.sweep(["defence"], "defence", "strength"))),
    "tuned": (OPEN, ("open_problem_regimes",), readme_open.tuned),
    "budget": (OPEN, ("open_problem_regimes",), readme_open.budget),
    "bought": (OPEN, ("open_problem_regimes",), readme_open.bought),
    "positive": (OPEN, ("open_problem_regimes",), told(readme_open.positive)),
}


def main(check: bool = False) -> None:
    """Rebuilds the tables; with `check` only says whether they are up to date."""
    for name, (page, sources, table) in TABLES.items():
        text = page.read_text(encoding="utf-8")
        results = [json.loads((RESULTS / f"{source}.json").read_text(encoding="utf-8")) for source in sources]
        head, tail = f"<!-- table: {name} -->\n", "<!-- end -->"
        before, rest = text.split(head)
        new = before + head + table(*results) + "\n" + rest[rest.index(tail) :]
        if check and new != text:
            sys.exit(f"{page.relative_to(ROOT)}: a table is stale, run `make table`")
        if not check:
            page.write_text(new, encoding="utf-8")


def _percent(row: Result, name: str) -> str:
    low, high = 100 * row[f"{name}_low"], 100 * row[f"{name}_high"]
    return f"{100 * row[name]:.2f} ({low:.2f} to {high:.2f})"


def _origin(result: Result) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return f"`{result['command']}` at commit {result['commit']}, on {result['machine']}; {versions}."


if __name__ == "__main__":
    tyro.cli(main)
