"""Models trained per second, against the plain PyTorch loop that a tutorial would write.

    python -m benchmark.train

Plain: DataLoader over a TensorDataset (no workers), float32, one model at a time, default threads. Ours:
glasslab.train on the same records, rows and recipe. Each case: a warm-up, then the two in turn, medians of
the repeats. The 32 x 32 colour images are the file cifar10_10k.npz in GLASSLAB_DATA. GFLOP/s count forward
and backward by torch's flop counter, as a share of this machine's own
2048 x 2048 matrix product in the same precision, timed in the same run.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from statistics import mean, median, stdev
from time import perf_counter

import torch
import tyro
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.flop_counter import FlopCounterMode

from benchmark import record
from glasslab.data import Data
from glasslab.datasets import load
from glasslab.datasets.place import home
from glasslab.nets import build
from glasslab.recipe import Recipe
from glasslab.split import shadow_rows, split
from glasslab.train import resolve, train

Row = dict[str, str | int | float | None]


@dataclass(frozen=True)
class Case:
    """What is trained: `models` rows over the pool (at most `records` of it), `repeats` times."""

    name: str
    data: str
    recipe: Recipe
    models: int
    repeats: int
    records: int | None = None
    peers: tuple[str, ...] = ("loader",)  # what it is measured against
    accuracy: bool = True  # False: too few steps to learn anything


LOCATION = Recipe(hidden=(1024, 512), batch=256, epochs=25)
CNN = Recipe(net="cnn", batch=128, epochs=2, lr=0.05)
RESNET9 = Recipe(net="resnet9", batch=128, epochs=1, lr=0.05)
CASES = [
    Case("digits_mlp", "digits", Recipe(epochs=60), 64, 5, peers=("loader", "indexing")),
    Case("location_dense", "location30", LOCATION, 8, 3),
    Case("location_dense_float32", "location30", replace(LOCATION, precision="float32"), 4, 2),
    Case("cnn", "colour", CNN, 4, 3),
    Case("cnn_groupnorm", "colour", replace(CNN, norm="group"), 2, 1),
    Case("resnet9", "colour", RESNET9, 4, 2, records=512, accuracy=False),
    Case("resnet9_groupnorm", "colour", replace(RESNET9, norm="group"), 2, 1, records=512, accuracy=False),
    Case("resnet9_width16", "colour", replace(RESNET9, width=16), 4, 3, records=1024, accuracy=False),
]


def plain(
    net: Callable[[], nn.Module], recipe: Recipe, x: Tensor, y: Tensor, *, loader: bool = True
) -> nn.Module:
    """The tutorial's loop, with a DataLoader or by indexing tensors; SGD with momentum, cosine."""
    model = net().train()
    optimiser = torch.optim.SGD(
        model.parameters(), recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay
    )
    batches = DataLoader(TensorDataset(x, y), recipe.batch, shuffle=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, recipe.epochs * len(batches))
    for _ in range(recipe.epochs):
        by_index = ((x[rows], y[rows]) for rows in torch.randperm(len(x)).split(recipe.batch))
        for xb, yb in batches if loader else by_index:
            optimiser.zero_grad()
            cross_entropy(model(xb), yb).backward()
            optimiser.step()
            schedule.step()
    return model.eval()


def measure(case: Case, peak: dict[str, float]) -> list[Row]:
    """One row a peer: models per second of both, their ratio, both test accuracies, our share of the peak."""
    data = load(f"npz:{home(None) / 'cifar10_10k.npz'}") if case.data == "colour" else load(case.data)
    parts = split(data, 0, records=case.records)
    pool, test, recipe = data[parts.pool], data[parts.test], resolve(case.recipe, data, "cpu")
    net = partial(build, recipe, data.shape, data.classes)
    member = shadow_rows(max(case.models, 2), len(pool), 0)[: case.models]
    contestants = {
        name: partial(theirs, net, recipe, pool, member, name == "loader") for name in case.peers
    } | {"ours": partial(ours, net, recipe, pool, member)}
    learned = {name: run() for name, run in contestants.items()}  # the warm-up; do both learn the same?
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(case.repeats):
        for name, run in contestants.items():
            start = perf_counter()
            run()
            seconds[name].append(perf_counter() - start)
    mine = median(seconds["ours"])
    gflops = _flops(net(), pool, recipe) * recipe.epochs * case.models / mine / 1e9
    shared: Row = {
        "engine": recipe.engine,
        "precision": recipe.precision,
        "models": case.models,
        "members": int(member[0].sum()),
        "epochs": recipe.epochs,
        "models_per_second": case.models / mine,
        "gflops": gflops,
        "share_of_peak": gflops / peak[recipe.precision],
        **(_learned(learned["ours"], test, "") if case.accuracy else {}),
    }
    return [
        {"case": case.name, "against": name, "ratio": median(seconds[name]) / mine, **shared}
        | {"peer_models_per_second": case.models / median(seconds[name])}
        | (_learned(learned[name], test, "peer_") if case.accuracy else {})
        for name in case.peers
    ]


def ours(net: Callable[[], nn.Module], recipe: Recipe, pool: Data, member: Tensor) -> list[nn.Module]:
    """The models of the rows of `member`, in chunks of 16."""
    models: list[nn.Module] = []
    for rows in member.split(16):
        state = train(net, recipe, pool.x, pool.y, rows, range(len(models), len(models) + len(rows)))
        models += [_load(net, state, i) for i in range(len(rows))]
    return models


def theirs(
    net: Callable[[], nn.Module], recipe: Recipe, pool: Data, member: Tensor, loader: bool
) -> list[nn.Module]:
    """The same, one after another by the plain loop."""
    return [plain(net, recipe, pool.x[row], pool.y[row], loader=loader) for row in member]


def peak(dtype: torch.dtype, n: int = 2048) -> float:
    """GFLOP/s of a square matrix product, the best of ten."""
    a, b = torch.randn(n, n).to(dtype), torch.randn(n, n).to(dtype)
    best = torch.inf
    for _ in range(10):
        start = perf_counter()
        torch.mm(a, b)
        best = min(best, perf_counter() - start)
    return 2 * n**3 / best / 1e9


def main(seed: int = 0, only: tuple[str, ...] = ()) -> None:
    """Runs all cases (or `only` those named) and prints each; writes results/train.json when all ran."""
    torch.manual_seed(seed)
    peaks = {"float32": peak(torch.float32), "bfloat16": peak(torch.bfloat16)}
    print("peak GFLOP/s: " + ", ".join(f"{name} {value:.0f}" for name, value in peaks.items()))
    rows: list[Row] = [{"case": "peak", **{f"{name}_gflops": value for name, value in peaks.items()}}]
    for case in CASES:
        if only and case.name not in only:
            continue
        for row in measure(case, peaks):
            rows.append(row)
            print(", ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()))
    if only:
        return
    of = {
        str(row["case"]): row for row in reversed(rows)
    }  # the first row of a case is the one against a loader
    figures = {
        f"ratio_{name}": of[name]["ratio"] for name in ("digits_mlp", "location_dense", "cnn", "resnet9")
    }
    shares = {"share_of_peak_dense": "location_dense", "share_of_peak_cnn": "cnn"}
    figures |= {figure: of[name]["share_of_peak"] for figure, name in shares.items()}
    numbers = {name: float(value) for name, value in figures.items() if value is not None}
    record.write("train", f"python -m benchmark.train --seed {seed}", seed, numbers, rows)


def _load(net: Callable[[], nn.Module], state: dict[str, Tensor], i: int) -> nn.Module:
    model = net().eval()
    model.load_state_dict({name: t[i] for name, t in state.items()})
    return model


@torch.no_grad()
def _learned(models: list[nn.Module], test: Data, whose: str) -> Row:
    """Mean test accuracy over the models, and its standard error."""
    accuracy = [(model(test.x).argmax(1) == test.y).double().mean().item() for model in models]
    error = stdev(accuracy) / len(accuracy) ** 0.5 if len(accuracy) > 1 else None
    return {f"{whose}test_accuracy": mean(accuracy), f"{whose}standard_error": error}


def _flops(model: nn.Module, pool: Data, recipe: Recipe) -> float:
    """Floating-point operations of one epoch over half of the pool, forward and backward."""
    rows = torch.arange(recipe.batch) % len(pool)
    with FlopCounterMode(display=False) as counter:
        cross_entropy(model(pool.x[rows]), pool.y[rows]).backward()
    return counter.get_total_flops() * -(-len(pool) // (2 * recipe.batch))


if __name__ == "__main__":
    tyro.cli(main)
