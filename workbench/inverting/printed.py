"""The table of a run of `glasslab invert`, within 100 columns."""

from typing import Any

from rich import box
from rich.table import Table

from workbench.inverting.measured import RIVALS, Line


def table(lines: list[Line], manifest: dict[str, Any]) -> Table:
    """An attack and its reference rows in a block."""
    drawn = Table(box=box.SIMPLE_HEAD, padding=0, caption_justify="left", caption_style="")
    drawn.add_column("attack\n[dim]access[/]", overflow="fold", max_width=22)
    heads = (
        "nearest\nid",
        "judge\nacc@1",
        "judge\nacc@5",
        "feature\ndistance",
        "gap\n ",
        "ssim\n ",
        "corr.\n ",
    )
    for head in (*heads, "conf.\n ", "steps\n ", "queries\n ", "seconds\n "):
        drawn.add_column(head, justify="right", no_wrap=True)
    names = ("nearest_id", "judge_acc1", "judge_acc5", "feature_distance", "gap", "ssim", "correlation")
    for line in lines:
        attack = line["row"] == line["attack"]
        title = f"{line['row']}\n[dim]{line['access']}[/]" if attack else f"  {line['row']}"
        title += " [dim](reference)[/]" if line["reference"] else ""
        cells = [_number(line[name]) for name in names] + [_number(line.get("confidence"))]
        cells += [_count(line.get(name)) for name in ("steps", "queries")]
        cells.append("-" if line.get("seconds") is None else f"{line['seconds']:.1f}")
        drawn.add_row(title, *cells, style=None if attack else "dim")
        if line is lines[-1] or lines[lines.index(line) + 1]["attack"] != line["attack"]:
            drawn.add_section()
    drawn.caption = "\n".join(_caption(lines, manifest))
    return drawn


def _caption(lines: list[Line], manifest: dict[str, Any]) -> list[str]:
    right = manifest["accuracy"]
    said = [
        f"{manifest['data']['name']}, {manifest['net']}: accuracy {right['train']:.1%} on "
        f"{manifest['trained']:,} training records, {right['comparison']:.1%} on "
        f"{manifest['comparison']:,} that nobody saw; "
        f"judge {manifest['judge_accuracy']:.1%} there; public: {manifest['public']}"
    ]
    for line in (line for line in lines if line["row"] == line["attack"]):
        for rival in RIVALS:
            key = rival.replace(" ", "_")
            p = (line[f"p_{kind}_{key}"] for kind in ("distance", "gap", "identification"))
            said.append(
                f"{line['attack']} against {rival}: {line[f'against_{key}']} "
                f"(p {', '.join(f'{value:.3g}' for value in p)}: distance, gap, identification)"
            )
        reasons = ", ".join(f"{name} {count}" for name, count in line["stop_reasons"].items())
        auc = _number(line["membership_auc"])
        said.append(f"{line['attack']}: stopped by {reasons}; as a membership score AUC {auc}")
        said += [f"! {line['attack']}: {line['notes']}"] if line["notes"] else []
    said += [f"! {manifest['judge_warning']}"] if manifest["judge_warning"] else []
    said.append(f"seed {manifest['seed']}, commit {manifest['commit']}, {manifest['seconds']:.0f} s")
    return [*said, manifest["command"]]


def _number(value: float | int | None) -> str:
    return "-" if value is None else f"{value:.3f}" if abs(value) < 100 else f"{value:.0f}"


def _count(value: float | int | None) -> str:
    return "-" if value is None else f"{value:,.0f}"
