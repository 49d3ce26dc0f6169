"""What shadow models teach that learned from made records: precision and recall, a method a row.

    python -m benchmark.synthesis_order

The experiment of Shokri et al. 2017 (arXiv:1610.05820) with real, noisy, marginal and model-based records, on
Location-30 (from GLASSLAB_DATA) and on the made-up baskets. Members are 1,200 (1,000) records that the target
learned, non-members as many others, and the real records of the attacker none of these. Each shadow learns
half of the attacker's records, and the others of them are its non-members. `precision` and `recall` are those
of the shadow attack's own decision. Figures are means over five seeds; rows hold every seed, the means with
their 95 % intervals (Student's t over seeds), and what was expected of them. Each part, one method on one
seed, is kept in `folder` once it is finished.
"""

import json
import multiprocessing
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
import tyro
from jaxtyping import Bool, Float, Float64
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import t as student
from torch import Tensor, nn

from benchmark import record
from blackbox.lira import lira_offline
from blackbox.shadow import shadow
from glasslab import metrics, nets, signals
from glasslab.data import Data
from glasslab.datasets import load
from glasslab.datasets.basket import basket
from glasslab.intervals import auc_interval, clopper_pearson
from glasslab.oracle import Oracle, answer, forward
from glasslab.per_class import cdf, per_class
from glasslab.recipe import Recipe
from glasslab.split import stream, subseed
from glasslab.train import train
from synthesis.features import binary
from synthesis.hillclimb import hillclimb
from synthesis.marginals import marginals
from synthesis.noisy import noisy
from synthesis.synthetic import Synthetic, labels

Row = dict[str, Any]
Part = tuple[str, int, str]  # set, seed, method
Means = Mapping[str, Mapping[str, float]]  # method -> measure -> mean over seeds

CLIMBS = ("hillclimb_0.2", "hillclimb_0.5", "hillclimb_0.8", "hillclimb_0.95")  # and conf_min
METHODS = ("real", "noisy_0.1", "noisy_0.2", "marginals", "marginals_by_class", *CLIMBS)
SWEPT = ("noisy_0.05", "noisy_0.3")  # real is noise 0
MORE, ALIKE, LOST = 0.02, 0.01, 0.15  # of precision and recall, in what is expected
SEEDS = 5
MEASURES: tuple[str, ...] = (
    "precision",
    "recall",
    "class_precision",
    "shadow_accuracy",
    "shadow_accuracy_real",
)
MEASURES += ("target_accuracy", "target_accuracy_train", "density", "queries_a_record", "records")
TOLD = tuple(f"{attack}_{what}" for attack in ("shadow", "lira_offline") for what in ("auc", "tpr_at_0.1pct"))
PICTURE = record.ROOT / "docs" / "pictures" / "synthesis_order.png"
DRAWN = {
    "real": ("black", "o"),
    "noisy_0.05": ("0.75", "s"),
    "noisy_0.1": ("0.65", "s"),
    "noisy_0.2": ("0.5", "s"),
    "noisy_0.3": ("0.35", "s"),
    "marginals": ("#9c3603", "v"),
    "marginals_by_class": ("#9c3603", "^"),
    "hillclimb_0.2": ("#d9c8e6", "D"),
    "hillclimb_0.5": ("#b491cd", "D"),
    "hillclimb_0.8": ("#8450ab", "D"),
    "hillclimb_0.95": ("#4a1a6b", "D"),
}
IN_CDF = ("real", "noisy_0.2", "marginals", "marginals_by_class", "hillclimb_0.2", "hillclimb_0.95")


@dataclass(frozen=True)
class Setting:
    """So many members and as many non-members, of the target and of each of the shadows."""

    records: int
    own: int  # records of the attacker
    shadows: int
    methods: tuple[str, ...]


SETS = {
    "location30": Setting(1200, 2610, 20, (*METHODS, *SWEPT)),
    "basket": Setting(1000, 2000, 10, METHODS),
}


@dataclass(frozen=True, eq=False)
class World:
    """A target, the candidates, of which `member` says who trained it, and real records of the attacker's."""

    name: str
    seed: int
    setting: Setting
    candidates: Data
    member: Bool[Tensor, "n"]
    own: Data
    target: nn.Module


def tanh_mlp(shape: tuple[int, ...], classes: int) -> nn.Module:
    """One hidden layer of 128 tanh units: a net for Recipe.net."""
    return nn.Sequential(nn.Flatten(), nn.Linear(shape[0], 128), nn.Tanh(), nn.Linear(128, classes))


RECIPE = Recipe(
    net=tanh_mlp,
    epochs=40,
    batch=100,
    optimiser="adam",
    lr=1e-3,
    schedule="constant",
    scale="none",
    engine="stacked",
    precision="float32",
)


@lru_cache(maxsize=1)
def world(name: str, seed: int) -> World:
    """Everything that does not depend on the method; ValueError where the data set's file is missing."""
    setting = SETS[name]
    n, total = setting.records, 2 * setting.records + setting.own
    data = load(name) if name != "basket" else basket(total, seed=seed)
    data = data[torch.randperm(len(data), generator=stream(seed, name, "order"))[:total]]
    candidates = data[torch.arange(2 * n)]
    member = torch.arange(2 * n) < n
    target = trained(candidates, member[None], [subseed(seed, name, "target")])[0]
    return World(name, seed, setting, candidates, member, data[torch.arange(2 * n, total)], target)


def trained(data: Data, member: Bool[Tensor, "m n"], seeds: Sequence[int]) -> list[nn.Module]:
    """A model a row of `member`, all in one stack, in eval mode."""
    net = partial(nets.build, RECIPE, data.shape, data.classes)
    state = train(net, RECIPE, data.x, data.y, member, seeds)
    models = []
    for j in range(len(member)):
        with torch.random.fork_rng(devices=[]):
            models.append(net().eval())
        models[j].load_state_dict({name: t[j] for name, t in state.items()})
    return models


def made(held: World, method: str) -> tuple[Data, Row]:
    """The attacker's records by this method, and what became of those that were wanted."""
    kind, _, value = method.partition("_")
    own, n = held.own, len(held.own)
    oracle, generator = Oracle(held.target), stream(held.seed, held.name, method)
    found: Synthetic | Data
    if kind == "real":
        found = own
    elif kind == "noisy":
        found = noisy(own, float(value), generator=generator)
    elif kind == "marginals":
        by_class = value == "by_class"
        asked = None if by_class else oracle
        found = marginals(own, n, generator=generator, oracle=asked, by_class=by_class)
    else:
        found = hillclimb(
            oracle,
            labels(n, own.classes),
            [binary()],
            shape=own.shape,
            conf_min=float(value),
            seed=generator.initial_seed(),
        )
    about: Row = {}
    if isinstance(found, Synthetic):
        about = {"reasons": found.reasons(), "hard_classes": len(found.hard())}
    data = found.data(own.classes) if isinstance(found, Synthetic) else found
    return data, about | {
        "records": len(data),
        "wanted": n,
        "queries_a_record": oracle.queries / n,
        "density": float(data.x.mean()),
    }


def part(name: str, seed: int, method: str) -> Row:
    """One method on one seed, and the warnings that it met."""
    held = world(name, seed)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        row = _part(held, method)
    return row | {"warnings": sorted({str(w.message) for w in caught})}


def _part(held: World, method: str) -> Row:
    data, about = made(held, method)
    candidates, member = held.candidates, held.member
    generator = stream(held.seed, held.name, method, "shadows")
    # As many of the records as the target has candidates, drawn once for all shadows: so each of these makes
    # as many steps as the target, and has as many non-members as members.
    size = min(len(member), len(data) // 2 * 2)
    data = data[torch.randperm(len(data), generator=generator)[:size]]
    m = held.setting.shadows
    inside = torch.stack([torch.randperm(size, generator=generator) < size // 2 for _ in range(m)])
    models = trained(data, inside, [subseed(held.seed, held.name, method, "shadow", j) for j in range(m)])

    z, z_own = (torch.stack([forward(f, x, 1200) for f in models]) for x in (candidates.x, data.x))
    z_target = forward(held.target, candidates.x)
    y = candidates.y
    scores = {
        "shadow": shadow(answer(z_target), y, answer(z_own), data.y, inside, generator=generator),
        "lira_offline": lira_offline(
            signals.bounded(signals.phi(z_target, y)),
            signals.bounded(signals.phi(z, y)),
            torch.zeros(m, len(y)).bool(),  # no shadow learned a candidate
        ),
    }
    right = z_target.argmax(1) == y
    accuracies = {
        "target_accuracy": right[~member],
        "target_accuracy_train": right[member],
        "shadow_accuracy": (z_own.argmax(2) == data.y)[~inside],
        "shadow_accuracy_real": (z.argmax(2) == y)[:, ~member],
    }
    row = {"data": held.name, "seed": held.seed, "method": method, "shadows": m, "shadow_records": size // 2}
    row |= {what: float(v.double().mean()) for what, v in accuracies.items()}
    row |= decided(scores["shadow"], held)
    for attack, score in scores.items():
        row |= {f"{attack}_{what}": value for what, value in told(score, member).items()}
    return row | about


def decided(score: Float64[Tensor, "n"], held: World) -> Row:
    """Precision and recall at the attack's own decision, over all candidates and in each class."""
    point = metrics.above(score, held.member, 0.5)
    own = per_class(score > 0.5, held.member, held.candidates.y, held.candidates.classes).precision
    return {
        "precision": point.hits / max(1, point.hits + point.alarms),
        "recall": point.tpr,
        "hits": point.hits,
        "alarms": point.alarms,
        "class_precision": float(own.nanmean()),
        "class_precisions": [None if v != v else v for v in own.tolist()],
    }


def told(score: Float[Tensor, "n"], member: Bool[Tensor, "n"]) -> Row:
    """AUC, and TPR at a false-positive rate of 0.1 %, with 95 % intervals of this one target."""
    point, n_neg = metrics.tpr_at_fpr(score, member, 1e-3), int((~member).sum())
    low, high = clopper_pearson(point.hits, int(member.sum()))
    area = auc_interval(score, member)
    return {
        "auc": metrics.auc(score, member),
        "auc_low": area.low,
        "auc_high": area.high,
        "tpr_at_0.1pct": point.tpr,
        "tpr_at_0.1pct_low": low,
        "tpr_at_0.1pct_high": high,
        "tpr_at_0.1pct_fpr": point.fpr,
        "tpr_at_0.1pct_flag": metrics.flag(n_neg, 1e-3),
    }


def averaged(rows: Sequence[Row]) -> list[Row]:
    """A row a set and method: means over seeds, and 95 % intervals of these means (none for one seed)."""
    out = []
    for name, method in dict.fromkeys((row["data"], row["method"]) for row in rows):
        own = [row for row in rows if (row["data"], row["method"]) == (name, method)]
        found: Row = {"data": name, "method": method, "seeds": len(own)}
        for measure in (*MEASURES, *TOLD):
            values = [row[measure] for row in own]
            found[measure] = fmean(values)
            half = _half(values)
            found[f"{measure}_low"] = None if half is None else found[measure] - half
            found[f"{measure}_high"] = None if half is None else found[measure] + half
        out.append(found)
    return out


def _half(values: Sequence[float]) -> float | None:
    """Half the width of a 95 % interval of the mean."""
    n = len(values)
    return float(student.ppf(0.975, n - 1)) * stdev(values) / n**0.5 if n > 1 else None


def expected(name: str, mean: Means) -> list[Row]:
    """The order that is expected of the means, whether it holds, and the numbers that say so."""
    real, plain = mean["real"], mean["marginals"]
    climbs = [mean[method] for method in CLIMBS]
    others = {"real": real, **{method: mean[method] for method in CLIMBS}}
    above = {method: own["precision"] - plain["precision"] for method, own in others.items()}
    recall = [own["recall"] for own in climbs]
    falls = all(a > b for a, b in zip(recall, recall[1:], strict=False))
    lost = {
        "marginals_minus_real": plain["recall"] - real["recall"],
        "hillclimb_0.95_minus_real": recall[-1] - real["recall"],
        **{f"recall_{method}": value for method, value in zip(CLIMBS, recall, strict=True)},
    }
    rows = [
        {
            "assertion": f"1: precision of real and of each model-based set is {MORE} above marginals",
            "holds": all(value >= MORE for value in above.values()),
            "numbers": {f"{method}_minus_marginals": value for method, value in above.items()},
        },
        {
            "assertion": f"2: recall of marginals is that of real or more (less {ALIKE}), model-based at .95 "
            f"is {LOST} below real, and falls as conf_min grows",
            "holds": lost["marginals_minus_real"] >= -ALIKE
            and lost["hillclimb_0.95_minus_real"] <= -LOST
            and falls,
            "numbers": lost,
        },
    ]
    if "noisy_0.2" in mean:
        worse = {
            f"{what}_at_{rate}": own[what]
            for rate, own in ((0, real), (0.2, mean["noisy_0.2"]))
            for what in ("precision", "recall")
        }
        rows.append(
            {
                "assertion": "3: from noise 0 to 0.2 precision does not rise and recall does not fall",
                "holds": worse["precision_at_0"] >= worse["precision_at_0.2"]
                and worse["recall_at_0.2"] >= worse["recall_at_0"],
                "numbers": worse,
            }
        )
    return [{"data": name, "asserted": name != "basket" or i < 2, **row} for i, row in enumerate(rows)]


def means(rows: Sequence[Row], name: str) -> Means:
    return {row["method"]: row for row in averaged(rows) if row["data"] == name}


def figures(mean: Mapping[str, Means]) -> dict[str, float]:
    """SET_MEASURE_METHOD, and the target's accuracy; means over seeds."""
    found = {
        f"{name}_{measure}_{method}": own[measure]
        for name, methods in mean.items()
        for measure in ("precision", "recall", "shadow_accuracy")
        for method, own in methods.items()
    }
    for name, methods in mean.items():
        found[f"{name}_target_accuracy"] = methods["real"]["target_accuracy"]
    return found


def main(only: tuple[str, ...] = (), folder: Path = Path("runs/synthesis_order"), workers: int = 2) -> None:
    """Runs what is not in `folder` yet, so many parts at a time on a core each; `only` some of the sets.

    Writes results and picture where all sets ran.
    """
    names = [name for name in SETS if not only or name in only]
    parts = [(name, seed, method) for name in names for seed in range(SEEDS) for method in SETS[name].methods]
    rows = finished(parts, folder, workers)
    mean = {name: means(rows, name) for name in names}
    average, orders = averaged(rows), [row for name in names for row in expected(name, mean[name])]
    for row in average:
        say(row, ("data", "method", *MEASURES, *TOLD))
    for row in orders:
        say(row, tuple(row))
    if not only:
        command = "python -m benchmark.synthesis_order"
        kinds = (("seed", rows), ("mean", average), ("order", orders))
        every = [{"part": kind} | row for kind, some in kinds for row in some]
        record.write("synthesis_order", command, 0, figures(mean), every)
        PICTURE.parent.mkdir(parents=True, exist_ok=True)
        drawn(rows, command).savefig(PICTURE, dpi=150)


def finished(parts: Sequence[Part], folder: Path, workers: int = 2) -> list[Row]:
    """The rows of these parts, from `folder` where they are kept, else made by so many processes."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = [each for each in parts if not _kept(folder, *each).exists()]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, spawn, torch.set_num_threads, (1,)) as pool:
        try:
            for done in as_completed([pool.submit(_keep, folder, *each) for each in missing]):
                say(done.result(), ("data", "seed", "method", *MEASURES, *TOLD))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return [json.loads(_kept(folder, *each).read_text()) for each in parts]


def _kept(folder: Path, name: str, seed: int, method: str) -> Path:
    return folder / f"{name}_{seed}_{method}.json"


def _keep(folder: Path, name: str, seed: int, method: str) -> Row:
    row = part(name, seed, method)
    path = _kept(folder, name, seed, method)
    new = path.with_suffix(".new")  # a killed run leaves no half of a part
    new.write_text(json.dumps(row, indent=1, allow_nan=False))
    new.replace(path)
    return row


def drawn(rows: Sequence[Row], command: str) -> Figure:
    """Precision and recall against the shadows' own test accuracy, precision over classes; a set a column."""
    names = list(dict.fromkeys(row["data"] for row in rows))
    figure = Figure(figsize=(4.6 * len(names), 8.4), layout="constrained")
    grid = figure.subplots(3, len(names), squeeze=False)
    for column, name in enumerate(names):
        mean = means(rows, name)
        for axes, measure in zip(grid[:2, column], ("precision", "recall"), strict=True):
            _against_accuracy(axes, mean, measure)
        grid[0, column].set_title(name)
        grid[1, column].set_xlabel("test accuracy of the shadows on their own records")
        _over_classes(grid[2, column], [row for row in rows if row["data"] == name])
    handles, said = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, said, loc="outside upper center", ncols=4, fontsize=8)
    figure.get_layout_engine().set(rect=(0, 0.02, 1, 0.98))  # type: ignore[union-attr, call-arg]
    figure.text(0.01, 0.006, command, fontsize=6, color="0.35", in_layout=False)
    return figure


def _against_accuracy(axes: Axes, mean: Means, measure: str) -> None:
    for method, (colour, mark) in DRAWN.items():
        if (own := mean.get(method)) is None:
            continue
        low, high = own[f"{measure}_low"], own[f"{measure}_high"]
        ends = None if low is None else [[own[measure] - low], [high - own[measure]]]
        axes.errorbar(
            own["shadow_accuracy"], own[measure], ends, color=colour, marker=mark, linestyle="", label=method
        )
    axes.axvline(
        mean["real"]["target_accuracy"], color="0.6", linestyle=":", label="test accuracy of the target"
    )
    axes.set_ylabel(f"{measure} (95 % over seeds)")


def _over_classes(axes: Axes, rows: Sequence[Row]) -> None:
    for method in IN_CDF:
        values = [v for row in rows if row["method"] == method for v in row["class_precisions"]]
        curve = cdf(torch.tensor([torch.nan if v is None else v for v in values]))
        dash = ":" if method == "marginals_by_class" else "-"
        axes.step(curve.x, curve.share, where="post", color=DRAWN[method][0], linestyle=dash, label=method)
    axes.set_xlabel("precision of a class")
    axes.set_ylabel("share of classes, all seeds")
    axes.legend(fontsize=6)


def say(row: Mapping[str, Any], keys: Sequence[str]) -> None:
    shown = {key: row.get(key) for key in keys}
    print(
        ", ".join(f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in shown.items()),
        flush=True,
    )


if __name__ == "__main__":
    tyro.cli(main)
