"""Hill climbing on a target's answers: how fast, against whom, and with how many queries.

    python -m benchmark.synthesize

The target has 600 binary features, 128 hidden units and 100 classes, and learned made-up baskets.
`hillclimb_over_art` is records per second over those of the adversarial-robustness-toolbox, one core each,
which is given our start and our change of k features, and the same labels, k, rej_max, conf_min and iter_max;
queries per record are then one law, and two tests of that stand beside them. ART with its own defaults is
another row. What benchmark.synthesis_order found is in the figures where its results are there.
"""

import json
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from scipy.stats import ks_2samp, mannwhitneyu
from torch import nn

from benchmark import peer, record
from benchmark.measure import measured
from glasslab import nets
from glasslab.datasets.basket import basket
from glasslab.oracle import Oracle, forward
from glasslab.recipe import Recipe
from glasslab.split import subseed
from glasslab.train import train
from synthesis.features import binary
from synthesis.hillclimb import PRESETS, hillclimb
from synthesis.synthetic import Synthetic, labels
from workbench.evidence import one_thread

Row = dict[str, Any]
Change = Literal["flip", "resample"]

D, CLASSES = 600, 100
PRESET = PRESETS["shokri2017_purchase"]
RECIPE = Recipe(
    net="mlp",
    epochs=20,
    batch=100,
    optimiser="adam",
    lr=1e-3,
    schedule="constant",
    scale="none",
    engine="stacked",
    precision="float32",
)


def target(seed: int) -> tuple[nn.Module, float]:
    """A net 600-128-100 that learned 10,000 records of the 20,000, and its accuracy on the others."""
    data = basket(20_000, seed=seed, classes=CLASSES, d=D)
    net = partial(nets.build, RECIPE, data.shape, CLASSES)
    member = torch.arange(len(data)) < len(data) // 2
    state = train(net, RECIPE, data.x, data.y, member[None], [subseed(seed, "target")])
    with torch.random.fork_rng(devices=[]):
        model = net().eval()
    model.load_state_dict({name: t[0] for name, t in state.items()})
    right = forward(model, data.x[~member]).argmax(1) == data.y[~member]
    return model, float(right.double().mean())


def ours(
    model: nn.Module, records: int, *, change: Change = "flip", conf_min: float = PRESET["conf_min"]
) -> tuple[Synthetic, Row]:
    """Records of all classes in equal number, on one core."""

    def climb() -> Synthetic:
        return hillclimb(
            Oracle(model),
            labels(records, CLASSES),
            [binary()],
            shape=(D,),
            k_max=PRESET["k_max"],
            k_min=PRESET["k_min"],
            rej_max=PRESET["rej_max"],
            conf_min=conf_min,
            iter_max=PRESET["iter_max"],
            change=change,
        )

    with one_thread():
        found, cost = measured(climb)
    case: Row = {"case": f"ours, {change}", "change": change, "conf_min": conf_min}
    return found, case | told(found.queries.numpy(), len(found.x), cost)


def art(model: nn.Module, records: int, change: Change | Literal["defaults"]) -> tuple[np.ndarray, Row]:
    """Queries of each record, and what they took."""
    linear = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    arrays: dict[str, torch.Tensor] = {"y": labels(records, CLASSES)}
    arrays |= {
        f"{name[0]}{i}": t for i, layer in enumerate(linear, 1) for name, t in layer.named_parameters()
    }
    with tempfile.TemporaryDirectory() as scratch:
        for name, t in arrays.items():
            np.save(Path(scratch) / f"{name}.npy", t.detach().numpy())
        found = peer.ask("art_hillclimb", Path(scratch), {"change": change, **PRESET})
        queries, made = np.load(Path(scratch) / "against.npy").T
    cost = {name: found[name] for name in ("first", "seconds", "runs", "peak_mb", "cores")}
    case: Row = {"case": f"ART, {change}", "change": change, "against": found["against"]}
    return queries, case | told(queries, int(made.sum()), cost)


def told(queries: np.ndarray, made: int, cost: Mapping[str, float]) -> Row:
    return {
        "wanted": len(queries),
        "made": made,
        "queries_per_record": float(queries.mean()),
        "queries_median": float(np.median(queries)),
        "queries_most": int(queries.max()),
        "records_per_second": made / cost["seconds"],
        "microseconds_a_query": 1e6 * cost["seconds"] / float(queries.sum()),
        **cost,
    }


def speed(model: nn.Module, records: int, few: int) -> list[Row]:
    """Ours and ART's, both ways to change features; then ART's defaults, of `few` records."""
    rows: list[Row] = []
    for change in ("flip", "resample"):
        found, own = ours(model, records, change=change)
        queries, theirs = art(model, records, change)
        mine = found.queries.numpy()
        theirs |= {
            "ours_over": own["records_per_second"] / theirs["records_per_second"],
            "queries_ks_p": float(ks_2samp(mine, queries).pvalue),
            "queries_mannwhitney_p": float(mannwhitneyu(mine, queries).pvalue),
        }
        rows += [own, theirs]
    _, defaults = art(model, few, "defaults")
    over = rows[0]["records_per_second"] / defaults["records_per_second"] if defaults["made"] else None
    return [*rows, defaults | {"ours_over": over}]


def linear(model: nn.Module, sizes: tuple[int, ...]) -> list[Row]:
    """Seconds at so many records; and at a higher confidence."""
    rows = [ours(model, n)[1] | {"case": f"{n} records"} for n in sizes]
    sure = ours(model, sizes[0], conf_min=0.8)[1]
    return [*rows, sure | {"case": "ours, flip, conf_min 0.8"}]


def figures(speeds: list[Row], lines: list[Row]) -> dict[str, float]:
    """The few numbers that are named elsewhere, and those of the order of methods, if it was measured."""
    case = {row["case"]: row for row in speeds}
    flip, resample = case["ART, flip"], case["ART, resample"]
    sizes = lines[:-1]
    found = {
        "hillclimb_over_art": flip["ours_over"],
        "hillclimb_over_art_resample": resample["ours_over"],
        "queries_per_record": case["ours, flip"]["queries_per_record"],
        "queries_per_record_art": flip["queries_per_record"],
        "queries_ks_p": flip["queries_ks_p"],
        "queries_mannwhitney_p": flip["queries_mannwhitney_p"],
        "queries_per_record_resample": case["ours, resample"]["queries_per_record"],
        "queries_per_record_art_resample": resample["queries_per_record"],
        "queries_ks_p_resample": resample["queries_ks_p"],
        "queries_mannwhitney_p_resample": resample["queries_mannwhitney_p"],
        "records_per_second": case["ours, flip"]["records_per_second"],
        "microseconds_a_query": case["ours, flip"]["microseconds_a_query"],
        "most_over_fewest_records": sizes[-1]["wanted"] / sizes[0]["wanted"],
        "seconds_of_most_over_fewest_records": sizes[-1]["seconds"] / sizes[0]["seconds"],
    }
    over = case["ART, defaults"]["ours_over"]
    order = record.RESULTS / "synthesis_order.json"
    found |= {} if over is None else {"hillclimb_over_art_defaults": over}
    return found | (json.loads(order.read_text())["figures"] if order.exists() else {})


def main(
    records: int = 2000, few: int = 50, sizes: tuple[int, ...] = (1000, 2000, 4000), seed: int = 0
) -> None:
    """Writes results/synthesize.json."""
    model, accuracy = target(seed)
    print(f"the target has {accuracy:.3f} test accuracy", flush=True)
    speeds, lines = speed(model, records, few), linear(model, sizes)
    rows = [{"part": part} | row for part, some in (("speed", speeds), ("linear", lines)) for row in some]
    for row in rows:
        print(", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()))
    about: Row = {"part": "target", "net": f"{D}-128-{CLASSES}", "test_accuracy": accuracy}
    command = f"python -m benchmark.synthesize --seed {seed}"
    record.write("synthesize", command, seed, figures(speeds, lines), [about, *rows])


if __name__ == "__main__":
    tyro.cli(main)
