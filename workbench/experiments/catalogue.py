"""The one table of experiments: what each trains, computes, prints and draws. A new experiment is a row."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from glasslab.zoo import Zoo
from workbench.experiments import (
    ablations,
    calibration,
    entropy,
    gap,
    layers,
    metric_attacks,
    overfitting,
    pictures,
    pictures_inversion,
    pictures_synthesis,
    pictures_whitebox,
    precision_cdf,
    records,
    rounding,
    scarcity,
    smoothing,
    transfer,
)
from workbench.options import ZooOptions
from workbench.steps import Order

Zoos = Mapping[str, Zoo]


@dataclass(frozen=True)
class Experiment:
    """`orders(options, also)` names the zoos; `run(zoos, seed)` gives a tidy frame, of which `short` is
    printed and from which, with the manifest, `draw` makes a picture. `also`: further data sets unless the
    user names some; None where the experiment takes none.
    """

    orders: Callable[[ZooOptions, Sequence[str]], dict[str, Order]]
    run: Callable[[Zoos, int], pd.DataFrame]
    short: Callable[[pd.DataFrame], pd.DataFrame]
    draw: Callable[[pd.DataFrame, Mapping[str, Any]], Figure]
    also: tuple[str, ...] | None = None


def chosen(name: str) -> Experiment:
    """The row of that name. Raises ValueError for an unknown one."""
    if name not in EXPERIMENTS:
        near = difflib.get_close_matches(name, EXPERIMENTS, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ValueError(f"name must be one of {', '.join(EXPERIMENTS)}; got {name!r}{hint}")
    return EXPERIMENTS[name]


def _every(experiment: Callable[..., pd.DataFrame], zoos: Zoos, seed: int) -> pd.DataFrame:
    return experiment(zoos, seed=seed)


def _one(experiment: Callable[..., pd.DataFrame], zoos: Zoos, seed: int) -> pd.DataFrame:
    (zoo,) = zoos.values()
    return experiment(zoo, seed=seed)


def _home(experiment: Callable[..., pd.DataFrame], zoos: Zoos, seed: int) -> pd.DataFrame:
    others = {name: zoo for name, zoo in zoos.items() if name != transfer.HOME}
    return experiment(zoos[transfer.HOME], others, seed=seed)


def _entropy(zoos: Zoos, seed: int) -> pd.DataFrame:
    (zoo,) = zoos.values()
    return entropy.entropy(zoo)


EXPERIMENTS: Mapping[str, Experiment] = {
    "metric-attacks": Experiment(
        metric_attacks.orders,
        partial(_every, metric_attacks.metric_attacks),
        metric_attacks.short,
        pictures.metric_attacks,
        metric_attacks.ALSO,
    ),
    "gap": Experiment(gap.orders, partial(_every, gap.gap), gap.short, pictures.gap, ()),
    "transfer-architecture": Experiment(
        transfer.architectures,
        partial(_home, transfer.transfer_architecture),
        transfer.short,
        pictures.transfer,
    ),
    "transfer-data": Experiment(
        transfer.distributions, partial(_home, transfer.transfer_data), transfer.short, pictures.transfer, ()
    ),
    "overfitting": Experiment(
        overfitting.orders, partial(_every, overfitting.overfitting), overfitting.short, pictures.overfitting
    ),
    "precision-cdf": Experiment(
        precision_cdf.orders,
        partial(_one, precision_cdf.precision_cdf),
        precision_cdf.short,
        pictures.precision_cdf,
    ),
    "entropy": Experiment(entropy.orders, _entropy, entropy.short, pictures.entropy),
    "records": Experiment(records.orders, partial(_one, records.records), records.short, pictures.records),
    "layers": Experiment(layers.orders, partial(_one, layers.layers), layers.short, pictures_whitebox.layers),
    "calibration": Experiment(
        calibration.orders,
        partial(_one, calibration.calibration),
        calibration.short,
        pictures_whitebox.calibration,
    ),
    "ablations": Experiment(
        ablations.orders, partial(_one, ablations.ablations), ablations.short, pictures.ablations
    ),
    "rounding": Experiment(
        rounding.orders, partial(_one, rounding.rounding), rounding.short, pictures_inversion.rounding
    ),
    "smoothing": Experiment(
        smoothing.orders, partial(_every, smoothing.smoothing), smoothing.short, pictures_inversion.smoothing
    ),
    "scarcity": Experiment(
        scarcity.orders, partial(_one, scarcity.scarcity), scarcity.short, pictures_synthesis.scarcity
    ),
}
