"""An open-problem run on disk and in print: a table, a log-log ROC, rho against the gain."""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from jaxtyping import Bool, Float64
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich import box
from rich.table import Table
from safetensors.torch import save as dump
from torch import Tensor

from glasslab import metrics
from glasslab.results import strict
from workbench.open_problem.judged import BLACK, LIRA, WHITE, Row

HEADS: Final = {
    "tpr_at_0.1pct": "TPR 0.1 %",
    "tpr_at_1pct": "TPR 1 %",
    "auc": "AUC",
}
DRAWN: Final = ("W", "B", "lira", "rmia", "decode", "dual", "loss")
LEAST: Final = 1e-5


def table(rows: Sequence[Row], title: str) -> Table:
    """Percent, AUC, and ratios with their intervals."""
    drawn = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title=title, title_justify="left")
    drawn.add_column("attack", no_wrap=True)
    for head in (*HEADS.values(), "over LiRA", "over B"):
        drawn.add_column(head, justify="right", no_wrap=True)
    for row in (row for row in rows if row["seed"] == "all"):
        percent = [f"{100 * row[name]:.2f}" for name in ("tpr_at_0.1pct", "tpr_at_1pct")]
        beside = [
            _ratio(row, *names)
            for names in (("ratio_to_lira", "low", "high"), ("ratio_to_blackbox_stack", "low_bb", "high_bb"))
        ]
        drawn.add_row(row["attack"], *percent, f"{row['auc']:.3f}", *beside)
    return drawn


def lines(document: Mapping[str, Any]) -> Iterator[str]:
    """What the table does not say: costs, W's lead in AUC and at 1 % FPR, controls, the verdict."""
    for row in document["rows"]:
        if row["seed"] == "all" and row["seconds"] is not None:
            beside = f"{row['seconds']:.1f} s a seed beside the zoo's training"
            yield f"{row['attack']}: {row['shadows']} shadows, {beside}"
    for seed, of_seed in zip(document["seeds"], document["differences"], strict=True):
        for rival, name in ((LIRA, "LiRA"), (BLACK, "B")):
            ends = {
                k: f"{v['value']:+.3f} [{v['low']:+.3f}, {v['high']:+.3f}]" for k, v in of_seed[rival].items()
            }
            yield f"seed {seed}: W less {name}: AUC {ends['auc']}, TPR at 1 % FPR {ends['tpr_at_1pct']}"
    null = next(r for r in document["permuted_truth"] if (r["attack"], r["seed"]) == (WHITE, "all"))
    yield f"permuted truth: W reads {100 * null['tpr_at_0.1pct']:.2f} % at 0.1 % FPR, AUC {null['auc']:.3f}"
    known = document["positive_control"]
    over = _ratio(known, "ratio_to_lira", "low", "high")
    yield f"positive control, a simulated world of rho {known['rho']:.2f}: weights over LiRA {over}"
    yield f"configurations of W tried before it was frozen: {document['configurations_tried']}"
    for rival, key in (("LiRA", "won_against_lira"), ("B", "won_against_blackbox_stack")):
        yield f"W against {rival}: {'won' if document['verdict'][key] else 'not won'}"


def roc(scores: Mapping[str, Float64[Tensor, "t n"]], truth: Bool[Tensor, "t n"], title: str) -> Figure:
    """Targets pooled."""
    figure = Figure(figsize=(5.6, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for k, name in enumerate(n for n in DRAWN if n in scores):
        curve = metrics.roc(scores[name], truth)
        axes.plot(curve.fpr.clamp(min=LEAST), curve.tpr.clamp(min=LEAST), label=name, color=f"C{k}", lw=1.4)
    axes.plot([LEAST, 1], [LEAST, 1], ":", color="grey", lw=1)
    axes.set(xscale="log", yscale="log", xlim=(1e-4, 1), ylim=(1e-4, 1), title=title)
    axes.set(xlabel="false-positive rate", ylabel="true-positive rate")
    axes.legend(frameon=False)
    return figure


def gains(rho: Float64[Tensor, "n"], gain: Float64[Tensor, "n"], title: str, *, groups: int = 10) -> Figure:
    """rho of each record against how far W parts its members from others beyond LiRA, means of ten groups."""
    figure = Figure(figsize=(5.6, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot(rho, gain, ".", ms=2, alpha=0.3, color="C0")
    order = rho.argsort()
    middle = [(rho[part].median(), gain[part].mean()) for part in order.chunk(groups)]
    axes.plot(*zip(*[(float(a), float(b)) for a, b in middle], strict=True), "o-", color="C3")
    axes.axhline(0, color="grey", lw=0.8)
    axes.set(
        xscale="log", title=title, xlabel="rho(x), last layer", ylabel="AUC of W less AUC of LiRA, a record"
    )
    return figure


def keep(
    folder: Path,
    document: Mapping[str, Any],
    scores: Mapping[str, Tensor],
    figures: Mapping[str, Figure],
) -> None:
    """Each file whole or not at all; open_problem.json comes last."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(strict(document), indent=1, allow_nan=False)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".writing-") as scratch:
        made = [Path(scratch) / name for name in ("scores.safetensors", *figures, "open_problem.json")]
        made[0].write_bytes(dump({k: v.clone().contiguous() for k, v in scores.items()}))
        for path in made[1:-1]:
            figures[path.name].savefig(path, dpi=150)
        made[-1].write_text(text + "\n")
        for path in made:
            os.replace(path, folder / path.name)


def of_records(score: Float64[Tensor, "t n"], truth: Bool[Tensor, "t n"]) -> Float64[Tensor, "n"]:
    """AUC of each record over the targets; 1/2 where all hold it or none."""
    return torch.stack(
        [
            torch.tensor(metrics.auc(s, m) if 0 < int(m.sum()) < len(m) else 0.5, dtype=torch.float64)
            for s, m in zip(score.T, truth.T, strict=True)
        ]
    )


def _ratio(row: Row, value: str, low: str, high: str) -> str:
    if row[value] is None:
        return "-"
    ends = ["-" if row[end] is None else f"{row[end]:.2f}" for end in (low, high)]
    return f"{row[value]:.2f} [{', '.join(ends)}]"
