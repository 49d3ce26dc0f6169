"""The one table that a run prints, within 100 columns. All numbers come from the summary and the manifest."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from workbench.attack import HOLDS

Row = Mapping[str, Any]

RATES = {"1pct": "1 %", "0.1pct": "0.1 %", "0.001pct": "0.001 %"}
MARKS = {"below_resolution": "°", "few_false_positives": "*"}
SHORT = {"probabilities": "probs"}
WIDE = 27  # characters of the first column
LEGEND = "° no false positive is allowed: TPR at FPR 0   * fewer than 10: interval at a fixed threshold"


def table(summary: Sequence[Row], manifest: Row) -> Table:
    """Grouped by what the attacker holds, best TPR at 0.1 % first; then chance, then errors.

    Second lines hold 95 % intervals.
    """
    drawn = Table(box=box.SIMPLE_HEAD, padding=0, caption_justify="left", caption_style="")
    drawn.add_column("attack\n[dim]family, access[/]", overflow="fold", max_width=WIDE)
    rates = [f"TPR % at\n{rate} FPR" for rate in RATES.values()]
    for head in ("AUC\n ", "bal. acc.\n[dim]transf.[/]", *rates, "queries\n[dim]models[/]", "seconds\n "):
        drawn.add_column(head, justify="right", no_wrap=True)
    sound = [row for row in summary if row["error"] is None]
    for holds in sorted({row["holds"] for row in sound}, key=HOLDS.index):
        label = holds if len(holds) <= WIDE else holds.replace("probabilities", SHORT["probabilities"])
        drawn.add_row(Text(label, "bold"))
        group = [row for row in sound if row["holds"] == holds]
        for row in sorted(group, key=lambda row: (row["tpr_at_0.1pct"], row["auc"]), reverse=True):
            drawn.add_row(*_cells(row))
        drawn.add_section()
    if sound:
        drawn.add_row(*_chance(sound[0]), style="dim")
    for row in summary:
        if row["error"] is not None:
            drawn.add_row(Text(row["attack"], "red"), *[Text("-", "dim")] * 7)
    drawn.caption = caption(summary, manifest)
    return drawn


def caption(summary: Sequence[Row], manifest: Row) -> Text:
    """What every number carries, what cannot be trusted, what differs, and what failed."""
    lines = [LEGEND, *_about(summary, manifest), *_against_loss(summary)]
    doubts = [f"{row['attack']}: {line}" for row in summary for line in row.get("checks") or []]
    lines += [f"! {line}" for line in [*_spoken(manifest.get("checks") or []), *doubts]]
    lines += [f"{row['attack']}: {row['error']}" for row in summary if row["error"] is not None]
    return Text("\n".join(lines))


def _cells(row: Row) -> list[Text]:
    tpr = [_rate(row, name) for name in RATES]
    return [
        _two(row["attack"], f"{row['family']}, {SHORT.get(row['access'], row['access'])}"),
        _two(f"{row['auc']:.3f}", _span(row["auc_low"], row["auc_high"], 1, 3)),
        _two(f"{row['balanced_accuracy']:.3f}", _number(row.get("balanced_accuracy_transferred"))),
        *tpr,
        _two(f"{row['queries']:,}", f"{row['models']:,}"),
        _two(f"{row['seconds']:.2f}", ""),
    ]


def _chance(row: Row) -> list[Text]:
    tpr = [_two(_percent(row[f"tpr_null_{name}"]), "") for name in RATES]
    return [_two("(chance)", ""), Text("0.500"), Text(f"{row['ba_null']:.3f}"), *tpr, Text(""), Text("")]


def _rate(row: Row, name: str) -> Text:
    """A TPR in percent with its interval; grey and marked where it is weak."""
    value, low, high = (row[f"tpr_at_{name}{end}"] for end in ("", "_low", "_high"))
    flag = row[f"tpr_at_{name}_flag"]
    cell = _two(f"{_percent(value)}{MARKS.get(flag, ' ')}", f"{_span(low, high, 100, 1)} ")
    if flag == "below_resolution":
        cell.stylize("dim")
    return cell


def _two(first: str, second: str) -> Text:
    return Text.assemble(first, "\n", (second, "dim"))


def _percent(value: float) -> str:
    return f"{100 * value:.2f}" if value < 0.995 else f"{100 * value:.1f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _span(low: float | None, high: float | None, unit: int, digits: int) -> str:
    return "-" if low is None or high is None else f"{unit * low:.{digits}f}-{unit * high:.{digits}f}"


def _about(summary: Sequence[Row], held: Row) -> list[str]:
    n_neg = next((row["n_neg"] for row in summary if row.get("n_neg") is not None), None)
    net, left_out = held["recipe"]["net"], " left out in turn" if held["evaluate"] != "targets" else ""
    lines = [
        f"{held['data']['name']}, {net}: {held['pool']:,} candidates, {held['shadows']} shadows, "
        f"{held['targets']} targets{left_out}; {n_neg or 0:,} non-members in all"
    ]
    right = held["accuracy"]
    lines.append(
        f"accuracy {right['train']:.1%} on training records, {right['test']:.1%} on test records; "
        f"gap on the candidates {right['gap']:.1%}"
    )
    lines.append(
        f"seed {held['seed']}, zoo {held['zoo'][:16]}, commit {held['commit']}, "
        f"torch {held['versions']['torch']} on {held['device']}, {held['seconds']:.0f} s"
    )
    return [*lines, held["command"]]


def _against_loss(summary: Sequence[Row]) -> list[str]:
    """The best attack against loss, both at the same resampled targets and records."""
    able = [row for row in summary if row.get("tpr_at_0.1pct_minus_loss") is not None]
    if not able:
        return []
    best = max(able, key=lambda row: row["tpr_at_0.1pct"])
    parts = []
    for name in ("1pct", "0.1pct"):
        column = f"tpr_at_{name}_minus_loss"
        value, span = 100 * best[column], _points(best[f"{column}_low"], best[f"{column}_high"])
        parts.append(f"{value:+.2f} points {span} at {RATES[name]}")
    return [f"{best['attack']} minus loss: TPR {', '.join(parts)} (paired bootstrap, 95 %)"]


def _points(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"[{100 * low:+.2f}, {100 * high:+.2f}]"


def _spoken(checks: Sequence[str]) -> list[str]:
    """Doubts about all attacks, without those that the marks already say."""
    return [line for line in checks if "cannot resolve" not in line and "rests on fewer" not in line]
