"""Not all records are equally hard, nor equally exposed (Carlini et al. 2022, arXiv:2112.03570).

Log-odds of four records under the shadows that trained on them and under the others, chosen by rule:
quantiles of mu_in - mu_out. And every record's TPR, sorted, under each estimator by its name: `gaussian`,
the risk by the shadows' normal laws, without any attack; `at_pooled_threshold`, the share of a record's IN
targets that one threshold for all flags; `empirical`, the same with a threshold of the record's own.
"""

from collections.abc import Mapping, Sequence

import pandas as pd

from glasslab.design import KINDS
from glasslab.intervals import clopper_pearson
from glasslab.likelihood import fit
from glasslab.zoo import Zoo
from workbench.curves import curves, risks
from workbench.experiments.runs import about, seen, sized
from workbench.options import ZooOptions
from workbench.play import floored
from workbench.steps import Order

COLUMNS = [
    "kind",
    "estimator",
    "attack",
    "rate",
    "side",
    "quantile",
    "record",
    "share",
    "value",
    "low",
    "high",
]
TYPES = dict.fromkeys(COLUMNS, "string") | {"record": "Int64"}
TYPES |= dict.fromkeys(["quantile", "share", "value", "low", "high"], "float64")


def records(zoo: Zoo, *, attack: str = "lira", seed: int = 0) -> pd.DataFrame:
    """Rows of three kinds. `tpr`: a record's TPR at `rate`, and the `share` of records with as much or more.

    `phi`: log-odds in nats of a chosen record under one model, `side` in, out (shadows), target in, target
    out. `normal`: the location (`value`) and spread (`high`) of its sides. `low` and `high` of a TPR over
    targets are Clopper-Pearson's 95 % at that threshold; the Gaussian one has none. Records that no target
    trained on have no TPR over targets, and no row. Raises ValueError where there are too few shadows.
    """
    held = seen(zoo, [attack], seed=seed)
    phi, of_target = (zoo.signal("phi", of=of)[:, 0] for of in KINDS)
    with floored([]):
        gauss = fit(phi, zoo.shadow_member)
    ids = zoo.split.pool
    drawn = risks(gauss, phi, zoo.shadow_member, of_target, held.truth, ids)
    every = pd.concat([drawn, curves(held.scores, held.truth, ids)])
    times_in = dict(zip(ids.tolist(), held.truth.sum(0).tolist(), strict=True))
    points = every[every["curve"] == "per_record"].groupby(["estimator", "rate"], sort=False)
    parts = [_sorted(some, times_in) for _, some in points]
    for kind, names in (("phi", {"x": "quantile", "y": "value"}), ("normal", {"x": "value", "y": "high"})):
        parts.append(drawn[drawn["curve"] == kind].rename(columns=names | {"curve": "kind"}))
    frame = pd.concat([part.reindex(columns=COLUMNS).astype(TYPES) for part in parts], ignore_index=True)
    frame.attrs["zoos"] = about({zoo.data.name: zoo})
    return frame


def _sorted(points: pd.DataFrame, times_in: Mapping[int, int]) -> pd.DataFrame:
    """Highest TPR first, of equals the surest."""
    held = points.dropna(subset=["y"])
    own = [times_in[record] for record in held["record"]]
    ends = [
        (None, None) if estimator == "gaussian" else clopper_pearson(round(y * n), n)
        for estimator, y, n in zip(held["estimator"], held["y"], own, strict=True)
    ]
    held = held.assign(low=[low for low, _ in ends], high=[high for _, high in ends])
    held = held.sort_values(["y", "low", "high"], ascending=False, kind="stable")
    share = held["y"].rank(ascending=False, method="max") / len(held)
    return held.rename(columns={"y": "value"}).assign(kind="tpr", share=share)


def orders(options: ZooOptions, also: Sequence[str]) -> dict[str, Order]:
    return {options.data: sized(options, shadows=64, targets=16)}


def short(frame: pd.DataFrame) -> pd.DataFrame:
    """How many records are how exposed, by each estimator."""
    by = frame[frame["kind"] == "tpr"].groupby(["estimator", "rate"], sort=False)["value"]
    table = by.agg(["count", "mean", "median", "max"])
    exposed = {f"TPR >= {x}": by.agg(lambda value, x=x: (value >= x).mean()) for x in (0.1, 0.5, 0.9)}
    return table.assign(**exposed).rename(columns={"count": "records"}).reset_index()
