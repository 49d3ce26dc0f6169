"""What gradients of single records cost, against one backward pass of the batch and against forward passes.

    python -m benchmark.gradients

All ratios are seconds of ours over seconds of the other: below 1, ours is faster. Norms of every layer's
gradient over forward and backward of the same batch (`norms_over_backward`), over norms of whole gradients by
vmap(grad) (`norms_over_vmap`), and over a loop of single records (a row); products of every gradient with one
direction over a forward pass without gradient (`jvp_over_forward`). Each figure is the worst net of its kind.
A warm-up, then all contestants in turn, medians of the repeats, default threads, images with their channels
last in memory for all. The loop's seconds are those of 32 records, times the share of them. Memory: the most
that `norms` and `per_example` held above what was held before, at two settings of `memory`. And the norms of
all layers by every model of a zoo, over training it (`signals_over_training`).
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter

import torch
import tyro
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy

from benchmark import record
from benchmark.measure import measured
from glasslab.datasets import load
from glasslab.nets import build
from glasslab.recipe import Recipe
from glasslab.zoo import Zoo
from whitebox.gradients import inner, norms, per_example

Row = dict[str, str | int | float]
LOOPED = 32


@dataclass(frozen=True)
class Case:
    """A net of fresh weights, and random records of its shape."""

    name: str
    kind: str  # dense or conv: which figure it counts for
    recipe: Recipe
    shape: tuple[int, ...]
    classes: int
    records: int
    batch: int


CASES = [
    Case("mlp 64-128-10", "dense", Recipe(), (64,), 10, 2000, 2000),
    Case("mlp 446-128-30", "dense", Recipe(), (446,), 30, 2000, 2000),
    Case("mlp 784-256-10", "dense", Recipe(hidden=(256,)), (784,), 10, 2000, 2000),
    Case("cnn 28x28x1", "conv", Recipe(net="cnn"), (1, 28, 28), 10, 512, 256),
    Case("cnn 32x32x3", "conv", Recipe(net="cnn"), (3, 32, 32), 10, 512, 256),
]


def contestants(case: Case, seed: int) -> dict[str, Callable[[], object]]:
    """What is timed, each over all records of the case."""
    torch.manual_seed(seed)
    model = build(case.recipe, case.shape, case.classes).eval()
    x, y = torch.randn(case.records, *case.shape), torch.randint(case.classes, (case.records,))
    if x.ndim == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    v = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    return {
        "backward": lambda: [backward(model, *rows) for rows in batches(x, y, case.batch)],
        "forward": lambda: [forward(model, rows) for rows, _ in batches(x, y, case.batch)],
        "norms": lambda: norms(model, x, y),
        "inner": lambda: inner(model, x, y, v),
        "vmap": lambda: [by_vmap(model, *rows) for rows in batches(x, y, min(case.batch, 256))],
        "loop": lambda: [backward(model, x[i : i + 1], y[i : i + 1]) for i in range(min(LOOPED, len(x)))],
    }


def backward(model: nn.Module, x: Tensor, y: Tensor) -> list[float]:
    """Forward and backward of the batch's loss; of one record, with the squared lengths of its gradient."""
    model.zero_grad()
    cross_entropy(model(x), y).backward()
    return [float(p.grad.square().sum()) for p in model.parameters() if len(x) == 1 and p.grad is not None]


@torch.no_grad()
def forward(model: nn.Module, x: Tensor) -> Tensor:
    return model(x)


def by_vmap(model: nn.Module, x: Tensor, y: Tensor) -> list[Tensor]:
    """Squared lengths of every record's gradients, formed whole."""
    held = {name: p.detach() for name, p in model.named_parameters()}

    def loss(p: dict[str, Tensor], row: Tensor, label: Tensor) -> Tensor:
        return cross_entropy(functional_call(model, p, (row[None],)), label[None])

    return [g.flatten(1).square().sum(1) for g in vmap(grad(loss), (None, 0, 0))(held, x, y).values()]


def batches(x: Tensor, y: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    return list(zip(x.split(size), y.split(size), strict=True))


def measure(case: Case, seed: int, repeats: int) -> Row:
    """Median seconds of each contestant, and the ratios."""
    run = contestants(case, seed)
    seconds: dict[str, list[float]] = {name: [] for name in run}
    for turn in range(repeats + 1):
        for name, work in run.items():
            start = perf_counter()
            work()
            if turn:  # the first is the warm-up
                seconds[name].append(perf_counter() - start)
    took = {name: median(s) for name, s in seconds.items()}
    took["loop"] *= case.records / min(LOOPED, case.records)
    return {
        "case": case.name,
        "kind": case.kind,
        "records": case.records,
        "repeats": repeats,
        **{f"{name}_seconds": s for name, s in took.items()},
        "norms_over_backward": took["norms"] / took["backward"],
        "norms_over_vmap": took["norms"] / took["vmap"],
        "norms_over_loop": took["norms"] / took["loop"],
        "jvp_over_forward": took["inner"] / took["forward"],
    }


def memory(case: Case, seed: int, setting: str) -> Row:
    """The most that was held at one setting of the memory."""
    torch.manual_seed(seed)
    model = build(case.recipe, case.shape, case.classes).eval()
    x, y = torch.randn(case.records, *case.shape), torch.randint(case.classes, (case.records,))
    norms(model, x[:4], y[:4])  # libraries are loaded
    _, lengths = measured(lambda: norms(model, x, y, memory=setting), runs=1)
    _, whole = measured(lambda: [None for _ in per_example(model, x, y, memory=setting)], runs=1)
    return {
        "case": f"{case.name}, memory {setting}",
        "records": case.records,
        "norms_peak_mb": lengths["peak_mb"],
        "per_example_peak_mb": whole["peak_mb"],
    }


def zoo(seed: int, shadows: int) -> Row:
    """Training a zoo of digits MLPs, and then the norms of all layers for every candidate and model."""
    with TemporaryDirectory() as root:
        start = perf_counter()
        recipe = Recipe(net="mlp", epochs=100)
        held = Zoo.train(
            load("digits"), recipe, shadows=shadows, targets=0, seed=seed, root=root, progress=False
        )
        trained = perf_counter()
        for i in range(shadows):
            norms(held.shadow(i), held.pool.x, held.pool.y)
        seconds = perf_counter() - trained
    return {
        "case": f"zoo of {shadows} digits MLPs",
        "records": len(held.pool),
        "training_seconds": trained - start,
        "norms_seconds": seconds,
        "signals_over_training": seconds / (trained - start),
    }


def main(seed: int = 0, small: bool = False) -> None:
    """Prints all rows and writes results/gradients.json; `small`: a tenth of the records, nothing written."""
    warnings.filterwarnings("ignore", category=FutureWarning)  # torch.func's own
    rows: list[Row] = []
    for case in CASES:
        few = Case(**{**vars(case), "records": case.records // 10 if small else case.records})
        rows.append(measure(few, seed, 2 if small else 9 if case.kind == "dense" else 5))
        say(rows[-1])
    for case in (CASES[2], CASES[4]):
        few = Case(**{**vars(case), "records": case.records // 10 if small else case.records})
        for setting in ("64MiB", "512MiB"):
            rows.append(memory(few, seed, setting))
            say(rows[-1])
    rows.append(zoo(seed, 16 if small else 64))
    say(rows[-1])
    figures = {
        f"{ratio}_{kind}": max(float(row[ratio]) for row in rows if row.get("kind") == kind)
        for ratio in ("norms_over_backward", "jvp_over_forward")
        for kind in ("dense", "conv")
    }
    figures["norms_over_vmap"] = max(
        float(row["norms_over_vmap"]) for row in rows if "norms_over_vmap" in row
    )
    figures["signals_over_training"] = float(rows[-1]["signals_over_training"])
    say(dict(figures))
    if not small:
        record.write("gradients", f"python -m benchmark.gradients --seed {seed}", seed, figures, rows)


def say(row: Row) -> None:
    print(", ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()))


if __name__ == "__main__":
    tyro.cli(main)
